"""Results for people and for programs: tables, one-line messages, JSON. Nothing here decides anything."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bars import bytes_bar
from .console import error_lines, message, print_json, print_line
from .interrupts import uninterrupted
from .jobs import Batch, Job
from .metadata import RECORD
from .run import BAKED, FAILED, PLANNED, SKIPPED, Outcome
from .tables import Bar, print_table
from .words import counted, shortened, size_text, some

if TYPE_CHECKING:
    from rich.progress import Progress

    from .comparison import Comparison
    from .merging import Merged
    from .mixer import Mix

# Bytes of a single input that takes long enough for a bar.
_LASTING = 400_000_000

_VALUE = 40  # characters of a metadata value


class Report:
    """Outcomes as they come in, on stderr: a progress bar by bytes on a terminal, plain lines elsewhere."""

    def __init__(self, batch: Batch, *, quiet: bool = False, verbose: bool = False, json: bool = False) -> None:
        self._batch, self._quiet, self._verbose, self._json = batch, quiet, verbose, json
        self._counts: Counter[str] = Counter()
        self._expected = sum(len(job.outputs) for job in batch.jobs) + len(batch.problems)
        self._several = self._expected > 1 or any(not job.named for job in batch.jobs)
        self._bar: Progress | None = None
        self._shown = ExitStack()  # the bar, as long as it is
        # Bytes of the inputs that are done, and of each that is not.
        self._done, self._reached = 0, dict[Path, int]()

    def __enter__(self) -> Report:
        shared = self._json and sys.stdout.isatty()  # objects would go on in the line of a bar
        lasts = self._expected > 1 or self._batch.nbytes >= _LASTING
        with ExitStack() as shown:
            if lasts and not self._quiet and sys.stderr.isatty() and not shared:
                self._bar = shown.enter_context(bytes_bar(self._progress(), self._batch.nbytes))
            for problem in self._batch.problems:
                self.add([Outcome(problem.path, None, FAILED, error=problem)], 0)
            if (left_out := self._batch.left_out) and self._batch.jobs and not self._quiet:
                suffixes = ", ".join(sorted({path.suffix for path in left_out}))
                message("skipped", f"{counted(len(left_out), 'file')} of another kind than safetensors ({suffixes})")
            self._shown = shown.pop_all()
        return self

    @uninterrupted()  # what was counted is said at the end too
    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._shown.close()
        unheard = kind is not None and issubclass(kind, OSError)  # who read stdout is gone, or there is no room for it
        interrupted = unheard or (kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit))
        if (self._several or unheard) and not self._quiet and (interrupted or not kind):
            said = [
                f"{self._counts[status]} {words}"
                for status, words in _SUMMARY.items()
                if self._counts[status] or status == BAKED
            ]
            if interrupted:
                said.append(f"{self._expected - self._counts.total()} left")
            message("interrupted" if interrupted else "done", ", ".join(said))

    def say(self, remark: str) -> None:
        """A remark while the batch goes on."""
        if not self._quiet:
            message("waiting", remark)

    def watch(self, job: Job, share: float) -> None:
        """Show the share of a job that is done."""
        self._reached[job.input] = round(share * job.nbytes)
        self._move()

    def _move(self) -> None:
        if self._bar:
            completed = self._done + sum(self._reached.values())
            self._bar.update(self._bar.task_ids[0], completed=completed, description=self._progress())

    def _progress(self) -> str:
        """The text before the bar: of several files, how many are done."""
        return f"{self._counts.total()} of {self._expected} files" if self._expected > 1 else "baking"

    def take(self, results: Generator[tuple[Job, list[Outcome]], None, None]) -> None:
        """Take in the outcomes of a batch as they come; if it is interrupted, those that are there by then too."""
        with closing(results):  # a traceback would keep its processes, as where stderr takes no more
            try:
                for job, outcomes in results:
                    self.add(outcomes, job.nbytes)
            except (KeyboardInterrupt, SystemExit) as interrupt:
                job, outcomes = results.throw(interrupt)  # which raises it again where there are no more
                self.add(outcomes, job.nbytes)
                self.take(results)

    @uninterrupted()  # what is counted is said
    def add(self, outcomes: Sequence[Outcome], nbytes: int) -> None:
        """Take in the outcomes of one input of so many bytes."""
        self._counts.update(outcome.status for outcome in outcomes)
        if self._json:
            for outcome in outcomes:
                print_json(outcome_json(outcome))
        # Outputs of one input that fail, or are skipped, for the same reason say so once.
        for outcome in {str(one.error or one.note or i): one for i, one in enumerate(outcomes)}.values():
            if outcome.error or not self._quiet:
                _show(outcome, verbose=self._verbose)
        self._done += nbytes
        for outcome in outcomes:
            self._reached.pop(outcome.input, None)
        self._move()

    @property
    def failed(self) -> bool:
        """Whether any outcome was a failure."""
        return self._counts[FAILED] > 0


_SUMMARY = {BAKED: "written", PLANNED: "planned", SKIPPED: "skipped", FAILED: "failed"}


def _show(outcome: Outcome, *, verbose: bool) -> None:
    for label, text in _remarks(outcome):
        message(label, text)
    if verbose:
        for name in outcome.unknown:
            message("unknown", name)
    if outcome.blocks and (verbose or outcome.status == PLANNED):
        _weights_table(outcome)
    if outcome.status != FAILED:
        message(outcome.status, _result(outcome))


def outcome_lines(outcome: Outcome) -> list[tuple[str, str]]:
    """What is said of an outcome: labels, and the text of each."""
    return [*_remarks(outcome), *([(outcome.status, _result(outcome))] if outcome.status != FAILED else [])]


def _remarks(outcome: Outcome) -> Iterator[tuple[str, str]]:
    if outcome.error:
        yield from error_lines(outcome.error)
    yield from (("warning", f"{outcome.input}: {warning}") for warning in outcome.warnings)


def _result(outcome: Outcome) -> str:
    if outcome.note:
        return f"{outcome.input} ({outcome.note})"
    if outcome.status == SKIPPED:
        return str(outcome.output)
    if outcome.status == PLANNED:
        return f"{outcome.output or outcome.input} ({_modules(outcome)}); nothing written"
    modules = f"{_modules(outcome)}{', verified' * outcome.verified}"
    size, rate = size_text(outcome.nbytes), size_text(outcome.nbytes / max(outcome.seconds, 1e-9))
    done = f"{outcome.output} ({modules}; {size} in {outcome.seconds:.2f} s, {rate}/s)"
    te, unet = (outcome.options.strength * part for part in (outcome.options.te, outcome.options.unet))
    if {te, unet} <= {0, 1}:
        return done
    baked = f"a strength of {te:g} is" if te == unet else f"strengths of {te:g} (te) and {unet:g} (unet) are"
    return f"{done}; load it with a weight of 1, {baked} baked in"


def _modules(outcome: Outcome) -> str:
    return ", ".join(f"{count} {action}" for action, count in outcome.modules.items() if count)


def outcome_json(outcome: Outcome) -> Mapping[str, object]:
    """An outcome as `lbw bake --json` prints it."""
    return {
        "input": str(outcome.input),
        "output": str(outcome.output) if outcome.output else None,
        "status": outcome.status,
        "family": outcome.family,
        "candidates": list(outcome.candidates),
        "layout": outcome.layout,
        "weights": dict(outcome.weights),
        "modules": dict(outcome.modules),
        "bytes": outcome.nbytes,
        "seconds": round(outcome.seconds, 4),
        "device": outcome.device,
        "verified": outcome.verified,
        "strength": outcome.options.strength,
        "te": outcome.options.te,
        "unet": outcome.options.unet,
        "elements": list(map(str, outcome.options.elements)),
        "unknown": list(outcome.unknown),
        "warnings": list(outcome.warnings),
        "note": outcome.note or None,
        "error": outcome.error.message if outcome.error else None,
        "hint": outcome.error.hint if outcome.error else "",
    }


def _weights_table(outcome: Outcome) -> None:
    rows = []
    for block, weights in outcome.blocks.items():
        # Elements can give the modules of one block different weights.
        distinct = " ".join(f"{weight:g}" for weight in weights)
        rows.append((block, str(sum(weights.values())), distinct, Bar(max(weights, key=abs), 1.0)))
    title = f"{outcome.input.name} ({' or '.join(outcome.candidates)})"
    print_table(title, ("block", "modules>", "weight>", ""), rows, stderr=True)


def merged(result: Merged, output: Path, *, dry_run: bool = False, quiet: bool = False, json: bool = False) -> None:
    """What a merge did, or would do, on stderr; truncation errors by block."""
    status = PLANNED if dry_run else "merged"
    if json:
        facts = {
            "output": str(output),
            "status": status,
            "bytes": result.nbytes,
            "modules": result.modules,
            "ranks": list(result.ranks),
            "errors": dict(result.errors),
            "left_out": list(result.left_out),
            "warnings": list(result.warnings),
        }
        print_json(facts)
    if quiet:
        return
    for warning in result.warnings:
        message("warning", warning)
    if result.errors:
        rows = ((block, f"{lost:.2%}", Bar(lost, 1.0)) for block, lost in result.errors.items())
        print_table("What truncation lost of each block's update", ("block", "error>", ""), rows, stderr=True)
    ranks = f" of rank {some(map(str, result.ranks))}" if result.ranks else ""
    written = f"{result.modules} modules{ranks}, {size_text(result.nbytes)}"
    message(status, f"{output} ({written}){'; nothing written' * dry_run}")


def mixed(mix: Mix, path: Path) -> None:
    """What sliders were left at, on stdout, and what loads the file so in a prompt."""
    from . import mixer

    print_line(mixer.text(mix))
    if token := mixer.token(mix, path.stem):
        message("prompt", token)


def comparison(facts: Comparison, *, quiet: bool = False) -> None:
    """The weight each block really got, on stdout; contradictions and differences on stderr."""
    if not quiet:
        _differences(facts)
    for contradiction in (facts.contradictions or ())[:5]:
        message("error", contradiction)
    if facts.contradictions:
        message("error", f"{counted(len(facts.contradictions), 'part')} of it contradict its lbw_bake record")
    elif not quiet:
        message("done", _verdict(facts))


def _verdict(facts: Comparison) -> str:
    if facts.contradictions is not None:
        return "it is what its lbw_bake record says"
    if RECORD in {**facts.metadata.added, **facts.metadata.changed}:
        return "its lbw_bake record is of more than weights (a merge, a truncation, DoRA), which cannot be checked here"
    return "there is no new lbw_bake record to check it against" if facts.shares else "nothing could be measured"


def _differences(facts: Comparison) -> None:
    rows = []
    for name, (share, modules) in facts.blocks.items():
        of_zero = "none" if share.baked else "any"  # zero times a weight is zero
        weight = of_zero if share.weight is None else f"{share.weight:.4g}"
        error = "" if share.error is None else f"{share.error:.1g}"
        rows.append((name, str(modules), weight, error, Bar(share.weight or 0.0, 1.0)))
    title = f"{facts.baked.file.path.name} against {facts.original.file.path.name}"
    print_table(title, ("block", "modules>", "weight>", "error>", ""), rows)
    for what, names in (("added", facts.added), ("removed", facts.removed), ("not measured", facts.unmeasured)):
        if names:
            message("warning", f"{counted(len(names), 'module')} {what}: {some(names, 5)}")
    if facts.altered:
        message("warning", f"{counted(len(facts.altered), 'tensor')} of no module not the same: {some(facts.altered)}")
    changes = facts.metadata
    for what, values in (("added", changes.added), ("removed", changes.removed)):
        for key, value in values.items():
            message("metadata", f"{key} {what}: {shortened(value, _VALUE)}")
    for key, (old, new) in changes.changed.items():
        message("metadata", f"{key} changed: {shortened(old, _VALUE)} -> {shortened(new, _VALUE)}")


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
        "altered": list(facts.altered),
        "metadata": {
            "added": dict(facts.metadata.added),
            "removed": dict(facts.metadata.removed),
            "changed": {key: list(values) for key, values in facts.metadata.changed.items()},
        },
    }
