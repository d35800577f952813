"""The command line as people and programs meet it: exit codes, streams, names, signals, memory, start-up."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from conftest import (
    MODULE,
    BakeTensors,
    Run,
    called,
    imported,
    kohya_lora,
    lbw,
    measured,
    metadata_of,
    python,
    unet_lora,
    write,
    write_header,
)

from lbw_bake import __version__
from lbw_bake.cli import app

HALF = ("-w", "*=0.5")
CHILDREN = "/proc/{0}/task/{0}/children"
CHILDREN_LISTED = Path(CHILDREN.format(os.getpid())).exists()
ENDING = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


USAGE = {
    "an unknown command": ("fry",),
    "an unknown option": ("bake", "LORA", *HALF, "-o", "OUT", "--frobnicate"),
    "no input": ("bake", *HALF, "-o", "OUT"),
    "no weights": ("bake", "LORA", "-o", "OUT"),
    "two kinds of weights": ("bake", "LORA", *HALF, "--preset", "MIDD", "-o", "OUT"),
    "no output": ("bake", "LORA", *HALF),
    "two kinds of output": ("bake", "LORA", *HALF, "-o", "OUT", "--out-dir", "OUT"),
    "an output and in place": ("bake", "LORA", *HALF, "-o", "OUT", "--in-place"),
    "one output for two inputs": ("bake", "LORA", "OTHER", *HALF, "-o", "OUT"),
    "one output for two presets": ("bake", "LORA", "-p", "MIDD", "-p", "ALL", "-o", "OUT"),
    "two presets in place": ("bake", "LORA", "-p", "MIDD", "-p", "ALL", "--in-place"),
    "an unknown dtype": ("bake", "LORA", *HALF, "-o", "OUT", "--dtype", "f8"),
    "an unknown device": ("bake", "LORA", *HALF, "-o", "OUT", "--device", "tpu"),
    "a strength that is no number": ("bake", "LORA", *HALF, "-o", "OUT", "--strength", "much"),
    "a seed that is no integer": ("bake", "LORA", *HALF, "-o", "OUT", "--seed", "0.5"),
    "a negative number of jobs": ("bake", "LORA", *HALF, "-o", "OUT", "--jobs", "-1"),
    "nothing to inspect": ("inspect",),
    "one file to compare": ("diff", "LORA"),
}


class TestExitCodes:
    @pytest.mark.parametrize("option", ["-preset", "-weights=1", "-te", "-out-dir"])
    def test_a_long_option_with_one_dash_is_not_a_short_one(self, option: str, lora: Path, run: Run) -> None:
        code, out, error = run("bake", lora, option, "MIDD", "-o", lora.with_name("out.safetensors"))
        assert (code, out) == (2, "")
        assert f"Did you mean -{option.partition('=')[0]}?" in error

    def test_nor_is_one_of_a_command_of_presets(self, lora: Path, run: Run) -> None:
        """-description=mine was -d with the value "escription=mine"."""
        presets = lora.with_name("presets.yaml")
        code, _, error = run("presets", "add", "FACE", "MID=1", "-description=mine", "--presets", presets)
        assert code == 2
        assert "Did you mean --description?" in error
        assert not presets.exists()

    def test_of_several_inputs_for_one_output_spaces_may_be_the_reason(self, lora: Path, run: Run) -> None:
        error = run("bake", lora, "-w", "BASE=1", "MID=0.5", "-o", "out.safetensors")[2]
        assert "--output: 2 inputs are not one file; give --out-dir, or" in error
        assert "quotes" in error
        assert "Invalid value" not in error

    @pytest.mark.parametrize("command", USAGE.values(), ids=USAGE)
    def test_wrong_usage_is_2_and_touches_nothing(self, command: tuple[str, ...], lora: Path, run: Run) -> None:
        other = write(lora.with_name("b.safetensors"), unet_lora())
        paths = {"LORA": lora, "OTHER": other, "OUT": lora.with_name("out.safetensors")}
        before = lora.read_bytes()
        code, out, error = run(*(paths.get(arg, arg) for arg in command))
        assert (code, out) == (2, "")
        assert "Usage: " in error
        assert lora.read_bytes() == before
        assert set(lora.parent.iterdir()) == {lora, other}

    @pytest.mark.parametrize("option", ["-h", "--help"])
    @pytest.mark.parametrize("command", [(), ("bake",), ("inspect",), ("diff",)], ids=" ".join)
    def test_help_is_0(self, command: tuple[str, ...], option: str, run: Run) -> None:
        code, out, error = run(*command, option)
        assert (code, error) == (0, "")
        assert "Usage: " in out

    def test_nothing_is_cut_from_a_help_page_of_80_columns(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        pages = [run(*command, "--help")[1] for command in commands(typer.main.get_command(app))]
        assert len(pages) > 10
        assert [line for page in pages for line in page.splitlines() if "\u2026" in line or len(line) > 80] == []
        assert [kind for page in pages for kind in re.findall(r"<\w*_\w*>", page)] == []  # no names of functions

    def test_version_is_0(self, run: Run) -> None:
        code, out, error = run("--version")
        assert (code, error) == (0, "")
        assert out.splitlines()[0] == f"lbw {__version__}"

    def test_what_the_tool_refuses_is_1_with_an_error_and_a_hint(self, lora: Path, run: Run) -> None:
        code, out, error = run("bake", lora, "-w", "MIDD=1", "-o", lora.with_name("b.safetensors"))
        assert (code, out) == (1, "")
        assert error.splitlines() == [f"error: {lora}: sd1 has no block 'MIDD'", "hint: did you mean MID?"]

    @pytest.mark.parametrize(
        "option",
        ["--preset", "--weights", "--token", "--element", "--element-preset", "--family", "--include", "--exclude"],
    )
    def test_an_empty_text_is_said_of_its_option(self, option: str, lora: Path, run: Run) -> None:
        """As `--weights "$W"` gives it where the variable is not set."""
        code, _, error = run("bake", lora, option, "", "-s", "0.5", "-o", lora.with_name("b.safetensors"))
        assert code == 2
        assert f"{option}: an empty text says nothing" in error
        assert list(lora.parent.iterdir()) == [lora]

    def test_an_empty_path_is_not_the_current_folder(
        self, lora: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(lora.parent)
        before = lora.read_bytes()
        code, _, error = run("bake", "", "-w", "*=0.5", "--in-place")
        assert code == 2
        assert "is a variable not set?" in error
        assert lora.read_bytes() == before

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    @pytest.mark.parametrize("command", [("inspect", "LORA", "--json"), ("presets", "list"), ("bake", "--help")])
    def test_a_stdout_that_is_full_is_an_error_without_traceback(self, command: tuple[str, ...], lora: Path) -> None:
        arguments = [str(lora) if part == "LORA" else part for part in command]
        with open("/dev/full", "w") as full:  # noqa: PTH123
            result = subprocess.run(
                [sys.executable, "-m", "lbw_bake", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert result.returncode == 1
        assert result.stderr.startswith("error: stdout: No space left on device\n")
        assert "Traceback" not in result.stderr

    @pytest.mark.skipif(sys.platform == "win32", reason="removes no current folder")
    def test_a_current_folder_that_was_removed_is_said(self, lora: Path) -> None:
        (gone := lora.with_name("gone")).mkdir()
        code = "import os, sys; os.rmdir(os.getcwd()); from lbw_bake.cli import main; main(sys.argv[1:])"
        bake = ("bake", lora, *HALF, "-o", "b.safetensors", "--json")
        result = called(sys.executable, "-c", code, *bake, cwd=gone)
        error, hint = "the current folder is no longer there", "go to one that is, and run it again"
        assert result.returncode == 1
        assert json.loads(result.stdout) == {"status": "failed", "error": error, "hint": hint}
        assert result.stderr == f"error: {error}\nhint: {hint}\n"

    @pytest.mark.parametrize(
        "command",
        [
            ("bake", "LORA", "-p", "MIDDD", "-o", "OUT"),
            ("bake", "OUT", *HALF, "-o", "OUT"),
            ("merge", "LORA", "OUT", "-o", "OUT2"),
            ("diff", "LORA", "OUT"),
            ("presets", "show", "MIDDD"),
        ],
        ids=" ".join,
    )
    def test_programs_are_told_of_an_error_too(self, command: tuple[str, ...], lora: Path, run: Run) -> None:
        paths = {"LORA": lora, "OUT": lora.with_name("out"), "OUT2": lora.with_name("out2")}
        code, out, error = run(*(paths.get(arg, arg) for arg in command), "--json")
        assert code == 1
        assert f"error: {json.loads(out)['error']}\n" in error
        assert out.count("\n") == 1

    def test_json_is_ascii_where_stdout_is(self, lora: Path) -> None:
        named = lora.rename(lora.with_name("hé 日本.safetensors"))
        result = lbw("inspect", named, "--json", PYTHONIOENCODING="ascii")
        assert json.loads(result.stdout)["file"] == str(named)


def commands(command: Any, *before: str) -> Iterator[tuple[str, ...]]:
    """The words that call each command."""
    yield before
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *before, name)


BAKE_KEYS = {"input", "output", "status", "family", "layout", "weights", "modules", "bytes", "seconds", "device"}
BAKE_KEYS |= {"warnings", "error"}


class TestJson:
    def test_a_bake_is_one_object(self, lora: Path, run: Run) -> None:
        output = lora.with_name("b.safetensors")
        facts = run.json("bake", lora, "-p", "MIDD", "-o", output, "--json")
        assert facts.keys() >= BAKE_KEYS
        assert {key: facts[key] for key in BAKE_KEYS - {"weights", "seconds"}} == {
            "input": str(lora),
            "output": str(output),
            "status": "baked",
            "family": "sd1",
            "layout": 17,
            "modules": {"copied": 9, "scaled": 0, "zeroed": 8, "removed": 0},
            "bytes": output.stat().st_size,
            "device": "cpu",
            "warnings": [],
            "error": None,
        }
        assert len(facts["weights"]) == 27
        assert facts["seconds"] >= 0

    def test_a_plan_is_one_too(self, lora: Path, run: Run) -> None:
        facts = run.json("bake", lora, "-p", "MIDD", "--dry-run", "--json")
        assert facts.keys() >= BAKE_KEYS
        assert (facts["status"], facts["output"], facts["bytes"], facts["device"]) == ("planned", None, 0, None)
        assert facts["modules"] == {"copied": 9, "scaled": 0, "zeroed": 8, "removed": 0}

    @pytest.mark.parametrize("what", ["file", "empty folder"])
    def test_a_failure_is_one_too(self, what: str, tmp_path: Path, run: Run) -> None:
        bad = tmp_path / "bad.safetensors"
        bad.write_bytes(b"no LoRA") if what == "file" else bad.mkdir()
        code, out, error = run("bake", bad, *HALF, "--out-dir", tmp_path / "out", "--json")
        facts = json.loads(out)
        assert code == 1
        assert facts.keys() >= BAKE_KEYS
        assert (facts["status"], facts["family"], facts["device"]) == ("failed", None, None)
        assert facts["modules"] == {"copied": 0, "scaled": 0, "zeroed": 0, "removed": 0}
        assert facts["input"] == str(bad)
        assert str(bad) in str(facts["error"])
        assert error.startswith("error: ")

    def test_what_is_wrong_for_all_files_is_a_failure_too(self, lora: Path, run: Run) -> None:
        code, out, _ = run("bake", lora, "-p", "MIDDD", "-o", lora.with_name("b.safetensors"), "--json")
        assert (code, json.loads(out)["status"]) == (1, "failed")

    def test_warnings_are_in_it(self, tmp_path: Path, run: Run) -> None:
        lora = write(tmp_path / "a.safetensors", unet_lora() | {"unknown": unet_lora()[f"{MODULE}.alpha"]})
        facts = run.json("bake", lora, *HALF, "-o", tmp_path / "b.safetensors", "--json")
        assert facts["warnings"] == ["1 unknown tensor copied untouched: unknown"]

    def test_every_unknown_tensor_is_named_in_it_and_on_request(self, tmp_path: Path, run: Run) -> None:
        names = [f"unknown{i}" for i in range(9)]
        lora = write(tmp_path / "a.safetensors", unet_lora() | {name: np.zeros(2, np.float32) for name in names})
        command = ("bake", lora, *HALF, "-o", tmp_path / "b.safetensors", "--force")
        assert run.json(*command, "--json")["unknown"] == names
        said = [name for name in names if f"unknown: {name}\n" in run.done(*command, "--verbose")]
        assert said == names
        assert "unknown8" not in run.done(*command)

    def test_all_families_that_fit_are_named_in_it(self, tmp_path: Path, run: Run) -> None:
        lora = write(tmp_path / "a.safetensors", kohya_lora(["unet_input_blocks_4_1_proj_in"], width=640))
        facts = run.json("bake", lora, *HALF, "-o", tmp_path / "b.safetensors", "--json")
        assert (facts["family"], facts["candidates"]) == ("sd1", ["sd1", "sd2", "sdxl"])
        assert "a.safetensors (sd1 or sd2 or sdxl)" in run.done("bake", lora, *HALF, "--dry-run")

    @pytest.mark.parametrize("options", [(), ("--verbose",), ("--quiet",), ("--dry-run",), ("--dry-run", "--verbose")])
    def test_stdout_holds_nothing_else(self, options: tuple[str, ...], lora: Path, tmp_path: Path, run: Run) -> None:
        other = write(tmp_path / "b.safetensors", unet_lora() | {"unknown": unet_lora()[f"{MODULE}.alpha"]})
        out = run.out("bake", lora, other, "-p", "MIDD", "--out-dir", tmp_path / "out", "--json", *options)
        assert {json.loads(line)["input"] for line in out.splitlines()} == {str(lora), str(other)}

    def test_without_it_a_bake_prints_nothing_on_stdout(self, lora: Path, run: Run) -> None:
        assert run("bake", lora, *HALF, "-o", lora.with_name("b.safetensors"))[:2] == (0, "")


class TestStreams:
    def test_quiet_says_nothing_but_errors(self, tmp_path: Path, run: Run) -> None:
        lora = write(tmp_path / "a.safetensors", unet_lora() | {"unknown": unet_lora()[f"{MODULE}.alpha"]})
        assert run("bake", lora, *HALF, "-o", tmp_path / "b.safetensors", "--quiet") == (0, "", "")
        code, out, error = run("bake", lora, *HALF, "-o", tmp_path / "b.safetensors", "--quiet")
        assert (code, out) == (1, "")
        assert error.startswith("error: ")

    def test_so_it_does_where_only_the_exit_code_counts(self, lora: Path, run: Run) -> None:
        baked = lora.with_name("b.safetensors")
        run.done("bake", lora, *HALF, "-o", baked)
        other = write(lora.with_name("c.safetensors"), unet_lora(dtype="float64"), metadata_of(baked))
        assert run("diff", lora, baked, "--quiet") == (0, "", "")
        code, out, error = run("diff", lora, other, "--quiet")
        assert (code, out) == (1, "")
        assert {line.partition(":")[0] for line in error.splitlines()} == {"error"}

    @pytest.mark.parametrize("count", [1, 2])
    def test_and_where_only_the_picture_does(self, count: int, lora: Path, run: Run) -> None:
        pytest.importorskip("matplotlib")
        picture = lora.with_name("a.svg")
        assert run("inspect", *[lora] * count, "--plot", picture, "--quiet") == (0, "", "")
        assert picture.exists()

    def test_verbose_shows_the_weight_of_every_block(self, lora: Path, run: Run) -> None:
        error = run("bake", lora, "-p", "MIDD", "-o", lora.with_name("b.safetensors"), "--verbose")[2]
        weights = {line.split()[0]: line.split()[2] for line in error.splitlines() if line.split()[1:2] == ["1"]}
        assert (weights["IN04"], weights["MID"], len(weights)) == ("0", "1", 17)

    def test_nothing_is_coloured_where_nobody_looks(self, lora: Path) -> None:
        for command in (("inspect", lora), ("bake", lora, *HALF, "--dry-run"), ("inspect", "missing")):
            result = lbw(*command, NO_COLOR="", TERM="xterm-256color")
            assert "\x1b" not in result.stdout + result.stderr

    def test_a_reader_that_goes_away_is_no_traceback(self, lora: Path) -> None:
        command = f"{sys.executable} -m lbw_bake inspect {' '.join([str(lora)] * 200)} | head -n 1"
        result = called("sh", "-c", command)
        assert result.stdout.startswith("Norms of 200 files")
        assert "Traceback" not in result.stderr


NAMES = (
    "two words",
    'it\'s "quoted"',
    "東京 🎨",
    "a=b,c:d",
    "{stem}",
    "%s",
    "a.b.c",
    "*",
    "$HOME",
    "-dash",
    "~",
    "a\nb",
    "é\u0301",
    "con",
)


class TestNames:
    @pytest.mark.parametrize("name", NAMES)
    def test_files_may_be_called_anything(
        self, name: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write(Path(f"{name}.safetensors"), unet_lora())
        file = f"{name}.safetensors"
        assert run.json("inspect", "--json", "--", file)["file"] == file
        for options in ((), ("--out-dir", "out"), ("-o", f"{name}2.safetensors")):
            assert Path(run.json("bake", *HALF, "--json", *(options or ("--in-place",)), "--", file)["output"]).exists()

    def test_even_what_is_no_text(self, tmp_path: Path) -> None:
        """File names on Linux are bytes."""
        source = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors")
        Path(source).write_bytes(write(tmp_path / "a.safetensors", unet_lora(), {"ss_output_name": "x"}).read_bytes())
        for command in (
            ("inspect", source),
            ("inspect", "--json", source),
            ("bake", source, *HALF, "--in-place", "--json"),
        ):
            result = lbw(*command, PYTHONIOENCODING="utf-8")
            assert "Traceback" not in result.stderr
            assert result.returncode == 0

    @pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode here")
    def test_or_has_letters_that_the_locale_lacks(self, tmp_path: Path) -> None:
        source = write(tmp_path / "hé 東京.safetensors", unet_lora())
        for place in (("--out-dir", tmp_path / "out"), ("--in-place",)):
            result = lbw("bake", source, *HALF, *place, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
            assert result.returncode == 0, result.stderr
        assert (tmp_path / "out" / source.name).read_bytes() == source.read_bytes()


class TestTokens:
    @pytest.mark.parametrize(
        "token",
        [
            "<lora:a:1:lbw=MIDD>",
            "<lora:a:0.5:1:lbw=1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0:te=1>",
            "<lora:a:1:MIDD>",
            "<lora:a:1:1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0>",
        ],
    )
    def test_a_pasted_token_means_what_it_says(self, token: str, bake_tensors: BakeTensors) -> None:
        original = unet_lora()
        expected = [1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
        assert measured(original, bake_tensors(original, "--token", token)) == pytest.approx(expected)

    def test_its_strengths_multiply(self, bake_tensors: BakeTensors) -> None:
        original = unet_lora(["BASE", "MID"])
        baked = bake_tensors(original, "--token", "<lora:a:0.5:0.25:lbw=ALL>", "--te", "0.5", "--strength", "2")
        assert measured(original, baked) == pytest.approx([0.5, 0.5])

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--token", "<lora:a:0.7:lbw=MIDD>"), "; load it with a weight of 1, a strength of 0.7 is baked in"),
            (("--token", "<lora:a:1:0.5:lbw=MIDD>"), "strengths of 1 (te) and 0.5 (unet) are baked in"),
            (("-p", "MIDD", "--te", "0.5"), "strengths of 0.5 (te) and 1 (unet) are baked in"),
            (("-p", "MIDD", "--strength", "0.7"), "; load it with a weight of 1, a strength of 0.7 is baked in"),
            (("--token", "<lora:a:1:lbw=MIDD>"), "MB/s)"),
            (("-p", "MIDD", "--te", "0"), "MB/s)"),
        ],
    )
    def test_a_strength_that_is_baked_in_is_not_to_be_given_again(
        self, options: tuple[str, ...], said: str, lora: Path, tmp_path: Path, run: Run
    ) -> None:
        error = run.done("bake", lora, *options, "-o", tmp_path / "b.safetensors", "--strict")
        assert error.rstrip().replace("kB/s", "MB/s").endswith(said)

    @pytest.mark.parametrize("field", ["start=5", "stop=10", "step=5-10"])
    def test_what_happens_while_sampling_cannot_be_baked(self, field: str, lora: Path, run: Run) -> None:
        error = run.refused("bake", lora, "--token", f"<lora:a:1:lbw=MIDD:{field}>", "--dry-run")
        assert f"{field.partition('=')[0]} cannot be baked" in error


@pytest.fixture(scope="session")
def large_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 MB on paper, nearly nothing on disk."""
    elements = 150_000_000
    header, position = {}, 0
    for role, shape in (("lora_down", (2, elements // 2)), ("lora_up", (elements // 2, 2))):
        offsets = [position, position + 2 * elements]
        header[f"{MODULE}.{role}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": offsets}
        position = offsets[1]
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    write_header(path, json.dumps({"__metadata__": {"sshs_model_hash": ""}, **header}).encode())
    os.truncate(path, path.stat().st_size + position)
    return path


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder whose large files do not outlive the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def peak_memory(*args: str | Path) -> int:
    """Of a command, in kB, as the kernel itself records it: getrusage counts the parent before the child was born."""
    code = (
        "import sys; from pathlib import Path; from lbw_bake.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(Path('/proc/self/status').read_text())"
    )
    result = python("-c", code, *args)
    assert result.returncode == 0, result.stderr
    return next(int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("VmHWM:"))


def started(*args: object) -> subprocess.Popen[str]:
    """`lbw` in a group of processes of its own, as a terminal starts it and ends it."""
    command = [sys.executable, "-m", "lbw_bake", *map(str, args)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


@contextmanager
def started_batch(lora: Path, scratch: Path, count: int) -> Iterator[subprocess.Popen[str]]:
    """So many copies of a LoRA being baked to the folder `out`, two of them in processes that are at work."""
    inputs = [scratch / f"{number}.safetensors" for number in range(count)]
    for path in inputs:
        path.symlink_to(lora)
    (scratch / "out").mkdir()
    with started("bake", *inputs, *HALF, "--jobs", 2, "--out-dir", scratch / "out") as process:
        while process.poll() is None and len(list((scratch / "out").glob(".*"))) < min(count, 2):
            time.sleep(0.01)
        yield process


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The numbers of its worker processes, the one started first being the first."""
    children = map(int, Path(CHILDREN.format(process.pid)).read_text().split())
    return [child for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


class TestProcess:
    @pytest.mark.parametrize("number", ENDING, ids=[number.name for number in ENDING])
    @pytest.mark.parametrize("batch", [False, True], ids=["one file", "a batch in processes"])
    def test_what_ends_it_leaves_nothing(self, batch: bool, number: int, large_lora: Path, scratch: Path) -> None:
        with started_batch(large_lora, scratch, 2 if batch else 1) as process:
            os.killpg(process.pid, number)  # as a terminal does
            _, error = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert error == "interrupted: 0 written, 2 left\n" * batch
        assert list((scratch / "out").iterdir()) == []

    @pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs hangups")
    def test_what_it_was_started_to_ignore_it_does(self, large_lora: Path, scratch: Path) -> None:
        """As nohup has it, workers too."""
        ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with started_batch(large_lora, scratch, 2) as process:
                os.killpg(process.pid, signal.SIGHUP)
                _, error = process.communicate(timeout=60)
        finally:
            signal.signal(signal.SIGHUP, ignored)
        assert (process.returncode, error.splitlines()[-1]) == (0, "done: 2 written")

    def test_impatience_is_no_traceback(self, large_lora: Path, scratch: Path) -> None:
        with started_batch(large_lora, scratch, 4) as process:
            while process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(0.02)
            _, error = process.communicate(timeout=60)
        assert process.returncode in (130, -signal.SIGINT)  # the last one may end it before it ends itself
        assert error in ("interrupted: 0 written, 4 left\n", "")
        assert list((scratch / "out").iterdir()) == []

    @pytest.mark.skipif(sys.platform == "win32", reason="keeps no interrupt waiting")
    def test_none_but_the_first_interrupt_counts(self, lora: Path, tmp_path: Path) -> None:
        """Two that come at once, and one when the half-written file is about to be removed."""
        code = (
            "import pathlib; from signal import raise_signal, SIGINT, SIGTERM\n"
            "from lbw_bake import cli, outputs; from lbw_bake.interrupts import uninterrupted\n"
            "def write(*_):\n"
            "    with uninterrupted(): raise_signal(SIGINT), raise_signal(SIGTERM)\n"
            "def remove(path, **_):\n"
            "    raise_signal(SIGTERM), raise_signal(SIGINT), path.rename(path.parents[1] / 'removed')\n"
            "outputs.write_all, pathlib.Path.unlink = write, remove\n"
            "cli.main()"
        )
        (tmp_path / "out").mkdir()
        result = python("-c", code, "bake", lora, *HALF, "-o", tmp_path / "out" / "b.safetensors")
        assert (result.returncode, result.stderr) == (128 + signal.SIGINT, "")
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.skipif(not CHILDREN_LISTED, reason="needs the children that Linux can list")
    def test_a_worker_that_is_killed_loses_nothing(self, large_lora: Path, scratch: Path) -> None:
        with started_batch(large_lora, scratch, 4) as process:
            os.kill(workers_of(process)[0], signal.SIGKILL)
            _, error = process.communicate(timeout=120)
        assert (process.returncode, error.splitlines()[-1]) == (0, "done: 4 written"), error
        assert {path.name for path in (scratch / "out").iterdir()} == {f"{i}.safetensors" for i in range(4)}

    def test_outcomes_come_through_a_pipe_as_files_are_done(self, large_lora: Path, scratch: Path) -> None:
        inputs = [write(scratch / "small.safetensors", unet_lora()), large_lora]
        command = [sys.executable, "-m", "lbw_bake", "bake", *map(str, inputs), "--out-dir", str(scratch / "out")]
        with subprocess.Popen([*command, *HALF, "--json", "-j1"], stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert json.loads(process.stdout.readline())["input"] == str(inputs[0])
            assert process.poll() is None
            process.kill()

    @pytest.mark.parametrize("inputs", [1, 3])
    def test_a_batch_that_nobody_listens_to_ends_and_says_what_it_wrote(
        self, inputs: int, lora: Path, tmp_path: Path
    ) -> None:
        loras = [shutil.copy(lora, tmp_path / f"{i}.safetensors") for i in range(inputs)]
        presets = ("-p", "MIDD", "-p", "OUTALL")
        command = ("bake", *loras, "--out-dir", tmp_path / "out", *presets, "--json", "-j1")
        with subprocess.Popen(
            [sys.executable, "-m", "lbw_bake", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout
            process.stdout.close()
            assert process.stderr
            said = process.stderr.read()
        assert len(list((tmp_path / "out").iterdir())) == 2
        assert (process.returncode, said.splitlines()[0]) == (1, f"interrupted: 2 written, {2 * inputs - 2} left")

    @pytest.mark.skipif(not CHILDREN_LISTED, reason="needs the children that Linux can list")
    def test_a_batch_whose_workers_are_all_killed_ends(self, large_lora: Path, scratch: Path) -> None:
        with started_batch(large_lora, scratch, 2) as process:
            while process.poll() is None:
                with suppress(OSError):  # some have just gone
                    for worker in workers_of(process):
                        os.kill(worker, signal.SIGKILL)
            _, error = process.communicate(timeout=120)
        assert error.count("its process died (exit code -9)\nhint: run it again") == 2
        assert (process.returncode, error.splitlines()[-1]) == (1, "done: 0 written, 2 failed")
        assert list((scratch / "out").iterdir()) == []

    @pytest.mark.skipif(not CHILDREN_LISTED, reason="needs the children that Linux can list")
    def test_no_worker_outlives_its_batch(self, large_lora: Path, scratch: Path) -> None:
        with started_batch(large_lora, scratch, 4) as process:
            process.kill()
            process.communicate(timeout=120)  # until nobody can write to its stderr
        assert len(list((scratch / "out").glob("[0-9]*"))) <= 2

    def test_a_batch_that_is_left_halfway_ends_with_its_program(self, lora: Path, tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from lbw_bake import Naming, Recipe, batch, make_batch\n"
            "batch._WORTH_PROCESSES = 0\n"
            "jobs = make_batch(sys.argv[1:3], [Recipe()], Naming(out_dir=Path(sys.argv[3])))\n"
            "results = batch.run_batch(jobs, workers=2)\n"
            "next(results)\n"
        )
        other = shutil.copy(lora, tmp_path / "other.safetensors")
        assert python("-c", code, lora, other, tmp_path / "out", timeout=30).returncode == 0

    @pytest.mark.skipif(not CHILDREN_LISTED, reason="needs the children that Linux can list")
    def test_workers_that_are_starting_bear_an_interrupt(self, large_lora: Path, scratch: Path) -> None:
        for name in "ab":
            (scratch / f"{name}.safetensors").symlink_to(large_lora)
        with started("bake", scratch, "--out-dir", scratch / "out", *HALF, "--jobs", 2) as process:
            children = Path(CHILDREN.format(process.pid))
            while process.poll() is None and len(children.read_text().split()) < 2:
                time.sleep(0.001)
            os.killpg(process.pid, signal.SIGINT)
            _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in error

    def test_an_interrupted_batch_says_what_it_wrote(self, large_lora: Path, scratch: Path) -> None:
        out_dir = scratch / "out"
        with started_batch(large_lora, scratch, 8) as process:
            while process.poll() is None and not list(out_dir.glob("[0-9]*")):
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGINT)
            _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        said, written = error.count("baked: "), len(list(out_dir.iterdir()))
        assert error.splitlines()[-1] == f"interrupted: {said} written, {8 - said} left"
        assert said <= written <= said + 2  # a file may have got its name when its worker was interrupted

    def test_an_interrupt_while_it_is_loading_ends_it_without_a_word(self, tmp_path: Path) -> None:
        (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n", encoding="utf-8")
        result = lbw("--help", PYTHONPATH=os.pathsep.join((str(tmp_path), *sys.path)))
        assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
    @pytest.mark.parametrize("options", [HALF, ("-w", "*=0")], ids=["scaled", "zeroed"])
    def test_memory_stays_flat(self, options: tuple[str, ...], large_lora: Path, scratch: Path) -> None:
        assert peak_memory("bake", large_lora, *options, "-o", scratch / "out.safetensors") < 64 * 1024

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
    def test_many_outputs_share_the_memory_of_their_buffers(self, scratch: Path) -> None:
        source = write(
            scratch / "a.safetensors",
            {
                f"{MODULE}.lora_up.weight": np.ones((500_000, 4), "f2"),
                f"{MODULE}.lora_down.weight": np.ones((4, 8), "f2"),
            },
        )
        values = ",".join(str(i / 16) for i in range(16))
        assert peak_memory("sweep", source, "--x", f"values={values}", "-o", scratch / "plot") < 72 * 1024

    @pytest.mark.parametrize(
        "command",
        [
            ("bake", "LORA", *HALF, "-o", "OUT"),
            ("bake", "LORA", "-p", "MIDD", "--dry-run"),
            ("inspect", "LORA"),
            ("diff", "LORA", "LORA"),
        ],
        ids=" ".join,
    )
    def test_torch_is_left_alone(self, command: tuple[str, ...], lora: Path) -> None:
        paths = {"LORA": lora, "OUT": lora.with_name("out.safetensors")}
        assert "torch" not in imported(*(paths.get(arg, arg) for arg in command))

    @pytest.mark.parametrize("command", [("--help",), ("bake", "--help"), ("--version",)], ids=" ".join)
    def test_help_needs_neither_numpy_nor_torch(self, command: tuple[str, ...]) -> None:
        assert not imported(*command) & {"numpy", "torch", "safetensors", "yaml", "ml_dtypes"}

    def test_all_but_gpus_works_without_torch(self, lora: Path) -> None:
        code = "import sys; sys.modules['torch'] = None; from lbw_bake.cli import main; main(sys.argv[1:])"
        for command in (("bake", lora, *HALF, "-o", lora.with_name("out.safetensors")), ("inspect", lora)):
            assert python("-c", code, *command).returncode == 0
        refused = python("-c", code, "bake", lora, *HALF, "-o", lora.with_name("cuda.safetensors"), "--device", "cuda")
        assert refused.returncode == 1
        assert "torch is not installed" in refused.stderr


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_a_stream_that_is_closed_is_no_traceback(closed: str, lora: Path, tmp_path: Path) -> None:
    for words in (f"bake {lora} -w '*=0.5' -o {tmp_path / 'b.safetensors'} -f", f"inspect {lora}", "validate -"):
        result = called("bash", "-c", f"{sys.executable} -m lbw_bake {words} {closed}", input="")
        assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
    assert (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("bake", "a.safetensors", "-w", "*=0.5", "--out-dir", ""),
        ("bake", "a.safetensors", "-w", "*=0.5", "-o", ""),
        ("bake", "a.safetensors", "-w", "*=0.5", "-o", "b.safetensors", "--cluster", ""),
        ("merge", "a.safetensors", "-o", ""),
        ("sweep", "a.safetensors", "--x", "values=1", "-o", ""),
        ("sweep", "a", "--grid", ""),
        ("sweep", "a", "--grid", "pictures", "--dry-run"),
        ("validate", ""),
    ],
)
def test_what_must_not_mean_the_current_folder_is_wrong_usage(command: tuple[str, ...], run: Run) -> None:
    assert run(*command)[0] == 2


@pytest.mark.parametrize("command", ["bake", "merge"])
def test_a_folder_is_no_output(command: str, lora: Path, tmp_path: Path, run: Run) -> None:
    code, _, error = run(command, lora, *(("-p", "MIDD") if command == "bake" else ()), "-o", f"{tmp_path}/new/")
    assert code == 2
    assert "names a folder; give a file" in " ".join(error.replace("│", "").split())
    assert not (tmp_path / "new").exists()
