"""What several commands share: values of options, and the panels of the help page they are in."""

from __future__ import annotations

from enum import Enum
from functools import partial
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


weighing = partial(typer.Option, rich_help_panel="Weights")
writing = partial(typer.Option, rich_help_panel="Output")
running = partial(typer.Option, rich_help_panel="How to run")

FamilyName = Annotated[
    str | None, running("--family", autocompletion=family_names, help="Model family, where the file does not tell.")
]
Json = Annotated[bool, running("--json", help="Print one JSON object per file on stdout.")]
