"""The commands about preset files: `lbw validate` and `lbw presets ...`."""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .errors import LbwError


class Kind(str, Enum):
    """The formats of preset files."""

    yaml = "yaml"
    lbwpresets = "lbwpresets"
    elempresets = "elempresets"
    inspire = "inspire"


class Format(str, Enum):
    """How findings are printed."""

    text = "text"
    json = "json"
    github = "github"
    sarif = "sarif"


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

    for file in files:
        if file != checks.STDIN and not file.exists():
            raise typer.BadParameter(f"{console.escape(file)} does not exist", param_hint="FILE")
    results = [
        checks.check(_read(file), file, kind.value if kind else None) for file in checks.find_preset_files(files)
    ]
    default = "github" if os.environ.get("GITHUB_ACTIONS") == "true" else "text"
    for line in reports.FORMATS[format_.value if format_ else default](results):
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


def _read(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise LbwError(f"{file}: cannot be read: {error.strerror}", "check its permissions") from error


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
