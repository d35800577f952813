"""Draw the picture of docs/choosing-weights.md: two LoRAs that live in different blocks, and what `lbw` shows of them.

Like trained ones, a style lives in the outer blocks of the UNet and a character around the middle of it.

    python examples/make_pictures.py docs/pictures
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from make_demo_lora import tensors
from safetensors.numpy import save_file

# Parts of a module's name -> the strength of its update; the first that fits.
Strengths = Mapping[str, float]
STYLE: Strengths = {
    "lora_te": 0.12,
    "down_blocks_0": 0.5,
    "down_blocks": 0.25,
    "mid_block": 0.15,
    "up_blocks_1": 0.35,
    "up_blocks_2": 0.9,
    "up_blocks_3": 1.6,
}
CHARACTER: Strengths = {
    "lora_te": 0.25,
    "down_blocks_0": 0.15,
    "down_blocks_1": 0.4,
    "down_blocks_2": 0.8,
    "mid_block": 0.7,
    "up_blocks_1_attentions_0": 0.9,
    "up_blocks_1": 0.7,
    "up_blocks": 0.3,
}


def write(path: Path, strengths: Strengths, seed: int) -> Path:
    """Write a full-size LoRA whose blocks have these strengths."""
    state = tensors(seed)
    for name, values in state.items():
        if "lora_up" in name:
            strength = next(strength for part, strength in strengths.items() if part in name)
            state[name] = (values.astype(np.float32) * strength).astype(np.float16)
    save_file(state, path, {"ss_base_model_version": "sd_v1", "ss_output_name": path.stem})
    return path


def main() -> None:
    """Draw into the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        style = write(Path(temporary, "style.safetensors"), STYLE, 1)
        character = write(Path(temporary, "character.safetensors"), CHARACTER, 2)
        options = ("--plot", folder / "two-loras.png", "--force")
        subprocess.run([sys.executable, "-m", "lbw_bake", "inspect", character, style, *options], check=True)


if __name__ == "__main__":
    main()
