"""Several LoRAs as one whose update is the exact sum, layer by layer (see `addition`), and one at a lower rank.

One alpha serves the whole file, because diffusers gives all attention modules the most common one.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from .addition import Addend, Form, Layer, Sum, add
from .alphas import known_alpha, scales_of
from .atomic import atomic_write, check_output, refusals, write_all
from .configuration import ADAPTER_METADATA, CONFIG, check_origin, check_products
from .cuda import check_device
from .edits import fitting
from .errors import LbwError, NotBakeableError, StrictError, UnknownFamilyError, VariableError, WeightError
from .families import Family
from .keys import lora_stem
from .lora import Lora, read_lora
from .metadata import DataHashes, baked_metadata, record_of, records_in
from .modules import Module, group_modules
from .plan import Plan
from .planning import DTYPES, agree
from .progress import Progress, silent
from .recipes import Recipe
from .remarks import copied_untouched
from .remedies import Means, Remedies
from .scaling import FLOAT8, FLOATS, Bytes
from .sources import Weights
from .spelling import check_prefixes, spelling_of
from .tensordata import PIECE, TensorData
from .tensorfile import Header, Tensor, TensorFile, read_header
from .weights import FamilyWeights
from .words import counted

_RANK, _ALPHA = "ss_network_dim", "ss_network_alpha"

# Algorithms whose modules need tensors that belong to none of them.
_SHARING = ("vera",)

# What follows the name of a layer in those of its factors.
_KOHYAS = {"down": ".lora_down.weight", "up": ".lora_up.weight"}
_EARLY = {"down": ".lora.down.weight", "up": ".lora.up.weight"}
_PEFTS = {"down": ".lora_A.weight", "up": ".lora_B.weight"}

# Losses below this would be shown as 0.00 %.
_ROUNDING = 5e-5


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a merge, with its weights; the preset's name, if they come from one, and what is said of it."""

    lora: Lora
    weights: FamilyWeights
    preset: str | None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did, or would do: bytes of the file, its modules, their distinct ranks, the rank that was asked for.

    `errors` are the relative distances of truncation by block, empty without `rank`; `left_out` names the tensors of
    several inputs that belong to no module.
    """

    nbytes: int
    modules: int
    ranks: tuple[int, ...]
    rank: int | None
    errors: Mapping[str, float]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def losses(self) -> tuple[str, ...]:
        """What truncation lost of each block, where it is more than rounding: one line, or none."""
        lost = ", ".join(f"{block} lost {part:.2%}" for block, part in self.errors.items() if part > _ROUNDING)
        return (f"truncated to rank {self.rank}: {lost}",) if lost else ()


def read_parts(loras: Iterable[tuple[Path, Weights]], family: Family | str | None) -> list[Part]:
    """Read the headers and settle the weights of what is to be merged.

    Raises FileFormatError, WeightError, PresetError, UnknownFamilyError if no family fits all of the files.
    """
    read = [(read_lora(path, family), weights) for path, weights in loras]
    if not read:
        raise LbwError("there is nothing to merge", "name a LoRA at least")
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
    parts = []
    for lora, weights in read:
        alike = replace(lora, candidates=common)
        try:
            agreed = agree(alike, weights.for_family)
        except VariableError as error:
            raise error.where({}).about(lora.file.path) from None
        except WeightError as error:
            raise error.about(lora.file.path) from None
        said = weights.remarks(agreed.family)
        if len(read) == 1 and (untouched := copied_untouched(alike, agreed.family)):
            said.append(untouched)
        parts.append(Part(alike, agreed, weights.preset, tuple(said)))
    return parts


def merge_parts(
    parts: Sequence[Part], output: Path | None, how: Recipe, progress: Progress = silent, remarks: Sequence[str] = ()
) -> Merged:
    """Write the sum of several LoRAs of one family; names of layers and metadata are those of the first that has them.

    Of the recipe, weights and the options of a bake alone say nothing here. Floats are stored as the first file stores
    those of the layer, or most of its own, unless the recipe says otherwise. One file alone keeps the tensors that
    belong to no module. A dry run computes all of it and writes nothing, for which it needs no output. `progress` is
    told of every layer; `remarks` are warnings that there are already. Raises NotBakeableError for modules that do not
    add (DoRA and OFT without their base model, GLoRA with another kind), OutputError, DeviceError, StrictError.
    """
    first = parts[0].lora.file.path
    if output:
        check_output(output, [part.lora.file.path for part in parts], replace=how.replace, model=how.model)
    check_device(how.device)
    suffixes, like = _suffixes(parts)
    form = Form(DTYPES[how.dtype], _alpha(parts, how.rank, like), how.rank, how.device, suffixes, like)
    with ExitStack() as files:
        inputs = [files.enter_context(TensorData(part.lora.file)) for part in parts]
        spool = _Spool()
        if output and not how.dry_run:
            files.enter_context(refusals(output))
            # Without a name, beside the output, for data whose header is not known yet.
            spool = _Spool(files.enter_context(TemporaryFile(dir=output.parent)))
        layers = _layers(parts, inputs, how)
        sums = []
        for layer in layers:
            with fitting(layer.stem), np.errstate(all="ignore"):
                summed = add(layer, form)
                for made in summed.tensors:
                    spool.put(*made)
            sums.append(summed)
            progress(len(sums) / len(layers))
        left_out = [(part, part.lora.loose(part.weights.family)) for part in parts]
        if len(parts) == 1:
            _, loose = left_out.pop()
            for tensor in loose:
                spool.put(tensor, inputs[0].pieces(tensor))
        for data in inputs:
            data.check_unchanged()
        ranks = _ranks(spool.tensors)
        header, hashes = _head(parts, (output or first).stem, spool.tensors, _trained(ranks, form.alpha), how)
        nbytes = len(header.encode(hashes.metadata())) + spool.end
        names = tuple(tensor.name for _, loose in left_out for tensor in loose)
        warnings = (
            *remarks,
            *_warnings(parts, layers, left_out),
            *_unloaded(parts, spool.tensors),
            *_uneven(parts, ranks, form.alpha),
            *(_untruncated(sums, how.rank) if how.rank else ()),
        )
        merged = Merged(nbytes, len(layers), ranks, how.rank, _by_block(layers, sums), names, warnings)
        if how.strict and (merged.warnings or merged.losses):
            raise StrictError(output if output and len(parts) > 1 else first, merged.warnings + merged.losses)
        if output and spool.file:
            _write(output, header, hashes, spool.file, replace=how.replace)
    return merged


def truncate_file(
    plan: Plan, preset: str | None, output: Path | None, how: Recipe, progress: Progress = silent
) -> Merged:
    """Write the file that a plan is for at the rank of the recipe: the merge of it alone. Raises as `merge_parts`."""
    return merge_parts([Part(plan.lora, plan.weights, preset)], output, how, progress)


def truncated_before(plan: Plan, preset: str | None, output: Path, how: Recipe) -> bool:
    """Whether the output is there, younger than the input, with the record of this truncation and its dtype.

    Raises FileFormatError.
    """
    there, file = read_header(output), plan.lora.file
    stored = DTYPES[how.dtype] or _common_dtype(file.tensors)
    same = records_in(there.metadata)[-1:] == [_record([Part(plan.lora, plan.weights, preset)], how)]
    config = file.path.with_name(CONFIG)
    younger = max(file.modified_ns, config.stat().st_mtime_ns if config.exists() else 0) <= there.modified_ns
    return same and younger and any(tensor.dtype == stored for tensor in there.tensors if tensor.size > 1)


@dataclass(slots=True)
class _Spool:
    """Collects tensors one after the other; their data go to a temporary file, if there is one."""

    file: IO[bytes] | None = None
    tensors: list[Tensor] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Bytes of all data so far."""
        return self.tensors[-1].end if self.tensors else 0

    def put(self, tensor: Tensor, pieces: Iterable[Bytes]) -> None:
        """Append a tensor. Its data are computed in a dry run too, because that may fail."""
        for piece in pieces:
            if self.file:
                self.file.write(piece.data)
        self.tensors.append(replace(tensor, start=self.end, end=self.end + tensor.nbytes))


