"""Presets for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .checks import Checked
from .console import message, print_line
from .families import OTHER, family_named
from .presets import Preset, builtin_path, user_path
from .presets.bars import entry_bars, preset_bars
from .presets.writers import source_json, source_text
from .tables import Bar, print_table
from .values import number_text
from .weights import FamilyWeights


def origin(path: Path) -> str:
    """Where a preset comes from: built-in, yours, or a file."""
    return {builtin_path(): "built-in", user_path(): "yours"}.get(path, str(path))


def presets_table(presets: Iterable[Preset], family: str | None) -> None:
    """All presets on stdout, a line each, as they are for a family. Raises UnknownFamilyError."""
    chosen = family_named(family) if family else None
    rows = []
    known = list(presets)
    for preset in known:
        families = dict.fromkeys(entry.scope or "any" for entry in preset.entries)
        about = ", ".join(families) or "elements"
        rows.append((preset.name, preset_bars(preset, chosen), about, origin(preset.path), preset.description))
    columns = ("preset", "weights", "for", "from~", "description~")
    print_table("", columns, rows, spare=("for", "description", "from", "weights"))
    for remark in filter(None, dict.fromkeys(preset.remark for preset in known)):
        message("warning", remark)


def preset_lines(preset: Preset) -> None:
    """A preset as written, entry by entry, on stdout."""
    rows = [(entry.scope or "any", entry_bars(entry), source_text(entry.source)) for entry in preset.entries]
    rows += [("element", "", str(element)) for element in preset.elements]
    title = f"{preset.name} ({origin(preset.path)}, line {preset.line})"
    _print(title, preset, ("for", "weights", "as written~"), rows)


def weights_table(preset: Preset, weights: FamilyWeights) -> None:
    """The weight of every block of a family, on stdout."""
    title = f"{preset.name} for {weights.family.title} ({origin(preset.path)}, line {preset.line})"
    rows: list[tuple[str, str, str | Bar]] = [
        (block, number_text(weight), "not listed" if block in weights.unlisted else Bar(weight, 1.0))
        for block, weight in weights.blocks.items()
        if block != OTHER
    ]
    rows += [("element", "", str(element)) for element in weights.options.elements]
    _print(title, preset, ("block", "weight>", ""), rows)


def _print(title: str, preset: Preset, columns: Iterable[str], rows: Iterable[Iterable[str | Bar]]) -> None:
    """A title, what a preset is for, and a table, on stdout."""
    for line in filter(None, (title, preset.description)):
        print_line(line)
    print_table("", columns, rows, spare=("weights",))


def presets_json(presets: Iterable[Preset], family: str | None) -> list[Mapping[str, Any]]:
    """Presets as `lbw presets list --json` prints them: all, or those for a family. Raises UnknownFamilyError."""
    chosen = family_named(family) if family else None
    return [preset_json(preset) for preset in presets if chosen is None or preset.speaks_for(chosen)]


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
