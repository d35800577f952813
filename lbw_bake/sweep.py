"""The XYZ plot of the LoRA Block Weight extension, offline: axes become cells, cells become weights, weights files.

A cell starts from the base weights or from a preset, sets some blocks to a value, and adds element rules. Cells of
equal effect on the file share one output, so an effective-block analysis of a LoRA writes only what differs.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from .atomic import atomic_write, write_all
from .bake import Backend, Target, bake
from .errors import LbwError, OutputError, WeightError, nearest
from .families import Family
from .jobs import SUFFIX
from .lora import Lora
from .plan import Look, agree, make_plan
from .sources import Given
from .tables import size_text
from .values import number_text, parse_number, variable_of
from .weights import Options, Source, Vector, Weights, parse_elements, resolve, select

VALUES, BLOCKS, PRESETS, ELEMENTS, ANALYSE = "values", "blocks", "presets", "elements", "analyse"
KINDS = (VALUES, BLOCKS, PRESETS, ELEMENTS)
FULL = "full"  # the cell of an analysis that leaves every block as it is
MANIFEST = "manifest.json"

# Files written at a time, from one pass over the input: well below the 256 open files some systems allow.
_OPEN = 64
_ALL = re.compile(r"(\d{1,4})ALL", re.IGNORECASE)
# What a prompt token, a list of them or a file system could take for something else.
_UNSAFE_LABEL = re.compile(r"[^\w.\-]+")
_UNSAFE_STEM = re.compile(r'[:<>=,"\x00-\x1f\x7f-\x9f\u2028\u2029]+')
_LABEL_LENGTH = 60
_SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: what its cells change, and the cells as written, which are their labels too."""

    kind: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """What cells start from: the base weights and their options, or a preset, which `read` understands by its name.

    `at` is what chosen blocks are set to where no axis has values.
    """

    base: Given
    read: Callable[[str], Given]
    options: Options = field(default_factory=Options)
    at: float = 0.0
    layout: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its label on each axis (None where there is no such axis), its weights, and its file's name."""

    x: str | None
    y: str | None
    z: str | None
    weights: Weights
    file: str

    @property
    def prompt(self) -> str:
        """What loads the file in a prompt."""
        return f"<lora:{Path(self.file).stem}:1>"


@dataclass(frozen=True, slots=True)
class Sweep:
    """All cells of a LoRA's plot, row by row."""

    lora: Lora
    axes: Mapping[str, Axis]
    cells: tuple[Cell, ...]

    @property
    def files(self) -> dict[str, Weights]:
        """Every file there is to write, with the weights of the first cell that has it."""
        files: dict[str, Weights] = {}
        for cell in self.cells:
            files.setdefault(cell.file, cell.weights)
        return files


def parse_axis(text: str, family: Family) -> Axis:
    """An axis as written: `values=0,0.5,1`, `blocks=BASE,IN01-IN08,17ALL`, `presets=NONE,MIDD`, `elements=...;...`.

    Raises WeightError.
    """
    kind, equals, written = (part.strip() for part in text.partition("="))
    if not equals or kind not in KINDS:
        raise WeightError(
            f"axis {text!r} says neither of {', '.join(KINDS)}",
            nearest(kind, KINDS) if equals else "write KIND=CELL,CELL, as values=0,0.5,1 or blocks=BASE,IN01-IN08",
        )
    separator = ";" if kind == ELEMENTS or (kind == PRESETS and ";" in written) else ","
    cells = tuple(cell.strip() for cell in written.split(separator))
    if not all(cells):
        raise WeightError(f"axis {text!r} has an empty cell", f"write a cell on each side of every {separator!r}")
    return Axis(kind, tuple(label for cell in cells for label in _CELLS[kind](cell, family)))


def analysis(lora: Lora, family: Family, blocks: Axis | None = None) -> Axis:
    """The axis of an effective-block analysis: the whole LoRA, then it without each block that it has in turn."""
    if blocks:
        return Axis(ANALYSE, (FULL, *blocks.labels))
    present = {place.block for _, place in lora.placed(family)}
    return Axis(ANALYSE, (FULL, *(block for block in family.blocks if block in present)))


def make_sweep(lora: Lora, axes: Mapping[str, Axis], start: Start) -> Sweep:
    """Settle the weights of every cell and name the files. Raises WeightError, PresetError, AmbiguousFamilyError."""
    _check_kinds(axes)
    names: dict[tuple[float, ...], str] = {}
    taken: set[str] = set()
    cells: list[Cell] = []
    for labels in _combinations(axes):
        choices = [(axes[name].kind, label) for name, label in labels.items()]
        weights = agree(lora, partial(_weights_of, choices, start))
        effect = tuple(weights.of(place, module.path) for module, place in lora.placed(weights.family))
        if effect not in names:
            names[effect] = _file_name(lora.file.path.stem, choices, start, taken)
        cells.append(Cell(labels.get("x"), labels.get("y"), labels.get("z"), weights, names[effect]))
    return Sweep(lora, axes, tuple(cells))


