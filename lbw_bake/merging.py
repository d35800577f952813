"""Several LoRAs as one whose update is the exact sum: ranks side by side, one alpha for the whole file.

    sum of r_i s_i U_i D_i  =  [g_1 U_1 | g_2 U_2 | ...] [D_1; D_2; ...] x alpha / R,   g_i = r_i s_i R / alpha

with r_i the weight of the module's block in file i, s_i its alpha / rank and R the sum of ranks. One alpha, because
diffusers gives all attention modules the most common one. Differences, norms and biases add.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from .algorithms import ADDITIVE, INSIDE
from .alphas import ADAPTER_METADATA, CONFIG, known_alpha, scales_of
from .atomic import atomic_write, check_output, write_all
from .cuda import algebra_device
from .edits import fitting
from .errors import NotBakeableError, OutputError, StrictError, UnknownFamilyError
from .factors import carriers_of
from .families import Place
from .lora import Lora, read_lora
from .lowrank import FORMS, LowRank, concatenate, factored, truncate
from .metadata import DataHashes, baked_metadata, record_of, records_in
from .modules import Module, group_modules
from .planning import agree
from .remedies import Means, Remedies
from .scaling import FLOAT8, FLOATS, numpy_dtype, round_to
from .sources import Weights
from .tables import counted
from .tensordata import PIECE, TensorData
from .tensorfile import Header, Tensor, read_header
from .updates import Array, Read, arrays_of, flat
from .weights import FamilyWeights

# What a half of 0.01 % is: less is not worth a word.
_ROUNDING = 5e-5


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a merge, with its weights; the preset's name, if they come from one, and what is said of its file."""

    lora: Lora
    weights: FamilyWeights
    preset: str | None = None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did, or would do: bytes of the file, how many modules it has, and the distinct ranks of these.

    `errors` are the relative distances of truncation by block, empty without `rank`; `left_out` names the tensors of
    several inputs that belong to no module.
    """

    nbytes: int
    modules: int
    ranks: tuple[int, ...]
    errors: Mapping[str, float]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def losses(self) -> tuple[str, ...]:
        """What truncation lost of each block, where it is more than rounding."""
        to = f"truncated to rank {max(self.ranks, default=0)}"
        return tuple(f"{to}, {block} lost {lost:.2%}" for block, lost in self.errors.items() if lost > _ROUNDING)


def read_parts(loras: Iterable[tuple[Path, Weights]], family: str | None = None) -> list[Part]:
    """Read the headers and settle the weights of what is to be merged.

    Raises FileFormatError, WeightError, PresetError, UnknownFamilyError if no family fits all of the files.
    """
    read = [(read_lora(path, family), weights) for path, weights in loras]
    common = read[0][0].candidates
    for lora, _ in read:
        shared = tuple(candidate for candidate in common if candidate in lora.candidates)
        if not shared:
            kinds = [" or ".join(each.name for each in families) for families in (common, lora.candidates)]
            raise UnknownFamilyError(
                f"{lora.file.path} is {kinds[1]}, {read[0][0].file.path} is {kinds[0]}: different models do not add up",
                "merge LoRAs of one family; --family names it where it is told wrong",
            )
        common = shared
    alike = ((replace(lora, candidates=common), weights) for lora, weights in read)
    return [Part(lora, agree(lora, weights.for_family), weights.preset, weights.remark) for lora, weights in alike]


@dataclass(frozen=True, slots=True)
class _Addend:
    """One file's module of a layer: its weight, where to read it, and what loaders multiply it by (alpha / rank).

    `dense` makes the whole update of a module whose factors do not tell it: DoRA and OFT on their base model.
    """

    module: Module
    weight: float
    read: Read
    scale: float
    dense: Callable[[Read], Array] | None = None

    @property
    def kind(self) -> str:
        """The algorithm it adds up as."""
        return "full" if self.dense else self.module.algorithm.name


@dataclass(frozen=True, slots=True)
class _Layer:
    """All modules of one name, in the order of the files."""

    stem: str
    place: Place
    addends: list[_Addend]


def merge_parts(
    parts: Sequence[Part],
    output: Path,
    *,
    rank: int | None = None,
    dtype: str | None = None,
    device: str = "auto",
    replace: bool = False,
    means: Means | None = None,
    strict: bool = False,
    dry_run: bool = False,
) -> Merged:
    """Write the sum of several LoRAs of one family and key spelling; metadata are those of the first.

    `rank` truncates every product and full difference to that rank; `dtype` (`F16`) is what is stored, by default what
    the first file stores; `means` name the base model, on which DoRA and OFT add up as full differences. One file
    alone keeps the tensors that belong to no module. `dry_run` computes all of it and writes nothing. Raises
    NotBakeableError for modules that do not add (DoRA and OFT without it, GLoRA with another kind), OutputError,
    DeviceError, and with `strict` StrictError for warnings and for what truncation lost.
    """
    check_output(output, [part.lora.file.path for part in parts], replace=replace)
    if device == "cuda":
        algebra_device(device)  # one that is not there is better said now than once it is needed, or never
    _check_spellings(parts)
    stored = dtype or _stored_dtype(parts[0].lora)
    alpha = _alpha(parts, rank)
    means = means or Means()
    lost: dict[str, list[tuple[float, float]]] = defaultdict(list)
    tensors: list[Tensor] = []
    with ExitStack() as files:
        inputs = [files.enter_context(TensorData(part.lora.file)) for part in parts]
        spool = None if dry_run else files.enter_context(_temporary(output))
        layers = _layers(parts, [data.read for data in inputs], means)
        for layer in layers:
            with fitting(layer.stem), np.errstate(all="ignore"):
                added = _add(layer, alpha, rank, device, lost[layer.place.block])
            for name, array in added.items():
                tensors.append(_spool(spool, name, array, stored, tensors[-1].end if tensors else 0))
        for tensor in _strays(parts[0]) if len(parts) == 1 else ():
            tensors.append(_copied(spool, tensor, inputs[0], tensors[-1].end if tensors else 0))
        for data in inputs:
            data.check_unchanged()
        header, hashes = _head(parts, output.stem, tensors, rank=rank, means=means)
        nbytes = len(header.encode(hashes.metadata())) + (tensors[-1].end if tensors else 0)
        ranks = {module.rank for module in group_modules(tensors).modules if module.rank}
        left_out = [(part, _strays(part)) for part in parts] if len(parts) > 1 else []
        warnings = tuple(_warnings(parts, layers, left_out))
        names = tuple(tensor.name for _, strays in left_out for tensor in strays)
        merged = Merged(nbytes, len(layers), tuple(sorted(ranks)), _by_block(lost), names, warnings)
        if strict and (merged.warnings or merged.losses):
            raise StrictError(parts[0].lora.file.path if len(parts) == 1 else output, merged.warnings + merged.losses)
        if spool:
            _write(output, header, hashes, spool, replace=replace)
    return merged


@contextmanager
def _temporary(output: Path) -> Iterator[IO[bytes]]:
    """A file without a name, beside the output, for data whose header is not known yet. Raises OutputError."""
    try:
        with TemporaryFile(dir=output.parent) as spool:
            yield spool
    except OSError as error:
        raise OutputError(
            f"{output}: cannot be written: {error.strerror}", "make room, or choose another place"
        ) from error


def _layers(parts: Sequence[Part], reads: Sequence[Read], means: Means) -> list[_Layer]:
    layers: dict[str, _Layer] = {}
    for part, read in zip(parts, reads, strict=True):
        remedies = Remedies(part.lora, part.weights, means, read)
        scale_of = scales_of(part.lora)
        for module, place in part.lora.placed(part.weights.family):
            whole = not module.linear or bool(module.algorithm.matrices)
            dense = remedies.difference(module, place) if whole else None
            if whole and dense is None:
                raise NotBakeableError(
                    f"{part.lora.file.path}: {module.name} is {module.algorithm_name}, which does not add up",
                    "DoRA and OFT do as full differences: give their base model as --base CHECKPOINT",
                )
            # `oft_unet_` is a name that only OFT has.
            stem = re.sub("^oft_", "lora_", module.name) if dense else module.name
            addend = _Addend(module, part.weights.of(place, module.path), read, scale_of(module, read), dense)
            layers.setdefault(stem, _Layer(stem, place, [])).addends.append(addend)
    return list(layers.values())


def _add(
    layer: _Layer, alpha: float | None, rank: int | None, device: str, lost: list[tuple[float, float]]
) -> dict[str, Array]:
    """The tensors of a layer's sum, by name."""
    addends = [addend for addend in layer.addends if addend.weight] or layer.addends[:1]
    kinds = {addend.kind for addend in addends}
    products = [addend for addend in addends if addend.kind in FORMS]
    if len(addends) == 1 and not rank and kinds != {"lora"} and not addends[0].dense:
        return _scaled(addends[0])
    if len(products) < len(addends) and not kinds <= {"full", "norm", "bias", "lora", "loha", "lokr"}:
        raise NotBakeableError(f"{layer.stem}: {' and '.join(sorted(kinds))} do not add up", "leave one of them out")
    forms = [_form(addend) for addend in products]
    summed = _additive(addends)
    total = None
    if forms and "full" in kinds:
        summed["diff"] = summed["diff"] + sum(form.dense().reshape(summed["diff"].shape) for form in forms)
    elif forms:
        total = concatenate(forms)
    if rank and "full" in kinds and summed["diff"].ndim > 1 and rank < min(flat(summed["diff"]).shape):
        total = factored(summed.pop("diff"))
    if rank and total:
        total = _truncated(total, rank, device, lost)
    if total and alpha is not None:  # loaders multiply these by alpha / rank with the product
        summed |= {role: summed[role] * (total.rank / alpha) for role in INSIDE if role in summed}
    named = _named(layer, addends, total, alpha) if total else {}
    return named | {_name_of(role, layer): array for role, array in summed.items()}


