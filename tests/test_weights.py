"""Whatever is written becomes one number per block, by name; what has no meaning is an error, never a guess."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import (
    FLUX_BLOCKS,
    MODULE,
    SD1_ALL_BLOCKS,
    SD1_BLOCKS,
    SDXL_ALL_BLOCKS,
    SDXL_BLOCKS,
    BakeTensors,
    Planned,
    Run,
    kohya_lora,
    measured,
    sdxl_lora,
    unet_lora,
    write,
)
from hypothesis import given
from hypothesis import strategies as st

from lbw_bake.errors import LbwError, WeightError
from lbw_bake.families import family_named
from lbw_bake.sources import Weights
from lbw_bake.weights import Options, parse_source, resolve

BLOCKS = {"sd1": SD1_ALL_BLOCKS, "sd2": SD1_ALL_BLOCKS, "sdxl": SDXL_ALL_BLOCKS, "flux": FLUX_BLOCKS}
LAYOUTS = [("sd1", SD1_BLOCKS), ("sd1", SD1_ALL_BLOCKS), ("sd2", SD1_BLOCKS), ("sdxl", SDXL_BLOCKS)]
LAYOUTS += [("sdxl", SDXL_ALL_BLOCKS), ("flux", FLUX_BLOCKS)]


def weights_of(text: str, family: str = "sd1", **options: Any) -> dict[str, float]:
    """The weight of every block; `OTHER` is looked at by its own tests."""
    blocks = dict(resolve(parse_source(text), family_named(family), Options(**options)).blocks)
    del blocks["OTHER"]
    return blocks


def vector_for(count: int) -> tuple[str, list[float]]:
    """A vector with another number in every place."""
    numbers = [round(i / 100 - 0.3, 2) for i in range(count)]
    return ",".join(map(str, numbers)), numbers


class TestVectors:
    @pytest.mark.parametrize(("family", "layout"), LAYOUTS, ids=lambda value: len(value) if len(value) > 5 else value)
    def test_the_length_picks_the_layout_and_names_get_the_numbers(self, family: str, layout: list[str]) -> None:
        text, numbers = vector_for(len(layout))
        expected = dict.fromkeys(BLOCKS[family], 0.0) | dict(zip(layout, numbers, strict=True))
        assert weights_of(text, family) == expected

    @pytest.mark.parametrize(
        ("family", "layout"),
        [("sdxl", SD1_BLOCKS), ("sdxl", SD1_ALL_BLOCKS), ("sd1", SDXL_BLOCKS), ("sd1", SDXL_ALL_BLOCKS)],
        ids=str,
    )
    def test_the_unet_lengths_serve_all_unets_by_name(self, family: str, layout: list[str]) -> None:
        text, numbers = vector_for(len(layout))
        by_name = dict(zip(layout, numbers, strict=True))
        assert weights_of(text, family) == {block: by_name.get(block, 0.0) for block in BLOCKS[family]}

    @pytest.mark.parametrize(
        ("family", "count", "lengths", "nearest"),
        [
            ("sd1", 16, "12, 17, 20 or 26", 17),
            ("sdxl", 61, "12, 17, 20 or 26", 26),
            ("flux", 17, "57 or 61", 57),
        ],
    )
    def test_other_counts_name_the_lengths_that_fit(self, family: str, count: int, lengths: str, nearest: int) -> None:
        with pytest.raises(WeightError) as problem:
            weights_of(",".join("1" * count), family)
        assert f"{count} weights do not fit {family}, which takes {lengths}" in problem.value.message
        assert str(nearest) in problem.value.hint

    @pytest.mark.parametrize("text", ["0,5", "MID=0,5", "BASE=1 MID=0,25 *=0"])
    def test_a_decimal_comma_is_told_to_be_none(self, text: str) -> None:
        with pytest.raises(WeightError) as problem:
            weights_of(text)
        assert "a point, not a comma, begins decimals" in problem.value.hint

    @pytest.mark.parametrize(
        ("text", "number"),
        [("1", 1), ("+1", 1), ("-1", -1), (".5", 0.5), ("-.5", -0.5), ("1.", 1), ("1e-2", 0.01), (" 2 ", 2)],
    )
    def test_numbers_are_decimal(self, text: str, number: float) -> None:
        assert weights_of(",".join([text] * 17))["MID"] == number

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_any_finite_number_is_read_back_exactly(self, number: float) -> None:
        assert weights_of(f"MID={number!r}")["MID"] == number

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "nan",
            "NaN",
            "inf",
            "-inf",
            "1e999",
            "0x1",
            "1_0",
            "½",
            "٣",
            "one",
            "1 2",
            "--1",
            "r",
            "x",
            "X*2",
            "X+",
        ],
    )
    def test_anything_else_is_an_error_that_names_the_place(self, text: str) -> None:
        with pytest.raises(WeightError, match=r"weight 3 of 17|the shift of"):
            weights_of(",".join(["1", "1", text, *"1" * 14]), x=1.0)


RULES = [
    ("MID=0.5", {"MID": 0.5}),
    ("M00=0.5", {"MID": 0.5}),
    ("m00=0.5 base=1", {"MID": 0.5, "BASE": 1}),
    ("BASE=1,MID=0.5", {"BASE": 1, "MID": 0.5}),
    ("BASE = 1 , MID = -0.5", {"BASE": 1, "MID": -0.5}),
    ("IN04-IN06=0.5", {"IN04": 0.5, "IN05": 0.5, "IN06": 0.5}),
    ("IN06-IN04=0.5", {"IN04": 0.5, "IN05": 0.5, "IN06": 0.5}),
    ("IN11-OUT00=0.5", {"IN11": 0.5, "MID": 0.5, "OUT00": 0.5}),
    ("OUT00-IN11=0.5", {"IN11": 0.5, "MID": 0.5, "OUT00": 0.5}),
    ("M00-OUT01=0.5", {"MID": 0.5, "OUT00": 0.5, "OUT01": 0.5}),
    ("IN=0.5", {f"IN{i:02}": 0.5 for i in range(12)}),
    ("IN04-IN06=0.5 IN05=1", {"IN04": 0.5, "IN05": 1, "IN06": 0.5}),
    ("IN05=1 IN04-IN06=0.5", {"IN04": 0.5, "IN05": 0.5, "IN06": 0.5}),
]


class TestRules:
    @pytest.mark.parametrize(("text", "expected"), RULES)
    def test_selectors_name_blocks_and_later_ones_win(self, text: str, expected: dict[str, float]) -> None:
        assert weights_of(text) == dict.fromkeys(SD1_ALL_BLOCKS, 0.0) | expected

    @pytest.mark.parametrize("text", ["*=0.25 MID=1", "MID=1 *=0.25", "MID=0 *=0.25 MID=1"])
    def test_a_star_means_all_others_wherever_it_stands(self, text: str) -> None:
        assert weights_of(text) == dict.fromkeys(SD1_ALL_BLOCKS, 0.25) | {"MID": 1}

    def test_not_means_all_but(self) -> None:
        assert weights_of("NOT IN04-OUT11=0.5") == {
            block: 0.5 if block in ("BASE", "IN00", "IN01", "IN02", "IN03") else 0 for block in SD1_ALL_BLOCKS
        }

    @pytest.mark.parametrize(
        ("text", "blocks"),
        [
            ("BASE=1", ["CLIP", "T5"]),
            ("CLIP=1", ["CLIP"]),
            ("D=1", FLUX_BLOCKS[3:22]),
            ("IN=1 OUT=1", ["IN", "OUT"]),
            ("D18-S00=1", ["D18", "S00"]),
            ("BASE-D00=1", FLUX_BLOCKS[:4]),
        ],
    )
    def test_base_is_every_text_encoder_and_letters_are_a_family_s_own(self, text: str, blocks: list[str]) -> None:
        assert weights_of(text, "flux") == {block: float(block in blocks) for block in FLUX_BLOCKS}

    @pytest.mark.parametrize(
        ("text", "family", "hint"),
        [
            ("IN4=1", "sd1", "did you mean IN04?"),
            ("D0-D9=1", "flux", "did you mean D00?"),
            ("S7=1", "flux", "did you mean S07?"),
            ("INN04=1", "sd1", "IN04"),
            ("MIDD=1", "sd1", "MID"),
            ("D07=1", "sd1", ""),
            ("IN04=1", "flux", "IN"),
            ("IN04-OUT15=1", "sd1", "OUT"),
            ("S38=1", "flux", "S"),
        ],
    )
    def test_an_unknown_block_suggests_a_known_one(self, text: str, family: str, hint: str) -> None:
        with pytest.raises(WeightError, match=f"{family} has no block") as problem:
            weights_of(text, family)
        assert hint in problem.value.hint

    @pytest.mark.parametrize("selector", ["110%-120%", "0%-101%"])
    def test_there_is_no_depth_beyond_the_whole(self, selector: str) -> None:
        with pytest.raises(WeightError, match="goes beyond the whole depth"):
            weights_of(f"{selector}=1")

    @pytest.mark.parametrize(("family", "enough"), [("sd1", 4), ("flux", 2), ("sdxl", 6)])
    @pytest.mark.parametrize("selector", ["0%-0%", "25%-25%", "NOT 100%-100%"])
    def test_a_depth_that_holds_no_block_is_refused(self, selector: str, family: str, enough: int) -> None:
        with pytest.raises(WeightError, match=f"holds no block of {family}") as problem:
            weights_of(f"{selector}=0 *=1", family)
        assert problem.value.hint == f"write a range of at least {enough}%"
        for start in range(100 - enough):
            weights_of(f"{start}%-{start + enough}%=0", family)

    @pytest.mark.parametrize("text", ["IN11=1 *=0", "OUT09=1 *=0"])
    def test_a_block_of_another_family_is_not_passed_over_in_silence(self, text: str) -> None:
        """SDXL ends at IN08 and OUT08, though vectors with names beyond them are taken."""
        with pytest.raises(WeightError, match=f"sdxl has no block '{text.partition('=')[0]}'"):
            weights_of(text, "sdxl")

    @pytest.mark.parametrize(
        "text",
        [
            "MID",
            "=1",
            "MID==1",
            "MID=",
            "MID=nan",
            "MID=1 2",
            "MID=1;OUT=2",
            "NOT=1",
            "MID=1 ,, OUT=1",
            "IN04-IN05-IN06=1",
        ],
    )
    def test_what_is_no_rule_is_an_error(self, text: str) -> None:
        with pytest.raises(LbwError):
            weights_of(text)

    @pytest.mark.parametrize("selector", ["", " "])
    def test_a_block_without_a_name_is_not_all_blocks(self, selector: str) -> None:
        """Which it is in an element rule."""
        with pytest.raises(WeightError, match=r"the block that weighs 0\.5 has no name"):
            Weights.of({"BASE": 1, selector: 0.5}).for_family("sd1")


class TestVariables:
    def test_random_weights_come_from_the_seed(self) -> None:
        vector = ",".join(["R", "U"] * 8 + ["R"])
        once, again, other = (weights_of(vector, seed=seed) for seed in (1, 1, 2))
        assert once == again != other
        assert len({once[block] for block in SD1_BLOCKS}) == 17

    @pytest.mark.parametrize(("letter", "least", "most"), [("R", 0, 1), ("U", -0.5, 1.5)])
    def test_random_weights_fill_their_range_in_thousandths(self, letter: str, least: float, most: float) -> None:
        drawn = [number for seed in range(20) for number in weights_of(",".join(letter * 26), seed=seed).values()]
        assert least <= min(drawn) < least + 0.05
        assert most - 0.05 < max(drawn) <= most
        assert all(round(number, 3) == number for number in drawn)

    @pytest.mark.parametrize(("text", "number"), [("X", 0.5), ("X+0.2", 0.7), ("X-0.2", 0.3), ("X-1e-1", 0.4)])
    def test_x_is_given(self, text: str, number: float) -> None:
        assert weights_of(f"MID={text} *=0", x=0.5)["MID"] == pytest.approx(number)

    @pytest.mark.parametrize(
        ("text", "option"),
        [("R", "--seed"), ("U", "--seed"), ("X", "--x"), ("X+0.2", "--x"), *((n, f"--{n.lower()}") for n in "AaBb")],
    )
    def test_each_needs_its_option(self, text: str, option: str) -> None:
        with pytest.raises(WeightError) as problem:
            weights_of(f"MID={text}")
        assert f"MID is {text}, a " in problem.value.message
        assert problem.value.hint == f"settle it with {option} NUMBER"

    def test_a_shifted_x_stays_finite(self) -> None:
        with pytest.raises(WeightError):
            weights_of("MID=X+1e308", x=1.7e308)


class TestCommandLine:
    VECTOR = ",".join(["-0.5", *"1" * 16])

    @pytest.mark.parametrize(
        "options", [(f"--weights={VECTOR}",), ("--weights", VECTOR), ("-w", VECTOR), (f"-w{VECTOR}",)], ids=str
    )
    def test_a_leading_minus_is_no_option(self, options: tuple[str, ...], planned: Planned) -> None:
        result = planned(*options)
        assert (result["layout"], result["weights"]["BASE"]) == (17, -0.5)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (("-w", "MID=1"), {"MID": 1}),
            (("-w", "MID=1", "--rest", "0.25"), dict.fromkeys(SD1_ALL_BLOCKS, 0.25) | {"MID": 1}),
            (("-w", "MID=0.3 *=1", "--invert"), {"MID": 0.7}),
            (("-w", "MID=-0.5 *=1", "--invert"), {"MID": 1.5}),
            (("-w", "MID=1", "--invert"), dict.fromkeys(SD1_ALL_BLOCKS, 1) | {"MID": 0}),
            (("-w", "*=0", "--other", "0.5"), {"OTHER": 0.5}),
            (("-w", "*=0 OTHER=0.25"), {"OTHER": 0.25}),
            (("-w", "*=0 OTHER=0.25", "--other", "0.5"), {"OTHER": 0.5}),
            (("-w", "*=0 OTHER=0.25", "--other", "1"), {"OTHER": 1}),
            (("-w", "*=0", "--invert"), dict.fromkeys(SD1_ALL_BLOCKS, 1)),
        ],
    )
    def test_options_about_blocks(self, options: tuple[str, ...], expected: dict[str, float], planned: Planned) -> None:
        assert planned(*options)["weights"] == pytest.approx(dict.fromkeys(SD1_ALL_BLOCKS, 0) | {"OTHER": 1} | expected)

    def test_a_vector_that_omits_blocks_says_which_modules_it_zeroed(self, tmp_path: Path, run: Run) -> None:
        source = write(tmp_path / "a.safetensors", unet_lora(SD1_ALL_BLOCKS))
        error = run.done("bake", source, "-p", "ALL", "-o", tmp_path / "b.safetensors")
        omitted = [block for block in SD1_ALL_BLOCKS if block not in SD1_BLOCKS]
        assert f"9 modules zeroed because the weights do not list their blocks: {', '.join(omitted)}" in error

    @pytest.mark.parametrize(
        ("count", "family", "zeroed"), [(17, "sdxl", "OUT00, OUT01, OUT02"), (12, "sd1", "IN01, IN02")]
    )
    def test_a_vector_of_a_relative_says_what_was_matched_and_what_was_zeroed(
        self, count: int, family: str, zeroed: str, tmp_path: Path, run: Run
    ) -> None:
        source = write(tmp_path / "a.safetensors", sdxl_lora() if family == "sdxl" else unet_lora())
        error = run.done("bake", source, "-w", ",".join("1" * count), "-o", tmp_path / "b.safetensors")
        assert f"{count} weights are not a layout of {family}; matched by name: BASE, " in error
        assert f"because the weights do not list their blocks: {zeroed}" in error

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("-p", "ALL"), "--invert gives 9 blocks that the weights do not list a weight of 1: IN00, IN03"),
            (("-p", "ALL", "--rest", "0.25"), "--invert gives 9 blocks that the weights do not list a weight of 0.75"),
            (("-p", "ALL", "--rest", "1"), "9 modules zeroed because the weights do not list their blocks"),
            (("-w", "MID=0 *=1"), ""),
        ],
    )
    def test_what_inverting_makes_of_omitted_blocks_is_said(
        self, options: tuple[str, ...], said: str, tmp_path: Path, run: Run
    ) -> None:
        source = write(tmp_path / "a.safetensors", unet_lora(SD1_ALL_BLOCKS))
        error = run.done("bake", source, *options, "--invert", "-o", tmp_path / "b.safetensors")
        assert said in error
        assert said or "warning" not in error

    def test_a_vector_is_of_the_model_whose_length_it_has_where_several_fit(self, tmp_path: Path, run: Run) -> None:
        """SD1 does not list 12 blocks, but what lies in one all UNets have may be SDXL's."""
        source = write(tmp_path / "a.safetensors", kohya_lora(["unet_input_blocks_4_1_proj_in"], width=640))
        for baked, weights in (("b", "0.5" + 11 * ",1"), ("c", "0.5" + 16 * ",1")):
            out = tmp_path / f"{baked}.safetensors"
            assert "warning" not in run.done("bake", source, "-w", weights, "-o", out)
            assert run.json("diff", source, out, "--json")["matches_record"]

    @pytest.mark.parametrize("option", ["strength", "te", "unet", "rest", "other", "x", "a", "b"])
    @pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
    def test_options_are_finite_numbers(self, option: str, value: str, lora: Path, tmp_path: Path, run: Run) -> None:
        error = run.refused("bake", lora, "-p", "ALL", f"--{option}={value}", "-o", tmp_path / "b.safetensors")
        assert f"error: {option} is {float(value)}, not a finite number" in error
        assert not (tmp_path / "b.safetensors").exists()

    def test_a_seed_is_not_negative(self, lora: Path, tmp_path: Path, run: Run) -> None:
        draws = ("-w", ",".join("R" * 17), "-o", tmp_path / "b.safetensors")
        assert "seed -3 is negative" in run.refused("bake", lora, *draws, "--seed=-3")
        run.done("bake", lora, *draws, "--seed=0")

    @pytest.mark.parametrize("options", [(), ("--strength", "0")])
    def test_so_is_what_they_multiply_to(self, options: tuple[str, ...], lora: Path, tmp_path: Path, run: Run) -> None:
        huge = ("-w", "MID=1e200 *=1", "--unet", "1e200", *options)
        error = run.refused("bake", lora, *huge, "-o", tmp_path / "b.safetensors")
        assert "the weight of MID, all multiplied, is " in error
        assert not (tmp_path / "b.safetensors").exists()

    # How other tools, or hands in a hurry, write it -> how it is written here.
    SLIPS: ClassVar = {
        "1 0 0.5 -1": "separate the values with commas: 1,0,0.5,-1",
        "1;0; 0.5": "separate the values with commas: 1,0,0.5",
        "1\uff0c0\u30010.5": "separate the values with commas: 1,0,0.5",
        "1,0\uff0c0.5,0": "separate the values with commas: 0,0.5",
        "[1,0,0.5]": "write the values without brackets",
        "(1 0 0.5)": "write the values without brackets",
        "IN04:0.5": "write IN04=0.5",
        "IN04-IN08: 0.5, MID:1": "write IN04-IN08=0.5",
        "IN04:0.5 MID:1": "write IN04=0.5 MID=1",
        "IN04=0..1": "write a decimal number like 0.5",
        "IN04..IN08=0.5": "write the range as IN04-IN08",
        "IN04~IN08=0.5": "write the range as IN04-IN08",
        "IN04:IN08=0.5 MID=1": "write the range as IN04-IN08",
        "IN04\u2013IN08=0.5": "write the range as IN04-IN08",
    }
    NAME_SLIPS: ClassVar = {
        "FLUXALL": "the extension's FLUXALL is ALL here, for every family: --preset ALL",
        "MIDD,OUTALL": "give each by itself: --preset MIDD --preset OUTALL",
        "IN04=0.5 *=0": "that is no name: give it as --weights",
        "1,0, 0.5": "that is no name: give it as --weights",
        "0.5": "that is one weight for everything: --strength 0.5",
        "<lora:x:0.7:MIDD>": "that is a prompt token: give it as --token",
        "IN04:0.5": "write IN04=0.5",
    }

    @pytest.mark.parametrize(
        ("option", "text", "hint"),
        [
            *(("--weights", *pair) for pair in SLIPS.items()),
            *(("--preset", *pair) for pair in NAME_SLIPS.items()),
        ],
    )
    def test_a_slip_is_answered_with_the_right_spelling(
        self, option: str, text: str, hint: str, lora: Path, run: Run
    ) -> None:
        assert run.refused("bake", lora, option, text, "--dry-run").endswith(f"\nhint: {hint}\n")


