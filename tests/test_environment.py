"""`lbw --version` says what a bug report needs."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, python

from lbw_bake import environment


def test_it_names_what_matters(run: Run) -> None:
    _, system, libraries, driver = run("--version")[1].splitlines()
    assert system.startswith(f"Python {platform.python_version()} on ")
    assert dict(part.split(" ") for part in libraries.split(", "))["numpy"] == np.__version__
    assert f"safetensors {version('safetensors')}" in libraries
    assert driver in ("NVIDIA driver found", "no NVIDIA driver found")


def test_torch_may_be_missing() -> None:
    """As in a CI job that only checks presets."""
    code = (
        "import importlib.metadata as m; found = m.version\n"
        "def version(name):\n"
        "    if name == 'torch': raise m.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "m.version = version; from lbw_bake.cli import main; main(['--version'])"
    )
    assert "torch not installed" in python("-c", code).stdout


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_a_driver_is_what_torch_would_need() -> None:
    torch = pytest.importorskip("torch")
    assert environment.driver_present() or not torch.cuda.is_available()


def test_windows_looks_for_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.os, "name", "nt")
    monkeypatch.setenv("SYSTEMROOT", str(tmp_path))
    monkeypatch.setattr(environment, "Path", type(tmp_path))  # pathlib makes Windows paths when os.name says so
    assert not environment.driver_present()
    (tmp_path / "System32").mkdir()
    (tmp_path / "System32" / "nvcuda.dll").touch()
    assert environment.driver_present()
