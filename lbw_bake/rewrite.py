"""Carry out plans: read the input once, in pieces, and write each output as it will be; nothing is held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

from .atomic import claim
from .errors import StrictError, VerificationError
from .outputs import Strange, Target, Writer, strange_in
from .progress import Progress, part_of, silent
from .scaling import CPU, Backend
from .tensordata import TensorData
from .tensorfile import Tensor
from .words import counted

# Outputs of one rewrite at most, each with two open files: well below the 256 that some systems allow.
AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What a rewrite wrote: the bytes of each output, and what reading the data has shown."""

    sizes: tuple[int, ...]
    warnings: tuple[str, ...]


def rewrite(
    targets: Sequence[Target],
    backend: Backend = CPU,
    *,
    strict: bool = False,
    verify: bool = False,
    progress: Progress = silent,
) -> Rewritten:
    """Write the outputs of plans that share an input, which is read once.

    An output appears complete or not at all. `backend` says where bytes are multiplied; `verify` reads every output
    again before it appears; `progress` is told of large inputs. Raises OutputError if an output cannot be written or
    exists (without `replace`), VerificationError, FileFormatError if the input cannot be read to its end or changes
    meanwhile, and with `strict` StrictError for warnings.
    """
    source = targets[0].plan.lora.file
    # The input is closed before outputs take their names: one may be its own, and Windows replaces no open file.
    with ExitStack() as outputs, ExitStack() as reading:
        data = reading.enter_context(TensorData(source))
        if any(_in_place(target) for target in targets):
            outputs.enter_context(claim(source.path))
        alone = len(targets) == 1
        writers = [Writer(target, data, backend, outputs, reading, alone=alone) for target in targets]
        share = 1 / (1 + verify * len(writers))
        warnings = _carry_out(writers, data, source.passed(part_of(progress, 0.0, share)))
        if strict and warnings:
            raise StrictError(source.path, warnings)
        sizes = tuple(writer.finish() for writer in writers)
        if verify:
            try:
                for i, writer in enumerate(writers, 1):
                    writer.verify(part_of(progress, i * share, share))
            except VerificationError:
                data.check_unchanged()  # or what it was held to is not what it was made from
                raise
        data.check_unchanged()
    return Rewritten(sizes, warnings)


def _in_place(target: Target) -> bool:
    try:
        return target.output.samefile(target.plan.lora.file.path)
    except OSError:
        return False


def _carry_out(writers: Sequence[Writer], data: TensorData, tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """Read the input once, and give every tensor to the writers that need its bytes; returns warnings about them."""
    strange: list[Strange] = []
    for tensor in tensors:
        waiting = [take for writer in writers if (take := writer.begin(tensor))]
        if waiting:
            # What a single output takes unchanged is read straight into its buffer.
            room = writers[0].room if waiting == [writers[0].copy] else None
            for piece in data.pieces(tensor, writers[0].step, room):
                strange += strange_in(tensor, piece)
                for take in waiting if room is None else ():
                    take(piece)
    for writer in writers:
        writer.write_run()
        strange += writer.strange
    return (*_said_of(strange), *dict.fromkeys(chain.from_iterable(writer.losses() for writer in writers)))


def _said_of(strange: Iterable[Strange]) -> Iterator[str]:
    """The warning about NaN and infinities, counted by tensor: they are kept, but nobody meant to train them."""
    if found := sorted(strange, key=lambda found: found[0].start):
        tensors, nan, infinite = zip(*found, strict=True)
        numbers = f"{sum(nan)} NaN and {sum(infinite)} infinite numbers in {counted(len({*tensors}), 'tensor')}"
        yield f"{numbers} are kept as they are (the first is {tensors[0].name})"
