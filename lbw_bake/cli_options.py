"""What several commands share: values of options, and the panels of the help page they are in."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .completion import family_names


class Dtype(str, Enum):
    """What floating tensors are stored as."""

    keep = "keep"
    f16 = "f16"
    bf16 = "bf16"
    f32 = "f32"


class Device(str, Enum):
    """Where the arithmetic runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class DoraNorm(str, Enum):
    """Whose reading of DoRA magnitudes along the output axis is meant."""

    comfyui = "comfyui"
    lycoris = "lycoris"


class Inexact(str, Enum):
    """What becomes of modules that cannot be baked exactly."""

    refuse = "refuse"
    allow = "allow"


weighing = partial(typer.Option, rich_help_panel="Weights")
writing = partial(typer.Option, rich_help_panel="Output")
running = partial(typer.Option, rich_help_panel="How to run")
_exact = partial(typer.Option, rich_help_panel="DoRA and OFT at weights other than 0 and 1")

FamilyName = Annotated[
    str | None, running("--family", autocompletion=family_names, help="Model family, where the file does not tell.")
]
Json = Annotated[bool, running("--json", help="Print one JSON object per file on stdout.")]

BaseModelPath = Annotated[
    Path | None,
    _exact("--base", exists=True, help="The base model, a .safetensors file or a diffusers folder: exact results."),
]
DoraNormName = Annotated[
    DoraNorm, _exact("--dora-norm", help="Whose reading of DoRA magnitudes per output row is meant.")
]
InexactName = Annotated[
    Inexact, _exact("--inexact", help="Without --base: refuse, or do the nearest thing and say how near.")
]
