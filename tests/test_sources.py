"""Weights mean the same wherever they are given, and one-tool tokens mean what that tool means by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import SD1_ALL_BLOCKS, Planned

from lbw_bake.errors import PresetError, WeightError
from lbw_bake.families import family_named
from lbw_bake.sources import Weights
from lbw_bake.weights import Options, parse_source, resolve

MIDD = "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0"
RULES = "BASE=1 IN05=1 IN07=1 IN08=1 MID=1 OUT03-OUT06=1 *=0"


class TestEverywhereTheSame:
    @pytest.mark.parametrize(
        "options",
        [
            ("--preset", "MIDD"),
            ("--weights", "MIDD"),
            ("--weights", MIDD),
            ("--weights", f" {MIDD.replace(',', ' , ')} "),
            ("--weights", RULES),
            ("--weights", RULES.replace(" ", ", ")),
            ("--weights", "*=0 MID=1 OUT06-OUT03=1 IN05=1 IN08-IN07=1 BASE=1"),
            ("--weights", "*=0 M00=1 OUT03-OUT06=1 IN05=1 IN07-IN08=1 BASE=1"),
            ("--weights", "<lora:x:1:lbw=MIDD>"),
            ("--weights", " <lora:x:1:lbw=MIDD> "),
            ("--token", "<lora:x:1:lbw=MIDD>"),
            ("--token", f"<lora:x:1:lbw={MIDD}>"),
            ("--token", "<lora:x:1:MIDD>"),
        ],
        ids=lambda options: " ".join(options)[:60],
    )
    def test_all_ways_to_say_midd(self, options: tuple[str, ...], planned: Planned) -> None:
        expected = dict.fromkeys(SD1_ALL_BLOCKS, 0.0) | dict.fromkeys(
            ["BASE", "IN05", "IN07", "IN08", "MID", "OUT03", "OUT04", "OUT05", "OUT06", "OTHER"], 1.0
        )
        assert planned(*options)["weights"] == expected

    @pytest.mark.parametrize("kind", ["yaml", "lbwpresets", "inspire"])
    @pytest.mark.parametrize("way", ["option", "variable"])
    def test_preset_files_of_any_format(
        self, kind: str, way: str, tmp_path: Path, planned: Planned, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = {"yaml": "p.yaml", "lbwpresets": "lbwpresets.txt", "inspire": "lbw-preset.txt"}
        path = tmp_path / names[kind]
        path.write_text(f"MINE: {MIDD}\n")
        if way == "variable":
            monkeypatch.setenv("LBW_PRESETS", str(path))
        options = ("--presets", path) if way == "option" else ()
        assert planned("-p", "MINE", *options)["weights"] == planned("-p", "MIDD")["weights"]

    def test_element_presets_of_the_extension(self, tmp_path: Path) -> None:
        path = tmp_path / "elempresets.txt"
        path.write_text("MINE:IN05:attn:0.5,OUT:proj:0\n::0.25\n")
        weights = Weights.parse(element_presets=["MINE"], elements=["MID::1, BASE:mlp:0"], presets=path)
        assert list(map(str, weights.options.elements)) == [
            "IN05:attn:0.5",
            "OUT:proj:0",
            "::0.25",
            "MID::1",
            "BASE:mlp:0",
        ]

    def test_a_token_says_more_than_weights(self) -> None:
        token = "<lora:x:0.5:0.7:lbw=MIDD:lbwe=ATTNDEEPOFF:x=0.2>"
        options = Weights.parse(token=token, options=Options(te=2, x=None)).options
        assert (options.te, options.unet, options.x) == (1.0, 0.7, 0.2)
        assert list(map(str, options.elements)) == ["IN05-OUT05:attn:0"]
        assert Weights.parse(token, options=Options(x=0.9)).options.x == 0.9

    def test_the_elements_of_a_preset_come_with_its_weights(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        path.write_text("A:\n  sd1: {MID: 1}\n  elements: IN05:attn:0.5\n")
        weights = Weights.parse(preset="A", elements=["OUT:attn:0"], presets=path)
        assert list(map(str, weights.options.elements)) == ["IN05:attn:0.5", "OUT:attn:0"]

    def test_weights_are_no_element_preset(self) -> None:
        with pytest.raises(PresetError, match="holds weights, not element rules") as problem:
            Weights.parse(element_presets=["MIDD"])
        assert "--preset MIDD" in problem.value.hint


def weights_of(text: str, family: str = "sd1", **options: Any) -> dict[str, float]:
    return dict(resolve(parse_source(text), family_named(family), Options(**options)).blocks)


class TestInspire:
    """What the Inspire Pack's nodes take, as they take it where that is certain."""

    VECTOR = "A,a,B,b,1,1,1,1,1,1,1,1"

    def test_its_variables_are_settled_by_options(self) -> None:
        weights = weights_of(self.VECTOR, "sdxl", a=4, b=1)
        assert [weights[block] for block in ("BASE", "IN04", "IN05", "IN07")] == [4, 2, 1, 0.5]

    @pytest.mark.parametrize(("text", "option"), [("A", "--a"), ("a", "--a"), ("B", "--b"), ("b", "--b")])
    def test_without_the_option_the_error_names_it(self, text: str, option: str) -> None:
        with pytest.raises(WeightError, match="Inspire Pack") as problem:
            weights_of(f"MID={text}")
        assert problem.value.hint == f"settle it with {option} NUMBER"

    def test_on_the_command_line(self, planned: Planned) -> None:
        vector = ",".join(["A", *"b" * 16])
        assert planned("-w", vector, "--a", "4", "--b", "1")["weights"]["MID"] == 0.5

    def test_several_values_for_one_block_are_refused(self) -> None:
        with pytest.raises(WeightError, match="several values for the layers of one block"):
            weights_of("1 0.5," + ",".join("1" * 11), "sdxl")

    @pytest.mark.parametrize(
        ("text", "family", "expected"),
        [
            ("%in=0.5", "sd1", {"BASE": 1, "IN00": 0.5, "IN11": 0.5, "MID": 1, "OUT00": 1, "OTHER": 1}),
            ("%default=0.5,base=0.2,out=1", "sdxl", {"BASE": 0.2, "IN00": 0.5, "MID": 0.5, "OUT08": 1}),
            ("%default=0.5", "sd1", {"BASE": 0.5, "MID": 0.5}),
            ("%in=0.5,in=0.7", "sd1", {"IN04": 0.7}),
            ("%mid1=0.5", "sd1", {"MID": 0.5, "IN04": 1}),
            ("%double3=0.5,single1-10=0", "flux", {"D02": 0.5, "D03": 1, "S00": 0, "S09": 0, "S10": 1}),
            ("%default=0,base=1,double=0.5", "flux", {"CLIP": 1, "T5": 1, "IN": 1, "OUT": 1, "D18": 0.5, "S00": 0}),
            ("% double1-19 = 0 ", "flux", {"D00": 0, "D18": 0, "S00": 1}),
            ("%in=R", "sd1", {"OUT00": 1}),
        ],
    )
    def test_percent_rules(self, text: str, family: str, expected: dict[str, float]) -> None:
        weights = weights_of(text, family, seed=1)
        assert {block: weights[block] for block in expected} == expected

    @pytest.mark.parametrize(
        ("text", "family", "meant"),
        [
            ("%in3=0.5", "sd1", "IN04=0.5"),
            ("%in1-4=0.5", "sd1", "IN01-IN02=0.5 IN04-IN05=0.5"),
            ("%in1-4=1", "sdxl", "IN04-IN05=0.5 IN07-IN08=0.5"),
            ("%out7=0", "sd1", "OUT09=0.5"),
            ("%in20=0", "sd1", "IN01=0.5"),
            ("%in3=0.5", "sdxl_refiner", "IN02=0.5"),
        ],
    )
    def test_positions_that_depend_on_the_file_are_refused(self, text: str, family: str, meant: str) -> None:
        with pytest.raises(WeightError, match="counts the blocks a LoRA has") as problem:
            weights_of(text, family)
        assert problem.value.hint == f"name the blocks: {meant}"
        assert 0.5 in weights_of(meant, family).values()

    def test_the_refusal_says_what_it_could_mean(self) -> None:
        with pytest.raises(WeightError) as problem:
            weights_of("%in3=0.5")
        assert "IN04 in one of 17 blocks; IN02 in one of 26" in problem.value.message

    @pytest.mark.parametrize(
        ("text", "family", "said"),
        [
            ("%left=1", "sd1", "% rules know no 'left=1'"),
            ("%in", "sd1", "% rules know no 'in'"),
            ("%in=1,", "sd1", "% rules know no ''"),
            ("%in=", "sd1", "the weight of in is empty"),
            ("%in=-1", "sd1", "is negative"),
            ("%double=1", "sd1", "sd1 has no double blocks"),
            ("%in=1", "flux", "flux has no in blocks"),
            ("%double20=1", "flux", "no block in one of"),
            ("%double0=1", "flux", "no block in one of"),
        ],
    )
    def test_nothing_is_ignored(self, text: str, family: str, said: str) -> None:
        with pytest.raises(WeightError) as problem:
            weights_of(text, family)
        assert said in problem.value.message
        assert problem.value.hint
