"""The data section of a safetensors file, read front to back in pieces: never the whole, never more than once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from io import FileIO
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import FileFormatError, reading_hint
from .scaling import FLOATS, Bytes, Multiply, Survey, numpy_dtype, survey
from .tensorfile import Tensor, TensorFile

# Bytes per read: large enough to make system calls cheap, small enough for the cache and for flat memory.
PIECE = 1 << 20

_INTEGERS = {"I8": "i1", "U8": "u1", "I16": "i2", "U16": "u2", "I32": "i4", "U32": "u4", "I64": "i8", "U64": "u8"}

# Memory for so many bytes.
Room = Callable[[int], Bytes]


class TensorData:
    """An open file whose header was read. Methods raise FileFormatError where it cannot be read as promised there."""

    def __init__(self, source: TensorFile) -> None:
        self._source = source
        self._buffer = np.empty(0, np.uint8)
        try:
            self._file = FileIO(source.path)
        except OSError as error:
            raise self._unreadable(error) from error

    def __enter__(self) -> TensorData:
        try:
            self.check_unchanged()
        except FileFormatError:
            self._file.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def pieces(self, tensor: Tensor, step: int = PIECE, room: Room | None = None) -> Iterator[Bytes]:
        """A tensor's bytes in pieces of so many. A piece is good until the next one is asked for.

        `room` gives the memory that a piece is read into; by default all are read into the same buffer.
        """
        return self.between(self._source.data_start + tensor.start, self._source.data_start + tensor.end, step, room)

    def between(self, start: int, end: int, step: int = PIECE, room: Room | None = None) -> Iterator[Bytes]:
        """The bytes of a range of the file, in pieces as `pieces` has them."""
        for position in range(start, end, step):
            piece = (room or self._own)(min(step, end - position))
            self.read_into(piece, position)
            yield piece

    def _own(self, nbytes: int) -> Bytes:
        # Memory that is new for every piece would cost as much time as the arithmetic.
        if nbytes > len(self._buffer):
            self._buffer = np.empty(nbytes, np.uint8)
        return self._buffer[:nbytes]

    def read_into(self, room: Bytes, position: int) -> None:
        """Fill some memory with the bytes of the file from a position on."""
        self._file.seek(position)
        view = room.data
        while view:
            try:
                count = self._file.readinto(view)
            except OSError as error:
                raise self._unreadable(error) from error
            if not count:
                raise FileFormatError(self._source.path, "became shorter while it was read", "run it again")
            view = view[count:]

    def kernel_copy(self, start: int, end: int, target: FileIO) -> int:
        """Have the kernel append a range of the file to the target, as far as it can; returns where it stopped."""
        position = start
        while position < end and hasattr(os, "copy_file_range"):
            try:
                count = os.copy_file_range(self._file.fileno(), target.fileno(), end - position, offset_src=position)
            except OSError:  # not on this file system; or a fault, and then reading or writing says whose
                break
            if not count:
                break
            position += count
        return position

    def read(self, tensor: Tensor) -> npt.NDArray[Any]:
        """A tensor's values: float32 for floats (float64 stays), else its own integers.

        Raises ValueError for dtypes that are neither.
        """
        integer = _INTEGERS.get(tensor.dtype)
        if not integer and tensor.dtype not in FLOATS:
            raise ValueError(f"{tensor.name} has dtype {tensor.dtype}")
        data = np.empty(tensor.nbytes, np.uint8)
        self.read_into(data, self._source.data_start + tensor.start)
        values = data.view(integer or numpy_dtype(tensor.dtype)).reshape(tensor.shape)
        if integer or tensor.dtype == "F64":
            return values
        with np.errstate(invalid="ignore"):  # a signalling NaN is a value like another
            return values.astype(np.float32)

    def survey(self, tensor: Tensor, step: Multiply) -> Survey:
        """What multiplying a tensor would do to its values."""
        return survey(step, self.pieces(tensor))

    def check_unchanged(self) -> None:
        """Raise FileFormatError if the file was replaced, or changed, since its header was read.

        One that was merely removed is still whole as long as it is open.
        """
        try:
            status = os.fstat(self._file.fileno())
            named = self._source.path.stat() if self._source.path.exists() else status
        except OSError as error:
            raise self._unreadable(error) from error
        if not os.path.samestat(status, named):
            raise FileFormatError(self._source.path, "was replaced while it was read", "run it again")
        if (status.st_size, status.st_mtime_ns) != (self._source.size, self._source.modified_ns):
            raise FileFormatError(self._source.path, "changed while it was read", "run it again")

    def _unreadable(self, error: OSError) -> FileFormatError:
        return FileFormatError(self._source.path, f"cannot be read: {error.strerror}", reading_hint(error))
