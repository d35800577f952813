"""Many files: find them, name their outputs, bake each, and keep going when one fails.

An `Outcome` is small and plain, because it may come from another process or another machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING

from .bake import Target, bake
from .cuda import choose_backend
from .errors import FileFormatError, LbwError, OutputError, StrictError
from .families import OTHER, Family, Place
from .lora import Lora, read_lora
from .metadata import record_of, records_in
from .modules import Module
from .plan import DTYPES, Plan, Treat, Treatment, make_plan, settle
from .presets import Preset
from .tensordata import TensorData
from .tensorfile import read_header
from .weights import Options, Source, Weights

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

BAKED, SKIPPED, FAILED, PLANNED = "baked", "skipped", "failed", "planned"
SUFFIX = ".safetensors"

# A worker process takes about half a second to start, in which a core bakes some 200 MB.
_WORTH_PROCESSES = 400_000_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to do to a file: where its weights come from and how it is written."""

    source: Source | Preset
    options: Options = field(default_factory=Options)
    layout: int | None = None
    family: str | None = None
    dtype: str = "keep"
    base: Path | None = None
    dora_norm: str = "comfyui"
    inexact: bool = False
    prune: bool = False
    device: str = "auto"
    strict: bool = False
    update_metadata: bool = True
    dry_run: bool = False
    replace: bool = False
    in_place: bool = False
    skip_existing: bool = False

    @property
    def preset(self) -> str | None:
        """The preset's name, if the weights come from one."""
        return self.source.name if isinstance(self.source, Preset) else None

    def source_for(self, family: Family) -> Source:
        """Where the weights of a family come from. Raises PresetError."""
        return self.source.source_for(family, self.layout) if isinstance(self.source, Preset) else self.source


