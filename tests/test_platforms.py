"""What Windows and macOS do otherwise, as far as it can be seen from here; `make lint` checks the types for both."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest
from conftest import Run, data_of, unet_lora, write

from lbw_bake import batch, cli, outputs, rewrite, temporary
from lbw_bake.atomic import write_file
from lbw_bake.tensordata import TensorData


def test_the_input_is_closed_before_it_is_replaced(lora: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """Windows does not replace a file that is open."""
    still_open: list[TensorData] = []

    class Watched(TensorData):
        def __enter__(self) -> TensorData:
            still_open.append(self)
            return super().__enter__()

        def __exit__(self, *exc: object) -> None:
            still_open.remove(self)
            super().__exit__(*exc)

    original = outputs.atomic_write

    @contextmanager
    def watched(path: Path, *, replace: bool) -> Iterator[FileIO]:
        with original(path, replace=replace) as file:
            yield file
            assert not still_open

    for module in (rewrite, outputs):
        monkeypatch.setattr(module, "TensorData", Watched)
    monkeypatch.setattr(outputs, "atomic_write", watched)
    run.done("bake", lora, "-w", "*=0.5", "--in-place")


def test_patterns_of_inputs_are_files_and_those_of_options_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Shells of Windows leave patterns as they are."""
    monkeypatch.chdir(tmp_path)
    for name in ("style1", "style2", "style[12]", "other"):
        write(Path(f"{name}.safetensors"), unet_lora())
    monkeypatch.setattr(sys, "platform", "win32")
    given = (["*1.safetensors", "o?her.safetensors"], ["style[12].safetensors"], [".", "--include", "style*"])
    found = []
    for number, inputs in enumerate(given):
        run.done("bake", *inputs, "-w", "*=0.5", "--out-dir", f"out{number}")
        found.append({path.stem for path in Path(f"out{number}").iterdir()})
    assert found == [{"style1", "other"}, {"style[12]"}, {"style1", "style2", "style[12]"}]


def test_typer_takes_no_argument_for_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would on Windows, that of --include too."""
    told: list[dict[str, object]] = []
    monkeypatch.setattr(cli, "command_line", lambda _: lambda _, **options: told.append(options))
    cli.main(["inspect"])
    assert told[0]["windows_expand_args"] is False


def test_no_more_processes_than_windows_can_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = batch.Batch(tuple(batch.Job(Path(f"{i}.safetensors"), (), nbytes=10**9) for i in range(100)))
    assert batch._processes(plenty, 64) == 64
    monkeypatch.setattr(sys, "platform", "win32")
    assert 2 * batch._processes(plenty, 64) <= 63


def test_a_new_file_without_a_lock_need_not_be_told_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems of Windows give an open file another identity than its name."""
    monkeypatch.setattr(temporary, "lock", lambda _: None)
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    write_file(tmp_path / "out", b"new", replace=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("known", [True, False])
def test_a_drives_cache_is_emptied_on_macos(known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def control(_: int, what: int) -> None:
        asked.append(what)
        if not known:
            raise OSError(errno.ENOTSUP, "not here")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda _: asked.append("fsync"))
    (tmp_path / "out").write_bytes(b"old")
    write_file(tmp_path / "out", b"new", replace=True)
    assert asked == [51, *["fsync"] * (not known), "fsync"]  # the last one is that of the folder
    assert (tmp_path / "out").read_bytes() == b"new"


def test_without_the_kernels_copy_the_bytes_are_the_same(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Only Linux and FreeBSD copy within the kernel."""
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    for size in ("_LONG", "_SHORT"):
        monkeypatch.setattr(f"lbw_bake.outputs.{size}", 0)
    run.done("bake", lora, "-w", "*=1", "-o", tmp_path / "b.safetensors")
    assert data_of(tmp_path / "b.safetensors") == data_of(lora)
