"""The command with sliders: `lbw mix`."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import BaseModelPath, DoraNorm, Dtype, FamilyName, Inexact, path, refuse, weighing


def mix(
    file: Annotated[Path, typer.Argument(metavar="FILE", parser=path, help="A LoRA file.")],
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
    refuse((preset is not None and weights is not None, "--preset", "give one of --preset NAME, --weights VECTOR"))

    from . import Weights, render
    from . import mix as mix_file

    mixed = mix_file(
        file,
        Weights.parse(weights, preset=preset, presets=presets),
        family=family,
        presets=presets,
        dtype=dtype,
        base=base,
        dora_norm=dora_norm,
        inexact=inexact == "allow",
    )
    if mixed is None:
        raise typer.Exit(130)
    render.mixed(mixed, file)
