"""The user's own presets.yaml: found, read, and changed whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .atomic import atomic_write, write_all
from .checks import check_file
from .errors import OutputError, PresetError
from .presets import Preset, user_path
from .presets.editing import with_preset
from .presets.formats import LONGEST, read_data


def own_path(named: Path | None) -> Path:
    """The file to change, found through links. Raises PresetError unless it is a presets.yaml."""
    path = (named or user_path()).resolve()
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise PresetError(f"{path}: only a presets.yaml can be changed", "turn it into one with lbw presets convert")
    return path


def text_of(path: Path) -> str:
    """The file's text with its line ends, empty if there is no file. Raises PresetError."""
    try:
        with path.open("rb") as file:
            data = read_data(file)
        if len(data) > LONGEST:
            raise PresetError(f"{path}: is longer than {LONGEST >> 10} KiB", "split the file")
        return data.decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise PresetError(f"{path}: is not UTF-8 text", "save it as UTF-8") from error
    except OSError as error:
        raise PresetError(f"{path}: cannot be read: {error.strerror}", "check its permissions") from error


def write_text(path: Path, text: str, *, replace: bool) -> None:
    """Write a file whole, and the folders it is in. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be created: {error.strerror}", "choose another folder") from error
    with atomic_write(path, replace=replace) as file:
        write_all(file, text.encode("utf-8"))


def add_preset(added: Preset, *, replacing: bool) -> None:
    """Add a preset to the file it is to be in, as `with_preset` does. Raises PresetError, OutputError."""
    write_text(added.path, with_preset(text_of(added.path), added.path, added, replacing=replacing), replace=True)


def saved_lines(name: str, path: Path) -> Iterator[tuple[str, str]]:
    """What is said of a preset that was written: labels, and the text of each; a check's findings too."""
    yield "written", f"{name} to {path}"
    for finding in check_file(path).findings:
        if finding.name == name:
            yield finding.rule.severity, f"{finding.message} ({finding.code})"
