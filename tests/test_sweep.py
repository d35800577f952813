"""The XYZ plot offline: cells have the weights the extension gives them, equal ones share a file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import (
    FLUX_BLOCKS,
    FLUX_STACK,
    MODULE,
    SD1_ALL_BLOCKS,
    SD1_BLOCKS,
    SDXL_BLOCKS,
    BakeFile,
    Run,
    Tensors,
    kohya_lora,
    measured,
    metadata_of,
    sdxl_lora,
    unet_lora,
    write,
)
from safetensors.numpy import load_file

from lbw_bake.errors import LbwError
from lbw_bake.words import parse_size

MIDD = dict(zip(SD1_BLOCKS, [1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], strict=True))

FLUX = kohya_lora(["unet_double_blocks_0_img_mlp_0", "unet_single_blocks_1_linear1"], width=3072)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "style.safetensors", unet_lora(), {"ss_base_model_version": "sd_v1"})


def swept(run: Run, source: Path, *args: object, expect: int = 0) -> dict[str, Any]:
    """Sweep into `plot` beside the source; the manifest, after every file was held to what it says."""
    folder = source.parent / "plot"
    code, _, error = run("sweep", source, "-o", folder, *args)
    assert code == expect, error
    manifest = dict(json.loads((folder / "manifest.json").read_text("utf-8")))
    assert set(manifest) == {"source", "axes", "cells"}
    assert manifest["source"] == source.name
    for cell in manifest["cells"]:
        assert set(cell) == {"x", "y", "z", "file", "weights", "prompt"}
        assert cell["prompt"] == f"<lora:{cell['file'].removesuffix('.safetensors')}:1>"
    files = {cell["file"] for cell in manifest["cells"]}
    assert {path.name for path in folder.glob("*.safetensors")} == files
    return manifest


def weights_of(source: Path, cell: dict[str, Any]) -> dict[str, float]:
    """Block -> the weight its one module really got in the cell's file."""
    found = measured(unet_lora(), load_file(source.parent / "plot" / cell["file"]))
    return dict(zip(SD1_BLOCKS, [round(weight, 3) for weight in found], strict=True))


def by_label(manifest: dict[str, Any]) -> dict[tuple[str | None, str | None, str | None], dict[str, Any]]:
    return {(cell["x"], cell["y"], cell["z"]): cell for cell in manifest["cells"]}


def test_values_set_the_blocks_of_the_blocks_axis(source: Path, run: Run) -> None:
    axes = ("--x", "values=0,0.25,1.0", "--y", "blocks=BASE,IN01-IN04 MID,NOT OUT03-OUT11", "--z", "presets=MIDD")
    manifest = swept(run, source, *axes)
    chosen = {
        "BASE": {"BASE"},
        "IN01-IN04 MID": {"IN01", "IN02", "IN04", "MID"},
        "NOT OUT03-OUT11": set(SD1_BLOCKS[:8]),
    }
    cells = by_label(manifest)
    assert list(cells) == [(x, y, "MIDD") for y in chosen for x in ("0", "0.25", "1")]
    for (x, y, _), cell in cells.items():
        expected = {block: float(x or 0) if block in chosen[y or ""] else MIDD[block] for block in SD1_BLOCKS}
        assert weights_of(source, cell) == expected
        assert {block: cell["weights"][block] for block in SD1_BLOCKS} == expected


def test_without_an_axis_of_blocks_values_set_all_of_them(source: Path, run: Run) -> None:
    cells = by_label(swept(run, source, "--x", "values=0.5,1"))
    assert weights_of(source, cells["0.5", None, None]) == dict.fromkeys(SD1_BLOCKS, 0.5)


def test_values_take_the_place_of_x_in_the_base_weights(source: Path, run: Run) -> None:
    base = "BASE=1 IN01=X IN02=X+0.5 *=0"
    cells = by_label(swept(run, source, "--x", "values=0.25,0.5", "--base-weights", base))
    found = weights_of(source, cells["0.25", None, None])
    assert [found[block] for block in ("BASE", "IN01", "IN02", "IN04")] == [1, 0.25, 0.75, 0]


