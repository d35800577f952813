"""What is to be done: which files, by which recipe, and under which names. Every output is named before work starts."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from string import Formatter
from unicodedata import normalize

from .arguments import AnyPath, path_of, several
from .atomic import make_folder
from .errors import FileFormatError, LbwError, OutputError
from .folders import files_in
from .metadata import records_in
from .recipes import Recipe
from .tensorfile import SUFFIX, read_header

_SUFFIXES = (SUFFIX, ".pt", ".pth", ".ckpt", ".bin")  # of LoRAs; what is no safetensors file is pickled

# How often a job is run again whose process died: another job's need of memory may have been the cause.
RETRIES = 3

NO_OUTPUT = ("no output is named", "name one, or only plan with dry_run=True")

_FIELDS = ("stem", "preset")
_FIELDS_TEXT = ", ".join(f"{{{name}}}" for name in _FIELDS)


@dataclass(frozen=True, slots=True)
class Job:
    """One input and what to make of it: outputs, each by its recipe. Where the output is None it can only be planned.

    `named`: the input was given by name, not found in a folder. `makes_folders`: missing folders of outputs are made.
    `share`: bytes that the process that runs it may have to write for all its jobs, which tells whether starting CUDA
    would pay.
    """

    input: Path
    outputs: tuple[tuple[Path | None, Recipe], ...]
    named: bool = True
    nbytes: int = 0
    makes_folders: bool = False
    share: int = 0

    def __post_init__(self) -> None:
        if any(output is None and not recipe.dry_run for output, recipe in self.outputs):
            raise OutputError(*NO_OUTPUT)


# Called from time to time with the share of a large job that is done.
Watch = Callable[[Job, float], object]


def repeatable(job: Job) -> Job:
    """A job as it can be done twice: what is finished is left alone. Outputs that are there by now are still refused.

    A process may die between finishing a file and saying so; then the next one finds it finished.
    """
    outputs = (
        (path, recipe if path is None or os.path.exists(path) else replace(recipe, skip_existing=True))  # noqa: PTH110
        for path, recipe in job.outputs
    )
    return replace(job, outputs=tuple(outputs))


@dataclass(frozen=True, slots=True)
class Naming:
    """How inputs become outputs: one file, the inputs themselves, or a folder and a template of names.

    Raises OutputError for several of these, and for a template of no names.
    """

    output: Path | None = None
    out_dir: Path | None = None
    in_place: bool = False
    template: str = "{stem}"

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", path_of(self.output))
        object.__setattr__(self, "out_dir", path_of(self.out_dir))
        if sum((self.output is not None, self.out_dir is not None, self.in_place)) > 1:
            raise OutputError("outputs are named in several ways", "give one of output, out_dir and in_place")
        try:
            fields = list(Formatter().parse(self.template))
        except ValueError as error:
            raise OutputError(f"--name {self.template!r}: {error}", f"known fields: {_FIELDS_TEXT}") from error
        for _, name, spec, conversion in fields:
            if name is not None and name not in _FIELDS:
                raise OutputError(f"--name {self.template!r}: unknown field {{{name}}}", f"known: {_FIELDS_TEXT}")
            if spec or conversion:
                raise OutputError(f"--name {self.template!r}: fields take no format", f"write {{{name}}} alone")
        if self.template.lower().endswith(SUFFIX):
            raise OutputError(f"--name {self.template!r}: names get their {SUFFIX} anyway", "leave it out")

    def hint(self, one: Path, other: Path) -> str:
        """How outputs of two inputs, or two of one, are told apart."""
        if self.in_place and one != other:
            return "they are one file: leave out one of its names, in a folder with --exclude"
        if self.out_dir is None:
            return "give --out-dir DIR for several outputs"
        if ("{preset}" if one == other else "{stem}") not in self.template:
            return 'tell them apart, also where case does not count, with --name, as --name "{stem}-{preset}"'
        if one == other:
            return "give each preset once, by names that differ in more than case"
        return "bake the folder that holds both with --recursive, or each to an --out-dir of its own"

    def name(self, file: Path, inside: Path, recipe: Recipe) -> Path | None:
        """Where an input found at `inside` (relative to what was named) goes by a recipe. Raises OutputError."""
        if self.in_place:
            return Path(os.path.realpath(file))  # resolve() does not bear links that lead to themselves
        if self.out_dir is None:
            return self.output
        preset = recipe.weights.preset or "weights"
        name = self.template.format(stem=file.stem, preset=preset)
        problem = name_problem(name, file.stem, self.template.format(stem="", preset=preset))
        if problem:
            raise OutputError(f"--name {self.template!r}: {name!r} {problem}", "choose other names with --name")
        return self.out_dir / inside.parent / f"{name}{SUFFIX}"


# What Windows has no files of, whatever follows the first dot.
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"}
_DEVICES |= {f"{device}{number}" for device in ("com", "lpt") for number in "0123456789\u00b9\u00b2\u00b3"}
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


def name_problem(name: str, stem: str, added: str) -> str:
    """What is wrong with a name made of an input's stem and what was added; empty if it is a name on every system.

    The stem itself is taken as it is: this system has a file of that name already.
    """
    if not name or Path(name).name != name:
        return "is not a file name"
    if unsafe := _UNSAFE.search(added):
        return f"holds {unsafe[0]!r}, which not every system allows in names"
    if name.startswith(".") and not stem.startswith("."):
        return "is hidden, and hidden files are nobody's input"
    if name != stem and name.partition(".")[0].rstrip(" ").lower() in _DEVICES:
        return "is a device to Windows"
    return ""


def folded(path: Path) -> str:
    """What paths have in common that some system takes for one: case aside, and Unicode's ways to write a letter."""
    return normalize("NFC", normalize("NFC", str(path)).casefold())


