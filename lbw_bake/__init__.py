"""lbw: bake LoRA block weights into the LoRA itself.

The public API is what `__all__` names; each name is imported when it is first used, because start-up counts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import bake as bake
    from .api import diff as diff
    from .api import inspect as inspect
    from .api import merge as merge
    from .api import validate as validate
    from .batch import run_batch as run_batch
    from .checks import Checked as Checked
    from .comparison import Comparison as Comparison
    from .errors import LbwError as LbwError
    from .inspection import Inspection as Inspection
    from .jobs import Batch as Batch
    from .jobs import Naming as Naming
    from .jobs import make_batch as make_batch
    from .merging import Merged as Merged
    from .recipes import Recipe as Recipe
    from .run import Outcome as Outcome
    from .sources import Weights as Weights
    from .sweeps import Sweep as Sweep
    from .sweeps import make_sweep as make_sweep
    from .sweeps import write_sweep as write_sweep
    from .weights import Options as Options

# Public name -> the module it lives in.
_HOMES = {
    "Batch": "jobs",
    "Checked": "checks",
    "Comparison": "comparison",
    "Inspection": "inspection",
    "LbwError": "errors",
    "Merged": "merging",
    "Naming": "jobs",
    "Options": "weights",
    "Outcome": "run",
    "Recipe": "recipes",
    "Sweep": "sweeps",
    "Weights": "sources",
    "bake": "api",
    "diff": "api",
    "inspect": "api",
    "make_batch": "jobs",
    "make_sweep": "sweeps",
    "merge": "api",
    "run_batch": "batch",
    "validate": "api",
    "write_sweep": "sweeps",
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
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
