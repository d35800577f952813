"""Preset files: each is read as it says, each defect is found where it stands, and conversion loses nothing unsaid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, get_args

import jsonschema
import pytest
import yaml
from conftest import ROOT, Run
from hypothesis import given
from hypothesis import strategies as st

from lbw_bake import cli_presets, reports
from lbw_bake.checks import check
from lbw_bake.errors import PresetError
from lbw_bake.families import FAMILIES, family_named
from lbw_bake.presets import Preset
from lbw_bake.presets.editing import with_preset, without_preset
from lbw_bake.presets.findings import RULES
from lbw_bake.presets.formats import READERS, kind_of, parse_presets, read_document, read_presets
from lbw_bake.presets.model import Entry
from lbw_bake.presets.schema import preset_schema
from lbw_bake.presets.writers import WRITERS, source_text
from lbw_bake.weights import Vector, parse_elements, parse_source, resolve

DATA = Path(__file__).parent / "data" / "presets"


def files_of(folder: str) -> list[Path]:
    return sorted(path for path in (DATA / folder).iterdir() if path.suffix != ".json")


def expected_of(path: Path) -> object:
    return json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))


def said(preset: Preset) -> dict[str, object]:
    """What a preset says, without where it stands."""
    facts = {
        "entries": [[entry.family, source_text(entry.source)] for entry in preset.entries],
        "elements": list(map(str, preset.elements)),
        "description": preset.description,
    }
    return {name: fact for name, fact in facts.items() if fact}


VALID = pytest.mark.parametrize("path", files_of("valid"), ids=lambda path: path.name)
INVALID = pytest.mark.parametrize("path", files_of("invalid"), ids=lambda path: path.name)


class TestReading:
    @VALID
    def test_a_valid_file_says_what_is_written_beside_it(self, path: Path) -> None:
        assert {preset.name: said(preset) for preset in read_presets(path)} == expected_of(path)
        assert check(path.read_bytes(), path).findings == ()

    @INVALID
    def test_each_defect_is_found_once_where_it_stands(self, path: Path) -> None:
        found = [
            {
                "line": finding.line,
                "column": finding.column,
                "severity": finding.rule.severity,
                "code": finding.code,
                "name": finding.name,
            }
            for finding in check(path.read_bytes(), path).findings
        ]
        assert found == expected_of(path)

    @pytest.mark.parametrize(
        ("text", "code", "remedy"),
        [
            ("A: 1 0 0.5 1", "LBW310", "separate the values with commas: 1,0,0.5,1"),
            ("A: 1,1,1,1,1,1,1,1,1,1,1,1 0", "LBW310", "give each block one value"),
            ("A: IN04:0.5", "LBW303", "write IN04=0.5"),
            ("A: {flux: {D0-D09: 1}}", "LBW403", "did you mean D00?"),
            ("A: {IN04..IN08: 1}", "LBW403", "write the range as IN04-IN08"),
            ('A: {IN04: 0, "": 1}', "LBW403", "write * for all blocks no rule names"),
        ],
    )
    def test_a_slip_is_answered_with_the_right_spelling(self, text: str, code: str, remedy: str) -> None:
        findings = read_document(text.encode(), Path("x.yaml")).findings
        assert [(one.code, one.remedy) for one in findings if one.code == code] == [(code, remedy)]

    @INVALID
    def test_loading_refuses_what_checking_calls_an_error(self, path: Path) -> None:
        findings = read_document(path.read_bytes(), path).findings
        first = next((finding for finding in findings if finding.is_error), None)
        if first is None:
            read_presets(path)
            return
        with pytest.raises(PresetError) as problem:
            read_presets(path)
        assert problem.value.message == f"{path}:{first.line}: {first.message} ({first.code})"

    def test_every_rule_is_broken_by_a_file(self) -> None:
        broken = {finding["code"] for path in files_of("invalid") for finding in expected_of(path)}  # type: ignore[attr-defined]
        assert broken == RULES.keys() - {"LBW112"}  # of what is no file to be read

    def test_the_built_in_file_is_clean_and_means_something_everywhere(self) -> None:
        path = ROOT / "presets.yaml"
        assert check(path.read_bytes(), path).findings == ()
        for preset in read_presets(path):
            for family in FAMILIES.values():
                if preset.entries:
                    resolve(preset.source_for(family), family)

    @given(text=st.text(), kind=st.sampled_from(sorted(READERS)))
    def test_any_text_at_all_is_read_or_found_wrong(self, text: str, kind: str) -> None:
        path = Path("x")
        document = READERS[kind].read(text, path)
        assert document.presets or document.findings or kind == "inspire"  # a file of macros holds no presets
        for finding in document.findings:
            assert finding.code in RULES
            assert finding.line >= 1
            assert finding.column >= 1

    # What a line of these formats is made of, so that more than the first check is met.
    LINES = st.lists(
        st.lists(st.sampled_from([*"01,:#.-RXArx \t", "NAME", "IN05", "NOT ", "0.5", ",,", ": ", "\n", "\n\n"])).map(
            "".join
        )
    ).map("\n".join)

    @given(text=LINES, kind=st.sampled_from(sorted(READERS)))
    def test_a_file_without_errors_survives_writing_and_reading(self, text: str, kind: str) -> None:
        document = READERS[kind].read(text, Path("x"))
        if any(finding.is_error for finding in document.findings):
            return
        written = WRITERS["yaml"](document.presets, None)
        again = parse_presets(written.text, Path("y"))
        assert {preset.name: said(preset) for preset in again} == {
            preset.name: said(preset) for preset in document.presets
        }


class TestKinds:
    def test_the_command_line_knows_all(self) -> None:
        assert set(get_args(cli_presets.Kind)) == READERS.keys() == WRITERS.keys()
        assert set(get_args(cli_presets.Format)) == reports.FORMATS.keys()

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("presets.yaml", "yaml"),
            ("MINE.YML", "yaml"),
            ("lbwpresets.txt", "lbwpresets"),
            ("my_presets.txt", "lbwpresets"),
            ("elempresets.txt", "elempresets"),
            ("lbw-preset.txt", "inspire"),
            ("lbw-preset.custom.txt", "inspire"),
            ("lbw-preset.custom.txt.example", "inspire"),
        ],
    )
    def test_the_name_tells(self, name: str, kind: str) -> None:
        assert kind_of(Path("folder") / name, "") == kind

    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("FACE:1,0,0,0,0,0,0,0,1,1,1,0", "lbwpresets"),
            ("FACE: 1,0,0,0,0,0,0,0,1,1,1,0", "lbwpresets"),
            ("# words\n\nFACE:1,0", "lbwpresets"),
            ("FACE: {BASE: 1}", "yaml"),
            ("FACE:\n  sd1: 1,0", "yaml"),
            ("FACE: [1, 0]", "yaml"),
            ("ATTN:IN05-OUT05:attn:1", "elempresets"),
            ("ATTN:::1", "elempresets"),
            ("SD:1,0\n@SD-FULL-TEST:17\n", "inspire"),
            (f"MINE:{','.join('1' * 17)}\nSD-LyC-INALL:{','.join('1' * 27)}", "inspire"),
            (f"SDXL-LyC-ALL: {','.join('1' * 21)}", "inspire"),
            (f"FLUX-SINGLE-1to10:{','.join('1' * 58)}", "inspire"),
            # One value too many is no other tool's length.
            (f"MINE:{','.join('1' * 27)}", "lbwpresets"),
            (f"SD-LyC-ALL:{','.join('1' * 26)}", "lbwpresets"),
            ("", "lbwpresets"),
        ],
    )
    def test_or_else_the_content(self, text: str, kind: str) -> None:
        assert kind_of(Path("-"), text) == kind

    @pytest.mark.parametrize("count", [21, 27, 58])
    def test_where_neither_does_lengths_of_another_tool_lead_there(self, count: int) -> None:
        (finding,) = read_document(f"MINE:{','.join('1' * count)}".encode(), Path("x.txt")).findings
        assert "name the file lbw-preset.txt if it is one of the Inspire Pack" in finding.remedy


class TestChoosing:
    """Which entry of a preset speaks of a family."""

    @staticmethod
    def preset(*entries: tuple[str | None, int]) -> Preset:
        vectors = ((family, Vector(tuple(map(str, range(length))))) for family, length in entries)
        return Preset("P", tuple(Entry(family, vector, 1) for family, vector in vectors), Path("p.yaml"), 1)

    @pytest.mark.parametrize(
        ("entries", "family", "length"),
        [
            ([(None, 17), (None, 12)], "sd1", 17),
            ([(None, 17), (None, 12)], "sdxl", 12),
            ([(None, 17), (None, 61)], "flux", 61),
            ([(None, 26), (None, 17)], "sd1", 26),
            ([(None, 17), ("sdxl", 20)], "sdxl", 20),
            ([(None, 17)], "sdxl", 17),
            ([(None, 61), (None, 17)], "sdxl", 17),
            ([("sd1", 17), ("sd1", 26)], "sd2", 17),
        ],
    )
    def test_the_family_s_own_length_comes_first(
        self, entries: list[tuple[str | None, int]], family: str, length: int
    ) -> None:
        source = self.preset(*entries).source_for(family_named(family))
        assert isinstance(source, Vector)
        assert len(source.values) == length


class TestInspire:
    """The Inspire Pack's own lengths, by name."""

    @pytest.fixture
    def presets(self) -> dict[str, Preset]:
        return {preset.name: preset for preset in read_presets(DATA / "valid" / "lengths_lbw-preset.txt")}

    @pytest.mark.parametrize(
        ("name", "family", "expected"),
        [
            ("LYC", "sd1", {"BASE": 0.5, "IN00": 0, "IN01": 0.1, "IN11": 0.1, "MID": 0.2, "OUT00": 0.3, "OUT11": 0.3}),
            ("LYCXL", "sdxl", {"BASE": 0.5, "IN00": 0, "IN08": 0.1, "MID": 0.2, "OUT00": 0.3, "OUT08": 0.3}),
            ("FLUX", "flux", {"CLIP": 0.5, "T5": 0.5, "IN": 0.5, "OUT": 0.5, "D18": 0.1, "S00": 0.2, "S37": 0.2}),
        ],
    )
    def test_values_go_to_blocks_by_name(
        self, name: str, family: str, expected: dict[str, float], presets: dict[str, Preset]
    ) -> None:
        chosen = family_named(family)
        weights = resolve(presets[name].source_for(chosen), chosen).blocks
        assert {block: weights[block] for block in expected} == expected

    def test_twenty_values_mean_what_the_model_says(self) -> None:
        text = "DOUBLE:" + ",".join(str(i / 100) for i in range(20))
        (preset,) = parse_presets(text, Path("x"), "inspire")
        sdxl, flux = (
            resolve(preset.source_for(family), family).blocks for family in map(family_named, ("sdxl", "flux"))
        )
        assert [sdxl[block] for block in ("BASE", "IN00", "OUT08")] == [0, 0.01, 0.19]
        assert [flux[block] for block in ("T5", "IN", "D00", "D18", "S00", "S37")] == [0, 0, 0.01, 0.19, 0.19, 0.19]


