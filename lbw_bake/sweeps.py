"""The XYZ plot of the LoRA Block Weight extension, offline: axes become cells, cells become weights, weights files.

A cell starts from the base weights or from a preset, sets some blocks to a value, and adds element rules. Cells of
equal effect on the file share one output, so an effective-block analysis of a LoRA writes only what differs.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from .arguments import AnyPath
from .atomic import check_output, make_folder, write_file
from .axes import ANALYSE, BLOCKS, ELEMENTS, FULL, PRESETS, VALUES, Axis, analysis, parse_axis
from .cuda import check_device, choose_backend
from .errors import FileFormatError, OutputError, PresetError, VariableError, WeightError
from .families import Family
from .lora import Lora, read_lora
from .metadata import as_text
from .outputs import Target
from .planning import agree
from .progress import Progress, part_of, silent, unhandled
from .recipes import Recipe, plan_by
from .rewrite import AT_ONCE, rewrite
from .selectors import select
from .sources import Weights
from .tensordata import TensorData
from .tensorfile import SUFFIX
from .values import finite, number_text, parse_number, variable_of
from .weights import ONES, FamilyWeights, Source, Vector, parse_elements
from .words import size_text, some

MANIFEST = "manifest.json"

# What a prompt token, a list of them or a file system could take for something else.
_UNSAFE_LABEL = re.compile(r"[^\w.\-]+")
_UNSAFE_STEM = re.compile(r'[:<>=,"\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+')
_LABEL_LENGTH = 60


# What settles a variable of what cells start from, by the option that does in a bake.
_SETTLING = {"--x": 'add an axis of values, as --y "values=0,0.5,1"', "--seed": "settle it with --seed NUMBER"}

# What cells start from: label of an axis of presets -> what it means; the base weights, without one, under None.
_Starts = Mapping[str | None, Weights]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its label on each axis (None where there is no such axis), its weights, and its file's name."""

    x: str | None
    y: str | None
    z: str | None
    weights: FamilyWeights
    file: str

    @property
    def prompt(self) -> str:
        """What loads the file in a prompt."""
        return f"<lora:{Path(self.file).stem}:1>"


@dataclass(frozen=True, slots=True)
class Sweep:
    """All cells of a LoRA's plot, row by row, and what writing it would mean: bytes in all, warnings, each once."""

    lora: Lora
    recipe: Recipe
    axes: Mapping[str, Axis]
    cells: tuple[Cell, ...] = field(repr=False)
    nbytes: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, FamilyWeights]:
        """Every file there is to write, with the weights of the first cell that has it."""
        files: dict[str, FamilyWeights] = {}
        for cell in self.cells:
            files.setdefault(cell.file, cell.weights)
        return files

    @property
    def prompts(self) -> list[str]:
        """What loads each file in a prompt."""
        return list(dict.fromkeys(cell.prompt for cell in self.cells))

    @property
    def manifest(self) -> dict[str, Any]:
        """What every cell is and which file has it, as `manifest.json` says it."""
        return {
            "source": as_text(self.lora.file.path.name),
            "axes": {name: {"kind": axis.kind, "cells": list(axis.labels)} for name, axis in self.axes.items()},
            "cells": [
                {
                    "x": cell.x,
                    "y": cell.y,
                    "z": cell.z,
                    "file": cell.file,
                    "weights": dict(cell.weights.blocks),
                    "prompt": cell.prompt,
                }
                for cell in self.cells
            ],
        }


