"""The model a LoRA belongs to: its weights, one at a time, under whatever names a checkpoint gives them.

Checkpoints spell one layer in several ways, and some store several layers as one. A table of renames brings the path
of a LoRA's module and the name of a weight to the same spelling: SGM names for a UNet, BFL names for Flux, those of
transformers for text encoders. A path may end in `@0:1:3`: the first third of the rows of a fused layer.

Sources: module names of instantiated diffusers and transformers models; diffusers' single-file conversions.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from .errors import FileFormatError, NotBakeableError
from .families import Family
from .keys import parse_key
from .modules import Module
from .scaling import FLOATS
from .tensordata import TensorData
from .tensorfile import SUFFIX, Tensor, TensorFile, read_header
from .updates import Array

# Components of a diffusers folder: their folders begin the names of their weights.
_FOLDERS = re.compile(r"unet|transformer|text_encoder(?:_[234])?")
_LONGEST_INDEX = 1 << 26  # bytes

# Prefixes of single-file checkpoints -> what they are, as `keys` spells it.
_PREFIXES = {
    r"cond_stage_model\.transformer\.|conditioner\.embedders\.0\.transformer\.": "clip_l.",
    r"cond_stage_model\.model\.": "clip_h.",
    r"conditioner\.embedders\.[01]\.model\.": "clip_g.",
}

# What marks weights that are stored as something else than themselves.
_QUANTISED = re.compile(r".+\.(?:scale_weight|weight_scale|weight\.(?:absmax|quant_map|quant_state)\S*)")

_SPATIAL = {"resnets": 0, "attentions": 1}
_RESNET = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
_THIRDS = {part: f"@{i}:{i + 1}:3" for i, part in enumerate("qkv")}
_LINEAR1 = {"attn_to_q": "@0:1:7", "attn_to_k": "@1:2:7", "attn_to_v": "@2:3:7", "proj_mlp": "@3:7:7"}
_DOUBLE = {
    **{f"attn_to_{part}": f"img_attn_qkv{rows}" for part, rows in _THIRDS.items()},
    **{f"attn_add_{part}_proj": f"txt_attn_qkv{rows}" for part, rows in _THIRDS.items()},
    "attn_to_out_0": "img_attn_proj",
    "attn_to_add_out": "txt_attn_proj",
    "ff_net_0_proj": "img_mlp_0",
    "ff_net_2": "img_mlp_2",
    "ff_context_net_0_proj": "txt_mlp_0",
    "ff_context_net_2": "txt_mlp_2",
    "norm1_linear": "img_mod_lin",
    "norm1_context_linear": "txt_mod_lin",
}
_SINGLE = {
    **{part: f"linear1{rows}" for part, rows in _LINEAR1.items()},
    "proj_out": "linear2",
    "norm_linear": "modulation_lin",
}
_EMBEDDERS = {"timestep": "time", "text": "vector", "guidance": "guidance"}
_OPENCLIP = {"attn_in_proj": "self_attn_qkv", "attn_out_proj": "self_attn_out_proj"} | {
    "mlp_c_fc": "mlp_fc1",
    "mlp_c_proj": "mlp_fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}

# Applied in this order; a function makes the numbers that a template cannot.
_RENAMES: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"_to_out$": "_to_out_0",
    # UNet
    r"^conv_in$": "input_blocks_0_0",
    r"^conv_norm_out$": "out_0",
    r"^conv_out$": "out_2",
    r"^time_embedding_linear_([12])$": lambda m: f"time_embed_{2 * int(m[1]) - 2}",
    r"^add_embedding_linear_([12])$": lambda m: f"label_emb_0_{2 * int(m[1]) - 2}",
    r"^down_blocks_(\d)_(resnets|attentions)_(\d)": lambda m: (
        f"input_blocks_{3 * int(m[1]) + int(m[3]) + 1}_{_SPATIAL[m[2]]}"
    ),
    r"^down_blocks_(\d)_downsamplers_0_conv$": lambda m: f"input_blocks_{3 * int(m[1]) + 3}_0_op",
    r"^mid_block_(resnets|attentions)_(\d)": lambda m: f"middle_block_{2 * int(m[2]) + _SPATIAL[m[1]]}",
    r"^up_blocks_(\d)_(resnets|attentions)_(\d)": lambda m: (
        f"output_blocks_{3 * int(m[1]) + int(m[3])}_{_SPATIAL[m[2]]}"
    ),
    r"^up_blocks_(\d)_upsamplers_0_conv$": lambda m: f"output_blocks_{3 * int(m[1]) + 2}_conv",
    r"^(output_blocks_\d+)_[12]_conv$": r"\1_conv",
    **{rf"^((?:in|out)put_blocks_\d+_0|middle_block_[02])_{old}$": rf"\1_{new}" for old, new in _RESNET.items()},
    # Flux
    **{rf"^transformer_blocks_(\d+)_{old}$": rf"double_blocks_\1_{new}" for old, new in _DOUBLE.items()},
    **{rf"^single_transformer_blocks_(\d+)_{old}$": rf"single_blocks_\1_{new}" for old, new in _SINGLE.items()},
    r"^(?:x_embedder|img_in_proj)$": "img_in",
    r"^context_embedder$": "txt_in",
    r"^proj_out$": "final_layer_linear",
    **{
        rf"^time_text_embed_{old}_embedder_linear_{n}$": f"{new}_in_{side}_layer"
        for old, new in _EMBEDDERS.items()
        for n, side in ((1, "in"), (2, "out"))
    },
    r"^(double_blocks_\d+_\w+_attn_qkv)_([012])$": lambda m: m[1] + [*_THIRDS.values()][int(m[2])],
    r"^(single_blocks_\d+_linear1)_([0-3])$": lambda m: m[1] + [*_LINEAR1.values()][int(m[2])],
    # CLIP
    r"^text_model_": "",
    r"^(encoder_layers_\d+_self_attn)_to_out_0$": r"\1_out_proj",
    **{rf"^(?:transformer_)?resblocks_(\d+)_{old}$": rf"encoder_layers_\1_{new}" for old, new in _OPENCLIP.items()},
    r"^(encoder_layers_\d+_self_attn)_(?:to_)?([qkv])(?:_proj)?$": lambda m: f"{m[1]}_qkv{_THIRDS[m[2]]}",
    r"^token_embedding$": "embeddings_token_embedding",
    r"^ln_final$": "final_layer_norm",
}
_COMPILED = [(re.compile(pattern), new) for pattern, new in _RENAMES.items()]

# Layers of Flux under the original model's names, flattened.
ORIGINAL = re.compile(
    r"(?:double|single)_blocks_\d+_(?:img|txt|linear|modulation)\w+|(?:img|txt|time|vector|guidance)_in\w*|final_layer_\w+"
)

Rows = tuple[Fraction, Fraction]
ALL_ROWS = (Fraction(0), Fraction(1))


def with_all_rows(part: Array, rows: Rows) -> Array:
    """What belongs to these rows of a layer as what belongs to all of them, zero elsewhere. Raises ValueError."""
    if rows == ALL_ROWS:
        return part
    first, last = rows
    height = len(part) / (last - first)
    if height.denominator != 1:
        raise ValueError(f"{len(part)} rows are not the part of a layer that its name says")
    whole = np.zeros((int(height), *part.shape[1:]))
    whole[int(first * height) : int(last * height)] = part
    return whole


def canonical(path: str) -> tuple[str, Rows]:
    """The one spelling of a flattened path, and which part of that layer's rows it is."""
    if "@" in path:  # ours alone; in no model's names
        return path, ALL_ROWS
    for pattern, new in _COMPILED:
        path = pattern.sub(new, path)
    name, _, rows = path.partition("@")
    if not rows:
        return name, ALL_ROWS
    start, stop, whole = map(int, rows.split(":"))
    return name, (Fraction(start, whole), Fraction(stop, whole))


