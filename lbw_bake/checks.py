"""Preset files, checked: what their reader found, and where they contradict the built-in presets."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from .arguments import AnyPath, several
from .errors import FileFormatError, LbwError, WeightError, reading_hint
from .folders import files_in
from .presets import Preset, builtin_path
from .presets.document import Document
from .presets.findings import Finding, in_order
from .presets.formats import read_data, read_document, read_presets
from .values import number_text
from .weights import resolve

STDIN = Path("-")
SUFFIXES = (".yaml", ".yml", ".txt")


@dataclass(frozen=True, slots=True)
class Checked:
    """A file and what is wrong with it."""

    path: Path
    presets: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.is_error for finding in self.findings)


def validate_all(paths: AnyPath | Iterable[AnyPath], *, kind: str | None = None) -> Iterator[Checked]:
    """Check preset files, and those of folders, one after the other, as `validate` does.

    What cannot be read, and a folder that holds none, has a finding that says so. Raises PresetError for another kind.
    """
    for found in _find_files(map(Path, several(paths))):
        try:
            if isinstance(found, FileFormatError):
                raise found
            yield validate(found, kind=kind)
        except FileFormatError as error:
            yield Checked(error.path, 0, (Finding("LBW112", 1, 1, "", error.problem, error.hint),))


def _find_files(paths: Iterable[Path]) -> Iterator[Path | FileFormatError]:
    """The files named, and those of the folders named, subfolders included, that end like preset files."""
    for path in paths:
        if path == STDIN or not os.path.isdir(path):  # noqa: PTH112 - which never raises
            yield path
            continue
        found = [
            file
            for file in files_in(path, recursive=True)
            if isinstance(file, FileFormatError) or file.suffix.lower() in SUFFIXES
        ]
        nothing = FileFormatError(path, f"holds no files ending in {', '.join(SUFFIXES)}", "name the preset files")
        yield from found or (nothing,)


def validate(path: AnyPath, *, kind: str | None = None) -> Checked:
    """Check a preset file, or with `-` standard input: its findings have a code, a line and a column.

    `kind` says what it is (`yaml`, `lbwpresets`, `elempresets`, `inspire`), where its name and content do not tell.
    Raises FileFormatError if it cannot be read, PresetError for another kind.
    """
    path = Path(path)
    try:
        with nullcontext(sys.stdin.buffer) if path == STDIN else path.open("rb") as file:
            return check(read_data(file), path, kind)
    except OSError as error:
        raise FileFormatError(path, f"cannot be read: {error.strerror}", reading_hint(error)) from error


def check(data: bytes, path: Path, kind: str | None = None) -> Checked:
    """Check the content of a preset file, of the given kind or the one it seems to be."""
    document = read_document(data, path, kind)
    findings = in_order((*document.findings, *_against_builtin(document)))
    return Checked(path, len(document.presets), findings)


def _against_builtin(document: Document) -> Iterator[Finding]:
    # Reading the built-in file takes longer than checking a small one: first see whether a name occurs in it.
    text = "\n" + builtin_path().read_text(encoding="utf-8")
    named = [preset for preset in document.presets if f"\n{preset.name}:" in text]
    builtin = {preset.name: preset for preset in read_presets(builtin_path())} if named else {}
    for preset in named:
        if preset.name in builtin and (difference := _difference(preset, builtin[preset.name])):
            yield Finding("LBW206", preset.line, preset.column, preset.name, f"{preset.name} {difference}")


def _difference(preset: Preset, builtin: Preset) -> str:
    """How a preset differs from the built-in one of its name, in words; empty where it does not."""
    if preset.elements and list(map(str, preset.elements)) != list(map(str, builtin.elements)):
        return "has other element rules than the built-in one"
    for family in dict.fromkeys(family for entry in preset.entries for family in entry.families):
        try:
            theirs = resolve(builtin.source_for(family), family).blocks
            ours = resolve(preset.source_for(family), family)
        except WeightError:
            return "has variables, the built-in one has numbers"
        except LbwError:
            continue
        # A short vector is silent about the blocks it does not list.
        silent = ours.unlisted if ours.layout else ()
        differing = (one for one in family.blocks if one not in silent and ours.blocks[one] != theirs[one])
        if block := next(differing, None):
            values = f"{number_text(ours.blocks[block])} for {block}, the built-in one {number_text(theirs[block])}"
            return f"has {values} ({family.name})"
    return ""
