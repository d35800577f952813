"""The arithmetic of `scaling` on a GPU, through torch: the same tables, so the same bytes as on the CPU.

torch is imported only where a GPU may be used.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeVar

from .environment import driver_present
from .errors import DeviceError
from .scaling import CPU, Backend, Bytes, Multiply, Transform

if TYPE_CHECKING:
    import torch

    Kernel = Callable[[torch.Tensor], torch.Tensor]

T = TypeVar("T")

# Below this many bytes importing torch and starting CUDA cost more than they can save. An estimate until it is
# measured: start-up takes about 3 s, in which one CPU core multiplies about 6 GB.
BREAK_EVEN_BYTES = 16 << 30

# Bytes that are no longer halved for a device without room for them, but multiplied on the CPU.
_SMALLEST = 64 << 10


def choose_backend(device: str, nbytes: int) -> tuple[str, Backend]:
    """The device to multiply `nbytes` on (`auto`, `cpu`, `cuda`), and its backend. Raises DeviceError."""
    if device == "auto" and not (nbytes >= BREAK_EVEN_BYTES and driver_present()):
        device = "cpu"
    if algebra_device(device) == "cpu":
        return "cpu", CPU
    import torch

    return "cuda", Streams(torch.device("cuda"))


def algebra_device(device: str) -> str:
    """Where linear algebra runs (`auto`, `cpu`, `cuda`): on CUDA wherever there is one. Raises DeviceError."""
    if device == "cpu":
        return "cpu"
    if missing := _missing():
        if device == "auto":
            return "cpu"
        raise DeviceError(f"--device cuda: {missing}", "use --device cpu, which writes the same bytes")
    return "cuda"


@cache
def _missing() -> str:
    """What keeps this process from using CUDA, empty if nothing does."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    try:  # one that is there may be taken, or be too old or too new for what this torch was built for
        torch.ones(1, device="cuda").sum().item()
    except torch.OutOfMemoryError:
        return ""  # whoever uses it has another way where there is no room
    except RuntimeError as error:
        return f"torch finds a CUDA device that it cannot use ({str(error).splitlines()[0]})"
    return ""


def with_room(device: str, compute: Callable[[str], T]) -> T:
    """Do linear algebra where `algebra_device` says, or on the CPU if there is no room. Raises DeviceError."""
    if algebra_device(device) == "cuda":
        # torch says it in one way, its libraries in others. What is not for want of room the CPU refuses, too.
        with suppress(RuntimeError):
            return compute("cuda")
    return compute("cpu")


def check_device(device: str) -> None:
    """Refuse at once what is only used later, or perhaps never. Raises DeviceError."""
    if device == "cuda":
        algebra_device(device)


class Streams(Backend):
    """Multiplies on a torch device, in two streams: while one computes, bytes of the other are on their way.

    Copies run beside the CPU because the memory on this side is pinned. What has no exact counterpart or no room on
    the device is multiplied on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        self._device = device
        module = torch.get_device_module(device)
        self._streams = [_Stream(module, device) for _ in range(2)]
        self._turns = cycle(self._streams)
        # Tables stay until all is done: another stream could get their memory while one still reads it.
        self._kernels: dict[Multiply, Kernel] = {}

    def transform(self, step: Multiply) -> Transform:
        """The function that has the device multiply bytes, or the CPU those that the device has no room for."""
        import torch

        if not step.tabled and step.source != step.target:
            return step.transform()
        if step not in self._kernels:
            try:  # others use the device's memory too
                self._kernels[step] = _by_table(step, self._device) if step.tabled else _by_product(step)
            except torch.OutOfMemoryError:
                return step.transform()
        kernel = self._kernels[step]

        def transform(data: Bytes, out: Bytes) -> None:
            try:
                next(self._turns).begin(kernel, data, out)
            except torch.OutOfMemoryError:
                if len(data) <= _SMALLEST:
                    step.transform()(data, out)
                    return
                half = len(data) // 16 * 8
                there = half * len(out) // len(data)
                transform(data[:half], out[:there])
                transform(data[half:], out[there:])

        return transform

    def memory(self, nbytes: int) -> Bytes:
        """Memory that the device can write to while the CPU does something else."""
        return _pinned(nbytes, self._device).numpy()

    def wait(self) -> None:
        """Return when the device has written all products."""
        for stream in self._streams:
            stream.done.synchronize()


class _Stream:
    """One of the streams of a device, and memory for what is on its way there."""

    def __init__(self, module: Any, device: torch.device) -> None:  # torch.cuda, or one like it
        self._module, self._device = module, device
        self._stream = module.Stream()
        self._staged = _pinned(0, device)
        self.done = module.Event()

    def begin(self, kernel: Kernel, data: Bytes, out: Bytes) -> None:
        """Have bytes brought there, computed with and brought back, once the last ones are."""
        import torch

        self.done.synchronize()
        if len(data) > len(self._staged):
            self._staged = _pinned(len(data), self._device)
        staged = self._staged[: len(data)]
        staged.numpy()[:] = data
        try:
            with self._module.stream(self._stream):
                products = kernel(staged.to(self._device, non_blocking=True))
                torch.from_numpy(out).copy_(products.view(torch.uint8), non_blocking=True)
        finally:  # the bytes are on their way even if there was no room for products
            self.done.record(self._stream)


def _pinned(nbytes: int, device: torch.device) -> torch.Tensor:
    """Memory of this side, from which a GPU copies by itself."""
    import torch

    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")


def _by_table(step: Multiply, device: torch.device) -> Kernel:
    import torch

    entries = step.table()
    # torch indexes with signed integers only; the table's own entries are moved, never computed with.
    table = torch.from_numpy(entries.view(f"i{entries.itemsize}").copy()).to(device)
    wide = step.source in ("F16", "BF16")

    def kernel(data: torch.Tensor) -> torch.Tensor:
        index = data.view(torch.int16).to(torch.int32) & 0xFFFF if wide else data.to(torch.int32)
        return table.index_select(0, index)

    return kernel


def _by_product(step: Multiply) -> Kernel:
    import torch

    dtype = {"F32": torch.float32, "F64": torch.float64}[step.source]

    def kernel(data: torch.Tensor) -> torch.Tensor:
        values = data.view(dtype)
        products = (values.double() * step.factor).to(dtype)
        return torch.where(values.isnan(), values, products)

    return kernel
