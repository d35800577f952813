"""`make bench`: whole processes, against `cp` and against load, scale and save with torch, side by side in one run.

Machines are noisy, so every round measures all of them one after the other and ratios are taken within a round; the
tables give their medians. Writes the tables into docs/performance.md, and docs/performance.svg.

    python -m benchmarks [--sizes 20,150,900,2500] [--rounds 5] [--files 200]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from compileall import compile_dir
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np

import lbw_bake

from .files import Case, sdxl_lora

DOCS = Path(__file__).parents[1] / "docs"
MARKERS = ("<!-- measured by make bench -->", "<!-- end -->")
MANY = Case(40, "float16", hashed=False)
TORCH = """
import sys
from safetensors.torch import load_file, save_file
tensors = load_file(sys.argv[1])
for name in tensors:
    if name.endswith("lora_up.weight"):
        tensors[name] = tensors[name] * 0.3
save_file(tensors, sys.argv[2])
"""
LBW = str(Path(sys.executable).with_name("lbw"))
SOURCE = "source.safetensors"
Command = list[str]


@dataclass(frozen=True)
class Run:
    """One process: seconds from start to exit, and its peak resident memory in MiB."""

    seconds: float
    memory: float


def run(command: Command) -> Run:
    """Run a command to its end."""
    began = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return Run(seconds, usage.ru_maxrss / 1024)


def measure(case: Case, folder: Path, rounds: int) -> list[str]:
    """One row of the table."""
    source, output = folder / SOURCE, folder / "output.safetensors"
    lbw = [LBW, "bake", str(source), "-q", "--device", "cpu", "-o", str(output)]
    commands: dict[str, Command] = {
        "cp": ["cp", str(source), str(output)],
        "torch": [sys.executable, "-c", TORCH, str(source), str(output)],
        "lbw": [*lbw, "--weights", "*=0.3"],
        "lbw MIDD": [*lbw, "--preset", "MIDD"],
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            output.unlink(missing_ok=True)
            runs[name].append(run(command))

    def ratio(one: str, other: str) -> str:
        pairs = zip(runs[one], runs[other], strict=True)
        return f"{median(a.seconds / b.seconds for a, b in pairs):.1f}"

    seconds = median(one.seconds for one in runs["lbw"])
    memory = {name: max(one.memory for one in runs[name]) for name in ("lbw", "torch")}
    hashed = "yes" if case.hashed else "no"
    return [
        *(f"{case.megabytes} MB", case.dtype, hashed, f"{seconds:.2f} s"),
        *(ratio("torch", "lbw"), ratio("lbw", "cp"), ratio("lbw MIDD", "cp")),
        *(f"{memory['lbw']:.0f} MiB", f"{memory['torch']:.0f} MiB"),
    ]


def measure_many(count: int, folder: Path, rounds: int) -> list[list[str]]:
    """The rows of a batch: all files copied, and baked by one process and by one per core."""
    loras = folder / "loras"
    loras.mkdir()
    for i in range(count):
        shutil.copy(folder / SOURCE, loras / f"{i}.safetensors")
    out = folder / "out"
    lbw = [LBW, "bake", str(loras), "-q", "--device", "cpu", "--out-dir", str(out)]
    jobs = {"1": [*lbw, "--weights", "*=0.3", "--jobs", "1"], str(os.cpu_count()): [*lbw, "--weights", "*=0.3"]}
    commands = {"cp": ["cp", "-r", str(loras), str(out)], **jobs}
    run(commands["cp"])  # not counted: gigabytes of memory that a virtual machine touches first are slow
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            runs[name].append(run(command))
    megabytes = count * MANY.megabytes
    return [
        [
            *(f"{count} x {MANY.megabytes} MB", name),
            f"{median(one.seconds for one in runs[name]):.1f} s",
            f"{megabytes / median(one.seconds for one in runs[name]):.0f} MB/s",
            f"{median(a.seconds / b.seconds for a, b in zip(runs[name], runs['cp'], strict=True)):.1f}",
        ]
        for name in runs
    ]


HEAD_MANY = ["files", "jobs", "time", "throughput", "time / cp"]
HEAD = ["size", "dtype", "hashes", "all scaled", "torch / lbw", "lbw / cp", "MIDD / cp", "lbw memory", "torch memory"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_docs(rows: Sequence[Sequence[str]], many: Sequence[Sequence[str]]) -> None:
    """Put the tables between the markers of docs/performance.md, and draw the ratios of the first."""
    page = DOCS / "performance.md"
    text = page.read_text(encoding="utf-8")
    before, after = text.split(MARKERS[0])[0], text.split(MARKERS[1])[1]
    machine = f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()}, Python {platform.python_version()}"
    measured = (
        f"{MARKERS[0]}\n\nMeasured on {machine}.\n\n{table(HEAD, rows)}\n\n{table(HEAD_MANY, many)}\n\n{MARKERS[1]}"
    )
    page.write_text(before + measured + after, encoding="utf-8")
    try:
        draw(rows)
    except ImportError:
        print("no picture: install the plot extra for matplotlib")


def draw(rows: Sequence[Sequence[str]]) -> None:
    """How many times as long as cp and as lbw, by file."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lbw"
    from matplotlib import pyplot as plt

    labels = [f"{row[0]} {row[1]}\n{'with' if row[2] == 'yes' else 'no'} hashes" for row in rows]
    figure, axes = plt.subplots(figsize=(8, 0.6 * len(rows) + 1.2), layout="constrained")
    positions = np.arange(len(rows))
    axes.barh(positions - 0.2, [float(row[4]) for row in rows], 0.38, label="torch / lbw", color="#4477aa")
    axes.barh(positions + 0.2, [float(row[5]) for row in rows], 0.38, label="lbw / cp", color="#ee6677")
    axes.set_yticks(positions, labels)
    axes.invert_yaxis()
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set_xlabel("ratio of whole-process times")
    axes.legend()
    figure.savefig(DOCS / "performance.svg", metadata={"Date": None})


def main() -> None:
    """Measure every case and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--sizes", default="20,150,900,2500", help="megabytes, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=200)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    cases = [Case(size, "float16", hashed) for size in sizes for hashed in (True, False)]
    cases.append(Case(sizes[len(sizes) // 2], "float32", hashed=False))
    compile_dir(Path(lbw_bake.__file__).parent, quiet=1)  # as pip does when it installs a package
    rows = []
    for case in cases:
        with folder_with(case) as folder:
            rows.append(measure(case, folder, options.rounds))
        print(" ".join(rows[-1]), flush=True)
    with folder_with(MANY) as folder:
        many = measure_many(options.files, folder, options.rounds // 2 + 1)
    print(table(HEAD, rows), table(HEAD_MANY, many), sep="\n\n")
    write_docs(rows, many)


@contextmanager
def folder_with(case: Case) -> Iterator[Path]:
    """A temporary folder that holds the case's file."""
    with tempfile.TemporaryDirectory() as name:
        # Written by another process: a child's peak memory includes what its parent held when it was started.
        writer = get_context("spawn").Process(target=sdxl_lora, args=(Path(name) / SOURCE, case))
        writer.start()
        writer.join()
        yield Path(name)


if __name__ == "__main__":
    main()