def _check_kinds(axes: Mapping[str, Axis]) -> None:
    kinds = [axis.kind for axis in axes.values()]
    for kind in set(kinds):
        if kinds.count(kind) > (2 if kind == PRESETS else 1):
            raise WeightError(f"{kinds.count(kind)} axes of {kind}", "leave one of them out, or bake in two sweeps")


def _combinations(axes: Mapping[str, Axis]) -> Iterator[dict[str, str]]:
    """The labels of every cell by axis, row by row: x runs fastest."""
    order = [name for name in "zyx" if name in axes]
    for labels in itertools.product(*(axes[name].labels for name in order)):
        chosen = dict(zip(order, labels, strict=True))
        yield {name: chosen[name] for name in "xyz" if name in chosen}


def _weights_of(choices: Sequence[tuple[str, str]], start: Start, family: Family) -> Weights:
    """The weights of the cell with these (kind, label) choices."""
    by_kind = dict(choices)
    value = parse_number(by_kind[VALUES], "a value") if VALUES in by_kind else None
    givens = [start.read(label) for kind, label in choices if kind == PRESETS] or [start.base]
    sources = [given.source_for(family, start.layout) for given in givens]
    weights = [
        resolve(source, family, given.modify(start.options if value is None else replace(start.options, x=value)))
        for source, given in zip(sources, givens, strict=True)
    ]
    blocks = _combined([one.blocks for one in weights])
    if (selector := by_kind.get(BLOCKS, by_kind.get(ANALYSE, FULL))) != FULL:
        blocks |= dict.fromkeys(select(selector, family), start.at if value is None else value)
    elif value is not None and not any(map(_has_variable, sources)):
        blocks |= dict.fromkeys(family.blocks, value)
    elements = tuple(element for one in weights for element in one.options.elements)
    added = parse_elements(by_kind[ELEMENTS]) if ELEMENTS in by_kind else ()
    unlisted = frozenset(weights[0].unlisted).intersection(*(one.unlisted for one in weights))
    options = replace(weights[0].options, elements=(*elements, *added))
    return Weights(family, blocks, weights[0].layout, unlisted, options)


def _combined(weights: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Two presets together: the first one's weight where it has any, else the second one's, as the extension has it."""
    return {block: next((one[block] for one in weights if one[block]), 0.0) for block in weights[0]}


def _has_variable(source: Source) -> bool:
    """Whether a source has a place for the value: `X`, `X+0.2`."""
    written = source.values if isinstance(source, Vector) else [value for _, value in source.rules]
    return any(variable is not None and variable.option == "--x" for variable in map(variable_of, written))


def _file_name(stem: str, choices: Sequence[tuple[str, str]], start: Start, taken: set[str]) -> str:
    """A name that tells the cell, is its own also where case does not count, and needs no quotes in a prompt."""
    labels = [label for _, label in choices]
    if ANALYSE in (kind for kind, _ in choices) and labels != [FULL]:
        labels.append(number_text(start.at))
    parts = [_UNSAFE_LABEL.sub("_", label).strip("_")[:_LABEL_LENGTH] for label in labels]
    wanted = "-".join([_UNSAFE_STEM.sub("_", stem), *parts])
    numbered = (wanted if i == 1 else f"{wanted}-{i}" for i in itertools.count(1))
    name = next(name for name in numbered if name.casefold() not in taken)
    taken.add(name.casefold())
    return f"{name}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class Survey:
    """What writing a sweep would mean: bytes in all, and the warnings of the bakes, each once."""

    nbytes: int
    warnings: tuple[str, ...]


def survey(sweep: Sweep, look: Look, dtype: str | None = None) -> Survey:
    """Plan every file without writing any. Raises NotBakeableError."""
    nbytes = 0
    warnings: dict[str, None] = {}
    header = sweep.lora.file.data_start
    for weights in sweep.files.values():
        plan = make_plan(sweep.lora, weights, look, dtype)
        nbytes += header + max((tensor.end for tensor in plan.layout()), default=0)
        warnings |= dict.fromkeys(plan.warnings)
    return Survey(nbytes, tuple(warnings))


def check_size(nbytes: int, folder: Path, limit: int | None) -> None:
    """Refuse what is larger than the limit, if there is one, or than the disk. Raises OutputError."""
    if limit is not None and nbytes > limit:
        raise OutputError(
            f"{folder}: {size_text(nbytes)} are more than the {size_text(limit)} of --max-size",
            "ask for fewer cells, raise --max-size, or write it all with --yes",
        )
    there = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    if nbytes > (free := shutil.disk_usage(there).free):
        raise OutputError(f"{folder}: {size_text(nbytes)} do not fit on a disk with {size_text(free)} free")


def check_folder(sweep: Sweep, folder: Path, *, replace: bool) -> None:
    """Make the folder, and refuse to lose what is in it. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}", "choose another folder") from error
    existing = [name for name in (*sweep.files, MANIFEST, *_LISTS) if (folder / name).exists()]
    if existing and not replace:
        raise OutputError(
            f"{folder / existing[0]}: already exists", "choose another folder, or replace its files with --force"
        )


