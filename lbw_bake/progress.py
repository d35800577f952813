"""How far work has come, for whoever wants to show it."""

from __future__ import annotations

from collections.abc import Callable

# Told from time to time the share of the work that is done, where it is much.
Progress = Callable[[float], object]


def silent(_: float) -> None:
    """Nobody is told."""


def part_of(progress: Progress, done: float, share: float) -> Progress:
    """What is to be told of a part of the work: how much was done before it, and the share that it is."""
    return lambda of_it: progress(done + share * of_it)
