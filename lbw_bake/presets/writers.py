"""Presets written in each of the formats, with a list of what a format has no place for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from ..errors import LbwError, PresetError
from ..families import OTHER, Family
from ..positions import Positions
from ..selectors import select
from ..values import number_text, variable_of
from ..weights import Rules, Source, Vector, resolve
from .grammar import EXTENSION, INSPIRE, Dialect, portable_blocks, portable_words, unportable
from .inspire import LAYOUTS, Selectors
from .model import ANY_FAMILY, DESCRIPTION, ELEMENTS, Entry, Preset

_PLAIN = re.compile(r"[^\W\d][\w.+()%@/-]*(?: [\w.+()%@/-]+)*")
_PLAIN_VALUE = re.compile(r"[\w.+-][\w.,+%-]*(?::[\w.,+%-]*)*[\w.%]|[\w.]")
# Words that YAML 1.1 readers take for something else than text.
_YAML_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null"])


@dataclass(frozen=True, slots=True)
class Written:
    """A file's text, and what of the presets could not be carried over."""

    text: str
    lost: tuple[str, ...] = ()


def write_yaml(presets: Iterable[Preset], _family: Family | None) -> Written:
    """As presets.yaml, which has a place for everything."""
    return Written("".join(preset_yaml(preset.name, parts_of(preset)) for preset in presets))


def write_elempresets(presets: Iterable[Preset], _family: Family | None) -> Written:
    """As the extension's elempresets.txt: element rules alone."""
    entries: list[str] = []
    lost: list[str] = []
    for preset in presets:
        if preset.entries:
            lost.append(f"{preset.name}: its weights")
        if preset.description:
            lost.append(f"{preset.name}: its description")
        rules: list[str] = []
        for element in preset.elements:
            blocks = portable_blocks(element.blocks)
            if any(map(unportable, blocks.split())):
                lost.append(f"{preset.name}: element rule {element}, whose blocks the extension cannot name")
            else:
                rules.append(f"{blocks}:{portable_words(element.words)}:{number_text(element.weight)}")
        if rules:
            entries.append(f"{preset.name}:" + "\n".join(rules) + "\n")
    return Written("\n".join(entries), tuple(lost))


def write_lines(presets: Iterable[Preset], family: Family | None, *, dialect: Dialect) -> Written:
    """As the extension's lbwpresets.txt or the Inspire Pack's lbw-preset.txt: one vector per name."""
    lines: list[str] = []
    lost: list[str] = []
    for preset in presets:
        line, problems = _line(preset, family, dialect)
        lost += (f"{preset.name}: {problem}" for problem in problems)
        if line and preset.description and dialect is EXTENSION:
            lines.append(f"# {' '.join(preset.description.split())}")
        elif preset.description:
            lost.append(f"{preset.name}: its description")
        if line:
            lines.append(line)
    return Written("".join(f"{line}\n" for line in lines), tuple(lost))


WRITERS: dict[str, Callable[[Iterable[Preset], Family | None], Written]] = {
    "yaml": write_yaml,
    "lbwpresets": partial(write_lines, dialect=EXTENSION),
    "elempresets": write_elempresets,
    "inspire": partial(write_lines, dialect=INSPIRE),
}


def parts_of(preset: Preset) -> list[tuple[str, str]]:
    """What a preset says, as keys and YAML values."""
    parts = [(DESCRIPTION, _quoted(" ".join(preset.description.split())))] if preset.description else []
    sources: dict[str, list[Source]] = {}
    for entry in preset.entries:
        sources.setdefault(entry.family or ANY_FAMILY, []).append(entry.source)
    parts += ((key, sources_yaml(of_key)) for key, of_key in sources.items())
    if preset.elements:
        rules = [str(element) for element in preset.elements]
        parts.append((ELEMENTS, json.dumps(rules) if len(rules) > 1 else _quoted(rules[0], _PLAIN_VALUE)))
    return parts


def preset_yaml(name: str, parts: Sequence[tuple[str, str]]) -> str:
    """An entry of presets.yaml."""
    if [key for key, _ in parts] == [ANY_FAMILY]:
        return f"{_quoted(name)}: {parts[0][1]}\n"
    return f"{_quoted(name)}:\n" + "".join(f"  {key}: {value}\n" for key, value in parts)


def sources_yaml(sources: Sequence[Source]) -> str:
    """The sources of one key as a YAML value: rules as a mapping where that keeps their order's meaning."""
    if len(sources) > 1:
        return json.dumps([source_text(source) for source in sources])
    written = source_json(sources[0])
    if isinstance(written, dict):
        pairs = (f"{_quoted(selector)}: {_quoted(value, _PLAIN_VALUE)}" for selector, value in written.items())
        return f"{{{', '.join(pairs)}}}"
    return _quoted(source_text(sources[0]), _PLAIN_VALUE)


