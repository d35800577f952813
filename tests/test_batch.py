"""Many files: found, named, baked one by one; what goes wrong with one does not stop the others."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, bound_by_permissions, measured, metadata_of, record_in, unet_lora, write
from safetensors.numpy import load_file

import lbw_bake.run as batch_run
from lbw_bake import LbwError, Naming, Options, Recipe, Weights, make_batch, make_sweep, merge, run_batch, write_sweep
from lbw_bake.jobs import Job, folded, name_problem, repeatable
from lbw_bake.plan import Plan
from lbw_bake.rewrite import Rewritten

ORIGINAL = unet_lora()
HALF = ("-w", "*=0.5")


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA in a folder of its own."""
    (tmp_path / "loras").mkdir()
    return write(tmp_path / "loras" / "a.safetensors", ORIGINAL, {"ss_output_name": "a"})


@pytest.fixture
def loras(lora: Path) -> Path:
    """A folder of three LoRAs, one of them deeper, beside files of other kinds."""
    (lora.parent / "deeper").mkdir()
    for name in ("b", "deeper/c"):
        write(lora.parent / f"{name}.safetensors", ORIGINAL)
    (lora.parent / "notes.txt").write_text("no LoRA")
    (lora.parent / ".hidden.safetensors").write_bytes(b"no LoRA either")
    return lora.parent


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def is_half(path: Path) -> bool:
    return set(measured(ORIGINAL, load_file(path))) == {0.5}


