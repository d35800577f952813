"""What a layer that several files adapt is called in one: trainers spell it in several ways, and some split it.

Sources: the converters of diffusers' loaders, ComfyUI's key maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .addition import Layer
from .basemodel import ALL_ROWS, ORIGINAL, Rows, canonical
from .errors import NotBakeableError
from .families import Family, Place
from .keys import split_prefix
from .modules import Module

# Families of which dotted names split layers that are one in the original model, and in kohya's names.
_FUSED = ("flux", "chroma")

# Modules with their places, of one file.
Placed = Sequence[tuple[Module, Place]]


@dataclass(frozen=True, slots=True)
class Spelling:
    """How layers are called in the output: as in their own file, unless there are prefixes to give dotted names.

    `prefixes` are what kohya's names begin with, by component; `fused` is the component whose layers get the names of
    the original model, if there is one.
    """

    prefixes: Mapping[str, str]
    fused: str | None = None

    def layer_of(self, module: Module, place: Place) -> tuple[str, tuple[str, str, Rows], Rows]:
        """The name of a module's layer, what it is under any name, and which of its rows the module adapts."""
        name, rows = canonical(module.path)
        if not (self.prefixes and "." in module.name):
            return module.name, (place.component, name, rows), ALL_ROWS
        prefix = self.prefixes[place.component]
        if place.component == self.fused:
            return f"{prefix}{name}", (place.component, name, ALL_ROWS), rows
        return f"{prefix}{module.path}", (place.component, name, rows), ALL_ROWS


def spelling_of(files: Sequence[tuple[Path, Placed]], family: Family) -> Spelling:
    """The spelling of what several files of a family become: that of the first.

    No loader is known to read dotted names and kohya's in one file. All know kohya's names of any layer of a UNet, and
    those of Flux where they are the original model's. Raises NotBakeableError where dotted names cannot be turned into
    those.
    """
    dotted = {path: "." in modules[0][0].name for path, modules in files}
    if len(set(dotted.values())) == 1:
        return Spelling({})
    (_, first), *_ = files
    prefixes = {place.component: split_prefix(module.name)[1] for module, place in first if "." not in module.name}
    missing = sorted({place.component for _, modules in files for _, place in modules} - prefixes.keys())
    fused = family.denoiser if family.name in _FUSED and _are_original(files, family) else None
    if missing or not (fused or family.denoiser == "unet"):
        one, other = (next(path for path, kind in dotted.items() if kind is wanted) for wanted in (False, True))
        raise NotBakeableError(
            f"{one} names its modules as kohya does (lora_unet_...), {other} as diffusers or PEFT do",
            f"name a file first that has kohya's names of the {' and the '.join(missing)}"
            if missing
            else "convert one of them to the other spelling first",
        )
    return Spelling(prefixes, fused)


def _are_original(files: Iterable[tuple[Path, Placed]], family: Family) -> bool:
    """Whether all layers of the denoiser have names in the original model, and kohya's names are these."""
    modules = (module for _, placed in files for module, place in placed if place.component == family.denoiser)
    paths = (canonical(module.path)[0] if "." in module.name else module.path for module in modules)
    return all(map(ORIGINAL.fullmatch, paths))


def check_prefixes(layers: Iterable[Layer], first: Path) -> None:
    """Raise NotBakeableError for layers that loaders of the first file's names would pass over."""
    prefixes: dict[str, str] = {}
    for layer in layers:
        addend = layer.addends[0]
        _, prefix, _ = split_prefix(layer.stem)
        theirs = prefixes.setdefault(layer.place.component, prefix)
        if addend.path != first and prefix != theirs:
            raise NotBakeableError(
                f"{addend.path}: {layer.stem} is in no other file, and modules of {first} begin with {theirs!r}",
                "convert one of them to the other's spelling first: no loader is known to read both in one file",
            )
