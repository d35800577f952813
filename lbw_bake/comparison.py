"""What a bake really did: two files compared module by module, and with what the second one says of itself.

The weight a module got is the least-squares ratio of the two updates, <original, baked> / <original, original>;
the error is how far the baked update is from exactly that multiple, relative to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .algorithms import ADDITIVE
from .alphas import scales_of
from .arguments import AnyPath
from .errors import LbwError, NotALoraError, NotBakeableError
from .families import FAMILIES, OTHER, Family, Place
from .keys import lora_stem
from .lora import Lora, read_lora
from .metadata import records_in
from .modules import Module
from .remade import bake_module
from .scaling import FLOATS
from .tensordata import TensorData
from .tensorfile import Tensor
from .updates import MISFIT, Read, Scale, arrays_of, inner, measurable, unread
from .weights import FamilyWeights, Options, parse_element

# How far a module may be from what the record says: rounding to bfloat16 errs by 2e-3, to float8 by more.
_TOLERANCE = {"F64": 1e-4, "F32": 1e-4, "F16": 2e-3, "BF16": 1e-2}
_COARSE = 0.1

# Records of more than weights: what was merged has other parts too, what was truncated lost some of its own.
_UNVERIFIABLE = {"merged", "rank"}


@dataclass(frozen=True, slots=True)
class Share:
    """Inner products of an original update with itself and with the baked one, and of the baked one with itself."""

    original: float = 0.0
    both: float = 0.0
    baked: float = 0.0

    def __add__(self, other: Share) -> Share:
        return Share(self.original + other.original, self.both + other.both, self.baked + other.baked)

    @property
    def weight(self) -> float | None:
        """The least-squares weight, None if the original update is zero."""
        return self.both / self.original if self.original else None

    @property
    def error(self) -> float | None:
        """Relative distance of the baked update from exactly that multiple of the original, 1 from none at all."""
        if not self.original:
            return 1.0 if self.baked else None
        rest = max(self.baked - self.both / self.original * self.both, 0.0)
        return math.sqrt(rest / self.baked) if self.baked else 0.0


@dataclass(frozen=True, slots=True)
class MetadataChanges:
    """What became of the metadata: keys and values added and removed, and of those changed the old and the new."""

    added: Mapping[str, str]
    removed: Mapping[str, str]
    changed: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two files compared. `shares` holds the modules that could be measured, the lists the names of the others.

    `altered` are tensors of no module that are not the same bytes in both files, or in one of them only.
    """

    original: Lora
    baked: Lora
    family: Family
    shares: Mapping[str, tuple[Module, Place, Share]] = field(repr=False)
    added: tuple[str, ...]
    removed: tuple[str, ...]
    unmeasured: tuple[str, ...]
    altered: tuple[str, ...]
    contradictions: tuple[str, ...] | None

    @property
    def matches_record(self) -> bool | None:
        """Whether every module got what the record says, None if there is no record or no way to tell."""
        return None if self.contradictions is None else not self.contradictions

    @property
    def metadata(self) -> MetadataChanges:
        """What became of the metadata."""
        # Sorted, because writers that hash their keys leave them in an order of chance.
        old, new = (dict(sorted(lora.file.metadata.items())) for lora in (self.original, self.baked))
        return MetadataChanges(
            {key: value for key, value in new.items() if key not in old},
            {key: value for key, value in old.items() if key not in new},
            {key: (old[key], value) for key, value in new.items() if key in old and old[key] != value},
        )

    @property
    def blocks(self) -> dict[str, tuple[Share, int]]:
        """Block -> its modules' inner products summed, and how many they are, in the family's order."""
        by_block: dict[str, list[Share]] = {block: [] for block in (*self.family.blocks, OTHER)}
        for _, place, share in self.shares.values():
            by_block[place.block].append(share)
        return {block: (sum(shares, Share()), len(shares)) for block, shares in by_block.items() if shares}


