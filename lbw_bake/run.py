"""One input becomes its outputs. What a user can get wrong ends in an outcome, not in an exception.

An `Outcome` is small and plain, because it may come from another process or another machine.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from .atomic import check_output, make_folder
from .cuda import algebra_device, check_device, choose_backend
from .errors import FileFormatError, LbwError, OutputError, StrictError
from .factors import ACTIONS, COPIED, SCALED
from .families import OTHER
from .jobs import Job
from .lora import Lora, read_lora
from .metadata import records_in
from .outputs import Target
from .plan import Plan
from .planning import agree
from .progress import Progress, part_of, silent, unhandled
from .recipes import Recipe, plan_by
from .remarks import name_remarks
from .rewrite import AT_ONCE, Rewritten, rewrite
from .tensordata import TensorData
from .weights import Options

BAKED, SKIPPED, FAILED, PLANNED = "baked", "skipped", "failed", "planned"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one output. What is known only of a plan is empty if it failed before there was one.

    `status` is `baked`, `skipped`, `failed` or `planned`. `family` is the one that names the blocks, `candidates` are
    all that the file fits; `layout` is the length of the vector the weights came from, None for rules. `weights` are
    those of blocks as they were asked for; `blocks` says of every block with modules how many of them get which weight,
    everything multiplied; `options` are what modified the weights. `modules` counts them by what became of them:
    `copied`, `scaled`, `zeroed`, `removed`, or `rewritten` by a rank. `nbytes` is the size of the output that was
    written; `seconds` are those since its input was opened. `unknown` are the tensors that nobody understands, copied
    as they are; `note` is why nothing was to be done, where that is as it should be.
    """

    input: Path
    output: Path | None
    status: str
    family: str | None = None
    candidates: tuple[str, ...] = ()
    layout: int | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    modules: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(ACTIONS, 0))
    blocks: Mapping[str, Mapping[float, int]] = field(default_factory=dict)
    nbytes: int = 0
    seconds: float = 0.0
    device: str | None = None
    verified: bool = False
    options: Options = field(default_factory=Options)
    unknown: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    note: str = ""
    error: LbwError | None = None


# An outcome so far, and its target if there is work to do.
Planned = tuple[Outcome, Target | None]


def run(job: Job, progress: Progress = silent) -> list[Outcome]:
    """Make all outputs of one input. What a user can get wrong is in the outcomes; nothing is raised for it."""
    with unhandled(progress) as tell:
        outcomes = _attempt(job, tell)
        if job.outputs[0][1].skip_existing and any(map(_was_overtaken, outcomes)):
            return _attempt(job, tell)
        return outcomes


def _was_overtaken(outcome: Outcome) -> bool:
    """Whether another run seems to have written the output in the meantime."""
    failed = outcome.status == FAILED and isinstance(outcome.error, OutputError)
    return failed and outcome.output is not None and os.path.lexists(outcome.output)


def _attempt(job: Job, progress: Progress) -> list[Outcome]:
    began = time.perf_counter()
    how = job.outputs[0][1]
    try:
        lora = read_lora(job.input, how.family)
    except LbwError as error:
        return [_failed(job, output, error, began) for output, _ in job.outputs]
    # What is streamed reads the input once for many outputs; what is truncated is computed for each by itself.
    count = 1 if how.rank else AT_ONCE
    outcomes: list[Outcome] = []
    for first in range(0, len(job.outputs), count):
        group = replace(job, outputs=job.outputs[first : first + count])
        done, share = first / len(job.outputs), len(group.outputs) / len(job.outputs)
        outcomes += _make(group, lora, began, part_of(progress, done, share))
    return outcomes


def _make(job: Job, lora: Lora, began: float, progress: Progress) -> list[Outcome]:
    """Decide about the outputs, and write those that are to be written, all of them or none."""
    planned = [_plan(job, output, recipe, lora, began) for output, recipe in job.outputs]
    how = job.outputs[0][1]
    targets = [target for _, target in planned if target]
    if not targets:
        return [outcome for outcome, _ in planned]
    try:
        device, written = _write(targets, how, job.share, progress)
    except LbwError as error:
        return [_failed(job, outcome.output, error, began) if target else outcome for outcome, target in planned]
    sizes = iter(written.sizes)
    seconds = time.perf_counter() - began
    baked = partial(replace, status=BAKED, seconds=seconds, device=device, verified=how.verify)
    return [
        baked(outcome, nbytes=next(sizes), warnings=(*outcome.warnings, *written.warnings)) if target else outcome
        for outcome, target in planned
    ]


def _write(targets: Sequence[Target], how: Recipe, share: int, progress: Progress) -> tuple[str, Rewritten]:
    """Write the outputs of one input, whose recipes differ in weights alone; says on which device. Raises LbwError."""
    if how.rank:
        from .merging import truncate_file

        (target,) = targets
        merged = truncate_file(target.plan, target.preset, target.output, how, progress)
        return algebra_device(how.device), Rewritten((merged.nbytes,), merged.warnings + merged.losses)
    device, backend = choose_backend(how.device, max(share, targets[0].plan.lora.file.size * len(targets)))
    return device, rewrite(targets, backend, strict=how.strict, verify=how.verify, progress=progress)


