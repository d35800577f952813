"""lbwpresets.txt of the extension and lbw-preset.txt of the Inspire Pack: a line `NAME:1,0,0,...` per preset.

The extension skips what it does not understand without a word; here every such line is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..families import FAMILIES
from ..weights import Rules, Vector
from .document import of_type
from .findings import Finding
from .grammar import EXTENSION, INSPIRE, Dialect, check_name, read_vector
from .inspire import has_uneven_middle, rules_of
from .model import Entry, Preset
from .text import WIDE_COLON, Piece, lines_of

_MACRO = re.compile(r"@[^:]*[^:\s]:\s*\d+(?:\s*,\s*\d+\s*,\s*\d+)?")


def read_lines(text: str, path: Path, dialect: Dialect) -> Iterator[Preset | Finding]:
    """Read the preset file of either tool. The Inspire Pack's analyser macros (`@NAME:17,12,1`) are no presets."""
    for line in lines_of(text):
        stripped = line.strip()
        if stripped.text.startswith("#"):
            if dialect is INSPIRE:
                yield stripped.finding("LBW108", "the Inspire Pack has no comments; it lists this line as a preset")
        elif dialect is INSPIRE and stripped.text.startswith("@"):
            if not _MACRO.fullmatch(stripped.text):
                yield stripped.finding("LBW109", f"{stripped.shown()} is no analyser macro")
        elif stripped.text:
            yield from _read_preset(line, path, dialect)


def _read_preset(line: Piece, path: Path, dialect: Dialect) -> Iterator[Preset | Finding]:
    text = line.text
    if "#" in text and dialect is EXTENSION:
        where = line.part(text.index("#"))
        head, _, values = text.partition(":")
        yield where.of(head.strip()).finding("LBW107", "the extension ignores a line with a # anywhere in it")
        if "#" in values:
            text = f"{head}:{values.partition('#')[0]}".rstrip()
    if ":" not in text and WIDE_COLON in text:
        where = line.part(text.index(WIDE_COLON)).of(text.partition(WIDE_COLON)[0].strip())
        yield where.finding("LBW103", "full-width colon after the name")
        text = text.replace(WIDE_COLON, ":", 1)
    colon = text.find(":")
    if colon < 0:
        yield line.strip().finding("LBW105", f"{line.strip().shown()} has no colon, so it is no preset")
        return
    if "\t" in text:
        yield line.part(text.index("\t")).finding("LBW104", "the line holds a tab")
    yield from check_name(line.part(0, colon))
    name = line.part(0, colon).strip()
    written = line.with_text(text).part(colon + 1).of(name.text)
    if (second := written.text.find(":")) >= 0:
        yield written.part(second).finding("LBW106", "a second colon, after which nothing is understood")
        return
    items = list(read_vector(written, dialect, tuple(FAMILIES.values())))
    yield from of_type(Finding, items)
    entries = [entry for vector in of_type(Vector, items) for entry in _entries(vector, name, dialect)]
    if any(isinstance(entry.source, Rules) and has_uneven_middle(entry.source) for entry in entries):
        yield written.strip().finding("LBW310", "the three values of the middle block differ")
    if len({entry.family for entry in entries}) > 1:
        message = f"{entries[0].length} values are all blocks of an SDXL LoRA, or the double blocks of a Flux LoRA"
        yield written.strip().finding("LBW311", message)
    yield Preset(name.text, tuple(entries), path, line.line, column=name.column)


def _entries(vector: Vector, where: Piece, dialect: Dialect) -> Iterator[Entry]:
    if dialect is EXTENSION or len(vector.values) in EXTENSION.lengths:
        yield Entry(None, vector, where.line, where.column)
    if dialect is INSPIRE:
        for family, rules in rules_of(vector.values).items():
            yield Entry(family, rules, where.line, where.column)
