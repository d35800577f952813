"""presets.yaml: vectors, lists and block mappings, for one family or several.

Read as PyYAML nodes, not objects: nodes know their lines, keep duplicate keys that objects would lose in
silence, and leave scalars as written, so that a preset named `NO` is not the boolean false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import nearest
from ..families import FAMILIES, Family
from ..values import NUMBER
from ..weights import Element, Rules, Vector
from .document import of_type
from .findings import Finding
from .grammar import LBW, MOST_ITEMS, check_name, check_rules, knows, read_element, read_source, read_values
from .model import ANY_FAMILY, DESCRIPTION, ELEMENTS, Entry, Preset
from .text import WIDE_COLON, WIDE_COMMA, Piece, Places

ENTRY_KEYS = (*FAMILIES, DESCRIPTION, ANY_FAMILY, ELEMENTS)
# Aliases make a small file large; presets need none.
_MAX_NODES = 200_000
_MAX_DEPTH = 20

Pairs = list[tuple[yaml.Node, yaml.Node]]


class _RefusedError(Exception):
    """A finding about what no preset file needs."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


def _at(code: str, mark: Any, message: str) -> Finding:
    return Finding(code, mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, "", message)


class _Loader(yaml.SafeLoader):
    """Composes nodes; refuses aliases, and what is too large or too deep to be presets."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """A node and those below it."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _RefusedError(_at("LBW502", event.start_mark, f"alias *{event.anchor}"))
        if (tag := getattr(event, "tag", None)) not in (None, "!"):
            raise _RefusedError(_at("LBW502", event.start_mark, f"tag {tag}"))
        self._nodes += 1
        if self._nodes > _MAX_NODES or self._depth > _MAX_DEPTH:
            message = "the file is too large or too deeply nested for presets"
            raise _RefusedError(_at("LBW507", event.start_mark, message))
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def compose(text: str) -> yaml.Node | None:
    """The root node, None for an empty file. Raises yaml.YAMLError and what `read_yaml` makes findings of."""
    return yaml.compose(text, _Loader)


def read_yaml(text: str, path: Path) -> Iterator[Preset | Finding]:
    """Read a presets.yaml."""
    try:
        root = compose(text)
    except yaml.YAMLError as error:
        yield _syntax_error(error, text)
    except _RefusedError as refused:
        yield refused.finding
    else:
        yield from _Reader(text, path).presets(root)


def _syntax_error(error: yaml.YAMLError, text: str) -> Finding:
    if not isinstance(error, yaml.MarkedYAMLError):  # a character YAML does not allow
        before = text[: getattr(error, "position", 0)]
        problem = f"the character {text[len(before) : len(before) + 1]!r} is not allowed"
        return Finding("LBW501", before.count("\n") + 1, len(before) - before.rfind("\n"), "", problem)
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "cannot be read"
    line = text.split("\n")[mark.line - 1 : mark.line + 1] if mark else []
    if mark and any(wide in one for one in line for wide in (WIDE_COLON, WIDE_COMMA)):
        return _at("LBW103", mark, f"not valid YAML: {problem}; full-width punctuation nearby")
    return _at("LBW501", mark, f"not valid YAML: {problem}")


def _places(text: str, raw: str, node: yaml.ScalarNode) -> Places:
    """Where each character of a scalar on several lines stands, and its end; empty where escapes hide that.

    YAML folds and cuts the spaces and line ends alone, so what is between them is the same, and in the same order.
    """
    first, column = node.start_mark.line + 1, node.start_mark.column
    head = len(raw.splitlines()[0]) if node.style in ("|", ">") else len(node.style or "")
    lines = (" " * (column + head) + raw[head:]).splitlines()
    written = ((char, i, j) for i, line in enumerate(lines, first) for j, char in enumerate(line, 1) if char.strip())
    places, end = [], (first, column + 1)
    for char in text:
        if not char.strip():
            places.append(end)
            continue
        found, line, column = next(written, ("", *end))
        if found != char:
            return ()
        places.append((line, column))
        end = (line, column + 1)
    return [*places, end]


