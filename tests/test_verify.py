"""Verification: whatever happens to a file while it is written, it is refused or it is right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from conftest import MODULE, Run, Tensors, entries_of, kohya_lora, unet_lora, write, write_raw
from formulas import Formula, for_each
from hypothesis import given, settings
from hypothesis import strategies as st

from lbw_bake import atomic, temporary
from lbw_bake.scaling import FLOATS, Multiply, largest, numpy_dtype, round_to
from lbw_bake.verify import _NUMBERS, nearest

NARROW = sorted(FLOATS - {"F32", "F64"})
HASHES = {"sshs_model_hash": "0", "sshs_legacy_hash": "0", "modelspec.hash_sha256": "0x0", "ss_output_name": "x"}
LORA = kohya_lora(["unet_middle_block_1_proj_in"], dtype="float16")


def neighbours(stored: np.ndarray) -> Iterator[np.ndarray]:
    bits = stored.view(f"u{stored.itemsize}")
    for step in (bits + 1, bits - 1):
        yield step.astype(bits.dtype).view(stored.dtype)


class TestNearest:
    """The judge agrees with the arithmetic, and with nothing else."""

    @pytest.mark.parametrize("dtype", NARROW)
    @pytest.mark.parametrize("factor", [0.3, -0.7, 1.0, 1e-3, 0.5, 3.0])
    def test_every_product_of_every_number_is_right_and_its_neighbours_are_wrong(
        self, dtype: str, factor: float
    ) -> None:
        target = numpy_dtype(dtype)
        bits = np.arange(1 << 8 * target.itemsize).astype(f"u{target.itemsize}")
        with np.errstate(all="ignore"):
            exact = bits.view(target).astype(np.float64) * factor
            stored = Multiply(dtype, dtype, factor).table().view(target)
            got = stored.astype(np.float64)
        kept = ~(np.isfinite(exact) & ~np.isfinite(got))  # those that overflow are not written
        assert nearest(stored, exact)[kept].all()
        for wrong in neighbours(stored):
            assert not nearest(wrong, exact)[kept & ~np.isnan(exact)].any()

    @settings(max_examples=300, deadline=None)
    @given(
        value=st.floats(allow_nan=False, allow_infinity=False),
        dtype=st.sampled_from(sorted(FLOATS)),
        half=st.booleans(),
    )
    def test_any_number_rounds_to_what_is_nearest(self, value: float, dtype: str, half: bool) -> None:
        target = numpy_dtype(dtype)
        value = float(np.clip(value, -largest(dtype), largest(dtype)))
        with np.errstate(all="ignore"):
            if half:  # between two numbers: the even one
                stored = round_to(np.array([value]), target)
                value = float(sum(x.astype(np.float64)[0] for x in (stored, *[*neighbours(stored)][:1])) / 2)
                value = value if np.isfinite(value) else 0.0
            exact = np.array([value])
            stored = round_to(exact, target)
        assert nearest(stored, exact).all()


@for_each()
@pytest.mark.parametrize(
    "options",
    [
        ("-w", "*=0.3"),
        ("-w", "*=1.5", "--dtype", "f32"),
        ("-w", "*=0"),
        ("-w", "*=1"),
        ("-w", "*=0.3", "--dtype", "bf16"),
    ],
    ids=" ".join,
)
def test_what_is_right_is_written(case: Formula, options: tuple[str, ...], tmp_path: Path, run: Run) -> None:
    source = write(tmp_path / "a.safetensors", case.tensors(MODULE, "float16"), HASHES)
    outputs = [tmp_path / name / "b.safetensors" for name in ("plain", "verified")]
    for output, verify in zip(outputs, ([], ["--verify"]), strict=True):
        output.parent.mkdir()
        run.done("bake", source, *options, *verify, "-o", output)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@dataclass
class Fault:
    """What happens to one write: `harm` gives what arrives on disk instead of what was written."""

    at: int
    harm: Callable[[bytearray], None]
    writes: int = 0


def flip_first(data: bytearray) -> None:
    data[0] ^= 1


def flip_last(data: bytearray) -> None:
    data[-1] ^= 0x80


def lose(data: bytearray) -> None:
    data[:] = bytes(len(data))


def repeat(data: bytearray) -> None:
    data[len(data) // 2 :] = data[: len(data) - len(data) // 2]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], None]:
    """Files on a disk that does something else than it says, once."""

    def install(fault: Fault) -> None:
        class Faulty(FileIO):
            def write(self, data: memoryview) -> int:  # type: ignore[override]
                fault.writes += 1
                arriving = bytearray(data)
                if fault.writes == fault.at and arriving:
                    fault.harm(arriving)
                return super().write(arriving)

        monkeypatch.setattr(temporary, "FileIO", Faulty)

    return install


CASES: dict[str, tuple[Tensors, tuple[str, ...]]] = {
    "scaled": (LORA, ("-w", "*=0.3")),
    "scaled and hashed": (LORA, ("-w", "*=0.3")),
    "widened": (LORA, ("-w", "*=0.3", "--dtype", "f32")),
    "zeroed": (LORA, ("-w", "*=0")),
    "filled with ones": (
        kohya_lora(["unet_output_blocks_3_1_proj_in"])
        | {
            f"{MODULE}.oft_blocks": np.ones((2, 4, 4), np.float16),
            f"{MODULE}.alpha": np.array(0.01, np.float16),
            f"{MODULE}.rescale": np.full((8, 1), 2, np.float16),
        },
        ("-w", "MID=0"),
    ),
    "copied": (LORA, ("-w", "*=1", "--strength", "1")),
}


@pytest.mark.parametrize("harm", [flip_first, flip_last, lose, repeat])
@pytest.mark.parametrize(("name", "case"), CASES.items(), ids=CASES)
def test_a_write_that_went_wrong_is_found(
    name: str,
    case: tuple[Tensors, tuple[str, ...]],
    harm: Callable[[bytearray], None],
    tmp_path: Path,
    run: Run,
    faulty: Callable[[Fault], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever write it is: refused, with the old output kept, or healed by a later write."""
    monkeypatch.delattr("os.copy_file_range", raising=False)  # its bytes pass no write of ours
    tensors, options = case
    source = write(tmp_path / "a.safetensors", tensors, HASHES if "hashed" in name else None)
    output = tmp_path / "b.safetensors"
    run.done("bake", source, *options, "-o", output)
    right = output.read_bytes()
    refused = 0
    for at in range(1, 100):
        output.write_bytes(b"old")
        fault = Fault(at, harm)
        faulty(fault)
        code, _, error = run("bake", source, *options, "--verify", "--force", "-o", output)
        if fault.writes < at:
            break
        if code == 0:
            assert output.read_bytes() == right
        else:
            assert code == 1
            assert error.startswith(f"error: {output}: failed verification and was not kept: ")
            assert output.read_bytes() == b"old"
            refused += 1
    assert refused >= 2
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "b.safetensors"}