class TestOutputs:
    def test_an_existing_output_is_replaced_only_by_force(self, lora: Path, tmp_path: Path, run: Run) -> None:
        output = tmp_path / "out.safetensors"
        output.write_bytes(b"old")
        error = run.refused("bake", lora, *HALF, "-o", output)
        assert output.read_bytes() == b"old"
        assert f"error: {output}: already exists" in error
        assert "--force" in error
        run.done("bake", lora, *HALF, "-o", output, "--force")
        assert is_half(output)

    @pytest.mark.parametrize(
        ("source", "output"),
        [
            ("a.safetensors", "a.safetensors"),
            ("a.safetensors", "../loras/a.safetensors"),
            ("a.safetensors", "symlink.safetensors"),
            ("a.safetensors", "hardlink.safetensors"),
            ("symlink.safetensors", "a.safetensors"),
        ],
    )
    def test_the_input_is_never_its_own_output(self, source: str, output: str, lora: Path, run: Run) -> None:
        (lora.parent / "symlink.safetensors").symlink_to(lora)
        (lora.parent / "hardlink.safetensors").hardlink_to(lora)
        before = lora.read_bytes()
        error = run.refused("bake", lora.parent / source, *HALF, "-o", lora.parent / output, "--force")
        assert "is the input itself" in error
        assert "--in-place" in error
        assert lora.read_bytes() == before

    def test_in_place_replaces_the_input_and_keeps_its_mode_and_name(self, lora: Path, run: Run) -> None:
        lora.chmod(0o640)
        run.done("bake", lora, *HALF, "--in-place")
        assert is_half(lora)
        assert lora.stat().st_mode & 0o7777 == 0o640
        assert metadata_of(lora)["ss_output_name"] == "a"
        assert names_in(lora.parent) == {"a.safetensors"}

    def test_in_place_follows_a_link_to_the_file(self, lora: Path, tmp_path: Path, run: Run) -> None:
        link = tmp_path / "link.safetensors"
        link.symlink_to(lora)
        run.done("bake", link, *HALF, "--in-place")
        assert link.is_symlink()
        assert is_half(lora)

    def test_in_place_leaves_other_names_of_the_file_what_it_was(self, lora: Path, run: Run) -> None:
        before = lora.read_bytes()
        other = lora.parent / "other.safetensors"
        other.hardlink_to(lora)
        run.done("bake", lora, *HALF, "--in-place")
        assert is_half(lora)
        assert other.read_bytes() == before

    def test_an_output_that_is_a_link_is_replaced_and_not_what_it_leads_to(
        self, lora: Path, tmp_path: Path, run: Run
    ) -> None:
        target, link = tmp_path / "precious", tmp_path / "link.safetensors"
        target.write_bytes(b"precious")
        link.symlink_to(target)
        run.done("bake", lora, *HALF, "-o", link, "--force")
        assert not link.is_symlink()
        assert is_half(link)
        assert target.read_bytes() == b"precious"

    @pytest.mark.parametrize("target", ["nowhere", "link.safetensors"])
    def test_a_link_that_leads_nowhere_is_there(self, target: str, lora: Path, tmp_path: Path, run: Run) -> None:
        link = tmp_path / "link.safetensors"
        link.symlink_to(target)
        error = run.refused("bake", lora, *HALF, "-o", link)
        assert error.startswith(f"error: {link}: ")
        assert link.is_symlink()
        assert names_in(tmp_path) == {"loras/a.safetensors"}

    @pytest.mark.parametrize("options", [("--in-place",), ("-o", "out.safetensors", "--force")], ids=" ".join)
    def test_a_write_protected_file_is_never_replaced(
        self, options: tuple[str, ...], lora: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(lora.parent)
        protected = lora if "--in-place" in options else write(Path("out.safetensors"), ORIGINAL)
        before = protected.read_bytes()
        protected.chmod(0o444)
        error = run.refused("bake", lora, *HALF, *options)
        assert "is write-protected" in error
        assert protected.read_bytes() == before

    def test_a_device_is_no_output(self, lora: Path, run: Run) -> None:
        error = run.refused("bake", lora, *HALF, "-o", "/dev/full", "--force")
        assert "/dev/full: is not a regular file" in error

    @pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no open files among the paths here")
    def test_an_open_file_is_no_output(self, lora: Path, tmp_path: Path, run: Run) -> None:
        """Root could replace /dev/stdout for everybody."""
        link = tmp_path / "stdout"
        with (tmp_path / "out").open("wb") as file:
            link.symlink_to(f"/proc/self/fd/{file.fileno()}")
            for output in (link, link.readlink()):
                assert "is not a regular file" in run.refused("bake", lora, *HALF, "-o", output, "--force")
        assert link.is_symlink()

    @pytest.mark.parametrize("length", [255, 256, 5000])
    def test_names_as_long_as_can_be_and_longer(self, length: int, lora: Path, tmp_path: Path, run: Run) -> None:
        output = tmp_path / f"{'x' * (length - 12)}.safetensors"
        code, _, error = run("bake", lora, *HALF, "-o", output)
        assert code == (length > 255)
        assert ("File name too long" in error) == (length > 255)
        code, _, error = run("bake", output, *HALF, "--in-place")
        assert code == (length > 255)
        assert "Traceback" not in error

    def test_a_named_input_is_nobody_elses_output(self, loras: Path, run: Run) -> None:
        before = (loras / "b.safetensors").read_bytes()
        options = ("--out-dir", loras, "--name", "b", "--force")
        error = run.refused("bake", loras / "a.safetensors", loras / "b.safetensors", "-w", "*=0.5", *options)
        assert f"{loras / 'b.safetensors'}: " in error
        assert (loras / "b.safetensors").read_bytes() == before

    def test_nor_is_one_that_was_found_and_never_baked(self, loras: Path, run: Run) -> None:
        original = write(loras / "a-MIDD.safetensors", ORIGINAL)
        before = original.read_bytes()
        options = ("-p", "MIDD", "--out-dir", loras, "--name", "{stem}-{preset}")
        error = run.refused("bake", loras, *options, "--force")
        assert f"error: {original}: is another input\n" in error
        assert original.read_bytes() == before
        original.unlink()
        for _ in range(2):  # an earlier output is nobody's input
            assert "done: 2 written" in run.done("bake", loras, *options, "--force")

    def test_a_failed_bake_in_place_leaves_the_input(self, lora: Path, run: Run) -> None:
        before = lora.read_bytes()
        run.refused("bake", lora, "-w", "*=1e300", "--in-place")
        assert lora.read_bytes() == before
        assert names_in(lora.parent) == {"a.safetensors"}

    @pytest.mark.parametrize("output", ["missing/out.safetensors", "loras"])
    def test_an_output_that_cannot_be_is_refused_before_the_work(
        self, output: str, lora: Path, tmp_path: Path, run: Run
    ) -> None:
        error = run.refused("bake", lora, *HALF, "-o", tmp_path / output)
        assert f"error: {tmp_path / output}: " in error
        assert names_in(tmp_path) == {"loras/a.safetensors"}

    def test_an_output_folder_that_is_a_file(self, lora: Path, tmp_path: Path, run: Run) -> None:
        (tmp_path / "file").touch()
        error = run.refused("bake", lora, *HALF, "--out-dir", tmp_path / "file")
        assert f"error: {tmp_path / 'file'}" in error

    def test_a_dry_run_writes_nothing_and_shows_the_weights(self, lora: Path, tmp_path: Path, run: Run) -> None:
        code, out, error = run("bake", lora, "-p", "MIDD", "--dry-run", "--out-dir", tmp_path / "out")
        assert (code, out) == (0, "")
        assert "nothing written" in error
        assert [line.split()[:3] for line in error.splitlines() if line.startswith("IN05")] == [["IN05", "1", "1"]]
        assert names_in(tmp_path) == {"loras/a.safetensors"}
        assert not (tmp_path / "out").exists()

    def test_a_dry_run_needs_no_output(self, lora: Path, run: Run) -> None:
        run.done("bake", lora, "-p", "MIDD", "--dry-run")


class TestFolders:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ((), {"a.safetensors", "b.safetensors"}),
            (("--recursive",), {"a.safetensors", "b.safetensors", "deeper/c.safetensors"}),
            (("--recursive", "--include", "*c*"), {"deeper/c.safetensors"}),
            (("--exclude", "a*"), {"b.safetensors"}),
            (("--recursive", "--include", "deeper"), {"deeper/c.safetensors"}),
            (("--recursive", "--exclude", "deep*/"), {"a.safetensors", "b.safetensors"}),
            (("--recursive", "--exclude", "?"), {"a.safetensors", "b.safetensors", "deeper/c.safetensors"}),
        ],
    )
    def test_its_loras_are_found_and_their_names_kept(
        self, options: tuple[str, ...], expected: set[str], loras: Path, tmp_path: Path, run: Run
    ) -> None:
        run.done("bake", loras, *HALF, "--out-dir", tmp_path / "out", *options)
        assert names_in(tmp_path / "out") == expected
        assert all(is_half(tmp_path / "out" / name) for name in expected)

    def test_a_folder_of_one_has_a_summary_too(self, lora: Path, tmp_path: Path, run: Run) -> None:
        assert "done: 1 written\n" in run.done("bake", lora.parent, *HALF, "--out-dir", tmp_path / "out")
        assert "done: " not in run.done("bake", lora, *HALF, "--out-dir", tmp_path / "again")

    def test_a_suffix_may_be_in_capitals(self, lora: Path, tmp_path: Path, run: Run) -> None:
        lora.rename(lora.with_name("A.SAFETENSORS"))
        run.done("bake", lora.parent, *HALF, "--out-dir", tmp_path / "out")
        assert names_in(tmp_path / "out") == {"A.safetensors"}

    def test_files_of_another_format_are_left_out_and_said(self, loras: Path, tmp_path: Path, run: Run) -> None:
        for name in ("x.pt", "y.ckpt", ".hidden.pt", "deeper/z.bin"):
            (loras / name).write_bytes(b"PK")
        error = run.done("bake", loras, *HALF, "--out-dir", tmp_path / "out")
        assert "skipped: 2 files of another kind than safetensors (.ckpt, .pt)\n" in error
        assert names_in(tmp_path / "out") == {"a.safetensors", "b.safetensors"}

    def test_a_folder_of_another_format_says_what_to_do(self, tmp_path: Path, run: Run) -> None:
        (tmp_path / "x.pt").write_bytes(b"PK")
        error = run.refused("bake", tmp_path, *HALF, "--out-dir", tmp_path / "out")
        assert "hint: convert its .pt files to safetensors first" in error

    @pytest.mark.parametrize("bad", ["broken", "missing", "empty folder"])
    def test_the_others_go_on_after_a_failure(self, bad: str, loras: Path, tmp_path: Path, run: Run) -> None:
        failing = tmp_path / "bad.safetensors"
        if bad == "broken":
            failing.write_bytes(b"no LoRA")
        elif bad == "empty folder":
            failing.mkdir()
        error = run.refused("bake", failing, loras, *HALF, "--out-dir", tmp_path / "out")
        assert f"error: {failing}: " in error
        assert "2 written" in error
        assert "1 failed" in error
        assert names_in(tmp_path / "out") == {"a.safetensors", "b.safetensors"}

    def test_an_empty_folder_counts_as_a_failure_also_beside_one_file(
        self, lora: Path, tmp_path: Path, run: Run
    ) -> None:
        (empty := tmp_path / "empty").mkdir()
        error = run.refused("bake", lora, empty, "-p", "MIDD", "--out-dir", tmp_path / "out")
        assert "done: 1 written, 1 failed" in error

    @pytest.mark.parametrize("option", ["--include", "--exclude"])
    def test_files_that_are_named_are_not_chosen_among(self, option: str, lora: Path, tmp_path: Path, run: Run) -> None:
        """As where a shell made names of a pattern: all of them would be baked."""
        before = lora.read_bytes()
        assert "and no input is one\n" in run.refused("bake", lora, *HALF, "--in-place", option, "*old*")
        assert lora.read_bytes() == before
        assert "no such file" in run.refused("bake", tmp_path / "typo", *HALF, "--in-place", option, "*old*")

    def test_a_folder_without_a_match_says_where_else_to_look(self, loras: Path, tmp_path: Path, run: Run) -> None:
        command = ("bake", loras, *HALF, "--out-dir", tmp_path / "out", "--include", "*c.*")
        assert run.refused(*command).endswith("check --include and --exclude, or look deeper with --recursive\n")
        assert run.refused(*command, "--exclude", "deeper", "-r").endswith("hint: check --include and --exclude\n")

    def test_a_folder_whose_loras_are_all_named_too_is_not_empty(self, lora: Path, tmp_path: Path, run: Run) -> None:
        error = run.done("bake", lora, lora.parent, *HALF, "--out-dir", tmp_path / "out")
        assert "error" not in error

    def test_an_unknown_family_is_said_once_and_not_of_every_file(self, loras: Path, tmp_path: Path, run: Run) -> None:
        error = run.refused("bake", loras, *HALF, "--family", "sdlx", "--out-dir", tmp_path / "out")
        assert error == "error: unknown family 'sdlx'\nhint: did you mean sdxl?\n"
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("force", [(), ("--force",)])
    def test_two_inputs_never_share_an_output(
        self, force: tuple[str, ...], loras: Path, tmp_path: Path, run: Run
    ) -> None:
        other = write(tmp_path / "a.safetensors", ORIGINAL)
        error = run.refused("bake", loras / "a.safetensors", other, *HALF, "--out-dir", tmp_path / "out", *force)
        assert str(other) in error
        assert not (tmp_path / "out").exists()

    def test_nor_do_they_through_a_link_between_output_folders(self, lora: Path, tmp_path: Path, run: Run) -> None:
        for name in ("p", "q"):
            (tmp_path / "many" / name).mkdir(parents=True)
            shutil.copy(lora, tmp_path / "many" / name)
        (tmp_path / "out" / "p").mkdir(parents=True)
        (tmp_path / "out" / "q").symlink_to("p")
        options = (*HALF, "--recursive", "--out-dir", tmp_path / "out", "--force")
        assert "would be written from" in run.refused("bake", tmp_path / "many", *options)
        assert names_in(tmp_path / "out") == set()

    def test_the_hint_is_none_that_was_followed(self, loras: Path, tmp_path: Path, run: Run) -> None:
        other = write(tmp_path / "a.safetensors", ORIGINAL)
        command = ("bake", loras / "a.safetensors", "--out-dir", tmp_path / "out", "--name")
        assert "--recursive" in run.refused(*command, "{stem}-{preset}", "-p", "MIDD", other)
        assert "{stem}-{preset}" in run.refused(*command, "{preset}", "-p", "MIDD", other)
        assert "{stem}-{preset}" in run.refused(*command, "{stem}", "-p", "MIDD", "-p", "ALL")
        assert "each preset once" in run.refused(*command, "{stem}-{preset}", "-p", "MIDD", "-p", "MIDD")

    @pytest.mark.parametrize("problem", ["too long", "a loop"])
    def test_a_path_that_cannot_be_looked_at_is_its_own_problem(
        self, problem: str, lora: Path, tmp_path: Path, run: Run
    ) -> None:
        bad = tmp_path / ("x" * 300 if problem == "too long" else "loop")
        if problem == "a loop":
            bad.symlink_to(bad)
        error = run.refused("bake", bad, lora, *HALF, "--out-dir", tmp_path / "out")
        assert f"error: {bad}: cannot be read: " in error
        assert "permissions" not in error
        assert "done: 1 written, 1 failed" in error

    def test_an_output_folder_that_cannot_be_made_fails_its_files_alone(
        self, loras: Path, tmp_path: Path, run: Run
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "deeper").touch()
        error = run.refused("bake", loras, "--recursive", *HALF, "--out-dir", tmp_path / "out")
        assert f"error: {tmp_path / 'out' / 'deeper'}: cannot be made: File exists\n" in error
        assert "done: 2 written, 1 failed" in error

    def test_what_is_named_twice_is_baked_once(
        self, lora: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(lora.parent)
        for named in ((lora, lora.parent / "." / lora.name, lora.name), (lora.parent, Path())):
            out = run.out("bake", *named, *HALF, "--out-dir", tmp_path / "out", "--json", "--force")
            assert len(out.splitlines()) == 1

    def test_of_several_an_existing_output_may_be_skipped(self, loras: Path, tmp_path: Path, run: Run) -> None:
        command = ("bake", loras, *HALF, "--out-dir", tmp_path / "out")
        run.done(*command)
        assert "--skip-existing" in run.refused(*command)

    def test_a_folder_can_be_baked_in_place(self, loras: Path, run: Run) -> None:
        run.done("bake", loras, "--recursive", *HALF, "--in-place")
        assert all(is_half(loras / name) for name in ("a.safetensors", "b.safetensors", "deeper/c.safetensors"))

    def test_files_found_that_were_baked_before_are_not_baked_again(self, loras: Path, run: Run) -> None:
        for _ in range(2):
            out = run.out("bake", loras, *HALF, "--in-place", "--strict", "--json")
        skipped = [json.loads(line) for line in out.splitlines()]
        assert {outcome["status"] for outcome in skipped} == {"skipped"}
        assert {outcome["note"] for outcome in skipped} == {"was baked before; name it to bake it again"}
        assert is_half(loras / "a.safetensors")
        error = run.done("bake", loras, "-p", "MIDD", "-p", "ALL", "--out-dir", loras.parent / "out")
        assert error.count(f"skipped: {loras / 'a.safetensors'} (was baked before; ") == 1
        assert "done: 0 written, 4 skipped\n" in error

    def test_outputs_are_not_looked_for_among_inputs(self, loras: Path, run: Run) -> None:
        error = run.refused("bake", loras, "--recursive", *HALF, "--out-dir", loras / "out")
        assert "inside the input folder" in error
        assert not (loras / "out").exists()

    def test_json_says_what_modified_the_weights_as_the_record_does(self, lora: Path, tmp_path: Path, run: Run) -> None:
        options = ("--strength", "0.5", "--te", "0", "--unet", "2", "--element", "IN01:proj:0.3")
        found = run.json("bake", lora, "-p", "ALL", *options, "-o", tmp_path / "b.safetensors", "--json")
        record = record_in(tmp_path / "b.safetensors")
        for name in ("strength", "te", "unet", "elements", "weights"):
            assert found[name] == record[name], name

    def test_a_dry_run_shows_every_preset(self, lora: Path, run: Run) -> None:
        error = run.done("bake", lora, "-p", "MIDD", "-p", "OUTALL", "--dry-run")
        assert error.count("planned: ") == 2

    def test_a_dry_run_refuses_what_the_bake_would(self, loras: Path, tmp_path: Path, run: Run) -> None:
        nested = ("--recursive", "--out-dir", loras / "out")
        assert "inside the input folder" in run.refused("bake", loras, *nested, *HALF, "--dry-run")
        missing = ("-o", tmp_path / "missing" / "x.safetensors")
        assert "there is no folder" in run.refused("bake", loras / "a.safetensors", *missing, *HALF, "--dry-run")
        (protected := write(tmp_path / "protected.safetensors", ORIGINAL)).chmod(0o444)
        over = ("-o", protected, "--force")
        assert "is write-protected" in run.refused("bake", loras / "a.safetensors", *over, *HALF, "--dry-run")
        run.done("bake", loras, "--out-dir", tmp_path / "new", *HALF, "--dry-run")
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("out", ["file", "file/deeper", "out"])
    def test_a_dry_run_refuses_folders_that_the_bake_could_not_make(
        self, out: str, loras: Path, tmp_path: Path, run: Run
    ) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "deeper").touch()
        for dry in ((), ("--dry-run",)):
            error = run.refused("bake", loras, *HALF, "-r", "--out-dir", tmp_path / out, "--skip-existing", *dry)
            assert error.count(": cannot be made: ") == 1
        assert f"{tmp_path / ('out/deeper' if out == 'out' else 'file')} is no folder" in error
        if out != "out":
            sweep = ("sweep", loras / "a.safetensors", "--x", "values=0,1", "-o", tmp_path / out)
            assert all("error: " in run.refused(*sweep, *dry) for dry in ((), ("--dry-run",)))

    def test_links_lead_on_and_hidden_files_are_nobodys(self, loras: Path, tmp_path: Path, run: Run) -> None:
        library = tmp_path / "library"
        (library / ".trash").mkdir(parents=True)
        shutil.copy(loras / "a.safetensors", library / ".trash")
        shutil.copy(loras / "a.safetensors", library / "._a.safetensors")
        (library / "linked").symlink_to(loras)
        (loras / "back").symlink_to(library)
        run.done("bake", library, "--recursive", *HALF, "--out-dir", tmp_path / "out")
        found = {f"linked/{name}.safetensors" for name in ("a", "b", "deeper/c")}
        assert names_in(tmp_path / "out") == found

    def test_a_link_without_an_end_is_said(self, loras: Path, tmp_path: Path, run: Run) -> None:
        (loras / "z.safetensors").symlink_to(tmp_path / "gone.safetensors")
        error = run.refused("bake", loras, *HALF, "--out-dir", tmp_path / "out")
        assert f"{loras / 'z.safetensors'}: no such file" in error
        assert names_in(tmp_path / "out") == {"a.safetensors", "b.safetensors"}
        again = ("--out-dir", tmp_path / "again")
        assert "done: 2 written, 1 failed" in run.refused("bake", loras, loras / "z.safetensors", *HALF, *again)

    def test_a_folder_that_cannot_be_looked_into_is_said(
        self, loras: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        look = os.scandir

        def refuse(path: Path) -> object:
            if Path(path).name == "deeper":
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return look(path)

        monkeypatch.setattr(os, "scandir", refuse)
        error = run.refused("bake", loras, "--recursive", *HALF, "--out-dir", tmp_path / "out")
        assert f"{loras / 'deeper'}: cannot be looked into: Permission denied" in error
        assert names_in(tmp_path / "out") == {"a.safetensors", "b.safetensors"}
        run.done("bake", loras, "-r", *HALF, "--out-dir", tmp_path / "out", "--force", "--exclude", "deeper")
        error = run.refused("bake", loras / "deeper", loras / "b.safetensors", *HALF, "--out-dir", tmp_path / "again")
        assert error.count("error: ") == 1
        assert "done: 1 written, 1 failed" in error

    @pytest.mark.usefixtures("in_processes")
    def test_processes_write_what_one_process_writes(self, loras: Path, tmp_path: Path, run: Run) -> None:
        for jobs in (1, 2):
            options = (*HALF, "--recursive", "--jobs", jobs, "--out-dir", tmp_path / f"out{jobs}")
            run.done("bake", loras, *options)
        assert names_in(tmp_path / "out1") == names_in(tmp_path / "out2")
        for name in names_in(tmp_path / "out1"):
            assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"lora_unet_down_blocks_1_attentions_{i}_proj_in.lora_down.weight" for i in (0, 1)]
    names.append("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight")
    tensors = {name: np.ones((12, 1 << 20), np.float16) for name in names}
    tensors |= {name.replace("down.w", "up.w"): np.ones((4, 12), np.float16) for name in names}
    return write(tmp_path_factory.mktemp("large") / "large.safetensors", tensors)


