"""The documentation says what the code does: its tables are the code's, its links lead somewhere, its sessions run."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, Run, lbw, python

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
SESSION = re.compile(r"```console\n(.*?)```", re.DOTALL)


def test_the_tables_are_the_codes_own() -> None:
    tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    assert (ROOT / "docs" / "families.md").read_text(encoding="utf-8") == tables["page"]()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's files are: a real-size LoRA under every name it uses."""
    folder = tmp_path_factory.mktemp("readme")
    result = python(ROOT / "examples" / "make_demo_lora.py", folder / "doraemon.safetensors")
    assert result.returncode == 0, result.stderr
    (folder / "loras").mkdir()
    for name in ("x.safetensors", "a.safetensors", "b.safetensors", "loras/one.safetensors"):
        shutil.copy(folder / "doraemon.safetensors", folder / name)
    return folder


def commands(session: str) -> list[list[str]]:
    """The `lbw` commands of a session, comments left out."""
    lines = [line[2:] for line in session.splitlines() if line.startswith("$ lbw ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_the_readme_runs_as_it_reads(folder: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(folder)
    sessions = SESSION.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(sessions) >= 3
    for command in (command for session in sessions for command in commands(session)):
        for output in Path().glob("y*.safetensors"):
            output.unlink()
        code, _, error = run(*command)
        assert code == 0, f"{command}: {error}"


def test_the_first_session_shows_what_is_printed(folder: Path) -> None:
    session = SESSION.findall((ROOT / "README.md").read_text(encoding="utf-8"))[0]
    (folder / "doraemon-midd.safetensors").unlink(missing_ok=True)
    printed = []
    for command in commands(session):
        result = lbw(*(folder / word if word.endswith(".safetensors") else word for word in command), COLUMNS="100")
        printed += [*result.stdout.splitlines(), *result.stderr.splitlines()]
    expected = [line for line in session.splitlines() if not line.startswith("$")]
    timing = re.compile(r"in [\d.]+ s, .*?/s")
    shown = [timing.sub("", line).replace(f"{folder}/", "").rstrip() for line in printed]
    assert shown == [timing.sub("", line).rstrip() for line in expected]
