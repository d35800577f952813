"""Tables for a terminal: aligned columns, bars that take the room there is.

rich is imported where a table is drawn: the commands that print a line start faster without it (see `console`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from .console import escape

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.measure import Measurement

_BAR, _SHORTEST_BAR = 24, 6
_GAP, _SENTENCE = 2, 20  # characters between two columns; in one that goes on in the next line
_MARKS = "> ~"
_WIDE = 240  # what is not a terminal has no width to keep to


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar as long as a value is of a whole, in eighths of a character, as wide as its column."""

    value: float
    whole: float

    def text(self, width: int) -> str:
        """The bar in a column of this width."""
        eighths = round(min(abs(self.value) / self.whole, 1.0) * width * 8) if self.whole else 0
        return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[str]:
        yield self.text(min(options.max_width, _BAR))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement(_SHORTEST_BAR, _BAR)


def print_table(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[str | Bar]],
    *,
    spare: Iterable[str] = ("",),
    stderr: bool = False,
) -> None:
    """A title, if there is one, and a table, on stdout unless told otherwise.

    A column whose name ends in `>` is aligned to the right, one in `~` may go on in the next line, one without a name
    is for bars. Where the terminal is too narrow for them all, those that are `spare` are left out, the first one
    first; nothing is cut.
    """
    from rich.console import Console
    from rich.table import Table

    # FORCE_COLOR gives what is not a terminal colours, but no width to keep to.
    stream = sys.stderr if stderr else sys.stdout
    console = Console(
        stderr=stderr, highlight=False, markup=False, emoji=False, width=None if stream.isatty() else _WIDE
    )
    names = list(columns)
    lines = [[escape(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    kept, fits = _fitting(names, lines, spare, console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i in kept:
        name = names[i].rstrip(_MARKS)
        whole = i == 0 or (fits and name != "" and "~" not in names[i])
        table.add_column(
            escape(name), justify="right" if names[i].endswith(">") else "left", no_wrap=whole, overflow="fold"
        )
    for cells in lines:
        table.add_row(*(cells[i] for i in kept))
    with _above_bars(console, stream):
        if title:
            console.print(escape(title), style="bold", soft_wrap=True)
        console.print(table)


@contextmanager
def _above_bars(console: Console, stream: TextIO) -> Iterator[None]:
    """Print to where a bar is drawn as everybody else does: a console of its own would draw into the bar's line."""
    if not hasattr(stream, "rich_proxied_file"):
        yield
        return
    with console.capture() as drawn:
        yield
    stream.write(drawn.get())


def _fitting(
    columns: Sequence[str], rows: Sequence[Sequence[str | Bar]], spare: Iterable[str], width: int
) -> tuple[list[int], bool]:
    """The columns that are shown, without those of the spare ones that must make room; and whether they fit."""
    widths = [_width(column, cells) + _GAP for column, *cells in zip(columns, *rows, strict=True)]
    kept = list(range(len(columns)))
    for name in spare:
        if sum(widths[i] for i in kept) - _GAP <= width:
            break
        kept = [i for i in kept if i == 0 or columns[i].rstrip(_MARKS) != name]
    return kept, sum(widths[i] for i in kept) - _GAP <= width


def _width(column: str, cells: Iterable[str | Bar]) -> int:
    """How wide a column must be."""
    from rich.cells import cell_len

    texts = (cell_len(cell) if isinstance(cell, str) else _SHORTEST_BAR for cell in cells)
    widest = max((cell_len(escape(column.rstrip(_MARKS))), *texts))
    return min(widest, _SENTENCE) if "~" in column else widest
