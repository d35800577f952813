"""Bakes that are killed: whenever it happens, the output is the old file or the new one, and the input is untouched.

A process is forked for every bake, so that it starts where the work starts, and killed at a random moment of the time
a bake takes. After each kill the files are judged, and the next bake in the same folder has to remove what was left.

    python -m benchmarks.kill [--rounds 200] [--megabytes 10] [--seed 0]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from lbw_bake.cli import main as lbw
from lbw_bake.temporary import TEMPORARY_SUFFIX

from .files import Case, sdxl_lora

SIGNALS = {signal.SIGKILL: 4, signal.SIGTERM: 1, signal.SIGINT: 1}  # and how often each
OLD = b"old"


@dataclass(frozen=True)
class Way:
    """A way to write: its options, whether an old output is there, and whether the input is replaced."""

    options: tuple[str, ...]
    old: bool = False
    in_place: bool = False


WAYS = {
    "new file": Way(("-w", "*=0.5")),
    "new file, copied": Way(("-w", "*=1")),
    "replaced": Way(("-w", "*=0.5", "--force"), old=True),
    "replaced, verified": Way(("-w", "*=0.5", "--force", "--verify"), old=True),
    "in place": Way(("-w", "*=0.5", "--in-place"), in_place=True),
}


def child(args: list[str]) -> int:
    """Start a bake in a process of its own; returns its number."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child is where it can be interrupted
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return process
    code = 0
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as `lbw` has it
        with Path(os.devnull).open("w") as nothing, contextlib.redirect_stderr(nothing):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            lbw(args)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def bake(way: Way, folder: Path, delay: float | None = None, kind: signal.Signals = signal.SIGKILL) -> int:
    """Bake in a folder that holds a source, killed after so many seconds if that is said; returns the wait status."""
    output = () if way.in_place else ("-o", str(folder / "out.safetensors"))
    process = child(["bake", str(folder / "source.safetensors"), "-q", *way.options, *output])
    if delay is not None:
        time.sleep(delay)
        os.kill(process, kind)
    return os.waitpid(process, 0)[1]


def prepared(way: Way, source: Path, folder: Path) -> Path:
    """A folder with the source and, if the way has one, an old output."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(source, folder / "source.safetensors")
    if way.old:
        (folder / "out.safetensors").write_bytes(OLD)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """What is in the folder, by name; temporary files apart."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(TEMPORARY_SUFFIX)}


def judge(way: Way, source: Path, folder: Path, rounds: int, rng: random.Random) -> Counter[str]:
    """Kill so many bakes; returns what was seen. Raises SystemExit where something was lost."""
    before = content(prepared(way, source, folder))
    began = time.perf_counter()
    if bake(way, folder):
        raise SystemExit(f"{way} failed")
    duration = time.perf_counter() - began
    after = content(folder)
    seen: Counter[str] = Counter()
    for _ in range(rounds):
        prepared(way, source, folder)
        (kind,) = rng.choices([*SIGNALS], [*SIGNALS.values()])
        status = bake(way, folder, rng.uniform(0, 1.1 * duration), kind)
        found = content(folder)
        if found not in (before, after):
            raise SystemExit(f"{way}: neither the old files nor the new ones after {kind.name}")
        left = [path for path in folder.iterdir() if path.name.endswith(TEMPORARY_SUFFIX)]
        seen["killed" if status else "was quicker"] += 1
        seen["old" if found == before else "new"] += 1
        seen["left a temporary file"] += bool(left)
        if left:
            (folder / "other").mkdir()
            shutil.copy(source, folder / "other" / "source.safetensors")
            (folder / "out.safetensors").unlink(missing_ok=True)
            args = ["bake", str(folder / "other" / "source.safetensors"), "-q", "-w", "*=1"]
            _, status = os.waitpid(child([*args, "-o", str(folder / "out.safetensors")]), 0)
            if status or any(path.exists() for path in left):
                raise SystemExit(f"{way}: the next bake did not remove {left[0].name}")
            seen["removed by the next bake"] += 1
    return seen


def main() -> None:
    """Kill bakes of every way in turn."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--megabytes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for module in ("batch", "render", "sources", "verify"):  # so that it is work that is killed, not start-up
        import_module(f"lbw_bake.{module}")
    rng = random.Random(args.seed)  # noqa: S311
    print(f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()}, {args.megabytes} MB, seed {args.seed}")
    names = ("killed", "was quicker", "old", "new", "left a temporary file", "removed by the next bake")
    print("| way | rounds | " + " | ".join(names) + " |\n|---" + "|---" * (len(names) + 1) + "|")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.safetensors"
        sdxl_lora(source, Case(args.megabytes, "float16", hashed=True))
        for name, way in WAYS.items():
            seen = judge(way, source, Path(folder) / "work", args.rounds, rng)
            print(f"| {name} | {args.rounds} | " + " | ".join(str(seen[what]) for what in names) + " |", flush=True)


if __name__ == "__main__":
    main()
