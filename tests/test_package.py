"""The wheel: complete, and at home anywhere."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, called, measured, unet_lora, write
from safetensors.numpy import load_file

from lbw_bake import __version__


def call(*command: object, folder: Path) -> str:
    """Run a command in a folder; it must succeed. Returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    result = called(*command, cwd=folder, env=environment, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(kind: str, source: Path, folder: Path) -> Path:
    """Build a wheel or sdist with what the development environment has."""
    pytest.importorskip("build")
    call(sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", folder, source, folder=folder)
    (path,) = folder.glob("lbw_bake-*.whl" if kind == "wheel" else "lbw_bake-*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel."""
    return build("wheel", ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a fresh environment that the wheel is installed in; its dependencies are lent by this one."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "bin" / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, folder=folder)
    return python.parent


def test_everything_needed_is_inside(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "lbw_bake").rglob("*.py")}
    assert files >= {*sources, "lbw_bake/presets.yaml", "lbw_bake/py.typed"}
    assert {name.split("/")[0] for name in files} == {"lbw_bake", f"lbw_bake-{__version__}.dist-info"}


def test_the_sdist_makes_the_same_wheel_byte_for_byte(wheel: Path, tmp_path: Path) -> None:
    """Whoever builds it, from whatever copy of the sources, and at whatever time."""
    sdist = build("sdist", ROOT, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    for path in unpacked.rglob("*"):
        os.utime(path, (0, 0))
    assert {"tests", "docs", "examples", "Makefile", "constraints.txt"} <= {path.name for path in unpacked.iterdir()}
    assert build("wheel", unpacked, tmp_path).read_bytes() == wheel.read_bytes()


def test_what_users_are_told_is_valid(wheel: Path) -> None:
    """The description renders where packages are listed, and the wheel holds nothing odd."""
    pytest.importorskip("twine")
    pytest.importorskip("check_wheel_contents")
    call(sys.executable, "-m", "twine", "check", "--strict", wheel, folder=wheel.parent)
    call(sys.executable, "-m", "check_wheel_contents", wheel, folder=wheel.parent)


def test_it_bakes_with_a_preset_from_any_folder(installed: Path, tmp_path: Path) -> None:
    original = unet_lora()
    source = write(tmp_path / "a.safetensors", original)
    where = call(installed / "python", "-c", "import lbw_bake; print(lbw_bake.__file__)", folder=tmp_path)
    assert Path(where).is_relative_to(installed.parent)
    call(installed / "lbw", "bake", source, "--preset", "MIDD", "-o", "b.safetensors", folder=tmp_path)
    expected = [1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert measured(original, load_file(tmp_path / "b.safetensors")) == pytest.approx(expected)


def test_it_is_also_a_module(installed: Path, tmp_path: Path) -> None:
    printed = call(installed / "python", "-m", "lbw_bake", "--version", folder=tmp_path)
    assert printed.splitlines()[0] == f"lbw {__version__}"


def test_ci_runs_on_every_python_that_is_promised() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    promised = re.findall(r"Python :: (3\.\d+)", project)
    assert workflow["jobs"]["check"]["strategy"]["matrix"]["python"] == promised
    assert f'requires-python = ">={promised[0]}"' in project
