"""LyCORIS judges merges: the update of the merged file is the sum of the updates of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file, save_file
from torch import nn

from .conftest import StateDict, assert_close, perturb

lycoris = pytest.importorskip("lycoris.modules", reason="needs lycoris-lora")

# A layer of each kernel size, 0 being a linear one.
NAMES = {
    0: "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
    1: "lora_unet_mid_block_attentions_0_proj_in",
    3: "lora_unet_mid_block_resnets_0_conv1",
}
OTHER = "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
LOCON, LOHA, LOKR = lycoris.LoConModule, lycoris.LohaModule, lycoris.LokrModule
TUCKER, BOTH = {"use_tucker": True}, {"decompose_both": True}

# Kinds of modules that are merged on one layer: algorithm, rank, alpha, options.
LORA_4 = (LOCON, 4, 2.0, {})
LORA_3 = (LOCON, 3, 5.0, {})
CASES = {
    "lora lora": (LORA_4, LORA_3),
    "lora loha": (LORA_4, (LOHA, 3, 1.0, {})),
    "loha loha": ((LOHA, 2, 3.0, {}), (LOHA, 3, 1.0, {})),
    "lora lokr": (LORA_4, (LOKR, 2, 1.0, {"factor": 4})),
    "lokr lokr": ((LOKR, 2, 1.0, {"factor": 4, **BOTH}), (LOKR, 100, 1.0, {"factor": 2})),
    "lora full": (LORA_4, (lycoris.FullModule, 1, 1.0, {})),
    "full full": ((lycoris.FullModule, 1, 1.0, {}), (lycoris.FullModule, 1, 1.0, {})),
    "loha alone": ((LOHA, 3, 2.0, {}),),
    "lokr alone": ((LOKR, 2, 1.0, {"factor": 4}),),
    "three loras": (LORA_4, LORA_3, (LOCON, 2, 0.5, {})),
}
CONVOLUTIONS = {
    "tucker": (LORA_3, (LOCON, 3, 2.0, TUCKER)),
    "tucker loha": (LORA_3, (LOHA, 2, 2.0, TUCKER)),
    "tucker lokr": (LORA_3, (LOKR, 2, 2.0, {"factor": 4, **TUCKER})),
}
Part = tuple[Any, int, float, dict[str, Any]]


def name_of(base: nn.Module) -> str:
    """The name of a module that adapts the layer."""
    return NAMES[base.kernel_size[0] if isinstance(base, nn.Conv2d) else 0]


def layer(kernel: int) -> nn.Module:
    """The layer that is adapted."""
    return nn.Conv2d(16, 24, kernel, padding=kernel // 2, bias=False) if kernel else nn.Linear(16, 24, bias=False)


def update(module: Any, base: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What a LyCORIS module adds to the layer's output; its merge path takes LoHa's alpha / rank twice."""
    return module(inputs) - base(inputs)


def build(part: Part, base: nn.Module) -> Any:
    """A new LyCORIS module on the layer."""
    kind, rank, alpha, options = part
    return kind(name_of(base), base, lora_dim=rank, alpha=alpha, **options)


def write_parts(parts: Sequence[Part], base: nn.Module, folder: Path) -> list[Any]:
    """One file per part, as `part0.safetensors`; returns the modules they hold."""
    modules = [build(part, base) for part in parts]
    for i, module in enumerate(modules):
        perturb(module)
        save_file(own(module), folder / f"part{i}.safetensors")
    return modules


def own(module: Any) -> StateDict:
    """A module's tensors as a file names them; LyCORIS says `diff` rightly only of a module in use."""
    tensors = {"diff": module.weight} if isinstance(module, lycoris.FullModule) else module.state_dict()
    return {f"{module.lora_name}.{role}": value.float().contiguous() for role, value in tensors.items()}


def load(path: Path, part: Part, base: nn.Module) -> Any:
    """The module a merged file holds, as LyCORIS reads it."""
    tensors = load_file(path)
    name = name_of(base)
    kind, params = lycoris.get_module(tensors, name)
    if kind is LOKR:  # LyCORIS rebuilds LoKr only from the options it was trained with
        module = build(part, base)
        module.load_state_dict({key.removeprefix(f"{name}."): value for key, value in tensors.items()})
        return module
    return lycoris.make_module(kind, params, name, base).float()


WEIGHTS = (0.7, -0.5, 1.5)


@pytest.mark.parametrize("kernel", [0, 1, 3], ids=["linear", "1x1", "3x3"])
@pytest.mark.parametrize("parts", CASES.values(), ids=CASES)
def test_a_merge_is_the_sum_of_its_parts(parts: Sequence[Part], kernel: int, tmp_path: Path, run: Run) -> None:
    check(parts, kernel, tmp_path, run)