class TestConverting:
    """`lbw presets convert`: the way there and back, and what is said of what cannot go."""

    TEXTS: ClassVar = {
        "lbwpresets": "FACE:1,.5,0,X+0.2,R,U,-1,0,1,1,1,0,0,0,0,0,0\n顔 (2):1,0,0,0,0,0,1,1,1,0,0,0\n",
        "elempresets": "A:IN05-OUT05:attn:1\n\nB:NOT BASE:NOT attn proj:0.5\n::0\n",
        "inspire": "FACE:1,0.5,0,A,b,B,-1,0,1,1,1,0,0,0,0,0,0\nXL:1,0,0,0,0,0,1,1,1,0,0,0\n",
    }

    @pytest.mark.parametrize(("kind", "text"), TEXTS.items(), ids=TEXTS)
    def test_text_to_yaml_and_back_is_the_same_text(self, kind: str, text: str, tmp_path: Path, run: Run) -> None:
        source, middle, back = tmp_path / "source", tmp_path / "middle.yaml", tmp_path / "back"
        source.write_text(text, encoding="utf-8")
        code, out, error = run("presets", "convert", source, middle, "--from", kind)
        assert (code, out, error) == (0, "", f"written: {middle} (yaml, 2 presets read)\n")
        code, out, error = run("presets", "convert", middle, back, "--to", kind)
        assert (code, out, error) == (0, "", f"written: {back} ({kind}, 2 presets read)\n")
        assert back.read_text(encoding="utf-8") == text

    def test_a_name_for_several_lengths_becomes_one_list(self) -> None:
        """The vectors that fit any family stand together, whatever stands between them in the file."""
        lines = [",".join(["1"] + ["0.5"] * more) for more in (19, 16)]
        (preset,) = parse_presets("".join(f"A:{line}\n" for line in lines), Path("x"), "inspire")
        assert [entry.family for entry in preset.entries] == [None, "flux", None]
        (again,) = parse_presets(WRITERS["yaml"]([preset], None).text, Path("x.yaml"))
        assert [source_text(entry.source) for entry in again.entries if entry.family is None] == lines

    @VALID
    def test_every_valid_file_survives_yaml(self, path: Path, tmp_path: Path) -> None:
        written = WRITERS["yaml"](read_presets(path), None)
        assert written.lost == ()
        (tmp_path / "x.yaml").write_text(written.text, encoding="utf-8")
        again = read_presets(tmp_path / "x.yaml")
        assert {preset.name: said(preset) for preset in again} == expected_of(path)
        assert check(written.text.encode(), tmp_path / "x.yaml").findings == ()

    @pytest.mark.parametrize("family", ["sd1", "sdxl", "flux"])
    @pytest.mark.parametrize("kind", ["lbwpresets", "inspire"])
    def test_the_built_in_presets_keep_their_meaning(self, kind: str, family: str) -> None:
        chosen = family_named(family)
        builtin = [preset for preset in read_presets(ROOT / "presets.yaml") if preset.entries]
        written = WRITERS[kind](builtin, chosen)
        again = {preset.name: preset for preset in parse_presets(written.text, Path("x"), kind)}
        lost = "\n".join(written.lost)
        for preset in builtin:
            ours = resolve(preset.source_for(chosen), chosen).blocks
            if preset.name not in again:
                assert f"{preset.name}: its weights" in lost
                continue
            assert resolve(again[preset.name].source_for(chosen), chosen).blocks == ours
        # All go into lbwpresets.txt; the Inspire Pack has one value for the encoders, IN and OUT of Flux.
        expected = {preset.name for preset in builtin}
        if kind == "lbwpresets":
            assert again.keys() == expected
        else:
            assert len(again) >= 3

    LOST: ClassVar = {
        "comments": ("# one\n# two\nA: {MID: 1}\n", "yaml", "2 comment lines"),
        "families": ("A:\n  sd1: {MID: 1}\n  sdxl: {MID: 1}\n", "lbwpresets", "A: its entries for sdxl"),
        "elements": ("A:\n  sd1: {MID: 1}\n  elements: IN05:attn:1\n", "lbwpresets", "A: its element rules"),
        "weights": ("A:\n  sd1: {MID: 1}\n  elements: IN05:attn:1\n", "elempresets", "A: its weights"),
        "a depth": ("A:\n  elements: 25%-75%:attn:1\n", "elempresets", "A: element rule 25%-75%:attn:1"),
        "no block": ("A:\n  elements: OTHER:attn:1\n", "elempresets", "A: element rule OTHER:attn:1"),
        "a block of others": ("A:\n  elements: IN05 TE:attn:1\n", "elempresets", "A: element rule IN05 TE:attn:1"),
        "a range of letters": ("A:\n  elements: IN-MID:attn:1\n", "elempresets", "A: element rule IN-MID:attn:1"),
        "a family without a vector": ("A:\n  qwen_image: {'*': 1}\n", "lbwpresets", "A: its weights for qwen_image"),
        "rules for any family": ("A: {'*': 1}\n", "lbwpresets", "A: its weights for any family"),
        "a variable in rules": ("A:\n  sd1: {MID: X}\n", "lbwpresets", "A: its weights: the weight of MID is X"),
        "another tool's variable": ("A: 1,1,1,1,1,1,1,1,1,1,1,A\n", "lbwpresets", "the extension does not know A"),
        "another range": ("A: 1,1,1,1,1,1,1,1,1,1,1,R\n", "inspire", "the Inspire Pack draws R from another range"),
        "one value for several blocks": (
            "A:\n  flux: {IN: 1, '*': 0}\n",
            "inspire",
            "BASE, IN, OUT must have one value",
        ),
        "a block without a value": ("A:\n  sd1: {IN00: 1}\n", "inspire", "A: its weights for IN00"),
        "a name with the sign of a comment": (f"C#: {','.join('1' * 17)}\n", "lbwpresets", "C#: all of it"),
        "a name like a macro": (f"'@M': {','.join('1' * 17)}\n", "inspire", "@M: all of it"),
        "a weight of no block": ("A:\n  sd1: {MID: 1, OTHER: 0}\n", "lbwpresets", "A: its weight for OTHER"),
        "a description": (
            "A:\n  description: hello\n  weights: 1,1,1,1,1,1,1,1,1,1,1,1\n",
            "inspire",
            "its description",
        ),
    }

    @pytest.mark.parametrize(("text", "kind", "lost"), LOST.values(), ids=LOST)
    def test_what_has_no_place_is_said(self, text: str, kind: str, lost: str, tmp_path: Path, run: Run) -> None:
        source = tmp_path / "in.yaml"
        source.write_text(text)
        error = run.done("presets", "convert", source, tmp_path / "out", "--to", kind)
        assert any(line.startswith("lost: ") and lost in line for line in error.splitlines())

    @pytest.mark.parametrize(
        ("rule", "written"),
        [
            ("not in05 mid:not attn:0", "NOT IN05 M00:NOT attn:0"),
            ("In05-Mid  out:Not  attn2.to_k ff.net:0.5", "IN05-M00 OUT:NOT attn2_to_k ff_net:0.5"),
            ("D00-D18 S IN:notable:1", "D00-D18 S IN:notable:1"),
            ("*:attn:1", ":attn:1"),
        ],
    )
    def test_element_rules_are_spelled_as_the_extension_reads_them(self, rule: str, written: str) -> None:
        made = WRITERS["elempresets"]([added("A", "", elements=rule)], None)
        assert (made.text, made.lost) == (f"A:{written}\n", ())
        assert read_document(made.text.encode(), Path("x"), "elempresets").findings == ()

    @pytest.mark.parametrize(
        ("kind", "text", "lost"),
        [
            (
                "lbwpresets",
                f"my presets\nA:{','.join('1' * 17)}\nB:{','.join('1' * 17)},\nC\uff1a1\uff0c0\n",
                ["1: 'my presets' has no colon", "3: comma after the last value", "4: full-width colon"],
            ),
            ("inspire", f"A:{','.join('1' * 12)}\nB:1,0\n@x\n", ["2: 2 values", "3: '@x' is no analyser macro"]),
            ("elempresets", "A:IN05:attn:1\n\nB:IN05:attn\n", ["3: element rule 'IN05:attn' has 1 colon"]),
        ],
    )
    def test_a_line_with_an_error_is_lost_and_the_others_are_converted(
        self, kind: str, text: str, lost: list[str], tmp_path: Path, run: Run
    ) -> None:
        source, target = tmp_path / "in", tmp_path / "out.yaml"
        source.write_text(text, encoding="utf-8")
        error = run.done("presets", "convert", source, target, "--from", kind)
        _, *said = error.splitlines()
        assert len(said) == len(lost)
        for line, start in zip(said, lost, strict=True):
            assert line.startswith(f"lost: line {start}")
        assert [preset.name for preset in read_presets(target)] == ["A"]

    @pytest.mark.parametrize(("kind", "text"), [("yaml", "A: {MID: 1}\nB: 1,0\n"), ("lbwpresets", "A:1,0\n")])
    def test_nothing_is_converted_where_nothing_can_be_told_apart(
        self, kind: str, text: str, tmp_path: Path, run: Run
    ) -> None:
        (tmp_path / "in").write_text(text)
        assert "(LBW301)" in run.refused("presets", "convert", tmp_path / "in", tmp_path / "out.yaml", "--from", kind)
        assert not (tmp_path / "out.yaml").exists()

    def test_a_description_becomes_a_comment(self, tmp_path: Path, run: Run) -> None:
        source = tmp_path / "in.yaml"
        source.write_text("A:\n  description: sharper\n  sdxl: {MID: 0.5}\n")
        code, out, error = run("presets", "convert", source, "-", "--to", "lbwpresets")
        assert (code, error) == (0, "")
        assert out == f"# sharper\nA:{','.join(['0'] * 10)},0.5,{','.join(['0'] * 9)}\n"

    def test_an_existing_file_is_kept(self, tmp_path: Path, run: Run) -> None:
        source, target = DATA / "valid" / "shapes.yaml", tmp_path / "out.yaml"
        target.write_text("mine")
        run.refused("presets", "convert", source, target)
        assert target.read_text() == "mine"
        run.done("presets", "convert", source, target, "--force")
        assert target.read_text() != "mine"

    @pytest.mark.parametrize("numbers", ["1e-2", ".5", "+1", "1."])
    def test_numbers_are_spelled_as_the_tool_reads_them(self, numbers: str) -> None:
        text = f"A: {numbers},1,1,1,1,1,1,1,1,1,1,1\n"
        written = WRITERS["inspire"](parse_presets(text, Path("x")), None)
        assert read_document(written.text.encode(), Path("x"), "inspire").findings == ()
        assert float(written.text.split(":")[1].split(",")[0]) == float(numbers)

    @pytest.mark.parametrize("count", [12, 17, 20, 26, 61])
    def test_a_vector_of_the_extensions_is_written_as_it_is(self, count: int) -> None:
        text = f"A:X,R,{','.join(['0.50'] * (count - 2))}\n"
        (preset,) = parse_presets(text, Path("x"), "lbwpresets")
        written = WRITERS["lbwpresets"]([preset], None)
        assert (written.text, written.lost) == (text, ())