@dataclass(frozen=True, slots=True)
class Job:
    """One input and what to make of it: outputs, each by its recipe. Without an output it can only be planned."""

    input: Path
    outputs: tuple[tuple[Path | None, Recipe], ...]
    named: bool = True
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """The modules of one block: how many, and the distinct weights they get, everything multiplied."""

    block: str
    modules: int
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one output. What is known only of a plan is empty if it failed before there was one."""

    input: Path
    output: Path | None
    status: str
    family: str | None = None
    layout: int | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    modules: Mapping[str, int] = field(default_factory=dict)
    blocks: tuple[BlockWeights, ...] = ()
    nbytes: int = 0
    seconds: float = 0.0
    device: str | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Naming:
    """How inputs become outputs: one file, the inputs themselves, or a folder and a template of names."""

    output: Path | None = None
    out_dir: Path | None = None
    in_place: bool = False
    template: str = "{stem}"

    def __post_init__(self) -> None:
        fields = [(name, spec, conversion) for _, name, spec, conversion in _parsed(self.template) if name is not None]
        for name, spec, conversion in fields:
            if name not in _FIELDS or spec or conversion:
                raise OutputError(f"--name {self.template!r}: unknown field {{{name}}}", f"known: {_FIELDS_TEXT}")

    def name(self, file: Path, inside: Path, recipe: Recipe) -> Path | None:
        """Where an input found at `inside` (relative to what was named) goes by a recipe. Raises OutputError."""
        if self.in_place:
            return file.resolve()
        if self.out_dir is None:
            return self.output
        name = self.template.format(stem=file.stem, preset=recipe.preset or "weights")
        if Path(name).name != name or "\0" in name:
            raise OutputError(f"--name {self.template!r}: {name!r} is not a file name", "leave out the slashes")
        return self.out_dir / inside.parent / f"{name}{SUFFIX}"


_FIELDS = ("stem", "preset")
_FIELDS_TEXT = ", ".join(f"{{{name}}}" for name in _FIELDS)


def _parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(Formatter().parse(template))
    except ValueError as error:
        raise OutputError(f"--name {template!r}: {error}", f"known fields: {_FIELDS_TEXT}") from error


@dataclass(frozen=True, slots=True)
class Found:
    """An input file; `inside` is its path within the folder that was named, `named` whether it was itself."""

    file: Path
    inside: Path
    named: bool = True


def find_inputs(
    paths: Iterable[Path], *, recursive: bool = False, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Iterator[Found | LbwError]:
    """The files named, and the safetensors files of the folders named, in sorted order.

    Glob patterns choose among a folder's files by their path in it. A folder that holds none is yielded as the
    error it is, so that the others can go on.
    """
    paths = list(dict.fromkeys(paths))
    named = {path.resolve() for path in paths if path.is_file()}
    for path in paths:
        if not path.is_dir():
            yield Found(path, Path(path.name))
            continue
        pattern = f"**/*{SUFFIX}" if recursive else f"*{SUFFIX}"
        insides = sorted(file.relative_to(path) for file in path.glob(pattern) if file.is_file())
        chosen = [
            inside
            for inside in insides
            if not inside.name.startswith(".")
            and (path / inside).resolve() not in named
            and (not include or any(fnmatch(str(inside), pattern) for pattern in include))
            and not any(fnmatch(str(inside), pattern) for pattern in exclude)
        ]
        if not chosen:
            hint = "check --include and --exclude" if insides else "" if recursive else "look deeper with --recursive"
            yield FileFormatError(path, f"holds no {'matching ' * bool(insides)}{SUFFIX} files", hint)
        yield from (Found(path / inside, inside, named=False) for inside in chosen)


def make_jobs(found: Iterable[Found], recipes: Sequence[Recipe], naming: Naming) -> list[Job]:
    """Name every output before any work starts. Raises OutputError where two would be the same file."""
    jobs: list[Job] = []
    taken: dict[Path, Path] = {}
    for item in found:
        outputs = tuple((naming.name(item.file, item.inside, recipe), recipe) for recipe in recipes)
        for output, _ in outputs:
            if output is None:
                continue
            if output in taken:
                raise OutputError(
                    f"{output}: would be written from {taken[output]} and from {item.file}",
                    'tell them apart with --name, as --name "{stem}-{preset}"',
                )
            taken[output] = item.file
        size = item.file.stat().st_size if item.file.is_file() else 0
        jobs.append(Job(item.file, outputs, item.named, size))
    return jobs


def make_folders(jobs: Iterable[Job], inputs: Iterable[Path], out_dir: Path, *, recursive: bool) -> None:
    """Make the folders of the outputs. Raises OutputError where outputs would be found as inputs another time."""
    for folder in inputs:
        if recursive and folder.is_dir() and out_dir.resolve().is_relative_to(folder.resolve()):
            raise OutputError(f"{out_dir}: lies inside the input folder {folder}", "choose a folder outside of it")
    for folder in {output.parent for job in jobs for output, _ in job.outputs if output}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made: {error.strerror}", "choose another --out-dir") from error


@contextmanager
def executor_for(jobs: Sequence[Job], workers: int = 0) -> Iterator[Executor | None]:
    """Processes for so many jobs at a time (0: one per core); None where starting them would not pay."""
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if workers < 2 or sum(job.nbytes for job in jobs) < _WORTH_PROCESSES:
        yield None
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Fresh processes: forking one that has threads is not safe.
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def run_all(jobs: Sequence[Job], executor: Executor | None = None) -> Iterator[tuple[Job, list[Outcome]]]:
    """Run jobs here one after the other, or on an executor; yields each with its outcomes as it ends."""
    if executor is None:
        yield from ((job, run(job)) for job in jobs)
        return
    from concurrent.futures import as_completed

    pending: dict[Future[list[Outcome]], Job] = {executor.submit(run, job): job for job in jobs}
    for future in as_completed(pending):
        job = pending[future]
        try:
            yield job, future.result()
        except Exception as error:  # noqa: BLE001 - a worker that died takes its job along, not the batch
            reason = f"{job.input}: its worker process ended: {error or type(error).__name__}"
            failed = Outcome(job.input, None, FAILED, error=reason, hint="run it again")
            yield job, [replace(failed, output=output) for output, _ in job.outputs]


def run(job: Job) -> list[Outcome]:
    """Make all outputs of one input. What a user can get wrong is in the outcomes; nothing is raised for it."""
    began = time.perf_counter()
    try:
        lora = read_lora(job.input, job.outputs[0][1].family)
    except LbwError as error:
        return [_failed(job, output, error, began) for output, _ in job.outputs]
    planned = [_plan(job, output, recipe, lora, began) for output, recipe in job.outputs]
    targets = [target for _, target in planned if target]
    if not targets:
        return [outcome for outcome, _ in planned]
    device = "cpu"
    try:
        device, backend = choose_backend(job.outputs[0][1].device, lora.file.size * len(targets))
        sizes = dict(zip((target.output for target in targets), bake(targets, backend), strict=True))
    except LbwError as error:
        return [_failed(job, outcome.output, error, began) if target else outcome for outcome, target in planned]
    seconds = time.perf_counter() - began
    return [
        replace(outcome, status=BAKED, nbytes=sizes[target.output], seconds=seconds, device=device)
        if target
        else outcome
        for outcome, target in planned
    ]


def _failed(job: Job, output: Path | None, error: LbwError, began: float) -> Outcome:
    seconds = time.perf_counter() - began
    return Outcome(job.input, output, FAILED, seconds=seconds, error=error.message, hint=error.hint)


def _plan(job: Job, output: Path | None, recipe: Recipe, lora: Lora, began: float) -> tuple[Outcome, Target | None]:
    """What is to become of one output: its outcome so far, and its target if there is work to do."""
    try:
        if records_in(lora.file.metadata) and not job.named:
            return Outcome(job.input, output, SKIPPED, warnings=("was baked before; name it to bake it again",)), None
        weights = settle(lora, recipe.source_for, recipe.options)
        with TensorData(lora.file) as data:
            treat = _remedies(recipe, lora, weights, data)
            plan = make_plan(lora, weights, data.survey, DTYPES[recipe.dtype], treat)
            if recipe.prune:
                from .prune import prune

                plan = prune(plan, data)
        outcome = _planned(job, output, plan, began)
        if output and output.exists() and recipe.skip_existing:
            warnings = (*outcome.warnings, *_differences(output, plan, recipe))
            return replace(outcome, status=SKIPPED, warnings=warnings), None
        if output:
            _check_output(output, job.input, recipe)
        if outcome.warnings and recipe.strict:
            raise StrictError(job.input, outcome.warnings)
    except LbwError as error:
        return _failed(job, output, error, began), None
    if recipe.dry_run or output is None:
        return outcome, None
    return outcome, Target(plan, output, recipe.preset, recipe.replace or recipe.in_place, recipe.update_metadata)


def _remedies(recipe: Recipe, lora: Lora, weights: Weights, data: TensorData) -> Treat:
    """What is asked about modules that no factor scales; few files have any, so it is imported when it is."""

    @cache
    def remedies() -> Treat:
        from .remedies import Means, Remedies

        means = Means(recipe.base, recipe.dora_norm, recipe.inexact, recipe.device)
        return Remedies(lora, weights, means, data.read)

    def treat(module: Module, place: Place, weight: float, dtype: str | None) -> Treatment | str:
        return remedies()(module, place, weight, dtype)

    return treat


def _planned(job: Job, output: Path | None, plan: Plan, began: float) -> Outcome:
    warnings = list(plan.warnings)
    if records_in(plan.lora.file.metadata):
        warnings.append("was baked before; the weights of both bakes multiply")
    return Outcome(
        job.input,
        output,
        PLANNED,
        plan.weights.family.name,
        plan.weights.layout,
        plan.weights.blocks,
        plan.counts,
        tuple(_block_weights(plan)),
        seconds=time.perf_counter() - began,
        warnings=tuple(warnings),
    )


def _block_weights(plan: Plan) -> Iterator[BlockWeights]:
    by_block: dict[str, list[float]] = {block: [] for block in (*plan.weights.family.blocks, OTHER)}
    for decision in plan.decisions:
        by_block[decision.place.block].append(decision.weight)
    for block, weights in by_block.items():
        if weights:
            yield BlockWeights(block, len(weights), tuple(sorted(set(weights))))


def _differences(output: Path, plan: Plan, recipe: Recipe) -> list[str]:
    """What is said of an existing output that is not what this bake would write."""
    try:
        records = records_in(read_header(output).metadata)
    except FileFormatError as error:
        return [f"the existing output is kept, though it cannot be read: {error.message}"]
    if not records or records[-1] != record_of(plan.weights, plan.lora.file.path, recipe.preset) | plan.means:
        return ["the existing output is kept, though it was baked with other options; replace it with --force"]
    return []


def _check_output(output: Path, source: Path, recipe: Recipe) -> None:
    """Refuse early what could only fail after the work, or would harm the input. Raises OutputError."""
    if not output.parent.is_dir() and not recipe.dry_run:
        raise OutputError(f"{output}: there is no folder {output.parent}", "create it, or choose another output")
    if not output.exists():
        return
    if output.is_dir():
        raise OutputError(f"{output}: is a folder", "name a file, or give the folder as --out-dir")
    if output.samefile(source) and not recipe.in_place:
        raise OutputError(f"{output}: is the input itself", "choose another output, or bake it with --in-place")
    if not (recipe.replace or recipe.in_place):
        raise OutputError(f"{output}: already exists", "choose another name, or replace it with --force")


def outcome_json(outcome: Outcome) -> Mapping[str, object]:
    """An outcome as `lbw bake --json` prints it."""
    return {
        "input": str(outcome.input),
        "output": str(outcome.output) if outcome.output else None,
        "status": outcome.status,
        "family": outcome.family,
        "layout": outcome.layout,
        "weights": dict(outcome.weights),
        "modules": dict(outcome.modules),
        "bytes": outcome.nbytes,
        "seconds": round(outcome.seconds, 4),
        "device": outcome.device,
        "warnings": list(outcome.warnings),
        "error": outcome.error,
        "hint": outcome.hint,
    }
