"""Bake modules of every algorithm and measure how far the result is off; writes the tables of docs/exactness.md.

Each module is baked as a file of its own at several weights, read back, and its update compared with that many times
the original's, both from formulas in float64 that are written here without a look at the package. Sizes are those of
trained LoRAs: down about 0.02, up about 0.01, a change of the weight by a few percent.

    python -m benchmarks.exactness
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lbw_bake.cli import main as lbw

PAGE = Path(__file__).parents[1] / "docs" / "exactness.md"
MODULE, LAYER = "lora_unet_middle_block_1_proj_in", "model.diffusion_model.middle_block.1.proj_in.weight"
OUT, IN, RANK = 384, 256, 8
WEIGHTS = (0.3, 0.7, 1.5, -0.5)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Tensor = torch.Tensor
Tensors = Mapping[str, Tensor]


def product(t: Tensors, w: Tensor) -> Tensor:
    """LoRA and LoCon."""
    down = t["lora_down.weight"]
    if "lora_mid.weight" in t:
        down = torch.einsum("pqxy,qi->pixy", t["lora_mid.weight"], down.flatten(1))
    return (t["lora_up.weight"].flatten(1) @ down.flatten(1)).reshape(w.shape) * (t["alpha"] / RANK)


def hadamard(t: Tensors, w: Tensor) -> Tensor:
    """LoHa."""
    del w
    return (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"]) * (t["alpha"] / RANK)


def kronecker(t: Tensors, w: Tensor) -> Tensor:
    """LoKr in full, which ignores alpha."""
    del w
    return torch.kron(t["lokr_w1"], t["lokr_w2"])


def generalized(t: Tensors, w: Tensor) -> Tensor:
    """GLoRA."""
    pair = w @ t["a1.weight"] @ t["a2.weight"] + t["b1.weight"] @ t["b2.weight"]
    return pair * (t["alpha"] / RANK)


def difference(t: Tensors, w: Tensor) -> Tensor:
    """A full difference."""
    del w
    return t["diff"]


def norms(matrix: Tensor, axis: int) -> Tensor:
    """Of rows (axis 0) or columns (axis 1)."""
    return torch.linalg.vector_norm(matrix, dim=1 - axis, keepdim=True)


def by_column(t: Tensors, w: Tensor) -> Tensor:
    """A1111, Forge, ComfyUI and InvokeAI."""
    if "diff" in t:
        return t["diff"]
    v = w + (kronecker(t, w) if "lokr_w1" in t else product(t, w))
    return v * t["dora_scale"] / norms(v, 1) - w


def by_row(t: Tensors, w: Tensor) -> Tensor:
    """ComfyUI and Forge."""
    return (w + product(t, w)) * t["dora_scale"] / norms(w, 0) - w


def turned(t: Tensors, w: Tensor) -> Tensor:
    """OFT."""
    if "diff" in t:
        return t["diff"]
    q = t["oft_blocks"] - t["oft_blocks"].mT
    eye = torch.eye(q.shape[-1], dtype=q.dtype)
    r = torch.linalg.solve(eye - q, eye + q, left=False)
    return (r.mT @ w.reshape(*r.shape[:2], -1)).reshape(w.shape) - w


@dataclass(frozen=True)
class Case:
    """A module: sizes and shapes by role, its update, what to bake it with; the kernel of its layer."""

    name: str
    shapes: Mapping[str, tuple[float, tuple[int, ...]]]
    update: Callable[[Tensors, Tensor], Tensor]
    axis: int | None = None
    options: tuple[str, ...] = ()
    kernel: tuple[int, ...] = ()
    drift: float = 0.03

    def base(self) -> Tensor:
        """The weight of the layer."""
        generator = torch.Generator().manual_seed(1)
        return 0.02 * torch.randn(OUT, IN, *self.kernel, generator=generator, dtype=torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        """The module, by role."""
        generator = torch.Generator().manual_seed(2)
        made = {
            role: size * torch.randn(shape, generator=generator, dtype=torch.float64)
            for role, (size, shape) in self.shapes.items()
        }
        made["alpha"] = torch.tensor(0.0 if "oft_blocks" in made else 4.0, dtype=torch.float64)
        if self.axis is not None:
            start = norms(self.base(), self.axis)
            made["dora_scale"] = start * (1 + self.drift * torch.randn(start.shape, generator=generator))
        return made


LORA = {"lora_down.weight": (0.02, (RANK, IN)), "lora_up.weight": (0.01, (OUT, RANK))}
LOKR = {"lokr_w1": (0.1, (8, 8)), "lokr_w2": (0.02, (OUT // 8, IN // 8))}
BASE, INEXACT = ("--base", "BASE"), ("--inexact", "allow")
COMMON = ("--family", "sd1", "--force", "--quiet")
CASES = (
    Case("LoRA", LORA, product),
    Case("LoRA whose `lora_up` is about 0.00002", {**LORA, "lora_up.weight": (2e-5, (OUT, RANK))}, product),
    Case(
        "LoCon 3x3",
        {"lora_down.weight": (0.02, (RANK, IN, 3, 3)), "lora_up.weight": (0.01, (OUT, RANK, 1, 1))},
        product,
        kernel=(3, 3),
    ),
    Case(
        "LoCon 3x3, Tucker",
        {
            "lora_down.weight": (0.02, (RANK, IN, 1, 1)),
            "lora_up.weight": (0.01, (OUT, RANK, 1, 1)),
            "lora_mid.weight": (0.1, (RANK, RANK, 3, 3)),
        },
        product,
        kernel=(3, 3),
    ),
    Case(
        "LoHa",
        {
            "hada_w1_a": (0.1, (OUT, RANK)),
            "hada_w1_b": (0.3, (RANK, IN)),
            "hada_w2_a": (0.01, (OUT, RANK)),
            "hada_w2_b": (0.3, (RANK, IN)),
        },
        hadamard,
    ),
    Case("LoKr", LOKR, kronecker),
    Case(
        "GLoRA",
        {
            "a1.weight": (0.02, (IN, RANK)),
            "a2.weight": (0.01, (RANK, IN)),
            "b1.weight": (0.02, (OUT, RANK)),
            "b2.weight": (0.01, (RANK, IN)),
        },
        generalized,
    ),
    Case("full difference", {"diff": (1e-3, (OUT, IN))}, difference),
    Case("DoRA, magnitudes of input columns, `--base`", LORA, by_column, 1, BASE),
    Case("DoRA, magnitudes of output rows, `--base`", LORA, by_row, 0, BASE),
    Case("DoRA of LoKr, `--base`", LOKR, by_column, 1, BASE),
    Case("OFT, `--base`", {"oft_blocks": (0.01, (OUT // 8, 8, 8))}, turned, options=BASE),
)


def error_of(case: Case, weight: float, dtype: torch.dtype, folder: Path) -> float:
    """The relative distance of the baked update from the weighted original."""
    source, target, base = (folder / f"{name}.safetensors" for name in ("source", "target", "base"))
    save_file({LAYER: case.base().float()}, base)
    save_file({f"{MODULE}.{role}": tensor.to(dtype) for role, tensor in case.tensors().items()}, source)
    options = [str(base) if option == "BASE" else option for option in case.options]
    try:
        lbw(["bake", str(source), "-o", str(target), f"--weights=MID={weight}", *COMMON, *options])
    except SystemExit as done:
        if done.code:
            raise
    before, after = (
        {name.removeprefix(f"{MODULE}."): tensor.double() for name, tensor in load_file(path).items()}
        for path in (source, target)
    )
    w = case.base().float().double()
    wanted = weight * case.update(before, w)
    return float((case.update(after, w) - wanted).norm() / wanted.norm())


def exact_table(folder: Path) -> str:
    """What is exact: the worst error of several weights, by dtype."""
    rows = ["| module | " + " | ".join(DTYPES) + " |", "|---" * (1 + len(DTYPES)) + "|"]
    for case in CASES:
        worst = [max(error_of(case, weight, dtype, folder) for weight in WEIGHTS) for dtype in DTYPES.values()]
        rows.append(f"| {case.name} | " + " | ".join(f"{error:.0e}".replace("e-0", "e-") for error in worst) + " |")
    return "\n".join(rows)


def inexact_table(folder: Path) -> str:
    """What `--inexact allow` does, in percent of the wanted update."""
    size = 8
    cases = [
        Case(
            f"OFT that turns by {angle:g}",
            {"oft_blocks": (angle / 2 / (2 * (size - 1)) ** 0.5, (OUT // size, size, size))},
            turned,
            options=INEXACT,
        )
        for angle in (0.03, 0.1, 0.3)
    ]
    cases += [
        Case(f"DoRA whose magnitudes moved by {100 * drift:.0f} %", LORA, by_column, 1, INEXACT, drift=drift)
        for drift in (0.01, 0.05)
    ]
    rows = ["| module | " + " | ".join(f"{weight:g}" for weight in WEIGHTS) + " |", "|---" * (1 + len(WEIGHTS)) + "|"]
    for case in cases:
        errors = [100 * error_of(case, weight, torch.float32, folder) for weight in WEIGHTS]
        rows.append(
            f"| {case.name} | " + " | ".join(f"{error:.{0 if error >= 10 else 1}f} %" for error in errors) + " |"
        )
    return "\n".join(rows)


def replaced(page: str, name: str, table: str) -> str:
    """The page with a table between the markers of its name."""
    start, end = f"<!-- {name}: python -m benchmarks.exactness -->", f"<!-- end of {name} -->"
    before, rest = page.split(start)
    return f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Measure everything and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        tables = {"exact": exact_table(Path(folder)), "inexact": inexact_table(Path(folder))}
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        page = replaced(page, name, table)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
