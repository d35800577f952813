"""What a process does hundreds of times leaves nothing in it; `python -m benchmarks.soak` tries thousands of times."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT, python


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_open_files_stay_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = python("-m", "benchmarks.soak", "--bakes", "800")
    assert result.returncode == 0, result.stdout + result.stderr
