"""What an update is, algorithm by algorithm: dense, in float64, and written without a look at the package.

Sources: LyCORIS' `functional` package and PEFT's layers. `products` names, for every product of the update, the factor
that takes a weight below 1 and the one that takes any other: trainers start the second one at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]
Roles = Mapping[str, Array]  # what follows the module's name -> tensor

OUT, IN, RANK, KERNEL = 6, 8, 2, (3, 3)

# The base weight of the layer, which some updates are relative to.
_BASE = np.random.default_rng(99).standard_normal((OUT, IN))
_DOWN, _UP, _MID = "lora_down.weight", "lora_up.weight", "lora_mid.weight"
_A, _B, _BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"


@dataclass(frozen=True)
class Formula:
    """An algorithm with a module of it: shapes by role, and how they make up the update.

    `additive` tensors are linear by themselves; `constant` ones (role -> value) belong to no module, or are no float.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    dense: Callable[[Roles], Array]
    products: tuple[tuple[str, str], ...] = ()
    additive: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    def tensors(self, module: str, dtype: str = "float32") -> dict[str, Array]:
        """A module with random tensors, by their names in a file."""
        rng = np.random.default_rng(7)
        return {
            self._name(module, role): (
                np.ones(shape, np.int64) if role in self.integers else rng.uniform(0.2, 1.0, shape).astype(dtype)
            )
            for role, shape in self.shapes.items()
        }

    def update(self, tensors: Roles, module: str) -> Array:
        """The update of the module in a file, all its summands flattened."""
        return self.dense({role: tensors[self._name(module, role)].astype(np.float64) for role in self.shapes})

    def carriers(self, module: str, weight: float) -> set[str]:
        """The tensors that a weight is multiplied into."""
        column = 0 if 0 < abs(weight) < 1 else 1
        return {self._name(module, role) for role in (*(pair[column] for pair in self.products), *self.additive)}

    def _name(self, module: str, role: str) -> str:
        return role if role in self.shared else f"{module}.{role}"


def _scale(t: Roles) -> float:
    return t["alpha"].item() / RANK if "alpha" in t else 1.0


def _lora(t: Roles, up: str = _UP, down: str = _DOWN) -> Array:
    return (_scale(t) * np.einsum("or,r...->o...", t[up].reshape(OUT, RANK), t[down])).ravel()


def _tucker(core: Array, left: Array, right: Array) -> Array:
    """A kernel from its CP form: core (p, q, ...), left (p, out), right (q, in)."""
    return np.einsum("pq...,po,qi->oi...", core, left, right)


def _tucker_lora(t: Roles) -> Array:
    return _scale(t) * _tucker(t[_MID], t[_UP].reshape(OUT, RANK).T, t[_DOWN].reshape(RANK, IN)).ravel()


def _with(additive: str, update: Callable[[Roles], Array]) -> Callable[[Roles], Array]:
    return lambda t: np.concatenate([update(t), t[additive].ravel()])


def _sums(*roles: str) -> Callable[[Roles], Array]:
    return lambda t: np.concatenate([t[role].ravel() for role in roles])


def _loha(t: Roles) -> Array:
    one, two = (t[f"hada_w{n}_a"] @ t[f"hada_w{n}_b"] for n in "12")
    return (_scale(t) * one * two).ravel()


def _tucker_loha(t: Roles) -> Array:
    one, two = (_tucker(t[f"hada_t{n}"], t[f"hada_w{n}_a"], t[f"hada_w{n}_b"]) for n in "12")
    return (_scale(t) * one * two).ravel()


def _lokr(t: Roles) -> Array:
    one, two = (t[f"lokr_w{n}"] if f"lokr_w{n}" in t else t[f"lokr_w{n}_a"] @ t[f"lokr_w{n}_b"] for n in "12")
    scale = 1.0 if "lokr_w1" in t and "lokr_w2" in t else _scale(t)
    return (scale * np.kron(one, two)).ravel()