@pytest.mark.parametrize("parts", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_tucker_factors_are_folded(parts: Sequence[Part], tmp_path: Path, run: Run) -> None:
    check(parts, 3, tmp_path, run)


def check(parts: Sequence[Part], kernel: int, tmp_path: Path, run: Run) -> None:
    """Merge with strengths and a block weight, and hold the result to the sum."""
    base = layer(kernel)
    modules = write_parts(parts, base, tmp_path)
    specs = [f"{tmp_path}/part{i}.safetensors:{WEIGHTS[i]}:MID=0.8 *=0" for i in range(len(parts))]
    merged = tmp_path / "merged.safetensors"
    run.done("merge", *specs, "-o", merged, "--family", "sd1")
    inputs = torch.randn(2, 16, *((5, 5) if kernel else ()))
    expected = sum(
        0.8 * weight * update(module, base, inputs) for weight, module in zip(WEIGHTS, modules, strict=False)
    )
    assert_close(update(load(merged, parts[0], base), base, inputs), expected, 1e-5)


def test_one_alpha_serves_the_whole_file(tmp_path: Path, run: Run) -> None:
    base = layer(0)
    write_parts((LORA_4, LORA_3), base, tmp_path)
    tensors = load_file(tmp_path / "part1.safetensors")
    save_file({name.replace(NAMES[0], OTHER): value for name, value in tensors.items()}, tmp_path / "part1.safetensors")
    merged = tmp_path / "merged.safetensors"
    run.done("merge", tmp_path / "part0.safetensors", tmp_path / "part1.safetensors", "-o", merged)
    alphas = {value.item() for name, value in load_file(merged).items() if name.endswith("alpha")}
    assert alphas == {2.0}


def test_truncation_is_the_nearest_of_its_rank_and_says_what_it_lost(tmp_path: Path, run: Run) -> None:
    base = layer(0)
    files = [own(module) for module in write_parts((LORA_4, LORA_3), base, tmp_path)]
    merged = tmp_path / "merged.safetensors"
    inputs = [tmp_path / f"part{i}.safetensors" for i in range(2)]
    out = run.out("merge", *inputs, "-o", merged, "--rank", 3, "--json", "--family", "sd1")
    dense = sum(
        tensors[f"{NAMES[0]}.lora_up.weight"] @ tensors[f"{NAMES[0]}.lora_down.weight"] * scale
        for tensors, scale in zip(files, (2 / 4, 5 / 3), strict=True)
    )
    values = torch.linalg.svdvals(dense)
    lost = (values[3:].square().sum() / values.square().sum()).sqrt().item()
    small = load_file(merged)
    alpha = small[f"{NAMES[0]}.alpha"].item() / 3
    got = small[f"{NAMES[0]}.lora_up.weight"] @ small[f"{NAMES[0]}.lora_down.weight"] * alpha
    assert_close(got, dense, lost + 1e-5)
    assert f'"MID": {lost:.4f}'[:-2] in out


@pytest.mark.parametrize("parts", [CASES["lora full"], CASES["full full"]], ids=["lora full", "full full"])
def test_a_full_difference_is_truncated_to_a_lora(parts: Sequence[Part], tmp_path: Path, run: Run) -> None:
    base = layer(0)
    modules = write_parts(parts, base, tmp_path)
    merged = tmp_path / "merged.safetensors"
    inputs = [tmp_path / f"part{i}.safetensors" for i in range(2)]
    run.done("merge", *inputs, "-o", merged, "--rank", 3, "--family", "sd1")
    left, values, right = torch.linalg.svd(sum(update(module, base, torch.eye(16)) for module in modules))
    nearest = left[:, :3] * values[:3] @ right[:3]
    assert_close(update(load(merged, LORA_3, base), base, torch.eye(16)), nearest, 1e-5)


@pytest.mark.parametrize("option", [{"weight_decompose": True}, {}], ids=["dora", "glora beside lora"])
def test_what_does_not_add_up_is_refused(option: dict[str, Any], tmp_path: Path, run: Run) -> None:
    base = layer(0)
    other = (LOCON, 3, 2.0, option) if option else (lycoris.GLoRAModule, 3, 2.0, {})
    write_parts((LORA_4, other), base, tmp_path)
    merged = tmp_path / "merged.safetensors"
    inputs = [tmp_path / f"part{i}.safetensors" for i in range(2)]
    err = run.refused("merge", *inputs, "-o", merged, "--family", "sd1")
    assert NAMES[0] in err
    assert not merged.exists()


NONLINEAR = {
    "dora lora": ((LOCON, 3, 2.0, {"weight_decompose": True}), LORA_4),
    "dokr alone": ((LOKR, 2, 1.0, {"factor": 4, "weight_decompose": True}),),
    "oft lora": ((lycoris.DiagOFTModule, 4, 0.0, {"constraint": 0}), LORA_3),
}


@pytest.mark.parametrize("parts", NONLINEAR.values(), ids=NONLINEAR)
def test_what_does_not_add_up_by_itself_does_on_its_base_model(parts: Sequence[Part], tmp_path: Path, run: Run) -> None:
    base = layer(0)
    save_file(
        {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight": base.weight.contiguous()},
        tmp_path / "base.safetensors",
    )
    modules = write_parts(parts, base, tmp_path)
    specs = [f"{tmp_path}/part{i}.safetensors:{WEIGHTS[i]}" for i in range(len(parts))]
    merged = tmp_path / "merged.safetensors"
    options = ("--family", "sd1", "--base", tmp_path / "base.safetensors", "--dora-norm", "lycoris")
    run.done("merge", *specs, "-o", merged, *options)
    inputs = torch.randn(2, 16)
    updates = (update(module, base, inputs) for module in modules)
    expected = sum(weight * part for weight, part in zip(WEIGHTS, updates, strict=False))
    assert_close(update(load(merged, LORA_4, base), base, inputs), expected, 1e-5)
