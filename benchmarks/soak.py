"""Thousands of bakes in one process: its memory and its open files stay what they were.

    python -m benchmarks.soak [--bakes 5000]

Every bake has weights of its own, every tenth fails, every fifth is verified, every seventh is in place. Exits 1 if
a megabyte more memory, or any more files, are held at the end than after half of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lbw_bake.jobs import Job
from lbw_bake.recipes import Recipe
from lbw_bake.run import BAKED, FAILED, run
from lbw_bake.sources import Weights

GROWTH = 1.0  # MiB


@dataclass(frozen=True)
class Held:
    """What the process holds: resident memory in MiB, and open files."""

    memory: float
    files: int


def held() -> Held:
    """What this process holds now, as the kernel says."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(list(Path("/proc/self/fd").iterdir())))


def small_lora(path: Path) -> None:
    """A LoRA with a module in each block of SD1's UNet."""
    rng = np.random.default_rng(0)
    spots = [f"input_blocks_{n}_1" for n in (1, 2, 4, 5, 7, 8)] + ["middle_block_1"]
    tensors = {}
    for name in spots + [f"output_blocks_{n}_1" for n in range(3, 12)]:
        module = f"lora_unet_{name}_transformer_blocks_0_attn2_to_k"
        tensors[f"{module}.lora_down.weight"] = rng.standard_normal((4, 768)).astype(np.float16)
        tensors[f"{module}.lora_up.weight"] = rng.standard_normal((320, 4)).astype(np.float16)
    save_file(tensors, path, {"sshs_model_hash": "0", "sshs_legacy_hash": "0"})


def bake(number: int, source: Path, rng: random.Random) -> None:
    """One bake of the kind its number says. Raises SystemExit if it does not end as it should."""
    wanted = FAILED if number % 10 == 0 else BAKED
    in_place = number % 7 == 0 and wanted == BAKED
    file = source
    output = (
        source.with_name("missing") / "out.safetensors" if wanted == FAILED else source.with_name("out.safetensors")
    )
    if in_place:
        file = output = source.with_name("work.safetensors")
        file.write_bytes(source.read_bytes())
    weights = Weights.of(f"*={rng.uniform(-2, 2)!r} MID={rng.uniform(0, 1)!r}")
    recipe = Recipe(weights, device="cpu", replace=True, in_place=in_place, verify=number % 5 == 1)
    (outcome,) = run(Job(file, ((output, recipe),)))
    if outcome.status != wanted:
        raise SystemExit(f"bake {number} {outcome.status}: {outcome.error}")


def main() -> None:
    """Bake many times, and say what was held on the way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bakes", type=int, default=5000)
    bakes = parser.parse_args().bakes
    rng = random.Random(0)  # noqa: S311
    print(f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()}, Python {platform.python_version()}")
    print("| bakes | memory | open files | seconds |\n|---|---|---|---|")
    began, settled = time.perf_counter(), None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.safetensors"
        small_lora(source)
        for number in range(1, bakes + 1):
            bake(number, source, rng)
            if number % (bakes // 10) == 0:
                now = held()
                settled = settled or (now if number >= bakes // 2 else None)
                print(
                    f"| {number} | {now.memory:.1f} MiB | {now.files} | {time.perf_counter() - began:.0f} |", flush=True
                )
    if settled and (now.memory - settled.memory > GROWTH or now.files != settled.files):
        raise SystemExit(f"grew from {settled} to {now}")


if __name__ == "__main__":
    main()
