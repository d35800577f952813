"""Preset files changed and converted: found, read, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .arguments import AnyPath, several
from .atomic import claim, make_folder, write_file
from .checks import Checked, validate
from .errors import OutputError, PresetError, WeightError, nearest, reading_hint
from .families import Family, family_named
from .presets import Entry, Preset, builtin_path, user_path
from .presets.editing import with_preset, without_preset
from .presets.findings import Finding
from .presets.formats import (
    comment_lines,
    decode,
    error_of,
    kind_by_name,
    parse_presets,
    read_data,
    read_presets,
    usable_presets,
)
from .presets.writers import WRITERS
from .sources import Given, Weights
from .values import slip
from .weights import Options, Source, parse_elements, written_out
from .words import counted


@dataclass(frozen=True, slots=True)
class Converted:
    """A preset file in another format: its text, what of so many presets it has no place for, and the format."""

    text: str
    lost: tuple[str, ...]
    presets: int
    kind: str


def add_preset(
    name: str,
    weights: Given | None = None,
    *,
    family: Family | str | None = None,
    elements: Iterable[str] = (),
    description: str = "",
    presets: AnyPath | None = None,
    replace: bool = False,
) -> Checked:
    """Add a preset to a presets.yaml, or an entry for one more family to a preset of it; all else in it stays as it is.

    `weights` are a vector, or block rules, as text or as values; `elements` are element rules as `--element` takes
    them. The file is `presets`, else the user's own, and is made if there is none. What the preset says already is
    replaced only with `replace`. Returns the file, and what checking finds about the preset. Raises PresetError,
    WeightError, UnknownFamilyError, OutputError, also while another process or thread changes the file.
    """
    path = own_path(presets)
    entries = () if weights is None else (Entry(family_named(family).name if family else None, _source(weights), 1),)
    rules = tuple(rule for text in several(elements) for rule in parse_elements(text))
    if not (entries or rules):
        raise PresetError(f"preset {name} is given nothing", "give a vector, block rules or element rules")
    added = Preset(name.strip(), entries, path, 1, description.strip(), rules)
    with _claimed(path) as exists:
        _write(path, with_preset(_text_of(path), path, added, replacing=replace), replace=exists)
    checked = validate(path)
    return Checked(path, 1, tuple(finding for finding in checked.findings if finding.name == added.name))


def remove_preset(name: str, *, presets: AnyPath | None = None) -> Path:
    """Remove a preset from a presets.yaml: `presets`, else the user's own. Returns the file.

    Raises PresetError where the file has none of this name, OutputError.
    """
    path = own_path(presets)
    with _claimed(path):
        text = _text_of(path)
        own = [preset.name for preset in parse_presets(text, path)]
        if name not in own:
            builtin = name in {preset.name for preset in read_presets(builtin_path())}
            why = "is built in, it can be replaced but not removed" if builtin else f"is not in {path}"
            raise PresetError(f"preset {name} {why}", "" if builtin else nearest(name, own))
        _write(path, without_preset(text, path, name), replace=True)
    return path


def convert_presets(
    source: AnyPath,
    target: AnyPath | None = None,
    *,
    from_: str | None = None,
    to: str | None = None,
    family: Family | str | None = None,
    replace: bool = False,
) -> Converted:
    """A preset file in another format, written to `target` if it is named.

    `from_` and `to` are `yaml`, `lbwpresets`, `elempresets` or `inspire`, needed where the files' names do not tell; of
    presets with several families, a format of one vector per name gets that of `family`. Of formats by line the presets
    with errors are lost, others must have none. Raises PresetError, UnknownFamilyError, OutputError.
    """
    path = None if target is None else Path(target)
    kind = to or (kind_by_name(path) if path else None)
    if kind not in WRITERS:
        wrong = f"{kind!r} is none" if kind else f"{path or 'the text'} does not tell its own"
        raise PresetError(f"formats are {', '.join(WRITERS)}; {wrong}", "name the format to convert to: --to yaml")
    read = usable_presets(Path(source), from_)
    written = WRITERS[kind](read, family_named(family) if family else None)
    comments = comment_lines(Path(source))  # before the target, which may be the source, is written
    if path:
        _write(path, written.text, replace=replace)
    lost = [counted(comments, "comment line")] if comments else []
    unused = {finding.line: finding for finding in reversed(read[0].unused if read else ())}
    lost += (f"line {line}: {finding.message} ({finding.code})" for line, finding in sorted(unused.items()))
    return Converted(written.text, (*written.lost, *lost), len(read), kind)


def own_path(named: AnyPath | None) -> Path:
    """The file to change, found through links. Raises PresetError unless it is a presets.yaml."""
    path = Path(named or user_path()).resolve()
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise PresetError(f"{path}: only a presets.yaml can be changed", "turn it into one with lbw presets convert")
    return path


def _source(weights: Given) -> Source:
    """What an entry says. Raises WeightError for what stands for weights: a name, a token."""
    asked = Weights.of(weights) if not isinstance(weights, str) or written_out(weights) else None
    if asked is None or isinstance(asked.source, Preset) or asked.options != Options():
        raise WeightError(
            f"{weights!r} is neither a vector nor rules",
            slip(str(weights)) or "give a vector like 1,0,0.5,... or rules like IN04=0.5",
        )
    return asked.source


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Keep others from changing the file meanwhile; whether there is one. Raises OutputError."""
    if _is_file(path):
        with claim(path):
            yield True
        return
    try:
        yield False
    except OutputError:
        if _is_file(path):
            raise OutputError(f"{path}: another process has just made it", "run it again to add to that file") from None
        raise


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - never raises; of what is no file reading says more


def _text_of(path: Path) -> str:
    """The file's text with its line ends, empty if there is no file. Raises PresetError."""
    try:
        with path.open("rb") as file:
            text = decode(read_data(file))
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise PresetError(f"{path}: cannot be read: {error.strerror}", reading_hint(error)) from error
    if isinstance(text, Finding):
        raise error_of(text, path)
    return text.removeprefix("\ufeff")


def _write(path: Path, text: str, *, replace: bool) -> None:
    """Write a file whole, and the folders it is in. Raises OutputError."""
    make_folder(path.parent)
    write_file(path, text.encode("utf-8"), replace=replace)
