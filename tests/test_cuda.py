"""The same bytes on every device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import BakeFile, Run, Tensors, data_of, transformed, unet_lora, write

import lbw_bake.run
from lbw_bake import cuda
from lbw_bake.cuda import Streams, choose_backend, with_room
from lbw_bake.lora import read_lora
from lbw_bake.outputs import Target
from lbw_bake.planning import make_plan
from lbw_bake.rewrite import rewrite
from lbw_bake.scaling import CPU, FLOATS, Multiply, Survey, itemsize
from lbw_bake.weights import parse_source, resolve

torch = pytest.importorskip("torch")

NORM = {"lora_unet_middle_block_1_norm.w_norm": np.ones(8, np.float16)}

DEVICES = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))],
)


@pytest.mark.parametrize("source", sorted(FLOATS))
@DEVICES
def test_torch_writes_the_bytes_that_numpy_writes(device: str, source: str) -> None:
    # All values of a small dtype, NaN included, and as many random ones of a wide dtype.
    small = itemsize(source) <= 2
    rng = np.random.default_rng(0)
    data = np.arange(1 << 16, dtype=np.uint16).view(np.uint8) if small else rng.integers(0, 256, 1 << 18, np.uint8)
    backend = Streams(torch.device(device))
    for target, factor in itertools.product({source, "F16", "BF16", "F32"}, (0.3, -1.5, 1e5)):
        step = Multiply(source, target, factor)
        assert transformed(step, data, backend).tobytes() == transformed(step, data).tobytes(), step


@DEVICES
def test_every_piece_comes_back_to_its_own_place(device: str) -> None:
    backend, step = Streams(torch.device(device)), Multiply("F16", "F16", 0.3)
    pieces = np.random.default_rng(0).integers(0, 256, (50, 1 << 16), np.uint8)
    out = backend.memory(pieces.size).reshape(pieces.shape)
    for piece, place in zip(pieces, out, strict=True):
        given = piece.copy()
        backend.transform(step)(given, place)
        given[:] = 0  # the reader's memory is used again at once
    backend.wait()
    assert out.tobytes() == transformed(step, pieces.reshape(-1)).tobytes()


@pytest.mark.parametrize("room", [0, 8 << 10, 200 << 10])
@pytest.mark.parametrize("target", ["F16", "F32"])
def test_what_the_device_has_no_room_for_goes_there_in_smaller_pieces(
    room: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = []

    def limited(step: Multiply, device: object) -> cuda.Kernel:
        kernel = by_table(step, device)

        def within(data: torch.Tensor) -> torch.Tensor:
            if data.nbytes > room:
                raise torch.OutOfMemoryError
            there.append(data.nbytes)
            return kernel(data)

        return within

    by_table = cuda._by_table
    monkeypatch.setattr(cuda, "_by_table", limited)
    step = Multiply("F16", target, 0.3)
    data = np.random.default_rng(0).integers(0, 256, 1_000_002, np.uint8)
    assert transformed(step, data, Streams(torch.device("cpu"))).tobytes() == transformed(step, data).tobytes()
    assert sum(there) == (len(data) if room > 64 << 10 else 0)


def test_what_the_device_has_no_room_at_all_for_is_done_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> object:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(cuda, "_by_table", full)
    step = Multiply("F16", "F16", 0.3)
    data = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    assert transformed(step, data, Streams(torch.device("cpu"))).tobytes() == transformed(step, data).tobytes()


@DEVICES
@pytest.mark.parametrize("hashed", [False, True])
def test_a_file_baked_by_torch_is_the_one_baked_by_numpy(device: str, hashed: bool, tmp_path: Path) -> None:
    lora = read_lora(write(tmp_path / "a.safetensors", unet_lora(dtype="float16"), {"sshs_model_hash": "0"}))
    plan = make_plan(lora, resolve(parse_source("*=0.5 IN04=2"), lora.candidates[0]), lambda *_: Survey())
    outputs = [tmp_path / "numpy" / "b.safetensors", tmp_path / "torch" / "b.safetensors"]
    for output, backend in zip(outputs, (CPU, Streams(torch.device(device))), strict=True):
        output.parent.mkdir()
        rewrite([Target(plan, output, update_metadata=hashed)], backend)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_file_baked_on_cuda_is_the_one_baked_on_the_cpu(tmp_path: Path, bake_file: BakeFile) -> None:
    source = write(tmp_path / "a.safetensors", unet_lora(dtype="float16"))
    on_cpu, on_cuda = (bake_file(source, "--preset", "ALL0.5", "--device", device) for device in ("cpu", "cuda"))
    assert data_of(on_cuda) == data_of(on_cpu)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    "command",
    [
        ("bake", "-w", "*=0.5"),
        ("bake", "-w", "*=0.5", "--dry-run"),
        ("bake", "-w", "*=0.5", "--rank", "1"),
        ("merge", "--rank", "1"),
        ("merge",),
        ("merge", "--dry-run"),
        ("sweep", "--x", "blocks=MID"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("tensors", [unet_lora(), NORM], ids=["lora", "nothing to truncate"])
def test_cuda_without_cuda_is_refused_with_a_way_out(
    command: tuple[str, ...], tensors: Tensors, tmp_path: Path, run: Run
) -> None:
    source = write(tmp_path / "a.safetensors", tensors)
    error = run.refused(*command, source, "--device", "cuda", "-o", tmp_path / "b.safetensors")
    assert "no CUDA device" in error
    assert "hint: use --device cpu" in error
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_sweep_is_not_planned_for_a_cuda_that_is_not_there(lora: Path, run: Run) -> None:
    assert "no CUDA device" in run.refused("sweep", lora, "--x", "blocks=MID", "--device", "cuda", "--dry-run")


@pytest.fixture(params=[RuntimeError("CUDA error: no kernel image is available\nCompile with TORCH_USE_CUDA_DSA")])
def unusable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """There is a device, but none that this torch could compute on."""

    def refuse(*_: object, **__: object) -> object:
        raise request.param

    cuda._missing.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", refuse)
    yield
    cuda._missing.cache_clear()


@pytest.mark.usefixtures("unusable")
def test_a_device_that_torch_cannot_use_is_refused_with_its_reason(lora: Path, tmp_path: Path, run: Run) -> None:
    error = run.refused("bake", lora, "-w", "*=0.5", "--device", "cuda", "-o", tmp_path / "b.safetensors")
    assert "a CUDA device that it cannot use (CUDA error: no kernel image is available)" in error
    assert "hint: use --device cpu" in error


@pytest.mark.usefixtures("unusable")
def test_auto_does_not_take_a_device_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "driver_present", lambda: True)
    assert choose_backend("auto", 1 << 50) == ("cpu", CPU)


@pytest.mark.usefixtures("unusable")
@pytest.mark.parametrize("unusable", [torch.OutOfMemoryError("CUDA out of memory")], indirect=True)
def test_a_device_that_is_full_for_now_is_one() -> None:
    """Or a program that once met a full one would be without it ever after."""
    assert cuda.algebra_device("auto") == cuda.algebra_device("cuda") == "cuda"


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError(), RuntimeError("CUSOLVER_STATUS_ALLOC_FAILED")])
def test_linear_algebra_goes_where_there_is_room(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(device: str) -> str:
        if device == "cuda" and error:
            raise error
        return device

    monkeypatch.setattr(cuda, "algebra_device", lambda _: "cuda")
    assert with_room("auto", compute) == ("cpu" if error else "cuda")


@pytest.mark.parametrize("nbytes", [0, 1 << 20])
def test_small_files_stay_on_the_cpu(nbytes: int) -> None:
    assert choose_backend("auto", nbytes)[0] == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_auto_without_cuda_is_the_cpu_however_much_there_is() -> None:
    assert choose_backend("auto", 1 << 50)[0] == "cpu"


def test_a_folder_counts_as_a_whole(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choose(device: str, nbytes: int) -> object:
        asked.append(nbytes)
        return choose_backend(device, nbytes)

    monkeypatch.setattr(lbw_bake.run, "choose_backend", choose)
    (tmp_path / "in").mkdir()
    files = [write(tmp_path / "in" / f"{name}.safetensors", unet_lora()) for name in "abc"]
    run.done("bake", tmp_path / "in", "-p", "MIDD", "-p", "OUTALL", "--out-dir", tmp_path / "out")
    assert asked == [2 * sum(file.stat().st_size for file in files)] * 3