def make_sweep(
    source: AnyPath,
    axes: Mapping[str, str],
    recipe: Recipe,
    *,
    analyse: bool = False,
    at: float = 0.0,
    presets: AnyPath | None = None,
) -> Sweep:
    """Settle the weights of every cell, name the files and plan them, without writing any.

    `axes` are those given as written, by name (`x`, `y`, `z`). Cells start from the recipe's weights, or from presets,
    of which `presets` is a file on top of the user's own; `at` is what chosen blocks are set to where no axis has
    values. `analyse` makes the axis of an effective-block analysis, of the blocks of `x` if it is given. Raises
    WeightError, PresetError, AmbiguousFamilyError, NotBakeableError, DeviceError, FileFormatError for the LoRA, and
    OutputError for a recipe that says what is for `write_sweep` to say.
    """
    at = finite(at, "at")
    if recipe.rank:
        raise WeightError("cells of a sweep are not truncated", "leave the rank out; truncate the files with lbw bake")
    if idle := [name for name in ("dry_run", "replace", "in_place", "skip_existing") if getattr(recipe, name)]:
        raise OutputError(f"{some(idle)} in its recipe says nothing to a sweep", "give write_sweep what it takes")
    if unknown := [name for name in axes if name not in ("x", "y", "z")]:
        raise WeightError(f"there is no axis {unknown[0]!r}", "axes are x, y and z")
    check_device(recipe.device)
    lora = read_lora(Path(source), recipe.family)
    family = lora.candidates[0]
    parsed = {name: parse_axis(text, family) for name, text in axes.items()}
    if analyse:
        if (kind := parsed["x"].kind if "x" in parsed else BLOCKS) != BLOCKS:
            raise WeightError(
                f"an analysis is of blocks, not of {kind}", "name those it is of, as --x blocks=IN,MID,OUT"
            )
        parsed = {"x": analysis(lora, family, parsed.get("x"))}
    _check_kinds(parsed)
    base = recipe.weights
    options = replace(base.options, elements=())
    labels = dict.fromkeys(label for axis in parsed.values() if axis.kind == PRESETS for label in axis.labels)
    file = None if presets is None else Path(presets)
    read = partial(Weights.parse, presets=file, options=options, layout=base.layout)
    starts: _Starts = {None: base, **{label: read(label) for label in labels}}
    _check_values(lora, parsed, [starts[label] for label in labels] or [base])
    cells = tuple(_cells(lora, parsed, starts, at))
    said = (remark for start in starts.values() for remark in start.remarks(cells[0].weights.family))
    return _surveyed(Sweep(lora, recipe, parsed, cells, warnings=tuple(said)))


def _cells(lora: Lora, axes: Mapping[str, Axis], starts: _Starts, at: float) -> Iterator[Cell]:
    """The cells row by row: x runs fastest. Those of equal effect on the file have one file name."""
    names: dict[tuple[float, ...], str] = {}
    taken: set[str] = set()
    for z, y, x in itertools.product(*(axes[name].labels if name in axes else (None,) for name in "zyx")):
        choices = [(axes[name].kind, label) for name, label in zip("xyz", (x, y, z), strict=True) if label is not None]
        weights = agree(lora, partial(_weights_of, choices, starts, at))
        effect = tuple(weights.of(place, module.path) for module, place in lora.placed(weights.family))
        if effect not in names:
            names[effect] = _file_name(lora.file.path.stem, choices, at, taken)
        yield Cell(x, y, z, weights, names[effect])


def _surveyed(sweep: Sweep) -> Sweep:
    """The sweep with what writing it would mean."""
    nbytes = 0
    warnings = dict.fromkeys((*sweep.warnings, *_idle_blocks(sweep)))
    with TensorData(sweep.lora.file) as data:
        for weights in sweep.files.values():
            plan = plan_by(sweep.recipe, sweep.lora, weights, data)
            nbytes += sweep.lora.file.data_start + plan.edition.nbytes
            warnings |= dict.fromkeys(plan.warnings)
    return replace(sweep, nbytes=nbytes, warnings=tuple(warnings))


