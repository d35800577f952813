"""A file appears complete under its name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

from .errors import OutputError

# Hidden, and not ending in .safetensors: web UIs that scan the folder must not offer a half-written file.
TEMPORARY_SUFFIX = ".lbw-partial"
_NAME_LIMIT = 200  # of the 255 bytes a file name may have, the rest being ours

_HINTS = {
    errno.ENOSPC: "make room on the disk and run it again",
    errno.EDQUOT: "make room in your quota and run it again",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder you may write to",
    errno.ENOENT: "create the folder first",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "raise the file size limit (ulimit -f)",
}


def check_output(output: Path, inputs: Iterable[Path], *, replace: bool, in_place: bool = False) -> None:
    """Refuse early what could only fail after the work, or would harm an input. Raises OutputError."""
    if not output.parent.is_dir():
        raise OutputError(f"{output}: there is no folder {output.parent}", "create it, or choose another output")
    if not output.exists():
        return
    if output.is_dir():
        raise OutputError(f"{output}: is a folder", "name a file, or give the folder as --out-dir")
    if any(output.samefile(path) for path in inputs if path.exists()) and not in_place:
        raise OutputError(f"{output}: is the input itself", "choose another output, or bake it with --in-place")
    if not (replace or in_place):
        raise OutputError(f"{output}: already exists", "choose another name, or replace it with --force")


@contextlib.contextmanager
def atomic_write(path: Path, *, replace: bool) -> Iterator[FileIO]:
    """Yield a new file that becomes `path` when the block ends well, and vanishes when it does not.

    With `replace` an existing file is replaced, after the new one is flushed to disk, and its mode is kept;
    without, an existing path is left alone. Raises OutputError for what the system refuses.
    """
    stem = os.fsencode(path.name)[:_NAME_LIMIT].decode(errors="ignore")
    temporary = path.with_name(f".{stem}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is not a regular file", "choose another output")
        with FileIO(temporary, "xb") as file:
            yield file
            if replace and path.exists():
                temporary.chmod(path.stat().st_mode & 0o7777)
                os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            _move_to_new(temporary, path)
    except FileExistsError:
        raise OutputError(f"{path}: already exists", "choose another name, or replace it with --force") from None
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "")
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}", hint) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_all(file: FileIO, data: bytes | memoryview) -> int:
    """Write all of the data, however little the system takes at a time; returns its length."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    return len(data)


def _move_to_new(temporary: Path, path: Path) -> None:
    """Give a file its final name unless something has it already. Raises FileExistsError."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        temporary.replace(path)
