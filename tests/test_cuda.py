"""The same bytes on every device."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import BakeFile, Run, data_of, transformed, unet_lora, write

from lbw_bake import cuda
from lbw_bake.cuda import choose_backend
from lbw_bake.scaling import FLOATS, Multiply, itemsize

torch = pytest.importorskip("torch")

DEVICES = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))],
)


@pytest.mark.parametrize("source", sorted(FLOATS))
@DEVICES
def test_torch_writes_the_bytes_that_numpy_writes(device: str, source: str) -> None:
    from lbw_bake.cuda import torch_backend

    # All values of a small dtype, NaN included, and as many random ones of a wide dtype.
    small = itemsize(source) <= 2
    rng = np.random.default_rng(0)
    data = np.arange(1 << 16, dtype=np.uint16).view(np.uint8) if small else rng.integers(0, 256, 1 << 18, np.uint8)
    backend = torch_backend(torch.device(device))
    for target, factor in itertools.product({source, "F16", "BF16", "F32"}, (0.3, -1.5, 1e5)):
        step = Multiply(source, target, factor)
        assert transformed(step, data, backend).tobytes() == transformed(step, data).tobytes(), step


@pytest.mark.parametrize("when", ["at once", "later"])
def test_what_the_device_has_no_room_for_is_done_on_the_cpu(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> object:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(cuda, "_by_table", full if when == "at once" else lambda *_: full)
    step = Multiply("F16", "F16", 0.3)
    data = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    backend = cuda.torch_backend(torch.device("cpu"))
    assert transformed(step, data, backend).tobytes() == transformed(step, data).tobytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_file_baked_on_cuda_is_the_one_baked_on_the_cpu(tmp_path: Path, bake_file: BakeFile) -> None:
    source = write(tmp_path / "a.safetensors", unet_lora(dtype="float16"))
    on_cpu, on_cuda = (bake_file(source, "--preset", "ALL0.5", "--device", device) for device in ("cpu", "cuda"))
    assert data_of(on_cuda) == data_of(on_cpu)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    "command", [("bake", "-w", "*=0.5"), ("bake", "-w", "*=0.5", "--rank", "1"), ("merge", "--rank", "1")], ids=" ".join
)
def test_cuda_without_cuda_is_refused_with_a_way_out(command: tuple[str, ...], tmp_path: Path, run: Run) -> None:
    source = write(tmp_path / "a.safetensors", unet_lora())
    error = run.refused(*command, source, "--device", "cuda", "-o", tmp_path / "b.safetensors")
    assert "no CUDA device" in error
    assert "hint: use --device cpu" in error
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("nbytes", [0, 1 << 20])
def test_small_files_stay_on_the_cpu(nbytes: int) -> None:
    assert choose_backend("auto", nbytes)[0] == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_auto_without_cuda_is_the_cpu_however_much_there_is() -> None:
    assert choose_backend("auto", 1 << 50)[0] == "cpu"