def _idle_blocks(sweep: Sweep) -> Iterator[str]:
    """What is said of blocks on an axis that the file has nothing in."""
    family = sweep.lora.candidates[0]
    here = {place.block for _, place in sweep.lora.placed(family)}
    chosen = (axis.labels for axis in sweep.axes.values() if axis.kind in (BLOCKS, ANALYSE))
    labels = (label for labels in chosen for label in labels if label != FULL)
    if idle := [label for label in labels if here.isdisjoint(select(label, family))]:
        yield f"the file has no module in {some(idle)}: those cells change nothing"


def _check_kinds(axes: Mapping[str, Axis]) -> None:
    for kind, count in Counter(axis.kind for axis in axes.values()).items():
        if count > (2 if kind == PRESETS else 1):
            raise WeightError(f"{count} axes of {kind}", "leave one of them out, or bake in two sweeps")


def _check_values(lora: Lora, axes: Mapping[str, Axis], starts: Iterable[Weights]) -> None:
    """Raise WeightError where there are values, and nothing that takes them."""
    kinds = {axis.kind for axis in axes.values()}
    if VALUES not in kinds or kinds & {BLOCKS, ANALYSE}:
        return
    for weights, family in itertools.product(starts, lora.candidates):
        with suppress(PresetError):  # those of other families count
            if weights.source == ONES or _has_variable(weights.source_for(family)):
                return
    raise WeightError(
        f"{'no preset of the axis has an' if PRESETS in kinds else 'the base weights have no'} X that values could set",
        'add the blocks they are for, as --z "blocks=17ALL", or leave the values out',
    )


def _weights_of(choices: Sequence[tuple[str, str]], starts: _Starts, at: float, family: Family) -> FamilyWeights:
    """The weights of the cell with these (kind, label) choices."""
    by_kind = dict(choices)
    value = parse_number(by_kind[VALUES], "a value") if VALUES in by_kind else None
    asked = [starts[label] for kind, label in choices if kind == PRESETS] or [starts[None]]
    if value is not None:
        asked = [replace(one, options=replace(one.options, x=value)) for one in asked]
    try:
        weights = [one.for_family(family) for one in asked]
    except VariableError as error:
        raise error.where(_SETTLING) from None
    chosen: dict[str, float] = {}
    if (selector := by_kind.get(BLOCKS, by_kind.get(ANALYSE, FULL))) != FULL:
        chosen = dict.fromkeys(select(selector, family), at if value is None else value)
    elif value is not None and asked[0].source == ONES:
        chosen = dict.fromkeys(family.blocks, value)
    blocks = _combined([one.blocks for one in weights]) | chosen
    elements = tuple(element for one in weights for element in one.options.elements)
    added = parse_elements(by_kind[ELEMENTS]) if ELEMENTS in by_kind else ()
    unlisted = frozenset(weights[0].unlisted).intersection(*(one.unlisted for one in weights))
    options = replace(weights[0].options, elements=(*elements, *added))
    return FamilyWeights(family, blocks, weights[0].layout, unlisted - chosen.keys(), options=options)