def _layers(parts: Sequence[Part], inputs: Sequence[TensorData], how: Recipe) -> list[Layer]:
    layers: dict[object, Layer] = {}
    placed = [(part.lora.file.path, part.lora.placed(part.weights.family)) for part in parts]
    spelling = spelling_of(placed, parts[0].weights.family)
    means = Means(how.base, how.dora_norm, how.inexact, how.device)
    usual = _common_dtype(parts[0].lora.file.tensors)
    for part, (_, modules), data in zip(parts, placed, inputs, strict=True):
        check_origin(part.lora)
        check_products(part.lora)
        remedies = Remedies(part.lora, part.weights.family, means, data.read)
        scale_of = scales_of(part.lora)
        for module, place in modules:
            if len(parts) > 1 and module.algorithm.name in _SHARING:
                raise NotBakeableError(
                    f"{part.lora.file.path}: {module.name} is {module.algorithm_name}, whose modules share tensors",
                    "one file cannot hold those of several; leave this one out",
                )
            difference = remedies.difference(module, place)
            stem, key, rows = spelling.layer_of(module, place)
            if difference:
                stem = lora_stem(stem)
            weight = part.weights.of(place, module.path)
            scale = scale_of(module, data.read)
            kernels = {family.kernel_of(module.path) for family in part.lora.candidates}
            kernel = kernels.pop() if len(kernels) == 1 else ()
            addend = Addend(part.lora.file.path, module, weight, data, scale, difference, rows, kernel)
            own = _common_dtype(module.all_tensors, usual) if part is parts[0] else usual
            layer = Layer(stem, place, DTYPES[how.dtype] or own, [])
            # In one file, adapters alone share a layer: their sum has no place for the names of several.
            layers.setdefault(key if len(parts) > 1 else layer.bare, layer).addends.append(addend)
    check_prefixes(layers.values(), parts[0].lora.file.path)
    return list(layers.values())


