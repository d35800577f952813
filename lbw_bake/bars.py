"""Progress bars on stderr, where that is a terminal. rich is imported where one is drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .interrupts import uninterrupted

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


@contextmanager
def share_bar(what: str, *, quiet: bool = False) -> Iterator[Callable[[float], object]]:
    """A bar for what is done; yields what is to be told the share of it."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, TaskProgressColumn

    bar = _started(what, 1.0, BarColumn(), TaskProgressColumn())
    try:
        yield lambda share: bar.update(bar.task_ids[0], completed=share)
    finally:
        bar.stop()


def bytes_bar(what: str, total: int) -> Progress:
    """A bar for so many bytes, with speed and time left; whoever asks for it stops it."""
    from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn

    return _started(what, total, BarColumn(), DownloadColumn(), TransferSpeedColumn())


def _started(what: str, total: float, *columns: ProgressColumn) -> Progress:
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    shown = (TextColumn("{task.description}"), *columns, TimeRemainingColumn())
    bar = Progress(*shown, console=Console(stderr=True), transient=True, redirect_stdout=False)
    bar.add_task(what, total=total)
    with uninterrupted():  # or Ctrl-C could reach the thread that draws it, whatever waits here
        bar.start()
    return bar