def _name_of(role: str, layer: _Layer) -> str:
    """What a sum that is no product is called: as in the first file that has it, or as kohya would."""
    modules = [addend.module for addend in layer.addends if not addend.dense]
    names = (module.tensors[role][0].name for module in modules if role in module.tensors)
    return next(names, f"{layer.stem}.{role}")


def _truncated(total: LowRank, rank: int, device: str, lost: list[tuple[float, float]]) -> LowRank:
    """The product at a lower rank; adds to `lost` how far that is, and the size of the whole. Raises ValueError."""
    down = flat(total.down)
    size = float(np.sqrt(((total.up.T @ total.up) * (down @ down.T)).sum()))
    total, error = truncate(total, rank, device)
    if not math.isfinite(error * size):
        raise ValueError("its numbers are too large, or not finite")
    lost.append((error * size, size))
    return total


def _form(addend: _Addend) -> LowRank:
    """A module's whole update, weight and alpha included."""
    module = addend.module
    form = FORMS[module.algorithm.name](arrays_of(module, addend.read), module.path)
    return form.times(addend.weight * addend.scale)


def _named(layer: _Layer, addends: Sequence[_Addend], total: LowRank, alpha: float | None) -> dict[str, Array]:
    """The factors of a sum under the names of the first LoRA of the layer, or kohya's."""
    lora = next((addend.module for addend in addends if addend.module.algorithm.name == "lora"), None)
    up, down = (lora.tensors[role][0].name if lora else f"{layer.stem}.lora_{role}.weight" for role in ("up", "down"))
    kernel = total.down.shape[2:]
    total = total if alpha is None else total.times(total.rank / alpha)
    named = {down: total.down, up: total.up.reshape(*total.up.shape, *(1 for _ in kernel))}
    return named if alpha is None else {**named, f"{layer.stem}.alpha": np.array(alpha)}


