"""Write the truth tables: which block does every tensor of a LoRA file belong to?

A table ``<family>_<spelling>.tsv`` lists the tensors of one kind of file, a line each:

    tensor name <TAB> block <TAB> shape

with shapes of rank 4, like ``4,320`` or ``4,320,1,1``, and ``-`` for a scalar. Lines that start
with ``#`` say what the file is. Blocks are those users write (``MID``, never ``M00``); ``OTHER`` marks
layers of a UNet that lie outside every block.

The modules are not typed in by hand. Every model is built from its published configuration on
torch's meta device (no weights, no network), its weighted layers are listed, and each layer gets
its block from the path it has *in that model*. Only then is the path respelled, so spellings cannot
disagree about a block. Where a trainer names modules differently from diffusers, rename rules say
how, one row per kind of layer; layers that get the same name are one fused layer there.

Needs torch, diffusers (0.42 or later) and transformers (5 or later). Run it as

    python tests/data/keys/generate.py            # every table, next to this file
    python tests/data/keys/generate.py 'flux*'    # only the tables whose names match

The output depends on nothing but the model classes: the same versions write the same bytes.
"""

from __future__ import annotations

import fnmatch
import importlib
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

RANK = 4
HERE = Path(__file__).parent

# ------------------------------------------------------------------------------------------------
# Modules: the layers of a model, each with its block
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Module:
    """One weighted layer: where it sits, its block, and the weight a LoRA of it would change."""

    component: str  # "denoiser", "clip_l", "clip_g", "t5", ...
    path: str  # dotted
    block: str
    kind: str  # "linear", "conv", "norm", "embedding" or "other"
    shape: tuple[int, ...]  # of the weight
    bias: bool = False

    @property
    def down(self) -> tuple[int, ...]:
        """Shape of the factor next to the layer's input."""
        return (RANK, *self.shape[1:])

    @property
    def up(self) -> tuple[int, ...]:
        """Shape of the factor next to the layer's output."""
        return (self.shape[0], RANK, *(1 for _ in self.shape[2:]))


Modules = tuple[Module, ...]
BlockRule = tuple[str, str | Callable[..., str]]  # regex for a path's start; block of its numbers


def block_of(path: str, rules: Sequence[BlockRule]) -> str:
    """The block of a path: the first rule that matches its start."""
    for pattern, block in rules:
        match = re.match(rf"(?:{pattern})(?=\.|$)", path)
        if match:
            numbers = [int(group) for group in match.groups()]
            return block.format(*numbers) if isinstance(block, str) else block(*numbers)
    raise LookupError(f"no block rule for {path}")


def numbered(stack: str, letter: str) -> BlockRule:
    """Rule of a stack: ``numbered("blocks", "B")`` puts ``blocks.7.*`` in B07."""
    return re.escape(stack) + r"\.(\d+)", letter + "{:02}"


def _kind(layer: object) -> str:
    name = type(layer).__name__
    words = {"Norm": "norm", "Conv": "conv", "Embedding": "embedding", "Linear": "linear"}
    return next((kind for word, kind in words.items() if word in name), "other")


@cache
def _model(class_name: str, config: tuple[tuple[str, Any], ...]) -> Any:
    """An instance without weights; "Config:Model" names a pair of transformers classes, others are of diffusers."""
    import torch

    with torch.device("meta"):
        if ":" not in class_name:
            *package, name = class_name.split(".")
            return getattr(importlib.import_module(".".join(["diffusers", *package])), name)(**dict(config))
        library = importlib.import_module("transformers")
        config_class, model_class = (getattr(library, name) for name in class_name.split(":"))
        return model_class(config_class(**dict(config)))


def layers(component: str, rules: Sequence[BlockRule], class_name: str, **config: Any) -> Modules:
    """The weighted layers of a model that exists only as shapes."""
    found = []
    for path, layer in _model(class_name, tuple(config.items())).named_modules():
        weight = getattr(layer, "weight", None)
        if weight is not None:
            bias = getattr(layer, "bias", None) is not None
            block = block_of(path, rules)
            found.append(Module(component, path, block, _kind(layer), tuple(weight.shape), bias))
    return tuple(found)


def weights_only(modules: Iterable[Module]) -> Modules:
    """Linear layers and convolutions: what a LoRA adapts."""
    return tuple(m for m in modules if m.kind in ("linear", "conv"))


def where(modules: Iterable[Module], pattern: str) -> Modules:
    """The modules whose path contains the pattern."""
    return tuple(m for m in modules if re.search(pattern, m.path))


_STACK = re.compile(r"(?:^|\.)(?:(?:\w+_)?(?:transformer|stream|double|single)_blocks|blocks?|layers?)\.(\d+)\.")


def thinned(modules: Iterable[Module]) -> Modules:
    """Every third layer of each stack, and the last. UNet levels are no stack and stay whole."""
    places: list[tuple[Module, str, int]] = []
    last: dict[str, int] = {}
    for module in modules:
        match = _STACK.search(module.path)
        stack = f"{module.component}.{module.path[: match.start(1)]}" if match else ""
        number = int(match[1]) if match else 0
        places.append((module, stack, number))
        last[stack] = max(last.get(stack, 0), number)
    return tuple(m for m, stack, number in places if number % 3 == 0 or number == last[stack])


def scattered(modules: Modules) -> Modules:
    """Every fifth module of the thinned model: for spellings with many tensors a module."""
    return thinned(modules)[::5]


EVERY_THIRD = "every third layer of each stack"
SCATTERED = "every fifth module of every third layer"

# ------------------------------------------------------------------------------------------------
# Renaming: the same layers under the module names of another implementation
# ------------------------------------------------------------------------------------------------

Rename = tuple[str, str]  # regex for a whole path, replacement


def renamed(modules: Iterable[Module], rules: Sequence[Rename]) -> Modules:
    """The modules under other names; those that get the same name become one fused module."""
    found: dict[str, Module] = {}
    for module in modules:
        path = _renamed_path(module.path, rules)
        before = found.get(path)
        if before is None:
            found[path] = replace(module, path=path)
        elif before.block == module.block and before.shape[1:] == module.shape[1:]:
            rows = before.shape[0] + module.shape[0]
            found[path] = replace(before, shape=(rows, *before.shape[1:]))
        else:
            raise ValueError(f"{module.path} cannot be a part of {path}")
    return tuple(found.values())


def _renamed_path(path: str, rules: Sequence[Rename]) -> str:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, path)
        if match:
            return match.expand(replacement)
    raise LookupError(f"no rename rule for {path}")


def respelled(modules: Iterable[Module], pattern: str, replacement: str) -> Modules:
    """The modules with one substitution in their paths."""
    return tuple(replace(m, path=re.sub(pattern, replacement, m.path)) for m in modules)


def under(stack: str, rules: Iterable[Rename], to: str | None = None) -> list[Rename]:
    """Rename rules below a numbered stack: ``stack.N.old`` becomes ``to.N.new``."""
    target = stack if to is None else to
    return [(rf"{re.escape(stack)}\.(\d+)\.(?:{old})", rf"{target}.\1.{_shifted(new)}") for old, new in rules]


def _shifted(replacement: str) -> str:
    return re.sub(r"\\(\d)", lambda match: f"\\{int(match[1]) + 1}", replacement)


KEEP: Rename = (r"(.+)", r"\1")

# ------------------------------------------------------------------------------------------------
# Forms: the tensors of one module, as (ending, shape)
# ------------------------------------------------------------------------------------------------

Tensor = tuple[str, tuple[int, ...]]
Form = Callable[[Module], list[Tensor]]


def endings(down: str, up: str = "", alpha: str = "") -> Form:
    """A LoRA of two factors; with only ``down`` given, that one tensor stands for the module."""

    def form(module: Module) -> list[Tensor]:
        tensors = [(down, module.down), (up, module.up), (alpha, ())]
        return [(ending, shape) for ending, shape in tensors if ending]

    return form


DOWN = endings(".lora_down.weight")
KOHYA = endings(".lora_down.weight", ".lora_up.weight", ".alpha")
PEFT = endings(".lora_A.weight")
PEFT_PAIR = endings(".lora_A.weight", ".lora_B.weight")
PEFT_DEFAULT = endings(".lora_A.default.weight", ".lora_B.default.weight")
DOTTED = endings(".lora.down.weight")  # diffusers in 2023
LINEAR_LAYER = endings(".lora_linear_layer.down.weight")  # its text encoders
PROCESSOR = endings("_lora.down.weight")  # diffusers before that
XLABS = endings(".down.weight", ".up.weight")


def full(module: Module) -> list[Tensor]:
    """A full difference: LyCORIS writes norms under names of their own."""
    weight, bias = (".w_norm", ".b_norm") if module.kind == "norm" else (".diff", ".diff_b")
    tensors = [(weight, module.shape)]
    return [*tensors, (bias, module.shape[:1])] if module.bias else tensors


def loha(module: Module) -> list[Tensor]:
    """Two products multiplied elementwise."""
    out, rows = (module.shape[0], RANK), (RANK, math.prod(module.shape[1:]))
    factors = {".hada_w1_a": out, ".hada_w1_b": rows, ".hada_w2_a": out, ".hada_w2_b": rows}
    return [*factors.items(), (".alpha", ())]


