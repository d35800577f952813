"""Base models in every form: a layer's weight is found under all its names. diffusers' conversions are the judge."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MODULE, Run, Tensors, unet_lora, write
from tables import TABLES, grouping

from lbw_bake.algorithms import algorithm_of
from lbw_bake.basemodel import BaseModel, canonical, files_of
from lbw_bake.errors import FileFormatError, NotBakeableError
from lbw_bake.families import family_named
from lbw_bake.keys import DENOISER, parse_key
from lbw_bake.modules import Module

LORA = algorithm_of(frozenset({"up", "down"}))


def module(name: str) -> Module:
    """A LoRA's module of this name, as kohya or diffusers spell it."""
    key = parse_key(f"{name}.lora_up.weight")
    assert key
    assert LORA
    return Module(key.stem, key.component, key.path, LORA, {})


def weight_of(path: Path, name: str, family: str = "sd1", component: str = "unet") -> np.ndarray:
    return BaseModel(path, family_named(family)).weight(module(name), component).read()


def numbered(shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Weights that are all different."""
    sizes = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes.values())])
    return {
        name: np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)
        for (name, shape), start in zip(shapes.items(), sizes[:-1], strict=True)
    }


# LDM names of a UNet -----------------------------------------------------------------------------------------------

RESNET = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
ATTENTION = ("norm", "proj_in", "proj_out")
TRANSFORMER = (
    *(f"attn{n}.to_{part}" for n in "12" for part in ("q", "k", "v", "out.0")),
    *("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"),
)


def unet_names(depths: tuple[int, ...], widened: Iterable[str], embeddings: Iterable[str]) -> Iterator[str]:
    """The weights of the original UNet: `depths` are the transformer blocks in the attentions of each level."""
    yield from (*("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2"), *embeddings)
    last = len(depths) - 1
    for level, depth in enumerate(depths):
        for block in (3 * level + 1, 3 * level + 2):
            yield from resnet(f"input_blocks.{block}", depth, widened)
        if level < last:
            yield f"input_blocks.{3 * level + 3}.0.op"
        for block in range(3 * (last - level), 3 * (last - level) + 3):
            yield from resnet(f"output_blocks.{block}", depth, [f"output_blocks.{block}"])
        if level:
            yield f"output_blocks.{3 * (last - level) + 2}.{2 if depth else 1}.conv"
    for n in (0, 2):
        yield from (f"middle_block.{n}.{part}" for part in RESNET)
    yield from attention("middle_block.1", max(depths))


def resnet(block: str, depth: int, widened: Iterable[str]) -> Iterator[str]:
    yield from (f"{block}.0.{part}" for part in RESNET)
    if block in widened:
        yield f"{block}.0.skip_connection"
    if depth:
        yield from attention(f"{block}.1", depth)


def attention(block: str, depth: int) -> Iterator[str]:
    yield from (f"{block}.{part}" for part in ATTENTION)
    yield from (f"{block}.transformer_blocks.{i}.{part}" for i in range(depth) for part in TRANSFORMER)


UNETS = {
    "sd1": ((1, 1, 1, 0), ("input_blocks.4", "input_blocks.7"), ()),
    "sdxl": ((0, 2, 10), ("input_blocks.4", "input_blocks.7"), ("label_emb.0.0", "label_emb.0.2")),
}


@pytest.mark.parametrize("family", UNETS)
def test_a_unet_is_the_same_in_both_namings(family: str, tmp_path: Path) -> None:
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils", reason="needs diffusers")
    torch = pytest.importorskip("torch")
    names = [*unet_names(*UNETS[family])]
    original = numbered({f"model.diffusion_model.{name}.weight": (2, 3) for name in names})
    config = {"layers_per_block": 2, "addition_embed_type": "text_time" if family == "sdxl" else None}
    tensors = {name: torch.from_numpy(array.copy()) for name, array in original.items()}
    # The conversion wants biases too.
    tensors |= {name.replace(".weight", ".bias"): array for name, array in tensors.items()}
    converted = single_file.convert_ldm_unet_checkpoint(tensors, config)
    weights = {name: array.numpy() for name, array in converted.items() if name.endswith(".weight")}
    assert len(weights) == len(names)
    (tmp_path / "unet").mkdir()
    write(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", weights)
    one = BaseModel(write(tmp_path / "ldm.safetensors", original), family_named(family))
    other = BaseModel(tmp_path, family_named(family))
    for name, array in weights.items():
        for spelled in (f"unet.{name}", f"lora_unet_{name.replace('.', '_')}"):
            adapted = module(spelled.removesuffix(".weight").removesuffix("_weight"))
            for base in (one, other):
                assert (base.weight(adapted, "unet").read() == array).all(), name


def test_flux_is_the_same_in_both_namings(tmp_path: Path) -> None:
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils", reason="needs diffusers")
    torch = pytest.importorskip("torch")
    shapes = {
        **{f"{part}_in.{side}_layer": (4, 3) for part in ("time", "vector", "guidance") for side in ("in", "out")},
        "img_in": (4, 3),
        "txt_in": (4, 3),
        "final_layer.linear": (4, 3),
        "final_layer.adaLN_modulation.1": (4, 3),
        **{f"double_blocks.0.{side}_attn.qkv": (9, 2) for side in ("img", "txt")},
        **{
            f"double_blocks.0.{side}_{part}": (4, 2)
            for side in ("img", "txt")
            for part in ("attn.proj", "mlp.0", "mlp.2", "mod.lin")
        },
        **{
            f"double_blocks.0.{side}_attn.norm.{part}_norm": (2,)
            for side in ("img", "txt")
            for part in ("query", "key")
        },
        # The conversion knows Flux's own width only.
        "single_blocks.0.linear1": (7 * 3072, 1),
        "single_blocks.0.linear2": (4, 2),
        "single_blocks.0.modulation.lin": (4, 2),
        **{f"single_blocks.0.norm.{part}_norm": (2,) for part in ("query", "key")},
    }
    original = numbered({f"{name}.{'scale' if 'norm.' in name else 'weight'}": shape for name, shape in shapes.items()})
    tensors = {name: torch.from_numpy(array.copy()) for name, array in original.items()}
    tensors |= {name.replace(".weight", ".bias"): array[:, 0] for name, array in tensors.items() if "weight" in name}
    converted = single_file.convert_flux_transformer_checkpoint_to_diffusers(dict(tensors))
    weights = {name: array.contiguous().numpy() for name, array in converted.items() if name.endswith(".weight")}
    (tmp_path / "transformer").mkdir()
    write(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", weights)
    bfl, diffusers = write(tmp_path / "bfl.safetensors", original), tmp_path
    one, other = (BaseModel(path, family_named("flux")) for path in (bfl, diffusers))
    # diffusers swaps the halves of the last modulation, and calls the norms' scales weights.
    same = [name.removesuffix(".weight") for name in weights if "norm_out" not in name and ".norm_" not in name]
    for name in same:
        for base in (one, other):
            got = base.weight(module(f"transformer.{name}"), "transformer").read()
            assert (got == weights[f"{name}.weight"]).all(), name
    for name, array in original.items():
        if name.endswith(".weight") and "adaLN" not in name:
            adapted = module(f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}")
            assert (one.weight(adapted, "transformer").read() == array).all(), name
            assert (other.weight(adapted, "transformer").read() == array).all(), name


@pytest.mark.parametrize(
    ("table", "other"),
    [
        ("sdxl_kohya_lora", "sdxl_kohya_diffusers"),
        ("sdxl_locon", "sdxl_locon_diffusers"),
        ("sd1_locon", "sd1_locon_sgm"),
        ("sd2_locon", "sd2_locon_sgm"),
        ("flux_kohya", "flux_diffusers"),
        ("flux_onetrainer_omi", "flux_onetrainer"),
        ("sd1_kohya_lora", "sd1_attn_processor"),
    ],
)
def test_trainers_names_mean_the_same_layers(table: str, other: str) -> None:
    """All that the second knows is in the first."""
    all_layers, some = (
        {
            canonical(module.path)[0]
            for module in grouping(table).modules
            if module.component == DENOISER and "final_layer_ada" not in module.path and "norm_out" not in module.path
        }
        for table in (table, other)
    )
    assert some <= all_layers


@pytest.mark.parametrize(
    "table", [name for name in TABLES if name.endswith(("_diffusers", "_kohya", "_lora", "_locon"))]
)
def test_no_two_layers_are_taken_for_one(table: str) -> None:
    layers = {(module.component, module.path) for module in grouping(table).modules}
    found = [(component, *canonical(path)) for component, path in layers]
    assert len(set(found)) == len(layers)
    assert all(canonical(name)[0] == name for _, name, _ in found)


# Text encoders -----------------------------------------------------------------------------------------------------

CLIP = "text_model.encoder.layers.0."
OPEN = "transformer.resblocks.0."
PARTS = {
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
}


@pytest.mark.parametrize(
    ("prefix", "family", "component", "lora"),
    [
        ("cond_stage_model.model.", "sd2", "clip_h", "lora_te_"),
        ("conditioner.embedders.1.model.", "sdxl", "clip_g", "lora_te2_"),
        ("conditioner.embedders.0.model.", "sdxl_refiner", "clip_g", "lora_te2_"),
    ],
)
def test_open_clip(prefix: str, family: str, component: str, lora: str, tmp_path: Path) -> None:
    fused = np.arange(24, dtype=np.float32).reshape(12, 2)
    tensors = {f"{prefix}{OPEN}attn.in_proj_weight": fused}
    tensors |= numbered({f"{prefix}{OPEN}{part}.weight": (2, 2) for part in PARTS.values()})
    tensors |= numbered({f"{prefix}token_embedding.weight": (5, 2), f"{prefix}ln_final.weight": (2,)})
    path = write(tmp_path / "base.safetensors", tensors)
    flat = CLIP.replace(".", "_")
    for i, part in enumerate("qkv"):
        got = weight_of(path, f"{lora}{flat}self_attn_{part}_proj", family, component)
        assert (got == fused[4 * i : 4 * i + 4]).all()
    others = {f"{CLIP}{new}": f"{prefix}{OPEN}{old}" for new, old in PARTS.items()} | {
        "text_model.embeddings.token_embedding": f"{prefix}token_embedding",
        "text_model.final_layer_norm": f"{prefix}ln_final",
    }
    for new, old in others.items():
        got = weight_of(path, f"{lora}{new.replace('.', '_')}", family, component)
        assert (got == tensors[f"{old}.weight"]).all()


@pytest.mark.parametrize(
    ("prefix", "family", "component"),
    [
        ("cond_stage_model.transformer.", "sd1", "clip_l"),
        ("conditioner.embedders.0.transformer.", "sdxl", "clip_l"),
        ("text_encoders.clip_l.transformer.", "flux", "clip_l"),
        ("text_encoders.clip_g.transformer.", "sdxl", "clip_g"),
    ],
)
@pytest.mark.parametrize("spelling", [CLIP, CLIP.removeprefix("text_model.")])
def test_clip_in_single_files(prefix: str, family: str, component: str, spelling: str, tmp_path: Path) -> None:
    tensors = numbered({f"{prefix}{CLIP}self_attn.{part}_proj.weight": (2, 2) for part in ("q", "k", "v", "out")})
    path = write(tmp_path / "base.safetensors", tensors)
    te = "te2" if component == "clip_g" else "te1"
    for name, array in tensors.items():
        layer = name.removeprefix(f"{prefix}{CLIP}").removesuffix(".weight")
        got = weight_of(path, f"lora_{te}_{spelling}{layer}".replace(".", "_"), family, component)
        assert (got == array).all()


def test_the_folders_of_a_pipeline_are_its_components(tmp_path: Path) -> None:
    layer = "text_model.encoder.layers.0.mlp.fc1.weight"
    t5 = "encoder.block.0.layer.0.SelfAttention.q.weight"
    values = {"text_encoder": {layer: np.full((2, 2), 1.0)}, "text_encoder_2": {t5: np.full((2, 2), 2.0)}}
    for folder, tensors in values.items():
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "model.safetensors", tensors)
        write(tmp_path / folder / "model.fp16.safetensors", {"other.weight": np.ones((1, 1))})
    (tmp_path / "model_index.json").write_text("{}")
    flat = layer.removesuffix(".weight").replace(".", "_")
    assert (weight_of(tmp_path, f"lora_te1_{flat}", "flux", "clip_l") == 1.0).all()
    name = t5.removesuffix(".weight").replace(".", "_")
    assert (weight_of(tmp_path, f"lora_te3_{name}", "flux", "t5") == 2.0).all()
    # A component's own folder will do.
    assert (weight_of(tmp_path / "text_encoder_2", f"lora_te3_{name}", "flux", "t5") == 2.0).all()


# Files --------------------------------------------------------------------------------------------------------------

LAYER = "model.diffusion_model.middle_block.1.proj_in.weight"


def test_shards_are_one_model(tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    shards = {
        "a-00001-of-00002.safetensors": {"transformer_blocks.0.attn.to_q.weight": np.full((2, 2), 1.0)},
        "a-00002-of-00002.safetensors": {"transformer_blocks.0.attn.to_k.weight": np.full((2, 2), 2.0)},
    }
    for name, tensors in shards.items():
        write(folder / name, tensors)
    index = {"weight_map": {name: shard for shard, tensors in shards.items() for name in tensors}}
    (folder / "a.safetensors.index.json").write_text(json.dumps(index))
    base = BaseModel(tmp_path, family_named("flux"))
    assert (base.weight(module("transformer.transformer_blocks.0.attn.to_k"), "transformer").read() == 2.0).all()
    with pytest.raises(NotBakeableError, match="has no weight"):  # one of three parts is missing
        base.weight(module("lora_unet_double_blocks_0_img_attn_qkv"), "transformer")
    (folder / "a-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"00002-of-00002.* no such file"):
        BaseModel(tmp_path, family_named("flux"))


@pytest.mark.parametrize("backwards", [False, True])
def test_of_indexes_with_equally_plain_names_the_first_counts(
    backwards: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: sorted(glob(path, pattern), reverse=backwards))
    for variant in ("bf16", "fp16"):
        index = {"weight_map": {"transformer_blocks.0.attn.to_q.weight": f"{variant}.safetensors"}}
        (tmp_path / f"a.safetensors.index.{variant}.json").write_text(json.dumps(index))
    assert files_of(tmp_path) == [("", tmp_path / "bf16.safetensors")]


def pickle(path: Path) -> Path:
    path.write_bytes(b"\x80\x02}q\x00.")
    return path


def archive(path: Path) -> Path:
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    return path


def folder_of_pickles(path: Path) -> Path:
    (path / "unet").mkdir(parents=True)
    pickle(path / "unet" / "diffusion_pytorch_model.bin")
    return path


def quantised(path: Path) -> Path:
    return write(path, {LAYER: np.zeros((2, 2), np.float32), LAYER.replace("weight", "scale_weight"): np.ones(1)})


def in_bytes(path: Path) -> Path:
    return write(path, {LAYER: np.zeros((2, 2), np.uint8)})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (pickle, "is a Python pickle, not a safetensors file"),
        (archive, "is a zip archive"),
        (folder_of_pickles, "holds no .safetensors files"),
        (quantised, "holds quantised weights"),
        (in_bytes, "holds quantised weights"),
    ],
)
def test_what_is_no_base_says_so(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    path = make(tmp_path / "base")
    with pytest.raises(FileFormatError, match=said) as problem:
        BaseModel(path, family_named("sd1"))
    assert str(path) in str(problem.value)


OFT = {f"{MODULE}.oft_blocks": np.zeros((2, 4, 4), np.float32)}
DORA = {
    f"{MODULE}.lora_up.weight": np.zeros((8, 2), np.float32),
    f"{MODULE}.lora_down.weight": np.zeros((2, 8), np.float32),
    f"{MODULE}.dora_scale": np.ones((1, 8), np.float32),
}
SET = {f"{MODULE}.set_weight": np.zeros((8, 8), np.float32)}


@pytest.mark.parametrize("dry", [True, False], ids=["planned", "baked"])
@pytest.mark.parametrize(
    ("tensors", "shape", "said"),
    [
        (
            OFT,
            (6, 8),
            r"base.safetensors: model.* has shape \[6, 8\], which does not fit lora_unet_middle_block_1_proj_in",
        ),
        (DORA, (8, 6), r"does not fit .*\(lora_down \[2, 8\]|down \[2, 8\]"),
        (DORA, (6, 8), "does not fit"),
        (SET, (8, 8, 3, 3), "does not fit"),
        (OFT, None, r"has no weight for lora_unet_middle_block_1_proj_in \(looked for unet middle_block_1_proj_in\)"),
    ],
)
def test_a_base_that_does_not_fit(
    tensors: Tensors, shape: tuple[int, ...] | None, said: str, dry: bool, tmp_path: Path, run: Run
) -> None:
    source = write(tmp_path / "lora.safetensors", tensors)
    weights: Any = {LAYER: np.zeros(shape, np.float32)} if shape else {"model.diffusion_model.out.2.weight": np.ones(1)}
    base = write(tmp_path / "base.safetensors", weights)
    target = tmp_path / "baked.safetensors"
    options = ("-w", "MID=0.5", "--base", base, "--family", "sd1", *(("--dry-run",) if dry else ()))
    error = run.refused("bake", source, "-o", target, *options)
    assert re.search(said, error), error
    assert not target.exists()


def test_a_difference_takes_no_other_tensors_name(tmp_path: Path, run: Run) -> None:
    name = MODULE.removeprefix("lora_")
    tensors = {f"oft_{name}.oft_blocks": np.zeros((2, 4, 4), np.float32), f"{MODULE}.diff": np.ones((8, 8), np.float32)}
    source = write(tmp_path / "lora.safetensors", tensors)
    base = write(tmp_path / "base.safetensors", {LAYER: np.ones((8, 8), np.float32)})
    options = ("-w", "MID=0.5", "--base", base, "--family", "sd1")
    error = run.refused("bake", source, "-o", tmp_path / "baked.safetensors", *options)
    assert f"the result would hold {MODULE}.diff 2 times" in error
    assert not (tmp_path / "baked.safetensors").exists()


def test_a_base_is_read_only_where_it_is_needed(lora: Path, tmp_path: Path, run: Run) -> None:
    base = pickle(tmp_path / "base.ckpt")
    run.done("bake", lora, "-w", "*=0.5", "-o", tmp_path / "baked.safetensors", "--base", base)


def test_a_base_that_does_not_exist_is_wrong_usage(lora: Path, tmp_path: Path, run: Run) -> None:
    code, _, error = run("bake", lora, "-w", "*=1", "-o", tmp_path / "b.safetensors", "--base", tmp_path / "none")
    assert code == 2
    assert "does not exist" in " ".join(error.replace("│", "").split())


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("command", ["bake -w *=0.5", "bake -w *=0.5 --rank 1", "merge", "sweep --analyse"])
def test_no_output_takes_the_place_of_a_base(command: str, folder: bool, tmp_path: Path, run: Run) -> None:
    """Whether or not it is needed, and whatever --force says: it is an input too."""
    name, *options = command.split()
    source = write(tmp_path / "lora.safetensors", unet_lora())
    (tmp_path / "unet").mkdir()
    weights = write(tmp_path / "unet" / "lora-full.safetensors", {LAYER: np.ones((8, 8), np.float32)})
    before = weights.read_bytes()
    options += ["--family", "sd1", "--force", "--base", str(tmp_path if folder else weights)]
    error = run.refused(name, source, *options, "-o", weights.parent if name == "sweep" else weights)
    assert "is a file of the base model" in error
    assert weights.read_bytes() == before
