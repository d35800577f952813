"""Sweeps for people and for programs: what will be written, what was, and how much each block changes the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .axes import ANALYSE
from .console import message, print_json
from .sweeps import MANIFEST, Sweep
from .tables import Bar, print_table
from .words import counted, size_text, some

if TYPE_CHECKING:
    from .grid import Assembled


def planned(sweep: Sweep, *, quiet: bool = False) -> None:
    """How much there is to write, on stderr, and the warnings of the bakes."""
    if quiet:
        return
    for warning in sweep.warnings:
        message("warning", f"{sweep.lora.file.path}: {warning}")
    axes = " x ".join(
        counted(len(axis.labels), axis.kind.removesuffix("s")) for axis in sweep.axes.values() if axis.kind != ANALYSE
    )
    cells, files = counted(len(sweep.cells), "cell"), counted(len(sweep.files), "file")
    message("sweep", f"{axes or 'analysis'}: {cells}, {files}, {size_text(sweep.nbytes)}")


def written(sweep: Sweep, folder: Path, sizes: Sequence[int]) -> None:
    """That the files are there, and how many there were before."""
    there = f", {len(sweep.files) - len(sizes)} were there" if len(sizes) < len(sweep.files) else ""
    files = counted(len(sizes), "file")
    message("written", f"{folder} ({files}{there}, {size_text(sum(sizes))}, {folder / MANIFEST})")


def assembled(made: Assembled, picture: Path, *, quiet: bool = False, json: bool = False) -> None:
    """What a grid shows: pictures that are missing; of an analysis, how much of the picture each block changes."""
    if json:
        print_json({"picture": str(picture), "missing": list(made.missing), "changed": dict(made.changed)})
    elif made.changed:
        most = max(made.changed.values())
        rows = ((label, f"{share:.1%}", Bar(share, most)) for label, share in made.changed.items())
        print_table("How much of the picture changes", ("block", "changed>", ""), rows)
    if quiet:
        return
    if made.missing:
        message("warning", f"{counted(len(made.missing), 'picture')} missing: {some(made.missing, 5)}")
    if made.escaped:
        letters = counted(len(made.escaped), "letter")
        message("warning", f"no font here has {letters} of the labels, escaped: {some(made.escaped, 5)}")
    message("written", str(picture))
