"""What the reader of a preset file found: its presets by name, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from .findings import Finding, in_order
from .model import Preset

T = TypeVar("T")

# Findings of one file; who has so many mends one kind of them first.
MOST_FINDINGS = 250


@dataclass(frozen=True, slots=True)
class Document:
    """A preset file as read: its presets by name, and everything that is wrong with it."""

    presets: tuple[Preset, ...] = ()
    findings: tuple[Finding, ...] = ()
    by_line: bool = False

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What keeps it from being used."""
        return tuple(finding for finding in self.findings if finding.is_error)

    @property
    def cut_short(self) -> bool:
        """Whether reading ended before the file did."""
        return any(finding.code == "LBW111" for finding in self.findings)


def document(items: Iterable[Preset | Finding]) -> Document:
    """Presets and findings, as they were read, put in order; presets of one name become one.

    Reading ends after `MOST_FINDINGS`.
    """
    read = list(_until_hopeless(items))
    presets = of_type(Preset, read)
    findings = [*of_type(Finding, read), *islice(_duplicates(presets), MOST_FINDINGS)]
    if not presets and not findings:
        findings.append(Finding("LBW110", 1, 1, "", "the file holds no presets"))
    merged: dict[str, Preset] = {}
    for preset in presets:
        first = merged.get(preset.name)
        merged[preset.name] = _joined(first, preset) if first else preset
    return Document(tuple(merged.values()), in_order(findings))


def _until_hopeless(items: Iterable[Preset | Finding]) -> Iterator[Preset | Finding]:
    findings = 0
    for item in items:
        yield item
        findings += isinstance(item, Finding)
        if isinstance(item, Finding) and findings == MOST_FINDINGS:
            yield Finding("LBW111", item.line, item.column, "", f"{MOST_FINDINGS} findings; the rest is not read")
            return


def of_type(kind: type[T], items: Iterable[object]) -> list[T]:
    """The items of one type."""
    return [item for item in items if isinstance(item, kind)]


def _joined(first: Preset, second: Preset) -> Preset:
    return replace(
        first,
        entries=(*first.entries, *second.entries),
        elements=(*first.elements, *second.elements),
        description=first.description or second.description,
    )


def _duplicates(presets: Iterable[Preset]) -> Iterator[Finding]:
    seen: dict[str, dict[tuple[str | None, int | None], int]] = {}
    for preset in presets:
        kinds = {(entry.family, entry.length): preset.line for entry in preset.entries}
        kinds = kinds or {(None, None): preset.line}
        known = seen.setdefault(preset.name, {})
        if same := next((line for kind, line in known.items() if kind in kinds), None):
            message = f"{preset.name} is defined twice, first on line {same}"
            yield Finding("LBW201", preset.line, preset.column, preset.name, message)
        elif known:
            message = f"{preset.name} is defined for another length too, on line {max(known.values())}"
            yield Finding("LBW202", preset.line, preset.column, preset.name, message)
        known.update(kinds)
