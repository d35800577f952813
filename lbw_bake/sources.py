"""Weights as people give them: a preset's name, a vector, block rules, a pasted token; element rules beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .arguments import AnyPath, several
from .errors import LbwError, PresetError, WeightError
from .families import Family, family_named
from .presets import Preset, find_preset, load_presets
from .tokens import looks_like_token, parse_token
from .values import NUMBER
from .weights import (
    ONES,
    Element,
    FamilyWeights,
    Options,
    Rules,
    Source,
    Vector,
    parse_elements,
    parse_source,
    resolve,
    written_out,
)

_PART = re.compile(rf"(?P<path>.+?)(?::(?P<strength>{NUMBER.pattern}))?(?::(?P<weights>[^:/\\]+))?")


# Weights as a text, a preset, numbers in the order of a layout, or numbers by block selector.
Given = str | Preset | Iterable[float] | Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights that are asked for, before a family gives them meaning; by default all ones.

    `source` says where they come from, `options` what modifies them; `layout` chooses among a preset's vectors by
    their length. `element_presets` are those that rules of the options come from.
    """

    source: Source | Preset = ONES
    options: Options = field(default_factory=Options)
    layout: int | None = None
    element_presets: tuple[Preset, ...] = ()

    @classmethod
    def of(cls, given: Weights | Given) -> Weights:
        """Weights, whatever they are given as: see `parse`. Raises PresetError, WeightError, NotBakeableError."""
        if given is None:
            raise _nothing("Weights() are all ones")
        return given if isinstance(given, Weights) else cls.parse(given)

    @classmethod
    def parse(
        cls,
        given: Given | None = None,
        *,
        preset: str | None = None,
        token: str | None = None,
        elements: Iterable[str] = (),
        element_presets: Iterable[str] = (),
        presets: AnyPath | None = None,
        options: Options | None = None,
        layout: int | None = None,
    ) -> Weights:
        """Understand what was given, at most one of `given`, `preset` and `token`.

        `given` is a text (a preset's name, a vector, rules, a token), a `Preset`, numbers in the order of a layout, or
        numbers by block selector. Element rules come after those of `options`, these after those of element presets,
        and these after those of the preset itself; later ones win. `presets` is a file on top of the user's own. A
        token's strengths multiply those of `options`, whose own `x` wins. Raises PresetError, WeightError, and
        NotBakeableError for a token that switches during sampling.
        """
        ways = [one for one in (given, preset, token) if one is not None]
        if len(ways) > 1:
            raise WeightError(f"weights are given as {' and as '.join(map(repr, ways))}", "give one of them")
        if any(isinstance(one, str) and not one.strip() for one in ways):
            raise _nothing("is a variable not set?")
        options = options or Options()
        names = tuple(several(element_presets))
        if isinstance(given, str) and looks_like_token(given):
            token = given
        if token:
            said = parse_token(token)
            given, names = said.weights, (*names, *said.element_presets)
            x = said.x if options.x is None else options.x
            options = replace(options, te=options.te * said.te, unet=options.unet * said.unet, x=x)
        if isinstance(given, str) and not written_out(given):
            preset = given
        known = load_presets(presets) if preset or names or presets else {}
        source = find_preset(preset, known) if preset else _source_of(given)
        own = source.elements if isinstance(source, Preset) else ()
        named = tuple(find_preset(name, known) for name in names)
        theirs = (rule for preset in named for rule in _elements_of(preset))
        written = (rule for text in several(elements) for rule in parse_elements(text))
        return cls(source, replace(options, elements=(*own, *theirs, *options.elements, *written)), layout, named)

    @property
    def preset(self) -> str | None:
        """The preset's name, if the weights come from one."""
        return self.source.name if isinstance(self.source, Preset) else None

    def remarks(self, family: Family) -> list[str]:
        """What there is to say of the presets they come from, for a family."""
        own = (self.source,) if isinstance(self.source, Preset) else ()
        said = (preset.remark for preset in (*own, *self.element_presets))
        return list(filter(None, dict.fromkeys((*said, *(preset.hiding(family) for preset in own)))))

    def source_for(self, family: Family) -> Source:
        """Where the weights of a family come from. Raises PresetError."""
        return self.source.source_for(family, self.layout) if isinstance(self.source, Preset) else self.source

    def for_family(self, family: Family | str) -> FamilyWeights:
        """What they mean for a family, or that of this name. Raises UnknownFamilyError, PresetError, WeightError."""
        family = family_named(family)
        if not isinstance(self.source, Preset):
            return resolve(self.source, family, self.options)
        try:
            resolved = resolve(self.source_for(family), family, self.options)
        except WeightError as error:
            raise self._blamed(error, self.source, family) from None
        # A preset is for many files, and names blocks that some of them lack.
        return replace(resolved, named=frozenset())

    def _blamed(self, error: LbwError, preset: Preset, family: Family) -> LbwError:
        """What is wrong, naming the preset if that is by itself, and one that it hides if that is right."""
        try:
            resolve(self.source_for(family), family, replace(self.options, elements=preset.elements))
        except WeightError as own:
            about = own.about(preset)
            hidden = preset.hiding(family)
            return WeightError(about.message, hidden) if hidden else about
        return error


