"""Pictures of where LoRAs live: a bar per block in block order, coloured by the part of the model it is in.

The one module that draws with matplotlib, without pyplot and its global state; the same data gives the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import check_output, write_file
from .console import escape
from .elements import ELEMENTS, OTHERS
from .errors import LbwError, OutputError
from .families import OTHER, letter_of
from .inspection import Group, Inspection
from .words import shortened, size_text, told_apart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
_DPI = 150


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of a picture; `parts` colour the parts of a model in order, text encoders first."""

    paper: str
    ink: str
    faint: str
    grid: str
    rest: str
    parts: tuple[str, ...]


# Told apart by people of any colour vision, and by their lightness in print (after Okabe and Ito, Paul Tol).
THEMES = {
    "light": Theme(
        "#ffffff", "#1f2328", "#59636e", "#d9dee4", "#9aa4af", ("#c2410c", "#2563ae", "#b8860b", "#0f8a6d", "#8d4fa8")
    ),
    "dark": Theme(
        "#15181d", "#e6eaef", "#9aa4af", "#30363d", "#6b7580", ("#fb8a4c", "#6cb0f5", "#f0c94a", "#4fd0a8", "#cf9bea")
    ),
}
_TEXT_ENCODER = "text encoder"
_TINT = 0.62  # how much of its colour a part keeps from one of several files to the next
# DejaVu comes with matplotlib; the others, where installed, have the letters it lacks.
_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans JP",
    "Noto Sans",
    "Hiragino Sans",
    "Yu Gothic",
    "Arial Unicode MS",
)


def check(path: Path, formats: Collection[str] = FORMATS, needs: str = "matplotlib", *, replace: bool) -> None:
    """Refuse a picture that could only fail after the work. Raises OutputError, and LbwError without the library."""
    if path.suffix.lower() not in formats:
        raise OutputError(f"{path}: no picture format ends in {path.suffix!r}", f"name a {' or '.join(formats)} file")
    check_output(path, (), replace=replace)
    if find_spec(needs) is None:
        raise LbwError(f"pictures need {needs}, which is not installed", 'pip install "lbw-bake[plot]"')


def font_for(text: str) -> tuple[str | None, set[str]]:
    """The file of the font that has most of a text's letters, and those it lacks; for ASCII any font will do: None."""
    letters = {letter for letter in text if not letter.isascii()}
    if not letters or find_spec("matplotlib") is None:
        return None, letters
    from matplotlib import font_manager

    known = {(file := font_manager.findfont(font)): font_manager.get_font(file).get_charmap() for font in _installed()}
    lacking = {file: {letter for letter in letters if ord(letter) not in codes} for file, codes in known.items()}
    return min(lacking.items(), key=lambda each: len(each[1]))


