"""Files that are being written: beside their name, under one that only `lbw` makes, and locked as long as it takes.

Whoever finds such a file and can take its lock has found what a killed run left behind, and removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from functools import cache
from io import FileIO
from pathlib import Path

if sys.platform != "win32":
    import fcntl

# Hidden, and not ending in .safetensors: web UIs that scan the folder must not offer a half-written file.
TEMPORARY_SUFFIX = ".lbw-partial"
_TEMPORARY = re.compile(rf"\..*\.[0-9a-f]{{8}}{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)
_NAME_LIMIT = 200  # of the 255 bytes a file name may have, the rest being ours

# Where nothing can be locked, what was not written to for a day is taken for left behind.
_STALE_SECONDS = 24 * 60 * 60


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[tuple[FileIO, Path]]:
    """A new file beside the path, locked while it is open, and its name, which is gone afterwards."""
    stem = os.fsencode(path.name)[:_NAME_LIMIT].decode(sys.getfilesystemencoding(), errors="ignore")
    while True:
        temporary = path.with_name(f".{stem}.{os.urandom(4).hex()}{TEMPORARY_SUFFIX}")
        try:
            with FileIO(temporary, "xb") as file:
                if _locked_as(file, temporary):
                    yield file, temporary
                    return
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _locked_as(file: FileIO, name: Path) -> bool:
    """Lock a new file; false if another process took it for left behind before it was locked."""
    if not (free := lock(file)):
        return free is None  # where there are no locks, nobody takes a file of today for left behind
    try:
        return os.path.samestat(os.fstat(file.fileno()), name.stat())
    except FileNotFoundError:
        return False


def lock(file: FileIO) -> bool | None:
    """Take a file's lock, kept until it is closed: whether it was free; None where there are no locks."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks
            return None
        return True
    return None


def clear_leftovers(folder: Path) -> None:
    """Remove what killed runs left in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                _remove_if_left(Path(entry.path))


# Once in a process, because looking through a large folder takes time.
clear_leftovers_once = cache(clear_leftovers)


def _remove_if_left(temporary: Path) -> None:
    with contextlib.suppress(OSError), FileIO(temporary, "r+b") as file:
        free = lock(file)
        if free is None:
            free = time.time() - os.fstat(file.fileno()).st_mtime > _STALE_SECONDS
            if sys.platform == "win32":
                file.close()  # it removes no open file
        if free:
            temporary.unlink()
