"""lbw: bake LoRA block weights into the LoRA itself.

The public API is what `__all__` names; each name is imported when it is first used, because start-up counts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import bake, merge, mix
    from .batch import run_batch
    from .checks import Checked, validate, validate_all
    from .comparison import Comparison, diff
    from .errors import LbwError
    from .grid import Assembled, assemble_grid
    from .inspection import Inspection, inspect
    from .jobs import Batch, Naming, make_batch
    from .merging import Merged
    from .mixer import Mix
    from .preset_files import Converted, add_preset, convert_presets, remove_preset
    from .presets import Preset, find_preset, load_presets
    from .presets.schema import preset_schema
    from .recipes import Recipe
    from .run import Outcome
    from .sources import Weights, parse_part
    from .sweeps import Sweep, make_sweep, write_sweep
    from .weights import Options

# Module -> the public names that live in it.
_EXPORTS = {
    "api": ("bake", "merge", "mix"),
    "batch": ("run_batch",),
    "checks": ("Checked", "validate", "validate_all"),
    "comparison": ("Comparison", "diff"),
    "errors": ("LbwError",),
    "grid": ("Assembled", "assemble_grid"),
    "inspection": ("Inspection", "inspect"),
    "jobs": ("Batch", "Naming", "make_batch"),
    "merging": ("Merged",),
    "mixer": ("Mix",),
    "preset_files": ("Converted", "add_preset", "convert_presets", "remove_preset"),
    "presets": ("Preset", "find_preset", "load_presets"),
    "presets.schema": ("preset_schema",),
    "recipes": ("Recipe",),
    "run": ("Outcome",),
    "sources": ("Weights", "parse_part"),
    "sweeps": ("Sweep", "make_sweep", "write_sweep"),
    "weights": ("Options",),
}

__all__ = [
    "Assembled",
    "Batch",
    "Checked",
    "Comparison",
    "Converted",
    "Inspection",
    "LbwError",
    "Merged",
    "Mix",
    "Naming",
    "Options",
    "Outcome",
    "Preset",
    "Recipe",
    "Sweep",
    "Weights",
    "__version__",
    "add_preset",
    "assemble_grid",
    "bake",
    "convert_presets",
    "diff",
    "find_preset",
    "inspect",
    "load_presets",
    "make_batch",
    "make_sweep",
    "merge",
    "mix",
    "parse_part",
    "preset_schema",
    "remove_preset",
    "run_batch",
    "validate",
    "validate_all",
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