class TestComponents:
    """Two modules of a text encoder, two of the UNet's blocks, one of no block."""

    NAMES = (
        "te_text_model_encoder_layers_0_mlp_fc1",
        "te_text_model_encoder_layers_3_self_attn_q_proj",
        "unet_input_blocks_4_1_proj_in",
        "unet_middle_block_1_proj_in",
        "unet_time_embed_0",
    )

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (("--strength", "0.5"), [0.5, 0.5, 0.5, 0.5, 0.5]),
            (("--te", "0.5"), [0.5, 0.5, 1, 1, 1]),
            (("--unet", "0.5"), [1, 1, 0.5, 0.5, 0.5]),
            (("--te", "0.5", "--unet", "2", "--strength", "-0.5"), [-0.25, -0.25, -1, -1, -1]),
            (("-w", "IN04=0.5 *=1", "--strength", "0.5"), [0.5, 0.5, 0.25, 0.5, 0.5]),
            (("-w", "*=1", "--other", "0"), [1, 1, 1, 1, 0]),
            (("-w", "*=0"), [0, 0, 0, 0, 1]),
            (("-w", "*=0", "--strength", "0.5"), [0, 0, 0, 0, 0.5]),
            (("-w", "IN04=0.2 *=1", "--invert"), [0, 0, 0.8, 0, 1]),
            (("-w", "IN04=0.2 *=1", "--element", "IN04:proj:0.7", "--invert"), [0, 0, 0.7, 0, 1]),
            (("-w", "*=1", "--element", "MID:proj:0.5", "--strength", "0.5"), [0.5, 0.5, 0.5, 0.25, 0.5]),
            (("-w", "*=1", "--element", "BASE:self_attn:0.5", "--te", "0.5"), [0.5, 0.25, 1, 1, 1]),
        ],
    )
    def test_every_module_gets_the_product_of_what_concerns_it(
        self, options: tuple[str, ...], expected: list[float], bake_tensors: BakeTensors
    ) -> None:
        original = kohya_lora(self.NAMES, dtype="float32")
        assert measured(original, bake_tensors(original, *options)) == pytest.approx(expected, rel=1e-6)


