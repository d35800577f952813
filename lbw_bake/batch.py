"""Many files: find them, name their outputs, bake each, and keep going when one fails."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .bake import bake
from .cuda import choose_backend
from .errors import FileFormatError, LbwError, OutputError, StrictError
from .families import Family
from .lora import read_lora
from .metadata import records_in
from .plan import DTYPES, Plan, make_plan, settle
from .presets import Preset
from .tensordata import TensorData
from .weights import Options, Source

BAKED, FAILED, PLANNED = "baked", "failed", "planned"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to do to every file: where its weights come from and how it is written."""

    source: Source | Preset
    options: Options = field(default_factory=Options)
    layout: int | None = None
    family: str | None = None
    dtype: str = "keep"
    device: str = "auto"
    strict: bool = False
    update_metadata: bool = True
    dry_run: bool = False

    @property
    def preset(self) -> str | None:
        """The preset's name, if the weights come from one."""
        return self.source.name if isinstance(self.source, Preset) else None

    def source_for(self, family: Family) -> Source:
        """Where the weights of a family come from. Raises PresetError."""
        return self.source.source_for(family, self.layout) if isinstance(self.source, Preset) else self.source


@dataclass(frozen=True, slots=True)
class Job:
    """One file to bake; `replace` allows the output to exist, and to be the input itself if `in_place`.

    Without an output it can only be planned.
    """

    input: Path
    output: Path | None
    replace: bool = False
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job. `plan` is None if it failed before there was one."""

    job: Job
    status: str
    plan: Plan | None = None
    nbytes: int = 0
    seconds: float = 0.0
    device: str | None = None
    warnings: tuple[str, ...] = ()
    error: LbwError | None = None


def find_inputs(paths: Iterable[Path], *, recursive: bool = False) -> Iterator[Path]:
    """The files named, and the safetensors files of the folders named, in sorted order. Raises FileFormatError."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        pattern = "**/*.safetensors" if recursive else "*.safetensors"
        found = sorted(file for file in path.glob(pattern) if file.is_file() and not file.name.startswith("."))
        if not found:
            raise FileFormatError(
                path, "holds no .safetensors files", "" if recursive else "look deeper with --recursive"
            )
        yield from found


def run(job: Job, recipe: Recipe) -> Outcome:
    """Bake one file. What a user can get wrong is in the outcome; nothing is raised for it."""
    began = time.perf_counter()
    try:
        return _run(job, recipe)
    except LbwError as error:
        return Outcome(job, FAILED, seconds=time.perf_counter() - began, error=error)


def _run(job: Job, recipe: Recipe) -> Outcome:
    began = time.perf_counter()
    lora = read_lora(job.input, recipe.family)
    if job.output:
        _check_output(job.output, job)
    weights = settle(lora, recipe.source_for, recipe.options)
    with TensorData(lora.file) as data:
        plan = make_plan(lora, weights, data.survey, DTYPES[recipe.dtype])
    warnings = list(plan.warnings)
    if records_in(lora.file.metadata):
        warnings.append("was baked before; the weights of both bakes multiply")
    if warnings and recipe.strict:
        raise StrictError(job.input, warnings)
    if recipe.dry_run or job.output is None:
        return Outcome(job, PLANNED, plan, warnings=tuple(warnings), seconds=time.perf_counter() - began)
    device, backend = choose_backend(recipe.device, lora.file.size)
    nbytes = bake(
        plan,
        job.output,
        preset=recipe.preset,
        replace=job.replace,
        update_metadata=recipe.update_metadata,
        backend=backend,
    )
    seconds = time.perf_counter() - began
    return Outcome(job, BAKED, plan, nbytes, seconds, device, tuple(warnings))


def _check_output(output: Path, job: Job) -> None:
    """Refuse early what could only fail after the work, or would harm the input. Raises OutputError."""
    if not output.parent.is_dir():
        raise OutputError(f"{output}: there is no folder {output.parent}", "create it, or choose another output")
    if not output.exists():
        return
    if output.is_dir():
        raise OutputError(f"{output}: is a folder", "name a file, or give the folder as --out-dir")
    if output.samefile(job.input) and not job.in_place:
        raise OutputError(f"{output}: is the input itself", "choose another output, or bake it with --in-place")
    if not job.replace:
        raise OutputError(f"{output}: already exists", "choose another name, or replace it with --force")


def outcome_json(outcome: Outcome) -> Mapping[str, object]:
    """An outcome as `lbw bake --json` prints it."""
    plan = outcome.plan
    weights = plan.weights if plan else None
    return {
        "input": str(outcome.job.input),
        "output": str(outcome.job.output) if outcome.job.output else None,
        "status": outcome.status,
        "family": weights.family.name if weights else None,
        "layout": weights.layout if weights else None,
        "weights": dict(weights.blocks) if weights else {},
        "modules": plan.counts if plan else {},
        "bytes": outcome.nbytes,
        "seconds": round(outcome.seconds, 4),
        "device": outcome.device,
        "warnings": list(outcome.warnings),
        "error": {"message": outcome.error.message, "hint": outcome.error.hint} if outcome.error else None,
    }
