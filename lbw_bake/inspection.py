"""What is in a LoRA: family, algorithms, ranks, dtypes, and where its strength lives: by block, element, component."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from .alphas import scales_of
from .arguments import AnyPath
from .configuration import taken_from_base
from .elements import ELEMENTS, OTHERS, element_of
from .families import OTHER, Family
from .lora import Lora, read_lora
from .modules import Module
from .spectra import Spectrum, spectrum
from .tensordata import TensorData
from .tensorfile import Tensor
from .updates import alpha_of, norm


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """One module; `norm` is the Frobenius norm of its update, None where that depends on the base model.

    `spectrum` is None too where it was not asked for.
    """

    module: Module
    component: str
    block: str
    alpha: float | None
    norm: float | None
    spectrum: Spectrum | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.module.all_tensors)

    @property
    def parameters(self) -> int:
        """Numbers in all its tensors."""
        return sum(tensor.size for tensor in self.module.all_tensors)


@dataclass(frozen=True, slots=True)
class Group:
    """Some modules together, of a block, an element or a component; `whole` is the squared norm of the whole LoRA."""

    modules: tuple[ModuleFacts, ...] = field(repr=False)
    whole: float

    @property
    def nbytes(self) -> int:
        """Bytes of the modules."""
        return sum(facts.nbytes for facts in self.modules)

    @property
    def parameters(self) -> int:
        """Numbers in the modules' tensors."""
        return sum(facts.parameters for facts in self.modules)

    @property
    def norm(self) -> float:
        """Frobenius norm of the modules' updates together, of those whose norm is known."""
        return math.sqrt(_squared(self.modules))

    @property
    def unmeasured(self) -> int:
        """How many modules have no norm of their own: it depends on the base model, or is not finite."""
        return sum(facts.norm is None and not facts.module.algorithm.fixed for facts in self.modules)

    @property
    def known(self) -> bool:
        """Whether the norm says anything: that of a module at least is known."""
        return self.unmeasured < len(self.modules)

    @property
    def share(self) -> float:
        """The part of the LoRA's squared norm that is here; the shares of all blocks add up to 1."""
        return _squared(self.modules) / self.whole if self.whole else 0.0

    @property
    def largest(self) -> float | None:
        """The largest spectral norm of a module, None if none is known."""
        return max((facts.spectrum.largest for facts in self.modules if facts.spectrum), default=None)

    @property
    def effective_rank(self) -> float | None:
        """The median effective rank of the modules, None if none is known."""
        known = [facts.spectrum.effective_rank for facts in self.modules if facts.spectrum]
        ranks = [rank for rank in known if rank is not None]
        return median(ranks) if ranks else None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `lbw inspect` says of a file; with several candidates, blocks are those of the first.

    `origin` names what loaders take out of the base model for it, empty if nothing.
    """

    lora: Lora
    family: Family
    modules: tuple[ModuleFacts, ...] = field(repr=False)
    unknown: tuple[Tensor, ...]
    origin: str = ""

    @property
    def blocks(self) -> dict[str, Group]:
        """Block -> its modules in the family's order, for blocks that have modules."""
        return self._grouped((*self.family.blocks, OTHER), lambda facts: facts.block)

    @property
    def elements(self) -> dict[str, Group]:
        """Element -> its modules, for elements that have modules."""
        return self._grouped((*ELEMENTS, OTHERS), lambda facts: element_of(facts.module.path))

    @property
    def components(self) -> dict[str, Group]:
        """Component -> its modules, text encoders first, for components that have modules."""
        names = (*(encoder.name for encoder in self.family.encoders), self.family.denoiser)
        return self._grouped(names, lambda facts: facts.component)

    @property
    def unmeasured(self) -> int:
        """How many modules have no norm of their own."""
        return sum(group.unmeasured for group in self.blocks.values())

    @property
    def dtypes(self) -> Mapping[str, int]:
        """Number of tensors by dtype."""
        return Counter(tensor.dtype for tensor in self.lora.file.tensors)

    def _grouped(self, names: Iterable[str], name_of: Callable[[ModuleFacts], str]) -> dict[str, Group]:
        by_name: dict[str, list[ModuleFacts]] = {name: [] for name in names}
        for facts in self.modules:
            by_name[name_of(facts)].append(facts)
        whole = _squared(self.modules)
        return {name: Group(tuple(modules), whole) for name, modules in by_name.items() if modules}


def _squared(modules: Iterable[ModuleFacts]) -> float:
    return sum(facts.norm * facts.norm for facts in modules if facts.norm is not None)


def inspect(path: AnyPath, *, family: Family | str | None = None, spectra: bool = False) -> Inspection:
    """Read what is in a LoRA and measure its modules, one at a time; the file is never loaded whole.

    `Inspection.blocks` has for every block its modules, bytes, and the Frobenius norm of their updates (float64,
    None per module where it depends on the base model); `spectra` asks for singular values too. Raises FileFormatError,
    NotALoraError, UnknownFamilyError.
    """
    lora = read_lora(Path(path), family)
    return inspection_of(lora, measured(lora, spectra=spectra))


def inspection_of(lora: Lora, modules: Iterable[ModuleFacts]) -> Inspection:
    """What is said of a file whose modules were measured."""
    first = lora.candidates[0]
    return Inspection(lora, first, tuple(modules), tuple(lora.unknown(first)), taken_from_base(lora))


def measured(lora: Lora, *, spectra: bool = False) -> Iterator[ModuleFacts]:
    """Measure a file's modules one after the other. Raises FileFormatError."""
    scale_of = scales_of(lora)
    with TensorData(lora.file) as data:
        for module, place in lora.placed(lora.candidates[0]):
            yield ModuleFacts(
                module,
                place.component,
                place.block,
                alpha_of(module, data.read),
                norm(module, data.read, scale_of),
                spectrum(module, data.read, scale_of) if spectra else None,
            )