@dataclass(frozen=True, slots=True)
class BaseWeight:
    """A layer's weight: rows `start` to `stop` of tensors stacked on each other, each with its file; its shape."""

    pieces: tuple[tuple[TensorFile, Tensor], ...]
    start: int
    shape: tuple[int, ...]

    def read(self) -> Array:
        """The weight in float32, or float64 where the checkpoint holds that."""
        parts = []
        for file, tensor in self.pieces:
            with TensorData(file) as data:
                parts.append(data.read(tensor))
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole[self.start : self.start + self.shape[0]]


class BaseModel:
    """A checkpoint's headers, read as a model of a family: one safetensors file, or a folder as diffusers writes it.

    Raises FileFormatError for anything else, and for weights that are quantised.
    """

    def __init__(self, path: Path, family: Family) -> None:
        self._path = path
        self._pieces: dict[tuple[str, str], dict[Rows, tuple[TensorFile, Tensor]]] = defaultdict(dict)
        for prefix, file in files_of(path):
            header = read_header(file)
            for tensor in header.tensors:
                place = _place(prefix + tensor.name, family)
                if _QUANTISED.fullmatch(tensor.name) or (place and tensor.dtype not in FLOATS):
                    hint = "give a checkpoint in float16, bfloat16 or float32"
                    raise FileFormatError(file, f"holds quantised weights ({tensor.name})", hint)
                if place and tensor.shape:
                    component, (name, rows) = place
                    self._pieces[component, name][rows] = (header, tensor)

    def weight(self, module: Module, component: str) -> BaseWeight:
        """The weight of the layer a module adapts. Raises NotBakeableError if the model has none for it."""
        name, (first, last) = canonical(module.path)
        pieces = self._pieces.get((component, name), {})
        if (first, last) in pieces:
            pieces, first, last = {ALL_ROWS: pieces[first, last]}, *ALL_ROWS
        ordered = sorted(pieces)
        if [0, *(stop for _, stop in ordered)] != [*(start for start, _ in ordered), 1]:
            raise NotBakeableError(
                f"{self._path}: has no weight for {module.name} (looked for {component} {name})",
                "give the model this LoRA was made for, text encoders included",
            )
        tensors = tuple(pieces[rows] for rows in ordered)
        total = sum(tensor.shape[0] for _, tensor in tensors)
        start, stop = int(first * total), int(last * total)
        return BaseWeight(tensors, start, (stop - start, *tensors[0][1].shape[1:]))