def source_json(source: Source) -> list[str] | dict[str, str] | str:
    """A source as JSON: rules as an object where that keeps their order's meaning."""
    if isinstance(source, Vector):
        return list(source.values)
    if isinstance(source, Rules) and len(dict(source.rules)) == len(source.rules):
        return dict(source.rules)
    return source_text(source)


def source_text(source: Source) -> str:
    """A source as `--weights` takes it."""
    if isinstance(source, Vector):
        return ",".join(source.values)
    if isinstance(source, Positions):
        return "%" + ",".join(f"{selector}={value}" for selector, value in source.rules)
    return " ".join(f"{selector}={value}" for selector, value in source.rules)


def _quoted(text: str, plain: re.Pattern[str] = _PLAIN) -> str:
    bare = plain.fullmatch(text) and text.lower() not in _YAML_WORDS
    return text if bare else json.dumps(text, ensure_ascii=False)


class _LostError(Exception):
    """A source has no place in a format, and why."""


def _line(preset: Preset, family: Family | None, dialect: Dialect) -> tuple[str, list[str]]:
    """The line of a preset, empty if it can have none, and what is lost."""
    if sign := dialect.unreadable.search(preset.name):
        return "", [f"all of it: {dialect.tool} takes no name with {sign[0]} there for a preset's"]
    problems = ["its element rules"] if preset.elements else []
    entries = preset.entries
    if family and entries:
        try:
            chosen = preset.source_for(family)
        except PresetError:
            return "", [*problems, f"it has no entry for {family.name}"]
        entries = tuple(entry for entry in entries if entry.source is chosen)
    reasons: list[str] = []
    for entry in entries:
        try:
            values = [_spelled(value, dialect) for value in _values(entry, family, dialect)]
        except _LostError as reason:
            reasons.append(str(reason))
            continue
        if others := dict.fromkeys(other.scope or "any family" for other in preset.entries if other is not entry):
            problems.append(f"its entries for {', '.join(others)}: a name holds one vector there")
        return f"{preset.name}:{','.join(values)}", problems
    return "", [*problems, *reasons]


def _values(entry: Entry, family: Family | None, dialect: Dialect) -> list[str]:
    """What an entry says, in one of a dialect's layouts."""
    if isinstance(entry.source, Vector) and entry.length in (EXTENSION.lengths if dialect is EXTENSION else (12, 17)):
        return list(entry.source.values)
    if not (family or entry.scope):
        raise _LostError("its weights for any family: name one with --family")
    family = family or next(iter(entry.families), None)
    if family and (selectors := _selectors(family, dialect)):
        return _resolved(entry.source, family, selectors)
    raise _LostError(f"its weights for {entry.scope or 'any family'}, which {dialect.tool} has no vector for")


def _selectors(family: Family, dialect: Dialect) -> Selectors:
    """What the values of a family are for in a dialect; empty if it has no vector for the family."""
    if dialect is INSPIRE:
        return LAYOUTS.get(family.name, ((),))[0]
    layouts = (layout for layout in reversed(family.layouts) if len(layout) in dialect.lengths)
    return tuple((block,) for block in next(layouts, ()))


def _resolved(source: Source, family: Family, selectors: Selectors) -> list[str]:
    """The values of a family's blocks, in the order of these selectors."""
    try:
        weights = resolve(source, family).blocks
    except LbwError as error:
        raise _LostError(f"its weights: {error.message}") from error
    if weights[OTHER] != 1.0:
        raise _LostError("its weight for OTHER")
    values: list[str] = []
    listed: set[str] = set()
    for names in selectors:
        blocks = {block for name in names for block in select(name, family)}
        found = {weights[block] for block in blocks}
        if len(found) > 1:
            raise _LostError(f"its weights: {', '.join(names)} must have one value there")
        values.append(number_text(found.pop()))
        listed |= blocks
    if missing := [block for block in family.blocks if block not in listed and weights[block]]:
        raise _LostError(f"its weights for {', '.join(missing)}, which have no value there")
    return values


def _spelled(value: str, dialect: Dialect) -> str:
    """A value as a dialect writes it."""
    if value in dialect.draws:
        raise _LostError(f"its weights: {dialect.tool} draws {value} from another range")
    value = next((theirs for theirs, ours in dialect.draws.items() if ours == value), value)
    variable = variable_of(value)
    if variable and not dialect.variables.fullmatch(value):
        raise _LostError(f"its weights: {dialect.tool} does not know {value}")
    if variable or dialect.numbers.fullmatch(value):
        return value
    return f"{float(value):.10f}".rstrip("0").rstrip(".")