class TestElements:
    NAMES = (
        "te_text_model_encoder_layers_0_mlp_fc1",
        "unet_input_blocks_5_1_transformer_blocks_0_attn1_to_q",
        "unet_input_blocks_5_1_transformer_blocks_0_ff_net_2",
        "unet_output_blocks_5_1_transformer_blocks_0_attn1_to_q",
        "unet_output_blocks_9_1_transformer_blocks_0_attn1_to_q",
    )

    @pytest.mark.parametrize(
        ("rules", "expected"),
        [
            (("IN05-OUT05:attn:0.5",), [1, 0.5, 1, 0.5, 1]),
            (("OUT05-IN05:attn:0.5",), [1, 0.5, 1, 0.5, 1]),
            (("IN05:attn1.to_q:0.5",), [1, 0.5, 1, 1, 1]),
            (("IN05:attn ff:0.5",), [1, 0.5, 0.5, 1, 1]),
            (("IN05:NOT attn:0.5",), [1, 1, 0.5, 1, 1]),
            (("IN05:not attn:0.5",), [1, 1, 0.5, 1, 1]),
            (("NOT IN05:attn:0.5",), [1, 1, 1, 0.5, 0.5]),
            (("IN05 OUT09:attn:0.5",), [1, 0.5, 1, 1, 0.5]),
            ((":attn:0.5",), [1, 0.5, 1, 0.5, 0.5]),
            (("IN05::0.5",), [1, 0.5, 0.5, 1, 1]),
            (("::0.5",), [0.5, 0.5, 0.5, 0.5, 0.5]),
            (("BASE:mlp:0",), [0, 1, 1, 1, 1]),
            (("IN05:attn:0.5", "IN05:to_q:0.25"), [1, 0.25, 1, 1, 1]),
            (("IN05:to_q:0.25", "IN05:attn:0.5"), [1, 0.5, 1, 1, 1]),
            (("OUT:attn:-0.5",), [1, 1, 1, -0.5, -0.5]),
        ],
    )
    def test_a_rule_replaces_the_weight_of_what_it_matches_and_later_ones_win(
        self, rules: tuple[str, ...], expected: list[float], bake_tensors: BakeTensors
    ) -> None:
        original = kohya_lora(self.NAMES, dtype="float32")
        options = [part for rule in rules for part in ("--element", rule)]
        assert measured(original, bake_tensors(original, *options)) == pytest.approx(expected)

    # What diffusers calls a layer, and what hosts do.
    SPELLINGS = (
        ("down_blocks_1_attentions_1_proj_in", "input_blocks_5_1_proj_in"),
        ("down_blocks_1_attentions_1_transformer_blocks_0_norm1", "input_blocks_5_1_transformer_blocks_0_norm1"),
        ("down_blocks_1_resnets_1_norm1", "input_blocks_5_0_in_layers_0"),
        ("down_blocks_1_resnets_1_conv1", "input_blocks_5_0_in_layers_2"),
        ("down_blocks_1_resnets_1_time_emb_proj", "input_blocks_5_0_emb_layers_1"),
        ("mid_block_resnets_0_norm2", "middle_block_0_out_layers_0"),
        ("mid_block_resnets_0_conv2", "middle_block_0_out_layers_3"),
        ("up_blocks_1_resnets_0_conv_shortcut", "output_blocks_3_0_skip_connection"),
        ("down_blocks_1_downsamplers_0_conv", "input_blocks_6_0_op"),
        ("up_blocks_1_upsamplers_0_conv", "output_blocks_5_2_conv"),
    )

    @pytest.mark.parametrize("spelling", ["diffusers", "host"])
    @pytest.mark.parametrize(
        ("words", "matched"),
        [
            ("proj", "proj_in"),
            ("norm1", "transformer_blocks_0_norm1"),
            ("in_layers", "resnets_1_norm1 resnets_1_conv1"),
            ("conv1", "resnets_1_conv1"),
            ("emb_layers", "time_emb_proj"),
            ("time_emb_proj", "time_emb_proj"),
            ("out_layers.3", "conv2"),
            ("conv_shortcut", "conv_shortcut"),
            ("conv", "upsamplers_0_conv"),
            ("op", "downsamplers_0_conv"),
        ],
    )
    def test_words_are_about_the_names_of_hosts_however_the_file_spells_them(
        self, words: str, matched: str, spelling: str, bake_tensors: BakeTensors
    ) -> None:
        names = [f"unet_{pair[spelling == 'host']}" for pair in self.SPELLINGS]
        original = kohya_lora(names, dtype="float32")
        expected = [0.5 if diffusers.endswith(tuple(matched.split())) else 1 for diffusers, _ in self.SPELLINGS]
        baked = bake_tensors(original, "--element", f":{words}:0.5", "--family", "sd1")
        assert measured(original, baked) == pytest.approx(expected)

    @pytest.mark.parametrize(("rule", "expected"), [("::0.5", 0.5), (":linear:0.5", 0.5), ("IN OUT MID BASE::0.5", 1)])
    def test_a_rule_for_all_blocks_is_one_for_layers_in_none(
        self, rule: str, expected: float, bake_tensors: BakeTensors
    ) -> None:
        original = kohya_lora([*self.NAMES, "unet_time_embedding_linear_1"], dtype="float32")
        assert measured(original, bake_tensors(original, "--element", rule))[-1] == pytest.approx(expected)

    def test_it_replaces_and_does_not_multiply(self, bake_tensors: BakeTensors) -> None:
        original = kohya_lora(self.NAMES, dtype="float32")
        baked = bake_tensors(original, "-w", "*=0.5", "--element", "IN05:attn:0.5")
        assert measured(original, baked) == pytest.approx([0.5] * 5)

    def test_an_element_preset_comes_before_rules(self, bake_tensors: BakeTensors) -> None:
        original = kohya_lora(self.NAMES, dtype="float32")
        rules = ("--element", "OUT05:attn:0.5", "--element-preset", "ATTNDEEPOFF")
        assert measured(original, bake_tensors(original, *rules)) == pytest.approx([1, 0, 1, 0.5, 1])

    def test_a_rule_that_matches_nothing_is_said(self, tmp_path: Path, run: Run) -> None:
        source = write(tmp_path / "a.safetensors", kohya_lora(self.NAMES))
        options = ("--element", "MID:attn:0.5", "--element", "IN05:attn:0.5", "-o", tmp_path / "b.safetensors")
        error = run.done("bake", source, *options)
        assert error.count("matches no module") == 1
        assert "element rule MID:attn:0.5 matches no module" in error

    @pytest.mark.parametrize(
        ("weights", "said"),
        [
            ("IN03=0.5 in05=1 *=1", "the file has no module in IN03; its blocks are "),
            ("M00=0.5 IN03=0 *=1", "the file has no module in IN03, MID; its blocks are "),
            ("IN00-IN04=0.5 BASE=0 OTHER=0 *=1", ""),  # ranges and text encoders are named for many files
        ],
    )
    def test_a_block_that_is_named_and_empty_is_said(self, weights: str, said: str, tmp_path: Path, run: Run) -> None:
        source = write(tmp_path / "a.safetensors", kohya_lora(["unet_input_blocks_5_1_proj_in"], width=640))
        options = ("-o", tmp_path / "b.safetensors", "--family", "sd1", "--json")
        facts = run.json("bake", source, "-w", weights, *options)
        warnings = [warning for warning in facts["warnings"] if "no module in" in warning]
        assert len(warnings) == bool(said)
        assert all(warning.startswith(said) for warning in warnings)

    @pytest.mark.parametrize(
        "rule",
        [
            " , ",
            "IN05",
            "IN05:attn",
            "IN05:attn:0.5:1",
            "IN05:attn:",
            "IN05:attn:nan",
            "IN05:NOT:0.5",
            "IN55:attn:1",
            "NOT:attn:1",
        ],
    )
    def test_what_is_no_rule_is_an_error(self, rule: str, tmp_path: Path, run: Run) -> None:
        source = write(tmp_path / "a.safetensors", kohya_lora(self.NAMES))
        error = run.refused("bake", source, "-w", "*=1", "--element", rule, "-o", tmp_path / "b.safetensors")
        assert error.startswith("error: ")
        assert not (tmp_path / "b.safetensors").exists()


