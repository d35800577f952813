"""What Python programs call, and the command line too: each command of `lbw` as a function.

Nothing here prints or exits. What a user can get wrong is raised as an `LbwError` with a message and a hint. Paths may
be strings; families, presets and devices are named as on the command line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import lbw_bake  # whose names are imported when somebody looks at the types of these functions

from .arguments import AnyPath, path_of, several
from .console import is_dumb
from .errors import LbwError, VariableError
from .families import Family
from .progress import Progress, silent, unhandled
from .sources import Given, Weights

AnyWeights = Weights | Given


def bake(
    input: AnyPath,  # noqa: A002 - the word of the command line
    output: AnyPath | None,
    weights: AnyWeights,
    *,
    family: Family | str | None = None,
    dtype: str = "keep",
    rank: int | None = None,
    base: AnyPath | None = None,
    dora_norm: str = "comfyui",
    inexact: bool = False,
    prune: bool = False,
    device: str = "auto",
    strict: bool = False,
    verify: bool = False,
    update_metadata: bool = True,
    replace: bool = False,
    in_place: bool = False,
    dry_run: bool = False,
) -> lbw_bake.Outcome:
    """Write a LoRA with block weights multiplied in, so that any program loads it with a plain weight.

    `weights` are a preset's name, a vector, block rules or a prompt token as text; numbers in the order of a layout;
    numbers by block selector; a `Preset`; or `Weights`, which have more to choose. With `dry_run` nothing is written,
    and `output` may be None. Every other option is that of `lbw bake` of the same name: `dtype` is `keep`, `f16`,
    `bf16` or `f32`, the dtype floating tensors are stored as; `device` is `auto`, `cpu` or `cuda`; `dora_norm` is
    `comfyui` or `lycoris`. `inexact` is `--inexact allow`, `replace` is `--force`, and `update_metadata=False` is
    `--no-metadata-update`.

    Returns what was done: the weight of every block, how many modules were copied, scaled, zeroed and removed, bytes,
    seconds, warnings. Raises FileFormatError for what is no safetensors file, NotALoraError, UnknownFamilyError,
    AmbiguousFamilyError, WeightError, PresetError, NotBakeableError where no file of this kind can hold the result,
    OutputError (also if the output exists, without `replace`), DeviceError, VerificationError with `verify`, and
    StrictError for warnings with `strict`.
    """
    from .jobs import Job
    from .recipes import Recipe
    from .run import run

    recipe = Recipe(
        Weights.of(weights),
        family=family,
        dtype=dtype,
        rank=rank,
        base=path_of(base),
        dora_norm=dora_norm,
        inexact=inexact,
        prune=prune,
        device=device,
        strict=strict,
        verify=verify,
        dry_run=dry_run,
        update_metadata=update_metadata,
        replace=replace,
        in_place=in_place,
    )
    (outcome,) = run(Job(Path(input), ((path_of(output), recipe),)))
    if outcome.error:
        raise outcome.error
    return outcome


def merge(
    loras: AnyPath | Iterable[AnyPath | tuple[AnyPath, AnyWeights]],
    output: AnyPath | None,
    *,
    family: Family | str | None = None,
    rank: int | None = None,
    dtype: str = "keep",
    base: AnyPath | None = None,
    dora_norm: str = "comfyui",
    device: str = "auto",
    strict: bool = False,
    replace: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> lbw_bake.Merged:
    """Write one LoRA whose update is the exact sum of several, each with its own weights (default: all ones).

    `loras` are paths, or pairs of a path and its weights. `rank` truncates every product and full difference to that
    rank; with `dry_run` the sum is computed and not written, and `output` may be None. `progress` is told the share
    that is done, from 0 to 1. The options are those of `lbw merge`. Raises what `bake` raises.
    """
    from .errors import OutputError
    from .jobs import NO_OUTPUT
    from .merging import merge_parts, read_parts
    from .recipes import Recipe
    from .remarks import name_remarks

    how = Recipe(
        family=family,
        rank=rank,
        dtype=dtype,
        base=path_of(base),
        dora_norm=dora_norm,
        device=device,
        strict=strict,
        replace=replace,
        dry_run=dry_run,
    )
    if output is None and not dry_run:
        raise OutputError(*NO_OUTPUT)
    given = [(one, Weights()) if isinstance(one, str | os.PathLike) else one for one in several(loras)]
    parts = read_parts([(Path(path), Weights.of(weights)) for path, weights in given], family)
    target = path_of(output)
    with unhandled(progress) as tell:
        return merge_parts(parts, target, how, tell, name_remarks(target))


def mix(
    path: AnyPath,
    weights: AnyWeights | None = None,
    *,
    family: Family | str | None = None,
    presets: AnyPath | None = None,
    dtype: str = "keep",
    base: AnyPath | None = None,
    dora_norm: str = "comfyui",
    inexact: bool = False,
) -> lbw_bake.Mix | None:
    """Show the sliders of `lbw mix` on the terminal, from these weights on (default: all ones).

    Presets that are saved go to the file `presets`, or the user's own; the other options say how files are baked.
    Returns the mix that the sliders are left at, whose `weights` are numbers by block, or None if that was interrupted.
    Raises LbwError without textual or a terminal, WeightError for weights that no sliders can show, and what `bake`
    raises for the file.
    """
    _require_terminal()
    from .lora import read_lora
    from .mixer import mix_of, started
    from .planning import agree
    from .presets import load_presets
    from .recipes import Recipe
    from .tui import Mixer

    lora = read_lora(Path(path), family)
    load_presets(presets)  # what is wrong with them is better said now than when they are asked for
    asked = weights if isinstance(weights, Weights) else Weights.parse(weights, presets=presets)
    recipe = Recipe(asked, family=family, dtype=dtype, base=path_of(base), dora_norm=dora_norm, inexact=inexact)
    try:
        start = started(mix_of(lora), agree(lora, asked.for_family))
    except VariableError as error:
        raise error.where({}) from None
    with _stdout_on_terminal():
        return Mixer(lora, start, recipe, path_of(presets)).run()


def _require_terminal() -> None:
    """Raise LbwError where no sliders can be shown."""
    if find_spec("textual") is None:
        raise LbwError("lbw mix needs textual, which is not installed", 'pip install "lbw-bake[tui]"')
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or is_dumb():
        raise LbwError(
            "lbw mix needs a terminal to show its sliders on",
            "give the weights to lbw bake as --preset NAME or --weights VECTOR",
        )


@contextmanager
def _stdout_on_terminal() -> Iterator[None]:
    """Let stdout be the terminal that stderr is: it is what textual asks for the size, wherever it draws."""
    stdout = sys.__stdout__
    if stdout is None or stdout.isatty():
        yield
        return
    stdout.flush()
    kept = os.dup(stdout.fileno())
    os.dup2(sys.stderr.fileno(), stdout.fileno())
    try:
        yield
    finally:
        stdout.flush()
        os.dup2(kept, stdout.fileno())
        os.close(kept)
