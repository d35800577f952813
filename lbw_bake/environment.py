"""What `lbw` runs on, found out without importing what is large."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from . import __version__

# What decides the bytes written, or how fast.
_LIBRARIES = ("numpy", "ml_dtypes", "safetensors", "torch")


def driver_present() -> bool:
    """Whether there is an NVIDIA driver: a cheap look before torch is imported."""
    if os.name == "nt":
        return Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll").exists()
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/dxg").exists()


def description() -> Iterator[str]:
    """Lines for a bug report: versions, system, GPU driver."""
    yield f"lbw {__version__}"
    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield ", ".join(_installed(library) for library in _LIBRARIES)
    yield "NVIDIA driver found" if driver_present() else "no NVIDIA driver found"


def _installed(library: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return f"{library} not installed"