class TestSchema:
    def test_it_is_a_schema_and_the_built_in_file_follows_it(self, run: Run) -> None:
        jsonschema.Draft202012Validator.check_schema(run.json("presets", "schema"))
        for path in (ROOT / "presets.yaml", DATA / "valid" / "shapes.yaml"):
            # As text: PyYAML's schema is that of YAML 1.1, where NO is a boolean.
            jsonschema.validate(yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader), preset_schema())

    @pytest.mark.parametrize(
        "value",
        [
            "1",
            "NAME",
            [1],
            {},
            {"sdlx": "1,0"},
            {"IN04": "abc"},
            {"sd1": {"IN04": None}},
            {"elements": "IN05:attn"},
            None,
        ],
        ids=str,
    )
    def test_it_knows_what_is_wrong(self, value: object) -> None:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"A": value}, preset_schema())


MINE = """# My presets.

FACE: 1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0  # of her
# about the body
BODY:
  description: all but the face   # a note
  sd1: 1,1,1,1,1,1,1,1,0,0,0,1,1,1,1,1,1  # measured
  # for XL
  sdxl:
    BASE: 1
    "*": 0.5   # the rest

"LAST ONE": {MID: 1}  # the end
"""
PATH = Path("mine.yaml")


def added(name: str, weights: str = "MID=1", family: str | None = None, **more: str) -> Preset:
    entries = (Entry(family, parse_source(weights), 1),) if weights else ()
    elements = parse_elements(more["elements"]) if "elements" in more else ()
    return Preset(name, entries, PATH, 1, more.get("description", ""), elements)


