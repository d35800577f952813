"""The mixer's state: what is shown means exactly what the sliders say, and moves are those of decimals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import SD1_ALL_BLOCKS, SD1_BLOCKS, SDXL_ALL_BLOCKS, SDXL_BLOCKS, kohya_lora, sdxl_lora, unet_lora, write
from hypothesis import given, settings
from hypothesis import strategies as st

from lbw_bake import mixer
from lbw_bake.errors import AmbiguousFamilyError, WeightError
from lbw_bake.families import FAMILIES, OTHER
from lbw_bake.lora import Lora, read_lora
from lbw_bake.mixer import HIGH, LOW, Mix
from lbw_bake.planning import agree
from lbw_bake.presets import load_presets
from lbw_bake.sources import Weights
from lbw_bake.tokens import parse_token
from lbw_bake.weights import Options, parse_source, resolve

TIME = "unet_time_embed_0"
FLUX = [f"unet_{name}" for name in ("img_in", "double_blocks_3_img_mlp_0", "single_blocks_7_linear1")]
FILES = {
    "sd1": unet_lora(),
    "sd1, all blocks": unet_lora(SD1_ALL_BLOCKS),
    "sdxl": sdxl_lora(),
    "sdxl, all blocks": sdxl_lora(SDXL_ALL_BLOCKS),
    "sd1, with time": unet_lora() | kohya_lora([TIME]),
    "several UNets": unet_lora(["IN04", "MID", "OUT03"]),
    "flux": kohya_lora(FLUX, width=3072),
}
DECIMALS = st.integers(-200, 300).map(lambda hundredths: hundredths / 100)
NUMBERS = DECIMALS | st.floats(-1e6, 1e6) | st.sampled_from((0.0, 1.0))


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Lora]:
    folder = tmp_path_factory.mktemp("loras")
    return {name: read_lora(write(folder / f"{name}.safetensors", tensors)) for name, tensors in FILES.items()}


@st.composite
def mixes(draw: st.DrawFn, numbers: st.SearchStrategy[float] = NUMBERS) -> Mix:
    """Any sliders of any family, as a file with modules in some of its blocks has them."""
    family = draw(st.sampled_from([*FAMILIES.values()]))
    blocks = (*family.blocks, OTHER)
    present = draw(st.sets(st.sampled_from(blocks), min_size=1))
    few = st.sampled_from(draw(st.lists(numbers, min_size=1, max_size=4)))  # so that there are runs of equal weights
    weights = {block: draw(few) for block in blocks}
    return Mix((family,), tuple(block for block in blocks if block in present), weights)


@given(mixes())
def test_rules_say_the_weight_of_every_block(mix: Mix) -> None:
    assert resolve(parse_source(mixer.rules(mix)), mix.family).blocks == mix.weights


@given(mixes())
def test_a_vector_says_the_weight_of_every_block_with_modules(mix: Mix) -> None:
    vector = mixer.vector(mix)
    if vector is None:
        assert OTHER in mix.present
        assert mix.weights[OTHER] != 1
        return
    assert len(vector.split(",")) in map(len, mix.family.layouts)
    said = resolve(parse_source(vector), mix.family).blocks
    assert {block: said[block] for block in mix.present} == {block: mix.weights[block] for block in mix.present}


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=30)
@given(data=st.data())
def test_what_is_shown_is_what_a_bake_does(name: str, data: st.DataObject, loras: dict[str, Lora]) -> None:
    """Also where several families fit: the text is accepted, and every module gets its slider's weight."""
    lora = loras[name]
    start = mixer.mix_of(lora)
    few = st.sampled_from(data.draw(st.lists(NUMBERS, min_size=1, max_size=3)))
    mix = Mix(start.candidates, start.present, {block: data.draw(few) for block in start.weights})
    weights = agree(lora, Weights.of(mixer.text(mix)).for_family)
    for module, place in lora.placed(weights.family):
        assert weights.of(place, module.path) == mix.weights[place.block]
    if token := mixer.token(mix, "x"):
        assert parse_token(token).weights == mixer.text(mix)


@pytest.mark.parametrize(
    ("name", "length"),
    [("sd1", 17), ("sd1, all blocks", 26), ("sdxl", 12), ("sdxl, all blocks", 20), ("several UNets", 17), ("flux", 61)],
)
def test_the_vector_is_the_shortest_that_lists_every_block(name: str, length: int, loras: dict[str, Lora]) -> None:
    assert len(mixer.text(mixer.mix_of(loras[name])).split(",")) == length


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("sd1", SD1_BLOCKS),
        ("sdxl", SDXL_BLOCKS),
        ("several UNets", ["IN04", "MID", "OUT03"]),
        ("flux", ["IN", "D03", "S07"]),
        ("sd1, with time", [*SD1_BLOCKS, OTHER]),
    ],
)
def test_sliders_are_the_blocks_that_have_modules(name: str, blocks: list[str], loras: dict[str, Lora]) -> None:
    mix = mixer.mix_of(loras[name])
    assert mix.present == tuple(blocks)
    assert set(mix.weights.values()) == {1.0}


def test_families_that_disagree_about_a_block_are_not_guessed(loras: dict[str, Lora]) -> None:
    lora = loras["flux"]
    assert len(lora.candidates) > 1
    torn = replace(lora, candidates=(FAMILIES["flux"], FAMILIES["flux2_dev"], FAMILIES["sd1"]))
    with pytest.raises(AmbiguousFamilyError, match="flux, flux2_dev, sd1"):
        mixer.mix_of(torn)