class TestProgress:
    """Whoever watches a large file is told how far it is, by whatever way its bytes go."""

    @pytest.mark.parametrize("processes", [False, True])
    @pytest.mark.parametrize("weights", ["*=1", "*=0.5", "MID=0"])
    @pytest.mark.parametrize("verify", [False, True])
    def test_the_share_of_a_job_that_is_done_is_told(
        self,
        processes: bool,
        weights: str,
        verify: bool,
        large: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        shutil.copy(large, other := tmp_path / "other.safetensors")
        monkeypatch.setattr("lbw_bake.batch._WORTH_PROCESSES", 0 if processes else 1 << 60)
        recipe = Recipe(Weights.parse(weights, options=Options(rest=1)), verify=verify)
        batch = make_batch([large, other], [recipe], Naming(out_dir=tmp_path / "out"))
        told = defaultdict[Path, list[float]](list)
        for _, outcomes in run_batch(batch, workers=2, watch=lambda job, share: told[job.input].append(share)):
            assert outcomes[0].status == "baked"
        assert set(told) == {large, other}
        for shares in told.values():
            assert shares == sorted(set(shares))
            assert len(shares) >= (4 if verify else 2)
            assert 0.6 < shares[-1] <= 1

    @pytest.mark.parametrize("weights", ["*=1", "MID=0.5"])
    def test_what_is_told_as_done_is_written_but_for_a_few_pieces(
        self, weights: str, large: Path, tmp_path: Path
    ) -> None:
        recipe = Recipe(Weights.parse(weights, options=Options(rest=1)))
        (tmp_path / "out").mkdir()
        told = []

        def tell(_: Job, share: float) -> None:
            (written,) = (tmp_path / "out").iterdir()
            told.append(share * large.stat().st_size - written.stat().st_size)

        list(run_batch(make_batch(large, recipe, Naming(out_dir=tmp_path / "out")), watch=tell))
        assert told
        assert max(told) < 8 << 20

    @pytest.mark.usefixtures("in_processes")
    def test_a_file_is_finished_though_nobody_watches_any_longer(self, lora: Path, large: Path, tmp_path: Path) -> None:
        """A loop over a batch that is left early: what other processes are at is written, however large it is."""
        recipe = Recipe(Weights.parse("*=0.5"), verify=True)
        running = run_batch(make_batch([lora, large], [recipe], Naming(out_dir=tmp_path / "out")), workers=2)
        next(running)
        running.close()
        assert names_in(tmp_path / "out") == {lora.name, large.name}

    def test_so_is_the_share_of_a_merge_and_of_a_sweep(self, large: Path, tmp_path: Path) -> None:
        shares: list[float] = []
        merge([large, large], tmp_path / "merged.safetensors", progress=shares.append)
        assert shares == pytest.approx([1 / 3, 2 / 3, 1])
        shares.clear()
        sweep = make_sweep(large, {"x": "values=0,0.5,1"}, Recipe(), presets=None)
        assert len(list(write_sweep(sweep, tmp_path / "sweep", progress=shares.append))) == 3
        assert len(shares) >= 3
        assert shares == sorted(set(shares))
        assert shares[-1] == 1

    @pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, "of the caller"), LbwError("of the caller")])
    @pytest.mark.parametrize("way", ["bake", "verify", "truncate", "processes", "merge", "sweep"])
    def test_what_a_callback_raises_comes_out_as_it_is_and_is_no_failure_of_an_output(
        self, way: str, raised: Exception, large: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def tell(*told: Any) -> None:
            if way != "verify" or told[-1] > 0.5:  # when all is written
                raise raised

        def bake(options: dict[str, Any]) -> object:
            batch = make_batch([large, lora], Recipe(Weights.of("*=0.5"), **options), Naming(out_dir=out))
            return list(run_batch(batch, workers=2, watch=tell))

        monkeypatch.setattr("lbw_bake.batch._WORTH_PROCESSES", 0 if way == "processes" else 1 << 60)
        (out := tmp_path / "out").mkdir()
        work: dict[str, Callable[[], object]] = {
            "merge": lambda: merge(large, out / "merged.safetensors", progress=tell),
            "sweep": lambda: list(write_sweep(make_sweep(large, {"x": "values=0,0.5"}, Recipe()), out, progress=tell)),
        }
        options = {"verify": {"verify": True}, "truncate": {"rank": 2}}.get(way, {})
        with pytest.raises(type(raised)) as caught:
            work.get(way, partial(bake, options))()
        assert caught.value is raised
        assert names_in(out) <= ({"large.safetensors", "a.safetensors"} if way == "processes" else set())


@pytest.mark.usefixtures("in_processes")
@pytest.mark.skipif(sys.platform == "win32", reason="keeps no interrupt waiting")
def test_an_interrupt_loses_no_outcome_that_is_there(
    loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the first is being received, and is kept waiting until then."""
    interrupts = [signal.SIGINT]

    def interrupted(objects: Any) -> list[Any]:
        if interrupts and signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
            signal.raise_signal(interrupts.pop())
        return wait(objects)

    monkeypatch.setattr("lbw_bake.workers.wait", interrupted)
    batch = make_batch([loras], [Recipe()], Naming(out_dir=tmp_path / "out"))
    finished = []
    with pytest.raises(KeyboardInterrupt):
        finished.extend(run_batch(batch, workers=2))
    assert [outcome.status for _, outcomes in finished for outcome in outcomes] == ["baked"] * 2


class Fatal:
    """Has every process that receives it die at the first bytes it would write; the deaths are noted in a file."""

    def __init__(self, noted: Path) -> None:
        self.noted = noted

    def __reduce__(self) -> tuple[object, ...]:
        code = (
            "import os; from lbw_bake import outputs\n"
            "def die(*_):\n"
            f"    with open({str(self.noted)!r}, 'a') as noted: print('died', file=noted)\n"
            "    os._exit(9)\n"
            "outputs.write_all = die"
        )
        return exec, (code, {})


@pytest.mark.usefixtures("in_processes")
@pytest.mark.skipif(sys.platform == "win32", reason="tells no leftover from work by its lock")
@pytest.mark.parametrize(("in_place", "tries"), [(False, 4), (True, 1)])
def test_a_job_that_no_process_survives_fails_alone_after_four_tries_or_one_in_place(
    in_place: bool, tries: int, loras: Path, tmp_path: Path
) -> None:
    out = loras if in_place else tmp_path / "out"
    naming = Naming(in_place=True) if in_place else Naming(out_dir=out)
    batch = make_batch(loras, Recipe(Weights.of("*=0.5"), in_place=in_place), naming, recursive=True)
    first, *others = batch.jobs
    before, names = first.input.read_bytes(), names_in(loras)
    ((output, _),) = first.outputs
    fatal = replace(first, named=Fatal(tmp_path / "noted"))  # type: ignore[arg-type]
    outcomes = [one for _, ended in run_batch(replace(batch, jobs=(fatal, *others)), workers=2) for one in ended]
    assert (tmp_path / "noted").read_text(encoding="utf-8") == "died\n" * tries
    failed = [(one.input, one.output, str(one.error), one.error.hint) for one in outcomes if one.error]
    hint = "run it again; with --jobs 1 it has all memory to itself"
    assert failed == [(first.input, output, f"{first.input}: its process died (exit code 9)", hint)]
    assert all(is_half(out / name) for name in ("b.safetensors", "deeper/c.safetensors"))
    assert names_in(out) == (names if in_place else {"b.safetensors", "deeper/c.safetensors"})
    assert first.input.read_bytes() == before


def test_a_job_done_twice_leaves_what_it_finished_alone_and_still_refuses_what_was_there(
    lora: Path, tmp_path: Path
) -> None:
    """As where a process died before it could say so."""
    new, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    old.write_bytes(b"old")
    for output, said in ((new, ["baked", "skipped"]), (old, ["failed", "failed"])):
        job = repeatable(Job(lora, ((output, Recipe(Weights.parse("*=0.5"))),)))
        assert [outcome.status for _ in range(2) for outcome in batch_run.run(job)] == said
    assert is_half(new)
    assert old.read_bytes() == b"old"


class TestSeveralPresets:
    def test_each_writes_a_file_of_its_own(self, lora: Path, tmp_path: Path, run: Run) -> None:
        run.done("bake", lora, "-p", "MIDD", "-p", "ALL0.5", "--out-dir", tmp_path / "out")
        assert names_in(tmp_path / "out") == {"a-MIDD.safetensors", "a-ALL0.5.safetensors"}
        assert is_half(tmp_path / "out" / "a-ALL0.5.safetensors")

    @pytest.mark.parametrize("preset", ["MIDD", "ALL0.5", "NONE"])
    def test_together_they_write_what_each_writes_alone(
        self, preset: str, lora: Path, tmp_path: Path, run: Run
    ) -> None:
        together = ("-p", "NONE", "-p", "ALL0.5", "-p", "MIDD", "--out-dir", tmp_path / "together")
        run.done("bake", lora, *together)
        run.done("bake", lora, "-p", preset, "-o", tmp_path / f"a-{preset}.safetensors")
        alone = tmp_path / f"a-{preset}.safetensors"
        assert (tmp_path / "together" / alone.name).read_bytes() == alone.read_bytes()

    @pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a process")
    def test_they_may_be_more_than_files_that_may_be_open(self, lora: Path, tmp_path: Path) -> None:
        import resource

        outputs = tuple((tmp_path / f"{i}.safetensors", Recipe(Weights.of(f"*={i / 200}"))) for i in range(200))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(outputs), hard))
        try:
            outcomes = batch_run.run(Job(lora, outputs))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert {outcome.status for outcome in outcomes} == {"baked"}
        assert [outcome.output for outcome in outcomes] == [output for output, _ in outputs]
        assert is_half(tmp_path / "100.safetensors")

    def test_no_more_are_planned_than_are_written_at_once(
        self, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Or memory would grow with their number."""
        rewrite, planned = batch_run.rewrite, []

        def plans() -> int:
            return sum(type(each) is Plan for each in gc.get_objects())

        def counted(*given: Any, **options: Any) -> Rewritten:
            planned.append(plans())
            return rewrite(*given, **options)

        gc.collect()
        before = plans()
        monkeypatch.setattr(batch_run, "AT_ONCE", 2)
        monkeypatch.setattr(batch_run, "rewrite", counted)
        outputs = tuple((tmp_path / f"{i}.safetensors", Recipe(Weights.of(f"*={i / 5}"))) for i in range(5))
        assert {outcome.status for outcome in batch_run.run(Job(lora, outputs))} == {"baked"}
        assert len(planned) == 3
        assert max(planned) <= before + 2

    def test_a_name_may_hold_the_preset(self, lora: Path, tmp_path: Path, run: Run) -> None:
        options = ("-p", "MIDD", "--out-dir", tmp_path / "out", "--name", "{preset} of {stem}")
        run.done("bake", lora, *options)
        assert names_in(tmp_path / "out") == {"MIDD of a.safetensors"}

    @pytest.mark.parametrize("name", ["{nope}", "{stem", "{}", "{stem.parent}", "../{stem}", "/{stem}", ".{stem}"])
    def test_a_name_that_is_none_is_refused(self, name: str, lora: Path, tmp_path: Path, run: Run) -> None:
        assert "--name" in run.refused("bake", lora, *HALF, "--out-dir", tmp_path / "out", "--name", name)
        assert names_in(tmp_path) == {"loras/a.safetensors"}

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("{stem!r}", "fields take no format\nhint: write {stem} alone\n"),
            ("{preset:>9}", "fields take no format\nhint: write {preset} alone\n"),
            ("{stem}.safetensors", "names get their .safetensors anyway\nhint: leave it out\n"),
        ],
    )
    def test_what_is_too_much_in_one_is_said(self, name: str, said: str, lora: Path, tmp_path: Path, run: Run) -> None:
        options = ("--out-dir", tmp_path / "out", "--name", name)
        assert run.refused("bake", lora, *HALF, *options) == f"error: --name {name!r}: {said}"


