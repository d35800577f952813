"""What people see, and what a file of a stranger must not make them see."""

from __future__ import annotations

import re
import signal
import sys
from inspect import GEN_CLOSED, getgeneratorstate
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, lbw, unet_lora, write
from rich.progress import Progress

from lbw_bake import Naming, Recipe, make_batch, render, run_batch
from lbw_bake.bars import share_bar
from lbw_bake.render import size_text

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj.exe\u2066\r\n"
# An escape, a control character of the second set, and a character that turns the reading direction.
MARKS = ("\x1b", "\x9b", "\u202e", "\u2066", "\x07", "\r")


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    return write(tmp_path / "a.safetensors", unet_lora() | {f"unknown{EVIL}": np.ones(2, np.float32)})


@pytest.mark.parametrize(
    "command",
    [("inspect",), ("bake", "-w", "*=0.5", "-v", "-o", "OUT"), ("bake", "-w", "*=0.5", "--strict", "-o", "OUT")],
)
def test_control_characters_in_names_are_shown_escaped(
    command: tuple[str, ...], evil: Path, tmp_path: Path, run: Run
) -> None:
    _, out, error = run(*(tmp_path / "out.safetensors" if arg == "OUT" else arg for arg in command), evil)
    assert r"unknown\x1b]0;owned\x07" in error
    assert not any(mark in out + error for mark in MARKS)


def test_control_characters_in_module_names_are_escaped_in_errors(tmp_path: Path, run: Run) -> None:
    tensors = {f"lora_unet_middle_block_1_{EVIL}.set_weight": np.ones((2, 2), np.float32)}
    source = write(tmp_path / "a.safetensors", unet_lora() | tensors)
    code, out, error = run("bake", source, "-w", "*=0.5", "-o", tmp_path / "b.safetensors")
    assert code == 1
    assert r"lora_unet_middle_block_1_\x1b]0;owned" in error
    assert not any(mark in out + error for mark in MARKS)


def test_control_characters_in_file_names_are_escaped(tmp_path: Path, run: Run) -> None:
    source = write(tmp_path / "a\x1b[2J.safetensors", unet_lora())
    for command in (("inspect", source), ("bake", source, "-p", "MIDD", "-o", tmp_path / "b\x1b.safetensors")):
        code, out, error = run(*command)
        assert code == 0
        assert "\x1b" not in out + error


def test_colours_where_there_is_no_terminal_cut_no_table(tmp_path: Path) -> None:
    """CI runners set FORCE_COLOR and read a pipe."""
    files = [write(tmp_path / f"{name}.safetensors", unet_lora()) for name in "abcd"]
    plain, coloured = (lbw("inspect", "--spectrum", *files, FORCE_COLOR=force).stdout for force in ("", "1"))
    assert "\x1b" not in plain
    assert "\x1b" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


def test_programs_get_names_as_they_are(evil: Path, run: Run) -> None:
    assert run.json("inspect", evil, "--json")["unknown"] == [f"unknown{EVIL}"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_output_that_cannot_show_all_characters_is_no_traceback(encoding: str, tmp_path: Path) -> None:
    """As on Windows, where what is redirected to a file is encoded in the code page."""
    source = write(tmp_path / "東京.safetensors", unet_lora())
    for command in (("inspect",), ("inspect", "--json"), ("bake", "--dry-run", "-p", "MIDD")):
        result = lbw(*command, source, PYTHONIOENCODING=encoding)
        assert "Traceback" not in result.stderr
        assert result.returncode == 0
        assert "\\u25" not in result.stdout + result.stderr
    listed = lbw("presets", "list", PYTHONIOENCODING=encoding).stdout
    assert "MIDD         # ___### # ####_____  " in listed


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (144e6, "144 MB"), (9.94e6, "9.9 MB"), (2.5e9, "2.50 GB")],
)
def test_sizes_are_said_as_people_say_them(nbytes: float, text: str) -> None:
    assert size_text(nbytes) == text


