"""Pictures of a sweep put into one, and what an analysis measures in them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SD1_BLOCKS, Run, unet_lora, write

from lbw_bake import plots

Image = pytest.importorskip("PIL.Image")

SIZE = (48, 32)
Colour = tuple[int, int, int]


@pytest.fixture
def sweep(tmp_path: Path, run: Run) -> Callable[..., Path]:
    """Sweep a LoRA; returns the folder."""

    def call(*args: object) -> Path:
        source = write(tmp_path / "style.safetensors", unet_lora())
        run.done("sweep", source, "-o", tmp_path / "plot", *args)
        return tmp_path / "plot"

    return call


def files_of(folder: Path) -> dict[str, str]:
    """Label on the x axis (or x and y) -> the stem of the cell's file."""
    cells = json.loads((folder / "manifest.json").read_text("utf-8"))["cells"]
    return {" ".join(filter(None, (cell["x"], cell["y"], cell["z"]))): Path(cell["file"]).stem for cell in cells}


def draw(folder: Path, stem: str, colour: Colour, suffix: str = ".png", size: tuple[int, int] = SIZE) -> Path:
    path = folder / f"{stem}{suffix}"
    Image.new("RGB", size, colour).save(path)
    return path


def colours(path: Path) -> set[Colour]:
    with Image.open(path) as image:
        return {tuple(int(channel) for channel in pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3)}


@pytest.mark.parametrize("axes", [("--x", "values=0,0.5"), ("--y", "values=0,0.5"), ("--z", "values=0,0.5")])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_picture_is_in_it(axes: tuple[str, ...], theme: str, sweep: Callable[..., Path], run: Run) -> None:
    folder = sweep(*axes)
    red, blue = (250, 0, 10), (0, 10, 250)
    for stem, colour in zip(files_of(folder).values(), (red, blue), strict=True):
        draw(folder, stem, colour)
    code, out, error = run("sweep", "--grid", folder, "--theme", theme)
    assert (code, out) == (0, ""), error
    assert {red, blue} <= colours(folder / "grid.png")


def test_pictures_stand_where_their_labels_say(sweep: Callable[..., Path], run: Run) -> None:
    folder = sweep("--x", "values=0,0.5,1", "--y", "blocks=BASE,MID")
    shades: dict[str, int] = {}
    for i, stem in enumerate(dict.fromkeys(files_of(folder).values())):
        shades[stem] = 40 * i + 5
        draw(folder, stem, (shades[stem], 200, 0))
    picture = folder / "out.png"
    run.done("sweep", folder, "--grid", folder, "-o", picture)
    with Image.open(picture) as image:
        pixels = np.asarray(image)
    found = {}
    for label, stem in files_of(folder).items():
        ys, xs = np.nonzero((pixels == (shades[stem], 200, 0)).all(axis=2))
        found[label] = (xs.min(), ys.min())
    assert found["0 BASE"][0] < found["0.5 BASE"][0]
    assert found["0 BASE"][0] == found["0 MID"][0]
    assert found["0 BASE"][1] < found["0 MID"][1]


def test_a_missing_picture_leaves_a_gap_and_is_named(sweep: Callable[..., Path], run: Run) -> None:
    folder = sweep("--x", "values=0,0.5")
    first, second = files_of(folder).values()
    draw(folder, first, (1, 2, 3), ".jpg")
    error = run.done("sweep", "--grid", folder)
    assert f"1 picture missing: {second}" in error


