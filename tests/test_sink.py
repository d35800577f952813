"""What goes into a sink comes out of it in order, once for each consumer, however slow; and nobody sees it change."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pytest
from conftest import python, transformed

from lbw_bake.scaling import Backend, Bytes, Multiply, Transform
from lbw_bake.sink import Consumer, Sink

SIZE = 1000


def pieces() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for length in (0, 1, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE, *rng.integers(0, SIZE, 200)):
        yield rng.integers(0, 256, length, np.uint8)


def slow(into: bytearray, seed: int) -> Consumer:
    """Takes its time before it looks: by then a buffer that was filled too early would hold something else."""
    chance = random.Random(seed)

    def consume(data: memoryview) -> None:
        time.sleep(chance.choice((0, 0, 0.002)))
        into.extend(data)

    return consume


def test_every_consumer_gets_all_bytes_in_their_order() -> None:
    got = bytearray(), bytearray()
    with closing(Sink(SIZE, *map(slow, got, (1, 2)))) as sink:
        for piece in pieces():
            sink.put(piece)
        sink.drain()
        wanted = b"".join(piece.tobytes() for piece in pieces())
        assert got == (wanted, wanted)


def test_drained_bytes_are_consumed_before_others_follow() -> None:
    got = bytearray()
    with closing(Sink(SIZE, slow(got, 3))) as sink:
        for piece in pieces():
            sink.put(piece)
            before = len(got)
            sink.drain()
            assert bytes(got[before:]) == piece.tobytes()


def test_the_consumer_can_fill_rooms_itself() -> None:
    """In their places, while others are filled at once."""
    got, wanted, chance = bytearray(), bytearray(), random.Random(4)

    def filling(piece: np.ndarray) -> Callable[[Bytes], object]:
        def fill(room: Bytes) -> None:
            time.sleep(chance.choice((0, 0, 0.002)))
            room[:] = piece

        return fill

    with closing(Sink(SIZE, slow(got, 5))) as sink:
        for number, piece in enumerate(pieces()):
            wanted += piece.tobytes()
            if number % 3:
                sink.fill(len(piece), filling(piece))
            else:
                sink.put(piece)
        sink.drain()
    assert got == wanted


class Later(Backend):
    """Writes products at the last moment, as a device may."""

    def __init__(self) -> None:
        self._lock, self._begun = threading.Lock(), deque[tuple[Transform, Bytes, Bytes]]()

    def transform(self, step: Multiply) -> Transform:
        return lambda data, out: self._begun.append((step.transform(), data.copy(), out))

    def wait(self) -> None:
        with self._lock:
            while self._begun:
                transform, data, out = self._begun.popleft()
                transform(data, out)


def test_consumers_wait_for_products_that_come_later() -> None:
    got, step, backend = bytearray(), Multiply("F16", "F16", 0.5), Later()
    data = np.random.default_rng(0).integers(0, 256, 20 * SIZE, np.uint8)
    with closing(Sink(SIZE, got.extend, slow(bytearray(), 1), backend=backend)) as sink:
        for piece in data.reshape(-1, SIZE // 5):
            backend.transform(step)(piece, sink.room(len(piece)))
        sink.drain()
    assert bytes(got) == transformed(step, data).tobytes()


def test_buffers_are_used_again() -> None:
    addresses = set()
    with closing(Sink(SIZE, lambda _: None)) as sink:
        for _ in range(50):
            room = sink.room(SIZE)
            addresses.add(room.__array_interface__["data"][0])
    assert len(addresses) == 3


def full(_: memoryview) -> None:
    raise OSError(28, "No space left on device")


def test_what_a_consumer_raises_reaches_who_drains() -> None:
    with closing(Sink(SIZE, full)) as sink:
        sink.put(np.zeros(1, np.uint8))
        with pytest.raises(OSError, match="No space left"):
            sink.drain()


def test_what_filling_raises_reaches_who_drains() -> None:
    with closing(Sink(SIZE, lambda _: None)) as sink:
        sink.fill(1, lambda room: full(room.data))
        with pytest.raises(OSError, match="No space left"):
            sink.drain()


def test_what_a_consumer_raises_stops_who_fills() -> None:
    with closing(Sink(SIZE, full)) as sink, pytest.raises(OSError, match="No space left"):
        fill(sink)


def fill(sink: Sink) -> None:
    for _ in range(10):
        sink.put(np.zeros(SIZE, np.uint8))


def test_it_can_be_closed_wherever_an_interrupt_came() -> None:
    """Between any two steps of whoever fills it; in a process of its own, which might wait for ever."""
    code = """
import sys
from itertools import count
from lbw_bake.sink import Sink

def interrupting(steps):
    def trace(*_):
        nonlocal steps
        steps -= 1
        if not steps:
            raise KeyboardInterrupt
        return trace
    return trace

for steps in count(1):
    sink = Sink(4, lambda data: None)
    sys.settrace(interrupting(steps))
    try:
        for _ in range(5):
            sink.room(4)
            sink.fill(4, lambda room: None)
        break
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
        sink.close()
print(steps > 100)
"""
    assert python("-c", code, timeout=60).stdout == "True\n"
