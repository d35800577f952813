"""Presets written in each of the formats, with a list of what a format has no place for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..errors import LbwError, PresetError
from ..families import FAMILIES, OTHER, Family
from ..positions import Positions
from ..selectors import select
from ..values import RANDOM_RANGES, number_text, variable_of
from ..weights import Element, Rules, Source, Vector, resolve
from .grammar import EXTENSION, INSPIRE, Dialect
from .inspire import LAYOUTS, Selectors
from .model import Entry, Preset

ANY_FAMILY, DESCRIPTION, ELEMENTS = "weights", "description", "elements"
_PLAIN = re.compile(r"[^\W\d][\w.+()%@/-]*(?: [\w.+()%@/-]+)*")
_PLAIN_VALUE = re.compile(r"[\w.+-][\w.,+%-]*(?::[\w.,+%-]*)*[\w.%]|[\w.]")
# Words that YAML 1.1 readers take for something else than text.
_YAML_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null"])


@dataclass(frozen=True, slots=True)
class Written:
    """A file's text, and what of the presets could not be carried over."""

    text: str
    lost: tuple[str, ...] = ()


def write_yaml(presets: Iterable[Preset], family: Family | None = None) -> Written:  # noqa: ARG001 - as the others
    """As presets.yaml, which has a place for everything."""
    return Written("".join(preset_yaml(preset.name, parts_of(preset)) for preset in presets))


def write_lbwpresets(presets: Iterable[Preset], family: Family | None = None) -> Written:
    """As the extension's lbwpresets.txt: one vector per name."""
    return _write_lines(presets, family, EXTENSION, _extension_values, comments=True)


def write_inspire(presets: Iterable[Preset], family: Family | None = None) -> Written:
    """As the Inspire Pack's lbw-preset.txt: one vector per name, in its own lengths."""
    return _write_lines(presets, family, INSPIRE, _inspire_values, comments=False)


def write_elempresets(presets: Iterable[Preset], family: Family | None = None) -> Written:  # noqa: ARG001 - as the others
    """As the extension's elempresets.txt: element rules alone."""
    entries: list[str] = []
    lost: list[str] = []
    for preset in presets:
        if preset.entries:
            lost.append(f"{preset.name}: its weights")
        if preset.description:
            lost.append(f"{preset.name}: its description")
        strange = [element for element in preset.elements if _portable_blocks(element) is None]
        lost += (
            f"{preset.name}: element rule {element}, whose blocks the extension cannot name" for element in strange
        )
        rules = [
            f"{_portable_blocks(element)}:{element.words}:{number_text(element.weight)}"
            for element in preset.elements
            if element not in strange
        ]
        if rules:
            entries.append(f"{preset.name}:" + "\n".join(rules) + "\n")
    return Written("\n".join(entries), tuple(lost))


WRITERS: dict[str, Callable[[Iterable[Preset], Family | None], Written]] = {
    "yaml": write_yaml,
    "lbwpresets": write_lbwpresets,
    "elempresets": write_elempresets,
    "inspire": write_inspire,
}


def parts_of(preset: Preset) -> list[tuple[str, str]]:
    """What a preset says, as keys and YAML values."""
    parts = [(DESCRIPTION, _quoted(" ".join(preset.description.split())))] if preset.description else []
    for family, entries in groupby(preset.entries, key=lambda entry: entry.family):
        parts.append((family or ANY_FAMILY, sources_yaml([entry.source for entry in entries])))
    if preset.elements:
        parts.append((ELEMENTS, elements_yaml(preset.elements)))
    return parts


def preset_yaml(name: str, parts: Sequence[tuple[str, str]]) -> str:
    """An entry of presets.yaml."""
    if [key for key, _ in parts] == [ANY_FAMILY]:
        return f"{_quoted(name)}: {parts[0][1]}\n"
    return f"{_quoted(name)}:\n" + "".join(f"  {key}: {value}\n" for key, value in parts)


def sources_yaml(sources: Sequence[Source]) -> str:
    """The sources of one key as a YAML value."""
    if len(sources) == 1:
        return source_yaml(sources[0])
    return f"[{', '.join(json.dumps(source_text(source)) for source in sources)}]"


def source_yaml(source: Source) -> str:
    """A source as a YAML value: rules as a mapping where that keeps their order's meaning."""
    if isinstance(source, Rules) and len(dict(source.rules)) == len(source.rules):
        return f"{{{', '.join(f'{_quoted(selector)}: {_quoted_value(value)}' for selector, value in source.rules)}}}"
    return _quoted_value(source_text(source))


def source_text(source: Source) -> str:
    """A source as `--weights` takes it."""
    if isinstance(source, Vector):
        return ",".join(source.values)
    if isinstance(source, Positions):
        return "%" + ",".join(f"{selector}={value}" for selector, value in source.rules)
    return " ".join(f"{selector}={value}" for selector, value in source.rules)


def elements_yaml(elements: Sequence[Element]) -> str:
    """Element rules as a YAML value."""
    texts = [_quoted_value(str(element)) for element in elements]
    return texts[0] if len(texts) == 1 else f"[{', '.join(json.dumps(str(element)) for element in elements)}]"


def _quoted(text: str) -> str:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)


