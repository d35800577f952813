"""The formats of preset files: one reader each, for loading and for checking alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from ..errors import PresetError
from .document import Document, document
from .elements_file import read_elempresets
from .findings import Finding
from .grammar import EXTENSION, INSPIRE
from .lines import read_lines
from .model import Preset

Items = Iterator[Preset | Finding]

_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class Format:
    """A file format: its reader, and regular expressions for the names its files have and for a line only it has.

    Where it is `by_line`, what is wrong with one line or entry says nothing about the others.
    """

    items: Callable[[str, Path], Items]
    names: str
    line: str
    by_line: bool = False

    def read(self, text: str, path: Path) -> Document:
        """What a text in this format says, and what is wrong with it."""
        unmarked = text.removeprefix(_BYTE_ORDER_MARK)
        message = "the file begins with a byte order mark, which some tools take for a part of the first name"
        mark = () if unmarked == text else (Finding("LBW102", 1, 1, "", message),)
        return replace(document(chain(mark, self.items(unmarked, path))), by_line=self.by_line)


def _read_yaml(text: str, path: Path) -> Items:
    from .yaml_file import read_yaml  # PyYAML takes longer to import than all the rest

    return read_yaml(text, path)


# Bytes of a file that is read; those people share have a few thousand.
LONGEST = 1 << 18

_NUMBER = r"[+-]?[\d.]+"
# Names that come with the Inspire Pack, with as many values as no other tool takes: the number alone may be a slip.
_STOCK = "|".join(
    rf"{name}:(?:[^,]*,){{{count - 1}}}[^,]*"
    for name, count in (("SD-LyC-[A-Z]+", 27), ("SDXL-LyC-[A-Z]+", 21), (r"FLUX-(?:ALL|SINGLE-\w+)", 58))
)
# A file is of the first format whose pattern its name matches; failing that, of the first one of whose lines it has.
READERS: dict[str, Format] = {
    "elempresets": Format(
        read_elempresets, r".*elem.*\.txt", rf"[^:,#]+:[^:,]*:[^:,]*:\s*{_NUMBER}\s*,?", by_line=True
    ),
    "inspire": Format(
        partial(read_lines, dialect=INSPIRE),
        r".*lbw-preset.*(?:\.txt|\.example)",
        rf"@[^:]+:\s*\d+(?:,\d+,\d+)?\s*|{_STOCK}",
        by_line=True,
    ),
    "yaml": Format(_read_yaml, r".*\.ya?ml", r"[^:#]+:(?:\s*|\s+[{\[\"'].*)|\s+[^:#\s][^:#]*:\s.*|---"),
    "lbwpresets": Format(partial(read_lines, dialect=EXTENSION), r".*presets.*\.txt", r".*", by_line=True),
}


def kind_by_name(path: Path) -> str | None:
    """Which format a file of this name is in, None if the name does not tell."""
    kinds = (kind for kind, format_ in READERS.items() if re.fullmatch(format_.names, path.name, re.IGNORECASE))
    return next(kinds, None)


def kind_of(path: Path, text: str) -> str:
    """Which format a file is in, by its name or else by what it holds."""
    if kind := kind_by_name(path):
        return kind
    lines = text.removeprefix(_BYTE_ORDER_MARK).splitlines() or [""]
    return next(kind for kind, format_ in READERS.items() if any(re.fullmatch(format_.line, line) for line in lines))


def read_data(file: BinaryIO) -> bytes:
    """What a preset file holds, or its beginning if that is already more than any does."""
    return file.read(LONGEST + 1)


def decode(data: bytes) -> str | Finding:
    """The text of a file, or what is wrong with its size or encoding."""
    if len(data) > LONGEST:
        hint = "split it if it holds presets; what a LoRA holds is shown by lbw inspect"
        return Finding("LBW507", 1, 1, "", f"the file is longer than {LONGEST >> 10} KiB", hint)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            return Finding("LBW101", 1, 1, "", "the file is UTF-16, not UTF-8")
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        return Finding("LBW101", line, column, "", f"byte {data[error.start]:#04x} is not UTF-8")


def comment_lines(path: Path) -> int:
    """How many lines of a file that has been read are comments."""
    return len(re.findall(r"^[ \t]*#", path.read_text(encoding="utf-8"), re.MULTILINE))


@lru_cache(maxsize=4)  # every preset that a command names is looked for in the same few files
def read_document(data: bytes, path: Path, kind: str | None = None) -> Document:
    """Read a preset file's content, of the given kind or the one it seems to be. Raises PresetError for no kind."""
    text = decode(data)
    if isinstance(text, Finding):
        return Document(findings=(text,))
    kind = kind or kind_of(path, text)
    if kind not in READERS:
        raise PresetError(f"{kind!r} is no kind of preset file", f"known: {', '.join(READERS)}")
    return READERS[kind].read(text, path)


def read_presets(path: Path) -> list[Preset]:
    """The presets of a file of any format. Raises PresetError for a file that has errors, naming the first."""
    return _accepted(_document(path), path)


def usable_presets(path: Path, kind: str | None = None) -> list[Preset]:
    """The presets of a file, in formats by line those that have no errors themselves: `unused` are the others' errors.

    Raises PresetError where there are none of them, and for other files as `read_presets` does.
    """
    read = _document(path, kind)
    errors = read.errors
    wrong = {finding.name for finding in errors}
    usable = [replace(preset, unused=errors) for preset in read.presets if preset.name not in wrong]
    return usable if usable and read.by_line and not read.cut_short else _accepted(read, path)


def _document(path: Path, kind: str | None = None) -> Document:
    try:
        with path.open("rb") as file:
            data = read_data(file)
    except OSError as error:
        raise PresetError(f"{path}: cannot be read: {error.strerror}", "check the path of the presets file") from error
    return read_document(data, path, kind)


def parse_presets(text: str, path: Path, kind: str = "yaml") -> list[Preset]:
    """The presets in a text of one format. Raises PresetError as `read_presets` does."""
    return _accepted(READERS[kind].read(text, path), path)


def _accepted(read: Document, path: Path) -> list[Preset]:
    if errors := read.errors:
        raise error_of(errors[0], path)
    return list(read.presets)


def error_of(finding: Finding, path: Path) -> PresetError:
    """A finding as the error it is where the preset is asked for."""
    return PresetError(
        f"{path}:{finding.line}: {finding.message} ({finding.code})",
        f"{finding.remedy}; lbw validate {path} shows all there is",
    )
