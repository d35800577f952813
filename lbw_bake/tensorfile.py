"""safetensors files as values: header in, header out, byte ranges between; tensor data is never loaded here.

A file is 8 bytes of header length (little-endian), the JSON header, and the data section. The safetensors
library judges whether a header is valid; we read it a second time because the library gives neither the order
of the entries nor their byte ranges.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import FileFormatError

_LENGTH_BYTES = 8
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's entry in a header: dtype as the format spells it (`F16`), shape, byte range in the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in the data section."""
        return self.end - self.start

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file's header: its tensors in header order, its metadata, and where its data section starts."""

    path: Path
    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]
    data_start: int
    size: int
    modified_ns: int

    def in_data_order(self) -> list[Tensor]:
        """The tensors as they lie in the file, which need not be the order the header lists them in."""
        return sorted(self.tensors, key=lambda tensor: (tensor.start, tensor.end))


def read_header(path: Path) -> TensorFile:
    """Read and judge the header of a safetensors file.

    Raises FileFormatError for anything that cannot be read as one, naming the violation.
    """
    status = _regular_file(path)
    _judge(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(path, f"the header cannot be read: {error}") from error
    metadata = header.pop("__metadata__", None) or {}
    tensors = tuple(
        Tensor(name, entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"]) for name, entry in header.items()
    )
    return TensorFile(path, tensors, metadata, _LENGTH_BYTES + length, status.st_size, status.st_mtime_ns)


class Header:
    """The header of a file to be written: entries for its tensors, encoded once, and metadata that may change."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._entries = _json(
            {
                tensor.name: {
                    "dtype": tensor.dtype,
                    "shape": tensor.shape,
                    "data_offsets": (tensor.start, tensor.end),
                }
                for tensor in tensors
            }
        )

    def encode(self, metadata: Mapping[str, str]) -> bytes:
        """The bytes that precede the data section, metadata first, padded with spaces to a multiple of 8."""
        first = f'"__metadata__":{_json(dict(metadata))}{"," * (self._entries != "{}")}' if metadata else ""
        text = f"{{{first}{self._entries[1:]}".encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _json(value: Any) -> str:
    # Escaping only what JSON must keeps the length what the library's own writer would give it.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _regular_file(path: Path) -> os.stat_result:
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            path.open("rb").close()
    except FileNotFoundError:
        raise FileFormatError(path, "no such file", "check the path; quote names that hold spaces") from None
    except OSError as error:
        raise FileFormatError(path, f"cannot be read: {error.strerror}", "check its permissions") from error
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
        raise FileFormatError(path, f"is {what}, not a file", "give a LoRA file")
    return status


# First bytes of what people mistake for a safetensors file. They can also be the length of a valid header.
_MAGIC = {
    b"PK\x03\x04": "a zip archive (a PyTorch checkpoint?)",
    b"\x80\x02": "a Python pickle",
    b"GGUF": "a GGUF file",
}


def _judge(path: Path) -> None:
    """Have the safetensors library check the header: lengths, JSON, ranges, dtypes, gaps."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            first = file.read(_LENGTH_BYTES)
        for magic, what in _MAGIC.items():
            if first.startswith(magic):
                hint = "convert it to safetensors first"
                raise FileFormatError(path, f"is {what}, not a safetensors file", hint) from error
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise FileFormatError(path, f"not a valid safetensors file: {reason}", "download or copy it again") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is listed twice")
    return entries
