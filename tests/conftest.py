"""Real files of a few kilobytes, and the shortest way through the tool: tensors in, baked tensors out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lbw_bake.cli import main

Tensors = dict[str, np.ndarray]


@pytest.fixture(autouse=True, scope="session")
def _no_user_presets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """No test sees the presets of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("LBW_PRESETS", raising=False)
        patch.setenv("NO_COLOR", "1")
        yield


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call `lbw` in process; returns exit code, stdout and stderr."""

    def call(*args: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def bake_tensors(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tensors]:
    """Bake a state dict of numpy arrays with any options of `lbw bake`, and read the result with safetensors."""
    folder = tmp_path_factory.mktemp("bake")
    count = itertools.count()

    def bake(tensors: Mapping[str, np.ndarray], *options: object, metadata: Mapping[str, str] | None = None) -> Tensors:
        source = folder / f"{next(count)}.safetensors"
        baked = source.with_suffix(".baked.safetensors")
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, source, metadata)
        with pytest.raises(SystemExit) as stop:
            main(["bake", str(source), "-o", str(baked), "--quiet", *map(str, options)])
        assert not stop.value.code, f"lbw bake {options} failed"
        result = load_file(baked)
        source.unlink()
        baked.unlink()
        return result

    return bake


def kohya_lora(names: list[str], rank: int = 4, width: int = 8, dtype: str = "float16", seed: int = 0) -> Tensors:
    """A LoRA of these kohya modules (`unet_mid_block_...`), all square, with an alpha of its own each."""
    rng = np.random.default_rng(seed)
    tensors: Tensors = {}
    for i, name in enumerate(names):
        tensors[f"lora_{name}.lora_down.weight"] = rng.standard_normal((rank, width)).astype(dtype)
        tensors[f"lora_{name}.lora_up.weight"] = rng.standard_normal((width, rank)).astype(dtype)
        tensors[f"lora_{name}.alpha"] = np.array(1 + i % 3, dtype)
    return tensors


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file with the library everybody uses."""
    save_file(dict(tensors), path, metadata)
    return path