def _source_of(given: Given | None) -> Source | Preset:
    """Where weights come from that no preset is named for. Raises WeightError."""
    if given is None:
        return ONES
    if isinstance(given, Preset):
        return given
    if isinstance(given, str):
        return parse_source(given)
    try:
        listed: list[Any] = list(given.items() if isinstance(given, Mapping) else given)
    except TypeError as error:
        raise WeightError(
            f"{given!r} says no weights", "give a preset, a vector or block rules; Options(strength=0.7) weighs it all"
        ) from error
    if not listed:
        raise _nothing("Weights() are all ones")
    if isinstance(given, Mapping):
        return Rules(tuple((str(selector), _written(value)) for selector, value in listed))
    return Vector(tuple(map(_written, listed)))


def _nothing(hint: str) -> WeightError:
    return WeightError("no weights are given", f"give a preset, a vector or block rules; {hint}")


def _written(value: float) -> str:
    """A weight as it is written. Raises WeightError for what is no number."""
    try:
        return repr(float(value))
    except (TypeError, ValueError, OverflowError):
        raise WeightError(f"a weight is {value!r}, not a number", "give numbers like 0.5") from None


def _elements_of(preset: Preset) -> tuple[Element, ...]:
    if not preset.elements:
        raise PresetError(
            f"preset {preset.name} holds weights, not element rules", f"give it as --preset {preset.name}"
        )
    return preset.elements


def parse_part(text: str, presets: AnyPath | None = None) -> tuple[Path, Weights]:
    """One of the LoRAs of a merge, as `lbw merge` takes it: `PATH[:STRENGTH[:WEIGHTS]]`.

    Weights are a preset's name, a vector or block rules; `presets` is a file on top of the user's own. Raises
    WeightError, PresetError.
    """
    path, strength, weights = split_part(text)
    try:
        return path, Weights.parse(weights, presets=presets, options=Options(strength=strength))
    except WeightError as error:
        raise error.about(path) from None


def split_part(text: str) -> tuple[Path, float, str | None]:
    """Path, strength and weights as written; a file of exactly this name wins over any other reading."""
    with suppress(OSError):  # a vector can be longer than a name may be
        if Path(text).is_file():
            return Path(text), 1.0, None
    if looks_like_token(text):
        raise WeightError(f"{text!r} is a prompt token, not a file", "name its file: doraemon.safetensors:0.7:MIDD")
    match = _PART.fullmatch(text)
    if match is None:
        raise WeightError(f"{text!r} is not PATH:STRENGTH:WEIGHTS", "write a.safetensors:0.7:MIDD")
    return Path(match["path"]), float(match["strength"] or 1.0), match["weights"]
