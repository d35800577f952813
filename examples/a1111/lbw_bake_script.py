"""A script for AUTOMATIC1111's web UI and Forge: bake a LoRA's block weights, then generate with the baked file.

Copy it to the web UI's `scripts` folder and `pip install lbw-bake` in its Python.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gradio as gr
import networks
from modules import scripts, shared
from modules.processing import process_images

from lbw_bake import Weights, bake


class Script(scripts.Script):
    """Bake, tell the web UI of the new file, and add it to the prompt with a plain weight."""

    def title(self) -> str:
        """Its name in the list of scripts."""
        return "Bake LoRA block weights"

    def ui(self, is_img2img: bool) -> list[Any]:
        """What is asked for."""
        del is_img2img
        return [
            gr.Textbox(label="LoRA, a file in the Lora folder, with its subfolder and without .safetensors"),
            gr.Textbox(label="Weights: a preset, a vector, or rules like IN04-IN08=0.5 *=0", value="MIDD"),
            gr.Slider(label="Weight in the prompt", minimum=-2.0, maximum=2.0, step=0.05, value=1.0),
        ]

    def run(self, p: Any, lora: str, weights: str, strength: float) -> Any:
        """Works with hires fix and batches, because what is loaded is an ordinary LoRA."""
        source = Path(shared.cmd_opts.lora_dir, f"{lora}.safetensors")
        state, meant = source.stat(), Weights.of(weights)  # what a preset says, not its name
        key = hashlib.sha256(f"{state.st_size}|{state.st_mtime_ns}|{meant}".encode()).hexdigest()[:8]
        name = f"{source.stem}-{key}"
        baked = source.with_name(f"{name}.safetensors")
        if not baked.exists():
            bake(source, baked, meant)
            networks.list_available_networks()
        p.prompt = f"{p.prompt} <lora:{name}:{strength:g}>"
        return process_images(p)
