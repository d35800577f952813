"""A file appears complete or not at all, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Run, bound_by_permissions, lbw, unet_lora, write

from lbw_bake.atomic import atomic_write, write_all
from lbw_bake.errors import OutputError

REPLACE = pytest.mark.parametrize("replace", [False, True], ids=["new", "replaced"])


@pytest.fixture(params=["new", "replaced"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
    """A path to write to, and whether something is there that may be replaced."""
    path = tmp_path / "out.safetensors"
    replace = request.param == "replaced"
    if replace:
        path.write_bytes(b"old")
    return path, replace


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """No file may become larger: the nearest thing to a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_it_appears_when_it_is_complete(target: tuple[Path, bool]) -> None:
    path, replace = target
    before = content_of(path.parent)
    with atomic_write(path, replace=replace) as file:
        write_all(file, b"new")
        (temporary,) = {entry.name for entry in path.parent.iterdir()} - before.keys()
        assert {name: content for name, content in content_of(path.parent).items() if name in before} == before
    assert content_of(path.parent) == {"out.safetensors": b"new"}
    assert path.stat().st_nlink == 1
    # A web UI that scans the folder meanwhile must not offer it.
    assert temporary.startswith(".")
    assert not temporary.endswith(".safetensors")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_what_goes_wrong_leaves_all_as_it_was(target: tuple[Path, bool], error: type[BaseException]) -> None:
    path, replace = target
    before = content_of(path.parent)

    def fail_halfway() -> None:
        with atomic_write(path, replace=replace) as file:
            write_all(file, b"new")
            raise error

    with pytest.raises((error, OutputError)):
        fail_halfway()
    assert content_of(path.parent) == before


def test_an_existing_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    with pytest.raises(OutputError, match=r"out\.safetensors: already exists"), atomic_write(path, replace=False):
        path.write_bytes(b"somebody was quicker")
    assert content_of(tmp_path) == {"out.safetensors": b"somebody was quicker"}


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_the_mode_is_that_of_any_new_file(tmp_path: Path, mask: int) -> None:
    with umask(mask), atomic_write(tmp_path / "out", replace=False):
        pass
    assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o666 & ~mask


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o440])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "out"
    path.touch()
    path.chmod(mode)
    with umask(0o077), atomic_write(path, replace=True):
        pass
    assert path.stat().st_mode & 0o7777 == mode


LONGEST = {"ascii": "x" * 243 + ".safetensors", "wide": "東" * 81 + ".safetensors"}


@REPLACE
@pytest.mark.parametrize("name", LONGEST.values(), ids=LONGEST)
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path, name: str, replace: bool) -> None:
    assert len(name.encode()) == 255
    with atomic_write(tmp_path / name, replace=replace) as file:
        write_all(file, b"new")
    assert content_of(tmp_path) == {name: b"new"}


REFUSED = {
    "no folder": ("missing/out", errno.ENOENT),
    "a file for a folder": ("file/out", errno.ENOTDIR),
    "a name too long": ("x" * 256, errno.ENAMETOOLONG),
}


@REPLACE
@pytest.mark.parametrize(("name", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_the_system_refuses_is_said_with_the_path(tmp_path: Path, name: str, reason: int, replace: bool) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / name
    with pytest.raises(OutputError) as problem, atomic_write(path, replace=replace):
        pass
    assert problem.value.message == f"{path}: cannot be written: {os.strerror(reason)}"


@bound_by_permissions
def test_a_folder_one_may_not_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"), atomic_write(tmp_path / "out", replace=False):
        pass


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with atomic_write(tmp_path / "out", replace=False) as file:
        write_all(file, b"new")
    assert content_of(tmp_path) == {"out": b"new"}
    with pytest.raises(OutputError, match="already exists"), atomic_write(tmp_path / "out", replace=False):
        pass


@pytest.mark.parametrize("options", [("-w", "*=0.5"), ("-w", "*=1")], ids=["multiplied", "copied by the kernel"])
def test_a_full_disk_leaves_nothing_behind(
    target: tuple[Path, bool], options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory, run: Run
) -> None:
    path, _ = target
    source = write(tmp_path_factory.mktemp("input") / "a.safetensors", unet_lora())
    before = content_of(path.parent)
    with largest_file(source.stat().st_size // 2):
        code, _, error = run("bake", source, "-o", path, "--force", *options)
    assert code == 1
    assert f"error: {path}: cannot be written: {os.strerror(errno.EFBIG)}" in error
    assert "hint: " in error
    assert content_of(path.parent) == before


def test_a_full_device_is_said_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left") as problem, atomic_write(tmp_path / "out", replace=False):
        Path("/dev/full").write_bytes(b"x")
    assert problem.value.hint == "make room on the disk and run it again"


def test_an_output_that_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """As root, replacing /dev/null would be the last thing many programs see of it."""
    source = write(tmp_path / "a.safetensors", unet_lora())
    os.mkfifo(tmp_path / "pipe")
    result = lbw("bake", source, "-p", "MIDD", "-o", tmp_path / "pipe", "--force", timeout=20)
    assert result.returncode == 1
    assert (tmp_path / "pipe").is_fifo()