class TestLetters:
    """Labels of presets in any language: no two letters are drawn as one box."""

    @staticmethod
    def drawn(label: str, folder: Path, run: Run) -> tuple[bytes, str]:
        """A grid of one picture of this label, and what was said of it."""
        axes = {"x": {"kind": "presets", "cells": [label]}}
        cells = [{"x": label, "y": None, "z": None, "file": "a.safetensors"}]
        (folder / "manifest.json").write_text(json.dumps({"axes": axes, "cells": cells}), "utf-8")
        draw(folder, "a", (1, 2, 3), size=(256, 64))
        said = run.done("sweep", "--grid", folder, "--force")
        return (folder / "grid.png").read_bytes(), said

    def test_those_that_a_font_has_are_drawn(self, tmp_path: Path, run: Run) -> None:
        pytest.importorskip("matplotlib")
        pictures = [self.drawn(f"Ki\u1ec3m {letter}", tmp_path, run) for letter in "\u1ea7\u1ea9\u0416\u03a9"]
        assert len({picture for picture, _ in pictures}) == len(pictures)
        assert not any("no font" in said for _, said in pictures)

    @pytest.mark.parametrize("installed", [True, False])
    def test_others_are_escaped_and_said(
        self, installed: bool, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not installed:
            monkeypatch.setattr(plots, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
        monkeypatch.setattr(plots, "_FONTS", ("DejaVu Sans",))
        escaped = "\\u9854\\u9854"
        plain = "" if not installed else "\u03a9"  # so that the font is the same one
        picture, said = self.drawn(plain + "\u9854\u9854", tmp_path, run)
        assert picture == self.drawn(plain + escaped, tmp_path, run)[0]
        assert "no font here has 1 letter of the labels, escaped: \u9854" in said


@pytest.mark.parametrize(("columns", "rows"), [(60, 2), (2, 60)])
def test_a_picture_is_no_larger_than_formats_allow(columns: int, rows: int, tmp_path: Path, run: Run) -> None:
    """Labels and gaps included: of more than 16,383 pixels WebP makes no picture."""
    labels = {"x": [f"column {i}" for i in range(columns)], "z": [f"a label of the sheet {i}" for i in range(rows)]}
    axes = {name: {"kind": "presets", "cells": cells} for name, cells in labels.items()}
    cells = [{"x": x, "y": None, "z": z, "file": f"{x}, {z}.safetensors"} for x in labels["x"] for z in labels["z"]]
    (tmp_path / "manifest.json").write_text(json.dumps({"axes": axes, "cells": cells}), "utf-8")
    draw(tmp_path, Path(cells[0]["file"]).stem, (250, 0, 10), size=(512, 512))
    run.done("sweep", tmp_path, "--grid", tmp_path, "-o", tmp_path / "grid.webp")
    with Image.open(tmp_path / "grid.webp") as image:
        assert 15_000 < max(image.size) <= 16_000


def test_pictures_are_made_smaller_never_larger(sweep: Callable[..., Path], run: Run) -> None:
    folder = sweep("--x", "values=0,0.5")
    for stem in files_of(folder).values():
        draw(folder, stem, (1, 2, 3), size=(400, 200))
    run.done("sweep", "--grid", folder, "--tile", "100")
    with Image.open(folder / "grid.png") as image:
        assert image.width < 300


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_an_analysis_measures_how_much_changes(theme: str, sweep: Callable[..., Path], run: Run) -> None:
    folder = sweep("--analyse")
    stems = files_of(folder)
    for stem in stems.values():
        draw(folder, stem, (100, 100, 100))
    changes = {"BASE": (60, 0.25), "MID": (21, 0.5), "OUT03": (20, 1.0), "OUT11": (-60, 1.0)}
    for block, (change, part) in changes.items():
        pixels = np.full((SIZE[1], SIZE[0], 3), 100, np.uint8)
        pixels[:, : round(SIZE[0] * part), 1] += np.uint8(change % 256)
        Image.fromarray(pixels).save(folder / f"{stems[block]}.png")
    changed = run.json("sweep", "--grid", folder, "--theme", theme, "--json")["changed"]
    assert list(changed) == SD1_BLOCKS
    assert {block: share for block, share in changed.items() if share} == {"BASE": 0.25, "MID": 0.5, "OUT11": 1.0}
    difference = (255, 195, 255) if theme == "light" else (0, 60, 0)
    assert difference in colours(folder / "grid.png")
    out = run.out("sweep", "--grid", folder, "--force", "--threshold", "19")
    assert ["OUT03", "100.0%"] in [line.split()[:2] for line in out.splitlines()]


@pytest.mark.parametrize("tile", [16, 512])
def test_an_analysis_measures_pictures_in_their_own_size(tile: int, sweep: Callable[..., Path], run: Run) -> None:
    """Every second column changes, by what half of is too little to count: made smaller, none would."""
    folder = sweep("--analyse", "--x", "blocks=MID")
    full, without = files_of(folder).values()
    draw(folder, full, (100, 100, 100))
    pixels = np.full((SIZE[1], SIZE[0], 3), 100, np.uint8)
    pixels[:, ::2] += np.uint8(30)
    Image.fromarray(pixels).save(folder / f"{without}.png")
    assert run.json("sweep", "--grid", folder, "--tile", tile, "--json")["changed"] == {"MID": 0.5}


def test_an_analysis_reads_each_picture_once(
    sweep: Callable[..., Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweep("--analyse")
    for stem in files_of(folder).values():
        draw(folder, stem, (100, 100, 100))
    opened: list[str] = []
    original = Image.open

    def seen(path: Path, **options: Any) -> Any:
        opened.append(path.stem)
        return original(path, **options)

    monkeypatch.setattr(Image, "open", seen)
    run.done("sweep", "--grid", folder)
    assert sorted(opened) == sorted(set(files_of(folder).values()))


def test_an_analysis_needs_the_picture_of_the_whole(sweep: Callable[..., Path], run: Run) -> None:
    folder = sweep("--analyse")
    draw(folder, files_of(folder)["MID"], (0, 0, 0))
    code, out, error = run("sweep", "--grid", folder)
    assert (code, out) == (1, "")
    assert "style-full.png" in error


class TestRefused:
    """What cannot become a picture says why, and leaves none."""

    def refused(self, run: Run, folder: Path, *args: object) -> str:
        code, out, error = run("sweep", "--grid", folder, *args)
        assert (code, out) == (1, "")
        assert not (folder / "grid.png").exists()
        return error

    def test_no_manifest(self, tmp_path: Path, run: Run) -> None:
        assert "manifest.json: cannot be read" in self.refused(run, tmp_path)

    @pytest.mark.parametrize(
        "text", ["", "{}", "[]", '{"axes": 1, "cells": []}', '{"axes": {}, "cells": [{"file": "../a"}]}', "[" * 10_000]
    )
    def test_another_manifest(self, text: str, tmp_path: Path, run: Run) -> None:
        (tmp_path / "manifest.json").write_text(text)
        error = self.refused(run, tmp_path)
        assert "is not the manifest of a sweep" in error or "holds none of the sweep's 0 pictures" in error

    def test_no_pictures(self, sweep: Callable[..., Path], run: Run) -> None:
        folder = sweep("--x", "values=0,0.5")
        assert "name them as style-0.png" in self.refused(run, folder)
        assert "elsewhere: is not a folder" in run.refused("sweep", folder, "--grid", folder / "elsewhere")

    def test_a_picture_that_is_none(self, sweep: Callable[..., Path], run: Run) -> None:
        folder = sweep("--x", "values=0")
        (folder / "style-0.png").write_text("no picture")
        assert "is not a picture" in self.refused(run, folder)

    def test_an_unknown_format(self, sweep: Callable[..., Path], run: Run) -> None:
        assert "no picture format" in self.refused(run, sweep("--x", "values=0"), "-o", "grid.gif2")

    def test_without_pillow(self, sweep: Callable[..., Path], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = sweep("--x", "values=0")
        monkeypatch.setitem(sys.modules, "PIL", None)
        assert 'pip install "lbw-bake[plot]"' in self.refused(run, folder)

    def test_an_existing_picture(self, sweep: Callable[..., Path], run: Run) -> None:
        folder = sweep("--x", "values=0")
        picture = draw(folder, "mine", (1, 2, 3))
        before = picture.read_bytes()
        assert "already exists" in self.refused(run, folder, "-o", picture)
        assert picture.read_bytes() == before

    def test_one_of_its_own_pictures(self, sweep: Callable[..., Path], run: Run) -> None:
        folder = sweep("--x", "values=0")
        picture = draw(folder, "style-0", (1, 2, 3))
        before = picture.read_bytes()
        error = self.refused(run, folder, "-o", picture, "--force")
        assert "is the input itself" in error
        assert "--in-place" not in error
        assert picture.read_bytes() == before
