"""The documentation says what the code does: its tables are the code's, its links lead somewhere, its sessions run."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
import typer.main
from conftest import ROOT, lbw_on_path, python

from lbw_bake.cli import app
from lbw_bake.families import FAMILIES

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SESSION = re.compile(r"```console\n(.*?)```", re.DOTALL)
# What no test can have: a cluster, a checkpoint, pictures, a package index.
SCRIPT = re.compile(r"```sh\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`(lbw [^`]+)`")
TIMING = re.compile(r"in [\d.]+ s, .*?/s")


def name(page: Path) -> str:
    """What a page is called in reports."""
    return str(page.relative_to(ROOT))


def sessions(page: Path) -> list[str]:
    """What a page shows of a terminal."""
    return SESSION.findall(page.read_text(encoding="utf-8"))


pages = pytest.mark.parametrize("page", PAGES, ids=name)


def test_the_tables_are_the_codes_own() -> None:
    tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    assert (ROOT / "docs" / "families.md").read_text(encoding="utf-8") == tables["page"]()


def test_the_readme_counts_the_families() -> None:
    assert f"{len(FAMILIES)} families" in (ROOT / "README.md").read_text(encoding="utf-8")


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """What the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("place", ["docs/batch-and-ci.md", "action.yml"])
def test_what_is_installed_without_torch_is_all_the_rest(place: str) -> None:
    listed = next(re.finditer(r"pip install (?:--quiet )?((?:\w+ ?)+)\n", (ROOT / place).read_text(encoding="utf-8")))
    project = re.search(
        r"^dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert project
    assert {*listed[1].split(), "torch"} == set(re.findall(r'"(\w+)', project[1]))


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)#]+)", index)}
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - {ROOT / "docs" / "README.md"} <= linked


@pages
def test_commands_that_are_only_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^    (\$ )?lbw ", SESSION.sub("", text), re.MULTILINE), "show it in a console session"
    scripts = (line for script in SCRIPT.findall(text) for line in joined(script))
    for line in (*INLINE.findall(text), *(line for line in scripts if line.startswith("lbw "))):
        options = set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", line.partition(" #")[0]))
        assert options <= options_of(line.split()), line


def options_of(words: list[str]) -> set[str]:
    """The options of the command that these words call."""
    command = typer.main.get_command(app)
    known = {"-h", "--help"}
    for word in words:
        known |= {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        if not hasattr(command, "commands"):
            break
        command = command.commands.get(word, command)
    return known


def joined(text: str) -> list[str]:
    """Lines, those that a backslash continues as one."""
    return re.sub(r" *\\\n *", " ", text).splitlines()


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real-size LoRA under every name that pages use."""
    folder = tmp_path_factory.mktemp("loras")
    result = python(ROOT / "examples" / "make_demo_lora.py", folder / "doraemon.safetensors")
    assert result.returncode == 0, result.stderr
    for name in ("x", "a", "b", "style", "character", "loras/style", "loras/characters/doraemon"):
        other = folder / f"{name}.safetensors"
        other.parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / "doraemon.safetensors", other)
    (folder / "examples").symlink_to(ROOT / "examples")
    shutil.copy(ROOT / "presets.yaml", folder)
    (folder / "lbwpresets.txt").write_text("FACE:1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0\n", encoding="utf-8")
    return folder


def steps(session: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a session, each with the lines it is said to print."""
    lines = joined(session)
    for number, line in enumerate(lines):
        if line.startswith("$ "):
            yield line[2:], list(takewhile(lambda printed: not printed.startswith("$ "), lines[number + 1 :]))


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("page", [page for page in PAGES if sessions(page)], ids=name)
def test_sessions_run_as_they_read(page: Path, loras: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(loras, folder, symlinks=True, copy_function=os.link)
    environment = lbw_on_path(tmp_path) | {"COLUMNS": "100", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    for command, shown in (step for session in sessions(page) for step in steps(session)):
        result = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=300, check=False,
        )  # fmt: skip
        refused = any(line.startswith("error: ") or ": error " in line for line in shown)
        assert bool(result.returncode) == refused, f"{command}\n{result.stdout}"
        if shown:
            assert fits(result.stdout.splitlines(), shown), f"{command}\n{result.stdout}"


def fits(printed: list[str], shown: list[str]) -> bool:
    """Whether the lines are those shown, where `...` stands for any, and however long it took."""
    pattern = "".join(r"(?:.*\n)*?" if line == "..." else re.escape(plain(line)) + r"\n" for line in shown)
    return bool(re.fullmatch(pattern, "".join(f"{plain(line)}\n" for line in printed)))


def plain(line: str) -> str:
    """A line without what differs from run to run."""
    return TIMING.sub("in SECONDS", line).rstrip()