def test_without_values_blocks_are_set_to_at(source: Path, run: Run) -> None:
    cells = by_label(swept(run, source, "--y", "blocks=MID,OUT", "--at", "-0.5", "--base-weights", "*=0.5"))
    found = weights_of(source, cells[None, "MID", None])
    assert found == {block: -0.5 if block == "MID" else 0.5 for block in SD1_BLOCKS}


@pytest.mark.parametrize("axis", ["values=0.5", "presets=*=0.5"])
def test_a_strength_multiplies_every_cell(axis: str, source: Path, run: Run) -> None:
    (cell,) = swept(run, source, "--x", axis, "--strength", "0.5")["cells"]
    assert weights_of(source, cell) == dict.fromkeys(SD1_BLOCKS, 0.25)


def test_two_axes_of_presets_are_combined(source: Path, run: Run, tmp_path: Path) -> None:
    """The first one's weight where it has any, else the second one's; the diagonal is each alone."""
    presets = write_presets(tmp_path / "p.yaml", A="BASE: 1, IN01: 0.5", B="IN01: 0.25, MID: 0.75")
    manifest = swept(run, source, "--x", "presets=A,B", "--y", "presets=A,B", "--presets", presets)
    cells = {labels[:2]: weights_of(source, cell) for labels, cell in by_label(manifest).items()}
    blocks = ("BASE", "IN01", "MID", "OUT03")
    assert {labels: [found[block] for block in blocks] for labels, found in cells.items()} == {
        ("A", "A"): [1, 0.5, 0, 0],
        ("B", "A"): [1, 0.25, 0.75, 0],
        ("A", "B"): [1, 0.5, 0.75, 0],
        ("B", "B"): [0, 0.25, 0.75, 0],
    }


def test_what_a_file_of_presets_has_that_cannot_be_used_is_said(source: Path, run: Run, tmp_path: Path) -> None:
    presets = tmp_path / "lbwpresets.txt"
    presets.write_text(f"prose\nA:{','.join('1' * 17)}\n")
    sweep = ("sweep", source, "-o", tmp_path / "plot", "--presets", presets, "--x")
    assert f"{presets}: 1 line cannot be used" in run.done(*sweep, "presets=A")
    assert "cannot be used" not in run.done(*sweep, "presets=MIDD", "--force")


def write_presets(path: Path, **presets: str) -> Path:
    path.write_text("".join(f'{name}: {{{rules}, "*": 0}}\n' for name, rules in presets.items()))
    return path


def test_presets_may_be_written_out(source: Path, run: Run) -> None:
    cells = by_label(swept(run, source, "--x", "presets=MIDD; MID=1 *=0"))
    assert weights_of(source, cells["MID=1 *=0", None, None]) == {block: float(block == "MID") for block in SD1_BLOCKS}


def test_a_vector_alone_is_a_cell_too(source: Path, run: Run) -> None:
    """Without another there is no `;` that tells it from names."""
    vector = "1,0,0,0,0.5,0.5,0.5,1,1,1,1,1,X,X,X,X,X"
    cells = by_label(swept(run, source, "--x", f"presets={vector}", "--y", "values=0.25"))
    assert weights_of(source, cells[vector, "0.25", None])["OUT11"] == 0.25


def test_values_go_where_a_preset_has_its_x(source: Path, run: Run) -> None:
    cells = by_label(swept(run, source, "--x", "values=0.25,0.5", "--y", "presets=MIDD; MID=X *=0"))
    for value in ("0.25", "0.5"):
        only = {block: float(value) if block == "MID" else 0.0 for block in SD1_BLOCKS}
        assert weights_of(source, cells[value, "MID=X *=0", None]) == only
    assert cells["0.25", "MIDD", None]["file"] == cells["0.5", "MIDD", None]["file"]