# Names made of an input's stem and what was added to it.
UNSAFE = {
    "nothing": ("", "a", "", "is not a file name"),
    "a/b": ("a/b", "a", "/b", "is not a file name"),
    "a colon": ("a:b", "a", ":b", "holds ':'"),
    "a star": ("a*", "a", "*", "holds '*'"),
    "a backslash": ("a\\b", "a", "\\b", "holds"),
    "a line end": ("a\n", "a", "\n", "holds"),
    "a null": ("a\0", "a", "\0", "holds"),
    "a device": ("con", "a", "con", "is a device to Windows"),
    "a device, in capitals": ("NUL", "a", "NUL", "is a device to Windows"),
    "a device, with more": ("Aux.v2", "a", "Aux.v2", "is a device to Windows"),
    "a device, with a space": ("COM1 .x", "a", "COM1 .x", "is a device to Windows"),
    "a hidden one": (".a", "a", ".", "is hidden"),
    "a device, superscript": ("lpt\u00b9", "a", "lpt\u00b9", "is a device to Windows"),
}
SAFE = {
    "a preset": ("a-MIDD", "a", "-MIDD"),
    "a dot at the end of the stem": ("a.-ALL0.5", "a.", "-ALL0.5"),
    "the input's own colon": ("a:b-MIDD", "a:b", "-MIDD"),
    "the input's own name": ("con", "con", ""),
    "the input's own dot": (".a-MIDD", ".a", "-MIDD"),
    "no device": ("console", "a", "console"),
    "no device either": ("com10", "a", "com10"),
    "letters of all kinds": ("東京 é\u0301 🎨-MIDD", "東京 é\u0301 🎨", "-MIDD"),
    "a leading dash": ("-a", "-a", ""),
    "quotes": ("it's 'a'-x", "it's 'a'", "-x"),
}


