"""What is different where somebody looks: a bar while it takes time, and colours unless they are not wanted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import unet_lora, write

pty = pytest.importorskip("pty", reason="needs a system with pseudo-terminals")

OnTerminal = Callable[..., str]


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    folder = tmp_path / "loras"
    folder.mkdir()
    for name in "abc":
        write(folder / f"{name}.safetensors", unet_lora())
    return folder


@pytest.fixture
def on_terminal() -> OnTerminal:
    """Run `lbw` with a terminal for its stderr, and its stdout if need be; returns what it writes there."""

    def run(
        *args: object, stdout: bool = False, program: tuple[str, str] = ("-m", "lbw_bake"), **environment: str
    ) -> str:
        ours, theirs = pty.openpty()
        command = [sys.executable, *program, *map(str, args)]
        settings = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **environment}
        out = theirs if stdout else subprocess.DEVNULL
        with subprocess.Popen(command, stdout=out, stderr=theirs, env=settings) as process:
            os.close(theirs)
            written = b""
            try:
                while data := os.read(ours, 1 << 16):
                    written += data
            except OSError:  # how Linux says that the other end is closed
                pass
            process.wait(timeout=60)
        os.close(ours)
        assert process.returncode == 0
        return written.decode()

    return run


@pytest.mark.parametrize("many", [("bake", "-w", "*=0.5", "--out-dir"), ("sweep", "--x", "values=0,1", "-o")])
def test_a_bar_shows_how_far_it_is_and_goes_away(many: tuple[str, ...], loras: Path, on_terminal: OnTerminal) -> None:
    command, *options = many
    source = loras if command == "bake" else loras / "a.safetensors"
    screen = on_terminal(command, source, *options, loras.parent / "out")
    assert "\u2501" in screen  # a piece of the bar
    assert "\x1b[2K" in screen  # and its line cleared
    assert ("0 of 3 files" if command == "bake" else "writing") in screen
    assert "\u2501" not in screen.splitlines()[-1]
    assert on_terminal(command, source, *options, loras.parent / "quiet", "--quiet") == ""


def test_objects_on_the_terminal_have_lines_of_their_own(loras: Path, on_terminal: OnTerminal) -> None:
    screen = on_terminal("bake", loras, "-w", "*=0.5", "--out-dir", loras.parent / "out", "--json", stdout=True)
    assert "\u2501" not in screen
    assert [line[0] for line in screen.splitlines() if '"input"' in line] == ["{"] * 3


def test_tables_do_not_begin_in_the_line_of_a_bar(loras: Path, on_terminal: OnTerminal) -> None:
    screen = on_terminal("bake", loras, "-w", "*=0.5", "--dry-run")
    titles = [line for line in screen.splitlines() if "(sd1" in line]
    assert len(titles) == 3
    assert [line for line in titles if "files" in line.rpartition("\x1b[2K")[2]] == []


def test_one_file_needs_a_bar_if_it_is_large(loras: Path, on_terminal: OnTerminal) -> None:
    bake = ("bake", loras / "a.safetensors", "-w", "*=0.5", "-o")
    assert "\u2501" not in on_terminal(*bake, loras.parent / "b.safetensors")
    large = "from lbw_bake import __main__, render; render._LASTING = 1; __main__.main()"
    screen = on_terminal(*bake, loras.parent / "c.safetensors", program=("-c", large))
    assert "\u2501" in screen
    assert "baking" in screen
    assert "\u2501" not in screen.splitlines()[-1]


def test_colours_can_be_refused(loras: Path, on_terminal: OnTerminal) -> None:
    command = ("bake", loras / "a.safetensors", "-w", "*=0.5", "--dry-run")
    assert "\x1b[" in on_terminal(*command, NO_COLOR="")
    assert "\x1b[3" not in on_terminal(*command, NO_COLOR="1")


def test_a_dumb_terminal_gets_whole_lines_and_nothing_that_drives_others(loras: Path, on_terminal: OnTerminal) -> None:
    source = (loras / "a.safetensors").rename(loras / f"{'a' * 100}.safetensors")
    screen = on_terminal("bake", loras, "-w", "*=0.5", "--out-dir", loras.parent / "out", NO_COLOR="", TERM="dumb")
    assert "\x1b" not in screen
    assert "\u2501" not in screen
    said = screen.splitlines()
    assert len(said) == 4
    assert source.name in said[0]


def test_what_programs_read_does_not_go_to_the_terminal(loras: Path, on_terminal: OnTerminal, tmp_path: Path) -> None:
    found = tmp_path / "outcomes.jsonl"
    script = f"import subprocess, sys; subprocess.run(sys.argv[1:], stdout=open({str(found)!r}, 'wb'), check=True)"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lbw_bake", "bake", loras, "-w", "*=0.5", "--out-dir", tmp_path / "o", "--json"]
    subprocess.run([sys.executable, "-c", script, *map(str, command)], stderr=theirs, check=True, timeout=60)
    os.close(theirs)
    os.close(ours)
    assert [json.loads(line)["status"] for line in found.read_text("utf-8").splitlines()] == ["baked"] * 3