WARNED = {
    "an unknown tensor": ({"unknown": unet_lora()[f"{MODULE}.alpha"]}, ("-w", "*=1")),
    "a short vector": (unet_lora(["IN03"]), ("-p", "ALL")),
    "a relative's vector": ({}, ("-w", ",".join("1" * 12))),
    "a rule without a match": ({}, ("-w", "*=1", "--element", "IN03:attn:0")),
    "a neutralised module": (
        {"lora_unet_middle_block_1_out.set_weight": unet_lora()[f"{MODULE}.lora_up.weight"]},
        ("-w", "MID=0 *=1"),
    ),
}


class TestStrict:
    @pytest.mark.parametrize(("extra", "options"), WARNED.values(), ids=WARNED)
    def test_a_warning_is_an_error_and_nothing_is_written(
        self, extra: dict[str, Any], options: tuple[str, ...], tmp_path: Path, run: Run
    ) -> None:
        source = write(tmp_path / "a.safetensors", unet_lora() | extra)
        error = run.refused("bake", source, *options, "--strict", "-o", tmp_path / "b.safetensors")
        assert error.startswith(f"error: {source}: ")
        assert "--strict" in error
        assert list(tmp_path.iterdir()) == [source]
        run.done("bake", source, *options, "-o", tmp_path / "b.safetensors")

    def test_without_warnings_it_changes_nothing(self, lora: Path, tmp_path: Path, run: Run) -> None:
        run.done("bake", lora, "-p", "MIDD", "--strict", "-o", tmp_path / "b.safetensors")
