"""Pictures of a sweep put into one: rows and columns as the manifest has them, labelled; differences of an analysis.

The one module that needs Pillow. Pictures are named as the manifest's files, whatever drew them.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .arguments import AnyPath
from .atomic import check_output, write_file
from .axes import ANALYSE, FULL
from .console import escape
from .errors import FileFormatError, LbwError
from .plots import THEMES, Theme, check, font_for
from .sweeps import MANIFEST
from .words import shortened

if TYPE_CHECKING:
    from PIL.Image import Image

# Suffix -> what a picture of this name is, and all that one may be: Pillow knows formats that start other programs.
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_MOST = 16_000  # pixels per side: JPEG and WebP end there, and so does the patience of viewers
_TILE = 16  # pixels of the smallest picture
_WRAP = 8  # a single row of more cells than this is broken into several


@dataclass(frozen=True, slots=True)
class Plot:
    """A manifest, as far as a picture needs it: labels by axis, and the picture's name by labels."""

    labels: Mapping[str, tuple[str, ...]]
    names: Mapping[tuple[str | None, str | None, str | None], str]
    analysis: bool

    def name(self, x: str | None, y: str | None = None, z: str | None = None) -> str:
        """The name of a cell's picture, empty if there is no such cell."""
        return self.names.get((x, y, z), "")


@dataclass(frozen=True, slots=True)
class Assembled:
    """What became of the pictures: those missing by name; of an analysis, block -> share of pixels that change.

    `escaped` are the letters of labels that no font has here.
    """

    missing: tuple[str, ...]
    changed: Mapping[str, float]
    escaped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A row of pictures (None where one is missing), with a caption over each and a label at its side.

    `framed` shows where one is missing; differences have none to miss.
    """

    pictures: tuple[Image | None, ...]
    captions: tuple[str, ...] = ()
    side: str = ""
    framed: bool = True


def assemble_grid(
    folder: AnyPath,
    images: AnyPath,
    picture: AnyPath,
    *,
    tile: int = 512,
    threshold: int = 20,
    theme: str = "light",
    replace: bool = False,
) -> Assembled:
    """Put the pictures in a folder into one, as a sweep's folder, or the manifest in it, orders them.

    `images` holds the pictures, named as the sweep's files; `picture` is the one to write, a .png, .jpg or .webp.
    `tile` is the longer side of each in pixels, as far as there is room; `theme` is `light` or `dark`. Of an analysis,
    every block's picture has its difference to the full LoRA's below it, where changes up to `threshold` of 255 count
    as none. Raises FileFormatError, OutputError, and LbwError where Pillow is absent.
    """
    if theme not in THEMES:
        raise LbwError(f"theme {theme!r} is not one of {', '.join(THEMES)}")
    where, images, picture = Path(folder), Path(images), Path(picture)
    if not images.is_dir():
        raise FileFormatError(images, "is not a folder", "name the folder that your program drew the pictures into")
    check(picture, _FORMATS, "PIL", replace=replace)
    plot = read_manifest(where / MANIFEST if where.is_dir() else where)
    if _longest(plot) >= _MOST // _TILE:
        raise FileFormatError(where, "has more cells than fit into one picture", "sweep fewer at a time")
    wanted = dict.fromkeys(plot.names.values())
    found = {name: path for name in wanted if (path := _picture(images, name))}
    if not found:
        first = next(iter(wanted), "")
        raise FileFormatError(images, f"holds none of the sweep's {len(wanted)} pictures", f"name them as {first}.png")
    check_output(picture, found.values(), replace=replace)
    tile = max(min(tile, _MOST // (_longest(plot) + 1)), _TILE)
    small, changed = _reduced(plot, found, tile, threshold)
    rows = _analysed(plot, small, changed, inverted=theme == "light") if plot.analysis else _plotted(plot, small)
    font, lacking = font_for("".join(escape(label) for labels in plot.labels.values() for label in labels))
    content = BytesIO()
    _drawn(rows, THEMES[theme], font, lacking).save(content, _FORMATS[picture.suffix.lower()])
    write_file(picture, content.getbuffer(), replace=replace)
    return Assembled(tuple(name for name in wanted if name not in found), changed, tuple(sorted(lacking)))


def read_manifest(path: Path) -> Plot:
    """What a manifest says of the pictures. Raises FileFormatError."""
    try:
        return _plot(json.loads(path.read_text("utf-8")))
    except OSError as error:
        hint = "name the sweep's folder: lbw sweep FOLDER --grid PICTURES"
        raise FileFormatError(path, f"cannot be read: {error.strerror}", hint) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(
            path, "is not the manifest of a sweep", "write one with lbw sweep INPUT -o DIR"
        ) from error


def _plot(content: Any) -> Plot:
    """A manifest's content understood. Raises ValueError, KeyError, TypeError or AttributeError where it is none."""
    axes = {name: axis for name, axis in content["axes"].items() if name in ("x", "y", "z")}
    labels = {name: tuple(map(str, axis["cells"])) for name, axis in axes.items()}
    names = {(cell["x"], cell["y"], cell["z"]): _stem(cell["file"]) for cell in content["cells"]}
    analysis = any(axis["kind"] == ANALYSE for axis in axes.values())
    if not all(labels.values()) or (analysis and set(labels) != {"x"}):
        raise ValueError(labels)
    return Plot(labels, names, analysis)


