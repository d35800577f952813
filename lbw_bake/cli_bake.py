"""The commands that write one LoRA of others: `lbw bake` and `lbw merge`."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import (
    BaseModelPath,
    Device,
    DoraNorm,
    Dtype,
    FamilyName,
    Force,
    Inexact,
    Json,
    PresetsFile,
    Quiet,
    Strict,
    file_path,
    files_like,
    path,
    refuse,
    running,
    weighing,
    writing,
)
from .completion import block_rules, element_preset_names, element_rules, preset_names

_output = writing("--output", "-o", parser=file_path, metavar="<path>", help="The file to write.")


def bake(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", parser=path, callback=files_like, help="LoRA files, or folders of them."),
    ],
    output: Annotated[Path | None, _output] = None,
    out_dir: Annotated[Path | None, writing("--out-dir", parser=path, help="The folder to write to.")] = None,
    name: Annotated[
        str | None, writing("--name", help='Names in --out-dir, as "{stem}-{preset}".', show_default=False)
    ] = None,
    preset: Annotated[
        list[str] | None,
        weighing(
            "--preset",
            "-p",
            autocompletion=preset_names,
            help="Weights by name: MIDD, OUTALL, ... Several write several files.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        weighing(
            "--weights",
            "-w",
            autocompletion=block_rules,
            help='A vector (1,0,0.5,...) or block rules ("BASE=1 IN04-IN08=0.5 *=0").',
        ),
    ] = None,
    token: Annotated[
        str | None,
        weighing("--token", help='A pasted prompt token: "<lora:NAME:0.7:lbw=MIDD:te=0.5>".'),
    ] = None,
    strength: Annotated[float, weighing("--strength", "-s", help="Multiplies everything.")] = 1.0,
    te: Annotated[float, weighing("--te", help="Multiplies the text encoders.")] = 1.0,
    unet: Annotated[float, weighing("--unet", help="Multiplies the UNet or transformer.")] = 1.0,
    rest: Annotated[float, weighing("--rest", help="Weight of the blocks the weights do not list.")] = 0.0,
    other: Annotated[
        float | None,
        weighing("--other", help="Weight of what is in no block (OTHER). Else 1, or as the weights say."),
    ] = None,
    invert: Annotated[bool, weighing("--invert", help="Turn every block weight w into 1 - w.")] = False,
    element: Annotated[
        list[str] | None,
        weighing(
            "--element", autocompletion=element_rules, help='Other weight for some layers: "IN05-OUT05:attn:0.5".'
        ),
    ] = None,
    element_preset: Annotated[
        list[str] | None,
        weighing(
            "--element-preset", autocompletion=element_preset_names, help="Element rules by name: ATTNDEEPON, ..."
        ),
    ] = None,
    x: Annotated[float | None, weighing("--x", help="The value of X in a vector.")] = None,
    seed: Annotated[int | None, weighing("--seed", help="Draws R and U in a vector.")] = None,
    a: Annotated[float | None, weighing("--a", help="The value of A in a vector, as the Inspire Pack has it.")] = None,
    b: Annotated[float | None, weighing("--b", help="The value of B in a vector, as the Inspire Pack has it.")] = None,
    layout: Annotated[int | None, weighing("--layout", help="The preset's entry of this vector length.")] = None,
    presets: PresetsFile = None,
    family: FamilyName = None,
    dtype: Dtype = "keep",
    rank: Annotated[int | None, writing("--rank", min=1, help="Truncate every product to this rank.")] = None,
    base: BaseModelPath = None,
    dora_norm: DoraNorm = "comfyui",
    inexact: Inexact = "refuse",
    prune: Annotated[bool, writing("--prune", help="Leave out modules of weight 0 where that is safe.")] = False,
    device: Annotated[Device, running("--device", help="Where to multiply.")] = "auto",
    recursive: Annotated[bool, running("--recursive", "-r", help="Look into subfolders too.")] = False,
    include: Annotated[list[str] | None, running("--include", help="Of a folder, only files like *style*.")] = None,
    exclude: Annotated[list[str] | None, running("--exclude", help="Of a folder, no files like *style*.")] = None,
    workers: Annotated[int, running("--jobs", "-j", min=0, help="Files at a time; 0 means one per core.")] = 0,
    cluster: Annotated[
        str | None, running("--cluster", help="Address of a Dask scheduler to give the files to.")
    ] = None,
    skip_existing: Annotated[bool, writing("--skip-existing", help="Leave existing outputs as they are.")] = False,
    force: Force = False,
    in_place: Annotated[bool, writing("--in-place", help="Replace the input.")] = False,
    strict: Strict = False,
    verify: Annotated[
        bool, writing("--verify", help="Read the output again and check every number before it appears.")
    ] = False,
    no_metadata_update: Annotated[
        bool, writing("--no-metadata-update", help="Leave hashes and names in the metadata as they are.")
    ] = False,
    dry_run: Annotated[bool, running("--dry-run", "-n", help="Say what would be done, write nothing.")] = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, running("--verbose", "-v", help="Print the weight of every block.")] = False,
) -> None:
    """Write LoRAs with the block weights multiplied in.

    [dim]lbw bake doraemon.safetensors --preset MIDD -o doraemon-midd.safetensors[/dim]
    """
    from . import Naming, Options, Recipe, Weights, make_batch, render, run_batch

    plain = (strength, te, unet, other, dtype, rank) == (1.0, 1.0, 1.0, None, "keep", None)
    modified = not plain or element or element_preset
    ways = sum((bool(preset), weights is not None, token is not None))
    places = sum((output is not None, out_dir is not None, in_place))
    single = {"--weights": weights, "--token": token, "--name": name, "--family": family, "--cluster": cluster}
    several = {"--preset": preset, "--element": element, "--element-preset": element_preset}
    several |= {"--include": include, "--exclude": exclude}
    texts = [(option, text) for option, text in single.items() if text is not None]
    texts += [(option, text) for option, given in several.items() for text in given or ()]
    refuse(
        *((not text.strip(), option, "an empty text says nothing") for option, text in texts),
        (ways > 1 or not (ways or modified), "--preset", "give one of --preset NAME, --weights VECTOR, --token TOKEN"),
        (places != 1 and (in_place or not dry_run), "--output", "give one of -o FILE, --out-dir DIR, --in-place"),
        (
            bool(output) and len(inputs) > 1,
            "--output",
            f"{len(inputs)} inputs are not one file; give --out-dir, or put quotes around what holds spaces",
        ),
        (bool(output or in_place) and len(preset or ()) > 1, "--output", "each preset is a file; give --out-dir"),
        (name is not None and not out_dir, "--name", "names files in a folder; give --out-dir too"),
        (layout is not None and not preset, "--layout", "chooses among a preset's vectors; give --preset too"),
        (bool(cluster) and in_place, "--cluster", "may do a file twice, which --in-place cannot bear"),
        (rank is not None and in_place, "--rank", "writes another file; give -o or --out-dir"),
        (
            rank is not None and (prune or verify or inexact == "allow" or no_metadata_update),
            "--rank",
            "writes every module anew; leave out --prune, --verify, --inexact and --no-metadata-update",
        ),
        (skip_existing and (in_place or force), "--skip-existing", "is the opposite of --in-place and --force"),
    )
    recipes = [
        Recipe(
            Weights.parse(
                weights,
                preset=one,
                token=token,
                elements=element or (),
                element_presets=element_preset or (),
                presets=presets,
                options=Options(strength, te, unet, rest, other, invert, x, seed, a=a, b=b),
                layout=layout,
            ),
            family=family,
            dtype=dtype,
            rank=rank,
            base=base,
            dora_norm=dora_norm,
            inexact=inexact == "allow",
            prune=prune,
            device=device,
            strict=strict,
            verify=verify,
            update_metadata=not no_metadata_update,
            dry_run=dry_run,
            replace=force,
            in_place=in_place,
            skip_existing=skip_existing,
        )
        for one in preset or (None,)
    ]
    template = name or ("{stem}-{preset}" if len(recipes) > 1 else "{stem}")
    batch = make_batch(
        inputs,
        recipes,
        Naming(output, out_dir, in_place, template),
        recursive=recursive,
        include=include or (),
        exclude=exclude or (),
    )
    with render.Report(batch, quiet=quiet, verbose=verbose, json=json_output) as report:
        report.take(run_batch(batch, workers=workers, cluster=cluster, say=report.say, watch=report.watch))
    if report.failed:
        raise typer.Exit(1)


def merge(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[:STRENGTH[:WEIGHTS]]...", callback=files_like, help="LoRAs, as a.safetensors:0.7:MIDD."
        ),
    ],
    output: Annotated[Path, _output],
    rank: Annotated[int | None, writing("--rank", min=1, help="Truncate every module to this rank.")] = None,
    dtype: Dtype = "keep",
    base: BaseModelPath = None,
    dora_norm: DoraNorm = "comfyui",
    force: Force = False,
    presets: PresetsFile = None,
    family: FamilyName = None,
    device: Annotated[Device, running("--device", help="Where to truncate.")] = "auto",
    strict: Strict = False,
    dry_run: Annotated[bool, running("--dry-run", "-n", help="Add them up, write nothing.")] = False,
    quiet: Quiet = False,
    json_output: Json = False,
) -> None:
    """Add several LoRAs up into one, exactly, each with its strength and block weights.

    [dim]lbw merge a.safetensors:0.7:MIDD b.safetensors:0.5 -o ab.safetensors[/dim]
    """
    from . import merge as merge_loras
    from . import parse_part, render
    from .bars import share_bar

    parts = [parse_part(text, presets) for text in inputs]
    with share_bar("merging", quiet=quiet) as progress:
        merged = merge_loras(
            parts,
            output,
            family=family,
            rank=rank,
            dtype=dtype,
            base=base,
            dora_norm=dora_norm,
            device=device,
            strict=strict,
            replace=force,
            dry_run=dry_run,
            progress=progress,
        )
    render.merged(merged, output, dry_run=dry_run, quiet=quiet, json=json_output)
