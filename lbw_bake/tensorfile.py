"""safetensors files as values: header in, header out, byte ranges between; tensor data is never loaded here.

A file is 8 bytes of header length (little-endian), the JSON header, and the data section. The safetensors
library judges whether a header is valid; we read it a second time because the library gives neither the order
of the entries nor their byte ranges.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import FileFormatError, reading_hint
from .progress import Progress

SUFFIX = ".safetensors"
_LENGTH_BYTES = 8
_ALIGNMENT = 8

# Bytes after which progress is told.
_TOLD = 1 << 24

# The format's own limit, in bytes.
LONGEST_HEADER = 100_000_000
# JSON values a header may hold. A file needs 8 for each of its tensors, so this is a quarter of a million tensors,
# ten times what the largest checkpoint has. Within 100 MB fit so many that reading them takes gigabytes.
MOST_VALUES = 2_000_000

# How many lists of tensors are remembered, with what was made of each: files of a folder often have the same one. And
# how many bytes a header may have for that: what is made of it takes seven times as many. LoRAs have 300,000 or so.
ALIKE = 4
_MEMORABLE = 1_000_000

# How the library's writer begins a header that has metadata, which differ from file to file.
_METADATA = "__metadata__"
_BEGINNING = f'{{"{_METADATA}":{{'


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
    tensors: tuple[Tensor, ...] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    data_start: int
    size: int
    modified_ns: int

    @property
    def memorable(self) -> bool:
        """Whether what is made of its list of tensors may be remembered for other files."""
        return self.data_start <= _MEMORABLE

    def passed(self, progress: Progress) -> Iterator[Tensor]:
        """The tensors as they lie in the file; tells the share of its bytes that is behind."""
        told = 0
        for tensor in in_data_order(self.tensors):
            if tensor.start - told >= _TOLD:
                told = tensor.start
                progress(told / self.size)
            yield tensor


def in_data_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Tensors as they lie in the file, which need not be the order its header lists them in."""
    return sorted(tensors, key=lambda tensor: (tensor.start, tensor.end))


