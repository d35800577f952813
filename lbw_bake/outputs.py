"""One output: what it is to be, and how it comes about while the input is read front to back."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from pathlib import Path

import numpy as np

from .algorithms import Shape
from .atomic import atomic_write, flush, make_room, refusals, write_all
from .edits import Compute, Drop, Fill
from .metadata import DataHashes, baked_metadata, record_of, stale_hashes, without_hashes
from .plan import Plan
from .progress import Progress
from .remade import remade
from .scaling import FLOATS, Backend, Bytes, Multiply, itemsize, not_finite, smallest, vanishing
from .sink import Sink
from .tensordata import PIECE, TensorData
from .tensorfile import Tensor, TensorFile, read_header
from .updates import Array
from .words import counted

# A tensor, and how many NaN and infinities were found in it.
Strange = tuple[Tensor, int, int]

# From so many bytes on the kernel copies a run of tensors. Of fewer it would not be worth the wait: btrfs and NFS begin
# a copy when what was written before is on the disk, or at the server.
_LONG = 8 * PIECE

# Fewer bytes are read at once: to have the thread that writes read them takes longer.
_SHORT = PIECE // 16

# Up to so many bytes of tensors that are multiplied, and of short ones between them, are read at once into the buffer
# they are written from: to ask for each by itself takes longer than to read it.
_TOGETHER = PIECE // 2

# Bytes that the system is asked to reserve on the disk at a time.
_ROOM = 8 * PIECE

# Bytes of each tensor that are compared to tell whether an output is the one that would be written.
_BEGINNING = 1 << 10

# The share of a tensor's numbers that may become 0 in another dtype before there is a warning: a few always do.
_NEGLIGIBLE = 0.01

# Bytes of a piece where there are several outputs, so that their buffers together take little memory.
_SMALL = PIECE // 8


@dataclass(frozen=True, slots=True)
class Target:
    """One output of a rewrite: its plan, its place, and how it is written.

    `replace` allows the output to exist; `update_metadata` keeps hashes and names in the metadata true.
    """

    plan: Plan
    output: Path
    preset: str | None = None
    replace: bool = False
    update_metadata: bool = True

    @property
    def metadata(self) -> dict[str, str]:
        """The output's metadata, but for the hashes of its data."""
        record = record_of(self.plan.lora, self.plan.weights, self.preset) | self.plan.means
        return baked_metadata(self.plan.lora, record, self.output.stem, update=self.update_metadata)

    def written_before(self) -> bool:
        """Whether the output is there as this would write it, as far as metadata, forms and tensors' beginnings tell.

        Raises FileFormatError.
        """
        there = read_header(self.output)
        return (
            without_hashes(there.metadata) == without_hashes(self.metadata)
            and _forms(there.tensors) == _forms(self.plan.edition.outputs.values())
            and _begins_as(self.plan, there)
        )


