"""The shape of the package: no module imports one above it, and heavy libraries stay where they are needed."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

import lbw_bake

PACKAGE = ROOT / "lbw_bake"
# Library -> the modules (or packages of modules) that may import it.
HOMES = {
    "torch": {"cuda", "nonlinear", "lowrank", "remedies"},
    "yaml": {"presets"},
    "matplotlib": {"plots"},
    "PIL": {"grid"},
    "textual": {"sliders", "tui"},
    "distributed": {"batch"},
    "safetensors": {"tensorfile"},
    "platformdirs": {"presets"},
}


def unit(path: Path) -> str:
    """The module, or the package it is in."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports() -> Iterator[tuple[str, int, str]]:
    """(importing unit, dots, dotted name) of every import, those inside functions too."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((unit(path), 0, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                inside = node.level > len(path.relative_to(PACKAGE).parts) - 1
                names = [node.module] if node.module else [alias.name for alias in node.names]
                yield from ((unit(path), node.level if inside else -1, name) for name in names)


def test_no_arrow_points_up() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for importer, dots, name in imports():
        if dots > 0 and (imported := name.split(".")[0]) != importer:
            graph[importer].add(imported)
    order = list(TopologicalSorter(graph).static_order())
    assert (
        order.index("errors") < order.index("keys") < order.index("plan") < order.index("run") < order.index("cli_bake")
    )


@pytest.mark.parametrize("library", HOMES)
def test_a_library_stays_where_it_is_needed(library: str) -> None:
    users = {importer for importer, dots, name in imports() if dots == 0 and name.split(".")[0] == library}
    assert users <= HOMES[library]


def test_the_page_names_every_module() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w*]+)/?`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)))
    units = {unit(path) for path in PACKAGE.rglob("*.py") if not path.name.startswith("__") or path.parent != PACKAGE}
    assert [name for name in sorted(units) if not any(fnmatch(name, each) for each in named)] == []


def test_commands_call_the_public_api_and_show_what_it_returns() -> None:
    shown = {"bars", "completion", "console", "environment", "errors", "interrupts", "plots", "reports", "words"}
    used = {name for unit, dots, name in imports() if unit.startswith("cli") and dots > 0}
    inner = {name for name in used - shown if not name.startswith(("cli_", "render"))}
    assert {"run_batch", "add_preset", "mix"} <= inner <= set(lbw_bake.__all__)


def test_states_of_numpy_are_made_where_they_are_entered() -> None:
    """One that several calls share leaves the program another state than it had."""
    shared = re.compile(r"(?<!with )(?<!, )np\.errstate\(")
    assert shared.search('@np.errstate(all="ignore")')
    assert [path.name for path in PACKAGE.rglob("*.py") if shared.search(path.read_text(encoding="utf-8"))] == []


def test_files_are_made_in_one_place() -> None:
    """What another module opened for writing would be there half after a crash."""
    writing = re.compile(
        r"""\.write_(text|bytes)\(|\.touch\(|open\([^)\n]*["'][rb+]*[wax+]|FileIO\([^)\n]*["'][rb]*[wax+]"""
    )
    assert writing.search('path.open("wb")')
    writers = {unit(path) for path in PACKAGE.rglob("*.py") if writing.search(path.read_text(encoding="utf-8"))}
    assert writers == {"temporary"}
