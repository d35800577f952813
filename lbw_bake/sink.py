"""Bytes on their way out: a few buffers used in turn, consumed by other threads while the next ones are filled."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from .scaling import Bytes

Consumer = Callable[[memoryview], object]

# One buffer is filled, one consumed, and one waits for whoever is quicker.
_BUFFERS = 3


class Sink:
    """Gathers bytes in buffers and gives full ones to each consumer, on a thread of its own and in their order.

    Memory stays what it was at the start: a buffer is filled again when everybody is done with it. What a consumer
    raises is raised by the next method that has to wait for it.
    """

    def __init__(self, size: int, *consumers: Consumer) -> None:
        self._size = size
        self._buffers = [np.empty(0, np.uint8) for _ in range(_BUFFERS)]
        self._consumed: list[list[Future[object]]] = [[] for _ in range(_BUFFERS)]
        self._turn = self._filled = 0
        self._threads = [(ThreadPoolExecutor(1), consumer) for consumer in consumers]

    def room(self, nbytes: int) -> Bytes:
        """The next bytes, so many, to be filled before anything else is asked for."""
        if self._filled + nbytes > len(self._buffers[self._turn]):
            self.hand_over()
            if max(nbytes, self._size) > len(self._buffers[self._turn]):
                self._buffers[self._turn] = np.empty(max(nbytes, self._size), np.uint8)
        start, self._filled = self._filled, self._filled + nbytes
        return self._buffers[self._turn][start : self._filled]

    def put(self, data: Bytes) -> None:
        """Copy bytes into the next room, and the next after that if they need more than a buffer."""
        for start in range(0, len(data), self._size):
            part = data[start : start + self._size]
            self.room(len(part))[:] = part

    def hand_over(self) -> None:
        """Give the consumers what there is, and go on with a buffer that nobody needs any more."""
        if not self._filled:
            return
        data = self._buffers[self._turn][: self._filled].data
        self._consumed[self._turn] = [thread.submit(consumer, data) for thread, consumer in self._threads]
        self._turn, self._filled = (self._turn + 1) % _BUFFERS, 0
        self._wait_for(self._turn)

    def drain(self) -> None:
        """Hand over what there is, and wait until all is consumed."""
        self.hand_over()
        for turn in range(_BUFFERS):
            self._wait_for(turn)

    def close(self) -> None:
        """End the threads, once they are done with what they have."""
        for thread, _ in self._threads:
            thread.shutdown()

    def _wait_for(self, turn: int) -> None:
        for consumed in self._consumed[turn]:
            consumed.result()
        self._consumed[turn] = []
