"""Updates as one matrix product: what merging adds up, and what truncation makes smaller.

Any linear algorithm is `up (out, rank) x down (rank, in, *kernel)` of some rank, exactly: LoHa's by the row-wise
Khatri-Rao product of its factors, LoKr's by the Kronecker product of theirs. All arrays are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np

from .cuda import with_room
from .errors import DeviceError
from .families import Kernel
from .updates import Array, Arrays, check_room, factors_of, flat, through_core


@dataclass(frozen=True, slots=True)
class LowRank:
    """An update of shape (out, in, *kernel) as up (out, rank) times down (rank, in, *kernel)."""

    up: Array
    down: Array

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return len(self.down)

    def dense(self) -> Array:
        """The update itself. Raises ValueError if it is larger than any layer."""
        check_room(len(self.up), *self.down.shape[1:])
        return np.tensordot(self.up, self.down, 1)

    def times(self, factor: float, limit: float) -> LowRank:
        """The update times a factor, put where it costs the least precision: into the larger matrix if it shrinks.

        Zeros go into the other one, which trainers begin with zeros; so does what grows, unless that passes the limit.
        """
        if factor == 0:  # whatever was there: NaN and infinity too
            return LowRank(np.zeros_like(self.up), self.down)
        if abs(factor) < 1 or np.abs(self.up).max(initial=0.0) * abs(factor) > limit:
            return LowRank(self.up, self.down * factor)
        return LowRank(self.up * factor, self.down)

    def evened(self) -> LowRank:
        """The same update, a power of two moved from one matrix to the other so that neither is small alone.

        Matrices that are products themselves may be smaller than half precision holds, while the other has room.
        """
        up, down = (float(np.abs(matrix).max(initial=0.0)) for matrix in (self.up, self.down))
        if not (0 < up < math.inf and 0 < down < math.inf):
            return self
        step = 2.0 ** round(math.log2(down / up) / 2)
        return LowRank(self.up * step, self.down / step)


def factored(update: Array) -> LowRank:
    """A whole update as a product with the identity, on its smaller side. Raises ValueError if that is too large."""
    rows, columns = flat(update).shape
    check_room(min(rows, columns), min(rows, columns))
    if columns < rows:
        return LowRank(flat(update), np.eye(columns).reshape(columns, *update.shape[1:]))
    return LowRank(np.eye(rows), update)


def concatenate(parts: Sequence[LowRank]) -> LowRank:
    """The sum of updates of one layer: ranks side by side. Raises ValueError for PEFT's grouped convolutions."""
    odd = next((part for part in parts if part.up.shape[1] != part.rank), None)
    if odd and len(parts) > 1:  # each group of its rows has a part of the rank to itself, and would get those of others
        raise ValueError(f"up has {odd.up.shape[1]} columns, down {odd.rank} rows")
    kernel = max((part.down.shape[2:] for part in parts), key=len)
    downs = [part.down.reshape(*part.down.shape[:2], *(part.down.shape[2:] or kernel)) for part in parts]
    return LowRank(np.concatenate([part.up for part in parts], 1), np.concatenate(downs, 0))


def truncate(update: LowRank, rank: int, device: str = "auto") -> tuple[LowRank, float]:
    """The nearest update of a lower rank (Eckart-Young), and its relative Frobenius distance.

    QR of both factors leaves a rank x rank core to decompose. Runs in torch, on CUDA where there is one with room.
    Raises DeviceError without torch, and without CUDA where that is asked for.
    """
    if not update.up.any():
        return LowRank(update.up[:, :rank], update.down[:rank]), 0.0
    if find_spec("torch") is None:
        raise DeviceError("truncating to a rank needs torch, which is not installed", "pip install torch")
    return with_room(device, partial(_truncated, update, rank))


def _truncated(update: LowRank, rank: int, where: str) -> tuple[LowRank, float]:
    import torch

    up = torch.from_numpy(update.up).to(where)
    down = torch.from_numpy(flat(update.down)).to(where)
    left, core_left = torch.linalg.qr(up)
    right, core_right = torch.linalg.qr(down.T)
    u, s, v = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
    total = float(s.square().sum())
    lost = float(s[rank:].square().sum())
    root = s[:rank].sqrt()
    new_up = (left @ u[:, :rank]) * root
    new_down = root[:, None] * (v[:rank] @ right.T)
    small = LowRank(new_up.cpu().numpy(), new_down.cpu().numpy().reshape(-1, *update.down.shape[1:]))
    return small, (lost / total) ** 0.5 if total else 0.0


def _lora(arrays: Arrays, kernel: Kernel) -> LowRank:
    del kernel
    up, down, mid = arrays["up"], arrays["down"], arrays.get("mid")
    if up.size != math.prod(up.shape[:2]):
        raise ValueError(f"up is no matrix, it has shape {list(up.shape)}")
    if mid is not None:
        down = through_core(mid, flat(down))
    return LowRank(flat(up), down)


def _loha(arrays: Arrays, kernel: Kernel) -> LowRank:
    (a, b), (c, d) = (factors_of(arrays, f"hada_w{n}") for n in "12")
    check_room(*a.shape, c.shape[1])
    check_room(len(b), *d.shape)
    up = flat(np.einsum("oi,oj->oij", a, c))
    down = np.einsum("ic,jc->ijc", flat(b), flat(d)).reshape(up.shape[1], -1)
    return LowRank(up, _with_kernel(down, b.shape[2:] or kernel))


def _lokr(arrays: Arrays, kernel: Kernel) -> LowRank:
    (a, b), (c, d) = _kron(arrays, "1", ()), _kron(arrays, "2", kernel)
    kernel = d.shape[2:]
    check_room(*a.shape, *c.shape)
    check_room(*b.shape, *d.shape)
    return LowRank(np.kron(a, c), np.kron(b.reshape(*b.shape, *(1 for _ in kernel)), d))


def _kron(arrays: Arrays, n: str, kernel: Kernel) -> tuple[Array, Array]:
    """One Kronecker factor as a product."""
    if (full := arrays.get(f"lokr_w{n}")) is not None:
        whole = factored(full)
        return whole.up, whole.down
    left, right = factors_of(arrays, f"lokr_w{n}")
    return left, _with_kernel(right, right.shape[2:] or kernel)


def _with_kernel(down: Array, kernel: Kernel) -> Array:
    fits = not down.shape[1] % math.prod(kernel)
    return down.reshape(len(down), -1, *kernel) if fits else down


# Algorithm -> a module's update without alpha / rank, given its arrays and its layer's kernel, for flattened factors.
FORMS: dict[str, Callable[[Arrays, Kernel], LowRank]] = {"lora": _lora, "loha": _loha, "lokr": _lokr}
