"""presets.yaml: vectors, lists and block mappings, for one family or several.

Read as PyYAML nodes, not objects: nodes know their lines, keep duplicate keys that objects would lose in
silence, and leave scalars as written, so that a preset named `NO` is not the boolean false.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from ..errors import PresetError, WeightError
from ..families import FAMILIES
from ..weights import Element, Rules, Source, Vector, parse_element, parse_source
from .model import Entry, Preset

DESCRIPTION, ANY_FAMILY, ELEMENTS = "description", "weights", "elements"
_ENTRY_KEYS = {*FAMILIES, DESCRIPTION, ANY_FAMILY, ELEMENTS}
# Aliases make a small file large; presets need none.
_MAX_NODES = 200_000


def read_yaml(text: str, path: Path) -> list[Preset]:
    """The presets of a presets.yaml. Raises PresetError naming the line."""
    try:
        _refuse_aliases(text, path)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise PresetError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise PresetError(f"{path}: a presets file is a mapping of names to weights", "write NAME: 1,0,0,...")
    presets: dict[str, Preset] = {}
    for name_node, value in root.value:
        preset = _preset(_text(name_node, path), value, name_node.start_mark.line + 1, path)
        if preset.name in presets:
            raise _error(
                path, name_node, f"preset {preset.name} is defined twice", f"first on line {presets[preset.name].line}"
            )
        presets[preset.name] = preset
    return list(presets.values())


def _preset(name: str, value: yaml.Node, line: int, path: Path) -> Preset:
    entries: list[Entry] = []
    elements: tuple[Element, ...] = ()
    description = ""
    if isinstance(value, yaml.MappingNode) and any(_text(key, path) in _ENTRY_KEYS for key, _ in value.value):
        for key_node, entry in value.value:
            key = _text(key_node, path)
            if key == DESCRIPTION:
                description = _text(entry, path)
            elif key == ELEMENTS:
                elements = tuple(_elements(entry, path))
            elif key in _ENTRY_KEYS:
                family = None if key == ANY_FAMILY else key
                entries += (Entry(family, source, key_node.start_mark.line + 1) for source in _sources(entry, path))
            else:
                raise _error(path, key_node, f"preset {name}: {key!r} is no family", f"families: {', '.join(FAMILIES)}")
    else:
        entries += (Entry(None, source, line) for source in _sources(value, path))
    return Preset(name, tuple(entries), path, line, description, elements)


def _sources(node: yaml.Node, path: Path) -> Iterator[Source]:
    """The sources a value holds: one, or a list of several vectors for different layouts."""
    try:
        if isinstance(node, yaml.MappingNode):
            yield Rules(tuple((_text(key, path), _text(value, path)) for key, value in node.value))
        elif isinstance(node, yaml.SequenceNode):
            items = [_text(item, path) for item in node.value]
            if any("," in item for item in items):
                yield from map(parse_source, items)
            else:
                yield Vector(tuple(items))
        else:
            yield parse_source(_text(node, path))
    except WeightError as error:
        raise _error(path, node, error.message, error.hint) from error


def _elements(node: yaml.Node, path: Path) -> Iterator[Element]:
    for item in node.value if isinstance(node, yaml.SequenceNode) else (node,):
        try:
            yield parse_element(_text(item, path))
        except WeightError as error:
            raise _error(path, item, error.message, error.hint) from error


def _text(node: yaml.Node, path: Path) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _error(path, node, "expected a name, a number or a vector here, not a list or mapping")
    return str(node.value)


def _error(path: Path, node: yaml.Node, message: str, hint: str = "") -> PresetError:
    return PresetError(f"{path}:{node.start_mark.line + 1}: {message}", hint)


def _refuse_aliases(text: str, path: Path) -> None:
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent) or count > _MAX_NODES:
            line = event.start_mark.line + 1 if event.start_mark else 0
            raise PresetError(f"{path}:{line}: aliases and files of {_MAX_NODES} values are not presets")
