"""What a preset is, and which of its entries speaks of a family."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import LbwError, PresetError
from ..families import FAMILIES, Family
from ..weights import Element, Options, Source, Vector, resolve
from ..words import counted
from .findings import Finding

# Keys of a preset in presets.yaml, beside families.
DESCRIPTION, ANY_FAMILY, ELEMENTS = "description", "weights", "elements"

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