def _stem(file: Any) -> str:
    if not isinstance(file, str) or Path(file).name != file:
        raise ValueError(file)
    return Path(file).stem


def _picture(folder: Path, name: str) -> Path | None:
    paths = (folder / f"{name}{suffix}" for suffix in _FORMATS)
    return next((path for path in paths if path.is_file()), None)


def _read(path: Path) -> Image:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=[*_FORMATS.values()]) as image:
                return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FileFormatError(path, f"is not a picture: {error}", "draw it again") from error


def _longest(plot: Plot) -> int:
    """How many pictures may stand in a row or column."""
    x, y, z = (len(plot.labels.get(name, ("",))) for name in "xyz")
    return max(min(x, _WRAP), 2 * math.ceil(x / _WRAP)) if y * z == 1 else max(x, y * z)


def _plotted(plot: Plot, small: Mapping[str, Image]) -> list[Row]:
    """Columns x, rows y, one sheet under the other for z; a single long row is wrapped."""
    if set(plot.labels) == {"x"}:
        return [Row(tuple(small.get(plot.name(x)) for x in part), part) for part in _parts(plot.labels["x"])]
    columns, lines, sheets = (plot.labels.get(name, (None,)) for name in "xyz")
    return [
        Row(
            tuple(small.get(plot.name(x, y, z)) for x in columns),
            tuple(x or "" for x in columns) if y == lines[0] else (),
            ", ".join(filter(None, (z, y))),
        )
        for z in sheets
        for y in lines
    ]


def _reduced(
    plot: Plot, found: Mapping[str, Path], tile: int, threshold: int
) -> tuple[dict[str, Image], dict[str, float]]:
    """The pictures by name, made smaller; of an analysis, block -> the share of pixels that change without the block.

    They are read one at a time, each once: changes are those of its own size.
    """
    whole = plot.name(FULL)
    if plot.analysis and whole not in found:
        name = whole or FULL
        raise FileFormatError(Path(name), "is missing: the picture of the full LoRA", f"draw it as {name}.png")
    full = _read(found[whole]) if plot.analysis else None
    small: dict[str, Image] = {}
    shares: dict[str, float] = {}
    for name, path in found.items():
        image = full.copy() if full and name == whole else _read(path)
        if full:
            shares[name] = _share(_difference(full, image), threshold)
        image.thumbnail((tile, tile))
        small[name] = image
    blocks = (label for label in plot.labels.get("x", ()) if label != FULL)
    return small, {block: shares[plot.name(block)] for block in blocks if plot.name(block) in shares}


