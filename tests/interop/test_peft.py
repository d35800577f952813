"""PEFT judges its own adapters, on layers named as in the diffusers UNet and its text encoder."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file
from torch import nn

from .conftest import (
    MULTIPLIERS,
    TOLERANCES,
    BakeTorch,
    StateDict,
    assert_close,
    cast,
    dtypes,
    model_of,
    perturb,
    save,
    vector,
)

peft = pytest.importorskip("peft", reason="needs peft")

# PEFT takes the bias of lora_B, one-dimensional by nature, for an incomplete shard.
pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'.*LoRA tensor.s. have invalid shape")

# Layer -> its block and a letter for its kind.
LAYERS = {
    "text_model.embeddings.token_embedding": ("BASE", "e"),
    "text_model.encoder.layers.0.self_attn.out_proj": ("BASE", "l"),
    **{
        path: (block, kind)
        for block, prefix, number in (
            ("IN04", "down_blocks.1", 0),
            ("IN08", "down_blocks.2", 1),
            ("MID", "mid_block", 0),
            ("OUT03", "up_blocks.1", 0),
            ("OUT11", "up_blocks.3", 2),
        )
        for path, kind in (
            (f"{prefix}.attentions.{number}.proj_in", "p"),
            (f"{prefix}.attentions.{number}.transformer_blocks.0.attn1.to_q", "l"),
            (f"{prefix}.resnets.{number}.conv1", "c"),
        )
    },
}
WEIGHTS = {"BASE": -0.7, "IN04": 0.0, "IN08": 0.5, "MID": 1.0, "OUT03": 0.3, "OUT11": 1.5}
ON_OR_OFF = {"BASE": 0.0, "IN04": 0.0, "IN08": 1.0, "MID": 1.0, "OUT03": 0.0, "OUT11": 1.0}
MAKERS = {
    "e": lambda: nn.Embedding(20, 16),
    "l": lambda: nn.Linear(12, 16),
    "p": lambda: nn.Conv2d(12, 16, 1),
    "c": lambda: nn.Conv2d(12, 16, 3, padding=1),
}


@dataclass(frozen=True)
class Case:
    """A kind of adapter, and the kinds of layers it can adapt."""

    name: str
    config: Any
    kinds: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def layers(self) -> dict[str, str]:
        """Adapted layers, and their blocks."""
        return {path: block for path, (block, kind) in LAYERS.items() if kind in self.kinds}

    def adapt(self, model: nn.Module, tensors: StateDict | None = None) -> Any:
        """A copy of the model with a new adapter, or with the one a file holds."""
        adapted = peft.get_peft_model(
            copy.deepcopy(model), self.config(target_modules=list(self.layers), **self.options)
        )
        if tensors is not None:
            peft.set_peft_model_state_dict(adapted, tensors)
        return adapted.double()


LORA = {"r": 4, "lora_alpha": 6}
PATTERNS = {
    "rank_pattern": {"proj_in": 2, r"mid_block.*to_q": 3},
    "alpha_pattern": {"out_proj": 1.5, r"up_blocks\.3.*": 0.5},
}
LINEAR_CASES = (
    Case("lora", peft.LoraConfig, "elpc", LORA),
    Case("patterns", peft.LoraConfig, "elpc", LORA | PATTERNS),
    Case("rslora", peft.LoraConfig, "elpc", LORA | PATTERNS | {"use_rslora": True}),
    Case("lora-bias", peft.LoraConfig, "lpc", LORA | PATTERNS | {"lora_bias": True}),
    Case("adalora", peft.AdaLoraConfig, "l", {"init_r": 4, "lora_alpha": 6, "total_step": 10}),
    Case("loha", peft.LoHaConfig, "lpc", {"r": 4, "alpha": 6}),
    Case("loha-tucker", peft.LoHaConfig, "lpc", {"r": 4, "alpha": 6, "use_effective_conv2d": True}),
    Case("lokr", peft.LoKrConfig, "lpc", {"r": 8, "alpha": 6}),
    Case("lokr-low", peft.LoKrConfig, "lpc", {"r": 1, "alpha": 6, "decompose_both": True}),
    Case("lokr-tucker", peft.LoKrConfig, "lpc", {"r": 1, "alpha": 6, "use_effective_conv2d": True}),
    Case("vera", peft.VeraConfig, "l", {"r": 4}),
)
DORA = Case("dora", peft.LoraConfig, "elpc", LORA | {"use_dora": True})
FOREIGN_CASES = (
    Case("ia3", peft.IA3Config, "lpc", {"feedforward_modules": []}),
    Case("oft", peft.OFTConfig, "lpc", {"oft_block_size": 4}),
    Case("hra", peft.HRAConfig, "lpc", {"r": 4}),
)


@pytest.fixture
def model() -> nn.Module:
    return model_of({path: MAKERS[kind]() for path, (_, kind) in LAYERS.items()})


def trained(case: Case, model: nn.Module, dtype: torch.dtype) -> StateDict:
    """What PEFT saves of an adapter none of whose tensors are at their starting values."""
    adapted = case.adapt(model)
    perturb(adapted)
    return cast(peft.get_peft_model_state_dict(adapted), dtype)


def outputs(adapted: Any, path: str, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer gives without its adapter, and what the adapter adds at this scale, as PEFT understands it."""
    layer = adapted.get_submodule(f"base_model.model.{path}")
    generator = torch.Generator().manual_seed(1)
    spatial = (4, 4) if LAYERS[path][1] in "pc" else ()
    inputs = torch.randn(3, 12, *spatial, generator=generator, dtype=torch.float64)
    if LAYERS[path][1] == "e":
        inputs = torch.arange(20)
    base = layer.base_layer(inputs)
    if hasattr(layer, "set_scale"):
        layer.set_scale("default", scale)
        return base, layer(inputs) - base
    return base, scale * (layer(inputs) - base)


