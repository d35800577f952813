"""Inspections for people and for programs: one file by block, by element; several files side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .console import escape, message, print_line
from .elements import ELEMENTS, OTHERS
from .families import OTHER
from .inspection import Group, Inspection
from .spectra import Spectrum
from .tables import Bar, print_table
from .words import count_text, counted, distinct, shortened, size_text, some, told_apart

_COLUMNS = ("modules>", "algorithm", "rank>", "dtype", "params>", "size>", "norm>", "share>")
_SPECTRUM = ("largest>", "eff. rank>")
_SPARE = ("dtype", "params", "algorithm", "", "size")  # what a narrow terminal can do without, the first one first
_HEADING = 24


def inspection(facts: Inspection, *, elements: bool = False, spectra: bool = False) -> None:
    """A table per block (or element), on stdout: who lives there, and how strong it is."""
    groups = facts.elements if elements else facts.blocks
    columns = ("element" if elements else "block", *_COLUMNS, *(_SPECTRUM if spectra else ()), "")
    rows: list[tuple[str | Bar, ...]] = []
    strongest = max((group.norm for group in groups.values()), default=0.0)
    for name, group in groups.items():
        modules = [one.module for one in group.modules]
        cells = (
            name,
            str(len(modules)),
            distinct(module.algorithm_name for module in modules),
            distinct(str(module.rank) for module in modules if module.rank),
            distinct(tensor.dtype for module in modules for tensor in module.all_tensors),
            count_text(group.parameters),
            size_text(group.nbytes),
            _norm(group),
            _share(group),
        )
        rows.append((*cells, *(_spectrum_cells(group) if spectra else ()), Bar(group.norm, strongest)))
    lengths = ", ".join(str(len(layout)) for layout in facts.family.layouts)
    size = size_text(facts.lora.file.size)
    title = _title(facts, facts.lora.file.path.name)
    print_table(f"{title}, weights of {lengths} blocks, {size}; {_balance(facts)}", columns, rows, spare=_SPARE)
    _remarks(facts)


def side_by_side(files: Sequence[Inspection], *, elements: bool = False, spectra: bool = False) -> None:
    """Several files in one table, on stdout: the norm of every block (or element), each beside a bar.

    Bars are relative to the strongest block of their own file; the norms tell the files' strengths apart.
    """
    groups = [facts.elements if elements else facts.blocks for facts in files]
    more = _SPECTRUM if spectra else ()
    names = told_apart(facts.lora.file.path for facts in files)
    columns = [column for name in names for column in (f"{shortened(escape(name), _HEADING)}~>", *more, "")]
    rows: list[list[str | Bar]] = []
    strongest = [max((group.norm for group in named.values()), default=0.0) for named in groups]
    for name in _in_order(files, groups, elements=elements):
        cells: list[str | Bar] = [name]
        for named, whole in zip(groups, strongest, strict=True):
            group = named.get(name, Group((), 0.0))
            cells += [_norm(group) if group.modules else ""]
            cells += [*(_spectrum_cells(group) if spectra else ()), Bar(group.norm, whole)]
        rows.append(cells)
    first = "element" if elements else "block"
    print_table(
        f"Norms of {len(files)} files, a scale for each", (first, *columns), rows, spare=("", "eff. rank", "largest")
    )
    for facts, name in zip(files, names, strict=True):
        title = _title(facts, f"{name}{facts.lora.file.path.suffix}")
        print_line(f"{title}, {size_text(facts.lora.file.size)}; {_balance(facts)}")
        _remarks(facts)


def inspection_json(facts: Inspection, *, spectra: bool = False) -> Mapping[str, Any]:
    """An inspection as `lbw inspect --json` prints it."""
    return {
        "file": str(facts.lora.file.path),
        "family": facts.family.name,
        "candidates": [family.name for family in facts.lora.candidates],
        "layouts": [len(layout) for layout in facts.family.layouts],
        "size": facts.lora.file.size,
        "dtype": dict(facts.dtypes),
        "metadata": dict(facts.lora.file.metadata),
        "blocks": _groups_json(facts.blocks, spectra=spectra),
        "elements": _groups_json(facts.elements, spectra=spectra),
        "components": _groups_json(facts.components, spectra=spectra),
        "modules": [
            {
                "name": module.module.name,
                "component": module.component,
                "block": module.block,
                "algorithm": module.module.algorithm_name,
                "rank": module.module.rank,
                "alpha": None if module.alpha is None or math.isnan(module.alpha) else module.alpha,
                "norm": module.norm,
                **({"spectrum": _spectrum_json(module.spectrum)} if spectra else {}),
                "tensors": [tensor.name for tensor in module.module.all_tensors],
            }
            for module in facts.modules
        ],
        "unknown": [tensor.name for tensor in facts.unknown],
    }


def _groups_json(groups: Mapping[str, Group], *, spectra: bool) -> Mapping[str, Any]:
    return {
        name: {
            "modules": len(group.modules),
            "bytes": group.nbytes,
            "norm": group.norm,
            "unmeasured": group.unmeasured,
            "parameters": group.parameters,
            "share": group.share,
            **({"largest": group.largest, "effective_rank": group.effective_rank} if spectra else {}),
        }
        for name, group in groups.items()
    }


def _norm(group: Group) -> str:
    """The norm, or a question mark where that of no module is known."""
    return f"{group.norm:.3g}" if group.known else "?"


def _share(group: Group) -> str:
    return f"{group.share:.1%}" if group.known else "?"


def _spectrum_json(spectrum: Spectrum | None) -> Mapping[str, Any] | None:
    return {"largest": spectrum.largest, "effective_rank": spectrum.effective_rank} if spectrum else None


def _spectrum_cells(group: Group) -> tuple[str, str]:
    largest, rank = group.largest, group.effective_rank
    return "" if largest is None else f"{largest:.3g}", "" if rank is None else f"{rank:.1f}"


def _title(facts: Inspection, name: str) -> str:
    return f"{name}: {' or '.join(family.title for family in facts.lora.candidates)}"


def _balance(facts: Inspection) -> str:
    """How much of the whole each text encoder and the denoiser is: `clip_l 27.3%, unet 72.7%`."""
    return ", ".join(f"{name} {_share(group)}" for name, group in facts.components.items())


def _in_order(files: Sequence[Inspection], groups: Sequence[Mapping[str, Group]], *, elements: bool) -> list[str]:
    """The names in any of the files, those of a family (or element) in its order."""
    orders = [[*ELEMENTS, OTHERS]] if elements else [[*facts.family.blocks, OTHER] for facts in files]
    found = {name for named in groups for name in named}
    names = dict.fromkeys(name for order in orders for name in order if name in found)
    return sorted(names, key=lambda name: name == OTHER)


def _remarks(facts: Inspection) -> None:
    """What was not measured or not understood, on stderr."""
    path = facts.lora.file.path
    if doubt := facts.lora.doubt(facts.family):
        message("warning", f"{path}: {doubt}")
    if facts.unmeasured:
        modules = counted(facts.unmeasured, "module")
        message("warning", f"{path}: {modules} not measured: norms that need the base model, or are not finite")
    if facts.origin:
        message("warning", f"{path}: {facts.origin}: measured without what PEFT takes out of the base model for it")
    if facts.unknown:
        names = some((tensor.name for tensor in facts.unknown), 5)
        message("warning", f"{path}: {counted(len(facts.unknown), 'unknown tensor')}: {names}")