def _tucker_lokr(t: Roles) -> Array:
    two = _tucker(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
    return (_scale(t) * np.kron(t["lokr_w1"][:, :, None, None], two)).ravel()


def _glora(t: Roles) -> Array:
    a = _BASE @ t["a1.weight"] @ t["a2.weight"]
    return (_scale(t) * (a + t["b1.weight"] @ t["b2.weight"])).ravel()


def _adalora(t: Roles) -> Array:
    return (t["lora_B"] @ (t["lora_A"] * t["lora_E"])).ravel()


def _vera(t: Roles) -> Array:
    return ((t["vera_lambda_b"][:, None] * t["vera_B"]) @ (t["vera_lambda_d"][:, None] * t["vera_A"])).ravel()


_FACTORS = {_DOWN: (RANK, IN), _UP: (OUT, RANK)}
_HADA = {"hada_w1_a": (OUT, RANK), "hada_w1_b": (RANK, IN), "hada_w2_a": (OUT, RANK), "hada_w2_b": (RANK, IN)}
_LORA_PAIR, _HADA_PAIR = (_DOWN, _UP), ("hada_w1_b", "hada_w2_a")

FORMULAS = (
    Formula("lora", {**_FACTORS, "alpha": ()}, _lora, (_LORA_PAIR,)),
    Formula("lora without alpha", _FACTORS, _lora, (_LORA_PAIR,)),
    Formula("convolution", {_DOWN: (RANK, IN, *KERNEL), _UP: (OUT, RANK, 1, 1), "alpha": ()}, _lora, (_LORA_PAIR,)),
    Formula(
        "tucker",
        {_DOWN: (RANK, IN, 1, 1), _UP: (OUT, RANK, 1, 1), _MID: (RANK, RANK, *KERNEL), "alpha": ()},
        _tucker_lora,
        (_LORA_PAIR,),
    ),
    Formula(
        "lora with bias difference",
        {**_FACTORS, "alpha": (), "diff_b": (OUT,)},
        _with("diff_b", _lora),
        (_LORA_PAIR,),
        ("diff_b",),
    ),
    Formula(
        "peft with bias",
        {_A: (RANK, IN), _B: (OUT, RANK), _BIAS: (OUT,)},
        _with(_BIAS, partial(_lora, up=_B, down=_A)),
        ((_A, _B),),
        (_BIAS,),
    ),
    Formula(
        "peft embedding",
        {"lora_embedding_A": (RANK, IN), "lora_embedding_B": (OUT, RANK)},
        partial(_lora, up="lora_embedding_B", down="lora_embedding_A"),
        (("lora_embedding_B", "lora_embedding_A"),),
    ),
    Formula("loha", {**_HADA, "alpha": ()}, _loha, (_HADA_PAIR,)),
    Formula(
        "tucker loha",
        {
            **{f"hada_w{n}_a": (RANK, OUT) for n in "12"},
            **{f"hada_w{n}_b": (RANK, IN) for n in "12"},
            **{f"hada_t{n}": (RANK, RANK, *KERNEL) for n in "12"},
            "alpha": (),
        },
        _tucker_loha,
        (_HADA_PAIR,),
    ),
    Formula(
        "lokr in full",
        {"lokr_w1": (2, 2), "lokr_w2": (3, 4), "alpha": ()},
        _lokr,
        (("lokr_w1", "lokr_w2"),),
    ),
    Formula(
        "lokr with a low second factor",
        {"lokr_w1": (2, 2), "lokr_w2_a": (3, RANK), "lokr_w2_b": (RANK, 4), "alpha": ()},
        _lokr,
        (("lokr_w1", "lokr_w2_b"),),
    ),
    Formula(
        "lokr with a low first factor",
        {"lokr_w1_a": (2, RANK), "lokr_w1_b": (RANK, 2), "lokr_w2": (3, 4), "alpha": ()},
        _lokr,
        (("lokr_w1_a", "lokr_w2"),),
    ),
    Formula(
        "lokr with two low factors",
        {
            "lokr_w1_a": (2, RANK),
            "lokr_w1_b": (RANK, 2),
            "lokr_w2_a": (3, RANK),
            "lokr_w2_b": (RANK, 4),
            "alpha": (),
        },
        _lokr,
        (("lokr_w1_a", "lokr_w2_b"),),
    ),
    Formula(
        "tucker lokr",
        {
            "lokr_w1": (2, 2),
            "lokr_w2_a": (RANK, 3),
            "lokr_w2_b": (RANK, 4),
            "lokr_t2": (RANK, RANK, *KERNEL),
            "alpha": (),
        },
        _tucker_lokr,
        (("lokr_w1", "lokr_w2_b"),),
    ),
    Formula(
        "glora",
        {
            "a1.weight": (IN, RANK),
            "a2.weight": (RANK, IN),
            "b1.weight": (OUT, RANK),
            "b2.weight": (RANK, IN),
            "alpha": (),
        },
        _glora,
        (("a1.weight", "a2.weight"), ("b1.weight", "b2.weight")),
    ),
    Formula(
        "adalora", {"lora_A": (RANK, IN), "lora_B": (OUT, RANK), "lora_E": (RANK, 1)}, _adalora, (("lora_A", "lora_B"),)
    ),
    Formula(
        "vera",
        {"vera_lambda_b": (OUT,), "vera_lambda_d": (RANK,), "vera_A": (RANK, IN), "vera_B": (OUT, RANK)},
        _vera,
        (("vera_lambda_b", "vera_lambda_b"),),
        shared=("vera_A", "vera_B"),
    ),
    Formula(
        "ia3 on the input",
        {"weight": (IN,), "on_input": ()},
        lambda t: (_BASE * t["weight"]).ravel(),
        additive=("weight",),
        integers=("on_input",),
    ),
    Formula("full", {"diff": (OUT, IN), "diff_b": (OUT,)}, _sums("diff", "diff_b"), additive=("diff", "diff_b")),
    Formula("norm", {"w_norm": (OUT,), "b_norm": (OUT,)}, _sums("w_norm", "b_norm"), additive=("w_norm", "b_norm")),
    Formula("bias alone", {"diff_b": (OUT,)}, _sums("diff_b"), additive=("diff_b",)),
    Formula(
        "sparse bias",
        {**_FACTORS, "alpha": (), "bias_indices": (1, 4), "bias_values": (4,), "bias_size": (1,)},
        _with("bias_values", _lora),
        (_LORA_PAIR,),
        ("bias_values",),
        integers=("bias_indices", "bias_size"),
    ),
)
BY_NAME = {case.name: case for case in FORMULAS}


def for_each(cases: Iterable[Formula] = FORMULAS) -> pytest.MarkDecorator:
    """Let a test have each of these as its `case`."""
    return pytest.mark.parametrize("case", [*cases], ids=attrgetter("name"))