def _additive(addends: Sequence[_Addend]) -> dict[str, Array]:
    """The sums of what adds by itself."""
    summed: dict[str, Array] = {}
    for addend in addends:
        arrays = arrays_of(addend.module, addend.read)
        for role in (role for role in ADDITIVE if role in arrays and not (role == "diff" and addend.dense)):
            factor = addend.weight * (addend.scale if role in INSIDE else 1.0)
            summed[role] = summed.get(role, 0.0) + arrays[role] * factor
        if addend.dense:
            summed["diff"] = summed.get("diff", 0.0) + addend.dense(addend.read) * addend.weight
    return summed


def _scaled(addend: _Addend) -> dict[str, Array]:
    """A module that is in one file only, in its own algorithm: one factor of each product scaled, as in a bake."""
    module, weight = addend.module, addend.weight
    carriers = carriers_of(module, "shrink" if abs(weight) < 1 and weight else "grow")
    return {
        tensor.name: addend.read(tensor).astype(np.float64) * (weight if role in carriers else 1.0)
        for role, group in module.tensors.items()
        for tensor in group
    }


def _alpha(parts: Sequence[Part], rank: int | None) -> float | None:
    """The alpha of the whole output: the first the first file has; None if no file has any.

    Files without a product have none to follow: what truncation makes of them says what LyCORIS does not do without.
    """
    placed = ((part.lora.file, module) for part in parts for module, _ in part.lora.placed(part.weights.family))
    products = [(file, module) for file, module in placed if module.rank]
    for file, module in products:
        if "alpha" in module.tensors:
            with TensorData(file) as data:
                return abs(known_alpha(file.path, module, data.read)) or 1.0  # a negative one hangs diffusers
    return float(rank) if rank and not products else None


def _stored_dtype(lora: Lora) -> str:
    dtypes = Counter(tensor.dtype for tensor in lora.file.tensors if tensor.dtype in FLOATS and tensor.size > 1)
    dtype = max(dtypes, key=dtypes.__getitem__, default="F32")
    return "BF16" if dtype in FLOAT8 else dtype


