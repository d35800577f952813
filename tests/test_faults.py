"""A disk that fails: whichever call to the system it is, nothing is lost and nothing half is left.

Every call that reaches the file system is counted. A command runs again and again, and the first, second, third, ...
call fails, until it comes through without reaching the one that would.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, content_of, kohya_lora, write

from lbw_bake import atomic, outputs, temporary, tensordata

SHORT = 0  # no error: the system takes or gives less than it was asked to
KINDS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EINTR": errno.EINTR, "short": SHORT}
LORA = kohya_lora(["unet_middle_block_1_proj_in", "unet_output_blocks_3_1_proj_in"], dtype="float16")
HASHES = {"sshs_model_hash": "0", "sshs_legacy_hash": "0"}

# Calls by name that a bake makes of the `os` module. Removing what is left over cannot be made to succeed, so it is
# not among them.
CALLS = ("copy_file_range", "fsync", "link", "replace", "rename", "open", "dup", "chmod", "stat", "fstat", "mkdir")


@dataclass
class Disk:
    """Fails at the call of this number, in one way; `calls` counts them, `struck` names the one that failed."""

    root: Path
    at: int | None = None  # None: whatever is called, it is not a command that calls
    kind: int = SHORT
    calls: int = 0
    struck: str = ""

    def holds(self, file: Any) -> bool:
        """Whether a path, an open file or a descriptor is on this disk."""
        if not isinstance(file, str | Path):
            descriptor = file if isinstance(file, int) else file.fileno()
            file = Path(f"/proc/self/fd/{descriptor}").readlink()
        return self.root in Path.cwd().joinpath(file).parents

    def fails(self, call: str, file: Any) -> bool:
        """Count a call; raise if it is to fail with an error, true if it is to do less than asked."""
        if self.at is None or not self.holds(file):
            return False
        self.calls += 1
        if self.calls != self.at:
            return False
        self.struck = call
        if self.kind != SHORT:
            raise OSError(self.kind, os.strerror(self.kind), *([str(file)] if isinstance(file, str | Path) else []))
        return True


@pytest.fixture
def disk(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """The disk under everything the package does. Harmless unless told at which call to fail."""
    disk = Disk(tmp_path)

    class File(FileIO):
        def __init__(self, file: Any, *args: Any, **kwargs: Any) -> None:
            disk.fails("open a file", file)
            super().__init__(file, *args, **kwargs)

        def write(self, data: Any) -> int:
            short = disk.fails("write", self.name) and len(data) > 1
            return super().write(memoryview(data)[: len(data) // 2] if short else data)

        def readinto(self, view: Any) -> int:
            short = disk.fails("read", self.name) and len(view) > 1
            return super().readinto(memoryview(view)[: len(view) // 2] if short else view)

        def seek(self, *args: Any) -> int:
            disk.fails("seek", self.name)
            return super().seek(*args)

    real_open = io.open

    def opened(file: Any, mode: str = "r", *args: Any, opener: Any = None, **kwargs: Any) -> Any:
        buffers = {"rb": io.BufferedReader, "w+b": io.BufferedRandom}
        if mode not in buffers or not disk.holds(file):
            return real_open(file, mode, *args, opener=opener, **kwargs)
        return buffers[mode](File(file, mode.replace("b", ""), opener=opener))

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            short = disk.fails(name, args[0])
            if short and name == "copy_file_range":
                args = (*args[:2], max(args[2] // 2, 1), *args[3:])
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module in (atomic, temporary, tensordata):
            patch.setattr(module, "FileIO", File)
        patch.setattr(io, "open", opened)
        for size in ("_LONG", "_SHORT"):
            patch.setattr(outputs, size, 0)
        for name in CALLS:
            if hasattr(os, name):
                patch.setattr(os, name, counted(name, getattr(os, name)))
        yield disk


COMMANDS: dict[str, tuple[str, ...]] = {
    "copy": ("bake", "a.safetensors", "-w", "*=1", "-o", "out.safetensors"),
    "copy over an old output": ("bake", "a.safetensors", "-w", "*=1", "-o", "old.safetensors", "--force"),
    "scale": ("bake", "a.safetensors", "-w", "*=0.3", "-o", "out.safetensors"),
    "scale and hash": ("bake", "hashed.safetensors", "-w", "*=0.3", "-o", "old.safetensors", "--force"),
    "another dtype": ("bake", "a.safetensors", "-w", "*=0.3", "--dtype", "f32", "-o", "out.safetensors"),
    "zeros": ("bake", "a.safetensors", "-w", "*=0", "-o", "old.safetensors", "--force"),
    "two presets": ("bake", "a.safetensors", "-p", "MIDD", "-p", "OUTALL", "--out-dir", ".", "--family", "sd1"),
    "in place": ("bake", "a.safetensors", "-w", "MID=0.5", "--in-place"),
    "verified": ("bake", "hashed.safetensors", "-w", "MID=0.5", "--verify", "-o", "old.safetensors", "--force"),
    "merge": ("merge", "a.safetensors:0.5", "hashed.safetensors", "-o", "old.safetensors", "--force"),
    "sweep": ("sweep", "a.safetensors", "--x", "values=0,0.5", "-o", "plot"),
    "convert presets": ("presets", "convert", "presets.txt", "presets.yaml", "--force"),
}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to tell what a descriptor is of")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_lost_and_nothing_half_is_left(
    command: str, kind: str, tmp_path: Path, run: Run, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tmp_path / "original"
    original.mkdir()
    write(original / "a.safetensors", LORA)
    write(original / "hashed.safetensors", LORA, HASHES)
    (original / "old.safetensors").write_bytes(b"old")
    (original / "presets.txt").write_text(f"MINE:{','.join('1' * 17)}\n")
    (original / "presets.yaml").write_text("OLD: 0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0\n")
    before = content_of(original)

    def attempt(at: int) -> tuple[int, str, dict[str, bytes]]:
        folder = shutil.copytree(original, tmp_path / f"{at}")
        monkeypatch.chdir(folder)
        disk.at, disk.kind, disk.calls, disk.struck = at, KINDS[kind], 0, ""
        code, _, error = run(*COMMANDS[command])
        disk.at = None
        after = content_of(folder)
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder)
        return code, error, after

    code, error, right = attempt(0)
    assert code == 0, error
    made = right.keys() - {name for name, content in right.items() if before.get(name) == content}
    assert made
    failures = 0
    for at in range(1, 1000):
        code, error, after = attempt(at)
        if not disk.struck:
            break
        what = f"call {at}, {disk.struck}: {error}"
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert code == bool(lines), what
        assert len(lines) <= 1, what
        assert "Traceback" not in error, what
        failures += code
        if code == 0:
            assert after == right, what
        for name in before.keys() | after.keys():
            allowed = {before.get(name), right.get(name)} if name in made else {before.get(name)}
            assert after.get(name) in allowed, f"{name} after {what}"
    assert code == 0
    assert after == right
    assert (failures == 0) == (kind == "short")