@dtypes
@pytest.mark.parametrize("case", LINEAR_CASES, ids=str)
def test_output_is_scaled_by_the_weight_of_its_block(
    case: Case, dtype: torch.dtype, model: nn.Module, bake_torch: BakeTorch
) -> None:
    original = trained(case, model, dtype)
    before = case.adapt(model, original)
    after = case.adapt(model, bake_torch(original, vector(WEIGHTS)))
    for path, block in case.layers.items():
        for multiplier in MULTIPLIERS:
            _, expected = outputs(before, path, multiplier * WEIGHTS[block])
            _, got = outputs(after, path, multiplier)
            assert expected.norm() > 0.01 or not WEIGHTS[block]
            assert_close(got, expected, TOLERANCES[dtype])


def test_dora_is_kept_or_switched_off(model: nn.Module, bake_torch: BakeTorch) -> None:
    original = trained(DORA, model, torch.float32)
    before = DORA.adapt(model, original)
    after = DORA.adapt(model, bake_torch(original, vector(ON_OR_OFF)))
    for path, block in DORA.layers.items():
        for multiplier in MULTIPLIERS:
            base, change = outputs(before, path, multiplier)
            expected = base + change if ON_OR_OFF[block] else base
            assert_close(sum(outputs(after, path, multiplier)), expected, TOLERANCES[torch.float32])


@pytest.mark.parametrize("case", [DORA, *FOREIGN_CASES], ids=str)
def test_what_cannot_be_baked_is_refused(case: Case, model: nn.Module, run: Run, tmp_path: Path) -> None:
    target = tmp_path / "baked.safetensors"
    run.refused("bake", save(trained(case, model, torch.float32), tmp_path), "-o", target, vector(WEIGHTS))
    assert not target.exists()