def lokr(module: Module) -> list[Tensor]:
    """A Kronecker product with factor 8: a small full matrix times one of low rank."""
    out, inner, *window = module.shape
    rows, columns = math.gcd(out, 8), math.gcd(inner, 8)
    return [
        (".lokr_w1", (rows, columns)),
        (".lokr_w2_a", (out // rows, RANK)),
        (".lokr_w2_b", (RANK, math.prod([inner // columns, *window]))),
        (".alpha", ()),
    ]


def oft(module: Module) -> list[Tensor]:
    """Rotations of the outputs in RANK groups."""
    side = module.shape[0] // RANK
    return [(".oft_blocks", (RANK, side, side)), (".alpha", ())]


def dora(module: Module) -> list[Tensor]:
    """OneTrainer's DoRA: the magnitudes lie along the inputs."""
    scale = (1, module.shape[1], *(1 for _ in module.shape[2:]))
    return [*KOHYA(module), (".dora_scale", scale)]


# ------------------------------------------------------------------------------------------------
# Spellings and tables
# ------------------------------------------------------------------------------------------------

Spell = Callable[[Module], str]


def flat(prefixes: Mapping[str, str] | str) -> Spell:
    """Prefix (by component), dots of the path flattened to underscores."""
    return lambda module: _prefix(prefixes, module) + module.path.replace(".", "_")


def dotted(prefixes: Mapping[str, str] | str) -> Spell:
    """Prefix (by component), the path as it is."""
    return lambda module: _prefix(prefixes, module) + module.path


def _prefix(prefixes: Mapping[str, str] | str, module: Module) -> str:
    return prefixes if isinstance(prefixes, str) else prefixes[module.component]


Part = tuple[Modules, Spell, Form]


@dataclass(frozen=True, slots=True)
class Table:
    """One output file: its name, what it is, and modules in one or more spellings."""

    name: str
    about: str
    parts: tuple[Part, ...]

    def text(self) -> str:
        """The file's content: a comment, then a line for each tensor."""
        lines: dict[str, str] = {}
        for modules, spell, form in self.parts:
            for module in modules:
                for ending, shape in form(module):
                    name = spell(module) + ending
                    line = "\t".join((name, module.block, ",".join(map(str, shape)) or "-"))
                    if lines.setdefault(name, line) != line:
                        raise ValueError(f"{self.name}: two truths for {name}")
        header = f"# {self.about}. Tensors: {len(lines)}."
        return "".join(f"{line}\n" for line in (header, *lines.values()))


def table(name: str, about: str, *parts: Part) -> Table:
    """An output file; parts without modules are left out."""
    return Table(name, about, tuple(part for part in parts if part[0]))


# ------------------------------------------------------------------------------------------------
# Text encoders
# ------------------------------------------------------------------------------------------------


def encoder(component: str, block: str, class_name: str, **config: Any) -> Modules:
    """A transformers model, all of it one block."""
    return layers(component, [(r".*", block)], class_name, **config)


def clip(component: str, block: str, width: int, depth: int, *, projection: bool = False) -> Modules:
    """A CLIP text encoder under its classic paths."""
    modules = encoder(
        component,
        block,
        "CLIPTextConfig:CLIPTextModel" + ("WithProjection" if projection else ""),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        projection_dim=width,
    )
    # transformers 5 dropped the text_model level of the model without projection.
    return respelled(modules, r"^(?!text_model\.|text_projection)", "text_model.")


def without_text_model(modules: Modules) -> Modules:
    """The paths that transformers 5 gives."""
    return respelled(modules, r"^text_model\.", "")


def clip_l(block: str) -> Modules:
    """CLIP ViT-L, the encoder of SD1 and the first one of SDXL, SD3 and Flux."""
    return clip("clip_l", block, 768, 12)


def clip_h(block: str) -> Modules:
    """OpenCLIP ViT-H without its last layer, the encoder of SD2."""
    return clip("clip_h", block, 1024, 23)


def clip_g(block: str) -> Modules:
    """OpenCLIP ViT-bigG, the second encoder of SDXL and SD3."""
    return clip("clip_g", block, 1280, 32, projection=True)


def t5(block: str, *, name: str = "t5", class_name: str = "T5Config:T5EncoderModel") -> Modules:
    """T5-XXL, or the mT5-XL of Hunyuan-DiT."""
    small = name == "mt5"
    return encoder(
        name,
        block,
        class_name,
        d_model=2048 if small else 4096,
        d_ff=5120 if small else 10240,
        d_kv=64,
        num_heads=32 if small else 64,
        num_layers=24,
        feed_forward_proj="gated-gelu",
    )


def language_model(component: str, class_name: str, sizes: tuple[int, ...]) -> Modules:
    """A decoder that reads prompts; sizes: width, MLP, layers, heads, key heads, head width."""
    names = [
        *("hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads", "head_dim"),
    ]
    return encoder(component, "TE", class_name, **dict(zip(names, sizes, strict=True)))


def in_layers(modules: Modules) -> Modules:
    """The linear layers inside an encoder's stack: what trainers adapt."""
    return weights_only(where(modules, r"(?:^|\.)(?:layers?|block)\.\d+\."))


def llama() -> Modules:
    """Llama 3 8B, of HunyuanVideo."""
    sizes = (4096, 14336, 32, 32, 8, 128)
    return in_layers(language_model("llama", "LlamaConfig:LlamaModel", sizes))


def gemma() -> Modules:
    """Gemma 2 2B, of Lumina 2."""
    sizes = (2304, 9216, 26, 8, 4, 256)
    return in_layers(language_model("gemma", "Gemma2Config:Gemma2Model", sizes))


def qwen_06b() -> Modules:
    """Qwen3 0.6B, of Anima."""
    sizes = (1024, 3072, 28, 16, 8, 128)
    return in_layers(language_model("qwen", "Qwen3Config:Qwen3Model", sizes))


def qwen_4b() -> Modules:
    """Qwen3 4B, of Z-Image."""
    sizes = (2560, 9728, 36, 32, 8, 128)
    return in_layers(language_model("qwen", "Qwen3Config:Qwen3Model", sizes))


def bert_and_mt5() -> Modules:
    """The two encoders of Hunyuan-DiT."""
    bert = encoder(
        "bert",
        "TE",
        "BertConfig:BertModel",
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
    )
    mt5 = t5("TE", name="mt5", class_name="MT5Config:MT5EncoderModel")
    return in_layers(bert) + in_layers(mt5)


# ------------------------------------------------------------------------------------------------
# SD1, SD2, SDXL
# ------------------------------------------------------------------------------------------------

_PARTS = "(?:resnets|attentions|motion_modules)"
UNET_BLOCKS: list[BlockRule] = [
    (r"conv_in", "IN00"),
    (rf"down_blocks\.(\d+)\.{_PARTS}\.(\d+)", lambda i, j: f"IN{3 * i + j + 1:02}"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", lambda i: f"IN{3 * i + 3:02}"),
    (r"mid_block", "MID"),
    (rf"up_blocks\.(\d+)\.{_PARTS}\.(\d+)", lambda i, j: f"OUT{3 * i + j:02}"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", lambda i: f"OUT{3 * i + 2:02}"),
    (r"time_embedding|add_embedding|conv_norm_out|conv_out", "OTHER"),
]

_DOWN, _CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
_UP, _CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"

UNET_CONFIGS: dict[str, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 768},
    "sd2": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": (_DOWN, _CROSS_DOWN, _CROSS_DOWN),
        "up_block_types": (_CROSS_UP, _CROSS_UP, _UP),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sdxl_refiner": {
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": (_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN),
        "up_block_types": (_UP, _CROSS_UP, _CROSS_UP, _UP),
        "transformer_layers_per_block": 4,
        "attention_head_dim": (6, 12, 24, 24),
        "cross_attention_dim": 1280,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
    },
}

UNET_ENCODERS: dict[str, tuple[Callable[[str], Modules], ...]] = {
    "sd1": (clip_l,),
    "sd2": (clip_h,),
    "sdxl": (clip_l, clip_g),
    "sdxl_refiner": (clip_g,),
}

# Prefixes by spelling and component. An encoder alone in its model is lora_te_, pairs are numbered.
KOHYA_ONE = {"denoiser": "lora_unet_", **dict.fromkeys(("clip_l", "clip_h", "clip_g"), "lora_te_")}
KOHYA_TWO = {"denoiser": "lora_unet_", "clip_l": "lora_te1_", "clip_g": "lora_te2_"}
DIFFUSERS_UNET = {
    "denoiser": "unet.",
    "clip_l": "text_encoder.",
    "clip_h": "text_encoder.",
    "clip_g": "text_encoder_2.",
}
OMI_UNET = {"denoiser": "unet.", "clip_l": "clip_l.", "clip_h": "clip_h.", "clip_g": "clip_g."}
COMFY_UNET = {
    "denoiser": "diffusion_model.",
    **{name: f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_h", "clip_g")},
}


def unet(family: str) -> Modules:
    """Every weighted layer of the UNet, diffusers names."""
    return layers("denoiser", UNET_BLOCKS, "UNet2DConditionModel", **UNET_CONFIGS[family])


_SGM_ROOT = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_SGM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _sgm_path(path: str, attentive_up_levels: set[str]) -> str:
    if path in _SGM_ROOT:
        return _SGM_ROOT[path]
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", path):
        part, j, rest = match.groups()
        place = "1" if part == "attentions" else str(2 * int(j))
        return f"middle_block.{place}.{_SGM_RESNET.get(rest, rest)}"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", path):
        side, i, part, j, rest = match.groups()
        at = 3 * int(i) + int(j)
        stage = f"input_blocks.{at + 1}" if side == "down" else f"output_blocks.{at}"
        place = "1" if part == "attentions" else "0"
        return f"{stage}.{place}.{_SGM_RESNET.get(rest, rest)}"
    if match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv", path):
        return f"input_blocks.{3 * int(match[1]) + 3}.0.op"
    if match := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv", path):
        place = "2" if match[1] in attentive_up_levels else "1"
        return f"output_blocks.{3 * int(match[1]) + 2}.{place}.conv"
    raise LookupError(f"no original name for {path}")


def as_they_are(modules: Modules) -> Modules:
    """diffusers names."""
    return modules


@dataclass(frozen=True, slots=True)
class UNet:
    """The parts of a UNet family that its tables are made of."""

    family: str
    title: str
    model: Modules
    encoders: Modules

    @property
    def plain(self) -> Modules:
        """What a plain LoRA adapts: the layers of the attention transformers."""
        return weights_only(where(self.model, r"\.attentions\.\d+\."))

    @property
    def convolutional(self) -> Modules:
        """What a LoCon adapts: transformers, resnets and samplers."""
        return weights_only(where(self.model, r"\.(?:attentions|resnets|\w+samplers)\."))

    @property
    def texts(self) -> Modules:
        """What both adapt in the text encoders."""
        return in_layers(self.encoders)

    @property
    def kohya(self) -> dict[str, str]:
        """kohya's prefixes."""
        return KOHYA_TWO if self.family == "sdxl" else KOHYA_ONE

    def sgm(self, modules: Modules) -> Modules:
        """Some of its layers under the names of the original implementation."""
        attentive = {found[1] for m in self.model if (found := re.match(r"up_blocks\.(\d)\.attentions", m.path))}
        return tuple(replace(m, path=_sgm_path(m.path, attentive)) for m in modules)

    @property
    def own_names(self) -> Callable[[Modules], Modules]:
        """The names in kohya's own UNet class."""
        return self.sgm if self.family.startswith("sdxl") else as_they_are

    @property
    def other_names(self) -> Callable[[Modules], Modules]:
        """The naming that kohya's class does not have, but other tools write with its prefixes."""
        return as_they_are if self.family.startswith("sdxl") else self.sgm


def unet_family(family: str, title: str) -> UNet:
    """A family with its text encoders."""
    encoders = tuple(chain.from_iterable(make("BASE") for make in UNET_ENCODERS[family]))
    return UNet(family, title, unet(family), encoders)


def unet_basics(it: UNet) -> Iterator[Table]:
    """The tables that every UNet family has."""
    name, kohya = it.family, it.kohya
    whole = name == "sd1"
    few, few_texts = thinned(it.plain), thinned(it.texts)
    own, other = ("SGM", "diffusers") if it.own_names == it.sgm else ("diffusers", "SGM")

    yield table(
        f"{name}_kohya_lora",
        f"{it.title} kohya LoRA: Linears and 1x1 convolutions of an instantiated UNet's attention"
        f" transformers ({own} names) and the Linears of the text encoder layers" + ("; every tensor" if whole else ""),
        (it.own_names(it.plain), flat(kohya), KOHYA if whole else DOWN),
        (it.texts, flat(kohya), KOHYA if whole else DOWN),
    )
    yield table(
        f"{name}_kohya_{other.lower()}",
        f"{it.title} LoRA with kohya prefixes and {other} module names",
        (it.other_names(it.plain), flat(kohya), DOWN),
        (few_texts, flat(kohya), DOWN),
    )
    yield table(
        f"{name}_kohya_both",
        f"{it.title} LoRA that carries both namings of the UNet at once; {SCATTERED}",
        (scattered(it.plain), flat(kohya), DOWN),
        (it.sgm(scattered(it.plain)), flat(kohya), DOWN),
        (scattered(it.texts), flat(kohya), DOWN),
    )
    yield table(
        f"{name}_locon",
        f"{it.title} kohya LoCon: transformers, resnets and samplers ({own} names); {EVERY_THIRD}",
        (it.own_names(thinned(it.convolutional)), flat(kohya), DOWN),
        (few_texts, flat(kohya), DOWN),
    )
    yield table(
        f"{name}_locon_{other.lower()}",
        f"{it.title} LoCon with kohya prefixes and {other} names: what a plain LoRA does not have",
        (it.other_names(where(it.convolutional, r"resnets|samplers")), flat(kohya), DOWN),
    )
    yield table(
        f"{name}_diffusers_peft",
        f"{it.title} LoRA as diffusers saves PEFT weights: the modules of the kohya table"
        + ("; every tensor" if whole else ""),
        (it.plain, dotted(DIFFUSERS_UNET), PEFT_PAIR if whole else PEFT),
        (it.texts, dotted(DIFFUSERS_UNET), PEFT_PAIR if whole else PEFT),
    )
    yield table(
        f"{name}_comfyui",
        f"{it.title} LoRA with ComfyUI's generic names: SGM paths; {EVERY_THIRD}",
        (it.sgm(few), dotted(COMFY_UNET), DOWN),
        (few_texts, dotted(COMFY_UNET), DOWN),
    )
    listed = name in ("sd1", "sdxl")
    yield table(
        f"{name}_lycoris_full",
        f"{it.title} full difference of every weighted layer of the instantiated UNet and text"
        f" encoders, as a LyCORIS extraction writes it ({own} names)"
        + ("" if listed else f"; {EVERY_THIRD}, every other module"),
        (it.own_names(it.model if listed else thinned(it.model)[::2]), flat(kohya), full),
        (it.encoders if listed else thinned(it.encoders)[::2], flat(kohya), full),
    )


def unet_spellings(it: UNet) -> Iterator[Table]:
    """The further spellings, for the families that people train most."""
    name, kohya = it.family, it.kohya
    few, few_texts = thinned(it.plain), thinned(it.texts)
    some, some_texts = scattered(it.plain), scattered(it.texts)
    own = "SGM" if it.own_names == it.sgm else "diffusers"

    for algorithm, form in (("loha", loha), ("lokr", lokr)):
        yield table(
            f"{name}_lycoris_{algorithm}",
            f"{it.title} LyCORIS {algorithm}: transformers, resnets and samplers ({own} names); {SCATTERED}",
            (it.own_names(scattered(it.convolutional)), flat(kohya), form),
            (some_texts, flat(kohya), form),
        )
    yield table(
        f"{name}_lycoris_wrapper",
        f"{it.title} LoKr by LyCORIS' generic wrapper: diffusers names; {SCATTERED}",
        (scattered(it.convolutional), flat("lycoris_"), lokr),
    )
    yield table(
        f"{name}_oft",
        f"{it.title} kohya OFT: attention Linears ({own} names); {SCATTERED}",
        (it.own_names(where(some, r"\.attn[12]\.")), flat("oft_unet_"), oft),
    )
    yield table(
        f"{name}_attn_processor",
        f"{it.title} first generation of diffusers files: attention processors; {EVERY_THIRD}",
        (on_processors(few), dotted(DIFFUSERS_UNET), PROCESSOR),
        (old_text_attention(few_texts), dotted(DIFFUSERS_UNET), PROCESSOR),
    )
    yield table(
        f"{name}_attn_processor_bare",
        f"{it.title} first generation of diffusers files, without a prefix; {EVERY_THIRD}",
        (on_processors(few), dotted(""), PROCESSOR),
    )
    yield table(
        f"{name}_diffusers_2023",
        f"{it.title} second generation of diffusers files: .lora.down and .lora_linear_layer.down; {EVERY_THIRD}",
        (few, dotted(DIFFUSERS_UNET), DOTTED),
        (few_texts, dotted(DIFFUSERS_UNET), LINEAR_LAYER),
    )
    yield table(
        f"{name}_diffusers_mixed",
        f"{it.title} diffusers file whose text encoder has old endings for attention and PEFT's for"
        f" the MLP; {SCATTERED}, all of the encoder's third layers",
        (some, dotted(DIFFUSERS_UNET), PEFT),
        (where(few_texts, r"self_attn"), dotted(DIFFUSERS_UNET), LINEAR_LAYER),
        (where(few_texts, r"mlp"), dotted(DIFFUSERS_UNET), PEFT),
    )
    yield table(
        f"{name}_peft_bare",
        f"{it.title} PEFT state dict of the UNet without any prefix; {EVERY_THIRD}",
        (few, dotted(""), PEFT),
    )
    yield table(
        f"{name}_peft_base_model",
        f"{it.title} raw PEFT adapter file of the UNet; {EVERY_THIRD}",
        (few, dotted("base_model.model."), PEFT),
    )
    yield table(
        f"{name}_peft_default",
        f"{it.title} live PEFT state dict, the adapter's name in every key; {SCATTERED}",
        (some, dotted("base_model.model."), PEFT_DEFAULT),
    )
    yield table(
        f"{name}_peft_adapter_name",
        f"{it.title} diffusers prefixes with an adapter name in every key; {SCATTERED}",
        (some, dotted(DIFFUSERS_UNET), endings(".lora_A.my_style.weight")),
        (some_texts, dotted(DIFFUSERS_UNET), endings(".lora_A.my_style.weight")),
    )
    yield table(
        f"{name}_te_without_text_model",
        f"{it.title} text encoders without the text_model level that transformers 5 dropped, in"
        f" diffusers and kohya spelling; {EVERY_THIRD}, few of the UNet's",
        (some, dotted(DIFFUSERS_UNET), PEFT),
        (without_text_model(few_texts), dotted(DIFFUSERS_UNET), PEFT),
        (without_text_model(few_texts), flat(kohya), DOWN),
    )
    yield table(
        f"{name}_onetrainer",
        f"{it.title} OneTrainer DoRA, its older naming: diffusers paths; {SCATTERED}",
        (some, flat(kohya), dora),
        (some_texts, flat(kohya), dora),
    )
    yield table(
        f"{name}_onetrainer_omi",
        f"{it.title} OneTrainer file in OMI names: SGM paths below unet.; {EVERY_THIRD}",
        (it.sgm(few), dotted(OMI_UNET), DOWN),
        (few_texts, dotted(OMI_UNET), DOWN),
    )


def on_processors(modules: Modules) -> Modules:
    """Attention projections where the first diffusers files have them: on the processor."""
    attention = where(modules, r"\.attn[12]\.")
    return respelled(attention, r"\.(to_[qkv]|to_out)(?:\.0)?$", r".processor.\1")


def old_text_attention(modules: Modules) -> Modules:
    """That generation's text encoder: only attention, under the UNet's projection names."""
    return respelled(where(modules, r"\.self_attn\."), r"\.(q|k|v|out)_proj$", r".to_\1")


def motion_tables() -> Iterator[Table]:
    """AnimateDiff."""
    modules = weights_only(layers("denoiser", UNET_BLOCKS, "MotionAdapter"))
    yield table(
        "sd1_animatediff",
        "AnimateDiff motion LoRA for SD1: all Linears of an instantiated MotionAdapter",
        (modules, dotted("unet."), PEFT),
    )
    original = where(modules, r"\.attn[12]\.")
    for number in (1, 2):
        original = respelled(
            original,
            rf"transformer_blocks\.(\d)\.attn{number}\.(to_[a-z]+)(?:\.0)?$",
            rf"temporal_transformer.transformer_blocks.\1"
            rf".attention_blocks.{number - 1}.processor.\2",
        )
    yield table(
        "sd1_animatediff_original",
        "AnimateDiff motion LoRA for SD1 in AnimateDiff's own naming: the adapter's attention",
        (original, dotted(""), PROCESSOR),
    )


def unet_tables() -> Iterator[Table]:
    """All UNet families."""
    sd1, sdxl = unet_family("sd1", "SD1.5"), unet_family("sdxl", "SDXL")
    for it in (sd1, sdxl):
        yield from unet_basics(it)
        yield from unet_spellings(it)
    yield from motion_tables()
    sd2 = unet_family("sd2", "SD2.1")
    yield from unet_basics(sd2)
    chosen = ("attn_processor", "diffusers_2023", "lycoris_lokr", "te_without_text_model")
    yield from (t for t in unet_spellings(sd2) if t.name.removeprefix("sd2_") in chosen)
    yield from unet_basics(unet_family("sdxl_refiner", "SDXL refiner"))


# ------------------------------------------------------------------------------------------------
# Transformers: what their families have in common
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Family:
    """A model with a transformer: its class, its blocks, its trainers' names for its layers."""

    name: str
    title: str
    class_name: str
    config: dict[str, Any]
    blocks: list[BlockRule]
    native: list[Rename] = field(default_factory=lambda: [KEEP])
    trainer: str = "kohya"
    encoders: Callable[[], Modules] = tuple
    prefixes: dict[str, dict[str, str]] = field(default_factory=dict)  # of encoders, by spelling

    def everything(self) -> Modules:
        """Every weighted layer, norms and embeddings included, diffusers names."""
        return layers("denoiser", self.blocks, self.class_name, **self.config)

    def model(self) -> Modules:
        """What a LoRA adapts, diffusers names."""
        return weights_only(self.everything())

    def original(self, modules: Modules) -> Modules:
        """The names the model's authors gave."""
        return renamed(modules, self.native)

    def texts(self, spelling: str) -> Modules:
        """The text encoders' layers, if they occur in this spelling."""
        return self.encoders() if spelling in self.prefixes else ()


LARGE = 700  # modules: from there on one table lists them all, the others every third layer


def standard_tables(it: Family) -> Iterator[Table]:
    """The spellings in which every transformer occurs."""
    model, few, some = it.model(), thinned(it.model()), scattered(it.model())
    prefixes = it.prefixes

    def texts(spelling: str, style: Callable[[Mapping[str, str]], Spell], form: Form) -> Part:
        modules = it.texts(spelling)
        kept = scattered(modules) if form is dora else thinned(modules)
        return kept, style(prefixes.get(spelling, {})), form

    yield table(
        f"{it.name}_diffusers",
        f"{it.title} LoRA in diffusers/PEFT naming: all Linears and convolutions of an instantiated"
        f" {it.class_name}" + ("; text encoders: every third layer" if it.texts("diffusers") else ""),
        (model, dotted("transformer."), PEFT),
        texts("diffusers", dotted, PEFT),
    )
    trained, thin = (model, "") if len(model) < LARGE else (few, f"; {EVERY_THIRD}")
    yield table(
        f"{it.name}_{it.trainer}",
        f"{it.title} {it.trainer} LoRA: the layers of {it.name}_diffusers under the trainer's names, by rule"
        + (thin or ("; text encoders: every third layer" if it.texts("kohya") else "")),
        (it.original(trained), flat("lora_unet_"), DOWN),
        texts("kohya", flat, DOWN),
    )
    yield table(
        f"{it.name}_comfyui",
        f"{it.title} LoRA with the original module names below diffusion_model.; {EVERY_THIRD}",
        (it.original(few), dotted("diffusion_model."), PEFT),
        texts("comfyui", dotted, PEFT),
    )
    yield table(
        f"{it.name}_peft_base_model",
        f"{it.title} raw PEFT adapter file, diffusers names; {SCATTERED}",
        (some, dotted("base_model.model."), PEFT_PAIR),
    )
    yield table(
        f"{it.name}_onetrainer",
        f"{it.title} OneTrainer DoRA, diffusers names; {SCATTERED}",
        (some, flat("lora_transformer_"), dora),
        texts("onetrainer", flat, dora),
    )
    yield table(
        f"{it.name}_simpletuner",
        f"{it.title} LoKr by LyCORIS' generic wrapper, diffusers names; {SCATTERED}",
        (some, flat("lycoris_"), lokr),
    )


def comfy(**names: str) -> dict[str, str]:
    """ComfyUI's prefix for each encoder, by the name of its class there."""
    return {component: f"text_encoders.{name}.transformer." for component, name in names.items()}


# ------------------------------------------------------------------------------------------------
# Flux.1, Chroma, FLUX.2
# ------------------------------------------------------------------------------------------------

FLUX_BLOCKS: list[BlockRule] = [
    numbered("transformer_blocks", "D"),
    numbered("single_transformer_blocks", "S"),
    (r"time_\w+_embed|context_embedder|x_embedder|distilled_guidance_layer", "IN"),
    (r"double_stream_modulation_\w+|single_stream_modulation", "IN"),
    (r"norm_out|proj_out", "OUT"),
]

_DOUBLE_ATTENTION: list[Rename] = [
    (r"attn\.to_[qkv]", "img_attn.qkv"),
    (r"attn\.to_out\.0", "img_attn.proj"),
    (r"attn\.add_[qkv]_proj", "txt_attn.qkv"),
    (r"attn\.to_add_out", "txt_attn.proj"),
    (r"attn\.norm_q", "img_attn.norm.query_norm"),
    (r"attn\.norm_k", "img_attn.norm.key_norm"),
    (r"attn\.norm_added_q", "txt_attn.norm.query_norm"),
    (r"attn\.norm_added_k", "txt_attn.norm.key_norm"),
]
_AROUND_THE_STACKS: list[Rename] = [
    (r"time_\w+_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"time_\w+_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"time_\w+_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
    (r"time_\w+_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
    (r"time_\w+_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"time_\w+_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"context_embedder", "txt_in"),
    (r"x_embedder", "img_in"),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"proj_out", "final_layer.linear"),
]
_GUIDANCE = r"distilled_guidance_layer"
BFL: list[Rename] = [
    *under(
        "transformer_blocks",
        [
            (r"norm1\.linear", "img_mod.lin"),
            (r"norm1_context\.linear", "txt_mod.lin"),
            *_DOUBLE_ATTENTION,
            (r"ff\.net\.0\.proj", "img_mlp.0"),
            (r"ff\.net\.2", "img_mlp.2"),
            (r"ff_context\.net\.0\.proj", "txt_mlp.0"),
            (r"ff_context\.net\.2", "txt_mlp.2"),
        ],
        to="double_blocks",
    ),
    *under(
        "single_transformer_blocks",
        [
            (r"norm\.linear", "modulation.lin"),
            (r"attn\.to_[qkv]|proj_mlp", "linear1"),
            (r"proj_out", "linear2"),
            (r"attn\.norm_q", "norm.query_norm"),
            (r"attn\.norm_k", "norm.key_norm"),
        ],
        to="single_blocks",
    ),
    *_AROUND_THE_STACKS,
    (rf"({_GUIDANCE}\.(?:in|out)_proj)", r"\1"),
    (rf"({_GUIDANCE}\.layers\.\d)\.linear_1", r"\1.in_layer"),
    (rf"({_GUIDANCE}\.layers\.\d)\.linear_2", r"\1.out_layer"),
]
BFL2: list[Rename] = [
    *under(
        "transformer_blocks",
        [
            *_DOUBLE_ATTENTION,
            (r"ff\.linear_in", "img_mlp.0"),
            (r"ff\.linear_out", "img_mlp.2"),
            (r"ff_context\.linear_in", "txt_mlp.0"),
            (r"ff_context\.linear_out", "txt_mlp.2"),
        ],
        to="double_blocks",
    ),
    *under(
        "single_transformer_blocks",
        [(r"attn\.to_qkv_mlp_proj", "linear1"), (r"attn\.to_out", "linear2")],
        to="single_blocks",
    ),
    *_AROUND_THE_STACKS,
    (r"((?:double|single)_stream_modulation(?:_img|_txt)?)\.linear", r"\1.lin"),
]

# OMI splits BFL's fused layers into numbered parts.
_PARTS_OF_QKV = list(enumerate("qkv"))
OMI: list[Rename] = [
    *under(
        "transformer_blocks",
        [
            *((rf"attn\.to_{x}", f"img_attn.qkv.{n}") for n, x in _PARTS_OF_QKV),
            *((rf"attn\.add_{x}_proj", f"txt_attn.qkv.{n}") for n, x in _PARTS_OF_QKV),
        ],
        to="double_blocks",
    ),
    *under(
        "single_transformer_blocks",
        [
            *((rf"attn\.to_{x}", f"linear1.{n}") for n, x in _PARTS_OF_QKV),
            ("proj_mlp", "linear1.3"),
        ],
        to="single_blocks",
    ),
    (r"x_embedder", "img_in.proj"),
    *BFL,
]

# XLabs' attention processors: 1 is the image, 2 the text.
XLABS_NAMES: list[Rename] = [
    *under(
        "transformer_blocks",
        [
            (r"attn\.to_[qkv]", "processor.qkv_lora1"),
            (r"attn\.to_out\.0", "processor.proj_lora1"),
            (r"attn\.add_[qkv]_proj", "processor.qkv_lora2"),
            (r"attn\.to_add_out", "processor.proj_lora2"),
        ],
        to="double_blocks",
    ),
    *under(
        "single_transformer_blocks",
        [(r"attn\.to_[qkv]", "processor.qkv_lora"), (r"proj_out", "processor.proj_lora")],
        to="single_blocks",
    ),
]


def clip_and_t5() -> Modules:
    """Flux's text encoders, each a block."""
    return in_layers(clip_l("CLIP")) + in_layers(t5("T5"))


def only_t5() -> Modules:
    """Chroma's and PixArt's text encoder; in Chroma it is a block of its own."""
    return in_layers(t5("T5"))


FLUX = Family(
    "flux",
    "FLUX.1",
    "FluxTransformer2DModel",
    {"guidance_embeds": True},
    FLUX_BLOCKS,
    BFL,
    encoders=clip_and_t5,
    prefixes={
        "diffusers": {"clip_l": "text_encoder.", "t5": "text_encoder_2."},
        "kohya": {"clip_l": "lora_te1_", "t5": "lora_te3_"},
        "onetrainer": {"clip_l": "lora_te1_", "t5": "lora_te2_"},
        "omi": {"clip_l": "clip_l.", "t5": "t5."},
        "comfyui": comfy(clip_l="clip_l", t5="t5xxl"),
    },
)
CHROMA = Family(
    "chroma",
    "Chroma",
    "ChromaTransformer2DModel",
    {},
    FLUX_BLOCKS,
    BFL,
    encoders=only_t5,
    prefixes={
        "diffusers": {"t5": "text_encoder."},
        "kohya": {"t5": "lora_te3_"},
        "onetrainer": {"t5": "lora_te_"},
        "comfyui": comfy(t5="t5xxl"),
    },
)
_KLEIN_4B: dict[str, Any] = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
_KLEIN_9B: dict[str, Any] = {
    "num_layers": 8,
    "num_single_layers": 24,
    "num_attention_heads": 32,
    "joint_attention_dim": 12288,
    "guidance_embeds": False,
}
FLUX2 = [
    Family(name, title, "Flux2Transformer2DModel", config, FLUX_BLOCKS, BFL2, "musubi")
    for name, title, config in (
        ("flux2_dev", "FLUX.2 dev", {}),
        ("flux2_klein_4b", "FLUX.2 klein 4B", _KLEIN_4B),
        ("flux2_klein_9b", "FLUX.2 klein 9B", _KLEIN_9B),
    )
]


def control(module: Module) -> list[Tensor]:
    """BFL's control LoRA: biases on the output factor, norm scales as they are, a wide img_in."""
    if module.kind == "norm":
        return [(".scale", module.shape)]
    down = (RANK, 128) if module.path == "img_in" else module.down
    bias = (".lora_B.bias", module.shape[:1])
    return [(".lora_A.weight", down), (".lora_B.weight", module.up), bias]


def oft_split(module: Module) -> list[Tensor]:
    """kohya's OFT of a fused layer: a tensor for each part."""
    out, width = module.shape[0], module.shape[1]
    if not module.path.endswith(("qkv", "linear1")):
        return oft(module)
    sizes = [width] * 3 + [out - 3 * width] * (out > 3 * width)
    parts = [(RANK, size // RANK, size // RANK) for size in sizes]
    return [*((f".oft_blocks.{n}", part) for n, part in enumerate(parts)), (".alpha", ())]


def flux_tables() -> Iterator[Table]:
    """FLUX.1 in every spelling."""
    model, few, some = FLUX.model(), thinned(FLUX.model()), scattered(FLUX.model())
    prefixes = FLUX.prefixes
    encoders, few_encoders = clip_and_t5(), thinned(clip_and_t5())
    in_stacks = where(few, r"_blocks\.")

    yield table(
        "flux_kohya",
        "FLUX.1 kohya LoRA: all Linears under BFL names, te1 = CLIP-L, te3 = T5-XXL; every tensor",
        (FLUX.original(model), flat("lora_unet_"), KOHYA),
        (encoders, flat(prefixes["kohya"]), KOHYA),
    )
    yield table(
        "flux_diffusers",
        "FLUX.1 LoRA in diffusers/PEFT naming: all Linears of an instantiated"
        " FluxTransformer2DModel and of its encoders, text_encoder = CLIP-L,"
        " text_encoder_2 = T5-XXL; every tensor",
        (model, dotted("transformer."), PEFT_PAIR),
        (encoders, dotted(prefixes["diffusers"]), PEFT_PAIR),
    )
    yield from (t for t in standard_tables(FLUX) if t.name not in ("flux_kohya", "flux_diffusers"))
    yield table(
        "flux_fal_kontext",
        f"FLUX.1 raw PEFT adapter file with BFL names, as fal's Kontext trainer writes it; {SCATTERED}",
        (FLUX.original(some), dotted("base_model.model."), PEFT),
    )
    yield table(
        "flux_aitoolkit",
        "FLUX.1 LoRA of newer ai-toolkit versions: BFL names of the stacks below diffusion_model.",
        (FLUX.original(where(model, r"_blocks\.")), dotted("diffusion_model."), PEFT),
    )
    attention = where(model, r"_blocks\.\d+\.attn\.|single\S+\.proj_out$")
    doubles = where(attention, r"^transformer_blocks")
    for name, prefix, modules, about in (
        ("xlabs", "", doubles, "XLabs LoRA: the processors of the double blocks"),
        ("xlabs_comfyui", "diffusion_model.", doubles, "XLabs LoRA below diffusion_model."),
        ("uso", "", attention, "USO LoRA: XLabs processors of both stacks"),
    ):
        kept = weights_only(modules if name == "xlabs" else thinned(modules))
        thin = "" if name == "xlabs" else f"; {EVERY_THIRD}"
        yield table(
            f"flux_{name}",
            f"FLUX.1 {about}; 1 = image, 2 = text{thin}",
            (renamed(kept, XLABS_NAMES), dotted(prefix), XLABS),
        )
    yield table(
        "flux_sformer",
        f"FLUX.1 diffusers names in which transformer_blocks is cut to sformer_blocks; {SCATTERED}",
        (respelled(where(some, r"_blocks\."), r"^tran(?=sformer_)", ""), dotted(""), PEFT),
    )
    yield table(
        "flux_bfl_control",
        "FLUX.1 control LoRA (Canny, Depth) as BFL publishes it: every Linear with a bias, every"
        " query and key norm as an absolute scale; every tensor",
        (FLUX.original(FLUX.everything()), dotted(""), control),
    )
    yield table(
        "flux_onetrainer_omi",
        f"FLUX.1 OneTrainer file in OMI names: fused layers in numbered parts; {EVERY_THIRD}",
        (renamed(few, OMI), dotted("transformer."), DOWN),
        (few_encoders, dotted(prefixes["omi"]), DOWN),
    )
    yield table(
        "flux_lokr_bfl",
        f"FLUX.1 LoKr with BFL names below diffusion_model.; {SCATTERED}",
        (FLUX.original(some), dotted("diffusion_model."), lokr),
    )
    yield table(
        "flux_oft",
        f"FLUX.1 kohya OFT of the stacks, a tensor for each part of a fused layer; {SCATTERED}",
        (FLUX.original(in_stacks)[::5], flat("oft_unet_"), oft_split),
    )
    yield table(
        "flux_diffsynth",
        f"FLUX.1 DiffSynth LoRA: bare diffusers names with an adapter name; {SCATTERED}",
        (in_stacks[::5], dotted(""), PEFT_DEFAULT),
    )
    yield table(
        "flux_te_without_text_model",
        "FLUX.1 CLIP-L without the text_model level that transformers 5 dropped, in diffusers and"
        f" kohya spelling; {EVERY_THIRD}, few of the transformer's",
        (some, dotted("transformer."), PEFT),
        (without_text_model(few_encoders), dotted(prefixes["diffusers"]), PEFT),
        (without_text_model(few_encoders), flat(prefixes["kohya"]), DOWN),
    )
    for family in (CHROMA, *FLUX2):
        yield from standard_tables(family)
    yield table(
        "flux2_dev_sformer",
        f"FLUX.2 dev names in which transformer_blocks is cut to sformer_blocks; {EVERY_THIRD}",
        (
            respelled(where(thinned(FLUX2[0].model()), r"^transformer_"), r"^tran", ""),
            dotted("diffusion_model."),
            PEFT,
        ),
    )
    fused = [
        (r"(.+\.attn)\.to_[qkv]", r"\1.to_qkv"),
        (r"(.+\.attn)\.add_[qkv]_proj", r"\1.to_added_qkv"),
        KEEP,
    ]
    yield table(
        "flux2_klein_4b_fused",
        "FLUX.2 klein 4B LyCORIS file of a model whose projections were fused before training",
        (renamed(FLUX2[1].model(), fused), flat("lycoris_"), DOWN),
    )


# ------------------------------------------------------------------------------------------------
# The other transformers: each with its blocks and its original module names
# ------------------------------------------------------------------------------------------------


def pair(old: str, new: str, names: tuple[str, str] = ("0", "2")) -> list[Rename]:
    """A two-layer embedder: diffusers calls the layers linear_1 and linear_2."""
    return [(rf"{old}\.linear_{n}", f"{new}.{name}") for n, name in enumerate(names, 1)]


# --- SD3 -----------------------------------------------------------------------------------------

SD3_BLOCKS: list[BlockRule] = [
    numbered("transformer_blocks", "J"),
    (r"pos_embed|time_text_embed|context_embedder", "IN"),
    (r"norm_out|proj_out", "OUT"),
]
SD3_NAMES: list[Rename] = [
    *under(
        "transformer_blocks",
        [
            (r"norm1\.linear", "x_block.adaLN_modulation.1"),
            (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
            (r"(attn2?)\.to_[qkv]", r"x_block.\1.qkv"),
            (r"(attn2?)\.to_out\.0", r"x_block.\1.proj"),
            (r"attn\.add_[qkv]_proj", "context_block.attn.qkv"),
            (r"attn\.to_add_out", "context_block.attn.proj"),
            (r"ff\.net\.0\.proj", "x_block.mlp.fc1"),
            (r"ff\.net\.2", "x_block.mlp.fc2"),
            (r"ff_context\.net\.0\.proj", "context_block.mlp.fc1"),
            (r"ff_context\.net\.2", "context_block.mlp.fc2"),
        ],
        to="joint_blocks",
    ),
    (r"pos_embed\.proj", "x_embedder.proj"),
    *pair(r"time_text_embed\.timestep_embedder", "t_embedder.mlp"),
    *pair(r"time_text_embed\.text_embedder", "y_embedder.mlp"),
    (r"context_embedder", "context_embedder"),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"proj_out", "final_layer.linear"),
]


def sd3_encoders() -> Modules:
    """SD3's three encoders, each a block."""
    return in_layers(clip_l("CLIP_L")) + in_layers(clip_g("CLIP_G")) + in_layers(t5("T5"))


_SD3_NUMBERED = {"clip_l": "lora_te1_", "clip_g": "lora_te2_", "t5": "lora_te3_"}
_SD3_PREFIXES = {
    "diffusers": {"clip_l": "text_encoder.", "clip_g": "text_encoder_2.", "t5": "text_encoder_3."},
    "kohya": _SD3_NUMBERED,
    "onetrainer": _SD3_NUMBERED,
    "comfyui": comfy(clip_l="clip_l", clip_g="clip_g", t5="t5xxl"),
}

# --- HunyuanVideo, HunyuanImage, Hunyuan-DiT ------------------------------------------------------

_HUNYUAN_DOUBLE: list[Rename] = [
    (r"norm1\.linear", "img_mod.linear"),
    (r"norm1_context\.linear", "txt_mod.linear"),
    (r"attn\.to_[qkv]", "img_attn_qkv"),
    (r"attn\.to_out\.0", "img_attn_proj"),
    (r"attn\.add_[qkv]_proj", "txt_attn_qkv"),
    (r"attn\.to_add_out", "txt_attn_proj"),
    (r"ff\.net\.0\.proj", "img_mlp.fc1"),
    (r"ff\.net\.2", "img_mlp.fc2"),
    (r"ff_context\.net\.0\.proj", "txt_mlp.fc1"),
    (r"ff_context\.net\.2", "txt_mlp.fc2"),
]
HUNYUAN_NAMES: list[Rename] = [
    *under("transformer_blocks", _HUNYUAN_DOUBLE, to="double_blocks"),
    *under(
        "single_transformer_blocks",
        [
            (r"norm\.linear", "modulation.linear"),
            (r"attn\.to_[qkv]|proj_mlp", "linear1"),
            (r"proj_out", "linear2"),
        ],
        to="single_blocks",
    ),
    *under(
        "context_embedder.token_refiner.refiner_blocks",
        [
            (r"attn\.to_[qkv]", "self_attn_qkv"),
            (r"attn\.to_out\.0", "self_attn_proj"),
            (r"ff\.net\.0\.proj", "mlp.fc1"),
            (r"ff\.net\.2", "mlp.fc2"),
            (r"norm_out\.linear", "adaLN_modulation.1"),
        ],
        to="txt_in.individual_token_refiner.blocks",
    ),
    (r"x_embedder\.proj", "img_in.proj"),
    (r"context_embedder\.proj_in", "txt_in.input_embedder"),
    *pair(r"context_embedder\.time_text_embed\.timestep_embedder", "txt_in.t_embedder.mlp"),
    (r"context_embedder\.time_text_embed\.text_embedder(\.linear_\d)", r"txt_in.c_embedder\1"),
    (r"context_embedder_2\.linear_(\d)", r"byt5_in.fc\1"),
    *pair(r"image_embedder", "vision_in.proj", ("1", "3")),
    *pair(r"time\w*_embed\.timestep_embedder", "time_in.mlp"),
    *pair(r"time\w*_embed\.guidance_embedder", "guidance_in.mlp"),
    *pair(r"time_text_embed\.text_embedder", "vector_in", ("in_layer", "out_layer")),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"proj_out", "final_layer.linear"),
]
# HunyuanVideo 1.5 keeps the three projections of its stack apart.
HUNYUAN_SPLIT_NAMES: list[Rename] = [
    *under(
        "transformer_blocks",
        [
            (r"attn\.to_([qkv])", r"img_attn_\1"),
            (r"attn\.add_([qkv])_proj", r"txt_attn_\1"),
            *_HUNYUAN_DOUBLE,
        ],
        to="double_blocks",
    ),
    *HUNYUAN_NAMES,
]
# ComfyUI renames HunyuanVideo's layers after Flux's.
HUNYUAN_AS_FLUX: list[Rename] = [
    (r"(.+)\.(img|txt)_attn_(qkv|proj)", r"\1.\2_attn.\3"),
    (r"(.+)\.self_attn_(qkv|proj)", r"\1.self_attn.\2"),
    (r"(.+mlp)\.fc1", r"\1.0"),
    (r"(.+mlp)\.fc2", r"\1.2"),
    (r"(.+(?:_mod|modulation))\.linear", r"\1.lin"),
    (r"((?:time|guidance)_in|txt_in\.t_embedder)\.mlp\.0", r"\1.in_layer"),
    (r"((?:time|guidance)_in|txt_in\.t_embedder)\.mlp\.2", r"\1.out_layer"),
    (r"txt_in\.c_embedder\.linear_1", r"txt_in.c_embedder.in_layer"),
    (r"txt_in\.c_embedder\.linear_2", r"txt_in.c_embedder.out_layer"),
    KEEP,
]
HUNYUAN_BLOCKS: list[BlockRule] = [
    numbered("transformer_blocks", "D"),
    numbered("single_transformer_blocks", "S"),
    (r"x_embedder|(?:context|image)_embedder(?:_2)?|time\w*_embed|cond_type_embed", "IN"),
    (r"norm_out|proj_out", "OUT"),
]


def llama_and_clip() -> Modules:
    """HunyuanVideo's two encoders, each a block."""
    return llama() + in_layers(clip_l("CLIP"))


HUNYUAN_DIT_NAMES: list[Rename] = [
    *under(
        "blocks",
        [
            (r"norm1\.linear", "default_modulation.1"),
            (r"attn1\.to_[qkv]", "attn1.Wqkv"),
            (r"attn2\.to_q", "attn2.q_proj"),
            (r"attn2\.to_[kv]", "attn2.kv_proj"),
            (r"(attn[12])\.to_out\.0", r"\1.out_proj"),
            (r"ff\.net\.0\.proj", "mlp.fc1"),
            (r"ff\.net\.2", "mlp.fc2"),
            (r"skip_linear", "skip_linear"),
        ],
    ),
    *pair(r"text_embedder", "mlp_t5"),
    (r"pos_embed\.proj", "x_embedder.proj"),
    *pair(r"time_extra_emb\.timestep_embedder", "t_embedder.mlp"),
    (r"time_extra_emb\.(pooler\.\w+)", r"\1"),
    *pair(r"time_extra_emb\.extra_embedder", "extra_embedder"),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"proj_out", "final_layer.linear"),
]

# --- Wan, LTX-Video, Cosmos, Krea 2 --------------------------------------------------------------

WAN_BLOCKS: list[BlockRule] = [
    numbered("blocks", "B"),
    (r"\w*patch_embedding|condition_embedder|fps_\w+|(?:face|motion)_encoder", "IN"),
    (r"norm_out|proj_out", "OUT"),
]
_WAN_LAYERS: list[Rename] = [
    (r"attn1\.to_([qkv])", r"self_attn.\1"),
    (r"attn1\.to_out\.0", "self_attn.o"),
    (r"attn1\.(norm_[qk])", r"self_attn.\1"),
    (r"attn2\.to_([qkv])", r"cross_attn.\1"),
    (r"attn2\.to_out\.0", "cross_attn.o"),
    (r"attn2\.(norm_[qk])", r"cross_attn.\1"),
    (r"attn2\.add_([kv])_proj", r"cross_attn.\1_img"),
    (r"ffn\.net\.0\.proj", "ffn.0"),
    (r"ffn\.net\.2", "ffn.2"),
    (r"norm2", "norm3"),
]
WAN_NAMES: list[Rename] = [
    *under("blocks", _WAN_LAYERS),
    *under("vace_blocks", [*_WAN_LAYERS, (r"proj_in", "before_proj"), (r"proj_out", "after_proj")]),
    (r"face_adapter\.(\d)\.to_q", r"face_adapter.fuser_blocks.\1.linear1_q"),
    (r"face_adapter\.(\d)\.to_[kv]", r"face_adapter.fuser_blocks.\1.linear1_kv"),
    (r"face_adapter\.(\d)\.to_out", r"face_adapter.fuser_blocks.\1.linear2"),
    (r"((?:vace_|pose_)?patch_embedding)", r"\1"),
    *pair(r"condition_embedder\.time_embedder", "time_embedding"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    *pair(r"condition_embedder\.text_embedder", "text_embedding"),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"proj_out", "head.head"),
]
LTX_NAMES: list[Rename] = [
    (r"proj_in", "patchify_proj"),
    (r"time_embed\.(.+)", r"adaln_single.\1"),
    KEEP,
]
LTX_2_NAMES: list[Rename] = [
    (r"((?:audio_)?)proj_in", r"\1patchify_proj"),
    (r"((?:audio_)?)time_embed\.(.+)", r"\1adaln_single.\2"),
    (r"((?:audio_)?)prompt_adaln\.(.+)", r"\1prompt_adaln_single.\2"),
    (r"av_cross_attn_(video|audio)_scale_shift\.(.+)", r"av_ca_\1_scale_shift_adaln_single.\2"),
    (r"av_cross_attn_(?:video|audio)_(a2v|v2a)_gate\.(.+)", r"av_ca_\1_gate_adaln_single.\2"),
    (r"(.+\.\w*attn\d?)\.norm_([qk])", r"\1.\2_norm"),
    KEEP,
]
LTX_2_CONNECTOR_NAMES: list[Rename] = [
    (r"(video|audio)_connector\.transformer_blocks\.(.+)", r"\1_embeddings_connector.transformer_1d_blocks.\2"),
    (r"text_proj_in", "text_embedding_projection.aggregate_embed"),
]
COSMOS_BLOCKS: list[BlockRule] = [
    numbered("transformer_blocks", "B"),
    (r"patch_embed|time_embed|learnable_pos_embed|crossattn_proj|img_context_proj", "IN"),
    (r"norm_out|proj_out", "OUT"),
]
COSMOS_NAMES: list[Rename] = [
    *under(
        "transformer_blocks",
        [
            (r"attn1\.to_([qkv])", r"self_attn.\1_proj"),
            (r"attn1\.to_out\.0", "self_attn.output_proj"),
            (r"attn2\.to_([qkv])", r"cross_attn.\1_proj"),
            (r"attn2\.to_out\.0", "cross_attn.output_proj"),
            (r"ff\.net\.0\.proj", "mlp.layer1"),
            (r"ff\.net\.2", "mlp.layer2"),
            (r"norm1\.linear_(\d)", r"adaln_modulation_self_attn.\1"),
            (r"norm2\.linear_(\d)", r"adaln_modulation_cross_attn.\1"),
            (r"norm3\.linear_(\d)", r"adaln_modulation_mlp.\1"),
        ],
        to="blocks",
    ),
    (r"patch_embed\.proj", "x_embedder.proj.1"),
    (r"time_embed\.t_embedder\.(linear_\d)", r"t_embedder.1.\1"),
    (r"norm_out\.linear_(\d)", r"final_layer.adaln_modulation.\1"),
    (r"proj_out", "final_layer.linear"),
]
ANIMA_ADAPTER_BLOCKS: list[BlockRule] = [numbered("blocks", "A"), (r"embed|out_proj|norm", "IN")]
_KREA2_LAYERS: list[Rename] = [
    (r"attn\.to_([qkv])", r"attn.w\1"),
    (r"attn\.to_out\.0", "attn.wo"),
    (r"attn\.to_gate", "attn.gate"),
    (r"ff\.(gate|up|down)", r"mlp.\1"),
]
KREA2_NAMES: list[Rename] = [
    *under("transformer_blocks", _KREA2_LAYERS, to="blocks"),
    *under("text_fusion.layerwise_blocks", _KREA2_LAYERS, to="txtfusion.layerwise_blocks"),
    *under("text_fusion.refiner_blocks", _KREA2_LAYERS, to="txtfusion.refiner_blocks"),
    (r"text_fusion\.projector", "txtfusion.projector"),
    (r"img_in", "first"),
    *pair(r"time_embed", "tmlp"),
    (r"time_mod_proj", "tproj.1"),
    *pair(r"txt_in", "txtmlp", ("1", "3")),
    (r"final_layer\.linear", "last.linear"),
]

# --- Lumina 2, Z-Image, PixArt, AuraFlow ----------------------------------------------------------

REFINER_BLOCKS: list[BlockRule] = [
    numbered("layers", "L"),
    numbered("noise_refiner", "NR"),
    numbered("context_refiner", "CR"),
    (r"x_embedder|time_caption_embed|all_x_embedder|t_embedder|cap_embedder|siglip_\w+", "IN"),
    (r"norm_out|all_final_layer", "OUT"),
]
_LUMINA2_LAYERS: list[Rename] = [
    (r"attn\.to_[qkv]", "attention.qkv"),
    (r"attn\.to_out\.0", "attention.out"),
    (r"feed_forward\.linear_(\d)", r"feed_forward.w\1"),
    (r"norm1\.linear", "adaLN_modulation.1"),
]
LUMINA2_NAMES: list[Rename] = [
    *under("layers", _LUMINA2_LAYERS),
    *under("noise_refiner", _LUMINA2_LAYERS),
    *under("context_refiner", _LUMINA2_LAYERS),
    (r"x_embedder", "x_embedder"),
    *pair(r"time_caption_embed\.timestep_embedder", "t_embedder.mlp"),
    (r"time_caption_embed\.caption_embedder\.1", "cap_embedder.1"),
    (r"norm_out\.linear_1", "final_layer.adaLN_modulation.1"),
    (r"norm_out\.linear_2", "final_layer.linear"),
]
# musubi-tuner trains with diffusers' layers; ComfyUI and the authors fuse the projections.
Z_IMAGE_TRAINER: list[Rename] = [
    (r"all_x_embedder\.2-1", "x_embedder"),
    (r"all_final_layer\.2-1\.(.+)", r"final_layer.\1"),
    KEEP,
]
Z_IMAGE_NAMES: list[Rename] = [
    (r"(.+\.attention)\.to_[qkv]", r"\1.qkv"),
    (r"(.+\.attention)\.to_out\.0", r"\1.out"),
    *Z_IMAGE_TRAINER,
]
PIXART_NAMES: list[Rename] = [
    *under(
        "transformer_blocks",
        [
            (r"attn1\.to_[qkv]", "attn.qkv"),
            (r"attn1\.to_out\.0", "attn.proj"),
            (r"attn2\.to_q", "cross_attn.q_linear"),
            (r"attn2\.to_[kv]", "cross_attn.kv_linear"),
            (r"attn2\.to_out\.0", "cross_attn.proj"),
            (r"ff\.net\.0\.proj", "mlp.fc1"),
            (r"ff\.net\.2", "mlp.fc2"),
        ],
        to="blocks",
    ),
    (r"pos_embed\.proj", "x_embedder.proj"),
    *pair(r"adaln_single\.emb\.timestep_embedder", "t_embedder.mlp"),
    (r"adaln_single\.linear", "t_block.1"),
    *pair(r"caption_projection", "y_embedder.y_proj", ("fc1", "fc2")),
    (r"proj_out", "final_layer.linear"),
]


def _aura_mlp(old: str, new: str) -> list[Rename]:
    return [
        (rf"{old}\.linear_(\d)", rf"{new}.c_fc\1"),
        (rf"{old}\.out_projection", f"{new}.c_proj"),
    ]


AURAFLOW_NAMES: list[Rename] = [
    *under(
        "joint_transformer_blocks",
        [
            (r"norm1\.linear", "modX.1"),
            (r"norm1_context\.linear", "modC.1"),
            (r"attn\.to_([qkv])", r"attn.w2\1"),
            (r"attn\.to_out\.0", "attn.w2o"),
            (r"attn\.add_([qkv])_proj", r"attn.w1\1"),
            (r"attn\.to_add_out", "attn.w1o"),
            *_aura_mlp("ff", "mlpX"),
            *_aura_mlp("ff_context", "mlpC"),
        ],
        to="double_layers",
    ),
    *under(
        "single_transformer_blocks",
        [
            (r"norm1\.linear", "modCX.1"),
            (r"attn\.to_([qkv])", r"attn.w1\1"),
            (r"attn\.to_out\.0", "attn.w1o"),
            *_aura_mlp("ff", "mlp"),
        ],
        to="single_layers",
    ),
    (r"pos_embed\.proj", "init_x_linear"),
    (r"context_embedder", "cond_seq_linear"),
    *pair(r"time_step_proj", "t_embedder.mlp"),
    (r"norm_out\.linear", "modF.1"),
    (r"proj_out", "final_linear"),
]

# ------------------------------------------------------------------------------------------------
# The table of families
# ------------------------------------------------------------------------------------------------

_WAN = "WanTransformer3DModel"
_WAN_SMALL = {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960}
_WAN_5B = {
    "num_layers": 30,
    "num_attention_heads": 24,
    "ffn_dim": 14336,
    "in_channels": 48,
    "out_channels": 48,
}
_WAN_IMAGE = {"image_dim": 1280, "added_kv_proj_dim": 5120}
_LTX = "LTXVideoTransformer3DModel"
_LTX_13B = {"num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096}
_COSMOS: dict[str, Any] = {
    "in_channels": 16,
    "num_attention_heads": 16,
    "text_embed_dim": 1024,
    "extra_pos_embed_type": None,
}
_COSMOS_2_5 = {"use_crossattn_projection": True, "crossattn_proj_in_channels": 100352, "img_context_dim_in": 1152}
_LTX_BLOCKS: list[BlockRule] = [
    numbered("transformer_blocks", "B"),
    (r"proj_in|time_embed|caption_projection", "IN"),
    (r"proj_out", "OUT"),
]
# LTX-2.3: gated attention, and a modulation by the prompt in place of the projection of the caption.
_LTX_2_3 = {
    "gated_attn": True,
    "audio_gated_attn": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
}
_LTX_2_BLOCKS: list[BlockRule] = [
    numbered("transformer_blocks", "B"),
    (r"(?:audio_)?(?:proj_in|time_embed|caption_projection|prompt_adaln)|av_cross_attn_\w+", "IN"),
    (r"(?:audio_)?proj_out", "OUT"),
]
# FLUX.3 has a stack of its own for text and for each mode; the names are those its LoRA loader converts.
_FLUX3_LAYERS: list[Rename] = [
    (r"attn\.to_([qkv])", r"\1_proj"),
    (r"attn\.to_out\.0", "attn_out"),
    (r"ff\.linear_in", "mlp_in"),
    (r"ff\.linear_out", "mlp_out"),
]
FLUX3_NAMES: list[Rename] = [
    *under("single_transformer_blocks", _FLUX3_LAYERS, to="single_blocks"),
    *under("txt_mode_blocks", _FLUX3_LAYERS),
    *under("mode_blocks.image", _FLUX3_LAYERS, to="content_mode_blocks.image"),
    *under("mode_blocks.image_cond", _FLUX3_LAYERS, to="content_mode_blocks.image_cond"),
    KEEP,
]
IDEOGRAM4_NAMES: list[Rename] = [
    (r"(.+\.attention)\.to_[qkv]", r"\1.qkv"),
    (r"(.+\.attention)\.to_out\.0", r"\1.o"),
    KEEP,
]

FAMILIES: list[Family] = [
    Family(
        "sd3",
        "SD3.5 medium (SD3 medium lacks attn2)",
        "SD3Transformer2DModel",
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": tuple(range(13)),
        },
        SD3_BLOCKS,
        SD3_NAMES,
        encoders=sd3_encoders,
        prefixes=_SD3_PREFIXES,
    ),
    Family(
        "sd3_large",
        "SD3.5 large",
        "SD3Transformer2DModel",
        {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
        SD3_BLOCKS,
        SD3_NAMES,
    ),
    Family(
        "hunyuan_video",
        "HunyuanVideo",
        "HunyuanVideoTransformer3DModel",
        {},
        HUNYUAN_BLOCKS,
        HUNYUAN_NAMES,
        "musubi",
        encoders=llama_and_clip,
        prefixes={
            "diffusers": {"llama": "text_encoder.", "clip_l": "text_encoder_2."},
            "onetrainer": {"llama": "lora_te1_", "clip_l": "lora_te2_"},
        },
    ),
    Family(
        "hunyuan_video_1_5",
        "HunyuanVideo 1.5",
        "HunyuanVideo15Transformer3DModel",
        {},
        HUNYUAN_BLOCKS,
        HUNYUAN_SPLIT_NAMES,
        "musubi",
    ),
    Family(
        "hunyuan_image",
        "HunyuanImage 2.1",
        "HunyuanImageTransformer2DModel",
        {"text_embed_2_dim": 1472},
        HUNYUAN_BLOCKS,
        HUNYUAN_NAMES,
    ),
    Family(
        "hunyuan_dit",
        "Hunyuan-DiT 1.1",
        "HunyuanDiT2DModel",
        {
            "num_layers": 40,
            "num_attention_heads": 16,
            "attention_head_dim": 88,
            "hidden_size": 1408,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 128,
            "mlp_ratio": 4.3637,
            "activation_fn": "gelu-approximate",
            "cross_attention_dim": 1024,
            "pooled_projection_dim": 1024,
        },
        [
            numbered("blocks", "B"),
            (r"text_embedder|pos_embed|time_extra_emb", "IN"),
            (r"norm_out|proj_out", "OUT"),
        ],
        HUNYUAN_DIT_NAMES,
        encoders=bert_and_mt5,
        prefixes={
            "diffusers": {"bert": "text_encoder.", "mt5": "text_encoder_2."},
            "kohya": {"bert": "lora_te1_", "mt5": "lora_te2_"},
        },
    ),
    Family("wan_14b", "Wan 2.1/2.2 14B", _WAN, {}, WAN_BLOCKS, WAN_NAMES, "musubi"),
    Family("wan_5b", "Wan 2.2 TI2V 5B", _WAN, _WAN_5B, WAN_BLOCKS, WAN_NAMES, "musubi"),
    Family("wan_1_3b", "Wan 2.1 1.3B", _WAN, _WAN_SMALL, WAN_BLOCKS, WAN_NAMES, "musubi"),
    Family("ltx_2b", "LTX-Video 2B", _LTX, {}, _LTX_BLOCKS, LTX_NAMES),
    Family("ltx_13b", "LTX-Video 13B", _LTX, _LTX_13B, _LTX_BLOCKS, LTX_NAMES),
    Family("ltx_2", "LTX-2", "LTX2VideoTransformer3DModel", {}, _LTX_2_BLOCKS, LTX_2_NAMES),
    Family(
        "flux3",
        "FLUX.3",
        "Flux3Transformer2DModel",
        {},
        [
            (r"(?:mode_blocks\.\w+|txt_mode_blocks)\.(\d+)", lambda at: f"D{at:02}"),
            numbered("single_transformer_blocks", "S"),
            (r"\w+_stream_modulations|x_embedders|context_embedder|timestep_embedder", "IN"),
            (r"norm_out|proj_out", "OUT"),
        ],
        FLUX3_NAMES,
    ),
    Family(
        "ideogram4",
        "Ideogram 4",
        "Ideogram4Transformer2DModel",
        {},
        [
            numbered("layers", "L"),
            (r"input_proj|llm_cond_\w+|t_embedding|adaln_proj|embed_image_indicator", "IN"),
            (r"final_layer", "OUT"),
        ],
        IDEOGRAM4_NAMES,
    ),
    Family(
        "qwen_image_2_1",
        "Qwen-Image 2.1",
        "QwenImage21Transformer2DModel",
        {},
        [
            numbered("transformer_blocks", "B"),
            (r"time_text_embed|img_in|txt_in|modulation", "IN"),
            (r"norm_out|proj_out", "OUT"),
        ],
    ),
    Family(
        "qwen_image",
        "Qwen-Image",
        "QwenImageTransformer2DModel",
        {},
        [
            numbered("transformer_blocks", "B"),
            (r"time_text_embed|img_in|txt_in|txt_norm", "IN"),
            (r"norm_out|proj_out", "OUT"),
        ],
        trainer="musubi",
    ),
    Family(
        "lumina2",
        "Lumina Image 2",
        "Lumina2Transformer2DModel",
        {"cap_feat_dim": 2304},
        REFINER_BLOCKS,
        LUMINA2_NAMES,
        encoders=gemma,
        prefixes={
            "diffusers": {"gemma": "text_encoder."},
            "kohya": {"gemma": "lora_te_"},
            "comfyui": {"gemma": "text_encoders.gemma2_2b.transformer.model."},
        },
    ),
    Family(
        "z_image",
        "Z-Image",
        "ZImageTransformer2DModel",
        {},
        REFINER_BLOCKS,
        Z_IMAGE_TRAINER,
        "musubi",
        encoders=qwen_4b,
        prefixes={"diffusers": {"qwen": "text_encoder."}, "onetrainer": {"qwen": "lora_te_"}},
    ),
    Family(
        "pixart",
        "PixArt",
        "PixArtTransformer2DModel",
        {"caption_channels": 4096, "use_additional_conditions": False},
        [
            numbered("transformer_blocks", "B"),
            (r"pos_embed|adaln_single|caption_projection", "IN"),
            (r"proj_out", "OUT"),
        ],
        PIXART_NAMES,
        encoders=lambda: tuple(replace(m, block="TE") for m in only_t5()),
        prefixes={"diffusers": {"t5": "text_encoder."}, "onetrainer": {"t5": "lora_te_"}},
    ),
    Family(
        "auraflow",
        "AuraFlow",
        "AuraFlowTransformer2DModel",
        {},
        [
            numbered("joint_transformer_blocks", "D"),
            numbered("single_transformer_blocks", "S"),
            (r"pos_embed|context_embedder|time_step_proj", "IN"),
            (r"norm_out|proj_out", "OUT"),
        ],
        AURAFLOW_NAMES,
    ),
    Family(
        "hidream",
        "HiDream-I1",
        "HiDreamImageTransformer2DModel",
        {
            "patch_size": 2,
            "in_channels": 16,
            "caption_channels": (4096, 4096),
            "llama_layers": tuple(range(48)),
        },
        [
            numbered("double_stream_blocks", "D"),
            numbered("single_stream_blocks", "S"),
            (r"[tpx]_embedder|caption_projection", "IN"),
            (r"final_layer", "OUT"),
        ],
    ),
    Family(
        "cosmos",
        "Cosmos-Predict2 2B",
        "CosmosTransformer3DModel",
        _COSMOS,
        COSMOS_BLOCKS,
        COSMOS_NAMES,
    ),
    Family(
        "krea2",
        "Krea 2",
        "Krea2Transformer2DModel",
        {},
        [
            numbered("transformer_blocks", "B"),
            (r"img_in|time_embed|time_mod_proj|text_fusion|txt_in", "IN"),
            (r"final_layer", "OUT"),
        ],
        KREA2_NAMES,
        "musubi",
    ),
]
BY_NAME = {family.name: family for family in FAMILIES}

# ------------------------------------------------------------------------------------------------
# Tables of the other transformers: the standard ones, then each family's own
# ------------------------------------------------------------------------------------------------


def other_tables() -> Iterator[Table]:
    """All families but the UNets and Flux's relatives."""
    for family in FAMILIES:
        yield from standard_tables(family)
    yield from anima_tables()
    yield from wan_tables()
    yield from hunyuan_tables()
    yield from z_image_tables()
    yield from qwen_image_tables()
    yield from cascade_tables()

    pixart = BY_NAME["pixart"]
    yield table(
        "pixart_peft_unet",
        f"PixArt raw PEFT file with the prefix unet. although it is a transformer; {EVERY_THIRD}",
        (thinned(pixart.model()), dotted("unet.base_model.model."), PEFT),
    )
    krea2 = BY_NAME["krea2"]
    yield table(
        "krea2_simpletuner_fused",
        f"Krea 2 SimpleTuner LoKr with fused projections; {EVERY_THIRD}",
        (
            renamed(thinned(krea2.model()), [(r"(.+\.attn)\.to_[qkv]", r"\1.to_qkv"), KEEP])[::3],
            flat("lycoris_"),
            lokr,
        ),
    )
    yield table(
        "krea2_aitoolkit",
        f"Krea 2 ai-toolkit LoRA: original names below base_model.model.; {EVERY_THIRD}",
        (krea2.original(thinned(krea2.model())), dotted("base_model.model."), PEFT),
    )
    ltx_2 = BY_NAME["ltx_2"]
    yield table(
        "ltx_2_gated",
        f"LTX-2.3 LoRA with the original names below diffusion_model.: gates, no caption projection; {EVERY_THIRD}",
        (ltx_2.original(thinned(replace(ltx_2, config=_LTX_2_3).model())), dotted("diffusion_model."), PEFT),
    )
    connectors = weights_only(layers("denoiser", [(r".+", "IN")], "pipelines.ltx2.LTX2TextConnectors"))
    native = renamed(connectors, LTX_2_CONNECTOR_NAMES)
    yield table(
        "ltx_2_connectors",
        f"LTX-2 LoRA with the small transformers that bring the text, in diffusers naming; {EVERY_THIRD}",
        (thinned(ltx_2.model()), dotted("transformer."), PEFT),
        (connectors, dotted("connectors."), PEFT),
    )
    yield table(
        "ltx_2_comfyui_connectors",
        f"LTX-2 LoRA with the small transformers that bring the text, original names; {EVERY_THIRD}",
        (ltx_2.original(thinned(ltx_2.model())), dotted("diffusion_model."), PEFT),
        (where(native, r"connector"), dotted("diffusion_model."), PEFT),
        (where(native, r"^text_embedding"), dotted(""), PEFT),
    )
    cosmos_2_5 = replace(BY_NAME["cosmos"], config={**_COSMOS, **_COSMOS_2_5})
    yield table(
        "cosmos_predict2_5",
        f"Cosmos-Predict2.5 2B LoRA in diffusers naming: projections of text and picture; {EVERY_THIRD}",
        (thinned(cosmos_2_5.model()), dotted("transformer."), PEFT),
    )
    for name in ("auraflow", "hidream", "ltx_2b"):
        family = BY_NAME[name]
        yield table(
            f"{name}_diffsynth",
            f"{family.title} bare diffusers names with an adapter name; {SCATTERED}",
            (scattered(family.model()), dotted(""), PEFT_DEFAULT),
        )


def anima_tables() -> Iterator[Table]:
    """Anima: Cosmos, and six layers of its own that read the prompt."""
    cosmos = BY_NAME["cosmos"]
    model, few, texts = cosmos.model(), thinned(cosmos.model()), thinned(qwen_06b())
    adapter = weights_only(layers("adapter", ANIMA_ADAPTER_BLOCKS, "AnimaTextConditioner"))
    native_adapter = respelled(adapter, r"^", "llm_adapter.")
    title = "with its text adapter (an instantiated AnimaTextConditioner) and Qwen3 0.6B"
    yield table(
        "anima_diffusers",
        f"Anima LoRA in diffusers naming, {title}, of which every third layer",
        (model, dotted("transformer."), PEFT),
        (adapter, dotted("text_conditioner."), PEFT),
        (texts, dotted("text_encoder."), PEFT),
    )
    yield table(
        "anima_kohya",
        f"Anima kohya LoRA, {title}, of which every third layer",
        (cosmos.original(model), flat("lora_unet_"), DOWN),
        (native_adapter, flat("lora_unet_"), DOWN),
        (texts, flat("lora_te_"), DOWN),
    )
    yield table(
        "anima_comfyui",
        f"Anima LoRA with the original names below diffusion_model., {title}; {EVERY_THIRD}",
        (cosmos.original(few), dotted("diffusion_model."), PEFT),
        (thinned(native_adapter), dotted("diffusion_model."), PEFT),
        (texts, dotted("text_encoders.qwen3_06b.transformer.model."), PEFT),
    )


def wan_tables() -> Iterator[Table]:
    """Wan's oddities."""
    it = BY_NAME["wan_14b"]
    image = replace(it, config=_WAN_IMAGE)
    few, with_image = thinned(it.model()), thinned(image.model())
    yield table(
        "wan_14b_comfyui_i2v",
        f"Wan 2.1 I2V 14B LoRA with the original names: k_img, v_img, img_emb; {EVERY_THIRD}",
        (it.original(with_image), dotted("diffusion_model."), DOWN),
    )
    yield table(
        "wan_14b_musubi_i2v",
        f"Wan 2.1 I2V 14B musubi LoRA: k_img, v_img, img_emb; {EVERY_THIRD}",
        (it.original(with_image), flat("lora_unet_"), DOWN),
    )
    yield table(
        "wan_14b_diffusers_i2v",
        f"Wan 2.1 I2V 14B LoRA in diffusers naming: add_k_proj, add_v_proj; {EVERY_THIRD}",
        (with_image, dotted("transformer."), PEFT),
    )
    yield table(
        "wan_14b_double_underscore",
        f"Wan Fun LoRA: two underscores after the prefix; {EVERY_THIRD}",
        (it.original(where(few, r"^blocks\.")), flat("lora_unet__"), KOHYA),
    )
    yield table(
        "wan_14b_diffsynth",
        f"Wan 14B DiffSynth LoRA: bare original names with an adapter name; {EVERY_THIRD}",
        (it.original(where(few, r"^blocks\.")), dotted(""), PEFT_DEFAULT),
    )
    norms = thinned(m for m in it.everything() if m.kind == "norm" and m.path.startswith("blocks."))
    yield table(
        "wan_14b_distilled",
        "Wan 14B distillation LoRA: factors and bias differences of Linears, full differences of"
        f" the norms and the patch embedding; {EVERY_THIRD}",
        (it.original(where(few, r"^(?!patch_embedding)")), dotted("diffusion_model."), distilled),
        (it.original(norms), dotted("diffusion_model."), difference),
        (it.original(where(few, r"^patch_embedding")), dotted("diffusion_model."), difference),
    )
    for name, step, config in (
        ("wan_14b", 5, {}),
        ("wan_1_3b", 2, {**_WAN_SMALL, "vace_layers": tuple(range(0, 30, 2))}),
    ):
        vace = replace(
            BY_NAME[name],
            class_name="WanVACETransformer3DModel",
            config=config,
            blocks=[(r"vace_blocks\.(\d+)", partial(_each, step)), *WAN_BLOCKS],
        )
        yield table(
            f"{name}_vace",
            f"{vace.title} LoRA of VACE, whose layers add to each block of a few; {EVERY_THIRD}",
            (thinned(vace.model()), dotted("transformer."), PEFT),
            (vace.original(thinned(vace.model())), dotted("diffusion_model."), DOWN),
        )
    animate = replace(
        it,
        class_name="WanAnimateTransformer3DModel",
        blocks=[(r"face_adapter\.(\d+)", partial(_each, 5)), *WAN_BLOCKS],
    )
    with_face = where(animate.model(), r"^(?!motion_encoder)")
    yield table(
        "wan_14b_animate",
        f"Wan 2.2 Animate LoRA, with the face that is added to each fifth block; {EVERY_THIRD}",
        (thinned(with_face), dotted("transformer."), PEFT),
        (it.original(where(with_face, r"^(?:face_adapter|pose)")), dotted("diffusion_model."), PEFT),
    )
    skyreels = replace(
        it,
        class_name="SkyReelsV2Transformer3DModel",
        config={"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824, "inject_sample_info": True},
    )
    yield table(
        "wan_14b_skyreels",
        f"SkyReels V2 14B LoRA in diffusers naming: fps_projection; {EVERY_THIRD}",
        (thinned(skyreels.model()), dotted("transformer."), PEFT),
    )


def _each(step: int, at: int) -> str:
    """What is added to each second or fifth block of a stack is in that block."""
    return f"B{step * at:02}"


def distilled(module: Module) -> list[Tensor]:
    """Two factors, and the bias as a difference."""
    factors = endings(".lora_down.weight", ".lora_up.weight")(module)
    return [*factors, (".diff_b", module.shape[:1])]


def difference(module: Module) -> list[Tensor]:
    """Weight and bias as differences, norms included."""
    bias = [(".diff_b", module.shape[:1])] if module.bias else []
    return [(".diff", module.shape), *bias]


def hunyuan_tables() -> Iterator[Table]:
    """HunyuanVideo after ComfyUI renamed it."""
    it = BY_NAME["hunyuan_video"]
    like_flux = renamed(it.original(thinned(it.model())), HUNYUAN_AS_FLUX)
    yield table(
        "hunyuan_video_comfyui_flux_names",
        f"HunyuanVideo LoRA with the names of ComfyUI's own model, Flux's; {EVERY_THIRD}",
        (like_flux, dotted("diffusion_model."), PEFT),
    )


def z_image_tables() -> Iterator[Table]:
    """Z-Image's oddities."""
    it = BY_NAME["z_image"]
    few = thinned(it.model())
    fused = renamed(few, Z_IMAGE_NAMES)
    yield table(
        "z_image_comfyui_qkv",
        f"Z-Image LoRA with fused projections, as ComfyUI and the authors have them; {EVERY_THIRD}",
        (fused, dotted("diffusion_model."), PEFT),
    )
    yield table(
        "z_image_kohya_qkv",
        f"Z-Image LoRA with kohya prefix and fused projections; {EVERY_THIRD}",
        (fused, flat("lora_unet_"), DOWN),
    )
    yield table(
        "z_image_double_underscore",
        f"Z-Image LoRA: two underscores after the prefix; {EVERY_THIRD}",
        (renamed(few, Z_IMAGE_TRAINER), flat("lora_unet__"), KOHYA),
    )
    omni = replace(it, config={"siglip_feat_dim": 1152})
    yield table(
        "z_image_omni",
        f"Z-Image Omni LoRA in diffusers naming: a refiner for what pictures show; {EVERY_THIRD}",
        (thinned(omni.model()), dotted("transformer."), PEFT),
    )
    split = respelled(where(few, r"\.attention\.to_[qkv]$"), r"\.to_([qkv])$", r".to.\1")
    yield table(
        "z_image_dotted",
        "Z-Image LoRA whose attention is stored twice, in parts (to.q) and fused (qkv), each with"
        f" .lora.down.weight; {EVERY_THIRD}",
        (split, dotted("diffusion_model."), DOTTED),
        (where(few, r"\.to_out\.0$"), dotted("diffusion_model."), DOTTED),
        (where(fused, r"\.(?:qkv|out)$"), dotted("diffusion_model."), DOTTED),
    )


def qwen_image_tables() -> Iterator[Table]:
    """Qwen-Image's oddities: files without a prefix."""
    it = BY_NAME["qwen_image"]
    stack = where(it.model(), r"^transformer_blocks\.")
    bare = endings(".lora_down.weight", ".lora_up.weight", ".alpha")
    yield table(
        "qwen_image_bare",
        f"Qwen-Image LoRA without a prefix, lora_down and alpha; {SCATTERED}",
        (scattered(stack), dotted(""), bare),
    )
    yield table(
        "qwen_image_adapter_name",
        f"Qwen-Image LoRA without a prefix, the adapter's name in every key; {SCATTERED}",
        (scattered(stack), dotted(""), PEFT_DEFAULT),
    )
    yield table(
        "qwen_image_kohya_lokr",
        f"Qwen-Image LoKr with kohya prefix; {SCATTERED}",
        (scattered(it.model()), flat("lora_unet_"), lokr),
    )


# Stable Cascade's prior has two levels; three modules (residual, timestep, attention) are a group.
CASCADE_BLOCKS: list[BlockRule] = [
    (r"down_blocks\.0\.(\d+)", lambda at: f"D{at // 3:02}"),
    (r"down_blocks\.1\.(\d+)", lambda at: f"D{8 + at // 3:02}"),
    (r"up_blocks\.0\.(\d+)", lambda at: f"U{at // 3:02}"),
    (r"up_blocks\.1\.(\d+)", lambda at: f"U{24 + at // 3:02}"),
    (r"clip_\w+_mapper|embedding", "IN"),
    (r"clf", "OUT"),
    (r"down_downscalers|up_upscalers", "OTHER"),
]
CASCADE_NAMES: list[Rename] = [
    (r"(.+\.attention)\.(to_[qkv])", r"\1.attn.\2"),
    (r"(.+\.attention)\.to_out\.0", r"\1.attn.out_proj"),
    KEEP,
]


def cascade_tables() -> Iterator[Table]:
    """Stable Cascade, stage C."""
    it = Family(
        "cascade",
        "Stable Cascade prior",
        "StableCascadeUNet",
        {"clip_text_in_channels": 1280, "clip_image_in_channels": 768, "switch_level": (False,)},
        CASCADE_BLOCKS,
        CASCADE_NAMES,
    )
    model, texts = it.model(), thinned(in_layers(clip_g("TE")))
    yield table(
        "cascade_kohya",
        "Stable Cascade prior LoRA: the Linears and convolutions of an instantiated"
        " StableCascadeUNet under the authors' names, CLIP-G (every third layer)",
        (it.original(model), flat("lora_prior_unet_"), DOWN),
        (texts, flat("lora_prior_te_"), DOWN),
    )
    yield table(
        "cascade_kohya_diffusers",
        "Stable Cascade prior LoRA with kohya prefix and diffusers names: every fifth module",
        (model[::5], flat("lora_prior_unet_"), DOWN),
    )
    yield table(
        "cascade_comfyui",
        "Stable Cascade prior LoRA with the authors' names below diffusion_model.: every fifth module",
        (it.original(model)[::5], dotted("diffusion_model."), DOWN),
    )


# ------------------------------------------------------------------------------------------------
# Writing
# ------------------------------------------------------------------------------------------------


def main(patterns: Sequence[str]) -> None:
    """Write the tables whose names match one of the patterns, or all."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    written: set[str] = set()
    for item in chain(unet_tables(), flux_tables(), other_tables()):
        if item.name in written:
            raise ValueError(f"two tables are called {item.name}")
        written.add(item.name)
        if not patterns or any(fnmatch.fnmatch(item.name, pattern) for pattern in patterns):
            (HERE / f"{item.name}.tsv").write_text(item.text(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
