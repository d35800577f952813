"""Prompt tokens: every form of them says the same as the options it stands for."""

from __future__ import annotations

import pytest

from lbw_bake.errors import NotBakeableError, WeightError
from lbw_bake.tokens import Token, parse_token

VECTOR = "1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0"


class TestForms:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("<lora:x>", Token(1, 1)),
            ("<lora:x:0.7>", Token(0.7, 0.7)),
            ("<lora:x:-0.7>", Token(-0.7, -0.7)),
            ("<lora:x:0.7:0.5>", Token(0.7, 0.5)),
            ("<lora:x:0.7:lbw=MIDD>", Token(0.7, 0.7, "MIDD")),
            ("<lora:x:0.7:0.5:lbw=MIDD>", Token(0.7, 0.5, "MIDD")),
            ("<lora:x:lbw=MIDD:0.7>", Token(0.7, 0.7, "MIDD")),
            ("<lora:x:te=0.5:unet=0.7>", Token(0.5, 0.7)),
            ("<lora:x:0.7:te=0.5>", Token(0.5, 0.7)),
            ("<lora:x:0.7:unet=0.5>", Token(0.7, 0.5)),
            ("<lora:x:1:w=MIDD>", Token(1, 1, "MIDD")),
            (f"<lora:x:1:lbw={VECTOR}>", Token(1, 1, VECTOR)),
            ("<lora:x:1:lbw=MIDD:lbwe=ATTNDEEPON>", Token(1, 1, "MIDD", ("ATTNDEEPON",))),
            ("<lora:x:1:lbwe=ATTNDEEPON>", Token(1, 1, None, ("ATTNDEEPON",))),
            ("<lora:x:1:lbw=XYZ:x=0.2>", Token(1, 1, "XYZ", x=0.2)),
            ("<lora:x:1:x=0.2:te=0.5:lbw=XYZ>", Token(0.5, 1, "XYZ", x=0.2)),
            ("<lyco:x:0.7:lbw=MIDD>", Token(0.7, 0.7, "MIDD")),
            (" < LoRA : x : 0.7 : LBW = MIDD > ", Token(0.7, 0.7, "MIDD")),
            ("<lora:folder/a b (v1.2):0.7:lbw=a b>", Token(0.7, 0.7, "a b")),
            ("<lora:x:1::lbw=MIDD>", Token(1, 1, "MIDD")),
        ],
    )
    def test_today_s(self, text: str, expected: Token) -> None:
        assert parse_token(text) == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("<lora:x:0.7:MIDD>", Token(0.7, 0.7, "MIDD")),
            ("<lora:x:0.7:0.5:MIDD>", Token(0.7, 0.5, "MIDD")),
            (f"<lora:x:0.7:{VECTOR}>", Token(0.7, 0.7, VECTOR)),
            ("<lora:x:0.7:MIDD:te=0.5>", Token(0.5, 0.7, "MIDD")),
            ("<lora:x:0.7:XYZ:x=0.2>", Token(0.7, 0.7, "XYZ", x=0.2)),
        ],
    )
    def test_that_of_early_2023(self, text: str, expected: Token) -> None:
        assert parse_token(text) == expected


class TestErrors:
    @pytest.mark.parametrize("key", ["start=5", "stop=10", "step=5-10", "STOP=3"])
    def test_what_happens_during_sampling_cannot_be_baked(self, key: str) -> None:
        with pytest.raises(NotBakeableError, match="during sampling") as problem:
            parse_token(f"<lora:x:1:lbw=MIDD:{key}>")
        assert key.partition("=")[0].lower() in problem.value.message
        assert problem.value.hint

    def test_nor_can_a_curve(self) -> None:
        with pytest.raises(NotBakeableError, match="changes the strength during sampling"):
            parse_token("<lora:x:0@0,1@0.5:lbw=MIDD>")

    @pytest.mark.parametrize("last", ["0.5", "ATTNDEEPON", VECTOR])
    def test_what_once_followed_a_preset_could_mean_several_things(self, last: str) -> None:
        with pytest.raises(WeightError, match="could mean several things") as problem:
            parse_token(f"<lora:x:0.7:MIDD:{last}>")
        assert f"x={last}" in problem.value.hint

    @pytest.mark.parametrize("rule", ["IN05-OUT05:attn:0.5", "IN05::-1", ":NOT attn:.5"])
    @pytest.mark.parametrize("around", ["<lora:x:0.7:lbw=MIDD:lbwe={}>", "<lora:x:LBWE = {} :te=1>"])
    def test_an_element_rule_has_an_option_of_its_own(self, rule: str, around: str) -> None:
        with pytest.raises(WeightError, match="is an element rule") as problem:
            parse_token(around.format(rule))
        assert problem.value.hint == f'leave it out and give it as --element "{rule}"'

    def test_a_token_within_a_prompt_is_to_be_given_alone(self) -> None:
        with pytest.raises(WeightError) as problem:
            parse_token("a cat, <lora:x:0.7:lbw=MIDD>, masterpiece")
        assert problem.value.hint == "give <lora:x:0.7:lbw=MIDD> alone"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "not a prompt token"),
            ("MIDD", "not a prompt token"),
            ("lora:x:0.7", "not a prompt token"),
            ("<lora:x:0.7", "not a prompt token"),
            ("<lora:>", "not a prompt token"),
            ("<lora: :0.5>", "not a prompt token"),
            ("<hypernet:x:1>", "not a prompt token"),
            ("<lora:x:1> <lora:y:1>", "not a prompt token"),
            ("<lora:x:1:lbv=MIDD>", "unknown key 'lbv'"),
            ("<lora:x:1:lbw=A:lbw=B>", "gives lbw twice"),
            ("<lora:x:1:A:lbw=B>", "'A' is no number, and lbw=B has the weights already"),
            ("<lora:x:1:0.5:dyn:lbw=MIDD>", "'dyn' is no number"),
            ("<lora:x:lbw=MIDD:attn:0.5>", "'attn' is no number"),
            ("<lora:x:\uff10.7:lbw=MIDD>", "'\uff10.7' is no number"),
            ("<lora:x:1:w=A:lbw=B>", "gives lbw twice"),
            ("<lora:x:1:te=0.5:te=0.5>", "gives te twice"),
            ("<lora:x:1:0.5:0.2>", "has 3 strengths"),
            ("<lora:x:nan>", "not a finite number"),
            ("<lora:x:1:te=a>", "te is 'a'"),
            ("<lora:x:1:te=>", "te= is empty"),
            ("<lora:x:1:lbw=>", "lbw= is empty"),
            ("<lora:x:1:x=nan>", "x is 'nan'"),
            ("<lora:x:1e999>", "not a finite number"),
        ],
    )
    def test_nothing_is_guessed(self, text: str, said: str) -> None:
        with pytest.raises(WeightError) as problem:
            parse_token(text)
        assert said in problem.value.message
        assert text.strip() in problem.value.message
        assert problem.value.hint not in ("", f"give {text} alone")
