"""The truth tables in `tests/data/keys`, and the files they describe."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from lbw_bake.families import FAMILIES, Family
from lbw_bake.modules import Grouping, group_modules
from lbw_bake.tensorfile import Tensor

TABLES = {path.stem: path for path in sorted((Path(__file__).parent / "data" / "keys").glob("*.tsv"))}

_DOWN_UP = ((".lora_down.", ".lora_up."), (".lora_A.", ".lora_B."), (".down.weight", ".up.weight"))
_UP = (8, 4)


def family_of(table: str) -> Family:
    """The family a table is of: its name is the family's and a spelling."""
    return FAMILIES[max((name for name in FAMILIES if table.startswith(f"{name}_")), key=len)]


@cache
def rows(table: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor name -> its block and shape."""
    lines = (line.split("\t") for line in TABLES[table].read_text().splitlines() if not line.startswith("#"))
    return {name: (block, () if shape == "-" else tuple(map(int, shape.split(",")))) for name, block, shape in lines}


@cache
def grouping(table: str, shrink: int = 1) -> Grouping:
    """The file of a table; tables that list half a pair stand for both. `shrink` divides the model's widths."""
    shapes = {name: shape for name, (_, shape) in rows(table).items()}
    for name, shape in list(shapes.items()):
        for down, up in _DOWN_UP:
            if down in name:
                shapes.setdefault(up.join(name.rsplit(down, 1)), _UP + (1,) * (len(shape) - 2))
    return group_modules(
        Tensor(name, "F16", tuple(n // shrink if n > 64 else n for n in shape), 0, 0) for name, shape in shapes.items()
    )
