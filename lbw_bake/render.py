"""Results for people and for programs: tables, one-line messages, JSON. Nothing here decides anything.

rich is imported where a table is drawn: the commands that print a line start faster without it (see `console`).
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import error, escape, message, print_json
from .errors import LbwError
from .jobs import Job
from .run import BAKED, FAILED, PLANNED, SKIPPED, Outcome, outcome_json

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from .comparison import Comparison
    from .inspection import Inspection
    from .merge import Merged

_BAR = 24
_COMPARED = ("block", "modules>", "weight>", "error>", "")


class Report:
    """Outcomes as they come in, on stderr: a progress bar by bytes on a terminal, plain lines elsewhere."""

    def __init__(self, jobs: Sequence[Job], *, quiet: bool = False, verbose: bool = False, json: bool = False) -> None:
        self._quiet, self._verbose, self._json = quiet, verbose, json
        self._total = sum(job.nbytes for job in jobs)
        self._counts: Counter[str] = Counter()
        self._several = sum(len(job.outputs) for job in jobs) > 1
        self._bar: Progress | None = None

    def __enter__(self) -> Report:
        if self._several and not self._quiet and sys.stderr.isatty():
            self._bar = _progress(self._total)
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar:
            self._bar.stop()
        if self._several and not self._quiet:
            counts = ", ".join(
                f"{self._counts[status]} {said}" for status, said in _SUMMARY.items() if self._said(status)
            )
            message("done", counts)

    def add(self, outcomes: Sequence[Outcome], nbytes: int) -> None:
        """Take in the outcomes of one input of so many bytes."""
        for outcome in outcomes:
            self._counts[outcome.status] += 1
            if self._json:
                print_json(outcome_json(outcome))
        # Outputs of one input that fail for the same reason say so once.
        for outcome in {one.error or str(one.output): one for one in outcomes}.values():
            if outcome.error or not self._quiet:
                _show(outcome, verbose=self._verbose)
        if self._bar:
            self._bar.advance(self._bar.task_ids[0], nbytes)
            self._bar.update(self._bar.task_ids[0], description=f"{sum(self._counts.values())} files")

    def add_error(self, problem: LbwError) -> None:
        """Take in an input that is no job."""
        self._counts[FAILED] += 1
        if self._json:
            print_json(
                {"input": None, "output": None, "status": FAILED, "error": problem.message, "hint": problem.hint}
            )
        error(problem)

    @property
    def failed(self) -> bool:
        """Whether any outcome was a failure."""
        return self._counts[FAILED] > 0

    def _said(self, status: str) -> bool:
        return bool(self._counts[status]) or status == BAKED


_SUMMARY = {BAKED: "written", PLANNED: "planned", SKIPPED: "skipped", FAILED: "failed"}


def _progress(total: int) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    progress.add_task("0 files", total=total)
    return progress


def _show(outcome: Outcome, *, verbose: bool) -> None:
    if outcome.error:
        message("error", outcome.error)
        if outcome.hint:
            message("hint", outcome.hint)
    for warning in outcome.warnings:
        message("warning", f"{outcome.input}: {warning}")
    if outcome.blocks and (verbose or outcome.status == PLANNED):
        _weights_table(outcome)
    if outcome.status == BAKED:
        size, rate = size_text(outcome.nbytes), size_text(outcome.nbytes / max(outcome.seconds, 1e-9))
        message(BAKED, f"{outcome.output} ({_counted(outcome)}; {size} in {outcome.seconds:.2f} s, {rate}/s)")
    elif outcome.status == SKIPPED:
        message(SKIPPED, str(outcome.output or outcome.input))
    elif outcome.status == PLANNED:
        message(PLANNED, f"{outcome.output or outcome.input} ({_counted(outcome)}); nothing written")


def _counted(outcome: Outcome) -> str:
    return ", ".join(f"{count} {action}" for action, count in outcome.modules.items() if count)


def _weights_table(outcome: Outcome) -> None:
    table = _table("block", "modules>", "weight>", "")
    for block in outcome.blocks:
        # Elements can give the modules of one block different weights.
        distinct = " ".join(f"{weight:g}" for weight in block.weights)
        table.add_row(block.block, str(block.modules), distinct, _bar(max(block.weights, key=abs), 1.0))
    _print_table(f"{outcome.input.name} ({outcome.family})", table, stderr=True)


def inspection(facts: Inspection) -> None:
    """A table per block, on stdout: who lives there, and how strong it is."""
    family = " or ".join(family.title for family in facts.lora.candidates)
    lengths = ", ".join(str(len(layout)) for layout in facts.family.layouts)
    file = facts.lora.file
    title = f"{file.path.name}: {family}, weights of {lengths} blocks, {size_text(file.size)}"
    table = _table("block", "modules>", "algorithm", "rank>", "dtype", "size>", "norm>", "")
    strongest = max((block.norm for block in facts.blocks.values()), default=0.0)
    for name, block in facts.blocks.items():
        modules = [facts.module for facts in block.modules]
        table.add_row(
            name,
            str(len(modules)),
            _distinct(module.algorithm_name for module in modules),
            _distinct(str(module.rank) for module in modules if module.rank),
            _distinct(tensor.dtype for module in modules for tensor in module.all_tensors),
            size_text(block.nbytes),
            f"{block.norm:.3g}",
            _bar(block.norm, strongest),
        )
    _print_table(title, table)
    if facts.unknown:
        names = ", ".join(tensor.name for tensor in facts.unknown[:5])
        message("warning", f"{file.path}: {len(facts.unknown)} unknown tensors: {names}")


def inspection_json(facts: Inspection) -> Mapping[str, Any]:
    """An inspection as `lbw inspect --json` prints it."""
    return {
        "file": str(facts.lora.file.path),
        "family": facts.lora.family.name if facts.lora.family else None,
        "candidates": [family.name for family in facts.lora.candidates],
        "layouts": [len(layout) for layout in facts.family.layouts],
        "size": facts.lora.file.size,
        "dtype": dict(facts.dtypes),
        "metadata": dict(facts.lora.file.metadata),
        "blocks": {
            name: {"modules": len(block.modules), "bytes": block.nbytes, "norm": block.norm}
            for name, block in facts.blocks.items()
        },
        "modules": [
            {
                "name": module.module.name,
                "component": module.component,
                "block": module.block,
                "algorithm": module.module.algorithm_name,
                "rank": module.module.rank,
                "alpha": None if module.alpha is None or math.isnan(module.alpha) else module.alpha,
                "norm": module.norm,
                "tensors": [tensor.name for tensor in module.module.all_tensors],
            }
            for module in facts.modules
        ],
        "unknown": [tensor.name for tensor in facts.unknown],
    }


def merged(result: Merged, output: Path, *, quiet: bool = False, json: bool = False) -> None:
    """What a merge did, on stderr; truncation errors by block."""
    if json:
        facts = {
            "output": str(output),
            "bytes": result.nbytes,
            "modules": result.modules,
            "errors": dict(result.errors),
        }
        print_json({**facts, "warnings": list(result.warnings)})
    if quiet:
        return
    for warning in result.warnings:
        message("warning", warning)
    if result.errors:
        table = _table("block", "error>", "")
        for block, lost in result.errors.items():
            table.add_row(block, f"{lost:.2%}", _bar(lost, 1.0))
        _print_table("What truncation lost of each block's update", table, stderr=True)
    message("merged", f"{output} ({result.modules} modules, {size_text(result.nbytes)})")


def comparison(facts: Comparison) -> None:
    """The weight each block really got, on stdout; contradictions and differences on stderr."""
    table = _table(*_COMPARED)
    for name, (share, modules) in facts.blocks.items():
        weight = "any" if share.weight is None else f"{share.weight:.4g}"
        error = "" if share.error is None else f"{share.error:.1g}"
        table.add_row(name, str(modules), weight, error, _bar(share.weight or 0.0, 1.0))
    _print_table(f"{facts.baked.file.path.name} against {facts.original.file.path.name}", table)
    for what, names in (("added", facts.added), ("removed", facts.removed), ("not measured", facts.unmeasured)):
        if names:
            message("warning", f"{len(names)} modules {what}: {', '.join(names[:5])}")
    for contradiction in (facts.contradictions or ())[:5]:
        message("error", contradiction)
    if facts.contradictions is None:
        message("done", "there is no new lbw_bake record to hold it to")
    elif facts.contradictions:
        message("error", f"{len(facts.contradictions)} modules contradict its lbw_bake record")
    else:
        message("done", "it is what its lbw_bake record says")


def comparison_json(facts: Comparison) -> Mapping[str, Any]:
    """A comparison as `lbw diff --json` prints it."""
    return {
        "original": str(facts.original.file.path),
        "baked": str(facts.baked.file.path),
        "family": facts.family.name,
        "blocks": {
            name: {"weight": share.weight, "error": share.error, "modules": modules}
            for name, (share, modules) in facts.blocks.items()
        },
        "matches_record": facts.matches_record,
        "contradictions": list(facts.contradictions or ()),
        "added": list(facts.added),
        "removed": list(facts.removed),
        "unmeasured": list(facts.unmeasured),
    }


def size_text(nbytes: float) -> str:
    """A number of bytes as people say it: `144 MB`."""
    for unit in ("bytes", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "bytes" or nbytes >= 10 else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def _distinct(names: Iterable[str]) -> str:
    return " ".join(sorted(set(names)))


def _bar(value: float, whole: float) -> str:
    """A bar of at most `_BAR` characters, in eighths of one."""
    eighths = round(min(abs(value) / whole, 1.0) * _BAR * 8) if whole else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _table(*columns: str) -> Table:
    """A table; a column whose name ends in `>` is aligned to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left", no_wrap=True)
    return table


def _print_table(title: str, table: Table, *, stderr: bool = False) -> None:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, markup=False)
    console.print(escape(title), style="bold", soft_wrap=True)
    console.print(table)
