"""Updates that are proportional to no tensor of a file: DoRA and OFT, from the base weight W, in float64.

Notation: dW the update of the factors, V = W + dW, r the weight. The wanted update is r times the one at weight 1:

    DoRA    r (c V - W)         c = magnitude / |V|, one per input channel or per output row; ComfyUI divides
                                output rows by |W| instead
    OFT     r (s R'W - W)       R the Cayley transform of the blocks, s the rescale, R' its transpose

DoRA has the wanted update again at the same rank: with k = 1 - r + r c, factors of (r c / k) dW and the magnitude that
makes c' = k. Sources: LyCORIS 4.1 (`functional`), ComfyUI (`weight_adapter`), A1111 (`network.py`), PEFT (`dora.py`).

All tensors are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from .errors import NotBakeableError

Tensor = torch.Tensor
Tensors = Mapping[str, Tensor]

# Where k is nearer to 0 than this, factors of the same rank would grow beyond what half precision holds.
SINGULAR = 0.05

_PROBES = 64


@dataclass(frozen=True, slots=True)
class Reading:
    """How loaders read a magnitude: the axis of W it is given for, and whether |W| divides it, not |V|."""

    axis: int
    by_base: bool


# Algorithm and axis -> the factor that has this axis, and the one that takes a weight below 1 without underflow.
_SPREAD = {
    ("lora", 0): ("up", "down"),
    ("lora", 1): ("down", "down"),
    ("loha", 0): ("hada_w1_a", "hada_w1_b"),
    ("loha", 1): ("hada_w1_b", "hada_w1_b"),
    ("lora_embedding", 0): ("embedding_b", "embedding_b"),
}


def spread_over(algorithm: str, axis: int, weight: float) -> tuple[str, ...]:
    """The factors that change when a DoRA is given a weight at the same rank; empty if its rank would not do."""
    if (algorithm, axis) not in _SPREAD:
        return ()
    factor, shrink = _SPREAD[algorithm, axis]
    return (factor, shrink) if abs(weight) < 1 and shrink != factor else (factor,)


@dataclass(frozen=True, slots=True)
class Dora:
    """A decomposed module: its factors by role, W (out, in, ...), alpha / rank, one magnitude per index of an axis."""

    name: str
    algorithm: str
    factors: Tensors
    base: Tensor
    scale: float
    magnitude: Tensor
    reading: Reading

    def update(self) -> Tensor:
        """What is added to W: c V - W."""
        return _along(self._v(self.factors), self.reading.axis, self._c()) - self.base

    def weighted(self, weight: float, rounded: Callable[[str, Tensor], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The factors that change, by role, and the new magnitudes, for weight times the update at the same rank.

        `rounded` gives a factor the precision it is stored with: the magnitudes make up for it. Raises
        NotBakeableError.
        """
        c = self._c()
        k = 1 - weight + weight * c
        if bool((k.abs() < SINGULAR).any()):
            raise NotBakeableError(
                f"{self.name}: at weight {weight:g} its update nearly cancels the base weight, "
                "which factors of its rank cannot express",
                "use a weight nearer to 0 or 1, or lbw merge with --base, which makes full differences of all",
            )
        factor, *shrink = spread_over(self.algorithm, self.reading.axis, weight)
        position = int(factor in ("down", "hada_w1_b") or "hada_t1" in self.factors)
        new = {factor: _along(self.factors[factor], position, c / k if shrink else weight * c / k)}
        new |= {role: self.factors[role] * weight for role in shrink}
        new = {role: rounded(role, values) for role, values in new.items()}
        return new, k * self._norms({**self.factors, **new})

    def _v(self, factors: Tensors) -> Tensor:
        return self.base + self.scale * update(self.algorithm, factors, self.base)

    def _norms(self, factors: Tensors) -> Tensor:
        """What divides the magnitudes."""
        matrix = self.base if self.reading.by_base else self._v(factors)
        norms: Tensor = matrix.movedim(self.reading.axis, 0).flatten(1).norm(dim=1)
        return norms

    def _c(self) -> Tensor:
        """Magnitudes over norms; a row of zeros has no direction to scale, and keeps its factors with 1."""
        norms = self._norms(self.factors)
        return torch.where(norms > 0, self.magnitude / norms, torch.ones_like(norms))


def _along(values: Tensor, axis: int, factors: Tensor) -> Tensor:
    """Values times one factor per index of an axis, which may be flattened together with what follows it."""
    moved = values.movedim(axis, 0)
    return (moved.reshape(len(factors), -1) * factors[:, None]).reshape(moved.shape).movedim(0, axis)


def update(algorithm: str, tensors: Tensors, base: Tensor) -> Tensor:
    """The factors' dW without alpha / rank, shaped as W; RuntimeError if shapes do not fit. Meta tensors will do."""
    return _UPDATES[algorithm](tensors, base).reshape(base.shape)


