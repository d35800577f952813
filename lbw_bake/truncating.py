"""A bake to a lower rank: the merge of one file, which truncates its products."""

from __future__ import annotations

from .merging import Part, merge_parts, merged_before
from .planning import DTYPES
from .recipes import Recipe
from .remedies import Means
from .rewrite import Rewritten, Target


def truncate(target: Target, how: Recipe) -> Rewritten:
    """Write an output whose products have the recipe's rank. Raises NotBakeableError, OutputError, StrictError."""
    merged = merge_parts(
        [_part(target)],
        target.output,
        rank=how.rank,
        dtype=DTYPES[how.dtype],
        device=how.device,
        replace=target.replace,
        means=_means(how),
        strict=how.strict,
    )
    return Rewritten((merged.nbytes,), merged.warnings + merged.losses)


def truncated_before(target: Target, how: Recipe) -> bool:
    """Whether the output is there, as this recipe would write it. Raises FileFormatError."""
    return merged_before([_part(target)], target.output, rank=how.rank, dtype=DTYPES[how.dtype], means=_means(how))


def _part(target: Target) -> Part:
    return Part(target.plan.lora, target.plan.weights, target.preset)


def _means(how: Recipe) -> Means:
    return Means(how.base, how.dora_norm, device=how.device)
