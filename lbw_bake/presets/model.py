"""What a preset is, which of its entries speaks of a family, and what the reader of a file found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ..errors import LbwError, PresetError
from ..families import FAMILIES, Family
from ..weights import Element, Options, Source, Vector, resolve
from ..words import counted
from .findings import Finding, in_order

T = TypeVar("T")

# Keys of a preset in presets.yaml, beside families.
DESCRIPTION, ANY_FAMILY, ELEMENTS = "description", "weights", "elements"

# Findings of one file; who has so many mends one kind of them first.
MOST_FINDINGS = 250

_PACKAGE = Path(__file__).parents[1]


def builtin_path() -> Path:
    """The presets.yaml that comes with lbw: in the package when installed, beside it in a source tree."""
    installed = _PACKAGE / "presets.yaml"
    return installed if installed.exists() else _PACKAGE.parent / "presets.yaml"


@dataclass(frozen=True, slots=True)
class Entry:
    """One meaning of a preset: for one family, or, with `family` None, for every family the source fits."""

    family: str | None
    source: Source
    line: int
    column: int = 1

    @property
    def length(self) -> int | None:
        """How many values it has, None for rules."""
        return len(self.source.values) if isinstance(self.source, Vector) else None

    @property
    def scope(self) -> str:
        """What it is for, in words; empty for rules of any family."""
        return self.family or (f"{self.length} values" if self.length else "")

    @property
    def families(self) -> list[Family]:
        """The families it is written for; of several with layouts of its length, the first."""
        if self.family:
            return [FAMILIES[self.family]]
        fitting = [family for family in FAMILIES.values() if self.length in (None, *map(len, family.layouts))]
        return fitting if self.length is None else fitting[:1]


@dataclass(frozen=True, slots=True)
class Preset:
    """A named source of weights or element rules, and where it was written (line and column from 1).

    `hides` is the preset of the same name that it is found instead of, `unused` what is wrong with lines beside it.
    """

    name: str
    entries: tuple[Entry, ...]
    path: Path
    line: int
    description: str = ""
    elements: tuple[Element, ...] = ()
    column: int = 1
    hides: Preset | None = field(default=None, compare=False)
    unused: tuple[Finding, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: preset {self.name}"

    @property
    def remark(self) -> str:
        """What is said of lines beside it that cannot be used; empty if there are none."""
        if not self.unused:
            return ""
        first, lines = self.unused[0], counted(len({finding.line for finding in self.unused}), "line")
        what = f"line {first.line}: {first.message} ({first.code})"
        return f"{self.path}: {lines} cannot be used, first {what}; lbw validate {self.path} shows all there is"

    @property
    def is_builtin(self) -> bool:
        """Whether it comes with lbw."""
        return self.path == builtin_path()

    def source_for(self, family: Family, layout: int | None = None) -> Source:
        """The weights for a family, of the given vector length if one is asked for. Raises PresetError."""
        entries = self.entries_for(family, layout)
        if not entries:
            raise self._no_entry(family, layout)
        return entries[0].source

    def speaks_for(self, family: Family) -> bool:
        """Whether an entry is written for the family: for it, or for any that has these blocks or so many."""
        try:
            source = self.source_for(family)
            resolve(source, family, Options(x=0, seed=0, a=0, b=0))
        except LbwError:
            return False
        return not isinstance(source, Vector) or len(source.values) in map(len, family.layouts)

    def hiding(self, family: Family) -> str:
        """What is said where a preset that it is found instead of speaks for the family and it does not; or nothing."""
        hidden = self.hides
        while hidden and not hidden.speaks_for(family):
            hidden = hidden.hides
        if hidden is None or not self.entries or self.speaks_for(family):
            return ""
        where = f"{hidden.path}:{hidden.line}"
        return f"{self} is not for {family.name} and hides that of {where}, which is: rename it, or add one that is"

    def entries_for(self, family: Family, layout: int | None = None) -> list[Entry]:
        """The entries that fit a family, the one that counts first.

        Those for the family come before those for any; of these the first whose length is the family's own.
        """
        names = (family.name, *family.preset_families, None)
        entries = [entry for entry in self.entries if entry.family in names and layout in (None, entry.length)]
        return sorted(entries, key=lambda entry: (names.index(entry.family), _strangeness(entry, family)))

    def _no_entry(self, family: Family, layout: int | None) -> PresetError:
        if not self.entries:
            return PresetError(
                f"preset {self.name} holds element rules, no weights",
                f"bake it with --element-preset {self.name}; lbw presets show {self.name} prints the rules",
            )
        known = ", ".join(sorted({entry.family or "any family" for entry in self.entries}))
        hint = f"it has entries for {known}; add one to {self.path}, or give --weights"
        if self.hides and self.hides.entries_for(family, layout):
            hidden = f"{self.hides.path}:{self.hides.line}"
            hint = f"it has entries for {known}, and hides that of {hidden}, which has one: rename it, or add one"
        elif self.is_builtin:
            hint = f"it has entries for {known}; make your own: lbw presets add NAME WEIGHTS --family {family.name}"
        wanted = f"{family.name} with {layout} weights" if layout else family.name
        return PresetError(f"{self} has no entry for {wanted}", hint)


def _strangeness(entry: Entry, family: Family) -> int:
    own = {None, *map(len, family.layouts)}
    return 0 if entry.length in own else 1 if entry.length in family.lengths else 2


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
