"""elempresets.txt of the extension: `NAME:BLOCKS:WORDS:WEIGHT`, more rules after commas or on lines of their own.

Entries end at an empty line. Where it was forgotten, the extension drops the second entry without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..weights import Element
from .document import of_type
from .findings import Finding
from .grammar import EXTENSION, check_name, read_element
from .model import Preset
from .text import WIDE_COLON, WIDE_COMMA, Piece, lines_of

_HEAD_COLONS = 3


def read_elempresets(text: str, path: Path) -> Iterator[Preset | Finding]:
    """Read the extension's file of element presets."""
    lines: list[Piece] = []
    for line in lines_of(text):
        stripped = line.strip()
        if stripped.text.startswith("#"):
            yield stripped.finding("LBW108", "elempresets.txt has no comments; the extension reads this as an entry")
            continue
        if "\t" in line.text:
            yield line.part(line.text.index("\t")).finding("LBW104", "the line holds a tab")
        if lines and (not stripped.text or _is_head(_narrowed(line))):
            yield from _read_entry(lines, path)
            lines = []
            if line.text:
                yield _joined(_narrowed(line))
        if stripped.text:
            lines.append(line)
    if lines:
        yield from _read_entry(lines, path)


def _is_head(line: Piece) -> bool:
    """Whether a line starts an entry: its first rule has the name and a colon before it."""
    return next(line.split(",")).text.count(":") == _HEAD_COLONS


def _narrowed(line: Piece) -> Piece:
    """The line with ASCII punctuation for full-width one, but for what a name may hold."""
    rest = re.search(f"(?<=[:{WIDE_COLON}]).*", line.text)
    text = line.text[: rest.start()] + rest[0].replace(WIDE_COMMA, ",") if rest else line.text
    first = text.split(",")[0]
    wide = first.count(":") + first.count(WIDE_COLON) <= _HEAD_COLONS
    return line.with_text(text.replace(WIDE_COLON, ":") if wide else text)


def _joined(line: Piece) -> Finding:
    if not line.text.strip():
        return line.finding("LBW402", "the line between two entries holds spaces, so it does not separate them")
    name = line.text.partition(":")[0].strip()
    return line.strip().of(name).finding("LBW402", f"{name} needs an empty line before it; the extension drops it")


def _read_entry(lines: list[Piece], path: Path) -> Iterator[Preset | Finding]:
    written, lines = lines, [*map(_narrowed, lines)]
    head = lines[0]
    colon = head.text.find(":")
    if colon < 0:
        yield head.strip().finding("LBW105", f"{head.strip().shown()} has no colon, so it is no entry")
        return
    yield from check_name(head.part(0, colon))
    name = head.part(0, colon).strip()
    for wide, line in zip(written, lines, strict=True):
        if at := [i for i, character in enumerate(line.text) if wide.text[i] != character]:
            yield wide.part(at[0]).of(name.text).finding("LBW103", "full-width colon or comma in an entry")
    parts = [line.of(name.text) for line in (head.part(colon + 1), *lines[1:])]
    rules = [rule for part in parts for rule in part.split(",") if rule.text.strip()]
    if not rules:
        yield name.of(name.text).finding("LBW406", f"{name.text} has no element rules")
    items = [item for rule in rules for item in read_element(rule, EXTENSION)]
    yield from of_type(Finding, items)
    yield Preset(name.text, (), path, head.line, elements=tuple(of_type(Element, items)), column=name.column)