def draw(
    files: Sequence[Inspection], path: Path, *, elements: bool = False, theme: str = "light", replace: bool = False
) -> None:
    """Write a picture of the norms by block (or element) of one file or of several. Raises OutputError."""
    import matplotlib as mpl

    groups = [facts.elements if elements else facts.blocks for facts in files]
    names = _names(files, groups, elements=elements)
    parts = {name: "" if elements else _part(name, files) for name in names}
    look = THEMES[theme]
    with mpl.rc_context(_settings(look)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a box for a letter no font has
        figure, axes = _canvas(len(names), len(files))
        _bars(axes, groups, parts, look)
        _labels(axes, names, files, elements=elements)
        _legend(axes, files, parts, look)
        picture = BytesIO()
        kind = path.suffix.lower().removeprefix(".")
        figure.savefig(picture, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
    write_file(path, picture.getbuffer(), replace=replace)


def _installed() -> list[str]:
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [font for font in _FONTS if font in installed]


def _settings(theme: Theme) -> Any:
    """What the theme changes of matplotlib's settings."""
    return {
        "font.family": _installed(),
        "font.size": 10,
        "text.parse_math": False,
        "svg.hashsalt": "lbw",
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.faint,
        "text.color": theme.ink,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "grid.color": theme.grid,
    }


def _canvas(names: int, files: int) -> tuple[Any, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width = min(max(7.5, 1.6 + names * (0.19 + 0.08 * (files - 1))), 24)
    figure = Figure(figsize=(width, 4.2), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12))
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _bars(axes: Axes, groups: Sequence[Mapping[str, Group]], parts: Mapping[str, str], theme: Theme) -> None:
    colours = _colours(parts, theme)
    width = 0.8 / len(groups)
    for i, named in enumerate(groups):
        offset = (i - (len(groups) - 1) / 2) * width
        heights = [named[name].norm if name in named else 0.0 for name in parts]
        tinted = [_tint(colours[part], theme.paper, i) for part in parts.values()]
        axes.bar([x + offset for x in range(len(parts))], heights, width * 0.94, color=tinted)
        for x, name in enumerate(parts):
            if name in named and not named[name].known:
                axes.text(x + offset, 0, "?", ha="center", va="bottom", fontsize=8, color=theme.faint)
    if not any(group.norm for named in groups for group in named.values()):
        axes.set_ylim(0, 1)


def _labels(axes: Axes, names: Sequence[str], files: Sequence[Inspection], *, elements: bool) -> None:
    upright = len(names) * max(map(len, names)) > 80
    axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0, fontsize=8 if len(names) > 30 else 9)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_ylabel("norm of the update")
    title, about = _title(files, elements=elements)
    axes.set_title(f"{title}\n", loc="left", fontsize=13, fontweight="bold")
    axes.text(0, 1.03, about, transform=axes.transAxes, fontsize=9, color=axes.yaxis.label.get_color())


def _legend(axes: Axes, files: Sequence[Inspection], parts: Mapping[str, str], theme: Theme) -> None:
    from matplotlib.patches import Patch

    colours = _colours(parts, theme)
    entries = [(part, colours[part]) for part in dict.fromkeys(parts.values()) if part]
    if len(files) > 1:
        entries += [
            (shortened(escape(name), 32), _tint(theme.ink, theme.paper, i))
            for i, name in enumerate(told_apart(facts.lora.file.path for facts in files))
        ]
    if len(entries) > 1:
        patches = [Patch(color=colour, label=label) for label, colour in entries]
        square = {"handlelength": 1, "handleheight": 1}
        axes.figure.legend(handles=patches, loc="outside lower left", ncols=6, frameon=False, fontsize=9, **square)


def _title(files: Sequence[Inspection], *, elements: bool) -> tuple[str, str]:
    by = "element" if elements else "block"
    first = files[0]
    families = dict.fromkeys(facts.family.title for facts in files)
    if len(files) > 1:
        return f"Where {len(files)} LoRAs live, by {by}", ", ".join(families)
    shares = ", ".join(
        f"{name} {f'{group.share:.0%}' if group.known else '?'}" for name, group in first.components.items()
    )
    size = size_text(first.lora.file.size)
    return shortened(escape(first.lora.file.path.stem), 60), f"{first.family.title}, {size}, by {by}; {shares}"


def _names(files: Sequence[Inspection], groups: Sequence[Mapping[str, Group]], *, elements: bool) -> list[str]:
    """Every block of the families that some file has, and those between: a gap in the row of bars says it is empty."""
    found = {name for named in groups for name in named}
    if elements:
        return [name for name in (*ELEMENTS, OTHERS) if name in found]
    names: dict[str, None] = {}
    for facts in files:
        fitting = [layout for layout in facts.family.layouts if found <= {*layout, OTHER}]
        names |= dict.fromkeys(min(fitting, key=len, default=[b for b in facts.family.blocks if b in found]))
    return [*names, *([OTHER] if OTHER in found else [])]


def _part(block: str, files: Sequence[Inspection]) -> str:
    """The part of the model a block is in: a text encoder, or the blocks of its letter."""
    if any(block in facts.family.text_encoder_blocks for facts in files):
        return _TEXT_ENCODER
    return letter_of(block)


def _colours(parts: Mapping[str, str], theme: Theme) -> dict[str, str]:
    """Part -> colour; text encoders have theirs whether or not there are any."""
    others = [part for part in dict.fromkeys(parts.values()) if part not in (_TEXT_ENCODER, OTHER)]
    encoder, *rest = theme.parts
    cycle = {part: rest[i % len(rest)] for i, part in enumerate(others)}
    return {_TEXT_ENCODER: encoder, OTHER: theme.rest, **cycle}


def _tint(colour: str, paper: str, i: int) -> str:
    """A colour for the i-th of several files: mixed with the paper, so that no bar shows through."""
    keep = max(_TINT**i, 0.15)
    mixed = (round(keep * int(colour[at : at + 2], 16) + (1 - keep) * int(paper[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
