"""What Windows and macOS do otherwise, as far as it can be seen from here; `make lint` checks the types for both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest
from conftest import Run, data_of, unet_lora, write

from lbw_bake import rewrite
from lbw_bake.tensordata import TensorData


def test_the_input_is_closed_before_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """Windows does not replace a file that is open."""
    still_open: list[TensorData] = []

    class Watched(TensorData):
        def __enter__(self) -> TensorData:
            still_open.append(self)
            return super().__enter__()

        def __exit__(self, *exc: object) -> None:
            still_open.remove(self)
            super().__exit__(*exc)

    original = rewrite.atomic_write

    @contextmanager
    def watched(path: Path, *, replace: bool) -> Iterator[FileIO]:
        with original(path, replace=replace) as file:
            yield file
            assert not still_open

    monkeypatch.setattr(rewrite, "TensorData", Watched)
    monkeypatch.setattr(rewrite, "atomic_write", watched)
    source = write(tmp_path / "a.safetensors", unet_lora())
    assert run("bake", source, "-w", "*=0.5", "--in-place")[0] == 0


def test_without_the_kernels_copy_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Only Linux and FreeBSD copy within the kernel."""
    source = write(tmp_path / "a.safetensors", unet_lora())
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    assert run("bake", source, "-w", "*=1", "-o", tmp_path / "b.safetensors")[0] == 0
    assert data_of(tmp_path / "b.safetensors") == data_of(source)
