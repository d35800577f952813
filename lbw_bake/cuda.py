"""The arithmetic of `scaling` on a GPU, through torch: the same tables, so the same bytes as on the CPU.

The one module that imports torch for baking, and only when a GPU is to be used.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .environment import driver_present
from .errors import DeviceError
from .scaling import Backend, Bytes, Multiply, Transform

if TYPE_CHECKING:
    import torch

# Below this many bytes importing torch and starting CUDA cost more than they can save. An estimate until it is
# measured: start-up takes about 3 s, in which one CPU core multiplies about 6 GB.
BREAK_EVEN_BYTES = 16 << 30


def choose_backend(device: str, nbytes: int) -> tuple[str, Backend]:
    """The device to multiply `nbytes` on (`auto`, `cpu`, `cuda`), and its backend. Raises DeviceError."""
    if device == "auto" and not (nbytes >= BREAK_EVEN_BYTES and driver_present()):
        device = "cpu"
    if algebra_device(device) == "cpu":
        return "cpu", Multiply.transform
    import torch

    return "cuda", torch_backend(torch.device("cuda"))


def algebra_device(device: str) -> str:
    """Where linear algebra runs (`auto`, `cpu`, `cuda`): on CUDA wherever there is one. Raises DeviceError."""
    if device == "cpu":
        return "cpu"
    try:
        import torch
    except ImportError:
        missing = "torch is not installed"
    else:
        if torch.cuda.is_available():
            return "cuda"
        missing = "torch finds no CUDA device"
    if device == "auto":
        return "cpu"
    raise DeviceError(f"--device cuda: {missing}", "use --device cpu, which writes the same bytes")


def torch_backend(device: torch.device) -> Backend:
    """A backend that multiplies on a torch device; what has no exact counterpart or no room there stays on the CPU."""
    return partial(_transform, device=device)


def _transform(step: Multiply, device: torch.device) -> Transform:
    import torch

    if not step.tabled and step.source != step.target:
        return step.transform()
    try:  # others use the device's memory too
        there = _by_table(step, device) if step.tabled else _by_product(step, device)
    except torch.OutOfMemoryError:
        return step.transform()

    def transform(data: Bytes, out: Bytes) -> None:
        try:
            there(data, out)
        except torch.OutOfMemoryError:
            step.transform()(data, out)

    return transform


def _by_table(step: Multiply, device: torch.device) -> Transform:
    import torch

    entries = step.table()
    # torch indexes with signed integers only; the table's own entries are moved, never computed with.
    table = torch.from_numpy(entries.view(f"i{entries.itemsize}").copy()).to(device)
    wide = step.source in ("F16", "BF16")

    def transform(data: Bytes, out: Bytes) -> None:
        bits = torch.from_numpy(data).to(device)
        index = bits.view(torch.int16).to(torch.int32) & 0xFFFF if wide else bits.to(torch.int32)
        out[:] = table.index_select(0, index).cpu().numpy().view(np.uint8)

    return transform


def _by_product(step: Multiply, device: torch.device) -> Transform:
    import torch

    dtype = {"F32": torch.float32, "F64": torch.float64}[step.source]

    def transform(data: Bytes, out: Bytes) -> None:
        values = torch.from_numpy(data).to(device).view(dtype)
        products = (values.double() * step.factor).to(dtype)
        kept = torch.where(values.isnan(), values, products)
        out[:] = kept.cpu().numpy().view(np.uint8)

    return transform
