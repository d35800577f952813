"""The signals that end a process, and how they are held back while something must be finished first."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ENDING = {signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold them back for a while, where the system can. Threads and processes started in it never get them."""
    if sys.platform == "win32":
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end_quietly() -> None:
    """Have the first of them end this process by SystemExit, silently, even if it was started uninterrupted."""
    _handle(_end)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _end(number: int, _: object) -> None:
    _handle(_bear)  # a second one must not interrupt the tidying up
    raise SystemExit(128 + number)


def _bear(*_: object) -> None:
    """Do nothing. Were they ignored by the system, Python would complain of one that is there by now."""


def _handle(handler: Any) -> None:
    """Set their handler, but for those that this process was started to ignore, as nohup does."""
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