def _alpha(parts: Sequence[Part], rank: int | None, like: Path | None) -> float | None:
    """The alpha of the whole output: the first the first file has; None if no file has any.

    Files without a product have none to follow: what truncation makes of them says what LyCORIS does not do without.
    Dotted names have one only if a LoRA of the file they are like has: beside those of diffusers and PEFT it has no
    place.
    """
    products = [(file, module) for file, module in _modules(parts) if module.rank]
    for file, module in products:
        alike = file.path == like and module.algorithm.name == "lora"
        if "alpha" in module.tensors and ("." not in module.name or alike):
            with TensorData(file) as data:
                return abs(known_alpha(file.path, module, data.read)) or 1.0  # a negative one hangs diffusers
    return float(rank) if rank and not products and not _is_dotted(parts) else None


def _suffixes(parts: Sequence[Part]) -> tuple[Mapping[str, str], Path | None]:
    """What follows a layer's name in those of its factors, as in a LoRA of a file; or as PEFT or kohya have it.

    Beside an attention's factors as the first diffusers files have them, diffusers reads others of that time alone;
    those of XLabs have names that no other layer has either.
    """
    dotted = _is_dotted(parts)
    found = [
        ({role: module.tensors[role][0].name.removeprefix(module.name) for role in ("down", "up")}, file.path)
        for file, module in _modules(parts)
        if module.algorithm.name == "lora" and ("." in module.name) == dotted and "[" not in module.name
    ]
    if not all(suffixes["down"].startswith(".lora") for suffixes, _ in found):
        return _EARLY, None
    return found[0] if found else (_PEFTS if dotted else _KOHYAS, None)


def _is_dotted(parts: Sequence[Part]) -> bool:
    """Whether the output's modules have dotted names: if the first file has no others."""
    return all("." in module.name for _, module in _modules(parts[:1]))


def _modules(parts: Sequence[Part]) -> Iterator[tuple[TensorFile, Module]]:
    return ((part.lora.file, module) for part in parts for module, _ in part.lora.placed(part.weights.family))


def _common_dtype(tensors: Iterable[Tensor], default: str = "F32") -> str:
    """What most floats of these are stored as, or what sums of them can be."""
    dtypes = Counter(tensor.dtype for tensor in tensors if tensor.dtype in FLOATS and tensor.size > 1)
    dtype = max(dtypes, key=dtypes.__getitem__, default=default)
    return "BF16" if dtype in FLOAT8 else dtype