@pytest.mark.parametrize("width", [80, 60, 30])
@pytest.mark.parametrize("elements", [(), ("--elements",)], ids=["blocks", "elements"])
def test_a_narrow_terminal_shows_fewer_columns_and_cuts_none(
    width: int, elements: tuple[str, ...], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write(tmp_path / f"{name}.safetensors", unet_lora()) for name in "ab"]
    presets = tmp_path / "presets.yaml"
    presets.write_text("A_LONG_NAME_OF_A_PRESET_V2: {description: of long words for a terminal, weights: {MID: 1}}\n")
    for command in (
        ("inspect", "--spectrum", *elements, files[0]),
        ("inspect", "--spectrum", *elements, *files),
        ("presets", "list", "--presets", presets),
    ):
        wide, narrow = (printed(run, monkeypatch, columns, *command) for columns in (240, width))
        assert max(map(len, narrow)) <= width
        assert {line.split()[0] for line in wide} <= {line.split()[0] for line in narrow if line[0] != " "}
        assert all(word in "\n".join(wide) for line in narrow for word in line.split() if not set(word) & set(BAR))


BAR = " ▏▎▍▌▋▊▉█"


def printed(run: Run, monkeypatch: pytest.MonkeyPatch, width: int, *command: object) -> list[str]:
    """The lines of a table as wide as this; titles and remarks hold a colon or a path, and are as long as they are."""
    monkeypatch.setattr("lbw_bake.tables._WIDE", width)
    out = run.out(*command)
    return [line for line in out.splitlines() if line.strip() and ":" not in line and "files" not in line]


@pytest.mark.usefixtures("in_processes")
@pytest.mark.skipif(sys.platform == "win32", reason="keeps no interrupt waiting")
@pytest.mark.parametrize(("workers", "written"), [(1, "a"), (2, "ab")])
def test_what_is_finished_at_an_interrupt_is_said(
    workers: int, written: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say, interrupts = render.message, [signal.SIGINT]

    def interrupted(label: str, text: str) -> None:
        if label == "baked" and interrupts:
            signal.raise_signal(interrupts.pop())
        say(label, text)

    monkeypatch.setattr(render, "message", interrupted)
    sources = [write(tmp_path / f"{name}.safetensors", unet_lora()) for name in "ab"]
    batch = make_batch(sources, [Recipe()], Naming(out_dir=tmp_path / "out"))

    with pytest.raises(KeyboardInterrupt), render.Report(batch) as report:
        report.take(run_batch(batch, workers=workers))
    *said, last = capsys.readouterr().err.splitlines()
    assert {line.partition(" (")[0] for line in said} == {
        f"baked: {tmp_path / 'out' / name}.safetensors" for name in written
    }
    assert last == f"interrupted: {len(written)} written, {2 - len(written)} left"


def test_a_batch_ends_where_its_outcomes_cannot_be_said(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(render, "message", broken)
    batch = make_batch(lora, Recipe(), Naming(tmp_path / "b.safetensors"))
    results = run_batch(batch)
    with pytest.raises(BrokenPipeError), render.Report(batch) as report:
        report.take(results)
    assert getgeneratorstate(results) == GEN_CLOSED


@pytest.mark.skipif(sys.platform == "win32", reason="keeps no interrupt waiting")
@pytest.mark.parametrize("moment", ["start", "stop"])
@pytest.mark.parametrize("bar", ["of a batch", "of a share"])
def test_an_interrupted_bar_leaves_the_cursor_to_be_seen(
    bar: str, moment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    real = getattr(Progress, moment)

    def interrupted(self: Progress) -> None:
        signal.raise_signal(signal.SIGINT)
        real(self)

    monkeypatch.setattr(Progress, moment, interrupted)
    sources = [write(tmp_path / f"{name}.safetensors", unet_lora()) for name in "ab"]
    batch = make_batch(sources, [Recipe()], Naming(out_dir=tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt), render.Report(batch) if bar == "of a batch" else share_bar("writing"):
        pass
    screen = capsys.readouterr().err
    assert 0 <= screen.rfind("\x1b[?25l") < screen.rfind("\x1b[?25h")