def _analysed(plot: Plot, small: Mapping[str, Image], changed: Mapping[str, float], *, inverted: bool) -> list[Row]:
    """Each picture with its share of changed pixels, and below it its difference to the full LoRA's."""
    from PIL import ImageChops

    full = small[plot.name(FULL)]

    def difference(label: str) -> Image | None:
        if label not in changed:
            return None
        image = _difference(full, small[plot.name(label)])
        return ImageChops.invert(image) if inverted else image

    rows: list[Row] = []
    for part in _parts(tuple(dict.fromkeys(plot.labels["x"]))):
        captions = tuple(f"{label}  {changed[label]:.1%}" if label in changed else label for label in part)
        rows.append(Row(tuple(small.get(plot.name(label)) for label in part), captions))
        rows.append(Row(tuple(map(difference, part)), framed=False))
    return rows


def _difference(full: Image, image: Image) -> Image:
    from PIL import ImageChops

    return ImageChops.difference(full, image.resize(full.size))


def _share(difference: Image, threshold: int) -> float:
    """The share of pixels where a channel changes by more than the threshold."""
    return float((np.asarray(difference).max(axis=2) > threshold).mean())


def _parts(labels: Sequence[str]) -> list[tuple[str, ...]]:
    """A long row as several of about the same length."""
    lines = math.ceil(len(labels) / _WRAP)
    each = math.ceil(len(labels) / lines)
    return [tuple(labels[i : i + each]) for i in range(0, len(labels), each)]


def _drawn(rows: Sequence[Row], look: Theme, font_file: str | None, lacking: Collection[str]) -> Image:
    """The whole picture; what the font lacks becomes its escape."""
    from PIL import Image, ImageDraw, ImageFont

    escapes = str.maketrans({letter: ascii(letter)[1:-1] for letter in lacking})
    sizes = [picture.size for row in rows for picture in row.pictures if picture]
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    size = max(width // 16, 11)
    font = ImageFont.truetype(font_file, size) if font_file else ImageFont.load_default(size)
    gap, line = max(width // 30, 6), int(size * 1.6)
    letters = max(int(width / font.getlength("0")), 4)
    sides = [shortened(escape(row.side).translate(escapes), 2 * letters) for row in rows]
    margin = gap + int(max(map(font.getlength, sides)))
    margin += gap * (margin > gap)
    columns = max(len(row.pictures) for row in rows)
    heights = [height + gap + line * bool(row.captions) for row in rows]
    result = Image.new("RGB", (margin + columns * (width + gap), gap + sum(heights)), look.paper)
    draw = ImageDraw.Draw(result)
    top = gap
    for row, side, tall in zip(rows, sides, heights, strict=True):
        bottom = top + tall - gap
        if side:
            draw.text((gap, bottom - height / 2), side, look.ink, font, anchor="lm")
        for i, picture in enumerate(row.pictures):
            left = margin + i * (width + gap)
            if row.captions:
                caption = shortened(escape(row.captions[i]).translate(escapes), letters)
                draw.text((left + width / 2, top + line * 0.4), caption, look.ink, font, anchor="mm")
            if picture:
                corner = (left + (width - picture.width) // 2, bottom - height)
                result.paste(picture, corner)
                if not row.framed:  # a difference is mostly as empty as the paper
                    end = (corner[0] + picture.width - 1, corner[1] + picture.height - 1)
                    draw.rectangle((*corner, *end), outline=look.grid)
            elif row.framed:
                draw.rectangle((left, bottom - height, left + width - 1, bottom - 1), outline=look.grid, width=2)
                draw.text((left + width / 2, bottom - height / 2), "missing", look.ink, font, anchor="mm")
        top += tall
    result.thumbnail((_MOST, _MOST))  # pictures have room in it; labels and gaps make it a little larger
    return result
