"""Bytes on their way out: a few buffers used in turn, consumed by other threads while the next ones are filled."""

from __future__ import annotations

from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

import numpy as np

from .scaling import CPU, Backend, Bytes

Consumer = Callable[[memoryview], object]

# What is handed over: what fills rooms that are still empty, and all rooms of a buffer together.
Full = tuple[list[Callable[[], object]], memoryview]

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
        self._buffer: Bytes = np.empty(0, np.uint8)
        # The other buffers, the oldest first, and how many had been handed over with each.
        self._handed: deque[tuple[Bytes, int]] = deque([(self._buffer, 0)] * (_BUFFERS - 1))
        self._count = 0
        self._fills: list[Callable[[], object]] = []
        # Last: until it is there to be closed, an interrupt would leave them waiting for ever.
        self._threads = [_Thread(consumer, backend.wait) for consumer in consumers]

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

    def fill(self, nbytes: int, fill: Callable[[Bytes], object]) -> None:
        """Have the next room, of so many bytes, filled by the consumer's thread: only for a sink that has just one."""
        room = self.room(nbytes)
        self._fills.append(partial(fill, room))

    def drain(self) -> None:
        """Hand over what there is, and wait until all is consumed."""
        self._hand_over()
        self._wait_for(self._count)

    def close(self) -> None:
        """End the threads, once they are done with what they have."""
        for thread in self._threads:
            thread.end()
        self._backend.wait()

    def _hand_over(self) -> None:
        """Give the consumers what there is, and go on with the oldest buffer once everybody is done with it."""
        if self._filled:
            full = self._fills, self._buffer[: self._filled].data
            for thread in self._threads:
                thread.give(full)
            self._count += 1
            self._handed.append((self._buffer, self._count))
            buffer, count = self._handed[0]
            self._wait_for(count)
            self._handed.popleft()
            self._buffer, self._filled, self._fills = buffer, 0, []

    def _wait_for(self, count: int) -> None:
        for thread in self._threads:
            thread.wait_for(count)


class _Thread:
    """A thread that gives data to a consumer.

    It is spoken to through queues that know no Python: an interrupt, which may come between any two steps, would leave
    a lock of futures or conditions taken, and everybody waiting for it.
    """

    def __init__(self, consumer: Consumer, wait: Callable[[], None]) -> None:
        self._given: SimpleQueue[Full | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | bool] = SimpleQueue()
        self._count = 0
        start_new_thread(_consume, (self._given, self._done, wait, consumer))

    def give(self, full: Full) -> None:
        """Have it consume data when it is done with what it was given before."""
        self._given.put(full)

    def wait_for(self, count: int) -> None:
        """Wait until it has consumed so many. Raises what the consumer raised."""
        while self._count < count:
            done = self._done.get()
            self._count += 1
            if isinstance(done, BaseException):
                raise done

    def end(self) -> None:
        """End it, once it is done with what it has."""
        self._given.put(None)
        while self._done.get() is not False:
            pass


def _consume(
    given: SimpleQueue[Full | None],
    done: SimpleQueue[BaseException | bool],
    wait: Callable[[], None],
    consumer: Consumer,
) -> None:
    """Tell of everything consumed True or what was raised, and False at the end."""
    while (full := given.get()) is not None:
        fills, data = full
        try:
            wait()
            for fill in fills:
                fill()
            consumer(data)
        except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
            done.put(error)
        else:
            done.put(True)
    done.put(False)