def _foreseen(outcome: Outcome, plan: Plan, recipe: Recipe) -> Outcome:
    """The outcome of a dry run: as planned, and what truncation would lose, which is computed. Raises LbwError."""
    check_device(recipe.device)
    if not recipe.rank:
        return outcome
    from .merging import truncate_file

    merged = truncate_file(plan, recipe.weights.preset, None, recipe)
    return replace(outcome, warnings=(*outcome.warnings, *merged.warnings, *merged.losses))


def failed(job: Job, error: LbwError) -> list[Outcome]:
    """The outcomes of a job that did not come to its end."""
    return [Outcome(job.input, output, FAILED, error=error) for output, _ in job.outputs]


def _failed(job: Job, output: Path | None, error: LbwError, began: float) -> Outcome:
    seconds = time.perf_counter() - began
    named = error if isinstance(error, OutputError) else error.about(job.input)
    return Outcome(job.input, output, FAILED, seconds=seconds, error=named)


def _plan(job: Job, output: Path | None, recipe: Recipe, lora: Lora, began: float) -> Planned:
    """Decide about one output; what goes wrong, warnings under `strict` included, is its outcome."""
    try:
        outcome, target = _decided(job, output, recipe, lora, began)
        if outcome.warnings and recipe.strict:
            raise StrictError(job.input, outcome.warnings)
    except LbwError as error:
        return _failed(job, output, error, began), None
    return outcome, target


def _decided(job: Job, output: Path | None, recipe: Recipe, lora: Lora, began: float) -> Planned:
    """Decide about one output: skip it, only plan it, or write it. Raises LbwError."""
    if records_in(lora.file.metadata) and not job.named:
        return Outcome(job.input, output, SKIPPED, note="was baked before; name it to bake it again"), None
    weights = agree(lora, recipe.weights.for_family)
    with TensorData(lora.file) as data:
        plan = plan_by(recipe, lora, weights, data)
    outcome = _planned(job, output, recipe, plan, began)
    if output is None:
        return _foreseen(outcome, plan, recipe), None
    target = Target(plan, output, recipe.weights.preset, recipe.replace or recipe.in_place, recipe.update_metadata)
    if recipe.skip_existing and os.path.lexists(output):
        return replace(outcome, status=SKIPPED, warnings=(*outcome.warnings, *_differences(target, recipe))), None
    if job.makes_folders:
        make_folder(output.parent, "choose another --out-dir", dry_run=recipe.dry_run)
    if not job.makes_folders or os.path.exists(output.parent):  # noqa: PTH110 - a dry run makes none
        check_output(
            output,
            (job.input,),
            replace=recipe.replace,
            in_place=recipe.in_place,
            model=recipe.model,
            among=job.makes_folders,
        )
    if recipe.dry_run:
        return _foreseen(outcome, plan, recipe), None
    return outcome, target


def _planned(job: Job, output: Path | None, recipe: Recipe, plan: Plan, began: float) -> Outcome:
    warnings = list(plan.warnings)
    if records_in(plan.lora.file.metadata):
        warnings.append("was baked before; the weights of both bakes multiply")
    warnings += name_remarks(output)
    return Outcome(
        job.input,
        output,
        PLANNED,
        plan.weights.family.name,
        tuple(family.name for family in plan.lora.candidates),
        plan.weights.layout,
        plan.weights.blocks,
        _counts(plan, recipe),
        _by_block(plan),
        seconds=time.perf_counter() - began,
        options=plan.weights.options,
        unknown=tuple(tensor.name for tensor in plan.lora.unknown(plan.weights.family)),
        warnings=tuple(warnings),
    )


def _counts(plan: Plan, recipe: Recipe) -> dict[str, int]:
    """How many modules get what; truncation writes anew what would be copied or scaled."""
    counts = plan.counts
    return {"rewritten": counts.pop(COPIED) + counts.pop(SCALED), **counts} if recipe.rank else counts


def _by_block(plan: Plan) -> dict[str, dict[float, int]]:
    """Weight -> how many modules get it, by block."""
    counts = {block: Counter[float]() for block in (*plan.weights.family.blocks, OTHER)}
    for decision in plan.decisions:
        counts[decision.place.block][decision.weight] += 1
    return {block: dict(sorted(weights.items())) for block, weights in counts.items() if weights}


def _differences(target: Target, how: Recipe) -> list[str]:
    """What is said of an existing output that is not what this bake would write."""
    try:
        if how.rank:
            from .merging import truncated_before

            same = truncated_before(target.plan, target.preset, target.output, how)
        else:
            same = target.written_before()
    except FileFormatError as error:
        return [f"the existing output is kept, though it cannot be read: {error.message}"]
    differs = "it was baked with other options or before its input changed; replace it with --force"
    return [] if same else [f"the existing {target.output} is kept, though {differs}"]
