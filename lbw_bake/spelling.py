"""What a layer that several files adapt is called in one: trainers spell it in several ways, and some split it.

Sources: the converters of diffusers' loaders, ComfyUI's key maps.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .addition import Layer
from .basemodel import ALL_ROWS, ORIGINAL, Rows, canonical
from .errors import NotBakeableError
from .families import Family, Place
from .keys import lora_stem, split_prefix
from .modules import Module

# Families of which dotted names split layers that are one in the original model, and in kohya's names.
_FUSED = ("flux", "chroma")

# Layers of a UNet in the names of the original model, and in those of diffusers; both flattened.
_SGM = re.compile(r"(?:input_blocks|middle_block|output_blocks)_\w+")
_DIFFUSERS = re.compile(r"(?:down_blocks|mid_block|up_blocks)_\w+")

# What dotted names of stacks begin with in the original models, and in those of diffusers.
_STACKS = (
    ("input_blocks.", "middle_block.", "output_blocks.", "double_blocks.", "single_blocks."),
    ("down_blocks.", "mid_block.", "up_blocks.", "transformer_blocks.", "single_transformer_blocks."),
)

# What kohya calls layers of CLIP, which the latest transformers and the first diffusers call otherwise.
_KOHYAS = {
    r"^(?=encoder_layers_|embeddings_|final_layer_norm$)": "text_model_",
    r"(?<=_self_attn)_to_out(?:_0)?$": "_out_proj",
    r"(?<=_self_attn)_to_([qkv])$": r"_\1_proj",
}

# Modules with their places, of one file.
Placed = Sequence[tuple[Module, Place]]


@dataclass(frozen=True, slots=True)
class Spelling:
    """How layers are called in the output: as in their own file, unless there are prefixes to give dotted names.

    `prefixes` are what kohya's names begin with, by component; `original` is the component whose layers get the names
    of the original model, if there is one.
    """

    family: Family
    prefixes: Mapping[str, str]
    original: str | None = None

    def layer_of(self, module: Module, place: Place) -> tuple[str, tuple[str, str, Rows], Rows]:
        """The name of a module's layer, what it is under any name, and which of its rows the module adapts."""
        name, rows = canonical(module.path)
        if place.component == self.original:
            stem = f"{self.prefixes[place.component]}{_with_upsampler(name, self.family)}"
            return stem, (place.component, name, ALL_ROWS), rows
        dotted = "." in module.name and place.component in self.prefixes
        stem = f"{self.prefixes[place.component]}{_kohyas(module.path)}" if dotted else module.name
        return stem, (place.component, name, rows), ALL_ROWS


def spelling_of(files: Sequence[tuple[Path, Placed]], family: Family) -> Spelling:
    """The spelling of what several files of a family become: that of the first, kohya's where it has some of them.

    No loader is known to read dotted names and kohya's in one file. All know kohya's names of any layer of a UNet, and
    those of Flux where they are the original model's; but diffusers passes over a UNet's original names where its own
    are in the file. Raises NotBakeableError where dotted names cannot be turned into those.
    """
    if len(files) == 1:
        return Spelling(family, {})
    own, modules = files[0][1], [both for _, placed in files for both in placed]
    dotted, flat = _components(modules, dotted=True), _components(modules, dotted=False)
    known = [both for both in modules if both[1].component not in dotted]
    prefixes = {
        place.component: lora_stem(split_prefix(module.name)[1])
        for module, place in (*known, *own)
        if "." not in module.name
    }
    # A component that no file has in kohya's names may be beside others that are, if the first file has it so.
    kept = _components(own, dotted=True) - flat if _components(own, dotted=False) else set()
    missing = sorted(dotted - prefixes.keys() - kept) if flat else []
    turned = family.denoiser in dotted & prefixes.keys()
    mixed = family.denoiser in prefixes and _is_mixed(modules, family)
    fused = turned and family.name in _FUSED and _are_original(modules, family)
    if missing or (turned and not (fused or family.denoiser == "unet")):
        names = [(path, module.name, place.component) for path, placed in files for module, place in placed]
        one, name = next((path, name) for path, name, _ in names if "." not in name)
        strange = missing or [family.denoiser]
        other, dots = next((path, name) for path, name, component in names if "." in name and component in strange)
        first = f"name a file first that has kohya's names of the {' and the '.join(missing)}"
        raise NotBakeableError(
            f"{one} names modules as kohya does ({name}), {other} as diffusers or PEFT do ({dots})",
            first if missing else "convert one of them to the other spelling first",
        )
    return Spelling(family, prefixes, family.denoiser if mixed or fused else None)


def _components(modules: Placed, *, dotted: bool) -> set[str]:
    """The components of which there are dotted names, or others."""
    return {place.component for module, place in modules if ("." in module.name) is dotted}


def _kohyas(path: str) -> str:
    """A layer's path as kohya has it."""
    for old, new in _KOHYAS.items():
        path = re.sub(old, new, path)
    return path


def _is_mixed(modules: Placed, family: Family) -> bool:
    """Whether some layers of a UNet have the names of the original model, and others those of diffusers."""
    paths = {module.path for module, place in modules if place.component == family.denoiser}
    return any(map(_SGM.fullmatch, paths)) and any(map(_DIFFUSERS.fullmatch, paths))


def _with_upsampler(name: str, family: Family) -> str:
    """The name of an upsampler says how many layers of its block come before it: SDXL alone has attention in OUT02."""
    position = 1 if family.name != "sdxl" and name.startswith("output_blocks_2_") else 2
    return re.sub(r"^(output_blocks_\d+)_conv$", rf"\1_{position}_conv", name)


def _are_original(modules: Placed, family: Family) -> bool:
    """Whether all layers of the denoiser have names in the original model, and kohya's names are these."""
    layers = (module for module, place in modules if place.component == family.denoiser)
    paths = (canonical(module.path)[0] if "." in module.name else module.path for module in layers)
    return all(map(ORIGINAL.fullmatch, paths))


def check_prefixes(layers: Iterable[Layer], first: Path) -> None:
    """Raise NotBakeableError for layers that begin as none of the first file's: loaders of these would pass over them.

    The first file's layers come first.
    """
    known: defaultdict[tuple[str, str], dict[object, str]] = defaultdict(dict)
    for layer in layers:
        addend = layer.addends[0]
        _, prefix, path = split_prefix(layer.stem)
        model = next((stacks for stacks in _STACKS if path.startswith(stacks)), None)
        begins = {"prefix": (prefix, prefix), "model": (model, f"{prefix}{path.partition('.')[0]}")}
        for kind, (own, shown) in begins.items():
            if own is None:  # no stack tells the model
                continue
            others = known[layer.place.component, kind]
            if addend.path == first or not others:
                others.setdefault(own, shown)
            elif own not in others:
                raise NotBakeableError(
                    f"{addend.path}: {layer.stem} is in no other file, and modules of {first} begin with "
                    f"{next(iter(others.values()))!r}",
                    "convert one of them to the other's spelling first: no loader is known to read both in one file",
                )