class TestEditing:
    """One preset changes; every other line stays as it was."""

    CASES: ClassVar = {
        "a new one": (added("NEW"), MINE + "NEW: {MID: 1}\n"),
        "a new one with more": (
            added("NEW", "1,1,1,1,1,1,1,1,1,1,1,1", "sdxl", description="a: b", elements="IN05:attn:1"),
            MINE + 'NEW:\n  description: "a: b"\n  sdxl: 1,1,1,1,1,1,1,1,1,1,1,1\n  elements: IN05:attn:1\n',
        ),
        "another vector": (added("FACE"), MINE.replace("1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0", "{MID: 1}")),
        "a family beside a vector": (
            added("FACE", family="sdxl"),
            MINE.replace(
                " 1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0  # of",
                "\n  weights: 1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0\n  sdxl: {MID: 1}  # of",
            ),
        ),
        "one more family": (
            added("BODY", family="flux", weights="D07=1"),
            MINE.replace("# the rest\n", "# the rest\n  flux: {D07: 1}\n"),
        ),
        "another value of a family": (
            added("BODY", family="sd1"),
            MINE.replace("1,1,1,1,1,1,1,1,0,0,0,1,1,1,1,1,1", "{MID: 1}"),
        ),
        "another block of a family": (
            added("BODY", family="sdxl"),
            MINE.replace('  sdxl:\n    BASE: 1\n    "*": 0.5   #', "  sdxl: {MID: 1}   #"),
        ),
        "elements": (
            added("LAST ONE", "", elements="IN05:attn:1"),
            MINE.replace(" {MID: 1}  # the", "\n  weights: {MID: 1}\n  elements: IN05:attn:1  # the"),
        ),
    }

    @pytest.mark.parametrize(("preset", "expected"), CASES.values(), ids=CASES)
    @pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
    def test_adding(self, preset: Preset, expected: str, newline: str) -> None:
        text = MINE.replace("\n", newline)
        assert with_preset(text, PATH, preset, replacing=True) == expected.replace("\n", newline)

    @pytest.mark.parametrize("preset", [added("FACE"), added("BODY", family="sd1"), added("BODY", description="x")])
    def test_what_is_there_is_not_replaced_unasked(self, preset: Preset) -> None:
        with pytest.raises(PresetError, match="already") as problem:
            with_preset(MINE, PATH, preset)
        assert "--force" in problem.value.hint

    # An entry that is there, the family one is added for, and whether the preset means something for it already.
    SPOKEN_FOR: ClassVar = {
        "blocks it has": ("{MID: 1}", "sd1", True),
        "blocks it lacks": ("{D07: 1}", "sd1", False),
        "as many as it has": (",".join("1" * 17), "sd2", True),
        "with variables": ("X," + ",".join("1" * 16), "sd1", True),
        "as many as a relative has": (",".join("1" * 17), "sdxl", False),
        "as many as no relative has": (",".join("1" * 17), "flux", False),
        "a family that it follows": ("{sd1: {MID: 1}}", "sd2", True),
        "another family": ("{sd1: {MID: 1}}", "sdxl", False),
    }

    @pytest.mark.parametrize(("entry", "family", "spoken_for"), SPOKEN_FOR.values(), ids=SPOKEN_FOR)
    def test_what_it_means_for_a_family_does_not_change_unasked(
        self, entry: str, family: str, spoken_for: bool
    ) -> None:
        text = f"A: {entry}\n"
        more = added("A", "*=0.5", family)
        assert f"{family}: " in with_preset(text, PATH, more, replacing=True)
        if not spoken_for:
            assert with_preset(text, PATH, more) == with_preset(text, PATH, more, replacing=True)
            return
        with pytest.raises(PresetError, match=f"mine.yaml:1: preset A has weights for {family} already") as problem:
            with_preset(text, PATH, more)
        assert "--force" in problem.value.hint

    REMOVED: ClassVar = {
        "FACE": MINE.replace("FACE: 1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0  # of her\n", ""),
        "LAST ONE": MINE.replace('"LAST ONE": {MID: 1}  # the end\n', ""),
        "BODY": "".join(line for i, line in enumerate(MINE.splitlines(keepends=True), 1) if not 5 <= i <= 11),
    }

    @pytest.mark.parametrize(("name", "expected"), REMOVED.items(), ids=REMOVED)
    def test_removing(self, name: str, expected: str) -> None:
        assert without_preset(MINE, PATH, name) == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", "NEW: {MID: 1}\n"),
            ("A: {MID: 1}", "A: {MID: 1}\nNEW: {MID: 1}\n"),
            ("# only\n", "# only\nNEW: {MID: 1}\n"),
        ],
    )
    def test_odd_files(self, text: str, expected: str) -> None:
        assert with_preset(text, PATH, added("NEW")) == expected

    def test_a_last_line_need_not_end(self) -> None:
        text = "A: {MID: 1}\nB:\n  sd1: {MID: 1}"
        assert with_preset(text, PATH, added("B", family="flux", weights="D07=1")) == f"{text}\n  flux: {{D07: 1}}"
        assert without_preset(text, PATH, "B") == "A: {MID: 1}\n"
        assert without_preset("A: {MID: 1}", PATH, "A") == ""

    @pytest.mark.parametrize("text", ["{A: {MID: 1}}\n", "A: {MID: 1}\n...\n"])
    def test_a_file_that_cannot_take_it_is_left_alone(self, text: str) -> None:
        with pytest.raises(PresetError, match="cannot be changed"):
            with_preset(text, PATH, added("NEW"))

    def test_a_file_with_errors_is_left_alone(self) -> None:
        with pytest.raises(PresetError, match="LBW501"):
            with_preset("A: [\n", PATH, added("NEW"))