def with_plain_alphas(case: Case) -> Case:
    """The same kind of adapter with alphas that multiply nothing."""
    rank = case.options.get("init_r", case.options.get("r"))
    alphas = {key: rank for key in ("alpha", "lora_alpha") if key in case.options}
    alphas |= {"alpha_pattern": case.options["rank_pattern"]} if "rank_pattern" in case.options else {}
    return replace(
        case, options={**case.options, **alphas, **({"use_rslora": False} if "use_rslora" in case.options else {})}
    )


@pytest.mark.parametrize("case", LINEAR_CASES, ids=str)
def test_a_merge_of_one_file_has_the_alphas_of_its_configuration_in_its_numbers(
    case: Case, model: nn.Module, run: Run, tmp_path: Path
) -> None:
    adapted = case.adapt(model)
    perturb(adapted)
    adapted.float().save_pretrained(tmp_path)
    merged, weights = tmp_path / "merged.safetensors", vector(WEIGHTS).removeprefix("--weights=")
    run.done("merge", f"{tmp_path / 'adapter_model.safetensors'}:1:{weights}", "--family", "sd1", "-o", merged)
    after = with_plain_alphas(case).adapt(model, load_file(merged))
    for path, block in case.layers.items():
        _, expected = outputs(adapted.double(), path, WEIGHTS[block])
        _, got = outputs(after, path, 1.0)
        assert_close(got, expected, TOLERANCES[torch.float32])


# VeRA has no norm of its own.
MEASURED = [case for case in LINEAR_CASES if case.name != "vera"]


@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_norms_are_those_of_peft(case: Case, model: nn.Module, run: Run, tmp_path: Path) -> None:
    """Of the folder that PEFT saves, whose alphas are in the configuration beside the tensors."""
    adapted = case.adapt(model)
    perturb(adapted)
    adapted.float().save_pretrained(tmp_path)
    facts = run.json("inspect", tmp_path / "adapter_model.safetensors", "--family", "sd1", "--json")
    found = {module["name"].removeprefix("base_model.model."): module["norm"] for module in facts["modules"]}
    assert found.keys() == case.layers.keys()
    for path in case.layers:
        layer = adapted.get_submodule(f"base_model.model.{path}")
        squared = layer.get_delta_weight("default").double().norm() ** 2
        if case.options.get("lora_bias"):
            squared += (layer.lora_B["default"].bias.double() * layer.scaling["default"]).norm() ** 2
        assert found[path] == pytest.approx(float(squared.sqrt()), rel=1e-4), path


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_what_began_in_the_base_model_bakes_once_it_is_a_plain_lora(run: Run, tmp_path: Path) -> None:
    """PiSSA: loading it takes its beginnings out of the base weights; PEFT itself can turn it into a plain LoRA."""
    case = Case("pissa", peft.LoraConfig, "l", {"r": 4, "lora_alpha": 4, "init_lora_weights": "pissa"})
    model = model_of({path: MAKERS["l"]() for path in case.layers})
    weights = {path: model.get_submodule(path).weight.detach().clone() for path in case.layers}
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=[*case.layers], **case.options))
    for layer in adapted.peft_config.values():
        layer.init_lora_weights = True  # as PEFT's own guide to conversion has it
    adapted.save_pretrained(tmp_path / "initial")
    for layer in adapted.peft_config.values():
        layer.init_lora_weights = "pissa"
    with torch.no_grad():
        perturb(adapted)
    adapted.save_pretrained(tmp_path / "pissa")
    adapted.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    out = tmp_path / "plain" / "baked.safetensors"
    ask = ("--family", "sd1", vector(WEIGHTS), "-o", out)
    assert "init_lora_weights pissa" in run.refused("bake", tmp_path / "pissa" / "adapter_model.safetensors", *ask)
    run.done("bake", tmp_path / "plain" / "adapter_model.safetensors", *ask)
    out.replace(tmp_path / "plain" / "adapter_model.safetensors")
    baked = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "plain")
    for path, block in case.layers.items():
        trained = adapted.get_submodule(f"base_model.model.{path}")
        update = trained.get_base_layer().weight + trained.get_delta_weight("default") - weights[path]
        got = baked.get_submodule(f"base_model.model.{path}").get_delta_weight("default")
        assert_close(got.detach(), WEIGHTS[block] * update.detach(), 1e-4)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_grouped_convolutions_are_no_products(run: Run, tmp_path: Path) -> None:
    """PEFT gives each group of rows a part of the rank: a weight bakes, but the factors are not those of a matrix."""
    path, files = "mid_block.resnets.0.conv1", []
    model = model_of({path: nn.Conv2d(16, 16, 3, padding=1, groups=4)})
    config = peft.LoraConfig(target_modules=[path], r=4, lora_alpha=6)
    for name in ("one", "two"):
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        perturb(adapted)
        adapted.save_pretrained(tmp_path / name)
        files.append(tmp_path / name / "adapter_model.safetensors")
    (facts,) = run.json("inspect", files[0], "--family", "sd1", "--json")["modules"]
    assert facts["norm"] is None
    merged = tmp_path / "merged.safetensors"
    assert "up has 1 columns, down 4 rows" in run.refused("merge", *files, "-o", merged, "--family", "sd1")
    run.done("bake", files[1], "--family", "sd1", "--weights", "MID=0.3", "-o", merged)
    baked = peft.get_peft_model(copy.deepcopy(model), config)
    peft.set_peft_model_state_dict(baked, load_file(merged))
    inputs = torch.randn(3, 16, 4, 4)
    nets = (model, adapted.base_model.model, baked.base_model.model)
    base, before, after = (net.get_submodule(path)(inputs) for net in nets)
    assert_close(after - base, 0.3 * (before - base), 1e-5)