class TestPortableNames:
    @pytest.mark.parametrize(("name", "stem", "added", "said"), UNSAFE.values(), ids=UNSAFE)
    def test_what_is_no_name_everywhere_is_refused(self, name: str, stem: str, added: str, said: str) -> None:
        assert name_problem(name, stem, added).startswith(said)

    @pytest.mark.parametrize(("name", "stem", "added"), SAFE.values(), ids=SAFE)
    def test_what_is_one_is_not(self, name: str, stem: str, added: str) -> None:
        assert name_problem(name, stem, added) == ""

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("Face", "FACE"),
            ("stra\u00dfe", "STRASSE"),
            ("\u00e9", "e\u0301"),
            ("\u00c9", "e\u0301"),
            ("\u212b", "\u00e5"),
        ],
    )
    def test_names_that_some_system_takes_for_one_are_folded_into_one(self, one: str, other: str) -> None:
        assert folded(Path(one)) == folded(Path(other))

    @pytest.mark.parametrize(("one", "other"), [("a", "b"), ("e", "\u00e9"), ("a", "a "), ("a", "a.")])
    def test_others_are_not(self, one: str, other: str) -> None:
        assert folded(Path(one)) != folded(Path(other))

    def test_outputs_that_clash_somewhere_are_an_error_before_work_starts(
        self, lora: Path, tmp_path: Path, run: Run
    ) -> None:
        write(lora.parent / "A.safetensors", ORIGINAL)
        error = run.refused("bake", lora.parent, *HALF, "--out-dir", tmp_path / "out")
        assert str(lora) in error
        assert str(lora.parent / "A.safetensors") in error
        assert not (tmp_path / "out").exists()

    def test_in_place_they_are_two_files(self, lora: Path, run: Run) -> None:
        write(lora.parent / "A.safetensors", ORIGINAL)
        run.done("bake", lora.parent, *HALF, "--in-place")
        assert all(is_half(path) for path in lora.parent.iterdir())

    def test_in_place_they_are_one_where_the_system_takes_them_for_one(self, lora: Path, run: Run) -> None:
        before = lora.read_bytes()
        other = lora.with_name("A.safetensors")
        if not other.exists():  # as it does where case does not count
            other.hardlink_to(lora)
        error = run.refused("bake", lora, other, *HALF, "--in-place")
        assert f"would be written from {lora} and from {other}\nhint: they are one file" in error
        assert lora.read_bytes() == before

    @pytest.mark.parametrize("preset", ["CON", "a|b", "x?"])
    def test_a_presets_name_makes_no_unsafe_one(self, preset: str, lora: Path, tmp_path: Path, run: Run) -> None:
        (tmp_path / "presets.yaml").write_text(f"'{preset}': {','.join('1' * 17)}\n")
        options = ("-p", preset, "--presets", tmp_path / "presets.yaml", "--out-dir", tmp_path / "out")
        error = run.refused("bake", lora, *options, "--name", "{preset}")
        assert "--name" in error
        assert not (tmp_path / "out").exists()