def _spool(spool: IO[bytes] | None, name: str, array: Array, dtype: str, start: int) -> Tensor:
    """Append an array, rounded once, to the data that is to become the file's, if there is to be one."""
    rounded = round_to(np.ascontiguousarray(array), numpy_dtype(dtype))
    if not np.isfinite(array).all():
        raise NotBakeableError(
            f"{name}: the sum is not finite", "leave out what holds NaN or infinity, or use smaller weights"
        )
    if not np.isfinite(rounded.astype(np.float64)).all():
        raise NotBakeableError(f"{name}: the sum overflows {dtype}", "write wider numbers with --dtype f32")
    if spool:
        spool.write(rounded.tobytes())
    return Tensor(name, dtype, array.shape, start, start + rounded.nbytes)


def _copied(spool: IO[bytes] | None, tensor: Tensor, data: TensorData, start: int) -> Tensor:
    """Append a tensor as it is."""
    if spool:
        spool.writelines(piece.data for piece in data.pieces(tensor))
    return replace(tensor, start=start, end=start + tensor.nbytes)


def _record(parts: Sequence[Part], rank: int | None, means: Means) -> dict[str, Any]:
    records = [record_of(part.lora, part.weights, part.preset) for part in parts]
    record: dict[str, Any] = {"merged": records} if len(records) > 1 else records[0]
    record |= {"rank": rank} if rank else {}
    return record | ({"base": means.base.name} if means.base else {})


def merged_before(parts: Sequence[Part], output: Path, *, rank: int | None, dtype: str | None, means: Means) -> bool:
    """Whether the output is there, younger than the inputs, with the record of this merge and numbers of its dtype.

    Raises FileFormatError.
    """
    there = read_header(output)
    stored = dtype or _stored_dtype(parts[0].lora)
    same = records_in(there.metadata)[-1:] == [_record(parts, rank, means)]
    younger = all(part.lora.file.modified_ns <= there.modified_ns for part in parts)
    return same and younger and any(tensor.dtype == stored for tensor in there.tensors)


def _head(
    parts: Sequence[Part], stem: str, tensors: Sequence[Tensor], *, rank: int | None, means: Means
) -> tuple[Header, DataHashes]:
    """The header of a file of this stem, and its metadata, whose hashes are still to be taken."""
    metadata = baked_metadata(parts[0].lora, _record(parts, rank, means), stem, update=True)
    metadata.pop(ADAPTER_METADATA, None)
    header = Header(tensors)
    return header, DataHashes(header, metadata)


def _write(output: Path, header: Header, hashes: DataHashes, spool: IO[bytes], *, replace: bool) -> None:
    spool.seek(0)
    with atomic_write(output, replace=replace) as target:
        write_all(target, header.encode(hashes.metadata()))
        while piece := spool.read(PIECE):
            hashes.update(memoryview(piece))
            write_all(target, piece)
        target.seek(0)
        write_all(target, header.encode(hashes.metadata()))


def _by_block(lost: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """Relative distance of each block's update, from the absolute distances and norms of its modules."""
    return {
        block: math.sqrt(sum(error * error for error, _ in pairs) / total)
        for block, pairs in lost.items()
        if (total := sum(size * size for _, size in pairs))
    }


def _check_spellings(parts: Sequence[Part]) -> None:
    """Layers are matched by name, so the names must be of one kind. Raises NotBakeableError."""
    kinds = {part.lora.file.path: "." in part.lora.grouping.modules[0].name for part in parts}
    if len(set(kinds.values())) > 1:
        flat, dotted = (next(path for path, kind in kinds.items() if kind is wanted) for wanted in (False, True))
        raise NotBakeableError(
            f"{flat} names its modules as kohya does (lora_unet_...), {dotted} as diffusers or PEFT do",
            "convert one of them to the other spelling first",
        )


def _strays(part: Part) -> list[Tensor]:
    """The tensors of a file that belong to no module, or to many."""
    return [*part.lora.unknown(part.weights.family), *part.lora.grouping.shared]


def _warnings(
    parts: Sequence[Part], layers: Sequence[_Layer], left_out: Iterable[tuple[Part, Sequence[Tensor]]]
) -> Iterator[str]:
    yield from filter(None, dict.fromkeys(part.remark for part in parts))
    if len(parts) > 1 and all(len(layer.addends) == 1 for layer in layers):
        yield "the files share no module name; do they spell the same layers differently?"
    for part in parts:
        config = part.lora.file.path.with_name(CONFIG)
        if config.exists() and not any("alpha" in module.tensors for module in part.lora.grouping.modules):
            yield f"the alphas of {config} are in the numbers now: load the result without it, or they count twice"
    if any(ADAPTER_METADATA in part.lora.file.metadata for part in parts):
        yield f"{ADAPTER_METADATA} left out: its ranks and alphas are no longer those of the file"
    for part, strays in left_out:
        if strays:
            tensors = counted(len(strays), "tensor")
            yield f"{part.lora.file.path}: {tensors} of no module left out (the first is {strays[0].name})"
