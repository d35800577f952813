"""Progress bars on stderr, where that is a terminal. rich is imported only when one is drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .console import is_dumb
from .interrupts import uninterrupted
from .progress import silent

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


@contextmanager
def share_bar(what: str, *, quiet: bool = False) -> Iterator[Callable[[float], object]]:
    """A bar in percent; yields the function to call with the share that is done."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.progress import BarColumn, TaskProgressColumn

    with _shown(what, 1.0, BarColumn(), TaskProgressColumn()) as bar:
        yield lambda share: bar.update(bar.task_ids[0], completed=share)


@contextmanager
def bytes_bar(what: str, total: int) -> Iterator[Progress]:
    """A bar for so many bytes, with speed and time left."""
    from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn

    with _shown(what, total, BarColumn(), DownloadColumn(), TransferSpeedColumn()) as bar:
        yield bar


@contextmanager
def _shown(what: str, total: float, *columns: ProgressColumn) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    shown = (TextColumn("{task.description}"), *columns, TimeRemainingColumn())
    bar = Progress(*shown, console=Console(stderr=True), transient=True, redirect_stdout=False)
    bar.add_task(what, total=total)
    if is_dumb():  # rich would not draw there, but wrap lines at the width that it supposes
        yield bar
        return
    try:
        with uninterrupted():  # or the thread that draws it could get Ctrl-C, and nothing here would wake
            bar.start()
        yield bar
    finally:
        with uninterrupted():  # or the cursor could stay hidden
            bar.stop()
