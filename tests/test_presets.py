"""Presets: what the ten names mean, where names are looked up, and what is wrong with a file, by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import (
    ROOT,
    SD1_ALL_BLOCKS,
    SD1_BLOCKS,
    SDXL_ALL_BLOCKS,
    BakeTensors,
    Run,
    Tensors,
    kohya_lora,
    measured,
    sdxl_lora,
    unet_lora,
    write,
)

from lbw_bake.errors import PresetError
from lbw_bake.presets import load_presets

# The extension's own values, in the order of its 17 blocks.
EXTENSION = {
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "ALL0.5": "0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5",
}
NAMES = pytest.mark.parametrize("name", EXTENSION)

Weights = Callable[..., dict[str, float]]


@pytest.fixture
def weights(tmp_path: Path, run: Run) -> Weights:
    """The weights a dry run finds for a LoRA, SD1 by default."""

    def call(*options: object, tensors: Tensors | None = None) -> dict[str, float]:
        source = write(tmp_path / "a.safetensors", tensors or unet_lora())
        return dict(run.json("bake", source, "--dry-run", "--json", *options)["weights"])

    return call


def values_of(name: str) -> dict[str, float]:
    """The extension's weights by block; blocks beyond its 17 weigh 0."""
    numbers = map(float, EXTENSION[name].split(","))
    return dict.fromkeys(SD1_ALL_BLOCKS, 0.0) | dict(zip(SD1_BLOCKS, numbers, strict=True)) | {"OTHER": 1.0}


class TestBuiltIn:
    @pytest.mark.parametrize("family", ["sd1", "sd2"])
    @NAMES
    def test_they_are_the_extension_s_values(self, name: str, family: str, weights: Weights) -> None:
        assert weights("-p", name, "--family", family) == values_of(name)

    @NAMES
    def test_locon_blocks_beyond_them_weigh_nothing(self, name: str, bake_tensors: BakeTensors) -> None:
        original = unet_lora(SD1_ALL_BLOCKS)
        expected = [values_of(name)[block] for block in SD1_ALL_BLOCKS]
        assert measured(original, bake_tensors(original, "-p", name)) == pytest.approx(expected)

    @NAMES
    def test_they_mean_something_for_sdxl(self, name: str, weights: Weights) -> None:
        got = weights("-p", name, tensors=sdxl_lora())
        assert got.keys() == {*SDXL_ALL_BLOCKS, "OTHER"}
        assert got["BASE"] == values_of(name)["BASE"]

    @pytest.mark.parametrize("side", [("INS", "IND", "INALL"), ("OUTD", "OUTS", "OUTALL")], ids=lambda side: side[2])
    @pytest.mark.parametrize("family", ["sd1", "sdxl", "flux"])
    def test_two_halves_make_the_whole_everywhere(
        self, family: str, side: tuple[str, str, str], weights: Weights
    ) -> None:
        tensors = kohya_lora(["unet_double_blocks_0_img_attn_proj"]) if family == "flux" else unet_lora(["MID"])
        one, two, whole = (weights("-p", name, "--family", family, tensors=tensors) for name in side)
        encoders = {"BASE", "CLIP", "T5", "OTHER"}
        for block in whole.keys() - encoders:
            assert one[block] + two[block] == whole[block]
        assert all(whole[block] == 1 for block in whole.keys() & encoders)

    @pytest.mark.parametrize(("name", "expected"), [("ATTNDEEPON", [1, 1, 0]), ("ATTNDEEPOFF", [1, 0, 0])])
    def test_element_presets(self, name: str, expected: list[float], bake_tensors: BakeTensors) -> None:
        names = [
            f"unet_input_blocks_{i}_1_{path}" for i, path in ((5, "ff_net_2"), (5, "attn1_to_q"), (4, "attn1_to_q"))
        ]
        original = kohya_lora(names)
        baked = bake_tensors(original, "-w", "IN05=1 *=0", "--element-preset", name, "--family", "sd1")
        assert measured(original, baked) == pytest.approx(expected)

    def test_an_unknown_name_suggests_the_nearest(self, lora: Path, tmp_path: Path, run: Run) -> None:
        error = run.refused("bake", lora, "-p", "MIDDD", "-o", tmp_path / "b.safetensors")
        assert "error: unknown preset 'MIDDD'" in error
        assert "did you mean MIDD?" in error
        assert list(tmp_path.iterdir()) == [lora]


