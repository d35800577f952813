"""Real files of a few kilobytes, and the shortest way through the tool: tensors in, baked tensors out."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from hypothesis import settings
from safetensors.numpy import load_file, save_file

from lbw_bake.cli import main
from lbw_bake.scaling import CPU, Backend, Bytes, Multiply, itemsize

Tensors = dict[str, np.ndarray]
Planned = Callable[..., dict[str, Any]]
BakeTensors = Callable[..., Tensors]
BakeFile = Callable[..., Path]
Entry = tuple[str, str, tuple[int, ...], bytes]  # name, dtype, shape, data

# The same examples every time, so that a change is judged by itself; LBW_EXPLORE=1 looks for new ones.
settings.register_profile("lbw", deadline=None, derandomize=not os.environ.get("LBW_EXPLORE"))
settings.load_profile("lbw")

ROOT = Path(__file__).parents[1]

# A layer that every UNet family has: what a test about one module adapts.
MODULE = "lora_unet_middle_block_1_proj_in"

SD1_BLOCKS = ["BASE", *(f"IN{i:02}" for i in (1, 2, 4, 5, 7, 8)), "MID", *(f"OUT{i:02}" for i in range(3, 12))]
SD1_ALL_BLOCKS = ["BASE", *(f"IN{i:02}" for i in range(12)), "MID", *(f"OUT{i:02}" for i in range(12))]
SDXL_BLOCKS = ["BASE", *(f"IN{i:02}" for i in (4, 5, 7, 8)), "MID", *(f"OUT{i:02}" for i in range(6))]
SDXL_ALL_BLOCKS = ["BASE", *(f"IN{i:02}" for i in range(9)), "MID", *(f"OUT{i:02}" for i in range(9))]
FLUX_STACK = [*(f"D{i:02}" for i in range(19)), *(f"S{i:02}" for i in range(38))]
FLUX_BLOCKS = ["CLIP", "T5", "IN", *FLUX_STACK, "OUT"]


def _may_everything() -> bool:
    """Whether file modes mean nothing to this user, as to root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0)
        return os.access(folder, os.W_OK)


bound_by_permissions = pytest.mark.skipif(_may_everything(), reason="this user may read and write everything")


@pytest.fixture(autouse=True, scope="session")
def _no_user_presets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the presets of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("LBW_PRESETS", raising=False)
        patch.setenv("NO_COLOR", "1")
        yield


@pytest.fixture(autouse=True, scope="session")
def _parser_built_once() -> Iterator[None]:
    """typer builds its parser anew for every call, which takes longer than the call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_command", cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that the tests start in turn."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Run:
    """`lbw`, called in process."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *args: object) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        code = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *self._capfd.readouterr()

    def done(self, *args: object) -> str:
        """The stderr of what must succeed."""
        code, _, error = self(*args)
        assert code == 0, error
        return error

    def out(self, *args: object) -> str:
        """The stdout of what must succeed."""
        code, out, error = self(*args)
        assert code == 0, error
        return out

    def json(self, *args: object) -> Any:
        """The same, where it is JSON."""
        return json.loads(self.out(*args))

    def refused(self, *args: object) -> str:
        """The stderr of what must end with exit code 1."""
        code, _, error = self(*args)
        assert code == 1, error
        return error


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Call `lbw` in process."""
    return Run(capfd)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """An SD1 LoRA."""
    return write(tmp_path / "a.safetensors", unet_lora())


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of several jobs at a time are given to processes, however small they are."""
    monkeypatch.setattr("lbw_bake.batch._WORTH_PROCESSES", 0)


@pytest.fixture
def planned(run: Run, lora: Path) -> Planned:
    """What a dry run on an SD1 LoRA says as JSON; it must succeed."""
    return lambda *options: run.json("bake", lora, "--dry-run", "--json", *options)


