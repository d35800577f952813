"""Pieces: text that knows where it stands, so that a finding about a part of a line can name its column and preset."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .findings import Finding

# What input methods for Chinese and Japanese write in place of : and ,
WIDE_COLON, WIDE_COMMA = "\uff1a", "\uff0c"
_SHOWN = 40  # characters of a piece

Places = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one line: line and column count from 1. Where columns are unknown, parts keep that of the whole.

    `places` are line and column of each character and of the end, if the text is spread over several lines; `preset`
    is the name of the one it is part of, empty where there is none yet.
    """

    text: str
    line: int
    column: int = 1
    exact: bool = True
    places: Places = ()
    preset: str = ""

    def part(self, start: int, end: int | None = None) -> Piece:
        """The piece between two offsets."""
        if self.places:
            places = self.places[start : None if end is None else end + 1]
            return Piece(self.text[start:end], *places[0], places=places, preset=self.preset)
        column = self.column + start if self.exact else self.column
        return Piece(self.text[start:end], self.line, column, self.exact, preset=self.preset)

    def strip(self) -> Piece:
        """The piece without spaces at its ends."""
        start = len(self.text) - len(self.text.lstrip())
        return self.part(start, max(start, len(self.text.rstrip())))

    def split(self, separator: str) -> Iterator[Piece]:
        """The pieces between separators, a regular expression."""
        start = 0
        for match in re.finditer(separator, self.text):
            yield self.part(start, match.start())
            start = match.end()
        yield self.part(start)

    def words(self) -> Iterator[Piece]:
        """The pieces between spaces."""
        for match in re.finditer(r"\S+", self.text):
            yield self.part(match.start(), match.end())

    def with_text(self, text: str) -> Piece:
        """Other text of the same length in this place."""
        return replace(self, text=text)

    def of(self, preset: str) -> Piece:
        """The same as part of a preset."""
        return replace(self, preset=preset)

    def shown(self) -> str:
        """The text in quotes, cut short where it is long."""
        return repr(self.text if len(self.text) <= _SHOWN else f"{self.text[:_SHOWN]}...")

    def finding(self, code: str, message: str, hint: str = "") -> Finding:
        """A defect of this piece."""
        return Finding(code, self.line, self.column, self.preset, message, hint)


def lines_of(text: str) -> Iterator[Piece]:
    """The lines of a text, as any tool counts them: ended by LF, CRLF or CR."""
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        yield Piece(line, number)
