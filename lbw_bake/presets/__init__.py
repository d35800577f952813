"""Presets by name: the built-in ones, the user's, and a file named for the occasion; the last one wins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..arguments import AnyPath
from ..errors import PresetError, nearest
from ..values import NAME_SLIPS, slip
from .model import Entry, Preset, builtin_path

__all__ = ["Entry", "Preset", "builtin_path", "find_preset", "load_presets", "preset_paths", "user_path"]


def user_path() -> Path:
    """Where the user's own presets live."""
    from platformdirs import user_config_path

    return user_config_path("lbw", appauthor=False) / "presets.yaml"


def preset_paths(named: AnyPath | None) -> list[Path]:
    """The preset files in force, the last one winning; `named` (or `LBW_PRESETS`) must exist."""
    named = named or os.environ.get("LBW_PRESETS")
    paths = [builtin_path()]
    if (user := user_path()).exists():
        paths.append(user)
    return [*paths, Path(named)] if named else paths


def load_presets(presets: AnyPath | None = None) -> dict[str, Preset]:
    """All presets in force by name; `presets` is a file on top of the user's own.

    Raises PresetError if a file cannot be read or has errors. In the text formats of other tools an error in a line
    keeps only its own preset from use.
    """
    from .formats import usable_presets  # vectors and rules do without files

    known: dict[str, Preset] = {}
    for path in preset_paths(presets):
        usable = usable_presets(path)
        for finding in usable[0].unused if usable else ():
            known.pop(finding.name, None)
        known |= {preset.name: replace(preset, hides=known.get(preset.name)) for preset in usable}
    return known


def find_preset(name: str, presets: Mapping[str, Preset]) -> Preset:
    """The preset of this name. Raises PresetError with what is wrong with it, or the nearest name."""
    try:
        return presets[name]
    except KeyError:
        from .formats import error_of

        for preset in presets.values():
            if wrong := next((finding for finding in preset.unused if finding.name == name), None):
                raise error_of(wrong, preset.path) from None
        raise PresetError(f"unknown preset {name!r}", slip(name, NAME_SLIPS) or nearest(name, presets)) from None