@pytest.fixture
def bake_file(run: Run, tmp_path: Path) -> BakeFile:
    """Bake a file with any options of `lbw bake`; returns the path of the result, which has the same name."""
    count = itertools.count()

    def bake(source: Path, *options: object) -> Path:
        target = tmp_path / f"baked{next(count)}" / source.name
        target.parent.mkdir()
        run.done("bake", source, "-o", target, *options)
        return target

    return bake


@pytest.fixture(scope="session")
def bake_tensors(tmp_path_factory: pytest.TempPathFactory) -> BakeTensors:
    """Bake a state dict of numpy arrays with any options of `lbw bake`, and read the result with safetensors."""
    folder = tmp_path_factory.mktemp("bake")
    count = itertools.count()

    def bake(tensors: Mapping[str, np.ndarray], *options: object, metadata: Mapping[str, str] | None = None) -> Tensors:
        source = folder / f"{next(count)}.safetensors"
        baked = source.with_suffix(".baked.safetensors")
        write(source, tensors, metadata)
        with pytest.raises(SystemExit) as stop:
            main(["bake", str(source), "-o", str(baked), "--quiet", *map(str, options)])
        assert not stop.value.code, f"lbw bake {options} failed"
        result = load_file(baked)
        source.unlink()
        baked.unlink()
        return result

    return bake


