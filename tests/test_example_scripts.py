"""The scripts in examples/: they do what they say, and shellcheck has nothing to say of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, called, lbw_on_path, measured, unet_lora, write
from safetensors.numpy import load_file

SCRIPTS = sorted((ROOT / "examples").glob("*.sh"))
Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Run an example in a folder of its own."""
    environment = lbw_on_path(tmp_path / "home")
    (tmp_path / "work").mkdir(exist_ok=True)

    def run(name: str, *args: object) -> subprocess.CompletedProcess[str]:
        return called("sh", ROOT / "examples" / name, *args, cwd=tmp_path / "work", env=environment)

    return run


@pytest.mark.parametrize(
    "path", [*SCRIPTS, ROOT / "tests" / "newcomer.sh", ROOT / ".ci" / "run"], ids=lambda path: path.name
)
def test_shellcheck_has_nothing_to_say(path: Path) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    result = called("shellcheck", path)
    assert result.returncode == 0, result.stdout


class TestBakeFolder:
    def test_a_tree_is_baked_with_two_presets_and_only_once(self, script: Script, tmp_path: Path) -> None:
        original = unet_lora()
        source = tmp_path / "work" / "loras" / "people" / "a b.safetensors"
        source.parent.mkdir(parents=True)
        write(source, original)
        assert script("bake-folder.sh", "loras", "baked").returncode == 0
        midd, outall = (tmp_path / f"work/baked/people/a b-{preset}.safetensors" for preset in ("MIDD", "OUTALL"))
        assert measured(original, load_file(midd)) == [1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
        assert measured(original, load_file(outall)) == [1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
        write(source.with_name("new.safetensors"), original)
        again = script("bake-folder.sh", "loras", "baked")
        assert "2 written, 2 skipped" in again.stderr

    def test_usage_is_said(self, script: Script) -> None:
        result = script("bake-folder.sh")
        assert (result.returncode, result.stdout) == (2, "")
        assert "bake-folder.sh LORAS BAKED" in result.stderr


class TestCheckPresets:
    @pytest.fixture(autouse=True)
    def _repository(self, tmp_path: Path) -> None:
        if not shutil.which("git"):
            pytest.skip("git is not installed")
        subprocess.run(["git", "init", "--quiet", str(tmp_path / "work")], check=True)

    @pytest.mark.parametrize(
        ("content", "code"),
        [("A:1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0\n", 0), ("A 1,0\n", 1), ("A:1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0", 0)],
        ids=["good", "wrong", "no line end"],
    )
    def test_what_git_knows_is_checked(self, content: str, code: int, script: Script, tmp_path: Path) -> None:
        folder = tmp_path / "work" / "my files"
        folder.mkdir()
        (folder / "LBWPresets.txt").write_text(content)
        (folder / "unknown_presets.txt").write_text("no colon")
        subprocess.run(["git", "add", "my files/LBWPresets.txt"], cwd=tmp_path / "work", check=True)
        result = script("check-presets.sh", "--format", "text")
        assert result.returncode == code, result.stdout + result.stderr
        assert "unknown_presets" not in result.stdout

    def test_without_preset_files_all_is_well(self, script: Script) -> None:
        assert script("check-presets.sh").returncode == 0
