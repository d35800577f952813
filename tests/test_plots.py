"""Pictures: what is in them, whatever the file is called and however many blocks it has."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from conftest import (
    FLUX_BLOCKS,
    SD1_ALL_BLOCKS,
    SD1_BLOCKS,
    SDXL_ALL_BLOCKS,
    Run,
    Tensors,
    kohya_lora,
    sdxl_lora,
    unet_lora,
    write,
)

pytest.importorskip("matplotlib")


def flux_lora() -> Tensors:
    names = ["te1_text_model_encoder_layers_0_mlp_fc1", "te3_encoder_block_0_layer_1_DenseReluDense_wi_0"]
    names += ["unet_txt_in", *(f"unet_double_blocks_{i}_img_attn_qkv" for i in range(19))]
    names += [*(f"unet_single_blocks_{i}_linear1" for i in range(38)), "unet_final_layer_linear"]
    return kohya_lora(names)


FILES = {
    "17": (unet_lora(), SD1_BLOCKS),
    "20": (sdxl_lora(SDXL_ALL_BLOCKS), SDXL_ALL_BLOCKS),
    "26": (unet_lora(SD1_ALL_BLOCKS), SD1_ALL_BLOCKS),
    "61": (flux_lora(), FLUX_BLOCKS),
}


def texts(picture: Path) -> list[str]:
    """The texts of an SVG, which matplotlib keeps as comments beside their outlines."""
    return [match.strip() for match in re.findall(r"<!-- (.*?) -->", picture.read_text("utf-8"))]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("tensors", "blocks"), FILES.values(), ids=FILES)
def test_every_block_has_its_label_in_order(
    tensors: Tensors, blocks: list[str], theme: str, tmp_path: Path, run: Run
) -> None:
    picture = tmp_path / "a.svg"
    run.done("inspect", write(tmp_path / "style.safetensors", tensors), "--plot", picture, "--theme", theme)
    ET.parse(picture)
    found = texts(picture)
    assert [text for text in found if text in blocks][: len(blocks)] == blocks
    assert "style" in found
    assert "text encoder" in found


def test_a_png_is_a_png(lora: Path, run: Run) -> None:
    picture = lora.with_name("a.PNG")
    run.done("inspect", lora, "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_same_data_gives_the_same_bytes(lora: Path, tmp_path: Path, run: Run) -> None:
    for name in ("a.svg", "b.svg"):
        run.done("inspect", lora, "--plot", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_several_files_are_all_named(tmp_path: Path, run: Run) -> None:
    names = ["one", "two $x$", "_three", "画風"]
    files = [write(tmp_path / f"{name}.safetensors", unet_lora()) for name in names]
    run.done("inspect", *files, "--plot", tmp_path / "a.svg", "--elements")
    assert set(names) <= set(texts(tmp_path / "a.svg"))


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path, run: Run) -> None:
    """As a LoRA and what was baked of it into another folder."""
    picture = tmp_path / "a.svg"
    paths = [tmp_path / folder / "style.safetensors" for folder in ("loras", "baked")]
    for path in paths:
        path.parent.mkdir()
        write(path, unet_lora())
    out = run.out("inspect", *paths, write(tmp_path / "other.safetensors", unet_lora()), "--plot", picture)
    names = ["loras/style", "baked/style", "other"]
    assert out.splitlines()[1].split() == ["block", *names]
    assert [line.partition(".")[0] for line in out.splitlines()[-3:]] == names
    assert [text for text in texts(picture) if text in names] == names


def test_nothing_measurable_is_still_a_picture(tmp_path: Path, run: Run) -> None:
    tensors = {name: np.full_like(array, np.nan) for name, array in unet_lora(["MID", "OUT03"]).items()}
    run.done("inspect", write(tmp_path / "a.safetensors", tensors), "--plot", tmp_path / "a.svg", "--family", "sd1")
    found = texts(tmp_path / "a.svg")
    assert found.count("?") == 2
    assert any("unet ?" in text for text in found)
    assert not any(re.fullmatch(r"[-\u2212]0\.\d+", text) for text in found)  # no norm is negative


def test_an_existing_picture_needs_force(lora: Path, tmp_path: Path, run: Run) -> None:
    picture = tmp_path / "a.svg"
    picture.write_text("mine")
    code, out, error = run("inspect", lora, "--plot", picture)
    assert (code, out) == (1, "")
    assert "already exists" in error
    assert picture.read_text() == "mine"
    run.done("inspect", lora, "--plot", picture, "--force")


def test_other_formats_are_refused_before_any_work(tmp_path: Path, run: Run) -> None:
    code, out, error = run("inspect", tmp_path / "absent", "--plot", tmp_path / "a.safetensors")
    assert (code, out) == (1, "")
    assert ".png or .svg" in error


def test_a_folder_that_is_not_there_is_refused_before_any_work(tmp_path: Path, run: Run) -> None:
    code, out, error = run("inspect", tmp_path / "absent", "--plot", tmp_path / "nowhere" / "a.png")
    assert (code, out) == (1, "")
    assert "there is no folder" in error


def test_without_matplotlib_it_says_what_to_install(
    lora: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, error = run("inspect", lora, "--plot", tmp_path / "a.png")
    assert (code, out) == (1, "")
    assert 'pip install "lbw-bake[plot]"' in error
    run.done("inspect", lora)