class _Reader:
    """Reads nodes of one text: those of its names, or of the preset of a name."""

    def __init__(self, text: str, path: Path, name: str = "") -> None:
        self._text, self._path, self._name = text, path, name

    def presets(self, root: yaml.Node | None) -> Iterator[Preset | Finding]:
        """The presets of the file."""
        if root is None:
            return
        if not isinstance(root, yaml.MappingNode):
            wide = WIDE_COLON in str(root.value)
            message = "a presets file is a mapping of names to weights" + ", with an ASCII colon after each" * wide
            yield _at("LBW103" if wide else "LBW503", root.start_mark, message)
            return
        lines: dict[str, int] = {}
        for key, value in root.value:
            name = self._piece(key)
            if name is None:
                yield self._wrong_kind(key, "a preset's name")
            elif (text := name.text.strip()) in lines:
                yield name.of(text).finding("LBW201", f"{text} is defined twice, first on line {lines[text]}")
            else:
                lines[text] = name.line
                yield from check_name(name)
                yield from _Reader(self._text, self._path, text).preset(name.of(text), value)

    def preset(self, name: Piece, value: yaml.Node) -> Iterator[Preset | Finding]:
        """The preset of this name, whose place is that of its name."""
        entries: list[Entry] = []
        elements: list[Element] = []
        description = ""
        keyed = isinstance(value, yaml.MappingNode) and not self._are_blocks(value.value)
        if keyed:
            said = [(self._piece(key) or self._whole(key), part) for key, part in value.value]
        else:  # a source that stands alone is for any family
            said = [(name.with_text(ANY_FAMILY), value)]
        families = [FAMILIES[key.text] for key, _ in said if key.text in FAMILIES]
        if not families or any(key.text == ANY_FAMILY for key, _ in said):
            families = list(FAMILIES.values())
        for key, part in said:
            if key.text == DESCRIPTION:
                text = self._piece(part)
                description = text.text if text else ""
                items: list[Any] = [] if text else [self._wrong_kind(part, "a text")]
            elif key.text == ELEMENTS:
                items = list(self._elements(part, families))
                elements += of_type(Element, items)
            elif key.text in (ANY_FAMILY, *FAMILIES):
                family = FAMILIES.get(key.text)
                items = list(self._sources(part, [family] if family else [*FAMILIES.values()]))
                sources = (item for item in items if not isinstance(item, Finding))
                entries += (Entry(family.name if family else None, source, key.line, key.column) for source in sources)
            else:
                items = [key.finding("LBW505", f"{key.text!r} is no family", nearest(key.text, ENTRY_KEYS))]
            yield from of_type(Finding, items)
        if keyed:
            yield from self._repeated(value.value)
        if not (entries or elements) and all(key.text == DESCRIPTION for key, _ in said):
            yield name.finding("LBW508", f"{self._name} has neither weights nor element rules")
        where = name.strip()
        yield Preset(self._name, tuple(entries), self._path, name.line, description, tuple(elements), where.column)

    def _are_blocks(self, pairs: Pairs) -> bool:
        """Whether a mapping's keys are blocks rather than families, be they spelled right or wrong."""
        keys = [str(key.value) for key, _ in pairs[:MOST_ITEMS] if isinstance(key, yaml.ScalarNode)]
        if any(key in ENTRY_KEYS for key in keys):
            return False
        if any(knows(family, key) for family in FAMILIES.values() for key in keys):
            return True
        return bool(pairs) and all(NUMBER.fullmatch(str(value.value)) for _, value in pairs)

    def _sources(self, node: yaml.Node, families: Sequence[Family]) -> Iterator[Any]:
        """The sources a value holds: one, or a list of several vectors for different layouts."""
        if isinstance(node, yaml.MappingNode):
            yield from self._rules(node, families)
        elif isinstance(node, yaml.SequenceNode):
            known = [piece for item in node.value if (piece := self._piece(item))]
            for item in node.value:
                if not isinstance(item, yaml.ScalarNode):
                    yield self._wrong_kind(item, "a number or a vector")
            if any("," in piece.text for piece in known):
                yield from self._several(known, families)
            elif len(known) == len(node.value):
                yield from read_values(known, self._whole(node), LBW, families)
        elif piece := self._piece(node):
            yield from read_source(piece, families)

    def _several(self, written: Sequence[Piece], families: Sequence[Family]) -> Iterator[Any]:
        lengths: set[int] = set()
        for piece in written:
            for item in read_source(piece, families):
                yield item
                if isinstance(item, Vector):
                    if (length := len(item.values)) in lengths:
                        yield piece.finding("LBW509", f"two vectors of {length} values")
                    lengths.add(length)

    def _rules(self, node: yaml.MappingNode, families: Sequence[Family]) -> Iterator[Any]:
        rules: list[tuple[Piece, Piece]] = []
        for key, value in node.value:
            selector, weight = self._piece(key), self._piece(value)
            if selector and weight:
                rules.append((selector, weight))
            else:
                yield self._wrong_kind(value if selector else key, "a number")
        if rules:
            yield from check_rules(rules, families)
            yield Rules(tuple((selector.text, weight.text) for selector, weight in rules))
        yield from self._repeated(node.value)

    def _elements(self, node: yaml.Node, families: Sequence[Family]) -> Iterator[Element | Finding]:
        for item in node.value if isinstance(node, yaml.SequenceNode) else (node,):
            piece = self._piece(item)
            if piece is None:
                yield self._wrong_kind(item, "element rules")
                continue
            for rule in piece.split(r"[,\n]"):
                if rule.text.strip():
                    yield from read_element(rule, LBW, families)

    def _repeated(self, pairs: Pairs) -> Iterator[Finding]:
        seen: set[str] = set()
        for key, _ in pairs:
            if piece := self._piece(key):
                block = re.sub(r"\bM00\b", "MID", piece.text.strip().upper())
                if block in seen:
                    yield piece.finding("LBW504", f"key {piece.text!r} is given twice")
                seen.add(block)

    def _wrong_kind(self, node: yaml.Node, wanted: str) -> Finding:
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
        return self._whole(node).finding("LBW506", f"expected {wanted} here, not {kind}")

    def _whole(self, node: yaml.Node) -> Piece:
        return Piece("", node.start_mark.line + 1, node.start_mark.column + 1, exact=False, preset=self._name)

    def _piece(self, node: yaml.Node) -> Piece | None:
        """A scalar as written; places inside it are known where it has no escapes."""
        if not isinstance(node, yaml.ScalarNode):
            return None
        text = str(node.value)
        raw = self._text[node.start_mark.index : node.end_mark.index]
        if "\n" in raw and (places := _places(text, raw, node)):
            return Piece(text, *places[0], places=places, preset=self._name)
        offset = raw.find(text) if text and "\n" not in raw else -1
        column = node.start_mark.column + 1 + max(offset, 0)
        return Piece(text, node.start_mark.line + 1, column, exact=offset >= 0, preset=self._name)
