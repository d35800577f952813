"""A file appears complete under its name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

from .errors import MORE_FILES, OutputError
from .temporary import clear_leftovers_once, lock, temporary_file

_HINTS = {
    errno.ENOSPC: "make room on the disk and run it again",
    errno.EDQUOT: "make room in your quota and run it again",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder you may write to"),
    errno.ENOENT: "create the folder first",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.EMFILE: MORE_FILES,
}


def check_output(
    output: Path,
    inputs: Iterable[Path],
    *,
    replace: bool,
    in_place: bool | None = None,
    model: Iterable[Path] = (),
    among: bool = False,
) -> None:
    """Refuse early what could only fail after the work, or would harm an input, or the base model's files `model`.

    `in_place` is None where an input cannot be asked to be replaced; `among` says that the output is one of several,
    which may be skipped. Raises OutputError.
    """
    if not os.path.isdir(output.parent):  # noqa: PTH112 - which says no to a name no folder can have
        raise OutputError(f"{output}: there is no folder {output.parent}", "create it, or choose another output")
    with refusals(output):
        old = _status(output)
        same, needed = _is_among(inputs, old), _is_among(model, old)
        taken = os.path.lexists(output)
    if needed:
        raise OutputError(f"{output}: is a file of the base model", "choose another output")
    if same and not in_place:
        way = "" if in_place is None else ", or lbw bake --in-place"
        raise OutputError(f"{output}: is the input itself", f"choose another output{way}")
    if taken and not (replace or in_place):
        raise _taken(output, "keep it with --skip-existing, or replace it with --force") if among else _taken(output)
    if old:
        _check_protection(output, old)


@contextlib.contextmanager
def atomic_write(path: Path, *, replace: bool) -> Iterator[FileIO]:
    """Yield a new file that becomes `path` when the block ends well, and vanishes when it does not.

    With `replace` an existing file is replaced: the new one has its mode and, where the system permits, its owner, and
    is on disk before it takes the name; without, an existing path is left alone. Raises OutputError for what the
    system refuses, and for a path that is no regular file or write-protected.
    """
    clear_leftovers_once(path.parent)
    with refusals(path):
        old = _status(path)
        if replace and old:
            _check_protection(path, old)
        with temporary_file(path) as (file, temporary):
            if replace and old:
                _take_after(temporary, old)
            yield file
            _publish(file, temporary, path, replace=replace)


@contextlib.contextmanager
def claim(path: Path) -> Iterator[None]:
    """Keep other processes that claim it from replacing a file, where the system has locks. Raises OutputError."""
    if sys.platform == "win32":  # an open file could not be replaced, not even by us
        yield
        return
    with refusals(path), FileIO(path) as file:
        if lock(file) is False or not os.path.samestat(os.fstat(file.fileno()), path.stat()):  # it may be replaced now
            raise OutputError(f"{path}: another process is about to replace it", "wait until that is done")
        yield


def make_folder(folder: Path, hint: str = "choose another folder", *, dry_run: bool = False) -> None:
    """Make a folder, and those it is in, unless it is there; a dry run only refuses what is in their way.

    Raises OutputError with the hint.
    """
    if dry_run:
        for path in (folder, *folder.parents):
            if os.path.lexists(path) and not os.path.isdir(path):  # noqa: PTH112 - which never raises
                raise OutputError(f"{folder}: cannot be made: {path} is no folder", hint)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}", hint) from error


def make_room(file: FileIO, start: int, end: int) -> None:
    """Have the system find room for bytes to come, if it can: ext4 writes them a third quicker then."""
    if hasattr(os, "posix_fallocate") and end > start:
        with contextlib.suppress(OSError):  # a disk that is full shows again when it is written to
            os.posix_fallocate(file.fileno(), start, end - start)


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write all of the data, however little the system takes at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_file(path: Path, data: bytes | memoryview, *, replace: bool) -> None:
    """Write a file of which all is in memory. Raises OutputError, as `atomic_write` does."""
    with atomic_write(path, replace=replace) as file:
        write_all(file, data)


def flush(file: FileIO) -> None:
    """Have what was written on disk, and read from there the next time, where the system can be asked for that."""
    _sync(file)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn what the system refuses into an OutputError about the path."""
    try:
        yield
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "")
        if sys.platform == "win32" and error.errno == errno.EACCES:
            hint = "close the program that has it open, or choose a folder you may write to"
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}", hint) from error


def _taken(path: Path, hint: str = "choose another name, or replace it with --force") -> OutputError:
    return OutputError(f"{path}: already exists", hint)


def _is_among(paths: Iterable[Path], status: os.stat_result | None) -> bool:
    """Whether the file of this status, if there is one, is one of these."""
    return status is not None and any(path.exists() and os.path.samestat(status, path.stat()) for path in paths)


def _status(path: Path) -> os.stat_result | None:
    """The status of the file that is there, None if nothing is. Raises OutputError for what is no file, OSError."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{path}: is a folder", "name a file, or give the folder as --out-dir")
    if not stat.S_ISREG(status.st_mode) or _is_descriptor(path):
        raise OutputError(f"{path}: is not a regular file", "choose another output")
    return status


def _is_descriptor(path: Path) -> bool:
    """Whether a path is what Linux calls an open file, as /dev/stdout: root could replace that link for everybody."""
    places = (os.path.realpath(path.parent), str(path.readlink()) if path.is_symlink() else "")
    return any(place.startswith("/proc/") for place in places)


def _check_protection(path: Path, old: os.stat_result) -> None:
    """Refuse to replace a write-protected file, which a rename would do without asking. Raises OutputError."""
    if not old.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise OutputError(f"{path}: is write-protected", "choose another output, or make it writable first")


def _take_after(temporary: Path, old: os.stat_result) -> None:
    """Give a new file the owner and mode of the one it replaces; another's files only root can give away."""
    status = temporary.stat()
    if sys.platform != "win32" and (status.st_uid, status.st_gid) != (old.st_uid, old.st_gid):
        with contextlib.suppress(OSError):
            os.chown(temporary, old.st_uid, old.st_gid)
    temporary.chmod(stat.S_IMODE(old.st_mode))


def _publish(file: FileIO, temporary: Path, path: Path, *, replace: bool) -> None:
    """Give a complete file its name. Raises FileExistsError, OSError."""
    replaced = replace and path.exists()
    if replaced:
        _sync(file)
    _settle(file)
    if replace:
        temporary.replace(path)
    else:
        _move_to_new(temporary, path)
    if replaced:
        _sync_folder(path.parent)


def _sync(file: FileIO) -> None:
    """Have a file on disk. On macOS fsync leaves it in the drive's cache; not all file systems can empty that."""
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(file.fileno(), fcntl.F_FULLFSYNC)
            return
    os.fsync(file.fileno())


def _settle(file: FileIO) -> None:
    """Close the file or a duplicate before it gets its name: some network file systems report errors only then."""
    if sys.platform == "win32":
        file.close()  # it renames no open file
    else:
        os.close(os.dup(file.fileno()))  # which keeps the lock


def _move_to_new(temporary: Path, path: Path) -> None:
    """Give a file its final name unless something has it already. Raises FileExistsError."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        temporary.rename(path)


def _sync_folder(folder: Path) -> None:
    """Have the folder's new entry on disk, where folders can be opened and flushed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
