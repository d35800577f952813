"""The LoRAs that are measured: of real names and shapes, filled with random numbers."""

from __future__ import annotations

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


def sdxl_lora(path: Path, case: Case) -> None:
    """A LoRA of SDXL's 722 UNet modules, as large as asked by its width."""
    rng = np.random.default_rng(0)
    spots = [(f"input_blocks_{n}_1", 2) for n in (4, 5)] + [(f"input_blocks_{n}_1", 10) for n in (7, 8)]
    spots += [("middle_block_1", 10)] + [(f"output_blocks_{n}_1", 10 if n < 3 else 2) for n in range(6)]
    layers = [
        f"lora_unet_{spot}_transformer_blocks_{block}_{layer}"
        for spot, depth in spots
        for block in range(depth)
        for layer in ("attn1_to_q", "attn1_to_k", "attn2_to_k", "attn2_to_v", "ff_net_0_proj", "ff_net_2")
    ]
    rank = 32
    itemsize = np.dtype(case.dtype).itemsize
    width = case.megabytes * 10**6 // (len(layers) * 2 * rank * itemsize)
    pool = (rng.standard_normal(rank * width) * 1e-2).astype(case.dtype)
    tensors = {}
    for i, layer in enumerate(layers):
        values = np.roll(pool, i)
        tensors[f"{layer}.lora_down.weight"] = values.reshape(rank, width)
        tensors[f"{layer}.lora_up.weight"] = values.reshape(width, rank)
        tensors[f"{layer}.alpha"] = np.array(16, case.dtype)
    hashes = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8} if case.hashed else {}
    save_file(tensors, path, {"ss_base_model_version": "sdxl_base_v1-0", **hashes})
