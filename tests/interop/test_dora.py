"""DoRA baked with its base model, judged by the libraries that train it: LyCORIS and PEFT.

Both read a magnitude per output row with the norm of the whole weight, in a way that is a straight line at a plain
weight of 1 alone; there the baked file must do the weighted part of what the original does.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BakeFile
from safetensors.torch import load_file, save_file
from torch import nn

from .conftest import TOLERANCES, BakeTorch, StateDict, assert_close, cast, dtypes, model_of, perturb

WEIGHTS = {"BASE": -0.5, "IN04": 0.3, "MID": 1.0, "OUT04": 0.7, "OUT11": 1.5}
RULES = "--weights=" + " ".join(f"{block}={weight}" for block, weight in WEIGHTS.items())


def base_file(folder: Path, layers: dict[str, nn.Module]) -> Path:
    """The layers as a checkpoint in diffusers' names, which are theirs."""
    path = folder / "base.safetensors"
    save_file({f"{name}.weight": layer.weight.float().contiguous() for name, layer in layers.items()}, path)
    return path


PATHS = {
    "text_model.encoder.layers.0.self_attn.out_proj": "BASE",
    "down_blocks.1.attentions.0.proj_in": "IN04",
    "mid_block.attentions.0.proj_in": "MID",
    "up_blocks.1.attentions.1.proj_in": "OUT04",
    "up_blocks.3.attentions.2.proj_in": "OUT11",
}
LAYERS = {
    "linear": lambda: nn.Linear(36, 64),
    "1x1": lambda: nn.Conv2d(36, 64, 1),
    "3x3": lambda: nn.Conv2d(36, 64, 3, padding=1),
}
SPATIAL = {"linear": (), "1x1": (4, 4), "3x3": (4, 4)}


def kohya_name(path: str) -> str:
    return f"lora_{'te' if path.startswith('text') else 'unet'}_{path.replace('.', '_')}"