def _place(name: str, family: Family) -> tuple[str, tuple[str, Rows]] | None:
    """Component and canonical path of a weight of the family's models, None for anything else."""
    for prefix, new in _PREFIXES.items():
        name = re.sub(f"^(?:{prefix})", new, name)
    key = parse_key(name.replace(".in_proj_weight", ".in_proj.weight"))
    if key is None or key.role != "weight":
        return None
    place = family.place_of(key.component, key.path)
    return (place.component, canonical(key.path)) if place else None


def files_of(path: Path) -> list[tuple[str, Path]]:
    """The safetensors files of a checkpoint, each with what begins the names in it. Raises FileFormatError."""
    if not path.is_dir():
        return [("", path)]
    components = [folder for folder in sorted(path.iterdir()) if _FOLDERS.fullmatch(folder.name) and folder.is_dir()]
    found = [
        (f"{folder.name}." if _FOLDERS.fullmatch(folder.name) else "", file)
        for folder in components or [path]
        for file in _of_folder(folder)
    ]
    if not found:
        where = f"holds no {SUFFIX} files, nor do folders unet/, transformer/ or text_encoder/ in it"
        raise FileFormatError(path, where, "give a single-file checkpoint, or a model as diffusers saves it")
    return found


def _of_folder(folder: Path) -> list[Path]:
    """The files of one component: those its index lists, else the one with the plainest name (no `.fp16`)."""

    def plainness(file: Path) -> tuple[int, str]:
        return len(file.name), file.name

    if index := min(folder.glob(f"*{SUFFIX}.index*.json"), key=plainness, default=None):
        return [folder / name for name in _listed(index)]
    return sorted(folder.glob(f"*{SUFFIX}"), key=plainness)[:1]


def _listed(index: Path) -> list[str]:
    """The shards an index lists: names of files beside it. Raises FileFormatError for paths to anywhere else."""
    try:
        with index.open("rb") as file:
            names = sorted(set(json.loads(file.read(_LONGEST_INDEX))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(index, f"is no index of shards: {error}", "download it again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name == ".." or "\\" in name or "\0" in name:
            raise FileFormatError(index, f"lists {name!r}, which is no file beside it", "download the model again")
    return names