@pytest.mark.parametrize("options", [("-w", "*=0.3"), ("-w", "*=0.3", "--dtype", "f32"), ("-w", "*=0")], ids=" ".join)
def test_any_flipped_bit_is_found(
    options: tuple[str, ...], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.safetensors", LORA, HASHES)
    output = tmp_path / "b.safetensors"
    run.done("bake", source, *options, "-o", output)
    size = output.stat().st_size
    output.unlink()
    flush = atomic.flush
    rng = np.random.default_rng(0)
    for position in range(0, size, 7):

        def meddle(file: FileIO, position: int = position) -> None:
            flush(file)
            with Path(str(file.name)).open("r+b") as other:
                other.seek(position)
                byte = other.read(1)[0]
                other.seek(position)
                other.write(bytes([byte ^ 1 << int(rng.integers(8))]))

        monkeypatch.setattr("lbw_bake.outputs.flush", meddle)
        error = run.refused("bake", source, *options, "--verify", "-o", output)
        assert "failed verification" in error
        assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_input_that_changes_meanwhile_is_said_to(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.safetensors", LORA)

    def meddle(_: FileIO) -> None:
        with source.open("r+b") as file:
            file.seek(-2, 2)
            file.write(b"\x12\x34")

    monkeypatch.setattr("lbw_bake.outputs.flush", meddle)
    error = run.refused("bake", source, "-w", "*=1.5", "--verify", "-o", tmp_path / "b.safetensors")
    assert "a.safetensors: changed while it was read" in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_tensor_is_named(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.safetensors", LORA)

    def meddle(file: FileIO) -> None:
        with Path(str(file.name)).open("r+b") as other:
            other.seek(-2, 2)
            other.write(b"\x12\x34")

    monkeypatch.setattr("lbw_bake.outputs.flush", meddle)
    last = list(entries_of(source))[-1]
    error = run.refused("bake", source, "-w", "*=1.5", "--verify", "-o", tmp_path / "b.safetensors")
    assert f"{last} is not what it should be at number " in error


@pytest.mark.parametrize("dtype", NARROW)
def test_numbers_that_are_none_pass(dtype: str, tmp_path: Path, run: Run) -> None:
    """Every bit pattern of the dtype, NaN and infinity among them."""
    size = numpy_dtype(dtype).itemsize
    bits = np.arange(1 << 8 * size).astype(f"u{size}").reshape(16, -1)
    small = np.ones(bits.shape[::-1], numpy_dtype(dtype))
    entries = [
        (f"{MODULE}.lora_down.weight", dtype, bits.shape, bits.tobytes()),
        (f"{MODULE}.lora_up.weight", dtype, bits.shape[::-1], small.tobytes()),
    ]
    source = write_raw(tmp_path / "a.safetensors", entries)
    run.done("bake", source, "-w", "*=0.3", "--verify", "-o", tmp_path / "b.safetensors")


class TestMany:
    @pytest.fixture
    def loras(self, tmp_path: Path) -> Path:
        folder = tmp_path / "loras"
        folder.mkdir()
        for name in "abc":
            write(folder / f"{name}.safetensors", unet_lora(dtype="float16"), HASHES)
        return folder

    @pytest.mark.usefixtures("in_processes")
    @pytest.mark.parametrize("jobs", [1, 2])
    def test_a_batch_of_several_presets(self, jobs: int, loras: Path, tmp_path: Path, run: Run) -> None:
        options = ("-p", "MIDD", "-p", "OUTALL", "--verify", "--jobs", str(jobs), "--json")
        out = run.out("bake", loras, "--out-dir", tmp_path / "out", *options)
        outcomes = [json.loads(line) for line in out.splitlines()]
        assert len(outcomes) == 6
        assert all(outcome["verified"] for outcome in outcomes)

    def test_in_place(self, loras: Path, run: Run) -> None:
        error = run.done("bake", loras, "-w", "*=0.5", "--in-place", "--verify")
        assert error.count(", verified;") == 3

    def test_what_was_not_verified_does_not_say_so(self, loras: Path, tmp_path: Path, run: Run) -> None:
        _, out, error = run("bake", loras, "-w", "*=0.5", "--json", "--out-dir", tmp_path / "out")
        assert not any(json.loads(line)["verified"] for line in out.splitlines())
        assert ", verified" not in error

    def test_truncation_has_no_law_of_single_tensors(self, loras: Path, tmp_path: Path, run: Run) -> None:
        options = ("-w", "*=0.5", "--rank", "2", "--verify", "-o", tmp_path / "out.safetensors")
        assert run("bake", loras / "a.safetensors", *options)[0] == 2


def test_what_is_removed_is_not_looked_for(tmp_path: Path, run: Run) -> None:
    tensors = LORA | kohya_lora(["unet_output_blocks_3_1_proj_in"])
    source = write(tmp_path / "a.safetensors", tensors)
    run.done("bake", source, "-w", "OUT03=0 *=1", "--prune", "--verify", "-o", tmp_path / "b.safetensors")
    assert entries_of(tmp_path / "b.safetensors").keys() == LORA.keys()


@pytest.mark.parametrize("together", [_NUMBERS, 3])
def test_what_is_computed_is_computed_again(
    together: int, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many numbers are looked at together."""
    monkeypatch.setattr("lbw_bake.verify._NUMBERS", together)
    rng = np.random.default_rng(0)
    layer = "model.diffusion_model.middle_block.1.proj_in.weight"
    base = write(tmp_path / "base.safetensors", {layer: rng.standard_normal((8, 8)).astype(np.float32)})
    source = write(tmp_path / "a.safetensors", LORA | {f"{MODULE}.dora_scale": np.ones((1, 8), np.float16)})
    options = ("-w", "*=0.3", "--base", base, "--device", "cpu", "--verify")
    run.done("bake", source, *options, "-o", tmp_path / "b.safetensors")
    scale = entries_of(tmp_path / "b.safetensors")[f"{MODULE}.dora_scale"][2]

    def meddle(file: FileIO) -> None:
        path = Path(str(file.name))
        content = bytearray(path.read_bytes())
        content[content.index(scale)] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr("lbw_bake.outputs.flush", meddle)
    error = run.refused("bake", source, *options, "-o", tmp_path / "c.safetensors")
    assert f"{MODULE}.dora_scale is not what it should be at number 0" in error