def diff(original: AnyPath, baked: AnyPath, *, family: Family | str | None = None) -> Comparison:
    """Measure the weight every block of `baked` got, by any tool, and hold the file to its record if it has one.

    Raises FileFormatError, UnknownFamilyError, and NotALoraError also where the files have no module in common.
    """
    original, baked = Path(original), Path(baked)
    one = read_lora(original, family)
    two = read_lora(baked, family or one.candidates[0])
    known = one.candidates[0]
    old = {module.name: (module, place) for module, place in one.placed(known)}
    new = {module.name: module for module, _ in two.placed(known)}
    if not old.keys() & new.keys():
        raise NotALoraError(baked, f"has no module in common with {original}", "compare a LoRA with what became of it")
    shares: dict[str, tuple[Module, Place, Share]] = {}
    # A file baked elsewhere has left PEFT's configuration behind; its loader will be given it. What was merged or
    # truncated has it in its numbers.
    beside = () if _is_unverifiable(records_in(two.file.metadata)) else (original.parent,)
    scales = scales_of(one), scales_of(two, *beside)
    with TensorData(one.file) as a, TensorData(two.file) as b:
        for name, (module, place) in old.items():
            if share := _share(module, new.get(name), (a.read, b.read), scales):
                shares[name] = (module, place, share)
        altered = _altered(one, two, known, a, b)
        contradictions = _contradictions(one, two, known, shares, altered, partial(_is_baked, a=a, b=b))
    return Comparison(
        one,
        two,
        known,
        shares,
        tuple(name for name in new if name not in old),
        tuple(name for name in old if name not in new),
        tuple(name for name in old if name not in shares),
        altered,
        contradictions,
    )


def _share(module: Module, other: Module | None, reads: tuple[Read, Read], scales: tuple[Scale, Scale]) -> Share | None:
    """The inner products of two modules' updates, None where the files do not tell them."""
    alike = other is None or (module.linear and other.linear and other.algorithm is module.algorithm)
    if not alike or not measurable(module):
        return None
    try:
        a, scale = arrays_of(module, reads[0]), scales[0](module, reads[0])
        share = Share(inner(module, a, a, scale**2))
        if other is not None:
            b, by = arrays_of(other, reads[1]), scales[1](other, reads[1])
            if (a.keys() ^ b.keys()) - {*ADDITIVE}:  # factors of other forms: LoKr's are whole or products themselves
                return None
            share = Share(share.original, inner(module, a, b, scale * by), inner(module, b, b, by**2))
    except MISFIT:  # shapes of another layer too
        return None
    return share if all(map(math.isfinite, (share.original, share.both, share.baked))) else None


def _altered(one: Lora, two: Lora, family: Family, a: TensorData, b: TensorData) -> tuple[str, ...]:
    """The names of tensors that every bake copies and that are not the same in both files."""
    old, new = ({tensor.name: tensor for tensor in lora.loose(family)} for lora in (one, two))
    ours, theirs = ({tensor.name: tensor for tensor in _integers(lora)} for lora in (one, two))
    old |= {name: tensor for name, tensor in ours.items() if name in theirs}  # modules may be made anew, and removed
    new |= {name: tensor for name, tensor in theirs.items() if name in ours}
    both = ((name, tensor, new[name]) for name, tensor in old.items() if name in new)
    same = {
        name
        for name, first, second in both
        if _are_alike(first, second) and all(map(np.array_equal, a.pieces(first), b.pieces(second)))
    }
    return tuple(name for name in old | new if name not in same)


def _are_alike(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape)


def _integers(lora: Lora) -> Iterator[Tensor]:
    """Tensors of modules that hold no floats."""
    tensors = (tensor for module in lora.grouping.modules for tensor in module.all_tensors)
    return (tensor for tensor in tensors if tensor.dtype not in FLOATS)