@dataclass(frozen=True, slots=True)
class Found:
    """An input file; `inside` is its path within the folder that was named, `named` whether it was itself."""

    file: Path
    inside: Path
    named: bool = True


def find_inputs(
    paths: Iterable[Path], *, recursive: bool, include: Sequence[str], exclude: Sequence[str]
) -> Iterator[Found | Path | FileFormatError]:
    """The files named, and the safetensors files of the folders named, in sorted order.

    Glob patterns choose among a folder's files by their path in it, or that of a folder they are in. Files there that
    may be LoRAs of another format are yielded as mere paths; a folder that holds no LoRA, or cannot be looked into, as
    the error it is, so that the others can go on.
    """
    paths = list({path.absolute(): path for path in paths}.values())
    named = {os.path.realpath(path) for path in paths}
    for path in paths:
        # os.path says no to what may not be looked at, of which reading says more.
        if not os.path.isdir(path):  # noqa: PTH112
            yield Found(path, Path(path.name))
            continue
        insides, unread = [], False
        for file in files_in(path, recursive=recursive):
            if isinstance(file, FileFormatError):
                if not _is_like(file.path.relative_to(path), exclude):
                    unread = True
                    yield file
            elif file.suffix.lower() in _SUFFIXES:
                insides.append(file.relative_to(path))
        chosen = [
            inside for inside in insides if (not include or _is_like(inside, include)) and not _is_like(inside, exclude)
        ]
        if not unread and not any(map(_is_safetensors, chosen)):
            yield _nothing_in(path, insides, recursive=recursive)
        for inside in chosen:
            if os.path.realpath(path / inside) not in named:
                yield Found(path / inside, inside, named=False) if _is_safetensors(inside) else path / inside


def _is_like(inside: Path, patterns: Sequence[str]) -> bool:
    """Whether a path within a folder, or one of the folders on the way to it, is like one of these."""
    ways = [str(path) for path in (inside, *inside.parents[:-1])]
    return any(fnmatch(way, pattern.rstrip("/\\")) for way in ways for pattern in patterns)


