"""Results for people and for programs: tables, one-line messages, JSON. Nothing here decides anything.

Names come from files of strangers, so control characters are shown escaped, never sent to the terminal. rich is
imported where a table is drawn: the commands that print a line start faster without it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .batch import BAKED, FAILED, PLANNED, Outcome
from .comparison import Comparison
from .errors import LbwError
from .families import OTHER
from .inspection import Inspection

if TYPE_CHECKING:
    from rich.table import Table

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_BAR = 24
_COMPARED = ("block", "modules>", "weight>", "error>", "")
_STYLES = {"error": "\x1b[1;31m", "warning": "\x1b[33m", "hint": "\x1b[36m", BAKED: "\x1b[32m"}


def escape(text: object) -> str:
    """Text that cannot drive a terminal: control and direction characters become their escapes."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], str(text))


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))  # noqa: T201


def error(problem: LbwError) -> None:
    """An error and its hint, on stderr."""
    message("error", problem.message)
    if problem.hint:
        message("hint", problem.hint)


def message(label: str, text: str) -> None:
    """A labelled line on stderr, in colour on a terminal unless NO_COLOR is set."""
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    head = f"{_STYLES.get(label, '')}{label}:\x1b[0m" if colour else f"{label}:"
    print(f"{head} {escape(text)}", file=sys.stderr)  # noqa: T201


def outcome(result: Outcome, *, verbose: bool = False) -> None:
    """What became of one file, on stderr; a planned one with its blocks."""
    if result.error:
        error(result.error)
    for warning in result.warnings:
        message("warning", f"{result.job.input}: {warning}")
    if result.plan and (verbose or result.status == PLANNED):
        weights_table(result)
    if result.status == BAKED:
        size, rate = size_text(result.nbytes), size_text(result.nbytes / max(result.seconds, 1e-9))
        message(BAKED, f"{result.job.output} ({_counts(result)}; {size} in {result.seconds:.2f} s, {rate}/s)")
    elif result.status == PLANNED:
        message(PLANNED, f"{result.job.output or result.job.input} ({_counts(result)}); nothing written")


def summary(results: Iterable[Outcome]) -> None:
    """How a batch ended, on stderr."""
    statuses = [result.status for result in results]
    message("done", f"{statuses.count(BAKED)} written, {statuses.count(FAILED)} failed")


def _counts(result: Outcome) -> str:
    counts = result.plan.counts if result.plan else {}
    return ", ".join(f"{count} {action}" for action, count in counts.items() if count)


def weights_table(result: Outcome) -> None:
    """The weight the modules of each block get, everything multiplied, on stderr."""
    if result.plan is None:
        return
    family = result.plan.weights.family
    table = _table("block", "modules>", "weight>", "")
    for block in (*family.blocks, OTHER):
        weights = [decision.weight for decision in result.plan.decisions if decision.place.block == block]
        if weights:
            # Elements can give the modules of one block different weights.
            distinct = " ".join(f"{weight:g}" for weight in sorted(set(weights)))
            table.add_row(block, str(len(weights)), distinct, _bar(fmean(weights), 1.0))
    _print_table(f"{result.job.input.name} ({family.title})", table, stderr=True)


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
                "alpha": module.alpha,
                "norm": module.norm,
                "tensors": [tensor.name for tensor in module.module.all_tensors],
            }
            for module in facts.modules
        ],
        "unknown": [tensor.name for tensor in facts.unknown],
    }


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
