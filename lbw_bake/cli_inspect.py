"""The commands that look and measure: `lbw inspect` and `lbw diff`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .cli_options import FamilyName, Json, Quiet, files_like, path
from .errors import LbwError

Theme = Literal["light", "dark"]


def inspect(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", parser=path, callback=files_like, help="LoRA files.")
    ],
    elements: Annotated[
        bool, typer.Option("--elements", help="By kind of layer (attn1, ff, conv, ...) instead of by block.")
    ] = False,
    spectrum: Annotated[
        bool, typer.Option("--spectrum", help="Also the strongest direction, and how many there are (slower).")
    ] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw it too: a .png or .svg file.")] = None,
    theme: Annotated[Theme, typer.Option("--theme", help="Background of the picture.")] = "light",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing picture.")] = False,
    family: FamilyName = None,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what is in a LoRA and where its strength lies, block by block.

    Several files are put side by side.

    [dim]lbw inspect character.safetensors style.safetensors[/dim]
    """
    from . import Inspection, console, render_inspection
    from . import inspect as inspect_file

    if plot:
        from . import plots

        plots.check(plot, replace=force)
    read: list[Inspection] = []
    for file in files:
        try:
            facts = inspect_file(file, family=family, spectra=spectrum)
        except LbwError as error:
            console.error(error, {"file": str(file)} if json_output else None)
            continue
        read.append(facts)
        if json_output:
            console.print_json(render_inspection.inspection_json(facts, spectra=spectrum))
    shown = read and not (json_output or quiet)
    if shown and len(read) > 1:
        render_inspection.side_by_side(read, elements=elements, spectra=spectrum)
    elif shown:
        render_inspection.inspection(read[0], elements=elements, spectra=spectrum)
    if plot and read:
        plots.draw(read, plot, elements=elements, theme=theme, replace=force)
        if not quiet:
            console.message("written", str(plot))
    if len(read) < len(files):
        raise typer.Exit(1)


def diff(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", parser=path, help="The LoRA as it was.")],
    baked: Annotated[Path, typer.Argument(metavar="BAKED", parser=path, help="The LoRA as it became, by any tool.")],
    family: FamilyName = None,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the weight every block really got, and check a baked file against its record.

    Exits with 1 if they disagree.

    [dim]lbw diff doraemon.safetensors doraemon-midd.safetensors[/dim]
    """
    from . import console, render
    from . import diff as measure

    facts = measure(original, baked, family=family)
    (console.print_json(render.comparison_json(facts)) if json_output else render.comparison(facts, quiet=quiet))
    if facts.matches_record is False:
        raise typer.Exit(1)