def _is_safetensors(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX


def _nothing_in(folder: Path, insides: Sequence[Path], *, recursive: bool) -> FileFormatError:
    """The error that a folder is in which no LoRA was chosen; `insides` are all that could be one."""
    hint = "" if recursive else "look deeper with --recursive"
    if any(map(_is_safetensors, insides)):
        choices = "check --include and --exclude"
        return FileFormatError(
            folder, f"holds no matching {SUFFIX} files", f"{choices}, or {hint}" if hint else choices
        )
    if others := sorted({inside.suffix for inside in insides}):
        hint = f"convert its {', '.join(others)} files to safetensors first"
    return FileFormatError(folder, f"holds no {SUFFIX} files", hint)


@dataclass(frozen=True, slots=True)
class Batch:
    """What there is to do, what was found that cannot be done, and files of folders that are no safetensors."""

    jobs: tuple[Job, ...]
    problems: tuple[FileFormatError, ...] = ()
    left_out: tuple[Path, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all inputs."""
        return sum(job.nbytes for job in self.jobs)


def make_batch(
    inputs: AnyPath | Iterable[AnyPath],
    recipes: Recipe | Iterable[Recipe],
    naming: Naming,
    *,
    recursive: bool = False,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
) -> Batch:
    """Find the inputs, name every output before any work starts, and make their folder unless it is a dry run.

    Every input is baked by every recipe, which differ in weights alone. `include` and `exclude` are glob patterns for
    the files of folders, by their path in it or that of a folder they are in. Raises OutputError where an output has no
    name, where two would be the same file, or would be found as inputs another time, and LbwError for patterns without
    a folder. What is wrong with an input is in `Batch.problems`, or in what `run_batch` yields.
    """
    paths = [Path(path) for path in several(inputs)]
    recipes = [recipes] if isinstance(recipes, Recipe) else [*recipes]
    if not recipes:
        raise OutputError("nothing is to be done to the inputs", "give a recipe at least")
    include, exclude = tuple(several(include)), tuple(several(exclude))
    if (include or exclude) and paths and all(map(os.path.isfile, paths)):
        raise LbwError("include and exclude choose among the files of folders, and no input is one", "name a folder")
    found = list(find_inputs(paths, recursive=recursive, include=include, exclude=exclude))
    jobs = make_jobs([item for item in found if isinstance(item, Found)], recipes, naming)
    if naming.out_dir:
        if recursive:
            _check_outside(naming.out_dir, paths)
        if jobs:
            make_folder(naming.out_dir, "choose another --out-dir", dry_run=recipes[0].dry_run)
    problems = tuple(item for item in found if isinstance(item, FileFormatError))
    return Batch(tuple(jobs), problems, tuple(item for item in found if isinstance(item, Path)))


def make_jobs(found: Sequence[Found], recipes: Sequence[Recipe], naming: Naming) -> list[Job]:
    """Name every output before any work starts.

    Raises OutputError where two would be the same file, on whatever system they may end up, or one another's input.
    """
    if any(replace(recipe, weights=recipes[0].weights) != recipes[0] for recipe in recipes):
        raise OutputError("recipes of one batch differ in more than weights", "make a batch of each")
    jobs: list[Job] = []
    taken: dict[str, Path] = {}
    inputs = {os.path.realpath(item.file): item for item in found}
    for item in found:
        outputs = tuple((naming.name(item.file, item.inside, recipe), recipe) for recipe in recipes)
        for output, recipe in outputs:
            if output is None:
                continue
            # Folders may be links to one another; files in place are two unless the system takes their names for one.
            key = folded(Path(os.path.realpath(output.parent), output.name))
            if key in taken and not (naming.in_place and _are_two(taken[key], item.file)):
                hint = naming.hint(taken[key], item.file)
                raise OutputError(f"{output}: would be written from {taken[key]} and from {item.file}", hint)
            taken[key] = item.file
            other = inputs.get(os.path.realpath(output), item)
            if other.file != item.file and (other.named or (recipe.replace and not _was_baked(other.file))):
                raise OutputError(f"{output}: is another input", "choose another --out-dir, or --name")
        jobs.append(Job(item.file, outputs, item.named, _size(item.file), makes_folders=naming.out_dir is not None))
    return jobs


def _size(file: Path) -> int:
    """Bytes of a file; none of what is no file, or cannot be looked at: reading it says more."""
    try:
        status = file.stat()
    except (OSError, ValueError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _are_two(one: Path, other: Path) -> bool:
    """Whether paths lead to two files; what cannot be looked at says so when it is read."""
    try:
        return not one.samefile(other)
    except OSError:
        return True


def _was_baked(file: Path) -> bool:
    """Whether a file found in a folder is an earlier output, which is nobody's input and may be replaced."""
    try:
        return bool(records_in(read_header(file).metadata))
    except FileFormatError:
        return False


def _check_outside(out_dir: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputError where outputs would be found as inputs another time."""
    for folder in inputs:
        if os.path.isdir(folder) and Path(os.path.realpath(out_dir)).is_relative_to(os.path.realpath(folder)):  # noqa: PTH112
            raise OutputError(f"{out_dir}: lies inside the input folder {folder}", "choose a folder outside of it")