def _contradictions(
    original: Lora,
    baked: Lora,
    family: Family,
    shares: Mapping[str, tuple[Module, Place, Share]],
    altered: Iterable[str],
    is_baked: Callable[[Module, Module, float], bool],
) -> tuple[str, ...] | None:
    """What the records that were added say, against what was measured.

    None if none was added, or nobody can tell without the base model. What was measured is off where 16 bits leave
    small numbers few digits, and says little of modules that hold more than a product: `is_baked` knows a module as it
    is.
    """
    records = records_in(baked.file.metadata)[len(records_in(original.file.metadata)) :]
    if not records or _is_unverifiable(records):
        return None
    try:
        bakes = [_recorded_weights(record, original) for record in records]
    except (LbwError, TypeError, ValueError, OverflowError, KeyError, AttributeError):
        return ("its lbw_bake record cannot be read",)
    written = {module.name: module for module in baked.grouping.modules}
    # What each may be called by now: a bake may have made it a full difference.
    known = {module.name: (module.name, lora_stem(module.name)) for module in original.grouping.modules}
    new = written.keys() - {name for names in known.values() for name in names}
    found = [f"{name} was added, of which its record says nothing" for name in written if name in new]
    found += [f"{name} is not what it was, of which its record says nothing" for name in altered]
    said_of = {name: math.prod(weights.get(name, 1.0) for weights in bakes) for name in known}
    gone = (name for name, names in known.items() if written.keys().isdisjoint(names))
    found += [f"{name} was removed, its record says {said_of[name]:.4g}" for name in gone if said_of[name]]
    unknown = False
    for module, _ in original.placed(family):
        name, said = module.name, said_of[module.name]
        if (now := written.get(name)) is None:  # or has another name, and is no longer to be measured
            continue
        share = shares[name][2] if name in shares else None
        agrees = share is not None and _agrees(share, said, now)
        plain = module.linear or said in (0.0, 1.0)
        if (agrees and not unread(now)) or (plain and is_baked(module, now, said)):
            continue
        if share and not agrees:
            got = None if share.weight is None else f"got {share.weight:.4g}, its record says {said:.4g}"
            found.append(f"{name} {got or 'was zero, and is not now'}")
        elif plain and (len(bakes) == 1 or said in (0.0, 1.0)):
            found.append(f"{name} is not what a weight of {said:.4g} makes of it")
        else:
            unknown = True
    return None if unknown and not found else tuple(found)


def _is_unverifiable(records: Iterable[Any]) -> bool:
    return any(isinstance(record, dict) and record.keys() & _UNVERIFIABLE for record in records)


def _agrees(share: Share, said: float, written: Module) -> bool:
    if share.weight is None:
        return not share.baked
    dtypes = {tensor.dtype for tensor in written.all_tensors} & FLOATS
    tolerance = max((_TOLERANCE.get(dtype, _COARSE) for dtype in dtypes), default=_COARSE)
    error = share.error or 0.0
    return abs(share.weight - said) <= tolerance * max(abs(said), tolerance) and error <= tolerance


def _is_baked(module: Module, written: Module, weight: float, a: TensorData, b: TensorData) -> bool:
    """Whether a module is, bit for bit, what a bake at the weight writes, in its own dtypes or in one of those it has.

    `a` and `b` have the original's data and the written one's.
    """
    there = {tensor.name: tensor for tensor in written.all_tensors}
    dtypes = sorted({tensor.dtype for tensor in there.values()} & FLOATS)
    return any(_is_baked_to(dtype, module, there, weight, a, b) for dtype in (None, *dtypes))


def _is_baked_to(
    dtype: str | None, module: Module, there: Mapping[str, Tensor], weight: float, a: TensorData, b: TensorData
) -> bool:
    try:
        wanted = bake_module(module, weight, dtype, a)
    except NotBakeableError:
        return False
    if {tensor.name for tensor, _ in wanted} != there.keys():
        return False
    pairs = ((tensor, pieces, there[tensor.name]) for tensor, pieces in wanted)
    return all(
        _are_alike(tensor, got) and b"".join(map(bytes, pieces)) == b"".join(map(bytes, b.pieces(got)))
        for tensor, pieces, got in pairs
    )


def _recorded_weights(record: Mapping[str, Any], lora: Lora) -> dict[str, float]:
    """Module -> weight, as the record's family has it."""
    family = FAMILIES.get(record["family"], lora.candidates[0])
    blocks = {block: float(record["weights"][block]) for block in (*family.blocks, OTHER)}
    elements = tuple(map(parse_element, record["elements"]))
    strength, te, unet = (float(record[name]) for name in ("strength", "te", "unet"))
    weights = FamilyWeights(family, blocks, options=Options(strength, te, unet, elements=elements))
    return {module.name: weights.of(place, module.path) for module, place in lora.placed(family)}
