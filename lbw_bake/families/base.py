"""What a family is: its blocks in order, the rules that place a module, and the evidence that rules it out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..keys import DENOISER
from ..modules import Module

# The block of modules that belong to the model but to no weighed block: time embeddings, the last convolution.
OTHER = "OTHER"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module sits: the component by what it is (`unet`, `clip_l`), and its block."""

    component: str
    block: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Modules of these raw components whose path starts like this are in this block.

    Where `block` is a template (`IN{:02}`), `number` makes its number from the pattern's groups.
    """

    components: frozenset[str]
    path: re.Pattern[str]
    block: str
    name: str
    number: Callable[..., int] = int

    def place(self, module: Module) -> Place | None:
        """The module's place, if the rule speaks of it."""
        if module.component not in self.components or (match := self.path.match(module.path)) is None:
            return None
        if "{" not in self.block:
            return Place(self.name, self.block)
        return Place(self.name, self.block.format(self.number(*map(int, match.groups()))))


def blocks(path: str, block: str, number: Callable[..., int] = int, name: str = "unet") -> Rule:
    """A rule about the denoiser; `path` is a regular expression over the flattened path, anchored at its start."""
    return Rule(frozenset({DENOISER}), re.compile(path), block, name, number)


def encoder(name: str, block: str, components: str, path: str = "") -> Rule:
    """A rule that says what a text encoder is, by the spellings of its component (`te2|clip_g`)."""
    return Rule(frozenset(components.split("|")), re.compile(path), block, name)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Layers of these raw components whose whole path matches have one of these input widths; none: do not exist."""

    components: frozenset[str]
    path: re.Pattern[str]
    widths: frozenset[int]

    def excludes(self, module: Module) -> bool:
        """Whether the family has no such layer."""
        return not self.widths and self._speaks_of(module)

    def misfits(self, module: Module) -> bool:
        """Whether the family has such a layer, but of another width."""
        return bool(self.widths) and self._speaks_of(module) and module.width not in (None, *self.widths)

    def _speaks_of(self, module: Module) -> bool:
        return module.component in self.components and self.path.fullmatch(module.path) is not None


def widths(path: str, *features: int, components: str = DENOISER) -> Evidence:
    """Layers whose whole flattened path matches have one of these numbers of input features."""
    return Evidence(frozenset(components.split("|")), re.compile(path), frozenset(features))


def absent(path: str, components: str = DENOISER) -> Evidence:
    """The family has no layers whose whole flattened path matches."""
    return widths(path, components=components)


def numbered(letter: str, count: int, start: int = 0) -> tuple[str, ...]:
    """`numbered("D", 2)` is `("D00", "D01")`."""
    return tuple(f"{letter}{i:02}" for i in range(start, start + count))


Layout = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """A model family: names its blocks and says which modules fall in them.

    `layouts` are the ordered block lists of its own vector lengths, the usual one first; `relatives` those of
    families whose block names agree. `base_model` is kohya's `ss_base_model_version` for it; `versions` and
    `architectures` are regular expressions for the starts of that and of `modelspec.architecture`. Presets for
    one of `preset_families` serve it too.
    """

    name: str
    title: str
    blocks: tuple[str, ...]
    rules: tuple[Rule, ...]
    layouts: tuple[Layout, ...]
    relatives: tuple[Layout, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    base_model: str = ""
    versions: str = ""
    architectures: str = ""
    preset_families: tuple[str, ...] = ()

    @property
    def lengths(self) -> dict[int, Layout]:
        """Every vector length the family accepts, with its layout."""
        return {len(layout): layout for layout in (*self.layouts, *self.relatives)}

    @property
    def text_encoder_blocks(self) -> tuple[str, ...]:
        """The blocks that `BASE` stands for."""
        encoders = {rule.block for rule in self.rules if DENOISER not in rule.components}
        return tuple(block for block in self.blocks if block in encoders)

    @property
    def stack(self) -> tuple[str, ...]:
        """The blocks in depth order, without text encoders, embedders and the output layer."""
        ends = {*self.text_encoder_blocks, "IN", "OUT"}
        return tuple(block for block in self.blocks if block not in ends)

    @property
    def denoiser(self) -> str:
        """What the denoiser is called: `unet` or `transformer`."""
        return next(rule.name for rule in self.rules if DENOISER in rule.components)

    def place(self, module: Module) -> Place | None:
        """The module's component and block, None if the family has no such module."""
        place = next((place for rule in self.rules if (place := rule.place(module))), None)
        return place if place and (place.block == OTHER or place.block in self.blocks) else None

    def claimed_by(self, metadata: Mapping[str, str]) -> bool:
        """Whether the metadata names this family."""
        claims = ((self.versions, "ss_base_model_version"), (self.architectures, "modelspec.architecture"))
        return any(pattern and re.match(pattern, metadata.get(name, "")) for pattern, name in claims)