def inputs(kind: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(3, 36, *SPATIAL[kind], generator=torch.Generator().manual_seed(1), dtype=dtype)


def drifted(norms: torch.Tensor) -> torch.Tensor:
    """Magnitudes some way from where training starts."""
    return norms * (0.9 + 0.2 * torch.rand_like(norms))


# How LyCORIS names a module, which options it takes, the layer; whether its rank can take any weight.
LYCORIS = {
    "lora": ("LoConModule", {}, "linear", True),
    "lora 1x1": ("LoConModule", {}, "1x1", True),
    "lora 3x3": ("LoConModule", {}, "3x3", True),
    "lora tucker": ("LoConModule", {"use_tucker": True}, "3x3", True),
    "loha": ("LohaModule", {}, "linear", True),
    "loha 3x3": ("LohaModule", {}, "3x3", True),
    "loha tucker": ("LohaModule", {"use_tucker": True}, "3x3", True),
    "lokr": ("LokrModule", {}, "linear", False),
    "lokr low": ("LokrModule", {"decompose_both": True}, "linear", False),
}


class TestLycoris:
    lycoris = pytest.importorskip("lycoris.modules", reason="needs lycoris-lora")

    @dtypes
    @pytest.mark.parametrize("by_row", [True, False], ids=["rows", "columns"])
    @pytest.mark.parametrize(("kind", "options", "layer", "same_rank"), LYCORIS.values(), ids=LYCORIS)
    def test_a_plain_weight_of_one(
        self,
        kind: str,
        options: dict[str, Any],
        layer: str,
        same_rank: bool,
        by_row: bool,
        dtype: torch.dtype,
        bake_torch: BakeTorch,
        tmp_path: Path,
    ) -> None:
        layers = {path: LAYERS[layer]().double() for path in PATHS}
        tensors: StateDict = {}
        for path, module in layers.items():
            name = kohya_name(path)
            adapter = self.build(kind, name, module, by_row, options)
            perturb(adapter, 0.05)
            adapter.dora_scale.copy_(drifted(self.norms(module.weight, by_row)))
            tensors |= {f"{name}.{role}": tensor for role, tensor in adapter.state_dict().items()}
        original = cast(tensors, dtype)
        baked = bake_torch(original, RULES, "--base", base_file(tmp_path, layers), "--dora-norm", "lycoris")
        assert same_rank == (not any(name.endswith(".diff") for name in baked))
        for path, block in PATHS.items():
            before, after = (self.load(kind, t, path, layers[path], by_row, options) for t in (original, baked))
            # Merging, LyCORIS 4.1 multiplies LoHa and LoKr by alpha / rank twice.
            for judge in (self.forward, self.merged)[: 1 + (kind == "LoConModule")]:
                wanted = WEIGHTS[block] * judge(before, layers[path], layer)
                assert_close(judge(after, layers[path], layer), wanted, TOLERANCES[dtype])

    @staticmethod
    def norms(weight: torch.Tensor, by_row: bool) -> torch.Tensor:
        kept = 0 if by_row else 1
        others = [axis for axis in range(weight.ndim) if axis != kept]
        return torch.linalg.vector_norm(weight, dim=others, keepdim=True)

    def build(self, kind: str, name: str, layer: nn.Module, by_row: bool, options: dict[str, Any]) -> Any:
        own = {"lora_dim": 3, "alpha": 2.0, "weight_decompose": True, "wd_on_out": by_row, **options}
        return getattr(self.lycoris, kind)(name, layer, **own).double()

    def load(
        self, kind: str, tensors: StateDict, path: str, layer: nn.Module, by_row: bool, options: dict[str, Any]
    ) -> Any:
        name = kohya_name(path)
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        if "diff" in own:
            module = self.lycoris.FullModule(name, layer).double()
        else:
            module = self.build(kind, name, layer, by_row, options)
        module.load_state_dict(own, strict=False)
        return module

    @staticmethod
    def merged(module: Any, layer: nn.Module, _: str) -> torch.Tensor:
        return module.get_merged_weight(1.0, layer.weight.shape)[0] - layer.weight

    @staticmethod
    def forward(module: Any, layer: nn.Module, kind: str) -> torch.Tensor:
        x = inputs(kind, torch.float64)
        module.multiplier = 1.0
        return module(x) - layer(x)


# PEFT warns that it cannot tell what the layers of a bare model are.
@pytest.mark.filterwarnings("ignore")
class TestPeft:
    peft = pytest.importorskip("peft", reason="needs peft")
    EMBEDDING = "text_model.embeddings.token_embedding"
    OPTIONS = (
        {"r": 4, "lora_alpha": 6, "use_dora": True},
        {
            "r": 4,
            "lora_alpha": 6,
            "use_dora": True,
            "use_rslora": True,
            "rank_pattern": {"up_blocks.*": 2},
            "alpha_pattern": {r"down_blocks.*proj_in": 1.5},  # of a block whose weight is neither 0 nor 1
        },
    )

    @dtypes
    @pytest.mark.parametrize("where", ["beside", "metadata"])
    @pytest.mark.parametrize("options", OPTIONS, ids=["plain", "patterns"])
    @pytest.mark.parametrize("layer", LAYERS)
    def test_a_scale_of_one(
        self, layer: str, options: dict[str, Any], where: str, dtype: torch.dtype, bake_file: BakeFile, tmp_path: Path
    ) -> None:
        layers: dict[str, nn.Module] = {path: LAYERS[layer]() for path in PATHS}
        layers[self.EMBEDDING] = nn.Embedding(20, 16)
        model = model_of(layers)
        adapted = self.adapt(model, options)
        perturb(adapted, 0.05)
        for parameter, values in adapted.named_parameters():
            if "magnitude" in parameter:
                values.copy_(drifted(self.start(layers, parameter).reshape(values.shape)))
        original = cast(self.peft.get_peft_model_state_dict(adapted), dtype)
        source = tmp_path / "adapter_model.safetensors"
        config = {**options, "target_modules": list(layers)}
        metadata = {"lora_adapter_metadata": json.dumps(config)} if where == "metadata" else None
        save_file({name: tensor.contiguous() for name, tensor in original.items()}, source, metadata)
        if where == "beside":
            (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        baked = load_file(bake_file(source, RULES, "--base", base_file(tmp_path, layers), "--family", "sd1"))
        before, after = (self.adapt(model, options, tensors).double() for tensors in (original, baked))
        for path, block in {**PATHS, self.EMBEDDING: "BASE"}.items():
            wanted = WEIGHTS[block] * self.change(before, path, layer)
            assert_close(self.change(after, path, layer), wanted, TOLERANCES[dtype])

    def adapt(self, model: nn.Module, options: dict[str, Any], tensors: StateDict | None = None) -> Any:
        config = self.peft.LoraConfig(target_modules=[*PATHS, self.EMBEDDING], **options)
        adapted = self.peft.get_peft_model(copy.deepcopy(model), config)
        if tensors is not None:
            self.peft.set_peft_model_state_dict(adapted, tensors)
        return adapted

    def start(self, layers: dict[str, nn.Module], parameter: str) -> torch.Tensor:
        path = next(path for path in layers if path in parameter)
        weight = layers[path].weight
        return (weight.T if path == self.EMBEDDING else weight).flatten(1).norm(dim=1)

    def change(self, adapted: Any, path: str, kind: str) -> torch.Tensor:
        """What the adapter adds to a layer's output."""
        layer = adapted.get_submodule(f"base_model.model.{path}")
        x = torch.arange(20) if path == self.EMBEDDING else inputs(kind, torch.float64)
        return layer(x) - layer.base_layer(x)