def _combined(weights: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Two presets together: the first one's weight where it has any, else the second one's, as the extension has it."""
    return {block: next((one[block] for one in weights if one[block]), 0.0) for block in weights[0]}


def _has_variable(source: Source) -> bool:
    """Whether a source has a place for the value: `X`, `X+0.2`."""
    written = source.values if isinstance(source, Vector) else [value for _, value in source.rules]
    return any(variable is not None and variable.option == "--x" for variable in map(variable_of, written))


def _file_name(stem: str, choices: Sequence[tuple[str, str]], at: float, taken: set[str]) -> str:
    """A name that tells the cell, is its own also where case does not count, and needs no quotes in a prompt."""
    labels = [label for _, label in choices]
    if ANALYSE in (kind for kind, _ in choices) and labels != [FULL]:
        labels.append(number_text(at))
    parts = [_UNSAFE_LABEL.sub("_", label).strip("_")[:_LABEL_LENGTH] for label in labels]
    wanted = "-".join([_UNSAFE_STEM.sub("_", stem), *parts])
    numbered = (wanted if i == 1 else f"{wanted}-{i}" for i in itertools.count(1))
    name = next(name for name in numbered if name.casefold() not in taken)
    taken.add(name.casefold())
    return f"{name}{SUFFIX}"


def write_sweep(
    sweep: Sweep,
    folder: AnyPath,
    *,
    limit: int | None = None,
    replace: bool = False,
    skip_existing: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Iterator[int]:
    """Write the files into a folder, and the manifest and lists when all are there; yields the bytes of each.

    It is written as the loop over them goes on: nothing before it begins, up to 64 files, for which the input is read
    once, at its first step, the manifest at its end. `limit` is how many bytes there may be; `progress` is told the
    share that is done, from 0 to 1. With `skip_existing` files that are there as they would be written are left alone,
    and manifest and lists are written anew; a dry run only refuses what could not be written. Raises OutputError, also
    where something is lost without `replace`, and FileFormatError.
    """
    where = Path(folder)
    weights, recipe, again = sweep.files, sweep.recipe, replace or skip_existing
    with unhandled(progress) as tell, TensorData(sweep.lora.file) as data:

        def target(name: str) -> Target:
            plan = plan_by(recipe, sweep.lora, weights[name], data)
            return Target(plan, where / name, None, replace, recipe.update_metadata)

        there = {name for name in weights if skip_existing and os.path.exists(where / name)}  # noqa: PTH110 - never raises
        files = [name for name in weights if name not in there or not _is_there(target(name))]
        nbytes = sweep.nbytes * len(files) // len(weights)
        _check_size(nbytes, where, limit)
        _, backend = choose_backend(recipe.device, nbytes)
        if dry_run and not os.path.lexists(where):
            make_folder(where, dry_run=True)
            return
        make_folder(where)
        source, model = sweep.lora.file.path, recipe.model
        for names, expected in ((files, replace), (_TEXTS, again)):
            for name in names:
                check_output(where / name, [source], replace=expected, model=model, among=not skip_existing)
        if dry_run:
            return
        for first in range(0, len(files), AT_ONCE):
            targets = [target(name) for name in files[first : first + AT_ONCE]]
            part = part_of(tell, first / len(files), len(targets) / len(files))
            written = rewrite(targets, backend, strict=recipe.strict, verify=recipe.verify, progress=part)
            part(1.0)
            yield from written.sizes
    for name, text in _TEXTS.items():
        write_file(where / name, f"{text(sweep)}\n".encode(), replace=again)


def _check_size(nbytes: int, folder: Path, limit: int | None) -> None:
    """Refuse what is larger than the limit, if there is one, or than the disk. Raises OutputError."""
    if limit is not None and nbytes > limit:
        raise OutputError(
            f"{folder}: {size_text(nbytes)} are more than the {size_text(limit)} of --max-size",
            "ask for fewer cells, raise --max-size, or write it all with --yes",
        )
    place = folder.resolve()
    there = next(parent for parent in (place, *place.parents) if os.path.exists(parent))  # noqa: PTH110 - never raises
    if nbytes > (free := shutil.disk_usage(there).free):
        raise OutputError(f"{folder}: {size_text(nbytes)} do not fit on a disk with {size_text(free)} free")


def _is_there(target: Target) -> bool:
    try:
        return target.written_before()
    except FileFormatError:
        return False


# What is written beside the files. Three are for those who make the pictures: one prompt a line ("Prompts from file"),
# the value of "Prompt S/R" in A1111's own XYZ plot (the first is what the prompt holds), and the names ComfyUI lists.
_TEXTS: dict[str, Callable[[Sweep], str]] = {
    MANIFEST: lambda sweep: json.dumps(sweep.manifest, ensure_ascii=False, indent=1),
    "prompts.txt": lambda sweep: "\n".join(sweep.prompts),
    "prompt-sr.txt": lambda sweep: ", ".join(sweep.prompts),
    "comfyui.txt": lambda sweep: "\n".join(sweep.files),
}