def test_elements_are_added_to_the_cell(source: Path, run: Run) -> None:
    manifest = swept(run, source, "--x", "elements=MID:proj:0; ::0.5,MID:proj:0.25", "--y", "values=1")
    cells = by_label(manifest)
    assert weights_of(source, cells["MID:proj:0", "1", None]) == {block: float(block != "MID") for block in SD1_BLOCKS}
    both = weights_of(source, cells["::0.5,MID:proj:0.25", "1", None])
    assert both == {block: 0.25 if block == "MID" else 0.5 for block in SD1_BLOCKS}


@pytest.mark.parametrize(
    ("tensors", "written", "blocks"),
    [
        (unet_lora(), "17ALL", SD1_BLOCKS),
        (unet_lora(), "26all", SD1_ALL_BLOCKS),
        (sdxl_lora(), "12ALL", SDXL_BLOCKS),
        (FLUX, "57ALL", FLUX_STACK),
        (FLUX, "61ALL", FLUX_BLOCKS),
    ],
)
def test_all_is_a_cell_for_each_block_of_a_layout(
    tensors: Tensors, written: str, blocks: list[str], tmp_path: Path, run: Run
) -> None:
    manifest = swept(run, write(tmp_path / "a.safetensors", tensors), "--x", f"blocks={written},*")
    assert manifest["axes"]["x"]["cells"] == [*blocks, "*"]


