"""Modules that no factor scales: baked with a base model, with leave to be inexact, or refused.

The judges are the readings of ComfyUI and A1111 (`weight_adapter` and `network.py` there), written from their formulas
in numpy and float64 without a look at the package.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import (
    MODULE,
    ROOT,
    BakeFile,
    BakeTensors,
    Run,
    Tensors,
    data_of,
    entries_of,
    header_of,
    kohya_lora,
    lbw,
    metadata_of,
    record_in,
    write,
    write_raw,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lbw_bake.remedies import Remedies

torch = pytest.importorskip("torch")

Array = np.ndarray
Options = tuple[object, ...]

LAYER = "model.diffusion_model.middle_block.1.proj_in.weight"
OUT, IN, RANK = 12, 10, 3
WEIGHTS = (0.3, 0.7, 1.5, -0.5)
MULTIPLIERS = (1.0, 0.6)
TOLERANCES = {"float32": 1e-5, "float16": 2e-3}
SHAPES = {"linear": (OUT, IN), "3x3": (OUT, IN, 3, 3)}

at_weights = pytest.mark.parametrize("weight", WEIGHTS)
in_dtypes = pytest.mark.parametrize("dtype", TOLERANCES)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint per kind of layer, in LDM names."""
    folder = tmp_path_factory.mktemp("base")
    return {kind: write(folder / f"{kind}.safetensors", {LAYER: base(kind)}) for kind in SHAPES}


@pytest.fixture
def on_base(checkpoints: Mapping[str, Path]) -> Options:
    """The options that give a linear layer its base weight."""
    return "--base", checkpoints["linear"], "--family", "sd1"


def base(kind: str) -> Array:
    return np.random.default_rng(3).standard_normal(SHAPES[kind]).astype("float32")


def random(*shapes: tuple[int, ...], size: float = 0.3) -> list[Array]:
    rng = np.random.default_rng(5)
    return [size * rng.standard_normal(shape) for shape in shapes]


# Decomposed modules ---------------------------------------------------------------------------------------------


def lora(kind: str) -> Tensors:
    kernel = SHAPES[kind][2:]
    down, up = random((RANK, IN, *kernel), (OUT, RANK, *(1 for _ in kernel)))
    return {"lora_down.weight": down, "lora_up.weight": up}


def tucker(kind: str) -> Tensors:
    down, up, mid = random((RANK, IN, 1, 1), (OUT, RANK, 1, 1), (RANK, RANK, *SHAPES[kind][2:]))
    return {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": mid}


def loha(kind: str) -> Tensors:
    columns = int(np.prod(SHAPES[kind][1:]))
    shapes = ((OUT, RANK), (RANK, columns)) * 2
    return dict(zip(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), random(*shapes), strict=True))


def tucker_loha(kind: str) -> Tensors:
    shapes = ((RANK, OUT), (RANK, IN), (RANK, RANK, *SHAPES[kind][2:])) * 2
    roles = [f"hada_{part}" for n in "12" for part in (f"w{n}_a", f"w{n}_b", f"t{n}")]
    return dict(zip(roles, random(*shapes, size=0.6), strict=True))


def lokr(kind: str) -> Tensors:
    w1, w2 = random((3, 2), (4, 5, *SHAPES[kind][2:]))
    return {"lokr_w1": w1, "lokr_w2": w2}


def low_lokr(kind: str) -> Tensors:
    del kind
    a, b, c, d = random((3, RANK), (RANK, 2), (4, RANK), (RANK, 5))
    return {"lokr_w1_a": a, "lokr_w1_b": b, "lokr_w2_a": c, "lokr_w2_b": d}


def glora(kind: str) -> Tensors:
    kernel = SHAPES[kind][2:]
    pixel = tuple(1 for _ in kernel)
    a1, a2, b1, b2 = random((IN, RANK, *pixel), (RANK, IN, *pixel), (OUT, RANK, *pixel), (RANK, IN, *kernel))
    return {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}


def old_glora(kind: str) -> Tensors:
    """As LyCORIS had it before 2.0: the first of each pair is the one that the input goes into."""
    a1, a2, b1, b2 = glora(kind).values()
    return {"a1.weight": a2, "a2.weight": a1, "b1.weight": b2, "b2.weight": b1}


