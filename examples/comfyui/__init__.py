"""A ComfyUI node: load a LoRA with block weights, baked once and kept beside the others.

Copy this folder to ComfyUI/custom_nodes/lbw_bake and `pip install lbw-bake` in ComfyUI's Python.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from lbw_bake import Weights, bake


class LoadBakedLora:
    """Takes what "Load LoRA" takes, and weights: a preset's name, a vector, or rules like `IN04-IN08=0.5 *=0`."""

    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "load"
    CATEGORY = "loaders"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the host's word
        """What the node shows."""
        import folder_paths

        strength = ("FLOAT", {"default": 1.0, "min": -20.0, "max": 20.0, "step": 0.01})
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "lora_name": (folder_paths.get_filename_list("loras"),),
                "weights": ("STRING", {"default": "MIDD"}),
                "strength": strength,
            }
        }

    def load(self, model: Any, clip: Any, lora_name: str, weights: str, strength: float) -> tuple[Any, Any]:
        """Bake unless it was baked before, then load as any LoRA."""
        import comfy.sd
        import comfy.utils
        import folder_paths

        source = Path(folder_paths.get_full_path("loras", lora_name))
        baked = baked_file(source, weights, Path(folder_paths.get_temp_directory()))
        lora = comfy.utils.load_torch_file(str(baked), safe_load=True)
        return comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)


def baked_file(source: Path, weights: str, folder: Path) -> Path:
    """The LoRA with these weights in the folder, baked if it is not there yet."""
    state, meant = source.stat(), Weights.of(weights)  # what a preset says, not its name, which may say more tomorrow
    key = hashlib.sha256(f"{source}|{state.st_size}|{state.st_mtime_ns}|{meant}".encode()).hexdigest()[:16]
    baked = folder / f"{source.stem}-{key}.safetensors"
    if not baked.exists():
        folder.mkdir(parents=True, exist_ok=True)
        bake(source, baked, meant, replace=True)
    return baked


NODE_CLASS_MAPPINGS = {"LoadBakedLora": LoadBakedLora}
NODE_DISPLAY_NAME_MAPPINGS = {"LoadBakedLora": "Load LoRA (baked block weights)"}
