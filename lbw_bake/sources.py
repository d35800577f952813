"""Weights as people give them: a preset's name, a vector, block rules, a pasted token; element rules beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import PresetError
from .families import Family
from .presets import Preset, find_preset, load_presets
from .tokens import looks_like_token, parse_token
from .weights import ONES, Element, Options, Source, parse_elements, parse_source, written_out


@dataclass(frozen=True, slots=True)
class Given:
    """What was given, understood: where the weights come from, and what a token says besides."""

    source: Source | Preset = ONES
    te: float = 1.0
    unet: float = 1.0
    x: float | None = None
    elements: tuple[Element, ...] = ()

    @property
    def preset(self) -> str | None:
        """The preset's name, if the weights come from one."""
        return self.source.name if isinstance(self.source, Preset) else None

    def source_for(self, family: Family, layout: int | None = None) -> Source:
        """Where the weights of a family come from. Raises PresetError."""
        return self.source.source_for(family, layout) if isinstance(self.source, Preset) else self.source

    def modify(self, options: Options) -> Options:
        """Options with what was given added: a token's strengths multiply, an `x` of their own wins."""
        x = self.x if options.x is None else options.x
        return replace(options, te=options.te * self.te, unet=options.unet * self.unet, x=x, elements=self.elements)


def read_given(
    *,
    weights: str | None = None,
    preset: str | None = None,
    token: str | None = None,
    elements: Sequence[str] = (),
    element_presets: Sequence[str] = (),
    presets: Path | None = None,
) -> Given:
    """Understand what was given, at most one of `weights`, `preset` and `token`; nothing means all ones.

    `weights` may be any of them: a name, a vector, rules, a token. Element rules come after those of element presets,
    and these after those of the preset itself, so they win. `presets` is a file on top of the user's own. Raises
    PresetError, WeightError, and NotBakeableError for a token that switches during sampling.
    """
    if weights and looks_like_token(weights):
        weights, token = None, weights
    said = parse_token(token) if token else None
    text = said.weights if said else preset or weights
    by_name = bool(text) and (text == preset or not written_out(text or ""))
    names = [*element_presets, *([said.elements] if said and said.elements else [])]
    known = load_presets(presets) if by_name or names else {}
    source: Source | Preset = ONES
    if text:
        source = find_preset(text, known) if by_name else parse_source(text)
    own = source.elements if isinstance(source, Preset) else ()
    rules = [*own, *(rule for name in names for rule in _elements_of(find_preset(name, known)))]
    chosen = (*rules, *(rule for text in elements for rule in parse_elements(text)))
    return Given(source, said.te, said.unet, said.x, chosen) if said else Given(source, elements=chosen)


def _elements_of(preset: Preset) -> tuple[Element, ...]:
    if not preset.elements:
        raise PresetError(
            f"preset {preset.name} holds weights, not element rules", f"give it as --preset {preset.name}"
        )
    return preset.elements