def _record(parts: Sequence[Part], how: Recipe) -> dict[str, Any]:
    records = [record_of(part.lora, part.weights, part.preset) for part in parts]
    # Of one file too: it is no bake, which leaves factors of other forms and a configuration's alphas as they are.
    record: dict[str, Any] = records[0] if how.rank and len(records) == 1 else {"merged": records}
    record |= {"rank": how.rank} if how.rank else {}
    return record | ({"base": how.base.name, "dora_norm": how.dora_norm} if how.base else {})


def _head(
    parts: Sequence[Part], stem: str, tensors: Sequence[Tensor], trained: Mapping[str, str], how: Recipe
) -> tuple[Header, DataHashes]:
    """The header of a file of this stem, and its metadata, whose hashes are still to be taken."""
    metadata = baked_metadata(parts[0].lora, _record(parts, how), stem, update=True)
    metadata.pop(ADAPTER_METADATA, None)
    metadata |= {name: value for name, value in trained.items() if name in metadata}
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


def _trained(ranks: Sequence[int], alpha: float | None) -> dict[str, str]:
    """Rank and alpha as kohya's trainer writes them; ranks that differ are `Dynamic`, as its resizing script has it."""
    said = {_RANK: str(ranks[0]) if len(ranks) == 1 else "Dynamic"} if ranks else {}
    return said if alpha is None else {**said, _ALPHA: f"{alpha:g}"}


def _ranks(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """The distinct ranks of modules."""
    return tuple(sorted({module.rank for module in group_modules(tensors).modules if module.rank}))


def _by_block(layers: Iterable[Layer], sums: Iterable[Sum]) -> dict[str, float]:
    """Relative distance of each block's update, from the absolute distances and norms of its modules."""
    lost: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for layer, summed in zip(layers, sums, strict=True):
        lost[layer.place.block].append(summed.lost)
    return {
        block: math.sqrt(sum(error * error for error, _ in pairs) / total)
        for block, pairs in lost.items()
        if (total := sum(size * size for _, size in pairs))
    }


def _untruncated(sums: Iterable[Sum], rank: int) -> Iterator[str]:
    """What is said of modules that keep their own form though a lower rank was asked for, by algorithm."""
    kept = [summed.kept for summed in sums if summed.kept and summed.kept.weight]
    by_name: dict[str, list[str]] = defaultdict(list)
    for addend in kept:
        lower = addend.module.rank is None or addend.module.rank > rank
        if lower and not addend.module.algorithm.fixed and addend.kind not in ("norm", "bias"):
            by_name[addend.module.algorithm_name].append(addend.module.name)
    for name, modules in by_name.items():
        yield f"{counted(len(modules), f'{name} module')} not truncated (the first is {modules[0]})"


def _unloaded(parts: Sequence[Part], tensors: Iterable[Tensor]) -> Iterator[str]:
    """What is said of full differences that were none in the files, under names whose loaders know none."""
    given = {tensor.name for part in parts for tensor in part.lora.file.tensors}
    layers = (tensor.name.removesuffix(".diff") for tensor in tensors if tensor.name.endswith(".diff"))
    if made := [layer for layer in layers if "." in layer and f"{layer}.diff" not in given]:
        what = f"{counted(len(made), 'module')} became full differences (the first is {made[0]})"
        yield f"{what}, which PEFT and diffusers do not load: --rank makes products of them"


def _uneven(parts: Sequence[Part], ranks: Sequence[int], alpha: float | None) -> Iterator[str]:
    """What is said of ranks that differ, as those of no file did, where no alpha says what they mean."""
    if alpha is None and len(ranks) > 1 and all(len(_ranks(part.lora.file.tensors)) < 2 for part in parts):
        found = ", ".join(map(str, ranks))
        yield f"ranks {found} and no alpha: diffusers before 0.40 takes the first rank for all; --rank evens them out"


def _warnings(
    parts: Sequence[Part], layers: Sequence[Layer], left_out: Iterable[tuple[Part, Sequence[Tensor]]]
) -> Iterator[str]:
    yield from dict.fromkeys(remark for part in parts for remark in part.remarks)
    files: dict[str, set[Path]] = defaultdict(set)
    for layer in layers:
        files[layer.place.component] |= {addend.path for addend in layer.addends}
    shared = {layer.place.component for layer in layers if len(layer.addends) > 1}
    for component in sorted(name for name, paths in files.items() if len(paths) > 1 and name not in shared):
        yield f"the files share no layer of the {component}; do they spell the same ones differently?"
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
