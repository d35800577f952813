"""The LoRAs that are measured: of real names and shapes, filled with random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


@dataclass(frozen=True)
class Case:
    """A file to bake: megabytes, dtype, and whether its metadata has hashes to keep true."""

    megabytes: int
    dtype: str
    hashed: bool


Layer = tuple[str, int, int]  # name, inputs, outputs


def unet_layers() -> Iterator[Layer]:
    """The 722 layers of SDXL's UNet that kohya's trainer adapts, under its names for them."""
    narrow = [f"{side}_blocks_{n}" for side, numbers in (("input", (4, 5)), ("output", (3, 4, 5))) for n in numbers]
    wide = [f"{side}_blocks_{n}" for side, numbers in (("input", (7, 8)), ("output", (0, 1, 2))) for n in numbers]
    for spots, width, depth in ((narrow, 640, 2), ([*wide, "middle_block"], 1280, 10)):
        for spot in spots:
            yield f"lora_unet_{spot}_1_proj_in", width, width
            for i in range(depth):
                block = f"lora_unet_{spot}_1_transformer_blocks_{i}"
                for attention, context in (("attn1", width), ("attn2", 2048)):
                    for part, inputs in (("to_q", width), ("to_k", context), ("to_v", context), ("to_out_0", width)):
                        yield f"{block}_{attention}_{part}", inputs, width
                yield f"{block}_ff_net_0_proj", width, 8 * width
                yield f"{block}_ff_net_2", 4 * width, width
            yield f"lora_unet_{spot}_1_proj_out", width, width


def sdxl_lora(path: Path, case: Case) -> None:
    """A LoRA of SDXL's UNet, as large as asked by its rank."""
    layers = list(unet_layers())
    itemsize = np.dtype(case.dtype).itemsize
    rank = case.megabytes * 10**6 // (itemsize * sum(inputs + outputs for _, inputs, outputs in layers))
    pool = (np.random.default_rng(0).standard_normal(rank * 10240) * 1e-2).astype(case.dtype)
    tensors = {}
    for i, (layer, inputs, outputs) in enumerate(layers):
        values = np.roll(pool, i)
        tensors[f"{layer}.lora_down.weight"] = values[: rank * inputs].reshape(rank, inputs)
        tensors[f"{layer}.lora_up.weight"] = values[: outputs * rank].reshape(outputs, rank)
        tensors[f"{layer}.alpha"] = np.array(rank / 2, case.dtype)
    hashes = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8} if case.hashed else {}
    save_file(tensors, path, {"ss_base_model_version": "sdxl_base_v1-0", **hashes})
