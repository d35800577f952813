"""Algorithms: which tensors a module owns, and which of them carry the strength of its update.

Every exact algorithm is a sum of products, plus additive tensors that are linear by themselves. Scaling one
factor of each product and each additive tensor scales the update, in every loader; scaling two factors of one
product squares the weight, and `alpha` is read differently by different loaders, so it is never touched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache

Shape = tuple[int, ...]

# Role -> its spellings: regular expressions over what follows the module's name. `*` stands for an optional
# PEFT adapter name. Where several fit, the longest wins.
ROLES: dict[str, tuple[str, ...]] = {
    "down": (
        r"\.lora_down\.weight",
        r"\.lora_A*\.weight",
        r"\.lora_A",
        r"[._]lora\.down\.weight",
        r"\.lora_linear_layer\.down\.weight",
        r"(?<=_lora[12])\.down\.weight",
    ),
    "up": (
        r"\.lora_up\.weight",
        r"\.lora_B*\.weight",
        r"\.lora_B",
        r"[._]lora\.up\.weight",
        r"\.lora_linear_layer\.up\.weight",
        r"(?<=_lora[12])\.up\.weight",
    ),
    "lora_e": (r"\.lora_E*",),
    "lora_diag": (r"\.lora_diag*",),
    "up_bias": (r"\.lora_B*\.bias",),
    "mid": (r"\.lora_mid\.weight",),
    "norm_scale": (r"(?<=_norm)\.scale",),
    "magnitude": (r"\.lora_magnitude_vector*", r"\.lora_magnitude_vector*\.weight"),
    "embedding_a": (r"\.lora_embedding_A*",),
    "embedding_b": (r"\.lora_embedding_B*",),
    "vera_lambda_b": (r"\.vera_lambda_b*",),
    "vera_lambda_d": (r"\.vera_lambda_d*",),
    **{
        role: (rf"\.{role}",)
        for role in (
            *("alpha", "scale", "scalar", "bias", "dora_scale", "reshape_weight", "on_input"),
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2"),
            *("diff", "diff_b", "w_norm", "b_norm", "set_weight"),
            *("bias_indices", "bias_values", "bias_size", "oft_diag", "rescale", "lambda_layer"),
        )
    },
    **{role: (rf"\.{role}\.weight",) for role in ("a1", "a2", "b1", "b2", "bm", "q_layer", "p_layer")},
    "oft_blocks": (r"\.oft_blocks(?:\.\d+)?",),
    "weight": (r"\.weight",),
}

# Tensors that are a whole summand of the update: linear by themselves, whatever stands beside them.
ADDITIVE = ("diff", "diff_b", "w_norm", "b_norm", "bias", "bias_values", "up_bias", "weight")

# Of these, what loaders multiply by alpha / rank together with the product.
INSIDE = ("up_bias", "bias")

# Magnitudes of a weight decomposition (DoRA), which no single tensor scales.
MAGNITUDES = ("dora_scale", "magnitude")


@dataclass(frozen=True, slots=True)
class Product:
    """One summand that is a product of tensors, by the roles of two of its factors (`a|b`: whichever is there).

    `shrink`, the factor trainers leave large, takes a weight below 1 without underflow; `grow`, the one they
    start at zero and leave small, takes a weight above 1 without overflow, and the zeros of weight 0.
    """

    shrink: str
    grow: str


@dataclass(frozen=True, slots=True)
class Algorithm:
    """How the roles of a module combine into its update.

    `requires` are the roles that mark it (`a|b`: either). `products` carry the update linearly. `matrices` are
    square ones whose distance from the identity does. An algorithm that is not `exact` can be baked at weights 0 and
    1 only, without the base model: 0 writes the values of `neutral` (role -> value), or removes the module if there
    are none. A `fixed` one replaces a value of the model, and loaders ignore its weight.
    """

    name: str
    requires: tuple[str, ...]
    products: tuple[Product, ...] = ()
    matrices: tuple[str, ...] = ()
    exact: bool = True
    fixed: bool = False
    neutral: Mapping[str, float] | None = None

    def owns(self, roles: Collection[str]) -> bool:
        """Whether a module with these roles is of this algorithm."""
        return all(present(either, roles) for either in self.requires)


def present(either: str, roles: Collection[str]) -> str | None:
    """Which role of `a|b` the module has; the first, if it has both."""
    return next((role for role in either.split("|") if role in roles), None)


@cache
def carriers_among(roles: frozenset[str], column: str) -> tuple[str, ...]:
    """The roles that take a factor: one of each product, by a column of `Product`, and the additive ones."""
    algorithm = algorithm_of(roles)
    factors = [present(getattr(product, column), roles) for product in (algorithm.products if algorithm else ())]
    return tuple(role for role in (*factors, *ADDITIVE) if role in roles and role is not None)


def _algorithm(name: str, requires: str, *products: tuple[str, str]) -> Algorithm:
    return Algorithm(name, tuple(requires.split()), tuple(Product(*product) for product in products))


# First match wins. Which factor starts at zero is read from the trainers' initialisers (lycoris-lora 4.1, PEFT 0.21).
ALGORITHMS: tuple[Algorithm, ...] = (
    _algorithm("adalora", "down up lora_e", ("down", "up")),
    _algorithm("lora", "down up", ("down", "up")),
    _algorithm("loha", "hada_w1_a hada_w1_b hada_w2_a hada_w2_b", ("hada_w1_b", "hada_w2_a")),
    _algorithm(
        "lokr",
        "lokr_w1|lokr_w1_a lokr_w1|lokr_w1_b lokr_w2|lokr_w2_a lokr_w2|lokr_w2_b",
        ("lokr_w1|lokr_w1_a", "lokr_w2|lokr_w2_b"),
    ),
    _algorithm("glora", "a1 a2 b1 b2", ("a1", "a2"), ("b1", "b2")),
    _algorithm("vera", "vera_lambda_b", ("vera_lambda_b", "vera_lambda_b")),
    _algorithm("lora_embedding", "embedding_a embedding_b", ("embedding_b", "embedding_a")),
    _algorithm("ia3", "weight on_input"),
    _algorithm("full", "diff"),
    _algorithm("norm", "w_norm|b_norm"),
    _algorithm("bias", "diff_b|bias_values"),
    Algorithm("oft", ("oft_blocks",), exact=False, neutral={"oft_blocks": 0.0, "rescale": 1.0}),
    Algorithm("oft_diag", ("oft_diag",), matrices=("oft_diag",)),
    Algorithm("kasa", ("down", "up", "lora_diag"), exact=False),
    Algorithm("tlora", ("q_layer", "p_layer", "lambda_layer"), exact=False),
    Algorithm("set", ("set_weight",), exact=False),
    Algorithm("norm_scale", ("norm_scale",), fixed=True),
)

# The tensors with as many rows as the rank, by role; the first that is there.
RANKED = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "a2", "embedding_a", "q_layer")


@cache
def algorithm_of(roles: frozenset[str]) -> Algorithm | None:
    """The algorithm of a module with these roles, or None if they make up no known one.

    Two that exclude each other under one name are an algorithm of their own, which only removal makes neutral: some
    loaders take the one, some the other.
    """
    owners = [algorithm for algorithm in ALGORITHMS if algorithm.owns(roles)]
    owners = [owner for owner in owners if not any(set(owner.requires) < set(other.requires) for other in owners)]
    rivals = [owner for owner in owners if owner.products or owner.matrices or not owner.exact]
    if len(rivals) > 1:
        return Algorithm(" and ".join(rival.name for rival in rivals), (), exact=False)
    return next(iter(owners), None)
