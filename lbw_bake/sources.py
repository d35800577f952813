"""Weights as people give them: a preset's name, a vector, block rules, a pasted token; element rules beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .presets import Preset, find_preset, load_presets
from .tokens import parse_token
from .weights import ONES, Element, Options, Source, parse_element, parse_source


@dataclass(frozen=True, slots=True)
class Given:
    """What was given, understood: where the weights come from, and what a token says besides."""

    source: Source | Preset = ONES
    te: float = 1.0
    unet: float = 1.0
    x: float | None = None
    elements: tuple[Element, ...] = ()

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

    Element rules follow element presets, so they win. `presets` is a file on top of the user's own. Raises
    PresetError, WeightError, and NotBakeableError for a token that switches during sampling.
    """
    said = parse_token(token) if token else None
    text = said.weights if said else weights
    names = [*element_presets, *([said.elements] if said and said.elements else [])]
    by_name = preset or (text if text and not _written_out(text) else None)
    known = load_presets(presets) if by_name or names else {}
    source: Source | Preset = ONES
    if by_name:
        source = find_preset(by_name, known)
    elif text:
        source = parse_source(text)
    rules = [rule for name in names for rule in find_preset(name, known).elements]
    chosen = (*rules, *map(parse_element, elements))
    return Given(source, said.te, said.unet, said.x, chosen) if said else Given(source, elements=chosen)


def _written_out(text: str) -> bool:
    """Whether this is a vector or block rules, not a preset's name."""
    return "," in text or "=" in text