def _forms(tensors: Iterable[Tensor]) -> set[tuple[str, str, Shape]]:
    return {(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors}


def _begins_as(plan: Plan, there: TensorFile) -> bool:
    """Whether a file's tensors begin as the plan makes them of its input."""
    written = {tensor.name: tensor for tensor in there.tensors}
    edits = plan.edition.edits
    streamed = [
        (tensor, edit)
        for tensor in plan.lora.file.tensors
        if tensor.size > 1 and isinstance(edit := edits.get(tensor.name), Multiply | None)
    ]
    with TensorData(plan.lora.file) as data, TensorData(there) as copy:
        for tensor, edit in streamed:
            piece = next(data.pieces(tensor, _BEGINNING))
            wanted = piece if edit is None else edit.applied(piece)
            if not np.array_equal(next(copy.pieces(written[tensor.name], len(wanted))), wanted):
                return False
    return True


def strange_in(tensor: Tensor, piece: Bytes) -> list[Strange]:
    """What is no finite number in a piece of a tensor."""
    found = not_finite(tensor.dtype, piece) if tensor.dtype in FLOATS else (0, 0)
    return [(tensor, *found)] if any(found) else []


@dataclass(slots=True)
class _Output:
    """A file whose final size is known, and how much of that the system has reserved on the disk so far."""

    path: Path
    file: FileIO
    size: int
    room: int = 0

    def write(self, data: bytes | memoryview) -> None:
        """Write data. Raises OutputError that names this output, not another one that is open beside it."""
        with refusals(self.path):
            position = self.file.tell()
            if position + len(data) > self.room:
                self.room = min(position + len(data) + _ROOM, self.size)
                make_room(self.file, position, self.room)
            write_all(self.file, data)


# A tensor that this thread looks at, and multiplies if there is an edit.
Part = tuple[Tensor, Multiply | None]


@dataclass(slots=True)
class _Run:
    """A range of the input that is written as it is, but for its parts, if there are any: then it is read at once."""

    start: int
    end: int
    parts: list[Part] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.end - self.start

    def joined_by(self, start: int, end: int, part: Part | None) -> bool:
        """Whether it goes on with the next range, which may be a part. Long copies and parts stay apart."""
        if self.end != start:
            return False
        if not self.parts and not part:
            return True
        short = (self.parts or self.nbytes < _SHORT) and (part or end - start < _SHORT)
        return bool(short) and end - self.start <= _TOGETHER


class Writer:
    """One output while it is written. Tensors that follow one another are one run where that is quicker.

    `alone` says that the input has no other output: what is read may be multiplied where it is written from. `strange`
    is what was found then.
    """

    def __init__(
        self, target: Target, data: TensorData, backend: Backend, outputs: ExitStack, reading: ExitStack, *, alone: bool
    ) -> None:
        self._file = outputs.enter_context(atomic_write(target.output, replace=target.replace))
        self._target, self._data, self._backend, self._alone = target, data, backend, alone
        self.step = PIECE if alone else _SMALL
        self.strange: list[Strange] = []
        source = target.plan.lora.file
        edition = target.plan.edition
        self._edits, self._header = edition.edits, edition.header
        self._metadata = target.metadata
        hashed = target.update_metadata and stale_hashes(self._metadata)
        self._hashes = DataHashes(self._header, self._metadata) if hashed else None
        hashing = [self._hashes.update] if self._hashes else []
        header = self._encoded_header()
        size = len(header) + edition.nbytes
        # Not a method of this object: the sink's threads would keep it, and so the buffers, alive until a collection.
        self._output = _Output(target.output, self._file, size)
        self._copies = reading.enter_context(TensorData(source))  # read by the thread that writes
        self._sink = Sink(min(self.step, source.size), self._output.write, *hashing, backend=backend)
        reading.callback(self._sink.close)
        self.copy, self.room = self._sink.put, self._sink.room
        self._offset = source.data_start
        self._run = _Run(0, 0)
        self._vanished: defaultdict[str, Array] = defaultdict(lambda: np.zeros(2, np.int64))
        self._output.write(header)

    def begin(self, tensor: Tensor) -> Callable[[Bytes], None] | None:
        """Start the input's next tensor; returns what to give its bytes to, None if they need not be read."""
        edit = self._edits.get(tensor.name)
        if edit is None and self._hashes is None:
            self._extend_run(tensor)
            return None
        together = self._alone and tensor.nbytes <= _TOGETHER
        if together and (edit is None or (isinstance(edit, Multiply) and edit.source == edit.target)):
            self._extend_run(tensor, (tensor, edit))
            return None
        self.write_run()
        if isinstance(edit, Drop):
            return None
        if isinstance(edit, Fill | Compute):
            for piece in remade(tensor, edit, self._data):
                self.copy(piece)
            return None
        return self._multiply(tensor, edit) if edit else self.copy

    def _multiply(self, tensor: Tensor, edit: Multiply) -> Callable[[Bytes], None]:
        transform, before, after = self._backend.transform(edit), itemsize(edit.source), itemsize(edit.target)
        narrower = smallest(edit.target) > smallest(edit.source)

        def take(piece: Bytes) -> None:
            transform(piece, self.room(len(piece) // before * after))
            if narrower:
                self._vanished[tensor.name] += vanishing(edit, piece)

        return take

    def losses(self) -> Iterator[str]:
        """The warning about numbers that are too small for another dtype, if there are any."""
        lost = {name: gone for name, (others, gone) in self._vanished.items() if gone > _NEGLIGIBLE * others}
        if lost:
            numbers = (
                f"{sum(lost.values())} numbers in {counted(len(lost), 'tensor')} (the first is {next(iter(lost))})"
            )
            yield f"{numbers} are too small for the new dtype and become 0; --dtype bf16 or f32 keeps them"

    def finish(self) -> int:
        """Write what is left, and the header again if it holds hashes; returns the file's size."""
        self._sink.drain()
        with refusals(self._target.output):
            size = self._file.tell()
            if self._hashes:
                self._file.seek(0)
                self._output.write(self._encoded_header())
            return size

    def verify(self, progress: Progress) -> None:
        """Read what was written again and hold it to the plan. Raises VerificationError."""
        from .verify import Expected, verify

        with refusals(self._target.output):
            flush(self._file)
        expected = Expected(self._target.plan, self._target.output, self._metadata, hashed=self._hashes is not None)
        verify(expected, Path(os.fsdecode(self._file.name)), self._data, progress)

    def _encoded_header(self) -> bytes:
        return self._header.encode(self._hashes.metadata() if self._hashes else self._metadata)

    def _extend_run(self, tensor: Tensor, part: Part | None = None) -> None:
        """Go on with a tensor that is copied, or is a part."""
        start, end = self._offset + tensor.start, self._offset + tensor.end
        if not self._run.joined_by(start, end, part):
            self.write_run()
            self._run = _Run(start, end)
        self._run.end = end
        if part:
            self._run.parts.append(part)
        if self._run.nbytes >= _LONG:  # now: whoever is told of progress takes what was begun for written
            self.write_run()

    def write_run(self) -> None:
        """Write the run that was gathered."""
        run, self._run = self._run, _Run(0, 0)
        if run.parts:
            self._work_on(run)
        else:
            self._copy(run)

    def _work_on(self, run: _Run) -> None:
        """Read a run to where it is written from, and look at its parts, or multiply them, there."""
        room = self.room(run.nbytes)
        self._data.read_into(room, run.start)
        for tensor, edit in run.parts:
            start = self._offset + tensor.start - run.start
            piece = room[start : start + tensor.nbytes]
            self.strange += strange_in(tensor, piece)
            if edit:
                self._backend.transform(edit)(piece, piece)

    def _copy(self, run: _Run) -> None:
        """Have the kernel copy a run, or the thread that writes read it, or read it here: by how long it is."""
        start = run.start
        if run.nbytes >= _LONG:
            self._sink.drain()
            start = self._data.kernel_copy(start, run.end, self._file)
        for position in range(start, run.end, self.step):
            nbytes = min(self.step, run.end - position)
            if nbytes < _SHORT:
                self._data.read_into(self.room(nbytes), position)
            else:
                self._sink.fill(nbytes, partial(self._copies.read_into, position=position))
