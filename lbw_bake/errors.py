"""What a user can get wrong: every error says what, where and what was expected, its hint what to do next.

The core raises these with their facts; `cli` alone turns them into text and an exit code. Anything else that
escapes is a bug of ours.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path


class LbwError(Exception):
    """Base of all errors meant for the user. `hint` says what to do next, and may be empty; or makes it when read."""

    def __init__(self, message: str, hint: str | Callable[[], str] = "") -> None:
        super().__init__(message)
        self.message = message
        self._hint = hint

    @property
    def hint(self) -> str:
        """What to do next, in words."""
        return self._hint() if callable(self._hint) else self._hint

    def about(self, what: object) -> LbwError:
        """The error, saying first which file, preset or rule it is about unless it does already."""
        if str(what) not in self.message:
            self.message = f"{what}: {self.message}"
            self.args = (self.message,)
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Errors come back from other processes as what they are, whatever they were made from."""
        return Exception.__new__, (type(self), *self.args), self.__dict__ | {"_hint": self.hint}


class FileFormatError(LbwError):
    """A file that cannot be read, or is not the safetensors file it claims to be."""

    def __init__(self, path: Path, problem: str, hint: str = "") -> None:
        super().__init__(f"{path}: {problem}", hint)
        self.path, self.problem = path, problem


class NotALoraError(FileFormatError):
    """A valid safetensors file in which no module falls in any block."""


class AlphaError(FileFormatError, ValueError):
    """An alpha that is no number, in a tensor or in a configuration."""


class UnknownFamilyError(LbwError):
    """A family name that is not in the table, or a file whose modules fit no family."""


class AmbiguousFamilyError(LbwError):
    """Several families fit the file and disagree about what the weights mean."""

    def __init__(self, path: Path, candidates: Sequence[str]) -> None:
        super().__init__(
            f"{path}: fits {', '.join(candidates)}, and they disagree about what these weights mean",
            f"name the family: --family {candidates[0]}",
        )
        self.candidates = tuple(candidates)


class WeightError(LbwError):
    """A weight, block name, vector or rule that has no meaning."""


class WeightCountError(WeightError):
    """A vector whose length is not that of a layout that fits the family."""

    def __init__(self, got: int, family: str, accepted: Iterable[int]) -> None:
        lengths = sorted(accepted)
        super().__init__(
            f"{'1 weight does' if got == 1 else f'{got} weights do'} not fit {family}, "
            f"which takes {listed(map(str, lengths))}",
            f"the nearest length is {min(lengths, key=lambda n: (abs(n - got), n))}"
            if got > 2
            else "give one per block; a point, not a comma, begins decimals: 0.5",
        )


class VariableError(WeightError):
    """A variable in a vector, without the option that settles it."""

    def __init__(self, message: str, option: str) -> None:
        super().__init__(message, f"settle it with {option} NUMBER")
        self.option = option

    def where(self, hints: Mapping[str, str]) -> VariableError:
        """The error where there are no such options: what settles it instead, by option, or else a number."""
        self._hint = hints.get(self.option, "write a number in its place")
        return self


class PresetError(LbwError):
    """A preset that does not exist or a preset file that cannot be read as one."""


class NotBakeableError(LbwError):
    """A request that no file of this kind can express exactly."""


class OutputError(LbwError):
    """The output cannot be written where or as it was asked for."""


class VerificationError(OutputError):
    """What was written is not what should have been written; it gets no name."""

    def __init__(self, output: Path, problem: str) -> None:
        super().__init__(
            f"{output}: failed verification and was not kept: {problem}", "check disk and memory, then run it again"
        )


class DeviceError(LbwError):
    """The device that was asked for cannot be used."""


class StrictError(LbwError):
    """Warnings, under --strict."""

    def __init__(self, path: Path, warnings: Sequence[str]) -> None:
        super().__init__(f"{path}: {'; '.join(warnings)}", "leave out --strict to go on in spite of warnings")


# What to do about a process that has as many open files as it may.
MORE_FILES = "raise the limit of open files (ulimit -n)"

# What to do about a path that the system refuses to read, where the disk is not the matter.
_UNREADABLE = {
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.ENOENT: "check the path; quote names that hold spaces",
    errno.ELOOP: "the link leads back to itself; make it anew, or name the file",
    errno.ENAMETOOLONG: "no file can have so long a name; check the path",
    errno.ENOTDIR: "what the path has for a folder is a file; check the path",
    errno.EMFILE: MORE_FILES,
}


def reading_hint(error: OSError) -> str:
    """What to do next about a path that cannot be read."""
    return _UNREADABLE.get(error.errno or 0, "check the disk")


def listed(names: Iterable[str]) -> str:
    """Names as people list alternatives: `12, 17 or 20`."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word most like this one, or lists what is known."""
    import difflib

    choices = list(known)
    upper = {choice.upper(): choice for choice in choices}
    close = difflib.get_close_matches(word.upper(), upper, n=1, cutoff=0.5)
    if close:
        return f"did you mean {upper[close[0]]}?"
    return f"known: {', '.join(choices)}" if choices else ""
