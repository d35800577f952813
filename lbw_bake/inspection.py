"""What is in a LoRA: family, algorithms, ranks, dtypes, and per block its modules, bytes and strength."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .families import OTHER, Family
from .lora import Lora, read_lora
from .modules import Module
from .tensordata import TensorData
from .tensorfile import Tensor
from .updates import alpha_of, norm


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """One module; `norm` is the Frobenius norm of its update, None where that depends on the base model."""

    module: Module
    component: str
    block: str
    alpha: float | None
    norm: float | None

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.module.all_tensors)


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """The modules of one block together."""

    modules: tuple[ModuleFacts, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the block's modules."""
        return sum(facts.nbytes for facts in self.modules)

    @property
    def norm(self) -> float:
        """Frobenius norm of the block's update, of the modules whose norm is known."""
        return math.sqrt(sum(facts.norm**2 for facts in self.modules if facts.norm is not None))


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `lbw inspect` says of a file; with several candidates, blocks are those of the first."""

    lora: Lora
    family: Family
    modules: tuple[ModuleFacts, ...]
    unknown: tuple[Tensor, ...]

    @property
    def blocks(self) -> dict[str, BlockFacts]:
        """Block -> facts in the family's order, for blocks that have modules."""
        by_block: dict[str, list[ModuleFacts]] = {block: [] for block in (*self.family.blocks, OTHER)}
        for facts in self.modules:
            by_block[facts.block].append(facts)
        return {block: BlockFacts(tuple(modules)) for block, modules in by_block.items() if modules}

    @property
    def dtypes(self) -> Mapping[str, int]:
        """Number of tensors by dtype."""
        return Counter(tensor.dtype for tensor in self.lora.file.tensors)


def inspect(path: Path, family: str | None = None) -> Inspection:
    """Read a LoRA's header and measure its modules, one at a time. Raises FileFormatError, NotALoraError."""
    lora = read_lora(path, family)
    first = lora.candidates[0]
    with TensorData(lora.file) as data:
        modules = tuple(
            ModuleFacts(module, place.component, place.block, alpha_of(module, data.read), norm(module, data.read))
            for module, place in lora.placed(first)
        )
    return Inspection(lora, first, modules, tuple(lora.unknown(first)))
