"""Presets for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import Checked
from .console import escape
from .families import OTHER, family_named
from .presets import Preset, builtin_path, user_path
from .presets.bars import entry_bars, preset_bars
from .presets.writers import source_json, source_text
from .tables import console_for
from .values import number_text
from .weights import FamilyWeights

if TYPE_CHECKING:
    from rich.table import Table

_BAR = 24


def origin(path: Path) -> str:
    """Where a preset comes from: built-in, yours, or a file."""
    return {builtin_path(): "built-in", user_path(): "yours"}.get(path, str(path))


def presets_table(presets: Iterable[Preset], family: str | None) -> None:
    """All presets on stdout, a line each, as they are for a family. Raises UnknownFamilyError."""
    chosen = family_named(family) if family else None
    table = _table()
    for column in ("preset", "weights", "for", "from", "description"):
        table.add_column(column, no_wrap=column != "description", overflow="fold")
    for preset in presets:
        families = dict.fromkeys(entry.scope or "any" for entry in preset.entries)
        about = ", ".join(families) or "elements"
        row = (preset.name, preset_bars(preset, chosen), about, origin(preset.path), preset.description)
        table.add_row(*map(escape, row))
    _print(table)


def preset_lines(preset: Preset) -> None:
    """A preset as written, entry by entry, on stdout."""
    table = _table()
    for column in ("for", "", "as written"):
        table.add_column(column, overflow="fold", no_wrap=column == "for")
    for entry in preset.entries:
        table.add_row(entry.scope or "any", escape(entry_bars(entry)), escape(source_text(entry.source)))
    for element in preset.elements:
        table.add_row("element", "", escape(element))
    _print(table, f"{preset.name} ({origin(preset.path)}, line {preset.line})", preset.description)


def weights_table(preset: Preset, weights: FamilyWeights) -> None:
    """The weight of every block of a family, on stdout."""
    title = f"{preset.name} for {weights.family.title} ({origin(preset.path)}, line {preset.line})"
    table = _table()
    table.add_column("block")
    table.add_column("weight", justify="right")
    table.add_column("")
    for block, weight in weights.blocks.items():
        if block != OTHER:
            size = "█" * round(min(abs(weight), 1.0) * _BAR)
            table.add_row(block, number_text(weight), "not listed" if block in weights.unlisted else size)
    for element in weights.options.elements:
        table.add_row("element", "", escape(element))
    _print(table, title, preset.description)


def preset_json(preset: Preset) -> Mapping[str, Any]:
    """A preset as `lbw presets list --json` prints it."""
    return {
        "name": preset.name,
        "description": preset.description,
        "file": str(preset.path),
        "line": preset.line,
        "builtin": preset.is_builtin,
        "entries": [
            {"family": entry.family, "layout": entry.length, "weights": source_json(entry.source)}
            for entry in preset.entries
        ],
        "elements": list(map(str, preset.elements)),
    }


def weights_json(preset: Preset, weights: FamilyWeights) -> Mapping[str, Any]:
    """A resolved preset as `lbw presets show --json` prints it."""
    return {
        "name": preset.name,
        "description": preset.description,
        "family": weights.family.name,
        "layout": weights.layout,
        "weights": dict(weights.blocks),
        "unlisted": [block for block in weights.family.blocks if block in weights.unlisted],
        "elements": list(map(str, weights.options.elements)),
    }


def saved_lines(name: str, saved: Checked) -> Iterator[tuple[str, str]]:
    """What is said of a preset that was written: labels, and the text of each."""
    yield "written", f"{name} to {saved.path}"
    for finding in saved.findings:
        yield finding.rule.severity, f"{finding.message} ({finding.code})"


def _table() -> Table:
    from rich.table import Table

    return Table(box=None, pad_edge=False, header_style="bold")


def _print(table: Table, *lines: str) -> None:
    """Lines that say something, and a table, on stdout."""
    console = console_for()
    for line in filter(None, lines):
        console.print(escape(line), soft_wrap=True)
    console.print(table)
