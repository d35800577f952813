"""The state of a mixer: a weight for every block, what keys and hands do to it, and how it is written down.

Sums are those of the decimals as written: ten steps of 0.1 are 1, and 1 - 0.95 is 0.05.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import groupby
from pathlib import Path

from .errors import AmbiguousFamilyError, LbwError, WeightError
from .families import OTHER, Family, Place, letter_of
from .jobs import Job
from .lora import Lora
from .presets import Preset
from .recipes import Recipe
from .sources import Weights
from .values import number_text
from .weights import FamilyWeights

LOW, HIGH = -1.0, 2.0  # how far sliders go; what is typed may lie beyond
STEP, FINE = 0.05, 0.01

# What ends a name in a prompt token.
_NO_NAME = re.compile(r"[:<>]")


@dataclass(frozen=True, slots=True)
class Mix:
    """Sliders of a file: a weight for every block of its families, `OTHER` included.

    `candidates` are the families that fit the file, and put its modules in the same blocks; `present` the blocks
    that have modules, in order.
    """

    candidates: tuple[Family, ...]
    present: tuple[str, ...]
    weights: Mapping[str, float]

    @property
    def family(self) -> Family:
        """The first of the families that fit."""
        return self.candidates[0]


def mix_of(lora: Lora) -> Mix:
    """All sliders of a file at 1. Raises AmbiguousFamilyError if it fits families that disagree about a block."""
    blocks = [{module.name: place.block for module, place in lora.placed(family)} for family in lora.candidates]
    if any(one != blocks[0] for one in blocks):
        raise AmbiguousFamilyError(lora.file.path, [family.name for family in lora.candidates])
    every = (*lora.candidates[0].blocks, OTHER)
    return Mix(lora.candidates, _in_order(every, blocks[0].values()), dict.fromkeys(every, 1.0))


def _in_order(every: Iterable[str], some: Iterable[str]) -> tuple[str, ...]:
    found = set(some)
    return tuple(block for block in every if block in found)


def started(mix: Mix, weights: FamilyWeights) -> Mix:
    """The sliders at these weights of one of the candidates, strengths multiplied in.

    Raises WeightError for element rules.
    """
    if weights.options.elements:
        raise WeightError(
            "element rules give the layers of a block different weights, which one slider cannot",
            "bake them with lbw bake, or leave them out",
        )
    candidates = sorted(mix.candidates, key=lambda family: family is not weights.family)
    blocks = {block: weights.of(_place(weights.family, block), "") for block in weights.blocks}
    return Mix(tuple(candidates), _in_order(blocks, mix.present), blocks)


def _place(family: Family, block: str) -> Place:
    encoders = {encoder.block: encoder.name for encoder in family.encoders}
    return Place(encoders.get(block, family.denoiser), block)


def showable(mix: Mix, presets: Iterable[Preset]) -> Iterator[tuple[Preset, Mix]]:
    """The presets that sliders can show, and the mix that each is."""
    for preset in presets:
        try:
            yield preset, started(mix, Weights.of(preset).for_family(mix.family))
        except LbwError:  # of another family, of elements, or with a variable
            continue


def group_of(mix: Mix, block: str) -> tuple[str, ...]:
    """The blocks of the same group, those without modules too."""
    return tuple(one for one in mix.weights if group_name(mix, one) == group_name(mix, block))


def group_name(mix: Mix, block: str) -> str:
    """What block rules call a block's group: its letter, `BASE` for text encoders."""
    return "BASE" if block in mix.family.text_encoder_blocks else letter_of(block)


def moved(mix: Mix, blocks: Iterable[str], step: float) -> Mix:
    """The mix with a step added to the weights of blocks, as far as sliders go."""

    def stepped(weight: float) -> float:
        return min(max(_sum(weight, step), min(LOW, weight)), max(HIGH, weight))

    return _changed(mix, blocks, stepped)


def put(mix: Mix, blocks: Iterable[str], weight: float) -> Mix:
    """The mix with blocks at a weight."""
    return _changed(mix, blocks, lambda _: weight)


def inverted(mix: Mix) -> Mix:
    """Every weight w becomes 1 - w; as with `--invert`, what is in no block stays as it is."""
    return _changed(mix, mix.family.blocks, lambda weight: _sum(1.0, -weight))


def _changed(mix: Mix, blocks: Iterable[str], change: Callable[[float], float]) -> Mix:
    return replace(mix, weights={**mix.weights, **{block: change(mix.weights[block]) for block in blocks}})


def _sum(one: float, other: float) -> float:
    return float(Decimal(repr(one)) + Decimal(repr(other)))


def snapped(position: float) -> float:
    """The weight at a position along a slider, from 0 to 1: the nearest whole step."""
    steps = round((HIGH - LOW) / STEP * min(max(position, 0.0), 1.0))
    return _sum(LOW, float(steps * Decimal(repr(STEP))))


def text(mix: Mix) -> str:
    """The vector, or, where none says it all, the block rules: what `lbw bake --weights` takes."""
    return vector(mix) or rules(mix)


def vector(mix: Mix) -> str | None:
    """The weights in the first layout that lists every block with modules; blocks without may be missing.

    None where what lies in no block has a weight of its own, or families that fit the file read the layout differently.
    """
    if OTHER in mix.present and mix.weights[OTHER] != 1.0:
        return None
    for layout in mix.family.layouts:
        means_one_thing = all(family.lengths.get(len(layout), layout) == layout for family in mix.candidates)
        if means_one_thing and set(mix.present) <= {*layout, OTHER}:
            return ",".join(number_text(mix.weights[block]) for block in layout)
    return None


def rules(mix: Mix) -> str:
    """The weights as block rules: runs of blocks that differ from the most frequent weight, which is that of `*`."""
    weights = {block: mix.weights[block] for block in mix.family.blocks}
    usual = Counter(weights.values()).most_common(1)[0][0]
    runs = [(weight, [*run]) for weight, run in groupby(weights, key=weights.__getitem__) if weight != usual]
    said = [f"{'-'.join(dict.fromkeys((run[0], run[-1])))}={number_text(weight)}" for weight, run in runs]
    other = [f"{OTHER}={number_text(mix.weights[OTHER])}"] if mix.weights[OTHER] != 1.0 else []
    return " ".join((*said, f"*={number_text(usual)}", *other))


def token(mix: Mix, stem: str) -> str | None:
    """What loads the file of this name with these weights in a prompt; None where no token can say that."""
    written = vector(mix)
    return None if written is None or _NO_NAME.search(stem) else f"<lora:{stem}:1:lbw={written}>"


def job_of(mix: Mix, source: Path, output: Path, recipe: Recipe, *, replacing: bool) -> Job:
    """What `lbw bake --weights`, given what is shown, would do to a file; the recipe says how, weights aside."""
    return Job(source, ((output, replace(recipe, weights=Weights.of(text(mix)), replace=replacing)),))
