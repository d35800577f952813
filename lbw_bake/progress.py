"""How much of the work is done, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

# Called from time to time with the share of large work that is done, from 0 to 1.
Progress = Callable[[float], object]


def silent(_: float) -> None:
    """Show nothing."""


def part_of(progress: Progress, done: float, share: float) -> Progress:
    """The progress of a part of the work: a share of the whole, which begins when `done` of it is done."""
    return lambda part: progress(done + share * part)
