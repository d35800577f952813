"""The command that bakes a plot: `lbw sweep`, and puts its pictures together: `lbw sweep --grid`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .cli_inspect import Theme
from .cli_options import BaseModelPath, Device, DoraNorm, Dtype, FamilyName, Inexact, Misuse, path, refuse, writing
from .completion import preset_names

_axes = partial(typer.Option, rich_help_panel="Axes")
_start = partial(typer.Option, rich_help_panel="What cells start from")
_grid = partial(typer.Option, rich_help_panel="Pictures")


def sweep(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="INPUT", parser=path, help="A LoRA; for --grid, the folder of a sweep."),
    ] = None,
    output: Annotated[
        Path | None, writing("--output", "-o", parser=path, help="The folder to write to; for --grid, the picture.")
    ] = None,
    x: Annotated[
        str | None,
        _axes("--x", help='The columns: "values=0,0.5,1", "blocks=BASE,IN01-IN08,NOT OUT03-OUT11,17ALL", ...'),
    ] = None,
    y: Annotated[str | None, _axes("--y", help='The rows: also "presets=NONE,MIDD".')] = None,
    z: Annotated[str | None, _axes("--z", help='The sheets: also "elements=:attn:0; :ff:0".')] = None,
    analyse: Annotated[
        bool,
        _axes("--analyse", help="The whole LoRA, and one cell for each block at --at; with --x blocks=... only those."),
    ] = False,
    at: Annotated[float, _axes("--at", help="Weight of the chosen blocks where no axis has values.")] = 0.0,
    base_weights: Annotated[
        str | None,
        _start(
            "--base-weights",
            "-w",
            autocompletion=preset_names,
            help="A preset, vector, rules or token. Default: all ones.",
        ),
    ] = None,
    strength: Annotated[float, _start("--strength", "-s", help="Multiplies everything.")] = 1.0,
    seed: Annotated[int | None, _start("--seed", help="Draws R and U in a vector.")] = None,
    layout: Annotated[int | None, _start("--layout", help="The presets' entries of this vector length.")] = None,
    presets: Annotated[Path | None, _start("--presets", help="A presets file on top of your own.")] = None,
    family: FamilyName = None,
    dtype: Dtype = "keep",
    base: BaseModelPath = None,
    dora_norm: DoraNorm = "comfyui",
    inexact: Inexact = "refuse",
    device: Annotated[Device, writing("--device", help="Where to multiply.")] = "auto",
    max_size: Annotated[str, writing("--max-size", help="Refuse to write more than this without --yes.")] = "20GB",
    yes: Annotated[bool, writing("--yes", help="Write it all, however much it is.")] = False,
    force: Annotated[bool, writing("--force", "-f", help="Replace existing files.")] = False,
    skip_existing: Annotated[
        bool,
        writing("--skip-existing", help="Go on with a sweep: leave files that are there as they would be written."),
    ] = False,
    dry_run: Annotated[bool, writing("--dry-run", "-n", help="Say what would be written, write nothing.")] = False,
    grid: Annotated[
        Path | None, _grid("--grid", parser=path, help="Put the pictures in this folder, named as the files, into one.")
    ] = None,
    tile: Annotated[int, _grid("--tile", min=16, help="The longer side of each picture in it.")] = 512,
    threshold: Annotated[
        int, _grid("--threshold", min=0, max=255, help="How much a colour (0-255) must change to count.")
    ] = 20,
    theme: Annotated[Theme, _grid("--theme", help="Background of the picture.")] = "light",
    json_output: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Write one LoRA per cell of an XYZ plot, so that any program can draw it.

    [dim]lbw sweep x.safetensors -o plot --x "values=0,0.5,1" --y "blocks=17ALL"[/dim]
    """
    given = {name: text for name, text in (("x", x), ("y", y), ("z", z)) if text is not None}
    sweeping = bool(given) or analyse or base_weights is not None or dry_run or skip_existing
    drawing = (tile, threshold, theme) != (512, 20, "light")
    refuse(
        (
            bool(grid) and sweeping,
            "--grid",
            "puts the pictures of a sweep together; leave out axes, weights, -n, --skip-existing",
        ),
        (not grid and drawing, "--grid", "--tile, --threshold and --theme are for pictures; give their folder"),
        (not grid and not given and not analyse, "--x", "give an axis, or --analyse"),
        (analyse and bool(set(given) - {"x"}), "--analyse", "analyses one row of blocks; give no other axis than --x"),
        (skip_existing and force, "--skip-existing", "is the opposite of --force"),
    )
    if grid:
        from . import assemble_grid, render_sweep

        picture = output or grid / "grid.png"
        made = assemble_grid(source or grid, grid, picture, tile=tile, threshold=threshold, theme=theme, replace=force)
        render_sweep.assembled(made, picture, quiet=quiet, json=json_output)
        return
    if source is None or (output is None and not dry_run):
        raise Misuse("give a LoRA and a folder: lbw sweep x.safetensors -o plot", param_hint="INPUT")

    from . import Options, Recipe, Weights, console, make_sweep, render_sweep, words, write_sweep
    from .bars import share_bar

    limit = words.parse_size(max_size)
    recipe = Recipe(
        Weights.parse(base_weights, presets=presets, options=Options(strength, seed=seed), layout=layout),
        family=family,
        dtype=dtype,
        base=base,
        dora_norm=dora_norm,
        inexact=inexact == "allow",
        device=device,
    )
    plot = make_sweep(source, given, recipe, analyse=analyse, at=at, presets=presets)
    render_sweep.planned(plot, quiet=quiet)
    if output:
        most = None if yes else limit
        write = partial(write_sweep, limit=most, replace=force, skip_existing=skip_existing, dry_run=dry_run)
        with share_bar("writing", quiet=quiet or dry_run) as progress:
            sizes = list(write(plot, output, progress=progress))
        if not (quiet or dry_run):
            render_sweep.written(plot, output, sizes)
    if json_output:
        console.print_json(plot.manifest)
