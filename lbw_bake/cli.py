"""The command line: arguments in, one call of the core, one call of render, an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .errors import LbwError

app = typer.Typer(
    name="lbw",
    help="Bake LoRA block weights into the LoRA itself.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


Inputs = Annotated[list[Path], typer.Argument(metavar="INPUT...", help="LoRA files, or folders of them.")]
FamilyName = Annotated[str | None, typer.Option("--family", help="Model family, where the file does not tell.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per file on stdout.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"lbw {__version__}")
        raise typer.Exit


@app.callback()
def lbw(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Bake LoRA block weights into the LoRA itself."""


@app.command()
def bake(
    inputs: Inputs,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out-dir", help="The folder to write to, names kept.")] = None,
    preset: Annotated[str | None, typer.Option("--preset", "-p", help="Weights by name: MIDD, OUTALL, ...")] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", "-w", help='A vector (1,0,0.5,...) or block rules ("BASE=1 IN04-IN08=0.5 *=0").'),
    ] = None,
    strength: Annotated[float, typer.Option("--strength", "-s", help="Multiplies everything.")] = 1.0,
    te: Annotated[float, typer.Option("--te", help="Multiplies the text encoders.")] = 1.0,
    unet: Annotated[float, typer.Option("--unet", help="Multiplies the UNet or transformer.")] = 1.0,
    rest: Annotated[float, typer.Option("--rest", help="Weight of the blocks the weights do not list.")] = 0.0,
    other: Annotated[float, typer.Option("--other", help="Weight of what lies in no block (OTHER).")] = 1.0,
    invert: Annotated[bool, typer.Option("--invert", help="Turn every block weight w into 1 - w.")] = False,
    element: Annotated[
        list[str] | None, typer.Option("--element", help='Other weight for some layers: "IN05-OUT05:attn:0.5".')
    ] = None,
    x: Annotated[float | None, typer.Option("--x", help="The value of X in a vector.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Draws R and U in a vector.")] = None,
    layout: Annotated[int | None, typer.Option("--layout", help="The preset's entry of this vector length.")] = None,
    presets: Annotated[Path | None, typer.Option("--presets", help="A presets file on top of your own.")] = None,
    family: FamilyName = None,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Store floating tensors in this dtype.")] = Dtype.keep,
    device: Annotated[Device, typer.Option("--device", help="Where to multiply.")] = Device.auto,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look into subfolders too.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output.")] = False,
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace the input.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Turn every warning into an error.")] = False,
    metadata_update: Annotated[
        bool, typer.Option("--metadata-update/--no-metadata-update", help="Keep hashes and names in the metadata true.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be done, write nothing.")] = False,
    json_output: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the weight of every block.")] = False,
) -> None:
    """Write LoRAs with the block weights multiplied in.

    [dim]lbw bake doraemon.safetensors --preset MIDD -o doraemon-midd.safetensors[/dim]
    """
    from . import batch, render
    from .weights import ONES, Options, parse_element, parse_number, parse_source

    if preset and weights:
        raise typer.BadParameter("give --preset or --weights, not both", param_hint="--weights")
    modified = (strength, te, unet, other) != (1.0,) * 4 or element or dtype is not Dtype.keep
    if not preset and not weights and not modified:
        raise typer.BadParameter("say what to bake: --preset NAME, --weights VECTOR, ...", param_hint="--preset")
    if sum((output is not None, out_dir is not None, in_place)) != 1 and not (dry_run and not in_place):
        raise typer.BadParameter("give one of -o FILE, --out-dir DIR, --in-place", param_hint="--output")
    for name, number in {
        "strength": strength,
        "te": te,
        "unet": unet,
        "rest": rest,
        "other": other,
        "x": x or 0.0,
    }.items():
        parse_number(repr(number), f"--{name}")
    elements = tuple(map(parse_element, element or ()))
    if preset:
        from .presets import find_preset, load_presets

        chosen = find_preset(preset, load_presets(presets))
    recipe = batch.Recipe(
        chosen if preset else parse_source(weights) if weights else ONES,
        Options(strength, te, unet, rest, other, invert, x, seed, elements),
        layout,
        family,
        dtype.value,
        device.value,
        strict,
        metadata_update,
        dry_run,
    )
    files = list(batch.find_inputs(inputs, recursive=recursive))
    if output and len(files) > 1:
        raise typer.BadParameter(f"{len(files)} inputs cannot share one output; give --out-dir", param_hint="--output")
    outcomes = []
    for file in files:
        target = output or (out_dir / file.name if out_dir else file)
        outcome = batch.run(batch.Job(file, target, replace=force or in_place, in_place=in_place), recipe)
        outcomes.append(outcome)
        if json_output:
            render.print_json(batch.outcome_json(outcome))
        if outcome.error or not quiet:
            render.outcome(outcome, verbose=verbose)
    if len(files) > 1 and not quiet:
        render.summary(outcomes)
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="LoRA files.")],
    family: FamilyName = None,
    json_output: Json = False,
) -> None:
    """Show what is in a LoRA: its family, and per block the modules, ranks, bytes and strength."""
    from . import render
    from .inspection import inspect as inspect_file

    failed = False
    for file in files:
        try:
            facts = inspect_file(file, family)
        except LbwError as error:
            render.error(error)
            failed = True
        else:
            (render.print_json(render.inspection_json(facts)) if json_output else render.inspection(facts))
    if failed:
        raise typer.Exit(1)


@app.command()
def diff(
    original: Annotated[Path, typer.Argument(help="The LoRA as it was.")],
    baked: Annotated[Path, typer.Argument(help="The LoRA as it became, by any tool.")],
    family: FamilyName = None,
    json_output: Json = False,
) -> None:
    """Measure the weight every block really got, and hold a baked file to its record."""
    from . import render
    from .comparison import compare

    facts = compare(original, baked, family)
    (render.print_json(render.comparison_json(facts)) if json_output else render.comparison(facts))
    if facts.matches_record is False:
        raise typer.Exit(1)


def main(args: Sequence[str] | None = None) -> None:
    """Run `lbw`: exits 0 when done, 1 when the tool says no, 2 on wrong usage, 130 when interrupted."""
    try:
        app(args)
    except LbwError as error:
        from . import render

        render.error(error)
        sys.exit(1)
