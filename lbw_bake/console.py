"""Lines for people and objects for programs: what every command prints with, and all that the quick ones need.

Names come from files of strangers: what drives a terminal or a CI runner is shown escaped, never sent there.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from .errors import LbwError

# Characters that drive a terminal, turn the direction of text, or end a line for some reader; and what GitHub Actions
# takes for a command: `##[` anywhere, `::` where a line begins.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|#(?=#\[)|\A *:(?=:)"
)
# Characters of a line, and of its end, which says what is the matter: a name can be as long as its file.
_LONGEST, _END = 4000, 500
_ENABLE_VIRTUAL_TERMINAL_PROCESSING = 4  # of a console's mode, in Windows' words
# What bars are made of, and what a code page that lacks it has instead.
_DRAWN = str.maketrans("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉", "_.:-=+*#   ####")
_STYLES = {
    "error": "\x1b[1;31m",
    "warning": "\x1b[33m",
    "hint": "\x1b[36m",
    "lost": "\x1b[33m",
    "baked": "\x1b[32m",
    "written": "\x1b[32m",
}


def escape(text: object) -> str:
    """Text that drives neither a terminal nor a CI runner: what could becomes its escape; endless text is cut."""
    text = str(text)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - _END]}… ({len(text):,} characters) …{text[-_END:]}"
    return _UNSAFE.sub(lambda match: "".join(map(_escaped, match[0])), text)


def _escaped(character: str) -> str:
    shown = ascii(character)[1:-1]
    return shown if len(shown) > 1 else character if character == " " else f"\\x{ord(character):02x}"


def plainer(error: UnicodeError) -> tuple[str, int]:
    """What a stream prints for characters that its encoding lacks: bars of other characters, and else escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    drawn = error.object[error.start : error.end].translate(_DRAWN)
    return drawn.encode("ascii", "backslashreplace").decode("ascii"), error.end


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON, characters that drive a terminal escaped as JSON has it; null for what is no number."""
    plain = "utf" not in (sys.stdout.encoding or "").lower()  # what another encoding lacks has an escape in JSON
    text = json.dumps(_finite(value), ensure_ascii=plain, allow_nan=False, indent=indent)
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """One JSON value on one line of stdout."""
    print(json_text(value), flush=True)  # noqa: T201 - who reads a pipe need not wait until it is full


def _finite(value: Any) -> Any:
    """The value with null for each number JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_line(text: str) -> None:
    """A line on stdout."""
    print(escape(text))  # noqa: T201


def error(problem: LbwError, facts: Mapping[str, Any] | None = None) -> None:
    """An error and its hint, on stderr; for programs, who get `facts` about it, as an object on stdout too."""
    if facts is not None:
        print_json({**facts, "error": problem.message, "hint": problem.hint})
    for label, text in error_lines(problem):
        message(label, text)


def error_lines(problem: LbwError) -> list[tuple[str, str]]:
    """What is said of an error: labels, and the text of each."""
    return [(label, text) for label, text in (("error", problem.message), ("hint", problem.hint)) if text]


def message(label: str, text: str) -> None:
    """A labelled line on stderr, in colour on a terminal unless NO_COLOR is set."""
    print(f"{paint(label, f'{label}:')} {escape(text)}", file=sys.stderr)  # noqa: T201


def paint(label: str, text: str, *, stdout: bool = False) -> str:
    """The text in the colour of the label, where the stream is a terminal that takes it and NO_COLOR is not set."""
    stream = sys.stdout if stdout else sys.stderr
    refused = os.environ.get("NO_COLOR") or is_dumb()
    if label in _STYLES and stream.isatty() and not refused and _takes_colours(stream.fileno()):
        return f"{_STYLES[label]}{text}\x1b[0m"
    return text


def is_dumb() -> bool:
    """Whether terminals here are said to print escapes as they are: those of editors."""
    return os.environ.get("TERM") in ("dumb", "unknown")


@cache
def _takes_colours(descriptor: int) -> bool:
    """Whether a terminal understands escapes: the old console of Windows has to be asked to, and may not."""
    if sys.platform == "win32":
        import ctypes
        import msvcrt

        handle, mode = ctypes.c_void_p(msvcrt.get_osfhandle(descriptor)), ctypes.c_uint32()
        console = ctypes.windll.kernel32
        known = console.GetConsoleMode(handle, ctypes.byref(mode))
        return bool(known and console.SetConsoleMode(handle, mode.value | _ENABLE_VIRTUAL_TERMINAL_PROCESSING))
    return True