def _quoted_value(text: str) -> str:
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


class _LostError(Exception):
    """A source has no place in a format, and why."""


Values = Callable[[Entry, "Family | None"], list[str]]


def _write_lines(
    presets: Iterable[Preset], family: Family | None, dialect: Dialect, values_of: Values, *, comments: bool
) -> Written:
    lines: list[str] = []
    lost: list[str] = []
    for preset in presets:
        line, problems = _line(preset, family, dialect, values_of)
        lost += (f"{preset.name}: {problem}" for problem in problems)
        if line and preset.description and comments:
            lines.append(f"# {' '.join(preset.description.split())}")
        elif preset.description:
            lost.append(f"{preset.name}: its description")
        if line:
            lines.append(line)
    return Written("".join(f"{line}\n" for line in lines), tuple(lost))


def _line(preset: Preset, family: Family | None, dialect: Dialect, values_of: Values) -> tuple[str, list[str]]:
    """The line of a preset, empty if it can have none, and what is lost."""
    problems = ["its element rules"] if preset.elements else []
    entries = _entries_for(preset, family)
    if not entries and preset.entries:
        return "", [*problems, f"it has no entry for {family.name}" if family else "it has no entry"]
    chosen, values, reasons = None, [], []
    for entry in entries:
        try:
            values = [_spelled(value, dialect) for value in values_of(entry, family)]
        except _LostError as reason:
            reasons.append(str(reason))
        else:
            chosen = entry
            break
    if chosen is None:
        return "", [*problems, *reasons]
    others = list(dict.fromkeys(_named(entry) for entry in preset.entries if entry is not chosen))
    if others:
        problems.append(f"its entries for {', '.join(others)}: a name holds one vector there")
    return f"{preset.name}:{','.join(values)}", problems


def _entries_for(preset: Preset, family: Family | None) -> list[Entry]:
    if family is None:
        return list(preset.entries)
    try:
        source = preset.source_for(family)
    except PresetError:
        return []
    return [entry for entry in preset.entries if entry.source is source]


def _named(entry: Entry) -> str:
    return entry.family or (f"{entry.length} values" if entry.length else "any family")


def _extension_values(entry: Entry, family: Family | None) -> list[str]:
    if isinstance(entry.source, Vector) and entry.length in EXTENSION.lengths:
        return list(entry.source.values)
    for known in _families_for(entry, family):
        layout = next((layout for layout in reversed(known.layouts) if len(layout) in EXTENSION.lengths), None)
        if layout:
            return _resolved(entry.source, known, tuple((block,) for block in layout))
    raise _LostError(f"its weights for {_named(entry)}, which the extension has no vector for")


def _inspire_values(entry: Entry, family: Family | None) -> list[str]:
    if isinstance(entry.source, Vector) and entry.length in (12, 17):
        return list(entry.source.values)
    for known in _families_for(entry, family):
        if known.name in LAYOUTS:
            return _resolved(entry.source, known, LAYOUTS[known.name][0])
    raise _LostError(f"its weights for {_named(entry)}, which the Inspire Pack has no vector for")


def _families_for(entry: Entry, family: Family | None) -> list[Family]:
    """The family whose blocks the weights are written for, if it is certain."""
    if family or entry.family:
        return [family or FAMILIES[entry.family or ""]]
    if entry.length is None:
        raise _LostError("its weights for any family: name one with --family")
    return [known for known in FAMILIES.values() if entry.length in map(len, known.layouts)][:1]


def _resolved(source: Source, family: Family, selectors: Selectors) -> list[str]:
    """The values of a family's blocks, in the order of these selectors."""
    try:
        weights = resolve(source, family).blocks
    except LbwError as error:
        raise _LostError(f"its weights: {error.message}") from error
    if weights[OTHER] != 1.0:
        raise _LostError("its weight for OTHER")
    values: list[str] = []
    for names in selectors:
        found = {weights[block] for name in names for block in select(name, family)}
        if len(found) > 1:
            raise _LostError(f"its weights: {', '.join(names)} must have one value there")
        values.append(number_text(found.pop()))
    listed = {block for names in selectors for name in names for block in select(name, family)}
    if missing := [block for block in family.blocks if block not in listed and weights[block]]:
        raise _LostError(f"its weights for {', '.join(missing)}, which have no value there")
    return values


def _spelled(value: str, dialect: Dialect) -> str:
    """A value as a dialect writes it."""
    variable = variable_of(value)
    if variable and not dialect.variables.fullmatch(value):
        raise _LostError(f"its weights: {dialect.tool} does not know {value}")
    if dialect is INSPIRE and value in RANDOM_RANGES:
        raise _LostError(f"its weights: {dialect.tool} draws {value} from another range")
    if variable or dialect.numbers.fullmatch(value):
        return value
    return f"{float(value):.10f}".rstrip("0").rstrip(".")


def _portable_blocks(element: Element) -> str | None:
    """The blocks of an element rule as the extension names them, None where it cannot."""
    words = re.sub(r"\bMID\b", "M00", element.blocks.upper()).split()
    if words == ["*"]:
        return ""
    if any("%" in word or "*" in word for word in words):
        return None
    return " ".join(words)
