"""A bake to a lower rank: the merge of one file, which truncates its products."""

from __future__ import annotations

from typing import Any

from .merging import Merged, Part, merge_parts, merged_before
from .planning import DTYPES
from .recipes import Recipe
from .remedies import Means
from .rewrite import Target


def truncate(target: Target, how: Recipe) -> Merged:
    """Write an output whose products have the recipe's rank. Raises NotBakeableError, OutputError, StrictError."""
    return merge_parts(**_merge(target, how), device=how.device, replace=target.replace, strict=how.strict)


def truncated_before(target: Target, how: Recipe) -> bool:
    """Whether the output is there, as this recipe would write it. Raises FileFormatError."""
    return merged_before(**_merge(target, how))


def _merge(target: Target, how: Recipe) -> dict[str, Any]:
    return {
        "parts": [Part(target.plan.lora, target.plan.weights, target.preset)],
        "output": target.output,
        "rank": how.rank,
        "dtype": DTYPES[how.dtype],
        "means": Means(how.base, how.dora_norm, device=how.device),
    }
