"""lbw: bake LoRA block weights into the LoRA itself."""

__version__ = "0.1.0"