def lbw(*args: object, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `lbw` in a process of its own."""
    return python("-m", "lbw_bake", *args, timeout=timeout, **environment)


def python(*args: object, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python."""
    return called(sys.executable, *args, timeout=timeout, env={**os.environ, **environment})


def called(*command: object, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program, whatever comes of it; the options are those of `subprocess.run`."""
    words = [*map(str, command)]
    return subprocess.run(
        words, capture_output=True, text=True, errors="replace", timeout=timeout, check=False, **options
    )


def lbw_on_path(home: Path) -> dict[str, str]:
    """The environment of somebody with this `lbw` and this Python on the PATH, and a home that may be changed."""
    programs = home / "bin"
    programs.mkdir(parents=True)
    for name, options in (("lbw", "-m lbw_bake"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {options} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "PATH": path}


def imported(*args: object, **environment: str) -> set[str]:
    """The packages that a run of `lbw` imports."""
    result = lbw(*args, PYTHONPROFILEIMPORTTIME="1", **environment)
    assert result.returncode == 0
    names = (line.split("|")[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time:"))
    return {name.split(".")[0] for name in names}


def kohya_lora(names: Sequence[str], rank: int = 4, width: int = 8, dtype: str = "float16", seed: int = 0) -> Tensors:
    """A LoRA of these kohya modules (`unet_middle_block_...`), with an alpha of its own each.

    The first layers of text encoders have CLIP-L's width, which tells SD1 from SD2; all others are square.
    """
    rng = np.random.default_rng(seed)
    tensors: Tensors = {}
    for i, name in enumerate(names):
        inputs = 768 if name.endswith("_mlp_fc1") else width
        tensors[f"lora_{name}.lora_down.weight"] = rng.standard_normal((rank, inputs)).astype(dtype)
        tensors[f"lora_{name}.lora_up.weight"] = rng.standard_normal((width, rank)).astype(dtype)
        tensors[f"lora_{name}.alpha"] = np.array(1 + i % 3, dtype)
    return tensors


def peft_lora(paths: Iterable[str], rank: int = 2, inputs: int = 8, seed: int = 0) -> Tensors:
    """A LoRA of these modules (`unet.mid_block...`) as PEFT and diffusers write it: no alpha, dots in the names."""
    rng = np.random.default_rng(seed)
    return {
        f"{path}.{role}.weight": rng.standard_normal(shape, np.float32)
        for path in paths
        for role, shape in (("lora_A", (rank, inputs)), ("lora_B", (8, rank)))
    }


def unet_lora(blocks: Iterable[str] = SD1_BLOCKS, text_encoder: str = "te", dtype: str = "float32") -> Tensors:
    """A LoRA with one module in each of these blocks, in the numbering of the original UNet."""
    return kohya_lora([_module_in(block, text_encoder) for block in blocks], dtype=dtype)


def sdxl_lora(blocks: Iterable[str] = SDXL_BLOCKS) -> Tensors:
    """The same for SDXL, whose first text encoder is `te1`."""
    return unet_lora(blocks, "te1")


def _module_in(block: str, text_encoder: str) -> str:
    if block == "BASE":
        return f"{text_encoder}_text_model_encoder_layers_0_mlp_fc1"
    if block == "MID":
        return "unet_middle_block_1_proj_in"
    side, number = ("input", block[2:]) if block.startswith("IN") else ("output", block[3:])
    # Attention where plain LoRAs find it in some UNet, the convolution elsewhere.
    attention = block in SD1_BLOCKS if text_encoder == "te" else block in SDXL_BLOCKS
    return f"unet_{side}_blocks_{int(number)}_{'1_proj_in' if attention else '0_in_layers_2'}"


def update_of(tensors: Mapping[str, np.ndarray], module: str) -> np.ndarray:
    """The dense update of a kohya LoRA's module, in float64."""
    down, up, alpha = (
        tensors[f"{module}.{role}"].astype(np.float64) for role in ("lora_down.weight", "lora_up.weight", "alpha")
    )
    return alpha.item() / len(down) * (up @ down)


def measured(original: Mapping[str, np.ndarray], baked: Mapping[str, np.ndarray]) -> list[float]:
    """The weight each module of a kohya LoRA really got, in the original's order; the updates must be proportional."""
    weights = []
    for name in original:
        if name.endswith(".lora_up.weight"):
            module = name.removesuffix(".lora_up.weight")
            old, new = update_of(original, module), update_of(baked, module)
            weight = float((old * new).sum() / (old * old).sum())
            assert np.linalg.norm(new - weight * old) <= 2e-3 * np.linalg.norm(old), module
            weights.append(weight)
    return weights


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file with the library everybody uses."""
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    save_file(contiguous, path, dict(metadata) if metadata else None)
    return path


def write_raw(
    path: Path,
    entries: Sequence[Entry],
    metadata: Mapping[str, str] | None = None,
    header_order: Callable[[str], Any] | None = None,
) -> Path:
    """Write a safetensors file by hand: any dtype, data in the order given, the header in an order of its own."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    listed: dict[str, Any] = {}
    for name, dtype, shape, content in entries:
        listed[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    header |= {name: listed[name] for name in (sorted(listed, key=header_order) if header_order else listed)}
    return write_header(path, json.dumps(header).encode(), data)


def write_header(path: Path, header: bytes, data: bytes = b"") -> Path:
    """Write a file of any header, true or not, and data."""
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def header_of(path: Path) -> dict[str, Any]:
    """The header as it is written, `__metadata__` included, in its order."""
    content = path.read_bytes()
    return dict(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]))


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a file."""
    return dict(header_of(path).get("__metadata__") or {})


def record_in(path: Path) -> Any:
    """What a file says of the bakes that made it."""
    return json.loads(metadata_of(path)["lbw_bake"])


def data_of(path: Path) -> bytes:
    """The data section of a file."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def content_of(folder: Path) -> dict[str, bytes]:
    """What is in the files of a folder, and of the folders in it, by their paths there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entries_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> dtype, shape and data of every tensor, whatever its dtype, in header order."""
    data = data_of(path)
    return {
        name: (entry["dtype"], tuple(entry["shape"]), data[slice(*entry["data_offsets"])])
        for name, entry in header_of(path).items()
        if name != "__metadata__"
    }


def transformed(step: Multiply, data: Bytes, backend: Backend = CPU) -> Bytes:
    """What becomes of bytes: in a place that is not aligned, as some have in a file."""
    before, after = itemsize(step.source), itemsize(step.target)
    out = np.zeros(1 + len(data) // before * after, np.uint8)[1:]
    backend.transform(step)(data, out)
    backend.wait()
    return out.copy()