def dense(t: Mapping[str, Array], w: Array) -> Array:
    """The update of the factors, alpha / rank included."""
    t = {role: values.astype(np.float64) for role, values in t.items()}
    scale = 1.0 if "lokr_w2" in t or "alpha" not in t else float(t["alpha"]) / RANK
    if "lora_mid.weight" in t:
        up, down = t["lora_up.weight"].reshape(OUT, RANK), t["lora_down.weight"].reshape(RANK, IN)
        delta = np.einsum("pqxy,op,qi->oixy", t["lora_mid.weight"], up, down)
    elif "lora_up.weight" in t:
        delta = t["lora_up.weight"].reshape(OUT, RANK) @ t["lora_down.weight"].reshape(RANK, -1)
    elif "hada_t1" in t:
        one, two = (np.einsum("pqxy,po,qi->oixy", t[f"hada_t{n}"], t[f"hada_w{n}_a"], t[f"hada_w{n}_b"]) for n in "12")
        delta = one * two
    elif "hada_w1_a" in t:
        delta = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
    elif "a1.weight" in t:
        a1, a2, b1, b2 = (
            t[f"{role}.weight"].reshape(len(t[f"{role}.weight"]), -1) for role in ("a1", "a2", "b1", "b2")
        )
        if a1.shape == (RANK, IN):
            a1, a2, b1, b2 = a2, a1, b2, b1
        delta = np.einsum("oi...,ir,rj->oj...", w, a1, a2) + (b1 @ b2).reshape(w.shape)
    elif "lokr_w1_a" in t:
        delta = np.kron(t["lokr_w1_a"] @ t["lokr_w1_b"], t["lokr_w2_a"] @ t["lokr_w2_b"])
    else:
        delta = np.kron(t["lokr_w1"].reshape(3, 2, *(1 for _ in w.shape[2:])), t["lokr_w2"])
    return scale * delta.reshape(w.shape)


def column_norms(matrix: Array) -> Array:
    return np.sqrt((matrix**2).sum(axis=(0, *range(2, matrix.ndim)), keepdims=True))


def row_norms(matrix: Array) -> Array:
    return np.sqrt((matrix**2).sum(axis=tuple(range(1, matrix.ndim)), keepdims=True))


def a1111(t: Mapping[str, Array], w: Array, m: float) -> Array:
    """Also InvokeAI's: columns of V are brought to the magnitude's length."""
    if "diff" in t:
        return m * t["diff"].astype(np.float64)
    v = w + dense(t, w)
    return m * (v * (t["dora_scale"] / column_norms(v)) - w)


def comfyui(t: Mapping[str, Array], w: Array, m: float) -> Array:
    """Also Forge's: rows are scaled by the magnitude over the length they have without the LoRA."""
    if "diff" in t or len(t["dora_scale"]) == 1:
        return a1111(t, w, m)
    return m * ((w + dense(t, w)) * (t["dora_scale"] / row_norms(w)) - w)


def lycoris(t: Mapping[str, Array], w: Array, m: float) -> Array:
    """V (1 + m (d/|V| - 1)) - W; at m = 1 all there is to say."""
    if "diff" in t:
        return a1111(t, w, m)
    v = w + dense(t, w)
    return v * (1 + m * (t["dora_scale"] / row_norms(v) - 1)) - w


Reader = Callable[[Mapping[str, Array], Array, float], Array]


@dataclass(frozen=True)
class Dora:
    """A decomposed module: its factors, its layer, the axis of its magnitude; whether its rank can take a weight."""

    factors: Callable[[str], Tensors]
    kind: str
    axis: str
    full: bool = False

    def __str__(self) -> str:
        return f"{self.factors.__name__}-{self.kind}-{self.axis}"

    def tensors(self, dtype: str) -> Tensors:
        w = base(self.kind).astype(np.float64)
        factors = {**self.factors(self.kind), "alpha": np.array(2.0)}
        norms = column_norms if self.axis == "in" else row_norms
        drift = np.random.default_rng(8).uniform(0.9, 1.1, norms(w).shape)
        tensors = {**factors, "dora_scale": norms(w + dense(factors, w)) * drift}
        return {f"{MODULE}.{role}": values.astype(dtype) for role, values in tensors.items()}

    @property
    def readers(self) -> tuple[Reader, ...]:
        return (a1111, comfyui) if self.axis == "in" else (comfyui,)


DORAS = tuple(
    Dora(factors, kind, axis, full=factors in (lokr, low_lokr, glora, old_glora))
    for factors, kinds in (
        (lora, ("linear", "3x3")),
        (tucker, ("3x3",)),
        (loha, ("linear", "3x3")),
        (tucker_loha, ("3x3",)),
        (lokr, ("linear", "3x3")),
        (low_lokr, ("linear",)),
        (glora, ("linear", "3x3")),
        (old_glora, ("linear", "3x3")),
    )
    for kind in kinds
    for axis in ("in", "out")
)


