"""What is in a folder, and in the folders in it: files that are hidden are nobody's input, links lead on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .errors import FileFormatError, reading_hint


def files_in(folder: Path, *, recursive: bool) -> Iterator[Path | FileFormatError]:
    """The visible files of a folder in sorted order, with `recursive` those of its visible folders too.

    A link to a folder is looked into unless it leads back to where it lies; what a link without an end would lead to
    is a file, so that whoever reads it says so. A folder that cannot be read is yielded as the error it is.
    """
    rest: list[tuple[Path, tuple[str, ...]]] = [(folder, (os.path.realpath(folder),))]
    found: list[Path] = []
    while rest:
        current, above = rest.pop()
        try:
            visible = [entry for entry in os.scandir(current) if not entry.name.startswith(".")]
        except OSError as error:
            yield FileFormatError(current, f"cannot be looked into: {error.strerror}", reading_hint(error))
            continue
        for entry in visible:
            path = current / entry.name
            if not os.path.isdir(path):  # noqa: PTH112 - which does not raise for what may not be looked at
                found.append(path)
            elif recursive and (real := os.path.realpath(path)) not in above:
                rest.append((path, (*above, real)))
    yield from sorted(found)