class TestCommands:
    """`lbw presets` on a file of one's own."""

    @pytest.fixture
    def own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        return tmp_path / "lbw" / "presets.yaml"

    def test_add_list_show_remove(self, own: Path, run: Run) -> None:
        vector = "-0.5,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0"
        code, out, error = run("presets", "add", "FACE", vector, "-d", "sharper faces")
        assert (code, out, error) == (0, "", f"written: FACE to {own}\n")
        run.done("presets", "add", "FACE", "BASE=1 IN07-MID=0.5", "--family", "sdxl")
        assert own.read_text() == (
            f"FACE:\n  description: sharper faces\n  weights: {vector}\n  sdxl: {{BASE: 1, IN07-MID: 0.5}}\n"
        )
        (line,) = (line for line in run.out("presets", "list").splitlines() if line.startswith("FACE "))
        assert "- ▁▁▁▁▁▁ ▁ ███▁▁▁▁▁▁" in line
        assert "17 values, sdxl" in line
        assert "yours" in line
        assert "sharper faces" in line
        shown = run.json("presets", "show", "FACE", "--family", "sdxl", "--json")
        assert {block: shown["weights"][block] for block in ("BASE", "IN08", "OUT00")} == {
            "BASE": 1,
            "IN08": 0.5,
            "OUT00": 0,
        }
        run.done("presets", "remove", "FACE")
        assert own.read_text() == ""

    def test_a_wrong_vector_changes_nothing(self, own: Path, run: Run) -> None:
        own.parent.mkdir()
        own.write_text("A: {MID: 1}\n")
        error = run.refused("presets", "add", "B", "1,0,0")
        assert "LBW301" in error
        assert "3 values" in error
        assert own.read_text() == "A: {MID: 1}\n"

    def test_a_link_stays_a_link(self, own: Path, tmp_path: Path, run: Run) -> None:
        target = tmp_path / "dotfiles.yaml"
        target.write_text("A: {MID: 1}\n")
        own.parent.mkdir()
        own.symlink_to(target)
        run.done("presets", "add", "B", "MID=1")
        assert own.is_symlink()
        assert target.read_text() == "A: {MID: 1}\nB: {MID: 1}\n"

    def test_another_file_can_be_changed_but_only_yaml(self, tmp_path: Path, run: Run) -> None:
        other = tmp_path / "other.yaml"
        run.done("presets", "add", "B", "MID=1", "--presets", other)
        assert other.read_text() == "B: {MID: 1}\n"
        error = run.refused("presets", "add", "B", "MID=1", "--presets", tmp_path / "lbwpresets.txt")
        assert "lbw presets convert" in error

    def test_a_built_in_one_is_replaced_with_a_warning_but_not_removed(self, own: Path, run: Run) -> None:
        error = run.refused("presets", "remove", "MIDD")
        assert error.splitlines()[0] == "error: preset MIDD is built in, it can be replaced but not removed"
        error = run.done("presets", "add", "MIDD", "MID=1", "--family", "sd1")
        assert "warning: MIDD has 0 for BASE, the built-in one 1 (sd1) (LBW206)" in error
        assert "MIDD" in own.read_text()

    @pytest.mark.parametrize(
        "arguments",
        [("add", "A"), ("convert", "nowhere.txt", "x.yaml"), ("convert", __file__, "-")],
    )
    def test_wrong_usage(self, arguments: tuple[str, ...], own: Path, run: Run) -> None:
        assert run("presets", *arguments)[0] == 2

    def test_list_as_json_for_a_family(self, run: Run) -> None:
        known = {family: run.json("presets", "list", "--json", "--family", family) for family in ("sd1", "flux")}
        assert all("MIDD" in {preset["name"] for preset in presets} for presets in known.values())
        assert "unknown family" in run.refused("presets", "list", "--json", "--family", "nofam")

    def test_list_as_json(self, run: Run) -> None:
        presets = {preset["name"]: preset for preset in run.json("presets", "list", "--json")}
        assert presets["MIDD"]["builtin"] is True
        assert presets["MIDD"]["entries"][0] == {
            "family": "sd1",
            "layout": 17,
            "weights": list("10001111111100000"),
        }

    def test_showing_element_rules_for_a_family_says_what_to_do(self, run: Run) -> None:
        error = run.refused("presets", "show", "ATTNDEEPON", "--family", "sd1")
        assert "hint: bake it with --element-preset ATTNDEEPON; lbw presets show ATTNDEEPON prints the rules" in error

    def test_show_settles_variables(self, tmp_path: Path, run: Run) -> None:
        path = tmp_path / "lbwpresets.txt"
        path.write_text("A:X,1,1,1,1,1,1,1,1,1,1,R\n")
        options = ("presets", "show", "A", "--family", "sdxl", "--presets", path)
        run.refused(*options)
        assert run.json(*options, "--x", "0.25", "--seed", "1", "--json")["weights"]["BASE"] == 0.25

    def test_control_characters_never_reach_the_terminal(self, tmp_path: Path, run: Run) -> None:
        path = tmp_path / "x.yaml"
        path.write_text('A: {description: "\\e[31mred\\a", weights: "MID=1"}\n')
        for command in (("list",), ("show", "A"), ("show", "A", "--family", "sd1")):
            code, out, error = run("presets", *command, "--presets", path)
            assert code == 0
            assert "\x1b" not in out + error
            assert "\\x1b[31mred\\x07" in out