def read_header(path: Path) -> TensorFile:
    """Read and judge the header of a safetensors file.

    Raises FileFormatError for anything that cannot be read as one, naming the violation.
    """
    status = _regular_file(path)
    try:
        with path.open("rb") as file:
            first = file.read(_LENGTH_BYTES)
            length = int.from_bytes(first, "little")
            header = file.read(length) if length <= LONGEST_HEADER else b""
        _check_size(path, header)
        _judge(path, first)
        metadata, tensors = _parsed(header)
    except OSError as error:
        raise FileFormatError(path, f"cannot be read: {error.strerror}", reading_hint(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(path, f"the header cannot be read: {error}", _AGAIN) from error
    return TensorFile(path, tensors, metadata, _LENGTH_BYTES + length, status.st_size, status.st_mtime_ns)


def _check_size(path: Path, header: bytes) -> None:
    """Refuse what would take gigabytes to read, before anything reads it: every value follows one of these signs."""
    values = sum(map(header.count, (b",", b"[", b"{")))
    if values > MOST_VALUES:
        hint = f"lbw reads headers of up to {MOST_VALUES:,}"
        raise FileFormatError(path, f"its header holds {values:,} values, more than any model needs", hint)


def _parsed(header: bytes) -> tuple[Mapping[str, str], tuple[Tensor, ...]]:
    """Metadata and tensors of a header that was judged. Raises ValueError for names that are listed twice."""
    text, first = header.decode(), None
    if text.startswith(_BEGINNING):
        first, end = _JSON.raw_decode(text, len(_BEGINNING) - 1)
        text = "{" + text[end:].lstrip(", \t\r\n")
    later, tensors = (_remembered if len(text) <= _MEMORABLE else _listed)(text)
    return first or dict(later or {}), tensors  # whoever changes them changes no other reader's


def _listed(text: str) -> tuple[Mapping[str, str] | None, tuple[Tensor, ...]]:
    """The metadata, if they are among them, and the tensors that a JSON object lists. Raises as `_parsed` does."""
    entries = _JSON.decode(text)
    metadata = entries.pop(_METADATA, None)
    return metadata, tuple(
        Tensor(name, entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"]) for name, entry in entries.items()
    )


class Header:
    """The header of a file to be written: entries for its tensors, encoded once, and metadata that may change."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        entries = {
            tensor.name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (tensor.start, tensor.end)}
            for tensor in tensors
        }
        self._entries = _json(entries)

    def encode(self, metadata: Mapping[str, str]) -> bytes:
        """The bytes that precede the data section, padded with spaces to a multiple of 8.

        Metadata come first, even where there are none, as the library's own writer has it.
        """
        comma = "" if self._entries == "{}" else ","
        text = f'{{"__metadata__":{_json(dict(metadata))}{comma}{self._entries[1:]}'.encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _json(value: Any) -> str:
    # Escaping only what JSON must keeps the length what the library's own writer would give it.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _regular_file(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise FileFormatError(path, "no such file", reading_hint(error)) from None
    except OSError as error:
        raise FileFormatError(path, f"cannot be read: {error.strerror}", reading_hint(error)) from error
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
        raise FileFormatError(path, f"is {what}, not a file", "give a LoRA file")
    return status


_AGAIN, _CONVERT = "download or copy it again", "convert it to safetensors first"

# First bytes of what people mistake for a safetensors file. They can also be the length of a valid header.
_MAGIC = {
    b"PK\x03\x04": ("a zip archive (a PyTorch checkpoint?)", _CONVERT),
    **{bytes((0x80, protocol)): ("a Python pickle", _CONVERT) for protocol in (2, 3, 4, 5)},
    b"GGUF": ("a GGUF file", _CONVERT),
    b"version ": ("a Git LFS pointer", "fetch the file it points to with git lfs pull"),
    **dict.fromkeys((b"<!DOCTYP", b"<!doctyp", b"<html"), ("a web page", "download the file itself")),
}

_UNKNOWN_DTYPE = re.compile("unknown variant `([^`]*)`")
_UPGRADE = "a newer safetensors may know it: pip install --upgrade safetensors"

# What the library says in its own terms, in the user's.
_REASONS = {
    "header too small": "it is shorter than the 8 bytes every file begins with",
    "header too large": f"it says its header is longer than {LONGEST_HEADER // 10**6} MB",
    "invalid header length": "it ends before its header does",
    "invalid header start": "its header does not begin with {",
    "incomplete metadata, file not fully covered": "its data is longer or shorter than its tensors together",
    "invalid shape, data type, or offset for tensor": "a tensor's bytes are not as many as its shape and dtype need",
    "overflow computing buffer size from shape and/or element type": "a tensor's shape is larger than any file",
    "invalid offset for tensor": "tensors overlap, leave a gap or end before they start; the first is",
}


def _judge(path: Path, first: bytes) -> None:
    """Have the safetensors library check the header: lengths, JSON, ranges, dtypes, gaps. Raises FileFormatError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        for magic, (what, hint) in _MAGIC.items():
            if first.startswith(magic):
                raise FileFormatError(path, f"is {what}, not a safetensors file", hint) from error
        if unknown := _UNKNOWN_DTYPE.search(str(error)):
            raise FileFormatError(path, f"holds numbers of an unknown dtype, {unknown[1]}", _UPGRADE) from error
        raise FileFormatError(path, f"not a valid safetensors file: {_reason(str(error))}", _AGAIN) from error


def _reason(said: str) -> str:
    said = said.removeprefix("Error while deserializing header: ")
    known = next((start for start in _REASONS if said.startswith(start)), "")
    return _REASONS.get(known, "") + said.removeprefix(known)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{twice!r} is listed twice")
    return entries


_JSON = json.JSONDecoder(object_pairs_hook=_without_duplicates)
_remembered = lru_cache(maxsize=ALIKE)(_listed)
