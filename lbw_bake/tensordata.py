"""The data section of a safetensors file, read front to back in pieces: never the whole, never more than once."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from io import FileIO
from typing import Any

import numpy as np
import numpy.typing as npt

from .atomic import write_all
from .errors import FileFormatError
from .scaling import FLOATS, Bytes, Multiply, Survey, numpy_dtype, survey
from .tensorfile import Tensor, TensorFile

# Bytes per read: large enough to make system calls cheap, small enough for the cache and for flat memory.
PIECE = 1 << 20

# What copy_file_range says on file systems that do not have it.
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}

_INTEGERS = {"I8": "i1", "U8": "u1", "I16": "i2", "U16": "u2", "I32": "i4", "U32": "u4", "I64": "i8", "U64": "u8"}


class TensorData:
    """An open file whose header was read. Methods raise FileFormatError where it cannot be read as promised there."""

    def __init__(self, source: TensorFile) -> None:
        self._source = source
        try:
            self._file = FileIO(source.path)
        except OSError as error:
            raise self._unreadable(error) from error

    def __enter__(self) -> TensorData:
        self.check_unchanged()
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def pieces(self, start: int, end: int) -> Iterator[Bytes]:
        """The bytes of a range of the file in pieces of `PIECE`."""
        self._file.seek(start)
        for position in range(start, end, PIECE):
            piece = np.empty(min(PIECE, end - position), np.uint8)
            self._read_into(piece.data)
            yield piece

    def copy(self, start: int, end: int, target: FileIO) -> int:
        """Append a range of the file to the target, by the kernel where it can; returns its length."""
        position = self._kernel_copy(start, end, target)
        for piece in self.pieces(position, end):
            write_all(target, piece.data)
        return end - start

    def read(self, tensor: Tensor) -> npt.NDArray[Any]:
        """A tensor's values: float32 for floats (float64 stays), else its own integers.

        Raises ValueError for dtypes that are neither.
        """
        if tensor.dtype not in FLOATS and tensor.dtype not in _INTEGERS:
            raise ValueError(f"{tensor.name} has dtype {tensor.dtype}")
        dtype = np.dtype(_INTEGERS[tensor.dtype]) if tensor.dtype in _INTEGERS else numpy_dtype(tensor.dtype)
        data = np.empty(tensor.nbytes, np.uint8)
        self._file.seek(self._source.data_start + tensor.start)
        self._read_into(data.data)
        values = data.view(dtype).reshape(tensor.shape)
        if tensor.dtype == "F64" or tensor.dtype not in FLOATS:
            return values
        with np.errstate(invalid="ignore"):  # a signalling NaN is a value like another
            return values.astype(np.float32)

    def survey(self, tensor: Tensor, step: Multiply) -> Survey:
        """What multiplying a tensor would do to its values."""
        start = self._source.data_start + tensor.start
        return survey(step, self.pieces(start, start + tensor.nbytes))

    def check_unchanged(self) -> None:
        """Raise FileFormatError if this is no longer the file whose header was read."""
        status = os.fstat(self._file.fileno())
        if (status.st_size, status.st_mtime_ns) != (self._source.size, self._source.modified_ns):
            raise FileFormatError(self._source.path, "changed while it was read", "run it again")

    def _kernel_copy(self, start: int, end: int, target: FileIO) -> int:
        """Copy as much of a range as the kernel will; returns where it stopped."""
        position = start
        while position < end and hasattr(os, "copy_file_range"):
            try:
                count = os.copy_file_range(self._file.fileno(), target.fileno(), end - position, offset_src=position)
            except OSError as error:
                if error.errno in _NO_KERNEL_COPY:
                    break
                raise
            if not count:
                break
            position += count
        return position

    def _read_into(self, view: memoryview) -> None:
        while view:
            try:
                count = self._file.readinto(view)
            except OSError as error:
                raise self._unreadable(error) from error
            if not count:
                raise FileFormatError(self._source.path, "became shorter while it was read", "run it again")
            view = view[count:]

    def _unreadable(self, error: OSError) -> FileFormatError:
        return FileFormatError(self._source.path, f"cannot be read: {error.strerror}", "check the disk and permissions")
