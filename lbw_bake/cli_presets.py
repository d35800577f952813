"""The commands about preset files: `lbw validate` and `lbw presets ...`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from .completion import all_preset_names, element_rules, family_names
from .errors import PresetError

app = typer.Typer(name="presets", help="List, show, add, remove and convert presets.", no_args_is_help=True)

PresetsFile = Annotated[Path | None, typer.Option("--presets", help="A presets file on top of your own.")]
ChangedFile = Annotated[Path | None, typer.Option("--presets", help="The presets.yaml to change, if not your own.")]
PresetName = Annotated[str, typer.Argument(autocompletion=all_preset_names, help="The preset's name.")]
FamilyName = Annotated[str | None, typer.Option("--family", autocompletion=family_names, help="For this model family.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


Kind = Literal["yaml", "lbwpresets", "elempresets", "inspire"]
Format = Literal["text", "json", "github", "sarif"]


def validate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Preset files, folders of them, or - for standard input.")
    ],
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format", help="How to print findings. In GitHub Actions github, else text.", show_default=False
        ),
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="What the files are, where name and content do not tell.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print findings only.")] = False,
) -> None:
    """Check preset files: presets.yaml, lbwpresets.txt, elempresets.txt, the Inspire Pack's.

    Exits 1 if a file has errors. docs/preset-rules.md explains every code.
    """
    from . import checks, console, reports
    from . import validate as check_file
    from .presets.formats import read_data

    for file in files:
        if file != checks.STDIN and not file.exists():
            raise typer.BadParameter(f"{console.escape(file)} does not exist", param_hint="FILE")
    results = [
        checks.check(read_data(sys.stdin.buffer), file, kind) if file == checks.STDIN else check_file(file, kind=kind)
        for file in checks.find_preset_files(files)
    ]
    default = "github" if os.environ.get("GITHUB_ACTIONS") == "true" else "text"
    for line in reports.FORMATS[format_ or default](results):
        typer.echo(line)
    errors = sum(result.errors for result in results)
    warnings = sum(len(result.findings) for result in results) - errors
    if not quiet:
        presets = _count(sum(result.presets for result in results), "preset")
        found = (
            f"{_count(errors, 'error')}, {_count(warnings, 'warning')}" if errors or warnings else "nothing to report"
        )
        console.message("done", f"{found} in {presets} of {_count(len(results), 'file')}")
    if errors or (strict and warnings):
        raise typer.Exit(1)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@app.command("list")
def list_presets(family: FamilyName = None, presets: PresetsFile = None, json_output: Json = False) -> None:
    """List the presets in force, where each comes from, and what it does: ▁ is a weight of 0, █ of 1."""
    from . import console, render_presets
    from .families import family_named
    from .presets import load_presets

    known = list(load_presets(presets).values())
    chosen = family_named(family) if family else None
    if json_output:
        console.print_json([render_presets.preset_json(preset) for preset in known])
    else:
        render_presets.presets_table(known, chosen)


@app.command()
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
    from . import console, render_presets
    from .families import family_named
    from .presets import find_preset, load_presets
    from .weights import Options, resolve

    preset = find_preset(name, load_presets(presets))
    if family is None:
        (console.print_json(render_presets.preset_json(preset)) if json_output else render_presets.preset_lines(preset))
        return
    chosen = family_named(family)
    options = Options(x=x, seed=seed, a=a, b=b, elements=preset.elements)
    weights = resolve(preset.source_for(chosen, layout), chosen, options)
    if json_output:
        console.print_json(render_presets.weights_json(preset, weights))
    else:
        render_presets.weights_table(preset, weights)


@app.command(context_settings={"ignore_unknown_options": True})
def add(
    name: PresetName,
    weights: Annotated[
        str | None, typer.Argument(help="A vector, block rules, or % rules.", show_default=False)
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
    """Add a preset to your own file, or an entry for one more family to one of your presets.

    [dim]lbw presets add FACE 1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0 -d "sharper faces"[/dim]
    """
    from . import console
    from .families import family_named
    from .own_presets import add_preset, own_path, saved_lines
    from .presets import Entry, Preset
    from .weights import parse_elements, parse_source, written_out

    if weights is None and not element:
        raise typer.BadParameter("give a vector, block rules or --element", param_hint="WEIGHTS")
    if weights is not None and not written_out(weights):
        raise typer.BadParameter("give a vector like 1,0,0.5,... or rules like IN04=0.5", param_hint="WEIGHTS")
    path = own_path(presets)
    entries = (Entry(family_named(family).name if family else None, parse_source(weights), 1),) if weights else ()
    elements = tuple(rule for text in element or () for rule in parse_elements(text))
    added = Preset(name.strip(), entries, path, 1, description.strip(), elements)
    add_preset(added, replacing=force)
    for label, text in saved_lines(added.name, path):
        console.message(label, text)


@app.command()
def remove(
    name: PresetName,
    presets: ChangedFile = None,
) -> None:
    """Remove a preset from your own file."""
    from . import console
    from .errors import nearest
    from .own_presets import own_path, text_of, write_text
    from .presets import builtin_path
    from .presets.editing import without_preset
    from .presets.formats import parse_presets, read_presets

    path = own_path(presets)
    text = text_of(path)
    own = [preset.name for preset in parse_presets(text, path)]
    if name not in own:
        builtin = name in {preset.name for preset in read_presets(builtin_path())}
        why = "is built in, it can be replaced but not removed" if builtin else f"is not in {path}"
        raise PresetError(f"preset {name} {why}", "" if builtin else nearest(name, own))
    write_text(path, without_preset(text, path, name), replace=True)
    console.message("removed", f"{name} from {path}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The file to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, - for standard output.")],
    from_: Annotated[Kind | None, typer.Option("--from", help="What IN is, where its name does not tell.")] = None,
    to: Annotated[Kind | None, typer.Option("--to", help="What OUT is, where its name does not tell.")] = None,
    family: FamilyName = None,
    force: Force = False,
) -> None:
    """Turn a preset file into another format. What the new format has no place for is said on stderr."""
    from . import console
    from .families import family_named
    from .own_presets import write_text
    from .presets.formats import comment_lines, kind_by_name, read_presets
    from .presets.writers import WRITERS

    if not source.exists():
        raise typer.BadParameter(f"{console.escape(source)} does not exist", param_hint="IN")
    kind = to or kind_by_name(target)
    if kind is None:
        raise typer.BadParameter(f"{console.escape(target)} does not tell its format; give --to", param_hint="OUT")
    presets = read_presets(source, from_)
    written = WRITERS[kind](presets, family_named(family) if family else None)
    if str(target) == "-":
        typer.echo(written.text, nl=False)
    else:
        write_text(target, written.text, replace=force)
        console.message("written", f"{target} ({kind}, {_count(len(presets), 'preset')} read)")
    for lost in written.lost:
        console.message("lost", lost)
    if comments := comment_lines(source):
        console.message("lost", _count(comments, "comment line"))


@app.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of presets.yaml, for editors that check as you type."""
    import json

    from .presets.schema import schema

    typer.echo(json.dumps(schema(), indent=2))
