"""How much of the work is done, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called from time to time with the share of large work that is done, from 0 to 1.
Progress = Callable[[float], object]


def silent(_: float) -> None:
    """Show nothing."""


def part_of(progress: Progress, done: float, share: float) -> Progress:
    """The progress of a part of the work: a share of the whole, which begins when `done` of it is done."""
    return lambda part: progress(done + share * part)


class _Raised(Exception):  # noqa: N818 - which is no error of ours
    """What was raised by being told, on its way past those who handle what files and the system refuse."""


@contextmanager
def unhandled(progress: Progress) -> Iterator[Progress]:
    """Progress for work that may fail: what being told raises is no failure of it, and leaves the block as it is."""

    def tell(share: float) -> None:
        try:
            progress(share)
        except Exception as error:
            raise _Raised(error) from error

    try:
        yield tell
    except _Raised as raised:
        error: Exception = raised.args[0]
        raise error from error.__cause__
