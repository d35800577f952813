"""What is said of decisions: everything that somebody who bakes a file should know and may not expect."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from .configuration import is_made_anew
from .factors import REMOVED, ZEROED
from .families import OTHER, Family
from .lora import Lora
from .plan import Plan
from .scaling import Multiply
from .tensorfile import SUFFIX
from .weights import matches_element
from .words import counted, some

_FAINT = 1e-3


def copied_untouched(lora: Lora, family: Family) -> str:
    """What is said of a file's tensors that nobody understands; empty if there are none."""
    unknown = lora.unknown(family)
    names = some((tensor.name for tensor in unknown), 5)
    return f"{counted(len(unknown), 'unknown tensor')} copied untouched: {names}" if unknown else ""


def name_remarks(output: Path | None) -> list[str]:
    """What is said of an output's name."""
    if output and output.suffix.lower() != SUFFIX:
        return [f"programs look for {SUFFIX} and will not find {output.name}, or misread it"]
    return []


def remarks(plan: Plan) -> Iterator[str]:
    """What there is to say of a plan."""
    for remark in _REMARKS:
        yield from remark(plan)


def _unknown(plan: Plan) -> Iterator[str]:
    if said := copied_untouched(plan.lora, plan.weights.family):
        yield said


def _doubtful(plan: Plan) -> Iterator[str]:
    if doubt := plan.lora.doubt(plan.weights.family):
        yield f"{doubt}, whose blocks are others; look with lbw inspect"


def _of_a_relative(plan: Plan) -> Iterator[str]:
    weights, family = plan.weights, plan.weights.family
    if weights.layout and weights.by_relative:
        listed = family.lengths[weights.layout]
        matched = [block for block in family.blocks if block in listed]
        yield f"{weights.layout} weights are not a layout of {family.name}; matched by name: {some(matched, 30)}"


def _unlisted(plan: Plan) -> Iterator[str]:
    unlisted = (decision for decision in plan.decisions if decision.place.block in plan.weights.unlisted)
    zeroed = [decision.place.block for decision in unlisted if decision.action in (ZEROED, REMOVED)]
    if zeroed:
        blocks = [block for block in plan.weights.family.blocks if block in zeroed]
        modules = counted(len(zeroed), "module")
        yield f"{modules} zeroed because the weights do not list their blocks: {some(blocks, 30)}"


def _inverted(plan: Plan) -> Iterator[str]:
    """What 1 - w makes of blocks the weights do not list: the extension's own lie in all of its vector's blocks."""
    weights, here = plan.weights, {decision.place.block for decision in plan.decisions}
    weight = 1.0 - weights.options.rest
    blocks = [block for block, given in weights.blocks.items() if block in weights.unlisted & here and given == weight]
    if weights.options.invert and weight and blocks:
        omitted = f"{counted(len(blocks), 'block')} that the weights do not list"
        yield f"--invert gives {omitted} a weight of {weight:g}: {some(blocks, 30)}"


def _faint(plan: Plan) -> Iterator[str]:
    """Weights that take float16 factors, as trainers leave them, below its smallest normal numbers."""
    blocks = {
        decision.place.block
        for decision in plan.decisions
        if 0 < abs(decision.weight) < _FAINT
        and any(isinstance(edit, Multiply) and edit.target == "F16" for edit in decision.edits.values())
    }
    if blocks:
        named = some(block for block in plan.weights.blocks if block in blocks)
        yield f"weights below {_FAINT:g} leave float16 numbers few digits ({named}); --dtype bf16 or f32 keeps them"


def _idle_rules(plan: Plan) -> Iterator[str]:
    """Blocks named one by one where there is nothing: a slip of the pen. Many files have no text encoder."""
    family = plan.weights.family
    here = {decision.place.block for decision in plan.decisions}
    if idle := plan.weights.named - here - {*family.text_encoder_blocks, OTHER}:
        blocks = some(block for block in family.blocks if block in idle)
        yield f"the file has no module in {blocks}; its blocks are {some((b for b in family.blocks if b in here), 30)}"


def _idle_elements(plan: Plan) -> Iterator[str]:
    for element in plan.weights.options.elements:
        if not any(matches_element(element, plan.weights.family, d.place, d.module.path) for d in plan.decisions):
            yield f"element rule {element} matches no module"


def _fixed(plan: Plan) -> Iterator[str]:
    if fixed := [d.module.name for d in plan.decisions if d.module.algorithm.fixed and d.weight != 1.0]:
        yield f"{counted(len(fixed), 'absolute value')} kept, which no weight scales: {some(fixed, 3)}"


def _neutral(plan: Plan) -> Iterator[str]:
    """Modules for which zeros are not all that a weight of 0 takes."""
    found = defaultdict(list)
    for decision in plan.decisions:
        if decision.weight == 0.0 and not decision.module.linear:
            found[decision.module.algorithm_name, decision.action].append(decision.module.name)
    for (name, action), modules in found.items():
        done = "removed" if action == REMOVED else "made neutral (magnitudes and rescales with them)"
        yield f"{counted(len(modules), f'{name} module')} at weight 0 {done}: {some(modules, 3)}"


def _made_anew(plan: Plan) -> Iterator[str]:
    removed = [decision.module.name for decision in plan.decisions if decision.action == REMOVED]
    if removed and is_made_anew(plan.lora):
        what = f"{counted(len(removed), 'removed module')} ({some(removed, 3)})"
        yield f"PEFT fills {what} with random numbers unless its configuration says init_lora_weights true: change that"


def _emptied(plan: Plan) -> Iterator[str]:
    if any(decision.action == REMOVED for decision in plan.decisions) and not plan.edition.outputs:
        yield "no tensor is left: no program will load the result"


def _inexact(plan: Plan) -> Iterator[str]:
    """What is not exact, block by block."""
    found: dict[tuple[str, str, str], list[float | None]] = defaultdict(list)
    for decision in plan.decisions:
        if (treatment := decision.treatment) and treatment.caveat:
            found[decision.place.block, decision.module.algorithm_name, treatment.caveat].append(treatment.error)
    for (block, name, caveat), errors in found.items():
        known = [100 * error for error in errors if error is not None]
        span = " to ".join(dict.fromkeys(f"{bound(known):.3g}" for bound in (min, max))) + " %" if known else ""
        yield f"{block}: {len(errors)} {name} modules {caveat}{span}"


_REMARKS = (
    _unknown,
    _doubtful,
    _of_a_relative,
    _unlisted,
    _inverted,
    _faint,
    _idle_rules,
    _idle_elements,
    _fixed,
    _neutral,
    _made_anew,
    _emptied,
    _inexact,
)
