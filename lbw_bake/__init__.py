"""lbw: bake LoRA block weights into the LoRA itself.

The public API is what `__all__` names; each name is imported when it is first used, because start-up counts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import bake, diff, inspect, merge, validate
    from .batch import run_batch
    from .checks import Checked
    from .comparison import Comparison
    from .errors import LbwError
    from .inspection import Inspection
    from .jobs import Batch, Naming, make_batch
    from .merging import Merged
    from .recipes import Recipe
    from .run import Outcome
    from .sources import Weights
    from .sweeps import Sweep, make_sweep, write_sweep
    from .weights import Options

# Module -> the public names that live in it.
_EXPORTS = {
    "api": ("bake", "diff", "inspect", "merge", "validate"),
    "batch": ("run_batch",),
    "checks": ("Checked",),
    "comparison": ("Comparison",),
    "errors": ("LbwError",),
    "inspection": ("Inspection",),
    "jobs": ("Batch", "Naming", "make_batch"),
    "merging": ("Merged",),
    "recipes": ("Recipe",),
    "run": ("Outcome",),
    "sources": ("Weights",),
    "sweeps": ("Sweep", "make_sweep", "write_sweep"),
    "weights": ("Options",),
}

__all__ = [
    "Batch",
    "Checked",
    "Comparison",
    "Inspection",
    "LbwError",
    "Merged",
    "Naming",
    "Options",
    "Outcome",
    "Recipe",
    "Sweep",
    "Weights",
    "__version__",
    "bake",
    "diff",
    "inspect",
    "make_batch",
    "make_sweep",
    "merge",
    "run_batch",
    "validate",
    "write_sweep",
]


def __getattr__(name: str) -> object:
    for module, names in _EXPORTS.items():
        if name in names:
            value: object = getattr(import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