class Experts(nn.Module):
    """Two stacks of matrices, one for each of three experts, as parameters of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.randn(3, *shape)) for shape in ((16, 12), (12, 16)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([inputs @ up.T @ down.T for up, down in zip(self.up, self.down, strict=True)])


PATH = "mid_block.attentions.0.proj_in"
UNLIKE_PRODUCTS = {
    "experts": (Experts, {"target_modules": [], "target_parameters": [f"{PATH}.up"]}),
    "nested experts": (Experts, {"target_modules": [], "target_parameters": [f"{PATH}.up", f"{PATH}.down"]}),
    "blocks of A": (MAKERS["l"], {"target_modules": [PATH], "use_bdlora": {"target_modules_bd_a": ["proj_in"]}}),
    "blocks of B": (MAKERS["l"], {"target_modules": [PATH], "use_bdlora": {"target_modules_bd_b": ["proj_in"]}}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("maker", "options"), UNLIKE_PRODUCTS.values(), ids=UNLIKE_PRODUCTS)
def test_factors_of_no_plain_product_bake_and_do_not_add_up(
    maker: Any, options: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    if bd := options.get("use_bdlora"):
        options = {**options, "use_bdlora": peft.BdLoraConfig(nblocks=2, **bd)}
    model = model_of({PATH: maker()})
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=4, lora_alpha=6, **options))
    perturb(adapted)
    adapted.save_pretrained(tmp_path / "a")
    source, out = tmp_path / "a" / "adapter_model.safetensors", tmp_path / "a" / "baked.safetensors"
    for command in (("merge", source, source), ("bake", source, "--weights", "MID=0.3", "--rank", 2)):
        assert "not those of one matrix" in run.refused(*command, "--family", "sd1", "-o", out)
    run.done("bake", source, "--weights", "MID=0.3", "--family", "sd1", "-o", out)
    out.replace(source)
    baked = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "a")
    nets = (model, adapted.merge_and_unload(), baked.merge_and_unload())
    for base, before, after in zip(*(net.get_submodule(PATH).parameters() for net in nets), strict=True):
        assert_close(after - base, 0.3 * (before - base), 1e-5)
