"""Carry out a plan: read the input once, in pieces, and write the output as it will be; nothing is held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .atomic import atomic_write, write_all
from .metadata import DataHashes, baked_metadata, record_of, stale_hashes
from .plan import Drop, Fill, Plan
from .scaling import FLOATS, Multiply, Transform, numpy_dtype
from .tensordata import PIECE, TensorData
from .tensorfile import Tensor, encode_header

Backend = Callable[[Multiply], Transform]


def bake(
    plan: Plan,
    output: Path,
    *,
    preset: str | None = None,
    replace: bool = False,
    update_metadata: bool = True,
    backend: Backend = Multiply.transform,
) -> int:
    """Write the planned LoRA to `output`, which appears complete or not at all; returns its bytes.

    `backend` makes the function that multiplies bytes: on the CPU, or on a GPU. Raises OutputError if the output
    cannot be written or exists (without `replace`), FileFormatError if the input cannot be read to its end or
    changes meanwhile.
    """
    source = plan.lora.file
    layout = {tensor.name: tensor for tensor in plan.layout()}
    listed = [layout[tensor.name] for tensor in source.tensors if tensor.name in layout]
    metadata = baked_metadata(plan, record_of(plan, preset), output.stem, update=update_metadata)
    hashes = DataHashes(listed, metadata) if update_metadata and stale_hashes(metadata) else None
    with TensorData(source) as file, atomic_write(output, replace=replace) as target:
        nbytes = write_all(target, encode_header(listed, hashes.metadata() if hashes else metadata))
        for run in _runs(plan, layout):
            if run.edit is None and hashes is None:
                nbytes += file.copy(run.start, run.end, target)
                continue
            for data in _produce(file, run, backend):
                if hashes:
                    hashes.update(data)
                nbytes += write_all(target, data)
        if hashes:
            target.seek(0)
            write_all(target, encode_header(listed, hashes.metadata()))
        file.check_unchanged()
    return nbytes


@dataclass(frozen=True, slots=True)
class _Run:
    """A byte range of the input, what happens to it, and the bytes that come out."""

    edit: Multiply | Fill | None
    start: int
    end: int
    nbytes: int


def _runs(plan: Plan, layout: Mapping[str, Tensor]) -> Iterator[_Run]:
    """The input in file order, without what is dropped; neighbours that are copied are one run."""
    edits, file = plan.edits, plan.lora.file
    start = end = file.data_start
    for tensor in file.in_data_order():
        edit = edits.get(tensor.name)
        if edit is not None:
            if start < end:
                yield _Run(None, start, end, end - start)
            if not isinstance(edit, Drop):
                yield _Run(edit, end, end + tensor.nbytes, layout[tensor.name].nbytes)
            start = end + tensor.nbytes
        end += tensor.nbytes
    if start < end:
        yield _Run(None, start, end, end - start)


def _produce(file: TensorData, run: _Run, backend: Backend) -> Iterator[memoryview]:
    """The output bytes of a run, in pieces that are only good until the next one is asked for."""
    if isinstance(run.edit, Fill):
        yield from _constant(run.edit, run.nbytes)
        return
    transform = backend(run.edit) if run.edit else None
    for piece in file.pieces(run.start, run.end):
        yield (transform(piece) if transform else piece).data


def _constant(fill: Fill, nbytes: int) -> Iterator[memoryview]:
    dtype = numpy_dtype(fill.dtype) if fill.dtype in FLOATS else np.dtype(np.uint8)
    piece = np.full(min(PIECE, nbytes) // dtype.itemsize, fill.value, dtype).view(np.uint8).data
    for start in range(0, nbytes, PIECE):
        yield piece[: nbytes - start]
