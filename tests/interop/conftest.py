"""Other people's code as the judge: shared helpers that bake torch state dicts and compare updates.

The law of every test here: update(baked, m) == update(original, m x r), with both updates computed by a library
that people load LoRAs with, never by a formula of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from conftest import SD1_BLOCKS, BakeFile
from safetensors.torch import load_file, save_file
from torch import nn

StateDict = dict[str, torch.Tensor]
BakeTorch = Callable[..., StateDict]

# How far a stored dtype may move an update, relative to its norm: apart enough to tell rounding from a mistake.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))

# Plain weights at which an original and its baked file are compared.
MULTIPLIERS = (1.0, 0.6)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """The same random numbers in every test, no gradients, one thread: a second only waits on tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def bake_torch(bake_file: BakeFile, tmp_path: Path) -> BakeTorch:
    """Bake a state dict of torch tensors, bfloat16 included, with any options of `lbw bake`."""

    def bake(tensors: Mapping[str, torch.Tensor], *options: object) -> StateDict:
        return load_file(bake_file(save(tensors, tmp_path), *options))

    return bake


def save(tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
    """Write a state dict the way trainers do."""
    path = folder / "original.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def model_of(layers: Mapping[str, nn.Module]) -> nn.Module:
    """A model with just these layers, under their names."""
    root = nn.Module()
    for path, layer in layers.items():
        parent = root
        *folders, leaf = path.split(".")
        for name in folders:
            if name not in dict(parent.named_children()):
                parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module(leaf, layer)
    return root


def cast(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> StateDict:
    """Floating tensors in the dtype of a file; integers stay."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def perturb(module: nn.Module, size: float = 0.3) -> None:
    """Take everything that is trained away from its starting value."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn_like(parameter))


def vector(weights: Mapping[str, float], rest: float = 0.5) -> str:
    """The option that gives these blocks of SD1 their weights, and all others another one."""
    return "--weights=" + ",".join(str(weights.get(block, rest)) for block in SD1_BLOCKS)


def assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """All of two updates agree, relative to the norm of what is expected; zero must be zero."""
    error, norm = (got - expected).norm().item(), expected.norm().item()
    assert error <= tolerance * norm, f"off by {error / norm if norm else error:.2g}"