def _product(left: Tensor, right: Tensor, core: Tensor | None = None) -> Tensor:
    """Left (out, p) x right (q, in, ...), through a Tucker core (p, q, ...) if there is one."""
    left = left.flatten(1)
    if core is None:
        return left @ right.flatten(1)
    return torch.einsum("pq...,op,qi->oi...", core, left, right.flatten(1))


def _factor(t: Tensors, name: str) -> Tensor:
    """A factor of LoHa or LoKr (`hada_w1`, `lokr_w2`), which is there itself or as a product."""
    if name in t:
        return t[name]
    core, left = t.get(name.replace("_w", "_t")), t[f"{name}_a"]
    return _product(left if core is None else left.mT, t[f"{name}_b"], core)


def _lokr(t: Tensors, base: Tensor) -> Tensor:
    del base
    left, right = _factor(t, "lokr_w1"), _factor(t, "lokr_w2")
    return torch.kron(left.reshape(*left.shape, *(1 for _ in right.shape[2:])), right)


def _glora(t: Tensors, base: Tensor) -> Tensor:
    a1, a2, b1, b2 = (t[role].flatten(1) for role in ("a1", "a2", "b1", "b2"))
    if len(a1) < a1.shape[1]:  # before LyCORIS 2.0 the first of each pair was the inner one
        a1, a2, b1, b2 = a2, a1, b2, b1
    return torch.einsum("oi...,ij->oj...", base, a1 @ a2) + (b1 @ b2).reshape(base.shape)


_UPDATES: dict[str, Callable[[Tensors, Tensor], Tensor]] = {
    "lora": lambda t, _: _product(t["up"], t["down"], t.get("mid")),
    "lora_embedding": lambda t, _: t["embedding_b"] @ t["embedding_a"],
    "loha": lambda t, _: _factor(t, "hada_w1") * _factor(t, "hada_w2"),
    "lokr": _lokr,
    "glora": _glora,
    "full": lambda t, _: t["diff"],
}


@dataclass(frozen=True, slots=True)
class Rotation:
    """An OFT or BOFT: its blocks (blocks, size, size), BOFT's with the stage first; several share a fused layer.

    `alpha` times the rows is the constraint of COFT, 0 is none; `rescale` is one factor per row.
    """

    blocks: Sequence[Tensor]
    alpha: float
    rescale: Tensor | None

    @property
    def rows(self) -> list[int]:
        """Output rows of the layer, by the blocks that turn them."""
        return [block.shape[-3] * block.shape[-1] for block in self.blocks]

    def applied(self, matrix: Tensor) -> Tensor:
        """W of any shape with these rows, turned and rescaled: s R'W."""
        pieces = zip(torch.split(matrix, self.rows), self.blocks, strict=True)
        whole = torch.cat([_turned(piece, _cayley(block, self.alpha * len(piece))) for piece, block in pieces])
        return whole if self.rescale is None else _along(whole, 0, self.rescale.flatten())


def _cayley(blocks: Tensor, constraint: float) -> Tensor:
    """(I + Q) (I - Q)^-1 of Q = B - B', whose norm over all blocks is at most the constraint."""
    q = blocks - blocks.mT
    norm = float(q.norm())
    if 0 < constraint < norm:
        q = q * (constraint / norm)
    eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    turn: Tensor = torch.linalg.solve(eye - q, eye + q, left=False)
    return turn


def _turned(matrix: Tensor, r: Tensor) -> Tensor:
    if r.ndim == 3:
        return (r.mT @ matrix.reshape(*r.shape[:2], -1)).reshape(matrix.shape)
    flat = matrix.flatten(1)
    for i, stage in enumerate(r):  # butterflies: stage i mixes rows that are 2^i half blocks apart
        apart = 2**i * stage.shape[-1] // 2
        mixed = stage @ flat.reshape(-1, 2, apart, flat.shape[1]).transpose(1, 2).reshape(*stage.shape[:2], -1)
        flat = mixed.reshape(-1, apart, 2, flat.shape[1]).transpose(1, 2).reshape(flat.shape)
    return flat.reshape(matrix.shape)


def rotation_error(exact: Rotation, weight: float, written: Rotation) -> float:
    """How far the update of a rotation is from weight times that of another, relative to that.

    It does not depend on W, as long as W prefers no direction: measured on the identity for OFT, where that is
    exact, and on random columns for BOFT.
    """
    first = exact.blocks[0]
    if len(exact.blocks) == 1 and first.ndim == 3:
        probe = torch.eye(first.shape[-1], dtype=first.dtype, device=first.device).repeat(len(first), 1)
    else:
        noise = torch.randn(sum(exact.rows), _PROBES, generator=torch.Generator().manual_seed(0), dtype=first.dtype)
        probe = noise.to(first.device)
    wanted = weight * (exact.applied(probe) - probe)
    norm = float(wanted.norm())
    return float((written.applied(probe) - probe - wanted).norm()) / norm if norm else 0.0
