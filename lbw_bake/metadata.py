"""Metadata of the output: the record of the bake, and the entries of trainers that would otherwise become lies.

Sources: kohya-ss/sd-scripts writes `ss_*`, `sshs_*` and `modelspec.*`; web UIs read them as said at each entry.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from . import __version__
from .lora import Lora
from .tensorfile import Header
from .weights import FamilyWeights

RECORD = "lbw_bake"
_DATA_HASH, _LEGACY_HASH, _SPEC_HASH = "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"
_HASHES = (_DATA_HASH, _LEGACY_HASH, _SPEC_HASH)
_LEGACY_WINDOW = range(0x100000, 0x110000)
_ALIAS, _BASE_MODEL, _V2 = "ss_output_name", "ss_base_model_version", "ss_v2"


def record_of(lora: Lora, weights: FamilyWeights, preset: str | None) -> dict[str, Any]:
    """What was baked, in block names and numbers: enough to do it again, and the same every time.

    The family is the one the weights were read by; a file that fits others too says so.
    """
    options = weights.options
    several = {"candidates": [family.name for family in lora.candidates]} if lora.family is None else {}
    return {
        "version": __version__,
        "family": weights.family.name,
        **several,
        "preset": preset,
        "weights": dict(weights.blocks),
        "strength": options.strength,
        "te": options.te,
        "unet": options.unet,
        "elements": [str(element) for element in options.elements],
        "seed": options.seed,
        "source": as_text(lora.file.path.name),
    }


def records_in(metadata: Mapping[str, str]) -> list[Any]:
    """The records of earlier bakes, oldest first; what is not JSON is kept as the text it is."""
    if RECORD not in metadata:
        return []
    try:
        earlier = json.loads(metadata[RECORD])
    except (ValueError, RecursionError):
        earlier = metadata[RECORD]
    return earlier if isinstance(earlier, list) else [earlier]


def baked_metadata(lora: Lora, record: Mapping[str, Any], stem: str, *, update: bool) -> dict[str, str]:
    """The output's metadata, but for the hashes of its data (see `DataHashes`).

    With `update`, the alias becomes the output's stem (two files with one alias are both refused by A1111), and
    a missing base model version is added if the family is certain (A1111 takes metadata without it for SD1, and
    hides the file from users of others; it tells SD2 by `ss_v2`). Without it only the record is added.
    """
    metadata = dict(lora.file.metadata)
    records = [*records_in(metadata), record]
    metadata[RECORD] = json.dumps(records if len(records) > 1 else record, ensure_ascii=False)
    if update:
        if _ALIAS in metadata:
            metadata[_ALIAS] = as_text(stem)
        family = lora.family
        if _BASE_MODEL not in metadata and family and family.base_model and not lora.doubt(family):
            metadata[_BASE_MODEL] = family.base_model
            if family.name == "sd2":
                metadata.setdefault(_V2, "True")
    return metadata


def as_text(name: str) -> str:
    """A file's name as metadata and JSON can hold it: names are bytes to some systems, and not always UTF-8."""
    return os.fsencode(name).decode(errors="replace")


def without_hashes(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata, but for the hashes of the tensor data."""
    return {name: value for name, value in metadata.items() if name not in _HASHES}


def stale_hashes(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata holds hashes of the tensor data."""
    return any(name in metadata for name in _HASHES)


class DataHashes:
    """The hashes of a data section, fed in order while it is written.

    `sshs_model_hash` is the SHA-256 of the data section. `sshs_legacy_hash` is 8 digits of the SHA-256 of bytes
    0x100000 to 0x110000 of a serialisation that carries only the `ss_*` metadata, so its window is moved by the
    length of that header. `modelspec.hash_sha256` is taken over the tensors in file order.
    """

    def __init__(self, header: Header, metadata: Mapping[str, str]) -> None:
        import hashlib  # takes 4 ms, and most bakes need none

        self._metadata = metadata
        self._data = hashlib.sha256()
        self._legacy = hashlib.sha256()
        trained = {name: value for name, value in metadata.items() if name.startswith("ss_")}
        before = header.encode(trained)
        self._legacy.update(before[_LEGACY_WINDOW.start : _LEGACY_WINDOW.stop])
        self._position = len(before)

    def update(self, data: memoryview) -> None:
        """Take in the next bytes of the data section."""
        self._data.update(data)
        start = max(_LEGACY_WINDOW.start - self._position, 0)
        stop = max(_LEGACY_WINDOW.stop - self._position, 0)
        self._legacy.update(data[start:stop])
        self._position += len(data)

    def metadata(self) -> dict[str, str]:
        """The metadata, with hashes of what was taken in so far; its length never changes."""
        digest = self._data.hexdigest()
        true = {_DATA_HASH: digest, _LEGACY_HASH: self._legacy.hexdigest()[:8], _SPEC_HASH: f"0x{digest}"}
        return {name: true.get(name, value) for name, value in self._metadata.items()}
