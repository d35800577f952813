"""What ends a process, by a terminal or the system, and gives it time to tidy up: signals that can be kept waiting."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ENDING = {signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Keep them waiting, where the system can; in threads and processes that are started meanwhile, for good."""
    if sys.platform == "win32":
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end_quietly() -> None:
    """Have them end this process by SystemExit, in a process started uninterrupted too; without a word."""
    _handle(_end)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _end(number: int, _: object) -> None:
    _handle(signal.SIG_IGN)  # a second one must not come between the first and tidying up
    raise SystemExit(128 + number)


def _handle(handler: Any) -> None:
    """Set the handler of those that whoever started this process did not have it ignore, as nohup does."""
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
