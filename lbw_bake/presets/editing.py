"""Changing one preset of a presets.yaml as text, so that comments, order and spelling of all others stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from ..errors import PresetError
from ..families import FAMILIES
from .formats import READERS, parse_presets
from .model import Preset
from .writers import parts_of, preset_yaml
from .yaml_file import ENTRY_KEYS, compose

Parts = Sequence[tuple[str, str]]


def with_preset(text: str, path: Path, added: Preset, *, replacing: bool = False) -> str:
    """The text with a preset added, or with its entries added to the preset of that name.

    Raises PresetError for a file that has errors, and, without `replacing`, where the preset says the same thing
    or something for the same family already.
    """
    before = parse_presets(text, path)
    _check(added, path)
    old = next((preset for preset in before if preset.name == added.name), None)
    parts = parts_of(added)
    if old is None:
        after = _appended(text, preset_yaml(added.name, parts))
    else:
        known = dict(parts_of(old))
        said = [key for key, _ in parts if key in known] or list(_spoken_for(old, added))
        if said and not replacing:
            raise PresetError(f"{old} has {said[0]} already", "replace it with --force")
        after = _changed(text, added.name, parts, known)
    expected = [_merged(preset, added) if preset is old else preset for preset in before]
    _verify(after, path, expected if old else [*before, added])
    return after


def without_preset(text: str, path: Path, name: str) -> str:
    """The text without a preset. Raises PresetError for a file that has errors."""
    before = parse_presets(text, path)
    key, value = _nodes(text, name)
    start = text.rfind("\n", 0, key.start_mark.index) + 1
    line_end = text.find("\n", _end(text, value))
    after = text[:start] + (text[line_end + 1 :] if line_end >= 0 else "")
    _verify(after, path, [preset for preset in before if preset.name != name])
    return after


def _check(added: Preset, path: Path) -> None:
    """Raises PresetError if no file could say this."""
    if errors := READERS["yaml"].read(preset_yaml(added.name, parts_of(added)), path).errors:
        wrong = errors[0]
        raise PresetError(f"preset {added.name}: {wrong.message} ({wrong.code})", wrong.remedy)


def _spoken_for(old: Preset, added: Preset) -> Iterator[str]:
    """The families that a preset has weights for, though not under their own names, and that would get others."""
    named = (entry.family for entry in added.entries if entry.family)
    return (f"weights for {name}" for name in named if old.speaks_for(FAMILIES[name]))


def _merged(old: Preset, added: Preset) -> Preset:
    families = {entry.family for entry in added.entries}
    kept = tuple(entry for entry in old.entries if entry.family not in families)
    return replace(
        old,
        entries=(*kept, *added.entries),
        description=added.description or old.description,
        elements=added.elements or old.elements,
    )


def _verify(text: str, path: Path, expected: Sequence[Preset]) -> None:
    """Raises PresetError unless the text says what is expected, which its style may prevent."""
    try:
        says = {preset.name: _meaning(preset) for preset in parse_presets(text, path)}
    except PresetError:
        says = {}
    if says != {preset.name: _meaning(preset) for preset in expected}:
        raise PresetError(f"{path}: cannot be changed without disturbing the rest of it", "change it in an editor")


def _meaning(preset: Preset) -> object:
    entries = frozenset((entry.family, entry.source) for entry in preset.entries)
    return entries, preset.description, tuple(map(str, preset.elements))


def _nodes(text: str, name: str) -> tuple[yaml.Node, yaml.Node]:
    root = compose(text)
    assert isinstance(root, yaml.MappingNode)  # noqa: S101 - the reader has found the preset in it
    return next((key, value) for key, value in root.value if str(key.value).strip() == name)


def _end(text: str, node: yaml.Node) -> int:
    """Where a node's text ends; a block's own end mark lies after the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    return len(text[: node.end_mark.index].rstrip())


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _appended(text: str, entry: str) -> str:
    newline = _newline(text)
    gap = newline if text and not text.endswith("\n") else ""
    root = compose(text)
    indent = " " * root.start_mark.column if root else ""
    return text + gap + "".join(f"{indent}{line}{newline}" for line in entry.splitlines())


def _changed(text: str, name: str, parts: Parts, known: dict[str, str]) -> str:
    """The text with parts of a preset replaced or added."""
    key, value = _nodes(text, name)
    if _is_block_of_keys(value):
        for part in parts:
            text = _set_key(text, name, *part)
        return text
    merged = {**known, **dict(parts)}
    indent = " " * (key.start_mark.column + 2)
    lines = [f"{indent}{one}: {said}" for one, said in merged.items()]
    new = f" {merged['weights']}" if list(merged) == ["weights"] else "".join(_newline(text) + line for line in lines)
    return text[: _colon(text, key)] + new + text[_end(text, value) :]


def _is_block_of_keys(node: yaml.Node) -> bool:
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return False
    return any(str(key.value) in ENTRY_KEYS for key, _ in node.value)


def _set_key(text: str, name: str, part: str, said: str) -> str:
    """The text with one key of a preset replaced, or added after the others."""
    _, mapping = _nodes(text, name)
    pairs = {str(key.value): (key, value) for key, value in mapping.value}
    if part in pairs:
        key, value = pairs[part]
        return f"{text[: _colon(text, key)]} {said}{text[_end(text, value) :]}"
    indent = " " * mapping.start_mark.column
    at = text.find("\n", _end(text, mapping))
    at = len(text) if at < 0 else at
    at -= text[:at].endswith("\r")
    return f"{text[:at]}{_newline(text)}{indent}{part}: {said}{text[at:]}"


def _colon(text: str, key: yaml.Node) -> int:
    """Where the colon after a key ends."""
    return text.index(":", key.end_mark.index) + 1
