"""Write a full-size Stable Diffusion 1.5 LoRA of random numbers, as kohya's trainer would name, shape and sign it.

264 modules of rank 32 in float16 (38 MB): 192 in the UNet's attention, 72 in the text encoder.

    python examples/make_demo_lora.py demo/doraemon.safetensors
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save, save_file

RANK, ALPHA, CONTEXT = 32, 16.0, 768
Layer = tuple[str, int, int, bool]  # name, inputs, outputs, whether it is a 1x1 convolution


def attention_spots() -> Iterator[tuple[str, int]]:
    """The UNet's transformers and their widths."""
    for level, width in enumerate((320, 640, 1280)):
        yield from ((f"down_blocks_{level}_attentions_{i}", width) for i in range(2))
    yield "mid_block_attentions_0", 1280
    for level, width in enumerate((1280, 640, 320), start=1):
        yield from ((f"up_blocks_{level}_attentions_{i}", width) for i in range(3))


def unet_layers() -> Iterator[Layer]:
    """The layers a LoRA adapts in each of them."""
    for spot, width in attention_spots():
        yield f"lora_unet_{spot}_proj_in", width, width, True
        block = f"lora_unet_{spot}_transformer_blocks_0"
        for attention, inputs in (("attn1", width), ("attn2", CONTEXT)):
            yield f"{block}_{attention}_to_q", width, width, False
            yield f"{block}_{attention}_to_k", inputs, width, False
            yield f"{block}_{attention}_to_v", inputs, width, False
            yield f"{block}_{attention}_to_out_0", width, width, False
        yield f"{block}_ff_net_0_proj", width, 8 * width, False
        yield f"{block}_ff_net_2", 4 * width, width, False
        yield f"lora_unet_{spot}_proj_out", width, width, True


def text_encoder_layers() -> Iterator[Layer]:
    """The linear layers of CLIP-L."""
    for i in range(12):
        layer = f"lora_te_text_model_encoder_layers_{i}"
        for part in "qkv":
            yield f"{layer}_self_attn_{part}_proj", 768, 768, False
        yield f"{layer}_self_attn_out_proj", 768, 768, False
        yield f"{layer}_mlp_fc1", 768, 3072, False
        yield f"{layer}_mlp_fc2", 3072, 768, False


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """The state dict, with factors about as large as training leaves them."""
    rng = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}
    for name, inputs, outputs, convolution in (*text_encoder_layers(), *unet_layers()):
        kernel = (1, 1) if convolution else ()
        down = rng.standard_normal((RANK, inputs, *kernel), np.float32) / np.sqrt(inputs)
        up = rng.standard_normal((outputs, RANK, *kernel), np.float32) * 0.005
        state[f"{name}.lora_down.weight"] = down.astype(np.float16)
        state[f"{name}.lora_up.weight"] = up.astype(np.float16)
        state[f"{name}.alpha"] = np.array(ALPHA, np.float16)
    return state


def metadata(state: dict[str, np.ndarray], name: str) -> dict[str, str]:
    """What kohya's trainer records, with its two hashes of the data."""
    trained = {
        "ss_output_name": name,
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(RANK),
        "ss_network_alpha": str(ALPHA),
        "ss_v2": "False",
    }
    file = save(state, trained)
    data = file[8 + int.from_bytes(file[:8], "little") :]
    return {
        **trained,
        "sshs_model_hash": hashlib.sha256(data).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(file[0x100000:0x110000]).hexdigest()[:8],
    }


def main() -> None:
    """Write the file named on the command line."""
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    state = tensors()
    save_file(state, path, metadata(state, path.stem))
    print(f"{path}: {len(state) // 3} modules, {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