def write(
    sweep: Sweep, folder: Path, look: Look, *, dtype: str | None = None, backend: Backend, replace: bool = False
) -> Iterator[int]:
    """Write the files into a folder, and the manifest and lists when all are there; yields bytes as they come.

    The input is read once for every 64 files. Raises OutputError, FileFormatError.
    """
    files = list(sweep.files.items())
    for first in range(0, len(files), _OPEN):
        targets = [
            Target(make_plan(sweep.lora, weights, look, dtype), folder / name, None, replace)
            for name, weights in files[first : first + _OPEN]
        ]
        yield from bake(targets, backend)
    texts = {MANIFEST: json.dumps(manifest(sweep), ensure_ascii=False, indent=1)}
    texts |= {name: "\n".join(lines(sweep)) for name, lines in _LISTS.items()}
    for name, text in texts.items():
        with atomic_write(folder / name, replace=replace) as file:
            write_all(file, f"{text}\n".encode())


def manifest(sweep: Sweep) -> dict[str, Any]:
    """What every cell is and which file has it, as `manifest.json` says it."""
    return {
        "source": sweep.lora.file.path.name,
        "axes": {name: {"kind": axis.kind, "cells": list(axis.labels)} for name, axis in sweep.axes.items()},
        "cells": [
            {
                "x": cell.x,
                "y": cell.y,
                "z": cell.z,
                "file": cell.file,
                "weights": dict(cell.weights.blocks),
                "prompt": cell.prompt,
            }
            for cell in sweep.cells
        ],
    }


def prompts(sweep: Sweep) -> list[str]:
    """A prompt token for every file."""
    return [f"<lora:{Path(name).stem}:1>" for name in sweep.files]


# Text files beside the manifest, for those who make the pictures: one prompt a line ("Prompts from file"), the value
# of "Prompt S/R" in A1111's own XYZ plot (the first is what the prompt holds), and the names ComfyUI lists.
_LISTS: dict[str, Callable[[Sweep], list[str]]] = {
    "prompts.txt": prompts,
    "prompt-sr.txt": lambda sweep: [", ".join(prompts(sweep))],
    "comfyui.txt": lambda sweep: list(sweep.files),
}


def parse_size(text: str) -> int:
    """A size as people write it: `20GB`, `500 MB`, `1000`. Raises LbwError."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)b?\s*", text, re.IGNORECASE)
    if match is None:
        raise LbwError(f"{text!r} is no size", "write it as 20GB or 500MB")
    return int(float(match[1]) * _SIZES[match[2].upper()])


def _values(cell: str, family: Family) -> list[str]:
    del family
    return [number_text(parse_number(cell, f"value {cell!r}"))]


def _blocks(cell: str, family: Family) -> list[str]:
    """A selector, or one for each block of a layout: `17ALL`. Raises WeightError."""
    match = _ALL.fullmatch(cell)
    if match is None:
        select(cell, family)
        return [cell]
    layout = family.lengths.get(int(match[1]))
    if layout is None:
        lengths = ", ".join(f"{length}ALL" for length in sorted(family.lengths))
        raise WeightError(f"{family.name} has no layout of {match[1]} blocks", f"known: {lengths}")
    return [block for block in layout if block in family.blocks]


def _presets(cell: str, family: Family) -> list[str]:
    del family
    return [cell]


def _elements(cell: str, family: Family) -> list[str]:
    for element in parse_elements(cell):
        select(element.blocks, family)
    return [cell]


# Kind -> the labels of a cell as written, once it is known to have a meaning.
_CELLS: dict[str, Callable[[str, Family], list[str]]] = {
    VALUES: _values,
    BLOCKS: _blocks,
    PRESETS: _presets,
    ELEMENTS: _elements,
}
