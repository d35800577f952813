"""What several commands share: values of options, and the panels of the help page they are in."""

import os
import sys
from functools import partial
from glob import glob
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .completion import family_names

weighing = partial(typer.Option, rich_help_panel="Weights")
writing = partial(typer.Option, rich_help_panel="Output")
running = partial(typer.Option, rich_help_panel="How to run")
_exact = partial(typer.Option, rich_help_panel="DoRA and OFT at weights other than 0 and 1")


def path(text: str) -> Path:
    """A path as given. An empty one is a shell variable that is not set, and must not mean the current folder."""
    if not text:
        raise typer.BadParameter("an empty path; is a variable not set?")
    return Path(text)


def file_path(text: str) -> Path:
    """The path of a file to write: one that ends like a folder's is a slip."""
    if text.endswith(("/", os.sep)):
        raise typer.BadParameter(f"{text!r} names a folder; give a file, or the folder as --out-dir")
    return path(text)


def files_like(given: Any) -> Any:  # of a list typer asks what class it is one of, and Python 3.10 has no answer
    """Inputs as given, and on Windows, whose shells leave that to programs, the files that those with * or ? match."""
    if sys.platform != "win32":
        return given
    found: list[Any] = []
    for each in given:
        pattern = str(each).replace("[", "[[]")
        matching = sorted(glob(pattern)) if set("*?") & set(pattern) else []  # noqa: PTH207 - it may be absolute
        found += map(type(each), matching or [str(each)])
    return found


class Misuse(typer.BadParameter):
    """Options that do not go together: the option first, which may not have been given at all, then what to do."""

    def format_message(self) -> str:
        """What is said, without typer's "Invalid value for"."""
        return f"{self.param_hint}: {self.message}"


def refuse(*mistakes: tuple[bool, str, str]) -> None:
    """Raise Misuse for the first mistake that is made, each given as whether it is, the option, what is wrong."""
    for made, option, message in mistakes:
        if made:
            raise Misuse(message, param_hint=option)


FamilyName = Annotated[
    str | None, running("--family", autocompletion=family_names, help="Model family, where the file does not tell.")
]
PresetsFile = Annotated[Path | None, weighing("--presets", help="A presets file on top of your own.")]
Force = Annotated[bool, writing("--force", "-f", help="Replace what is there.")]
Quiet = Annotated[bool, running("--quiet", "-q", help="Print errors only.")]
Strict = Annotated[bool, running("--strict", help="Turn every warning into an error.")]
Json = Annotated[bool, running("--json", help="Print one JSON object per file on stdout.")]

Device = Literal["auto", "cpu", "cuda"]
Dtype = Annotated[
    Literal["keep", "f16", "bf16", "f32"], writing("--dtype", help="Store floating tensors in this dtype.")
]
BaseModelPath = Annotated[
    Path | None,
    _exact("--base", exists=True, help="The base model, a .safetensors file or a diffusers folder: exact results."),
]
DoraNorm = Annotated[
    Literal["comfyui", "lycoris"],
    _exact("--dora-norm", help="Whose reading of DoRA magnitudes per output row is meant."),
]
Inexact = Annotated[
    Literal["refuse", "allow"],
    _exact("--inexact", help="Without --base: refuse, or do the nearest thing and say how near."),
]
