"""The command with sliders: `lbw mix`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .cli_options import BaseModelPath, DoraNorm, Dtype, FamilyName, Inexact, weighing
from .errors import LbwError


def mix(
    file: Annotated[Path, typer.Argument(help="A LoRA file.")],
    preset: Annotated[str | None, weighing("--preset", "-p", help="Start from this preset.")] = None,
    weights: Annotated[
        str | None, weighing("--weights", "-w", help="Start from a vector, block rules or a prompt token.")
    ] = None,
    presets: Annotated[
        Path | None, weighing("--presets", help="A presets file on top of your own; new ones are saved to it.")
    ] = None,
    family: FamilyName = None,
    dtype: Dtype = "keep",
    base: BaseModelPath = None,
    dora_norm: DoraNorm = "comfyui",
    inexact: Inexact = "refuse",
) -> None:
    """Find weights with sliders, one for each block beside its strength; save them as a preset, bake them.

    The weights are printed at the end, so that they can be given to another command:

    [dim]lbw bake x.safetensors -o y.safetensors --weights "$(lbw mix x.safetensors)"[/dim]
    """
    if preset is not None and weights is not None:
        raise typer.BadParameter("give one of --preset NAME and --weights VECTOR", param_hint="--preset")
    _require_terminal()

    from . import console, mixer
    from .lora import read_lora
    from .planning import agree
    from .presets import load_presets
    from .recipes import Recipe
    from .sources import Weights
    from .tui import Desk, Mixer

    lora = read_lora(file, family)
    load_presets(presets)  # what is wrong with them is better said now than when they are asked for
    asked = Weights.parse(weights, preset=preset, presets=presets)
    start = mixer.started(mixer.mix_of(lora), agree(lora, asked.for_family))
    recipe = Recipe(
        asked,
        family=family,
        dtype=dtype,
        base=base,
        dora_norm=dora_norm,
        inexact=inexact == "allow",
    )
    mixed = Mixer(Desk(lora, start, recipe, presets)).run()
    if mixed is None:
        raise typer.Exit(130)
    console.print_line(mixer.text(mixed))
    if token := mixer.token(mixed, file.stem):
        console.message("prompt", token)


def _require_terminal() -> None:
    """Raise LbwError where no sliders can be shown."""
    try:
        import textual  # noqa: F401
    except ImportError:
        raise LbwError("lbw mix needs textual, which is not installed", "pip install 'lbw-bake[tui]'") from None
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise LbwError(
            "lbw mix needs a terminal to show its sliders on",
            "give the weights to lbw bake as --preset NAME or --weights VECTOR",
        )