class TestMoves:
    """Laws of what keys do."""

    @given(mixes(DECIMALS))
    def test_inverting_twice_changes_nothing(self, mix: Mix) -> None:
        once = mixer.inverted(mix)
        assert once.weights[OTHER] == mix.weights[OTHER]
        assert mixer.inverted(once) == mix

    @given(mixes())
    def test_inverting_is_that_of_bake(self, mix: Mix) -> None:
        said = resolve(parse_source(mixer.rules(mix)), mix.family, Options(invert=True)).blocks
        assert mixer.inverted(mix).weights == pytest.approx(dict(said))

    @given(mixes(DECIMALS), st.sampled_from((mixer.STEP, mixer.FINE)), st.integers(1, 12))
    def test_steps_are_decimal_and_go_back(self, mix: Mix, step: float, times: int) -> None:
        """0.1 + 0.2 is 0.3; sliders stop at their ends, and weights beyond them do not jump."""
        blocks = [block for block in mix.present if LOW <= mix.weights[block] <= HIGH - times * step]
        there = mix
        for _ in range(times):
            there = mixer.moved(there, blocks, step)
        assert all(there.weights[block] == round(mix.weights[block] + times * step, 2) for block in blocks)
        for _ in range(times):
            there = mixer.moved(there, blocks, -step)
        assert there == mix

    @given(mixes(), st.sampled_from((-0.05, -0.01, 0.01, 0.05)))
    def test_no_step_leads_away_from_the_slider(self, mix: Mix, step: float) -> None:
        for block, weight in mixer.moved(mix, mix.present, step).weights.items():
            assert min(LOW, mix.weights[block]) <= weight <= max(HIGH, mix.weights[block])

    @given(mixes(), NUMBERS)
    def test_a_group_is_what_block_rules_call_so(self, mix: Mix, weight: float) -> None:
        for block in mix.family.blocks:
            moved = mixer.put(mix, mixer.group_of(mix, block), weight)
            rules = f"{mixer.rules(mix)} {mixer.group_name(mix, block)}={weight!r}"
            assert resolve(parse_source(rules), mix.family).blocks == moved.weights

    @pytest.mark.parametrize(
        ("family", "block", "group"),
        [
            ("sd1", "IN04", "IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 IN09 IN10 IN11"),
            ("sd1", "MID", "MID"),
            ("flux", "T5", "CLIP T5"),
            ("flux", "IN", "IN"),
            ("flux", "D07", " ".join(f"D{i:02}" for i in range(19))),
        ],
    )
    def test_groups(self, family: str, block: str, group: str) -> None:
        chosen = FAMILIES[family]
        mix = Mix((chosen,), chosen.blocks, dict.fromkeys((*chosen.blocks, OTHER), 1.0))
        assert " ".join(mixer.group_of(mix, block)) == group

    @pytest.mark.parametrize(("position", "weight"), [(0, -1), (1, 2), (-3, -1), (7, 2), (2 / 3, 1), (0.501, 0.5)])
    def test_a_place_on_the_line_is_a_whole_step(self, position: float, weight: float) -> None:
        assert mixer.snapped(position) == weight


class TestStart:
    """Where sliders begin."""

    @pytest.mark.parametrize("name", FILES)
    def test_presets_that_fit_are_what_a_bake_makes_of_them(self, name: str, loras: dict[str, Lora]) -> None:
        mix = mixer.mix_of(loras[name])
        presets = load_presets()
        found = {preset.name: one for preset, one in mixer.showable(mix, presets.values())}
        assert {"NONE", "ALL", "MIDD", "ALL0.5"} <= found.keys()
        assert not any(presets[name].elements for name in found)
        for preset, one in found.items():
            assert one.weights == resolve(presets[preset].source_for(mix.family), mix.family).blocks

    def test_the_strengths_of_a_token_are_in_the_weights(self, loras: dict[str, Lora]) -> None:
        lora = loras["sd1"]
        asked = Weights.of("<lora:x:0.5:lbw=MIDD:te=0.25>")
        mix = mixer.started(mixer.mix_of(lora), agree(lora, asked.for_family))
        assert [mix.weights[block] for block in ("BASE", "IN01", "MID", "OTHER")] == [0.25, 0, 0.5, 0.5]

    def test_element_rules_are_refused(self, loras: dict[str, Lora]) -> None:
        lora = loras["sd1"]
        asked = Weights.parse(elements=["IN04:attn:0.5"])
        with pytest.raises(WeightError, match="one slider cannot"):
            mixer.started(mixer.mix_of(lora), agree(lora, asked.for_family))


@pytest.mark.parametrize(("stem", "named"), [("style v2", True), ("a:b", False), ("a<b", False)])
def test_a_name_that_no_token_can_hold_has_none(stem: str, named: bool, loras: dict[str, Lora]) -> None:
    assert (mixer.token(mixer.mix_of(loras["sd1"]), stem) is not None) == named


def test_what_lies_in_no_block_has_a_weight_only_in_rules(loras: dict[str, Lora]) -> None:
    mix = mixer.mix_of(loras["sd1, with time"])
    assert mixer.vector(mix)
    changed = mixer.put(mix, [OTHER], 0.5)
    assert mixer.vector(changed) is None
    assert mixer.token(changed, "x") is None
    assert mixer.text(changed) == "*=1 OTHER=0.5"
