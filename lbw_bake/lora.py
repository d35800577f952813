"""A LoRA file, read and understood: its modules, the families it may belong to, and where each module sits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from .errors import NotALoraError, UnknownFamilyError
from .families import FAMILIES, OTHER, Family, Place, detect_families, family_named, placed_by, resembles, stops_short
from .modules import Grouping, Module, group_modules
from .tensorfile import ALIKE, Tensor, TensorFile, read_header


@dataclass(frozen=True, eq=False)  # cached properties need room, so no slots
class Anatomy:
    """What a list of tensors says of the LoRAs that have it: many files of a folder share one."""

    tensors: tuple[Tensor, ...]
    _placed: dict[str, tuple[tuple[Module, Place], ...]] = field(default_factory=dict)

    @cached_property
    def grouping(self) -> Grouping:
        """The tensors by module."""
        return group_modules(self.tensors)

    @cached_property
    def linear(self) -> bool:
        """Whether every module takes any weight exactly, without the base model."""
        return all(module.linear for module in self.grouping.modules)

    def placed(self, family: Family) -> tuple[tuple[Module, Place], ...]:
        """The modules the family knows, in file order, with their places."""
        if family.name not in self._placed:  # asked for by everybody, and the same every time
            self._placed[family.name] = tuple(placed_by(family, self.grouping.modules))
        return self._placed[family.name]


_remembered = lru_cache(maxsize=ALIKE)(Anatomy)


@dataclass(frozen=True, slots=True)
class Lora:
    """A file that holds at least one module of a block. `candidates` are the families that fit, at least one."""

    file: TensorFile
    anatomy: Anatomy = field(repr=False, compare=False)
    candidates: tuple[Family, ...]

    @property
    def grouping(self) -> Grouping:
        """The file's tensors by module."""
        return self.anatomy.grouping

    @property
    def family(self) -> Family | None:
        """The family, if it is certain."""
        return self.candidates[0] if len(self.candidates) == 1 else None

    def placed(self, family: Family) -> tuple[tuple[Module, Place], ...]:
        """The modules the family knows, in file order, with their places."""
        return self.anatomy.placed(family)

    def unknown(self, family: Family) -> list[Tensor]:
        """Tensors nobody understands: no module of theirs has an algorithm and a place in the family."""
        placed = {module.name for module, _ in self.placed(family)}
        lost = (module for module in self.grouping.modules if module.name not in placed)
        return [*self.grouping.unknown, *(tensor for module in lost for tensor in module.all_tensors)]

    def loose(self, family: Family) -> list[Tensor]:
        """The tensors that belong to no module, or to many."""
        return [*self.unknown(family), *self.grouping.shared]

    def doubt(self, family: Family) -> str:
        """What speaks against a family that has places for the modules; empty if nothing does."""
        if not resembles(family, self.grouping.modules):
            return f"few of its modules are layers of {family.title}: it may be of a model lbw does not know"
        if last := stops_short(family, {place.block for _, place in self.placed(family)}):
            return f"its blocks end at {last}, {family.title} has many more: it may be of a model lbw does not know"
        return ""


def read_lora(path: Path, family: Family | str | None = None) -> Lora:
    """Read a LoRA's header; `family` overrides what its keys and shapes say.

    Raises FileFormatError, NotALoraError saying what the file looks like, or UnknownFamilyError.
    """
    file = read_header(path)
    if kind := _known_kind(file):
        raise NotALoraError(path, f"is {kind}, not a LoRA", "give a LoRA or LyCORIS file")
    anatomy = (_remembered if file.memorable else Anatomy)(file.tensors)
    candidates = (family_named(family),) if family else detect_families(anatomy.grouping.modules, file.metadata)
    lora = Lora(file, anatomy, candidates)
    placed = (both for candidate in candidates for both in lora.placed(candidate))
    if not any(place.block != OTHER and not module.algorithm.fixed for module, place in placed):
        _refuse(lora, family)
    return lora


# Tensor names that mark other kinds of files, and whether all of a file's names must match or one is enough.
_OTHER_KINDS = (
    (any, re.compile(r"lllite_.*"), "a ControlNet-LLLite"),
    (any, re.compile(r"lora_controlnet"), "a Control-LoRA"),
    (
        all,
        re.compile(r"emb_params|clip_[lg]|t5xxl|string_to_(?:param|token).*|\*|<.*>"),
        "a textual inversion embedding",
    ),
)

# What PEFT names the tensors of adapters that are neither LoRA nor LyCORIS: IA3, OFT, BOFT, HRA.
_OTHER_ADAPTERS = re.compile(r"\.(?:ia3_l|oft_[rRs]|boft_[RsP]|hra_u)(?:\.|$)")


def _known_kind(file: TensorFile) -> str:
    names = [tensor.name for tensor in file.tensors]
    if not names:
        return "an empty file (it holds no tensors)"
    for quantifier, pattern, kind in _OTHER_KINDS:
        if quantifier(map(pattern.fullmatch, names)):
            return kind
    return ""


def _refuse(lora: Lora, family: Family | str | None) -> None:
    path, modules = lora.file.path, lora.grouping.modules
    adapters = [module for module in modules if not module.algorithm.fixed]
    if not adapters:
        names = [tensor.name for tensor in lora.file.tensors]
        strange = any(map(_OTHER_ADAPTERS.search, names))
        like = "an adapter of another kind" if strange else "a checkpoint or another kind of model"
        raise NotALoraError(
            path,
            f"holds no LoRA module among its {len(names)} tensors (the first is {names[0]}); it looks like {like}",
            "give a LoRA or LyCORIS file",
        )
    which = lora.candidates[0].name if family else f"any family lbw knows ({', '.join(FAMILIES)})"
    raise UnknownFamilyError(
        f"{path}: none of its {len(adapters)} modules (the first is {adapters[0].name}) falls in a block of {which}",
        "lbw inspect shows what is in it; --family names the family",
    )
