"""What a family is: its blocks in order, the rules that place a module, and the layers that tell it from others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache

from ..keys import DENOISER, REMEMBERED
from ..modules import Module

# The block of modules that belong to the model but to no weighed block: time embeddings, the last convolution.
OTHER = "OTHER"

Layout = tuple[str, ...]
Widths = tuple[int, ...]
Kernel = tuple[int, ...]

# Layers of a network: a regular expression over their whole flattened path -> the input widths they have (a number,
# several, or () for any); or one over the start of their paths -> layers by the rest. The first match wins; what
# matches nothing is no layer of the network.
Layers = dict[str, "int | Widths | Layers"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module sits: the component by what it is (`unet`, `clip_l`), and its block."""

    component: str
    block: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Modules of the denoiser whose path starts like this (a regular expression) are in this block.

    Where `block` is a template (`IN{:02}`), `number` makes its number from the pattern's groups.
    """

    path: str
    block: str
    number: Callable[..., int] = int


@dataclass(frozen=True, slots=True)
class Encoder:
    """A text encoder by what it is (`clip_l`), its block, the raw components that mean it, and its layers."""

    name: str
    block: str
    components: tuple[str, ...]
    layers: Layers


def numbered(letter: str, count: int) -> tuple[str, ...]:
    """`numbered("D", 2)` is `("D00", "D01")`."""
    return tuple(f"{letter}{i:02}" for i in range(count))


def letter_of(block: str) -> str:
    """A block's name without its number: what all blocks of its kind have in common."""
    return block.rstrip("0123456789")


# What diffusers calls the layers of an attention, and of one over image and text together.
ATTENTION = r"to_(?:[qkv]|out_0)|norm_[qk]"
JOINT_ATTENTION = r"attn_(?:to_(?:[qkv]|out_0|add_out)|add_[qkv]_proj|norm_(?:added_)?[qk])"