class TestFiles:
    """One file per distinct cell, named after it, exactly what `lbw bake` writes."""

    def test_cells_of_equal_effect_share_a_file(self, source: Path, run: Run) -> None:
        manifest = swept(run, source, "--x", "values=1,0", "--y", "blocks=26ALL")
        cells = by_label(manifest)
        full = cells["1", "BASE", None]["file"]
        assert all(cells["1", block, None]["file"] == full for block in SD1_ALL_BLOCKS)
        # The file has no module in these, so nothing changes.
        assert all(cells["0", block, None]["file"] == full for block in set(SD1_ALL_BLOCKS) - set(SD1_BLOCKS))
        assert len({cell["file"] for cell in cells.values()}) == 1 + len(SD1_BLOCKS)

    def test_more_files_than_are_open_at_a_time(self, source: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lbw_bake.sweeps.AT_ONCE", 2)
        manifest = swept(run, source, "--analyse")
        for cell in manifest["cells"]:
            expected = {block: float(block != cell["x"]) for block in SD1_BLOCKS}
            assert weights_of(source, cell) == expected

    def test_a_file_is_what_bake_writes(self, source: Path, run: Run, bake_file: BakeFile) -> None:
        (cell,) = swept(run, source, "--x", "presets=MIDD", "--dtype", "bf16")["cells"]
        file = source.parent / "plot" / cell["file"]
        baked = bake_file(source, "-p", "MIDD", "--dtype", "bf16")
        assert metadata_of(file).keys() == metadata_of(baked).keys()
        assert file.read_bytes()[-1000:] == baked.read_bytes()[-1000:]
        run.done("diff", source, file)

    def test_names_tell_the_cell_and_are_the_same_every_time(self, source: Path, run: Run) -> None:
        axes = ("--x", "values=0.25,-1", "--y", "blocks=IN01-IN08,NOT OUT")
        names = [cell["file"] for cell in swept(run, source, *axes)["cells"]]
        assert names == [
            f"style-{value}-{blocks}.safetensors" for blocks in ("IN01-IN08", "NOT_OUT") for value in ("0.25", "-1")
        ]
        assert [cell["file"] for cell in swept(run, source, *axes, "--force")["cells"]] == names

    def test_names_that_differ_in_case_alone_are_told_apart(self, source: Path, run: Run, tmp_path: Path) -> None:
        presets = write_presets(tmp_path / "p.yaml", face="MID: 1", FACE="BASE: 1")
        manifest = swept(run, source, "--x", "presets=face,FACE", "--presets", presets)
        assert [cell["file"] for cell in manifest["cells"]] == ["style-face.safetensors", "style-FACE-2.safetensors"]

    @pytest.mark.parametrize("name", ["a:b,c<d>=e", "画風 (v2.1)", "x" * 150])
    def test_names_are_safe_in_a_prompt(self, name: str, tmp_path: Path, run: Run) -> None:
        source = write(tmp_path / f"{name}.safetensors", unet_lora())
        manifest = swept(run, source, "--x", f"elements={'IN01:attn proj:0.5, ' * 20} MID:a:0")
        (cell,) = manifest["cells"]
        assert cell["prompt"].count(":") == 2
        assert not set(",=<>") & set(cell["prompt"][1:-1])

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are no text")
    def test_a_name_that_is_no_text(self, tmp_path: Path, run: Run) -> None:
        source = write(tmp_path / os.fsdecode(b"caf\xe9.safetensors"), unet_lora())
        run.done("sweep", source, "-o", tmp_path / "plot", "--x", "blocks=MID")
        manifest = json.loads((tmp_path / "plot" / "manifest.json").read_text("utf-8"))
        assert manifest["source"] == "caf\ufffd.safetensors"
        assert [cell["file"] for cell in manifest["cells"]] == ["caf_-MID.safetensors"]

    def test_lists_name_every_file_once(self, source: Path, run: Run) -> None:
        manifest = swept(run, source, "--analyse")
        files = list(dict.fromkeys(cell["file"] for cell in manifest["cells"]))
        prompts = [f"<lora:{file.removesuffix('.safetensors')}:1>" for file in files]
        folder = source.parent / "plot"
        assert (folder / "prompts.txt").read_text("utf-8").splitlines() == prompts
        assert (folder / "prompt-sr.txt").read_text("utf-8").strip().split(", ") == prompts
        assert (folder / "comfyui.txt").read_text("utf-8").splitlines() == files

    def test_a_folder_is_not_overwritten(self, source: Path, run: Run) -> None:
        swept(run, source, "--analyse")
        error = run.refused("sweep", source, "-o", source.parent / "plot", "--analyse")
        assert "already exists" in error
        assert "--skip-existing" in error
        swept(run, source, "--analyse", "--force")

    def test_a_sweep_goes_on_where_it_was_interrupted(self, source: Path, run: Run) -> None:
        manifest = swept(run, source, "--analyse")
        folder = source.parent / "plot"
        lost, same, *_ = dict.fromkeys(cell["file"] for cell in manifest["cells"])
        (folder / lost).unlink()
        (folder / "manifest.json").unlink()
        before = (folder / same).stat().st_mtime_ns
        error = run.done("sweep", source, "-o", folder, "--analyse", "--skip-existing")
        assert "(1 file, 17 were there, " in error
        assert (folder / same).stat().st_mtime_ns == before
        assert {path.name for path in folder.glob("*.safetensors")} == {cell["file"] for cell in manifest["cells"]}
        assert json.loads((folder / "manifest.json").read_text("utf-8")) == manifest

    @pytest.mark.parametrize("other", [("--at", "0.0001"), ("--dtype", "bf16"), ("--strength", "0.5")])
    def test_going_on_never_takes_one_file_for_another(self, other: tuple[str, str], source: Path, run: Run) -> None:
        swept(run, source, "--x", "blocks=MID")
        command = ("sweep", source, "-o", source.parent / "plot", "--x", "blocks=MID", *other, "--skip-existing")
        error = run.refused(*command)
        assert "already exists" in error
        assert "--skip-existing" not in error
        assert run(*command, "--force")[0] == 2

    def test_a_failure_leaves_no_file(self, source: Path, run: Run) -> None:
        tensors = unet_lora() | {f"{MODULE}.dora_scale": np.ones((1, 8), np.float32)}
        path = write(source.with_name("dora.safetensors"), tensors)
        error = run.refused("sweep", path, "-o", path.parent / "plot", "--x", "values=1,0.5", "--y", "blocks=MID")
        assert "cannot take a weight other than 0 or 1" in error
        assert not (path.parent / "plot").exists()


class TestAnalysis:
    """The effective-block analyser: the whole LoRA, then without each block in turn."""

    def test_each_block_in_turn(self, source: Path, run: Run) -> None:
        manifest = swept(run, source, "--analyse", "--at", "0.5", "--base-weights", "*=0.8")
        assert manifest["axes"] == {"x": {"kind": "analyse", "cells": ["full", *SD1_BLOCKS]}}
        for cell in manifest["cells"]:
            expected = {block: 0.5 if block == cell["x"] else 0.8 for block in SD1_BLOCKS}
            assert weights_of(source, cell) == expected

    def test_only_the_blocks_asked_for(self, source: Path, run: Run) -> None:
        manifest = swept(run, source, "--analyse", "--x", "blocks=BASE,OUT")
        assert [cell["x"] for cell in manifest["cells"]] == ["full", "BASE", "OUT"]


class TestSize:
    """What is large is said, and refused, before anything is written."""

    def test_it_says_how_much(self, source: Path, run: Run) -> None:
        error = run.done("sweep", source, "-o", source.parent / "plot", "--analyse")
        said = error.splitlines()[0]
        assert said.startswith("sweep: analysis: 18 cells, 18 files, ")
        nbytes = sum(path.stat().st_size for path in (source.parent / "plot").glob("*.safetensors"))
        assert float(said.split()[-2]) == pytest.approx(nbytes / 1000, rel=0.3)

    def test_it_is_refused_unless_yes(self, source: Path, run: Run) -> None:
        error = run.refused("sweep", source, "-o", source.parent / "plot", "--analyse", "--max-size", "10kB")
        assert "more than the 10 kB of --max-size" in error
        assert "--yes" in error
        assert not (source.parent / "plot").exists()
        swept(run, source, "--analyse", "--max-size", "10kB", "--yes")

    def test_a_dry_run_writes_nothing(self, source: Path, run: Run) -> None:
        assert len(run.json("sweep", source, "--analyse", "--dry-run", "--json")["cells"]) == 18
        assert list(source.parent.iterdir()) == [source]

    def test_a_dry_run_refuses_what_the_sweep_would(self, source: Path, run: Run) -> None:
        axes = ("--x", "blocks=IN04,MID")
        swept(run, source, *axes)
        again = ("sweep", source, "-o", source.parent / "plot", *axes, "--dry-run")
        assert "already exists" in run.refused(*again)
        run.done(*again, "--force")
        assert "--max-size" in run.refused(*again, "--force", "--max-size", "1kB")

    @pytest.mark.parametrize(
        ("text", "nbytes"), [("20GB", 20e9), ("1.5 mb", 1.5e6), ("700", 700), ("3K", 3000), ("1TB", 1e12)]
    )
    def test_sizes_as_people_write_them(self, text: str, nbytes: float) -> None:
        assert parse_size(text) == nbytes

    @pytest.mark.parametrize("text", ["", "x", "-1GB", "20GiB", "1e3", "nan"])
    def test_what_is_no_size(self, text: str) -> None:
        with pytest.raises(LbwError, match="is no size"):
            parse_size(text)


WRONG = {
    "no kind": (["--x", "0,0.5,1"], "write KIND=CELL"),
    "an unknown kind": (["--x", "value=0,1"], "did you mean values?"),
    "an empty cell": (["--x", "values=0,,1"], "empty cell"),
    "no number": (["--x", "values=0,one"], "'one'"),
    "a range of values": (["--x", "values=0..1"], "write every value, as values=0,0.25"),
    "an unknown block": (["--x", "blocks=BASE,IN99"], "no block 'IN99'"),
    "an unknown layout": (["--x", "blocks=61ALL"], "17ALL, 20ALL, 26ALL"),
    "an unknown preset": (["--x", "presets=MIDE"], "did you mean MIDD?"),
    "values for nothing": (["--x", "values=0,1", "--y", "presets=MIDD,OUTALL"], "no preset of the axis has an X"),
    "values for no X": (["--x", "values=0,1", "-w", "MIDD"], "the base weights have no X"),
    "empty base weights": (["--x", "blocks=MID", "-w", ""], "is a variable not set?"),
    "a broken element": (["--x", "elements=attn:0"], "needs 2 colons, not 1"),
    "an element preset": (["--x", "elements=ATTNDEEPON"], "lbw presets show NAME prints those of an element preset"),
    "an element of no block": (["--x", "elements=IN99:attn:0"], "no block 'IN99'"),
    "a kind twice": (["--x", "values=0,1", "--y", "values=1"], "2 axes of values"),
    "an analysis of values": (["--analyse", "--x", "values=0,1"], "an analysis is of blocks, not of values"),
    "random weights": (["--x", "blocks=MID", "--base-weights", ",".join("R" * 17)], "--seed"),
    "a variable": (
        ["--x", "blocks=MID", "--base-weights", ",".join("X" * 17)],
        'add an axis of values, as --y "values',
    ),
    "another program's variable": (["--x", "blocks=MID", "-w", "1,A" + ",1" * 15], "hint: write a number in its place"),
}


@pytest.mark.parametrize(("args", "said"), WRONG.values(), ids=WRONG)
def test_what_has_no_meaning_is_refused(args: list[str], said: str, source: Path, run: Run) -> None:
    code, out, error = run("sweep", source, "-o", source.parent / "plot", *args)
    assert (code, out) == (1, "")
    assert said in error
    assert not (source.parent / "plot").exists()


def test_a_plot_of_one_is_said_to_be_one(source: Path, run: Run) -> None:
    assert run.done("sweep", source, "--x", "blocks=MID", "-n").startswith("sweep: 1 block: 1 cell, 1 file, ")


def test_what_modifies_the_base_weights_modifies_presets_of_an_axis_too(source: Path, run: Run) -> None:
    manifest = swept(run, source, "--x", "presets=ALL", "-w", "<lora:x:0.5:te=0.25>")
    (cell,) = manifest["cells"]
    found = weights_of(source, cell)
    assert (found["BASE"], found["MID"]) == (0.25, 0.5)


def test_blocks_that_values_set_are_not_said_to_be_unlisted(source: Path, run: Run) -> None:
    said = run.done("sweep", source, "--x", "values=0", "--y", "blocks=17ALL", "-w", ",".join("1" * 12), "--dry-run")
    listed = {"BASE", "IN04", "IN05", "IN07", "IN08", "MID", *(f"OUT0{i}" for i in range(3, 6))}
    assert not any(f"{block}," in line for line in said.splitlines() if "do not list" in line for block in listed)


@pytest.mark.parametrize("at", ["0", "1"])  # 0 is what blocks that the weights do not list weigh anyway
def test_and_those_that_nothing_sets_are(at: str, source: Path, run: Run) -> None:
    said = run.done("sweep", source, "--x", "blocks=IN01", "--at", at, "-w", ",".join("1" * 12), "-n").splitlines()
    unlisted, matched = (
        {*line.rpartition(": ")[2].split(", ")}
        for part in ("do not list", "matched by name")
        for line in said
        if part in line
    )
    assert unlisted == {"IN02", *(f"OUT{i:02}" for i in range(6, 12))}
    assert matched == {"BASE", "IN04", "IN05", "IN07", "IN08", "MID", *(f"OUT0{i}" for i in range(6))}


@pytest.mark.parametrize("axis", ["blocks=IN04,OUT07", "values=0", "presets=ALL"])
def test_blocks_the_file_has_nothing_in_are_said(axis: str, tmp_path: Path, run: Run) -> None:
    whole = {name: array for name, array in unet_lora().items() if "output_blocks_7" not in name}
    source = write(
        tmp_path / "a.safetensors", {name: array for name, array in whole.items() if "up_blocks" not in name}
    )
    said = run.done("sweep", source, "--x", axis, "--family", "sd1", "--dry-run")
    assert ("the file has no module in OUT07: those cells" in said) is ("OUT07" in axis)


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["-o", "plot"],
        ["--analyse", "-o", "plot", "--y", "values=1"],
        ["--analyse"],
        ["-o", "plot", "--analyse", "--tile", "64"],
        ["--grid", ".", "--x", "values=1"],
        ["--grid", ".", "-w", "MIDD"],
        ["--grid", ".", "--dry-run"],
    ],
)
def test_wrong_usage(args: list[str], source: Path, run: Run) -> None:
    assert run("sweep", source, *args)[0] == 2