def test_what_the_inspire_pack_draws_keeps_its_range(lora: Path, tmp_path: Path, run: Run) -> None:
    """Its R goes from 0 to 3, its U from -1.5 to 1.5."""
    file = tmp_path / "lbw-preset.custom.txt"
    file.write_text(f"ROUT:{','.join('1' * 9)},R,r,R,R,R,R,U,u\n")
    drawn: dict[str, list[float]] = {"R": [], "U": []}
    for seed in range(30):
        asked = ("bake", lora, "-p", "ROUT", "--presets", file, "--seed", seed, "-n", "--json")
        weights = list(run.json(*asked)["weights"].values())[-10:-1]
        drawn["R"] += weights[1:7]
        drawn["U"] += weights[7:9]
    assert 0 <= min(drawn["R"]) < 0.3
    assert 2.7 < max(drawn["R"]) <= 3
    assert -1.5 <= min(drawn["U"]) < -1
    assert 1 < max(drawn["U"]) <= 1.5
    run.done("presets", "convert", file, tmp_path / "o.yaml")
    assert "R3,R3,R3,R3,R3,R3,U3,U3" in (tmp_path / "o.yaml").read_text()
    run.done("presets", "convert", tmp_path / "o.yaml", tmp_path / "lbw-preset.again.txt")
    assert (tmp_path / "lbw-preset.again.txt").read_text().strip().endswith(",R,R,R,R,R,R,U,U")
