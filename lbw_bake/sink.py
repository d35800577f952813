"""Bytes on their way out: a few buffers used in turn, consumed by other threads while the next ones are filled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from .scaling import CPU, Backend, Bytes

Consumer = Callable[[memoryview], object]

# One buffer is filled, one consumed, and one waits for whoever is quicker.
_BUFFERS = 3


class Sink:
    """Gathers bytes in buffers and gives full ones to each consumer, on a thread of its own and in their order.

    Memory stays what it was at the start: a buffer is filled again when everybody is done with it. The backend's
    transforms may fill it after they returned: consumers wait for it. What a consumer raises is raised by the next
    method that has to wait for it.
    """

    def __init__(self, size: int, *consumers: Consumer, backend: Backend = CPU) -> None:
        self._size, self._filled = size, 0
        self._backend = backend
        self._threads = [(ThreadPoolExecutor(1), consumer) for consumer in consumers]
        self._buffer: Bytes = np.empty(0, np.uint8)
        # The other buffers, the oldest first, with what is still to be done with each.
        self._handed: deque[tuple[Bytes, list[Future[object]]]] = deque([(self._buffer, [])] * (_BUFFERS - 1))

    def room(self, nbytes: int) -> Bytes:
        """The next bytes, so many, to be filled before anything else is asked for."""
        if self._filled + nbytes > len(self._buffer):
            self._hand_over()
            if nbytes > len(self._buffer):
                self._buffer = self._backend.memory(max(nbytes, self._size))
        start, self._filled = self._filled, self._filled + nbytes
        return self._buffer[start : self._filled]

    def put(self, data: Bytes) -> None:
        """Copy bytes into the next room, and the next after that if they need more than a buffer."""
        for start in range(0, len(data), self._size):
            part = data[start : start + self._size]
            self.room(len(part))[:] = part

    def drain(self) -> None:
        """Hand over what there is, and wait until all is consumed."""
        self._hand_over()
        for _, consumed in self._handed:
            _wait_for(consumed)

    def close(self) -> None:
        """End the threads, once they are done with what they have."""
        for thread, _ in self._threads:
            thread.shutdown()
        self._backend.wait()

    def _hand_over(self) -> None:
        """Give the consumers what there is, and go on with the oldest buffer once everybody is done with it."""
        if self._filled:
            data = self._buffer[: self._filled].data
            wait = self._backend.wait
            consumed = [thread.submit(_consume, data, wait, consumer) for thread, consumer in self._threads]
            self._handed.append((self._buffer, consumed))
            buffer, consumed = self._handed[0]
            _wait_for(consumed)
            self._handed.popleft()
            self._buffer, self._filled = buffer, 0


def _consume(data: memoryview, wait: Callable[[], None], consumer: Consumer) -> object:
    wait()
    return consumer(data)


def _wait_for(consumed: list[Future[object]]) -> None:
    for future in consumed:
        future.result()