class TestSkipping:
    def test_an_existing_output_is_left_alone(self, lora: Path, tmp_path: Path, run: Run) -> None:
        options = ("bake", lora, *HALF, "--out-dir", tmp_path, "--skip-existing", "--json")
        assert run.json(*options)["status"] == "baked"
        before = (tmp_path / "a.safetensors").stat()
        code, out, error = run(*options)
        assert (code, json.loads(out)["status"]) == (0, "skipped")
        assert "warning" not in error
        assert (tmp_path / "a.safetensors").stat().st_mtime_ns == before.st_mtime_ns

    @pytest.mark.parametrize("weights", ["*=0.5", "*=0", "*=1", "*=2"])
    @pytest.mark.parametrize("dtype", ["keep", "bf16", "f32"])
    def test_one_of_an_input_that_was_trained_again_is_said(
        self, weights: str, dtype: str, lora: Path, tmp_path: Path, run: Run
    ) -> None:
        command = ("bake", lora, "-w", weights, "--dtype", dtype, "-o", tmp_path / "a.safetensors", "--skip-existing")
        run.done(*command)
        assert "warning" not in run.done(*command)
        times = lora.stat()
        write(lora, {name: np.array(array * 1.5, array.dtype) for name, array in ORIGINAL.items()})
        os.utime(lora, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert "before its input changed" in run.done(*command)

    @pytest.mark.parametrize("name", ORIGINAL)
    def test_so_is_one_of_an_input_of_which_any_tensor_changed(
        self, name: str, lora: Path, tmp_path: Path, run: Run
    ) -> None:
        command = ("bake", lora, "-w", "*=0.5", "-o", tmp_path / "a.safetensors", "--skip-existing")
        run.done(*command)
        write(lora, ORIGINAL | {name: np.array(ORIGINAL[name] * 2, ORIGINAL[name].dtype)})
        assert "before its input changed" in run.done(*command)

    def test_so_is_one_of_other_metadata(self, lora: Path, tmp_path: Path, run: Run) -> None:
        hashed = {"sshs_model_hash": "stale", "ss_output_name": "a"}
        write(lora, ORIGINAL, hashed)
        command = ("bake", lora, "-w", "*=0.5", "-o", tmp_path / "b.safetensors", "--skip-existing")
        run.done(*command)
        assert "warning" not in run.done(*command)
        assert "kept" in run.done(*command, "--no-metadata-update")
        write(lora, ORIGINAL, hashed | {"modelspec.title": "b"})
        assert "before its input changed" in run.done(*command)

    def test_one_that_is_something_else_is_named(self, lora: Path, tmp_path: Path, run: Run) -> None:
        options = ("bake", lora, "-p", "MIDD", "-p", "ALL", "--out-dir", tmp_path, "--skip-existing")
        run.done(*options)
        error = run.done(*options, "--strength", "0.5")
        for preset in ("MIDD", "ALL"):
            assert f"the existing {tmp_path / f'a-{preset}.safetensors'} is kept, though it was baked with" in error

    def test_one_with_an_empty_tensor_is_left_alone(self, tmp_path: Path, run: Run) -> None:
        source = write(tmp_path / "a.safetensors", unet_lora() | {"empty": np.ones((0, 4), np.float32)})
        options = ("bake", source, *HALF, "-o", tmp_path / "b.safetensors")
        run.done(*options)
        facts = run.json(*options, "--skip-existing", "--json")
        assert facts["status"] == "skipped"
        assert not any("is kept" in warning for warning in facts["warnings"])

    def test_a_link_that_leads_nowhere_is_kept_and_said(self, lora: Path, tmp_path: Path, run: Run) -> None:
        (link := tmp_path / "a.safetensors").symlink_to("nowhere")
        error = run.done("bake", lora, *HALF, "--out-dir", tmp_path, "--skip-existing")
        assert f"is kept, though it cannot be read: {link}: no such file" in error
        assert link.is_symlink()

    @pytest.mark.parametrize("existing", ["other weights", "another dtype", "no LoRA"])
    def test_one_that_is_something_else_is_said(self, existing: str, lora: Path, tmp_path: Path, run: Run) -> None:
        output = tmp_path / "a.safetensors"
        if existing == "other weights":
            run("bake", lora, "-w", "*=0.25", "-o", output)
        elif existing == "another dtype":
            run("bake", lora, *HALF, "--dtype", "bf16", "-o", output)
        else:
            output.write_bytes(b"no LoRA")
        before = output.read_bytes()
        error = run.done("bake", lora, *HALF, "-o", output, "--skip-existing")
        assert "warning: " in error
        assert output.read_bytes() == before

    @pytest.mark.parametrize("rank", [(), ("--rank", "1")])
    def test_two_runs_at_once_do_not_fail_each_other(
        self, rank: tuple[str, ...], lora: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_one = batch_run._write

        def after_another(*given: Any) -> object:
            write_one(*given)
            return write_one(*given)

        monkeypatch.setattr(batch_run, "_write", after_another)
        options = ("bake", lora, *HALF, *rank, "-o", tmp_path / "a.safetensors")
        assert run.json(*options, "--skip-existing", "--json")["status"] == "skipped"
        assert "already exists" in run.refused("bake", lora, *HALF, *rank, "-o", tmp_path / "b.safetensors")


@pytest.mark.parametrize(("name", "said"), [("b.safetensors", 0), ("B.SAFETENSORS", 0), ("b", 1), ("b.ckpt", 1)])
def test_a_name_that_no_program_looks_for_is_said(name: str, said: int, lora: Path, tmp_path: Path, run: Run) -> None:
    for i, command in enumerate((("bake", *HALF), ("bake", *HALF, "--rank", 2), ("merge",))):
        output = tmp_path / str(i) / name
        output.parent.mkdir()
        assert run.done(command[0], lora, *command[1:], "-o", output).count(f"will not find {name}") == said


@bound_by_permissions
def test_a_folder_one_may_not_write_to(lora: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    error = run.refused("bake", lora, *HALF, "--out-dir", tmp_path / "locked")
    assert "Permission denied" in error