class TestLookUp:
    """A name means what the last file says that holds it: ours, the user's, the one that was named."""

    @staticmethod
    def preset(path: Path, weight: float, name: str = "MIDD") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{name}: {{"*": {weight}}}\n')
        return path

    @pytest.fixture(autouse=True)
    def _config(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def test_the_last_file_wins(self, tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
        assert weights("-p", "MIDD")["OUT11"] == 0
        self.preset(tmp_path / "config" / "lbw" / "presets.yaml", 0.1)
        assert weights("-p", "MIDD")["OUT11"] == 0.1
        monkeypatch.setenv("LBW_PRESETS", str(self.preset(tmp_path / "variable.yaml", 0.2)))
        assert weights("-p", "MIDD")["OUT11"] == 0.2
        assert weights("-p", "MIDD", "--presets", self.preset(tmp_path / "option.yaml", 0.3))["OUT11"] == 0.3

    def test_names_of_all_files_are_known_together(self, tmp_path: Path, weights: Weights) -> None:
        self.preset(tmp_path / "config" / "lbw" / "presets.yaml", 0.1, "MINE")
        option = ("--presets", self.preset(tmp_path / "option.yaml", 0.3, "OTHERS"))
        assert [weights("-p", name, *option)["OUT11"] for name in ("OUTS", "MINE", "OTHERS")] == [1, 0.1, 0.3]

    def test_a_file_in_the_current_folder_is_never_read_by_accident(
        self, tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.preset(tmp_path / "presets.yaml", 0.3)
        monkeypatch.chdir(tmp_path)
        assert weights("-p", "MIDD")["OUT11"] == 0

    @pytest.mark.parametrize("way", ["option", "variable"])
    def test_a_file_that_was_named_must_be_there(
        self, way: str, lora: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        missing = tmp_path / "missing.yaml"
        if way == "variable":
            monkeypatch.setenv("LBW_PRESETS", str(missing))
        options = ("--presets", missing) if way == "option" else ()
        error = run.refused("bake", lora, "-p", "MIDD", "--dry-run", *options)
        assert f"error: {missing}: cannot be read: No such file" in error

    @pytest.mark.parametrize("options", [("-w", "MID=0.5"), ("-s", "0.5"), ("--token", "<lora:a:0.5>")], ids=" ".join)
    def test_also_where_no_preset_is_looked_up(
        self, options: tuple[str, ...], lora: Path, tmp_path: Path, run: Run
    ) -> None:
        """A typo that does nothing is said."""
        missing = tmp_path / "missing.yaml"
        error = run.refused("bake", lora, *options, "--dry-run", "--presets", missing)
        assert f"error: {missing}: cannot be read: No such file" in error


@pytest.fixture
def presets(tmp_path: Path) -> Callable[[str], Path]:
    """A presets file of this text."""

    def call(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return call


HALVES = ",".join(["0.5"] * 17)
# What presets.yaml may look like -> the weights it means for SD1.
VALID: dict[str, tuple[str, dict[str, float]]] = {
    "a vector": (f"P: {HALVES}", dict.fromkeys(SD1_BLOCKS, 0.5)),
    "a quoted vector": (f"P: '{HALVES}'", dict.fromkeys(SD1_BLOCKS, 0.5)),
    "a list": (f"P: [{HALVES}]", dict.fromkeys(SD1_BLOCKS, 0.5)),
    "a long list": ("P:\n" + "  - 0.5\n" * 17, dict.fromkeys(SD1_BLOCKS, 0.5)),
    "a mapping of blocks": ('P: {BASE: 1, IN07-MID: 0.5, "*": 0.25}', {"BASE": 1, "IN08": 0.5, "OUT00": 0.25}),
    "rules as text": ("P: BASE=1 IN07-MID=0.5 *=0.25", {"BASE": 1, "IN08": 0.5, "OUT00": 0.25}),
    "families": (f"P:\n  sd1: {HALVES}\n  sdxl: {{BASE: 1}}\n  description: x", dict.fromkeys(SD1_BLOCKS, 0.5)),
    "any family": (f"P:\n  weights: {HALVES}\n  flux: {{D07: 1}}", dict.fromkeys(SD1_BLOCKS, 0.5)),
    "a family before any": ("P:\n  weights: {MID: 1}\n  sd1: {MID: 0.5}", {"MID": 0.5}),
    "comments and a byte order mark": (f"\ufeff# a comment\nP: {HALVES}  # another\n", dict.fromkeys(SD1_BLOCKS, 0.5)),
    "windows lines": (f"P: {HALVES}\r\nQ: {HALVES}\r\n", dict.fromkeys(SD1_BLOCKS, 0.5)),
}


# What is wrong, the line it stands on, and what is said of it.
BROKEN: dict[str, tuple[str, int, str]] = {
    "no YAML": ("A: 1\nB: [1, 2\nC: 3\n", 3, "YAML"),
    "a tab": ("A:\n\tsd1: 1\n", 2, "YAML"),
    "a duplicate": (f"A: {HALVES}\nB: {HALVES}\nA: {HALVES}\n", 3, "twice"),
    "a duplicate key": ("A:\n  sd1: {MID: 1}\n  sd1: {MID: 0}\n", 3, "twice"),
    "an alias": (f"A: &a [{HALVES}]\nB: *a\n", 2, "alias"),
    "a merge": ("A: &a {MID: 1}\nB:\n  <<: *a\n", 3, "alias"),
    "a list of presets": (f"- A: {HALVES}\n", 1, "mapping"),
    "an unknown family": (f"A:\n  sd1: {HALVES}\n  sdlx: {HALVES}\n", 3, "sdlx"),
    "too deep": (f"A: {HALVES}\nB: {{sd1: {{MID: [1]}}}}\n", 2, ""),
    "an element rule without a weight": ("A: {elements: 'IN04:attn'}\n", 1, "IN04:attn"),
    "an element rule for no word": ("A: {elements: ':NOT:1'}\n", 1, "NOT names no word"),
    "a control character": (f"A: {HALVES}\nB: \x01\n", 2, ""),
}


HOSTILE = {
    "a Python object": b"A: !!python/object/apply:os.system ['touch pwned']\n",
    "not UTF-8": b"A: \xff\xfe\n",
    "UTF-16": "A: 1".encode("utf-16"),
    "a folder": None,
}


class TestFiles:
    @pytest.mark.parametrize(("text", "expected"), VALID.values(), ids=VALID)
    def test_they_can_be_written_in_many_ways(
        self, text: str, expected: dict[str, float], presets: Callable[[str], Path], weights: Weights
    ) -> None:
        got = weights("-p", "P", "--presets", presets(text))
        assert {block: got[block] for block in expected} == expected

    @pytest.mark.parametrize(
        "name", ["NO", "yes", "null", "1e3", "0.5", "off", "2024-01-01", "a b", "東京", "~", "0x1F"]
    )
    def test_names_are_text_whatever_yaml_would_make_of_them(
        self, name: str, presets: Callable[[str], Path], weights: Weights
    ) -> None:
        assert weights("-p", name, "--presets", presets(f"{name}: {HALVES}\n"))["MID"] == 0.5

    def test_a_layout_other_than_the_first_can_be_chosen(
        self, presets: Callable[[str], Path], weights: Weights
    ) -> None:
        path = presets(f"P:\n  sd1:\n    - {HALVES}\n    - {','.join(['0.25'] * 26)}\n")
        assert weights("-p", "P", "--presets", path)["IN00"] == 0
        assert weights("-p", "P", "--presets", path, "--layout", "26")["IN00"] == 0.25

    def test_a_family_without_an_entry_names_those_that_have_one(
        self, presets: Callable[[str], Path], lora: Path, run: Run
    ) -> None:
        path = presets("P:\n  sdxl: {MID: 1}\n  flux: {D07: 1}\n")
        error = run.refused("bake", lora, "-p", "P", "--presets", path, "--dry-run")
        assert "preset P has no entry for sd1" in error
        assert f"{path}:1: preset P has no entry for sd1" in error
        assert f"it has entries for flux, sdxl; add one to {path}" in error

    def test_one_that_hides_an_entry_says_where_that_is(
        self, presets: Callable[[str], Path], lora: Path, run: Run
    ) -> None:
        path = presets("# mine\nMIDD:\n  flux: {D07: 1}\n")
        error = run.refused("bake", lora, "-p", "MIDD", "--presets", path, "--dry-run")
        assert f"{path}:2: preset MIDD has no entry for sd1" in error
        builtin = load_presets()["MIDD"]
        assert f"hides that of {builtin.path}:{builtin.line}, which has one: rename it" in error

    @pytest.mark.parametrize("name", ["MIDD", "OUTS"])
    def test_the_extension_s_own_file_hides_other_families_meanings_aloud(
        self, name: str, tmp_path: Path, run: Run
    ) -> None:
        path = tmp_path / "lbwpresets.txt"
        path.write_text("".join(f"{name}:{values}\n" for name, values in EXTENSION.items()))
        builtin = load_presets()[name]
        line = [*EXTENSION].index(name) + 1
        files = {
            "sd1": unet_lora(),
            "sdxl": sdxl_lora(),
            "flux": kohya_lora(["unet_double_blocks_0_img_attn_proj", "unet_single_blocks_0_linear2"]),
        }
        said = {}
        for family, tensors in files.items():
            source = write(tmp_path / f"{family}.safetensors", tensors)
            _, _, said[family] = run("bake", source, "-p", name, "--presets", path, "--dry-run", "--family", family)
        hides = f"and hides that of {builtin.path}:{builtin.line}, which is: rename it"
        assert f"hint: {path}:{line}: preset {name} is not for flux {hides}" in said["flux"]
        assert f"{path}:{line}: preset {name} is not for sdxl {hides}" in said["sdxl"]
        assert "hides" not in said["sd1"]
        part = f"{tmp_path / 'sdxl.safetensors'}:1:{name}"
        assert hides in run.done("merge", part, "--presets", path, "-o", tmp_path / "m.safetensors")

    def test_nobody_is_told_to_change_the_built_in_file(self, lora: Path, run: Run) -> None:
        error = run.refused("bake", lora, "-p", "MIDD", "--layout", "12", "--dry-run")
        assert "preset MIDD has no entry for sd1 with 12 weights" in error
        assert "make your own: lbw presets add NAME WEIGHTS --family sd1" in error

    @pytest.mark.parametrize(
        ("text", "said", "hint"),
        [
            ("P: {D07: 1}", "preset P: sd1 has no block 'D07'", ""),
            ("P: X,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0", "preset P: weight 1 of 17 is X, a variable", "--x"),
            (
                "P: {weights: {MID: 1}, elements: 'D07:attn:1'}",
                "preset P: element rule D07:attn:1: sd1 has no block 'D07'",
                "",
            ),
        ],
    )
    def test_one_that_cannot_be_used_says_where_it_stands(
        self, text: str, said: str, hint: str, presets: Callable[[str], Path], lora: Path, run: Run
    ) -> None:
        path = presets(f"\n{text}\n")
        error = run.refused("bake", lora, "-p", "P", "--presets", path, "--dry-run")
        assert f"error: {lora}: {path}:2: {said}" in error
        assert hint in error.partition("\nhint: ")[2]

    JUNK = f"=== my presets ===\nFACE:{HALVES}\nMIDD:1,0,0\nINS\uff1a{HALVES}\n"

    def test_a_bad_line_of_another_tools_file_spoils_no_other(self, lora: Path, tmp_path: Path, run: Run) -> None:
        path = tmp_path / "lbwpresets.txt"
        path.write_text(self.JUNK, encoding="utf-8")
        said = f"{path}: 3 lines cannot be used, first line 1: '=== my presets ===' has no colon"
        bake = ("bake", lora, "--presets", path, "--dry-run")
        assert f"warning: {lora}: {said}" in run.done(*bake, "-p", "FACE")
        assert said in run.refused(*bake, "-p", "FACE", "--strict")
        assert f"warning: {said}" in run.done("presets", "list", "--presets", path)
        merge = ("merge", f"{lora}:1:FACE", lora, "--presets", path, "-o", tmp_path / "b.safetensors")
        assert run.done(*merge).count(said) == 1
        assert said not in run.done(*bake, "-p", "OUTALL")

    @pytest.mark.parametrize(("name", "line"), [("MIDD", 3), ("INS", 4)])
    def test_a_bad_line_never_means_the_built_in_preset_instead(
        self, name: str, line: int, lora: Path, tmp_path: Path, run: Run
    ) -> None:
        path = tmp_path / "lbwpresets.txt"
        path.write_text(self.JUNK, encoding="utf-8")
        error = run.refused("bake", lora, "--presets", path, "--dry-run", "-p", name)
        assert error.startswith(f"error: {path}:{line}: ")
        assert f"lbw validate {path} shows all there is" in error

    def test_a_bad_entry_of_an_elempresets_file_spoils_no_other(self, lora: Path, tmp_path: Path, run: Run) -> None:
        path = tmp_path / "elempresets.txt"
        path.write_text("A:IN05:proj:1\n\nB:IN05:proj:0\nC:IN05:proj:0.5\n\nD:MID:proj:0\n")
        asked = ("bake", lora, "-w", "*=1", "--presets", path, "--dry-run", "--element-preset")
        for name in "ABD":
            run.done(*asked, name)
        assert f"{path}:4: C needs an empty line before it" in run.refused(*asked, "C")
        said = f"{path}: 1 line cannot be used, first line 4: C needs an empty line before it"
        assert f"warning: {lora}: {said}" in run.done(*asked, "A")
        assert said in run.refused(*asked, "A", "--strict")
        assert said not in run.done(*asked, "ATTNDEEPON")

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("presets.yaml", f"FACE: {HALVES}\nB: 1,0,0\n"),
            ("lbwpresets.txt", "=== my presets ===\nMIDD:1,0,0\n"),
            ("lbwpresets.txt", f"FACE:{HALVES}\n" + "x\n" * 300),
        ],
    )
    def test_other_files_with_errors_are_not_used(self, name: str, text: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(PresetError, match=r"\(LBW\d+\)") as problem:
            load_presets(tmp_path / name)
        assert "shows all there is" in problem.value.hint

    def test_one_is_not_blamed_for_an_element_rule_beside_it(self, lora: Path, run: Run) -> None:
        error = run.refused("bake", lora, "-p", "MIDD", "--element", "D07:attn:1", "--dry-run")
        assert f"error: {lora}: element rule D07:attn:1: sd1 has no block 'D07'" in error

    @pytest.mark.parametrize(("text", "line", "said"), BROKEN.values(), ids=BROKEN)
    def test_what_is_wrong_is_said_with_its_line(
        self, text: str, line: int, said: str, presets: Callable[[str], Path], lora: Path, tmp_path: Path, run: Run
    ) -> None:
        path = presets(text)
        error = run.refused("bake", lora, "-p", "A", "--presets", path, "-o", tmp_path / "b.safetensors")
        assert error.startswith(f"error: {path}:{line}: ")
        assert said in error
        assert not (tmp_path / "b.safetensors").exists()

    @pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
    def test_a_hostile_file_is_an_error_not_a_traceback(
        self, content: bytes | None, lora: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "evil.yaml"
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
        error = run.refused("bake", lora, "-p", "A", "--presets", path, "--dry-run")
        assert error.startswith(f"error: {path}")
        assert not (tmp_path / "pwned").exists()


def test_the_built_in_file_is_the_one_at_the_root_of_the_repository(weights: Weights) -> None:
    assert weights("-p", "MIDD", "--presets", ROOT / "presets.yaml") == values_of("MIDD")


# A preset, the family asked for, and what is drawn: a character per block, gaps between kinds of blocks.
BARS = {
    "A: 0,0.5,1,0,1,0,1,0,1,0,1,0": ("", "▁ ▅█▁█ ▁ █▁█▁█▁"),
    "A: -1,2,1,0,1,0,1,0,1,0,1,0": ("", "- +█▁█ ▁ █▁█▁█▁"),
    "A: R,X,1,0,1,0,1,0,1,0,1,0": ("", "? ?█▁█ ▁ █▁█▁█▁"),
    "A: 1,1,1,1,1,1,1,1,1,1,1,1": ("flux", ""),
    "A: {sdxl: {MID: X}}": ("", ""),
    "A: {sdxl: {MID: 1}}": ("flux", ""),
    "A: {elements: 'IN05:attn:1'}": ("", ""),
}


@pytest.mark.parametrize("text", BARS)
def test_weights_are_seen_at_a_glance(text: str, tmp_path: Path, run: Run) -> None:
    family, drawn = BARS[text]
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    listed = run("presets", "list", "--presets", tmp_path / "mine.yaml", *(("--family", family) if family else ()))[1]
    line = next(line for line in listed.splitlines() if line.startswith("A "))
    assert drawn in line
    assert not set(line) & set("▁▂▃▄▅▆▇█?+") - set(drawn)


@pytest.mark.parametrize("content", [b"\xff\xfeA", b"- ["], ids=["no text", "no YAML"])
def test_a_file_that_cannot_be_read_is_not_added_to(content: bytes, tmp_path: Path, run: Run) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_bytes(content)
    error = run.refused("presets", "add", "A", "IN04=1", "--presets", mine)
    assert str(mine) in error
    assert mine.read_bytes() == content
