"""What a preset is, and which of its entries speaks of a family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import PresetError
from ..families import Family
from ..weights import Element, Source, Vector


@dataclass(frozen=True, slots=True)
class Entry:
    """One meaning of a preset: for one family, or, with `family` None, for every family the source fits."""

    family: str | None
    source: Source
    line: int


@dataclass(frozen=True, slots=True)
class Preset:
    """A named source of weights or element rules, and where it was written (line from 1)."""

    name: str
    entries: tuple[Entry, ...]
    path: Path
    line: int
    description: str = ""
    elements: tuple[Element, ...] = ()

    def source_for(self, family: Family, layout: int | None = None) -> Source:
        """The entry for a family, of the given vector length if one is asked for. Raises PresetError."""
        names = (family.name, *family.preset_families, None)
        entries = [entry for name in names for entry in self.entries if entry.family == name]
        if layout is not None:
            entries = [
                entry for entry in entries if isinstance(entry.source, Vector) and len(entry.source.values) == layout
            ]
        if not entries:
            known = sorted({entry.family or "any family" for entry in self.entries}) or ["elements only"]
            wanted = f"{family.name} with {layout} weights" if layout else family.name
            raise PresetError(
                f"preset {self.name} has no entry for {wanted}",
                f"it has entries for {', '.join(known)}; add one to {self.path}, or give --weights",
            )
        return entries[0].source
