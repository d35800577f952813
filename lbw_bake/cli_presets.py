"""The commands about preset files: `lbw validate` and `lbw presets ...`."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from .cli_options import files_like, path, refuse
from .completion import all_preset_names, element_rules, family_names

presets = typer.Typer(name="presets", help="List, show, add, remove and convert presets.", no_args_is_help=True)

PresetsFile = Annotated[Path | None, typer.Option("--presets", help="A presets file on top of your own.")]
ChangedFile = Annotated[Path | None, typer.Option("--presets", help="The presets.yaml to change, if not your own.")]
PresetName = Annotated[str, typer.Argument(metavar="NAME", autocompletion=all_preset_names, help="The preset's name.")]
FamilyName = Annotated[str | None, typer.Option("--family", autocompletion=family_names, help="The model family.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]

Kind = Literal["yaml", "lbwpresets", "elempresets", "inspire"]
Format = Literal["text", "json", "github", "sarif"]


def validate(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", parser=path, callback=files_like, help="Preset files or folders; - is standard input."
        ),
    ],
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format", help="How to print findings; default: github in GitHub Actions, else text.", show_default=False
        ),
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="Their format, where name and content do not tell.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print findings only.")] = False,
) -> None:
    """Check preset files: presets.yaml, lbwpresets.txt, elempresets.txt, the Inspire Pack's.

    Exits with 1 if a file has errors or cannot be read. docs/preset-rules.md explains every code.
    """
    from . import console, reports, validate_all

    refuse((json_output and format_ not in (None, "json"), "--json", f"--format {format_} is another format"))
    results = list(validate_all(files, kind=kind))
    default = "json" if json_output else "github" if os.environ.get("GITHUB_ACTIONS") == "true" else "text"
    for line in reports.FORMATS[format_ or default](results):
        typer.echo(line)
    if not quiet:
        console.message("done", reports.summary(results))
    if any(result.errors or (strict and result.findings) for result in results):
        raise typer.Exit(1)


@presets.command("list")
def list_presets(family: FamilyName = None, presets: PresetsFile = None, json_output: Json = False) -> None:
    """List the presets in force, where each comes from, and what it does: ▁ is a weight of 0, █ of 1."""
    from . import console, load_presets, render_presets

    known = load_presets(presets).values()
    if json_output:
        console.print_json(render_presets.presets_json(known, family))
    else:
        render_presets.presets_table(known, family)


@presets.command()
def show(
    name: PresetName,
    family: FamilyName = None,
    layout: Annotated[int | None, typer.Option("--layout", help="Its entry of this vector length.")] = None,
    x: Annotated[float | None, typer.Option("--x", help="The value of X.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Draws R and U.")] = None,
    a: Annotated[float | None, typer.Option("--a", help="The value of A; a is half of it.")] = None,
    b: Annotated[float | None, typer.Option("--b", help="The value of B; b is half of it.")] = None,
    presets: PresetsFile = None,
    json_output: Json = False,
) -> None:
    """Show a preset as it is written, or with --family the weight of every block."""
    from . import Options, Weights, console, find_preset, load_presets, render_presets

    choosing = any(option is not None for option in (layout, x, seed, a, b))
    refuse((family is None and choosing, "--family", "--layout, --x, --seed, --a and --b need a family"))
    preset = find_preset(name, load_presets(presets))
    if family is None:
        (console.print_json(render_presets.preset_json(preset)) if json_output else render_presets.preset_lines(preset))
        return
    options = Options(x=x, seed=seed, a=a, b=b, elements=preset.elements)
    weights = Weights(preset, options, layout).for_family(family)
    if json_output:
        console.print_json(render_presets.weights_json(preset, weights))
    else:
        render_presets.weights_table(preset, weights)


@presets.command(context_settings={"ignore_unknown_options": True})
def add(
    name: PresetName,
    weights: Annotated[
        str | None,
        typer.Argument(metavar="WEIGHTS", help="A vector, block rules, or % rules.", show_default=False),
    ] = None,
    family: FamilyName = None,
    element: Annotated[
        list[str] | None,
        typer.Option(
            "--element", autocompletion=element_rules, help='Other weight for some layers: "IN05-OUT05:attn:0.5".'
        ),
    ] = None,
    description: Annotated[str, typer.Option("--description", "-d", help="What it is for.")] = "",
    force: Force = False,
    presets: ChangedFile = None,
) -> None:
    """Add a preset to your own file, or another family's weights to one that is there.

    [dim]lbw presets add FACE 1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0 -d "sharper faces"[/dim]
    """
    from . import add_preset, console, render_presets

    refuse((weights is None and not element, "WEIGHTS", "give a vector, block rules or --element"))
    saved = add_preset(
        name, weights, family=family, elements=element or (), description=description, presets=presets, replace=force
    )
    for label, text in render_presets.saved_lines(name.strip(), saved):
        console.message(label, text)


@presets.command()
def remove(name: PresetName, presets: ChangedFile = None) -> None:
    """Remove a preset from your own file."""
    from . import console, remove_preset

    console.message("removed", f"{name} from {remove_preset(name, presets=presets)}")


@presets.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The file to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, - for standard output.")],
    from_: Annotated[Kind | None, typer.Option("--from", help="Format of IN, where its name does not tell.")] = None,
    to: Annotated[Kind | None, typer.Option("--to", help="Format of OUT, where its name does not tell.")] = None,
    family: FamilyName = None,
    force: Force = False,
) -> None:
    """Write a preset file in another format, and say what that format cannot hold."""
    from . import console, convert_presets, words

    shown = str(target) == "-"
    refuse(
        (not source.exists(), "IN", f"{console.escape(source)} does not exist"),
        (shown and to is None, "OUT", "- does not tell its format; give --to"),
    )
    made = convert_presets(source, None if shown else target, from_=from_, to=to, family=family, replace=force)
    if shown:
        typer.echo(made.text, nl=False)
    else:
        console.message("written", f"{target} ({made.kind}, {words.counted(made.presets, 'preset')} read)")
    for lost in made.lost:
        console.message("lost", lost)


@presets.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of presets.yaml, for editors that check as you type."""
    from . import console, preset_schema

    typer.echo(console.json_text(preset_schema(), indent=2))
