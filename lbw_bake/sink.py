"""Bytes on their way out: a few buffers used in turn, consumed by other threads while the next ones are filled."""

from __future__ import annotations

from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np

from .scaling import CPU, Backend, Bytes

Consumer = Callable[[memoryview], object]

# Bytes for the consumers, or something that is done in their place.
Part = memoryview | Callable[[], object]

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
        # What is handed over next: parts, where in the buffer the one begins that is being filled, and how many bytes
        # are written by what was inserted.
        self._parts: list[Part] = []
        self._begun = self._inserted = 0
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

    def insert(self, nbytes: int, write: Callable[[], object]) -> None:
        """Let something else write the next bytes, so many: it is called once those before them are consumed.

        The thread of the consumer calls it; so it is for sinks that have just one.
        """
        self._end_part()
        self._parts.append(write)
        self._inserted += nbytes
        if self._inserted >= self._size:
            self._hand_over()

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
        self._end_part()
        if self._parts:
            for thread in self._threads:
                thread.give(self._parts)
            self._count += 1
            self._handed.append((self._buffer, self._count))
            buffer, count = self._handed[0]
            self._wait_for(count)
            self._handed.popleft()
            self._buffer, self._parts = buffer, []
            self._filled = self._begun = self._inserted = 0

    def _end_part(self) -> None:
        if self._filled > self._begun:
            self._parts.append(self._buffer[self._begun : self._filled].data)
            self._begun = self._filled

    def _wait_for(self, count: int) -> None:
        for thread in self._threads:
            thread.wait_for(count)


class _Thread:
    """A thread that gives parts to a consumer.

    It is spoken to through queues that know no Python: an interrupt, which may come between any two steps, would leave
    a lock of futures or conditions taken, and everybody waiting for it.
    """

    def __init__(self, consumer: Consumer, wait: Callable[[], None]) -> None:
        self._given: SimpleQueue[list[Part] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | bool] = SimpleQueue()
        self._count = 0
        start_new_thread(_consume, (self._given, self._done, wait, consumer))

    def give(self, parts: list[Part]) -> None:
        """Have it consume them when it is done with what it was given before."""
        self._given.put(parts)

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
    given: SimpleQueue[list[Part] | None],
    done: SimpleQueue[BaseException | bool],
    wait: Callable[[], None],
    consumer: Consumer,
) -> None:
    """Tell of all parts consumed True or what was raised, and False at the end."""
    while (parts := given.get()) is not None:
        try:
            wait()
            for part in parts:
                if isinstance(part, memoryview):
                    consumer(part)
                else:
                    part()
        except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
            done.put(error)
        else:
            done.put(True)
    done.put(False)
