"""The command line: arguments in, one call of the core, one call of render, an exit code.

Annotations of the commands are not postponed: to have each evaluated from its text takes typer 20 ms of every start.
"""

import codecs
import errno
import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from io import TextIOWrapper
from itertools import takewhile
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from . import console
from .errors import LbwError
from .interrupts import end_quietly

# Command -> the module that has it. One that is named is the only one to be loaded: typer reads all options of each.
_COMMANDS = {
    "bake": "cli_bake",
    "merge": "cli_bake",
    "inspect": "cli_inspect",
    "diff": "cli_inspect",
    "sweep": "cli_sweep",
    "mix": "cli_mix",
    "validate": "cli_presets",
    "presets": "cli_presets",
}

# Why a stream takes no more, EINVAL being how Windows says EPIPE; what else has no path is something else's.
_OF_STDOUT = {errno.EPIPE, errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class _Command(TyperCommand):
    """A command that has long options with one dash refused: -preset would be -p with the value "reset"."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the arguments apart."""
        known = {name for parameter in self.params for name in parameter.opts}
        for word in takewhile("--".__ne__, args):
            if (meant := f"-{word.partition('=')[0]}") in known and len(meant) > 3 and not word.startswith("--"):
                ctx.fail(f"No such option: {meant[1:]}. Did you mean {meant}?")
        return super().parse_args(ctx, args)


@cache
def command_line(command: str = "") -> typer.Typer:
    """The command line with one of its commands, or with all."""
    whole = typer.Typer(
        name="lbw",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    whole.callback()(lbw)
    for name in [command] if command else _COMMANDS:
        found = getattr(import_module(f".{_COMMANDS[name]}", __package__), name)
        if isinstance(found, typer.Typer):
            for each in found.registered_commands:
                each.cls = _Command
            whole.add_typer(found)
        else:
            whole.command(cls=_Command)(found)
    return whole


def __getattr__(name: str) -> typer.Typer:
    """`app`, the whole of it, is what typer's own tools look for."""
    if name == "app":
        return command_line()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version(value: bool) -> None:
    if value:
        from .environment import description

        typer.echo("\n".join(description()))
        raise typer.Exit


def lbw(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the versions of lbw and what it uses, and exit."
        ),
    ] = False,
) -> None:
    """Bake LoRA block weights into the LoRA itself.

    [dim]lbw bake doraemon.safetensors --preset MIDD -o doraemon-midd.safetensors[/dim]
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run `lbw`: exits 0 when done, 1 when the tool says no, 2 on wrong usage, 130 when interrupted."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    codecs.register_error("plainer", console.plainer)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that cannot show a name or a bar still shows the rest
            stream.reconfigure(errors="plainer")
    # All matrices here are small: threads of numpy's would only get into each other's way.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if args is None:
        # However it is ended, and however often, a bake still takes its half-written file along.
        end_quietly()
    try:
        _run(args)
    except KeyboardInterrupt:
        sys.exit(130)
    except LbwError as error:
        problem = error
    except OSError as error:
        problem = _refused(error)
    else:
        return
    console.error(problem, {"status": "failed"} if "--json" in (args or sys.argv) else None)
    sys.exit(1)


def _run(args: Sequence[str] | None) -> None:
    first, *_ = (*(sys.argv[1:] if args is None else args), "")
    called = command_line(first if first in _COMMANDS else "")
    try:
        # Also as python -m lbw_bake, whose completion is that of lbw. On Windows typer would take any argument for a
        # pattern of files, also that of --include; see `cli_options.files_like`.
        called(args, prog_name="lbw", windows_expand_args=False)
    finally:
        sys.stdout.flush()


def _refused(error: OSError) -> LbwError:
    """What the system refused: to look at a path, to take what goes to stdout, or what only it knows."""
    if error.filename is not None:
        return LbwError(f"{os.fsdecode(error.filename)}: {error.strerror}", "check the path and its permissions")
    if error.errno in _OF_STDOUT:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer would fail again
        return LbwError(f"stdout: {error.strerror}", "files that were reported or on disk already are complete")
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        return LbwError("the current folder is no longer there", "go to one that is, and run it again")
    return LbwError(
        f"the system refused: {error.strerror or error}", "look at its limits (ulimit -a), and run it again"
    )