def roles(tensors: Mapping[str, Array]) -> Tensors:
    return {name.removeprefix(f"{MODULE}."): values for name, values in tensors.items()}


def assert_close(got: Array, wanted: Array, tolerance: float) -> None:
    error = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    assert error <= tolerance, f"off by {error:.2g}"


@in_dtypes
@at_weights
@pytest.mark.parametrize("case", DORAS, ids=str)
def test_dora_is_exact_with_its_base(
    case: Dora, weight: float, dtype: str, checkpoints: Mapping[str, Path], bake_tensors: BakeTensors
) -> None:
    original = case.tensors(dtype)
    baked = bake_tensors(original, "--weights", f"MID={weight}", "--base", checkpoints[case.kind], "--family", "sd1")
    w = base(case.kind).astype(np.float64)
    assert (f"{MODULE}.diff" in baked) == case.full
    assert case.full or {name: array.shape for name, array in baked.items()} == {
        name: array.shape for name, array in original.items()
    }
    for read in case.readers:
        for m in MULTIPLIERS:
            assert_close(read(roles(baked), w, m), read(roles(original), w, m * weight), TOLERANCES[dtype])


@at_weights
@pytest.mark.parametrize("case", [case for case in DORAS if case.axis == "out"], ids=str)
def test_the_norm_of_output_rows_can_be_lycoris(
    case: Dora, weight: float, checkpoints: Mapping[str, Path], bake_tensors: BakeTensors
) -> None:
    original = case.tensors("float16")
    options = ("--base", checkpoints[case.kind], "--dora-norm", "lycoris", "--family", "sd1")
    baked = bake_tensors(original, "--weights", f"MID={weight}", *options)
    w = base(case.kind).astype(np.float64)
    wanted = weight * lycoris(roles(original), w, 1.0)
    assert_close(lycoris(roles(baked), w, 1.0), wanted, TOLERANCES["float16"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weight=st.floats(-1.5, 2.0, width=32).filter(lambda weight: abs(weight) > 0.01))
def test_dora_is_exact_at_any_weight(weight: float, checkpoints: Mapping[str, Path], bake_tensors: BakeTensors) -> None:
    original = DORAS[0].tensors("float32")
    baked = bake_tensors(original, f"--weights=MID={weight!r}", "--base", checkpoints["linear"], "--family", "sd1")
    w = base("linear").astype(np.float64)
    # A small weight makes a small difference of magnitudes, which float32 has to hold.
    tolerance = 2e-5 + 4e-7 / abs(weight)
    assert_close(a1111(roles(baked), w, 0.6), a1111(roles(original), w, 0.6 * weight), tolerance)


class TestDora:
    """What else there is to say of decomposed modules."""

    def test_new_magnitudes_are_in_float32(self, on_base: Options, bake_tensors: BakeTensors) -> None:
        baked = bake_tensors(DORAS[0].tensors("float16"), "--weights", "MID=0.3", *on_base)
        assert {name: array.dtype for name, array in roles(baked).items()} == {
            "alpha": np.float16,
            "dora_scale": np.float32,
            "lora_down.weight": np.float16,
            "lora_up.weight": np.float16,
        }

    def test_all_but_the_magnitudes_can_have_another_dtype(self, on_base: Options, bake_tensors: BakeTensors) -> None:
        original = DORAS[1].tensors("float32")
        baked = bake_tensors(original, "--weights", "MID=0.3", "--dtype", "f16", *on_base)
        assert roles(baked)["lora_up.weight"].dtype == np.float16
        w = base("linear").astype(np.float64)
        assert_close(comfyui(roles(baked), w, 1.0), comfyui(roles(original), w, 0.3), TOLERANCES["float16"])

    def test_small_factors_do_not_underflow(self, on_base: Options, bake_tensors: BakeTensors) -> None:
        case = Dora(lora, "linear", "out")
        original = case.tensors("float16")
        up, magnitude = f"{MODULE}.lora_up.weight", f"{MODULE}.dora_scale"
        original[up] = (original[up] * 1e-4).astype(np.float16)
        original[magnitude] = row_norms(base("linear")).astype(np.float16)
        baked = bake_tensors(original, "--weights", "MID=0.1", *on_base)
        delta, wanted = (dense(roles(tensors), base("linear")) for tensors in (baked, original))
        k = 0.9 + 0.1 * roles(original)["dora_scale"] / row_norms(base("linear").astype(np.float64))
        assert_close(delta, 0.1 * wanted / k, TOLERANCES["float16"])

    def test_what_adds_to_the_factors_is_scaled_too(self, on_base: Options, bake_tensors: BakeTensors) -> None:
        original = DORAS[0].tensors("float32") | {f"{MODULE}.diff_b": np.arange(OUT, dtype="float32")}
        baked = bake_tensors(original, "--weights", "MID=0.5", *on_base)
        assert (roles(baked)["diff_b"] == 0.5 * np.arange(OUT)).all()

    def test_a_row_of_zeros_stays_one(self, on_base: Options, bake_tensors: BakeTensors) -> None:
        original = Dora(lora, "linear", "out").tensors("float32")
        original[f"{MODULE}.lora_up.weight"][2] = 0
        original[f"{MODULE}.dora_scale"][2] = 0
        baked = roles(bake_tensors(original, "--weights", "MID=0.5", *on_base))
        assert np.isfinite(baked["lora_up.weight"]).all()
        assert baked["dora_scale"][2] == pytest.approx(0.5 * row_norms(base("linear"))[2])

    def test_an_update_that_nearly_cancels_the_weight_is_refused(
        self, on_base: Options, tmp_path: Path, run: Run
    ) -> None:
        original = Dora(lora, "linear", "out").tensors("float32")
        original[f"{MODULE}.dora_scale"][:] = 0.5 * row_norms(base("linear"))
        source, target = write(tmp_path / "a.safetensors", original), tmp_path / "b.safetensors"
        error = run.refused("bake", source, "--weights", "MID=2", "-o", target, *on_base)
        assert "nearly cancels the base weight" in error
        assert not target.exists()
        assert "lbw merge with --base" in error
        run.done("merge", f"{source}:2", "-o", target, *on_base)
        w = base("linear").astype(np.float64)
        assert_close(roles(load_file(target))["diff"], comfyui(roles(original), w, 2.0), 1e-5)

    def test_modules_may_lie_apart_in_the_file(
        self, checkpoints: Mapping[str, Path], tmp_path: Path, bake_tensors: BakeTensors
    ) -> None:
        other = MODULE.replace("proj_in", "proj_out")
        original = DORAS[0].tensors("float16")
        # The library sorts by dtype first: all magnitudes lie before all factors.
        original[f"{MODULE}.dora_scale"] = original[f"{MODULE}.dora_scale"].astype("float32")
        original |= {name.replace(MODULE, other): array for name, array in original.items()}
        checkpoint = write(
            tmp_path / "base.safetensors",
            {LAYER: base("linear"), LAYER.replace("proj_in", "proj_out"): base("linear")},
        )
        baked = bake_tensors(original, "--weights", "MID=0.3", "--base", checkpoint, "--family", "sd1")
        for role, array in roles({name: array for name, array in baked.items() if MODULE in name}).items():
            assert (array == baked[f"{other}.{role}"]).all()

    @at_weights
    def test_a_full_difference_with_a_magnitude_stays_one(
        self, weight: float, on_base: Options, bake_tensors: BakeTensors
    ) -> None:
        w = base("linear").astype(np.float64)
        (diff,) = random((OUT, IN))
        scale = column_norms(w + diff) * 1.1
        original = {f"{MODULE}.diff": diff.astype("float32"), f"{MODULE}.dora_scale": scale.astype("float32")}
        baked = roles(bake_tensors(original, "--weights", f"MID={weight}", *on_base))
        assert_close(baked.pop("diff"), weight * ((w + diff) * scale / column_norms(w + diff) - w), 1e-5)
        assert not baked

    @pytest.mark.parametrize(("axis", "norm"), [("in", None), ("out", "comfyui")])
    def test_the_record_names_the_base_and_the_norm(
        self, axis: str, norm: str | None, checkpoints: Mapping[str, Path], tmp_path: Path, run: Run
    ) -> None:
        source = write(tmp_path / "a.safetensors", Dora(lora, "linear", axis).tensors("float16"))
        target = tmp_path / "b.safetensors"
        run.done("bake", source, "-w", "MID=0.5", "-o", target, "--base", checkpoints["linear"])
        record = record_in(target)
        assert record["base"] == "linear.safetensors"
        assert record.get("dora_norm") == norm

    def test_naive_scaling_is_a_warning_per_block(self, tmp_path: Path, run: Run) -> None:
        original = DORAS[0].tensors("float32")
        source, target = write(tmp_path / "a.safetensors", original), tmp_path / "b.safetensors"
        error = run.done("bake", source, "-w", "MID=0.5", "-o", target, "--inexact", "allow", "--family", "sd1")
        assert "MID: 1 lora+dora modules keep their magnitudes" in error
        assert "cannot be known without the base model" in error
        assert record_in(target)["inexact"] == "allow"


# Rotations ------------------------------------------------------------------------------------------------------


def cayley(blocks: Array, constraint: float) -> Array:
    q = blocks.astype(np.float64) - np.swapaxes(blocks, -1, -2)
    norm = np.linalg.norm(q)
    if 0 < constraint < norm:
        q = q * constraint / norm
    eye = np.eye(q.shape[-1])
    return (eye + q) @ np.linalg.inv(eye - q)


def rotated(t: Mapping[str, Array], w: Array) -> Array:
    """What A1111 and LyCORIS put in place of W at weight 1."""
    r = cayley(t["oft_blocks"], float(t.get("alpha", 0.0)) * OUT)
    rows = w.reshape(OUT, -1)
    if r.ndim == 3:
        whole = np.zeros((OUT, OUT))
        for i, block in enumerate(r):
            span = slice(i * len(block), (i + 1) * len(block))
            whole[span, span] = block
        rows = whole.T @ rows
    else:
        for i, stage in enumerate(r):
            size = stage.shape[-1]
            order = np.arange(OUT).reshape(-1, 2, 2**i * size // 2).transpose(0, 2, 1).ravel()
            mixed = np.einsum("bij,bjc->bic", stage, rows[order].reshape(-1, size, rows.shape[1]))
            rows = np.empty_like(rows)
            rows[order] = mixed.reshape(rows.shape)
    return t.get("rescale", np.ones((OUT, 1))).reshape(OUT, *(1 for _ in w.shape[1:])) * rows.reshape(w.shape)


def rotation(*shape: int, size: float, alpha: float, rescaled: bool = False) -> Tensors:
    rng = np.random.default_rng(6)
    tensors = {"oft_blocks": size * rng.standard_normal(shape), "alpha": np.array(alpha)}
    return tensors | ({"rescale": rng.uniform(0.8, 1.2, (OUT, 1))} if rescaled else {})


ROTATIONS = {
    "oft": rotation(3, 4, 4, size=0.1, alpha=0.0),
    "coft": rotation(3, 4, 4, size=0.1, alpha=0.02),
    "coft not reached": rotation(3, 4, 4, size=0.01, alpha=1.0),
    "oft rescaled": rotation(3, 4, 4, size=0.1, alpha=0.0, rescaled=True),
    "boft": rotation(2, 2, 6, 6, size=0.1, alpha=0.0),
    "boft rescaled": rotation(2, 2, 6, 6, size=0.1, alpha=0.05, rescaled=True),
}
rotations = pytest.mark.parametrize("case", ROTATIONS.values(), ids=ROTATIONS)


def stored(tensors: Mapping[str, Array], dtype: str, module: str = MODULE) -> Tensors:
    return {f"{module}.{role}": array.astype(dtype) for role, array in tensors.items()}


class TestRotations:
    @in_dtypes
    @at_weights
    @rotations
    @pytest.mark.parametrize("kind", SHAPES)
    def test_the_difference_is_exact(
        self,
        kind: str,
        case: Tensors,
        weight: float,
        dtype: str,
        checkpoints: Mapping[str, Path],
        bake_tensors: BakeTensors,
    ) -> None:
        original = stored(case, dtype)
        baked = bake_tensors(original, "-w", f"MID={weight}", "--base", checkpoints[kind], "--family", "sd1")
        w = base(kind).astype(np.float64)
        assert [*roles(baked)] == ["diff"]
        assert_close(roles(baked)["diff"], weight * (rotated(roles(original), w) - w), TOLERANCES[dtype])

    def test_kohyas_name_becomes_one_that_loaders_know(self, on_base: Options, bake_tensors: BakeTensors) -> None:
        original = stored(ROTATIONS["oft"], "float32", MODULE.replace("lora_", "oft_"))
        assert [*bake_tensors(original, "-w", "MID=0.5", *on_base)] == [f"{MODULE}.diff"]

    def test_a_fused_layer_may_be_turned_in_parts(self, on_base: Options, bake_tensors: BakeTensors) -> None:
        whole = stored(ROTATIONS["oft"], "float32")
        blocks = whole.pop(f"{MODULE}.oft_blocks")
        parts = whole | {f"{MODULE}.oft_blocks.{i}": blocks[i : i + 1] for i in range(3)}
        whole |= {f"{MODULE}.oft_blocks": blocks}
        one, other = (bake_tensors(t, "-w", "MID=0.5", *on_base) for t in (whole, parts))
        assert_close(other[f"{MODULE}.diff"], one[f"{MODULE}.diff"], 1e-6)

    @at_weights
    @rotations
    def test_without_the_base_the_error_is_told(
        self, case: Tensors, weight: float, tmp_path: Path, run: Run, bake_tensors: BakeTensors
    ) -> None:
        original = stored(case, "float32")
        options = ("-w", f"MID={weight}", "--inexact", "allow", "--family", "sd1")
        baked = roles(bake_tensors(original, *options))
        w = np.random.default_rng(1).standard_normal((OUT, 2000))
        wanted = weight * (rotated(roles(original), w) - w)
        error = np.linalg.norm(rotated(baked, w) - w - wanted) / np.linalg.norm(wanted)
        source = write(tmp_path / "a.safetensors", original)
        said = run.done("bake", source, "-o", tmp_path / "b.safetensors", *options)
        told = re.search(r"MID: 1 oft modules turn .* off their weighted update by ([\d.e-]+) %", said)
        assert told
        assert float(told[1]) / 100 == pytest.approx(error, rel=0.1)
        assert "alpha" not in case or baked["alpha"] == pytest.approx(abs(weight) * float(case["alpha"]))

    def test_kohyas_alpha_is_that_of_the_whole_file(self, bake_tensors: BakeTensors) -> None:
        name = MODULE.replace("lora_", "oft_")
        original = stored(ROTATIONS["coft"], "float32", name)
        baked = bake_tensors(original, "-w", "MID=0.5", "--inexact", "allow", "--family", "sd1")
        assert baked[f"{name}.alpha"] == original[f"{name}.alpha"]

    @in_dtypes
    @pytest.mark.parametrize("weight", [*WEIGHTS, 0.0])
    def test_the_old_kind_is_exact_without_a_base(self, weight: float, dtype: str, bake_tensors: BakeTensors) -> None:
        r = cayley(ROTATIONS["oft"]["oft_blocks"], 0.0)
        original = stored({"oft_diag": r}, dtype)
        baked = bake_tensors(original, "-w", f"MID={weight}", "--family", "sd1")[f"{MODULE}.oft_diag"]
        eye = np.eye(4)
        assert baked.dtype == np.float32
        difference = baked.astype(np.float64) - eye
        wanted = weight * (original[f"{MODULE}.oft_diag"].astype(np.float64) - eye)
        assert np.linalg.norm(difference - wanted) <= 2e-6

    @pytest.mark.parametrize("shape", [(3, 4, 5), (3, 5, 4), (4, 3), (12,)])
    def test_the_old_kind_turns_by_square_matrices(self, shape: tuple[int, ...], tmp_path: Path, run: Run) -> None:
        source = write(tmp_path / "a.safetensors", stored({"oft_diag": np.ones(shape)}, "float32"))
        for weight in (0.5, 0):
            error = run.refused("bake", source, "-w", f"MID={weight}", "--family", "sd1", "-o", tmp_path / "b")
            assert f"{MODULE}.oft_diag holds no square matrices" in error


# Absolute weights, and what is refused ------------------------------------------------------------------------------


@in_dtypes
@at_weights
def test_absolute_weights_are_mixed_with_the_base(
    weight: float, dtype: str, on_base: Options, bake_tensors: BakeTensors
) -> None:
    (values,) = stored({"set_weight": base("linear") + random((OUT, IN), size=0.05)[0]}, dtype).values()
    baked = bake_tensors({f"{MODULE}.set_weight": values}, "-w", f"MID={weight}", *on_base)
    w = base("linear").astype(np.float64)
    assert_close(baked[f"{MODULE}.set_weight"] - w, weight * (values - w), 1e-5)


TLORA = {role: random((OUT, OUT))[0] for role in ("q_layer.weight", "p_layer.weight", "lambda_layer")}
REFUSED = {
    "dora": (DORAS[0].tensors("float16"), "--base CHECKPOINT, or nearly with --inexact allow"),
    "oft": (stored(ROTATIONS["oft"], "float16"), "--base CHECKPOINT, or nearly with --inexact allow"),
    "set": ({f"{MODULE}.set_weight": base("linear")}, "--base CHECKPOINT"),
    "tlora": (stored(TLORA, "float16"), ""),
}


@pytest.mark.parametrize(("tensors", "way"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_the_ways_out(tensors: Tensors, way: str, tmp_path: Path, run: Run) -> None:
    source = write(tmp_path / "a.safetensors", tensors)
    error = run.refused("bake", source, "-w", "MID=0.5", "-o", tmp_path / "b.safetensors", "--family", "sd1")
    assert "1 " in error
    assert "(the first is lora_unet_middle_block_1_proj_in)" in error
    hint = error.split("hint: ")[1]
    assert hint.startswith("give 0 or 1 to MID")
    assert way in hint
    assert bool(way) == ("--base" in hint)


@pytest.mark.parametrize("options", [("--inexact", "allow"), ("--base", "linear")], ids=" ".join)
@pytest.mark.parametrize("name", ["tlora", "lora with reshape", "lora with weight-shaped bias"])
def test_some_modules_are_beyond_help(
    name: str, options: tuple[str, str], checkpoints: Mapping[str, Path], tmp_path: Path, run: Run
) -> None:
    tensors = {
        "tlora": REFUSED["tlora"][0],
        "lora with reshape": DORAS[0].tensors("float16") | {f"{MODULE}.reshape_weight": np.array([OUT, IN])},
        "lora with weight-shaped bias": DORAS[0].tensors("float16") | {f"{MODULE}.bias": base("linear")},
    }[name]
    source = write(tmp_path / "a.safetensors", tensors)
    options = (options[0], str(checkpoints.get(options[1], options[1])))
    error = run.refused("bake", source, "-w", "MID=0.5", "-o", tmp_path / "b.safetensors", "--family", "sd1", *options)
    assert error.split("hint: ")[1].strip() == "give 0 or 1 to MID"


@pytest.mark.parametrize("weight", [0, 1])
@pytest.mark.parametrize("tensors", [tensors for tensors, _ in REFUSED.values()], ids=REFUSED)
def test_zero_and_one_need_no_base(tensors: Tensors, weight: int, tmp_path: Path) -> None:
    """Nor torch, which takes seconds to import."""
    bystander = kohya_lora(["unet_output_blocks_3_1_proj_in"])
    source = write(tmp_path / "a.safetensors", tensors | bystander)
    torch = tmp_path / "torch"
    torch.mkdir()
    (torch / "__init__.py").write_text("raise SystemExit('torch was imported')")
    not_a_base = write(tmp_path / "base.safetensors", {"a": np.ones(1)})
    target = tmp_path / "b.safetensors"
    options = ("--base", not_a_base, "--family", "sd1", "-o", target)
    done = lbw("bake", source, "-w", f"MID={weight} *=0.5", *options, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 0, done.stderr
    assert ("dora_scale" in str(header_of(target))) == (weight == 1 and f"{MODULE}.dora_scale" in tensors)


@pytest.mark.parametrize("kind", ["dora", "oft"])
def test_a_dry_run_computes_nothing(
    kind: str, on_base: Options, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: object) -> None:
        raise AssertionError("the base weight was read")

    monkeypatch.setattr("lbw_bake.basemodel.BaseWeight.read", read)
    source = write(tmp_path / "a.safetensors", REFUSED[kind][0])
    error = run.done("bake", source, "-w", "MID=0.5", "--dry-run", *on_base)
    assert "1 scaled" in error


FLOAT8 = {"lora_up.weight": "F8_E4M3", "lora_down.weight": "F8_E4M3", "dora_scale": "F16", "alpha": "F32"}


@pytest.mark.parametrize("weight", [0.3, -1.0])
def test_float8_has_no_room_for_new_values(weight: float, on_base: Options, tmp_path: Path, run: Run) -> None:
    tensors = roles(DORAS[0].tensors("float32"))
    dtypes = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F16": np.float16, "F32": np.float32}
    entries = [
        (f"{MODULE}.{role}", dtype, tensors[role].shape, tensors[role].astype(dtypes[dtype]).tobytes())
        for role, dtype in FLOAT8.items()
    ]
    source, target = write_raw(tmp_path / "a.safetensors", entries), tmp_path / "b.safetensors"
    run.done("bake", source, "-w", f"MID={weight}", "-o", target, *on_base)
    baked = {name: dtype for name, (dtype, _, _) in entries_of(target).items()}
    assert roles(baked) == {
        "lora_up.weight": "BF16",
        "lora_down.weight": "BF16",
        "dora_scale": "F32",
        "alpha": "F32",
    }


def test_several_outputs_have_one_base(on_base: Options, tmp_path: Path, run: Run) -> None:
    presets = tmp_path / "presets.yaml"
    presets.write_text("A: {sd1: {MID: 0.3, '*': 1}}\nB: {sd1: {MID: 0.7, '*': 1}}\n")
    source = write(tmp_path / "lora.safetensors", DORAS[0].tensors("float32"))
    options = ("-p", "A", "-p", "B", "--presets", presets, "--out-dir", tmp_path / "out")
    run.done("bake", source, *options, *on_base)
    w = base("linear").astype(np.float64)
    for name, weight in (("A", 0.3), ("B", 0.7)):
        baked = load_file(tmp_path / "out" / f"lora-{name}.safetensors")
        assert_close(a1111(roles(baked), w, 1.0), a1111(roles(load_file(source)), w, weight), 1e-5)


def test_the_hashes_are_those_of_what_was_computed(on_base: Options, tmp_path: Path, run: Run) -> None:
    source = write(tmp_path / "a.safetensors", stored(ROTATIONS["oft"], "float16"), {"sshs_model_hash": "0" * 64})
    target = tmp_path / "b.safetensors"
    run.done("bake", source, "-w", "MID=0.3", "-o", target, *on_base)
    assert metadata_of(target)["sshs_model_hash"] == hashlib.sha256(data_of(target)).hexdigest()


def test_without_torch_it_says_so(on_base: Options, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbw_bake.remedies.find_spec", lambda _: None)
    source = write(tmp_path / "a.safetensors", REFUSED["dora"][0])
    error = run.refused("bake", source, "-w", "MID=0.5", "-o", tmp_path / "b.safetensors", *on_base)
    assert "torch, which --base and --inexact need, is not installed" in error


SWEPT: dict[str, tuple[Tensors, Options, bool]] = {
    "dora": (Dora(lora, "linear", "out").tensors("float16"), (), True),
    "dora by lycoris": (Dora(lora, "linear", "out").tensors("float16"), ("--dora-norm", "lycoris"), True),
    "dora in another dtype": (Dora(loha, "linear", "in").tensors("float16"), ("--dtype", "bf16"), True),
    "oft": (stored(ROTATIONS["oft"], "float32"), (), True),
    "oft, inexact": (stored(ROTATIONS["oft"], "float32"), ("--inexact", "allow", "--family", "sd1"), False),
}

swept = pytest.mark.parametrize(("tensors", "means", "based"), SWEPT.values(), ids=SWEPT)


@swept
def test_a_cell_of_a_sweep_is_what_bake_writes(
    tensors: Tensors, means: Options, based: bool, on_base: Options, bake_file: BakeFile, tmp_path: Path, run: Run
) -> None:
    source = write(tmp_path / "a.safetensors", tensors)
    means += on_base if based else ()
    axes = ("--x", "values=0,0.3,0.7,1", "--y", "blocks=MID")
    said = run.done("sweep", source, "-o", tmp_path / "plot", *axes, *means)
    assert ("turn by the weighted angle" in said) == (not based)
    cells = json.loads((tmp_path / "plot" / "manifest.json").read_text())["cells"]
    written = {cell["x"]: (tmp_path / "plot" / cell["file"]).read_bytes() for cell in cells}
    assert len({*written.values()}) == 4
    for value, content in written.items():
        assert content == bake_file(source, "-w", f"MID={value} *=1", *means).read_bytes()


@swept
def test_what_a_gpu_has_no_room_for_is_computed_on_the_cpu(
    tensors: Tensors,
    means: Options,
    based: bool,
    on_base: Options,
    bake_tensors: BakeTensors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    means += ("-w", "MID=0.3", *(on_base if based else ()))
    wanted = bake_tensors(tensors, *means)
    tensor, tried = Remedies._tensor, []

    def where_there_is_room(remedies: Remedies, array: Array) -> torch.Tensor:
        tried.append(remedies._device)
        if remedies._device == "cuda":
            raise torch.OutOfMemoryError
        return tensor(remedies, array)

    monkeypatch.setattr(Remedies, "_tensor", where_there_is_room)
    monkeypatch.setattr("lbw_bake.cuda.algebra_device", lambda device: "cpu" if device == "cpu" else "cuda")
    baked = bake_tensors(tensors, *means)
    assert set(tried) == {"cuda", "cpu"}
    assert {name: array.tobytes() for name, array in baked.items()} == {
        name: array.tobytes() for name, array in wanted.items()
    }
