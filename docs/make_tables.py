"""Write the tables of the documentation that are the code's own: families and algorithms.

python docs/make_tables.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from lbw_bake.algorithms import ALGORITHMS, Algorithm
from lbw_bake.families import FAMILIES

PAGE = Path(__file__).with_name("families.md")


def runs(blocks: Sequence[str]) -> str:
    """Blocks in order, neighbours of one letter as a range: `CLIP T5 IN D00-D18`."""
    named = (list(group) for _, group in groupby(blocks, lambda block: block.rstrip("0123456789")))
    return " ".join(f"{group[0]}-{group[-1]}" if len(group) > 1 else group[0] for group in named)


def families() -> Iterator[str]:
    """A row per family."""
    yield "| family | `--family` | vectors | blocks |"
    yield "|---|---|---|---|"
    for family in FAMILIES.values():
        lengths = ", ".join(str(len(layout)) for layout in family.layouts)
        yield f"| {family.title} | `{family.name}` | {lengths} | {runs(family.blocks)} |"


def algorithms() -> Iterator[str]:
    """A row per algorithm."""
    yield "| algorithm | known by | weight below 1 | above 1, and the zeros of 0 |"
    yield "|---|---|---|---|"
    for algorithm in ALGORITHMS:
        shrink, grow = (factors(algorithm, column) for column in ("shrink", "grow"))
        known = " ".join(f"`{role}`" for role in algorithm.requires).replace("|", "` or `")
        yield f"| {algorithm.name} | {known} | {shrink} | {grow} |"


def factors(algorithm: Algorithm, column: str) -> str:
    """What takes a weight, in one column of the table."""
    if algorithm.fixed:
        return "nothing: loaders ignore the weight"
    if not algorithm.exact:
        return "only with the base model"
    named = " and ".join(f"`{getattr(product, column)}`" for product in algorithm.products)
    return named.replace("|", "` or `") or "every tensor"


def page() -> str:
    """The whole page."""
    return "\n".join(
        [
            "# Families and algorithms",
            "",
            "A file's family is told from its keys and shapes; `--family` names it where they do not tell.",
            "A vector's length says which of the layouts is meant; UNet families take each other's lengths, by block",
            "name. The shorter layouts are the attention blocks of a UNet, or the stack alone of a transformer.",
            "",
            *families(),
            "",
            "`BASE` stands for all text encoders of any family, `M00` is `MID`, `*` is every block not named, and",
            "`OTHER` what lies in no block. `25%-75%` is the middle half of the stack.",
            "",
            "## Algorithms",
            "",
            "Exactly one factor of each product is multiplied; biases and whole differences beside them are too, and",
            "`alpha` never. A DoRA (`dora_scale`, `lora_magnitude_vector`) needs the base model whatever its",
            "algorithm; see [How exact is it?](exactness.md).",
            "",
            *algorithms(),
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