@dataclass(frozen=True, eq=False)  # families are what the table holds; cached properties need room, so no slots
class Family:
    """A model family: names its blocks and says which modules fall in them.

    `layouts` are the ordered block lists of its own vector lengths, the usual one first, by default all blocks and the
    stack alone; `relatives` those of families whose block names agree. `rules` place a module of the denoiser,
    generously; `layers` are those it really has, and tell the family from others with the same places. `base_model` is
    kohya's `ss_base_model_version` for it, and `claims` a regular expression for the starts of that and of
    `modelspec.architecture`. Presets for one of `preset_families` serve it too. `host_names` are what hosts call
    the layers that some files name otherwise, by regular expressions for the ends of their paths; `kernels` those of
    the convolutions among them, by regular expressions for whole paths.
    """

    name: str
    title: str
    blocks: tuple[str, ...]
    rules: tuple[Rule, ...]
    layers: Layers
    encoders: tuple[Encoder, ...]
    denoiser: str = "transformer"
    layouts: tuple[Layout, ...] = ()
    relatives: tuple[Layout, ...] = ()
    base_model: str = ""
    claims: str = ""
    preset_families: tuple[str, ...] = ()
    host_names: Mapping[str, str] = field(default_factory=dict)
    kernels: Mapping[str, Kernel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layouts", self.layouts or (self.blocks, self.stack))

    def __repr__(self) -> str:
        return f"<Family {self.name}>"

    def __reduce__(self) -> tuple[object, ...]:
        """In other processes, and as copies, families are what the table there holds."""
        from . import family_named

        return family_named, (self.name,)

    @property
    def lengths(self) -> dict[int, Layout]:
        """Every vector length the family accepts, with its layout."""
        return {len(layout): layout for layout in (*self.layouts, *self.relatives)}

    @property
    def text_encoder_blocks(self) -> tuple[str, ...]:
        """The blocks that `BASE` stands for."""
        encoders = {encoder.block for encoder in self.encoders}
        return tuple(block for block in self.blocks if block in encoders)

    @property
    def stack(self) -> tuple[str, ...]:
        """The blocks in depth order, without text encoders, embedders and the output layer."""
        ends = {*self.text_encoder_blocks, "IN", "OUT"}
        return tuple(block for block in self.blocks if block not in ends)

    def place(self, module: Module) -> Place | None:
        """The module's component and block, None if the family has no such module."""
        return self.place_of(module.component, module.path)

    @lru_cache(maxsize=REMEMBERED)  # noqa: B019 - families last as long as the program
    def place_of(self, component: str, path: str) -> Place | None:
        """The place of a module of this raw component and path."""
        if component != DENOISER:
            encoder = self._encoder_of(component, path)
            return Place(encoder.name, encoder.block) if encoder else None
        block = self._block_by_rules(path)
        return Place(self.denoiser, block) if block and block in (*self.blocks, OTHER) else None

    def _encoder_of(self, component: str, path: str) -> Encoder | None:
        """The text encoder a component names, or the only other one that has such a layer: trainers number freely."""
        named = self._encoders.get(component)
        if named is None or self._encoder_layers[component].widths(path) is not None:
            return named
        having = (component for component, lookup in self._encoder_layers.items() if lookup.widths(path) is not None)
        others = {self._encoders[component].name: self._encoders[component] for component in having}
        return next(iter(others.values())) if len(others) == 1 else named

    @lru_cache(maxsize=REMEMBERED)  # noqa: B019 - families last as long as the program
    def widths_of(self, component: str, path: str) -> Widths | None:
        """The input widths of a layer, () if any; None if the family has no such layer."""
        known = self._layers if component == DENOISER else self._encoder_layers.get(component)
        return known.widths(path) if known else None

    @lru_cache(maxsize=REMEMBERED)  # noqa: B019 - families last as long as the program
    def host_name(self, path: str) -> str:
        """What hosts call a layer while they run, by the end of its path: element rules are about these names."""
        for end, name in self.host_names.items():
            path = re.sub(rf"{end}\Z", name, path)
        return path

    def kernel_of(self, path: str) -> Kernel:
        """The kernel of a convolution of the denoiser, () for other layers."""
        return next((kernel for whole, kernel in self.kernels.items() if re.fullmatch(whole, path)), ())

    def claimed_by(self, metadata: Mapping[str, str]) -> bool:
        """Whether the metadata names this family."""
        names = (metadata.get("ss_base_model_version", ""), metadata.get("modelspec.architecture", ""))
        return bool(self.claims) and any(re.match(self.claims, name, re.IGNORECASE) for name in names)

    # Regular expressions are compiled when they are first needed: there are many families, and a file is of one.

    @cached_property
    def _block_by_rules(self) -> Callable[[str], str | None]:
        return _placing(self.rules)

    @cached_property
    def _layers(self) -> _Lookup:
        return _Lookup(self.layers)

    @cached_property
    def _encoders(self) -> dict[str, Encoder]:
        return {component: encoder for encoder in self.encoders for component in encoder.components}

    @cached_property
    def _encoder_layers(self) -> dict[str, _Lookup]:
        return {component: _Lookup(encoder.layers) for component, encoder in self._encoders.items()}


@cache
def _placing(rules: tuple[Rule, ...]) -> Callable[[str], str | None]:
    """What tells the block of a path by these rules. Families that share rules share what it remembers."""
    paths = re.compile("|".join(f"(?P<g{i}>{rule.path})" for i, rule in enumerate(rules)))

    @lru_cache(maxsize=REMEMBERED)
    def block_of(path: str) -> str | None:
        match = paths.match(path)
        if match is None or match.lastgroup is None:
            return None
        rule = rules[int(match.lastgroup[1:])]
        _, *numbers = (text for text in match.groups() if text is not None)
        return rule.block.format(rule.number(*map(int, numbers)))

    return block_of


class _Lookup:
    """Layers by their paths: one regular expression a level, and what each of its groups stands for."""

    def __init__(self, layers: Layers) -> None:
        # Levels are alike in many places and families, and the same expression is compiled only once.
        paths = [f"({path})" if isinstance(usual, dict) else rf"({path})\Z" for path, usual in layers.items()]
        self._pattern = re.compile("|".join(paths))
        self._found: list[int | Widths | Layers | _Lookup] = list(layers.values())

    def widths(self, path: str, start: int = 0) -> Widths | None:
        """The widths of the layer whose path goes on like this, None if there is none."""
        match = self._pattern.match(path, start)
        if match is None or match.lastindex is None:
            return None
        found = self._found[match.lastindex - 1]
        if isinstance(found, dict):
            found = self._found[match.lastindex - 1] = _Lookup(found)
        if isinstance(found, _Lookup):
            return found.widths(path, match.end())
        return (found,) if isinstance(found, int) else found
