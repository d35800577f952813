"""Programs get what the command line gets: the same files, and errors as exceptions instead of lines and exit codes."""

from __future__ import annotations

import ast
import copy
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from inspect import isfunction, signature
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from conftest import MODULE, ROOT, Run, metadata_of, record_in, unet_lora, write
from safetensors.numpy import load_file

import lbw_bake
import lbw_bake.api
from lbw_bake import (
    LbwError,
    Naming,
    Options,
    Recipe,
    Weights,
    add_preset,
    assemble_grid,
    bake,
    convert_presets,
    diff,
    inspect,
    load_presets,
    make_batch,
    make_sweep,
    merge,
    mix,
    parse_part,
    preset_files,
    remove_preset,
    run_batch,
    validate,
    validate_all,
    write_sweep,
)
from lbw_bake.errors import FileFormatError, OutputError, PresetError, StrictError, WeightCountError, WeightError
from lbw_bake.lora import read_lora
from lbw_bake.mixer import mix_of

MIDD = "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A small SD1 LoRA."""
    return write(tmp_path / "a.safetensors", unet_lora(), {"ss_output_name": "a", "sshs_model_hash": "0" * 64})


def test_every_public_name_is_there_and_known_to_type_checkers() -> None:
    tree = ast.parse(Path(str(lbw_bake.__file__)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    checked = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert checked == {name: module for module, names in lbw_bake._EXPORTS.items() for name in names}
    assert {*checked, "__version__"} == set(lbw_bake.__all__)
    assert {getattr(lbw_bake, name).__name__ for name in checked} == set(checked)
    assert set(lbw_bake.__all__) <= set(dir(lbw_bake))


def test_every_public_function_has_a_row_in_the_documentation() -> None:
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    functions = {name for name in lbw_bake.__all__ if isfunction(getattr(lbw_bake, name))}
    rows = {
        found for row in re.findall(r"^\| (`\w+\(.*?) \|", page, re.MULTILINE) for found in re.findall(r"(\w+)\(", row)
    }
    assert functions == rows
    for name, parameters in re.findall(r"`(\w+)\(([\w=, ]*?)(?:, \.\.\.)?\)`", page.partition("## Weights")[0]):
        known = [str(one).partition(":")[0] for one in signature(getattr(lbw_bake, name)).parameters.values()]
        named = [one.partition("=")[0] for one in parameters.split(", ") if one]
        assert named == known[: len(named)], name


@pytest.mark.parametrize("name", [name for name in lbw_bake.__all__ if callable(getattr(lbw_bake, name))])
def test_types_of_public_names_can_be_looked_at_while_a_program_runs(name: str) -> None:
    """What makes forms, services and tools of functions does that."""
    get_type_hints(getattr(lbw_bake, name))


def test_names_that_do_not_exist_are_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = lbw_bake.nothing


def test_the_package_imports_nothing_before_it_is_used() -> None:
    code = "import sys, lbw_bake; assert not {'numpy', 'torch', 'safetensors', 'yaml', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("weights", "options"),
    [
        ("MIDD", ("--preset", "MIDD")),
        (MIDD, ("--weights", MIDD)),
        ([float(weight) for weight in MIDD.split(",")], ("--weights", MIDD)),
        ({"IN04-IN08": 0.5, "*": 1}, ("--weights", "IN04-IN08=0.5 *=1")),
        ("<lora:x:0.7:lbw=MIDD>", ("--token", "<lora:x:0.7:lbw=MIDD>")),
        (Weights.parse(preset="MIDD", options=Options(strength=0.7)), ("--preset", "MIDD", "--strength", "0.7")),
        (load_presets()["MIDD"], ("--preset", "MIDD")),
    ],
    ids=["name", "vector", "numbers", "mapping", "token", "weights", "preset"],
)
def test_bake_writes_what_the_command_writes(
    weights: Any, options: tuple[str, ...], lora: Path, tmp_path: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "api").mkdir()
    outcome = bake(str(lora), tmp_path / "api" / "b.safetensors", weights)
    assert capfd.readouterr() == ("", "")
    run.done("bake", lora, *options, "-o", tmp_path / "b.safetensors")
    assert (tmp_path / "api" / "b.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert outcome.family == "sd1"
    assert outcome.nbytes == (tmp_path / "b.safetensors").stat().st_size


@pytest.mark.parametrize("number", [2, True + 1, np.float32(2), np.int8(2), Fraction(2), Decimal(2)], ids=type)
def test_a_number_of_any_type_is_the_number_it_is(number: Any, lora: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "api").mkdir()
    weights = Weights.parse("1,0,0,0,1,1,1,1,1,1,1,R,X,0,0,0,0", options=Options(number, number, seed=3, x=number))
    bake(lora, tmp_path / "api" / "b.safetensors", weights)
    options = ("-w", "1,0,0,0,1,1,1,1,1,1,1,R,X,0,0,0,0", "-s", "2", "--te", "2", "--seed", "3", "--x", "2")
    run.done("bake", lora, *options, "-o", tmp_path / "b.safetensors")
    assert (tmp_path / "api" / "b.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_whole_number_of_any_type_is_the_number_it_is(lora: Path, tmp_path: Path) -> None:
    assert [type(Options(seed=seed).seed) for seed in (True, np.uint8(1))] == [int, int]
    bake(lora, tmp_path / "b.safetensors", "MIDD", rank=np.int64(2))
    assert record_in(tmp_path / "b.safetensors")["rank"] == 2


@pytest.mark.parametrize("number", [1.5, 2.0, "2", [2]])
def test_what_is_no_whole_number_is_refused(number: Any) -> None:
    for make, name in ((Options, "seed"), (Recipe, "rank")):
        with pytest.raises(WeightError, match=f"{name} is .*, not a whole number"):
            make(**{name: number})


@pytest.mark.parametrize("elements", ["MID:attn:0", ["MID:attn:0"]])
def test_options_want_element_rules_that_are_understood(elements: Any) -> None:
    with pytest.raises(WeightError, match="is not understood yet"):
        Options(elements=elements)


def test_element_rules_may_be_a_list() -> None:
    rules = Weights.parse(elements=["MID:attn:0"]).options.elements
    assert Options(elements=[*rules]) == Options(elements=rules)  # type: ignore[arg-type]


def test_a_dry_run_needs_no_output(lora: Path, tmp_path: Path) -> None:
    outcome = bake(lora, None, "MIDD", dry_run=True)
    assert outcome.modules["zeroed"] > 0
    assert list(tmp_path.iterdir()) == [lora]


def test_errors_are_raised_as_what_they_are(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "b.safetensors"
    with pytest.raises(WeightCountError, match="3 weights do not fit"):
        bake(lora, output, [1, 2, 3])
    with pytest.raises(FileFormatError, match="no such file"):
        bake(tmp_path / "none.safetensors", output, "MIDD")
    with pytest.raises(OutputError, match="is the input itself"):
        bake(lora, lora, "MIDD")
    with pytest.raises(StrictError):
        bake(lora, output, ",".join("1" * 12), strict=True)
    assert not output.exists()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "fp16"},
        {"dtype": None},
        {"dtype": np.float16},
        {"device": "gpu"},
        {"device": None},
        {"dora_norm": "foo"},
        {"rank": 0},
        {"rank": -1},
        {"inexact": "refuse"},
        {"weights": ""},
        {"weights": " "},
        {"weights": {}},
        {"rank": 2, "verify": True},
        {"rank": 2, "prune": True},
        {"rank": 2, "inexact": True},
        {"rank": 2, "in_place": True},
        {"rank": 2, "update_metadata": False},
        {"output": None},
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], lora: Path, tmp_path: Path) -> None:
    given = {"output": tmp_path / "b.safetensors", "weights": "MIDD"} | options
    with pytest.raises(LbwError):
        bake(lora, **given)
    if len(options) == 1 and not options.keys() & {"inexact", "weights", "output"}:
        with pytest.raises(LbwError):
            merge([lora], tmp_path / "b.safetensors", **options)
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("name", ["strength", "te", "unet", "rest", "other", "x", "a", "b"])
def test_numbers_that_are_none_are_refused_by_name(name: str) -> None:
    for number in (float("nan"), float("-inf"), Decimal("sNaN"), "1", np.ones(2)):
        with pytest.raises(WeightError, match=f"^{name} is .*, not a finite number"):
            Options(**{name: number})


def test_errors_come_back_from_other_processes_as_what_they_are() -> None:
    error = pickle.loads(pickle.dumps(WeightCountError(3, "sd1", [17, 26])))
    assert type(error) is WeightCountError
    assert (error.message, error.hint) == ("3 weights do not fit sd1, which takes 17 or 26", "the nearest length is 17")
    assert str(error) == error.message


def returned(lora: Path, folder: Path) -> Iterator[Any]:
    """What functions return, but for plain values."""
    yield bake(lora, folder / "b.safetensors", "MIDD")
    yield inspect(lora)
    yield diff(lora, folder / "b.safetensors")
    yield merge([lora, lora], folder / "m.safetensors")
    yield make_batch([lora], [Recipe(Weights.of("MIDD"))], Naming(out_dir=folder / "out"))
    yield make_sweep(lora, {"x": "values=0,1", "y": "blocks=17ALL"}, Recipe())
    yield mix_of(read_lora(lora))
    yield Weights.of("MIDD").for_family("sd1")
    yield load_presets()["MIDD"]
    yield validate(ROOT / "presets.yaml")
    yield convert_presets(ROOT / "presets.yaml", to="lbwpresets")


def test_what_functions_return_goes_to_other_processes_and_is_short_to_look_at(lora: Path, tmp_path: Path) -> None:
    for value in returned(lora, tmp_path):
        there = pickle.loads(pickle.dumps(value))
        assert there == value == copy.deepcopy(value)
        assert len(repr(value)) < 3000


def test_what_was_baked_can_be_measured(lora: Path, tmp_path: Path) -> None:
    bake(lora, tmp_path / "b.safetensors", {"MID": 0.5, "*": 1})
    facts = diff(lora, tmp_path / "b.safetensors")
    assert facts.matches_record
    assert facts.blocks["MID"][0].weight == pytest.approx(0.5)
    norms = [inspect(path).blocks["MID"].norm for path in (lora, tmp_path / "b.safetensors")]
    assert norms[1] == pytest.approx(0.5 * norms[0])


def test_weights_of_one_bake_may_be_changed_and_given_to_the_next(lora: Path, tmp_path: Path) -> None:
    weights: Any = dict(bake(lora, None, "*=1", dry_run=True).weights)
    for weight in (0.25, 0.5, 0.75):
        weights["MID"] = weight
        output = tmp_path / f"{weight}.safetensors"
        weights = bake(lora, output, weights).weights
        assert diff(lora, output).blocks["MID"][0].weight == pytest.approx(weight)


def test_what_is_alone_is_one_of_several(lora: Path, tmp_path: Path) -> None:
    for alone in (lora, str(lora)):
        assert merge(alone, None, dry_run=True) == merge([lora], None, dry_run=True)
        assert make_batch(alone, [Recipe(dry_run=True)], Naming()).jobs[0].input == lora
        assert [checked.path for checked in validate_all(alone)] == [lora]
    assert make_batch([lora], Recipe(dry_run=True), Naming()) == make_batch([lora], [Recipe(dry_run=True)], Naming())
    shutil.copy(lora, tmp_path / "style.safetensors")
    out = Naming(out_dir=tmp_path / "out")
    assert [job.input.stem for job in make_batch([tmp_path], [Recipe()], out, include="style*").jobs] == ["style"]
    assert [job.input.stem for job in make_batch([tmp_path], [Recipe()], out, exclude="style*").jobs] == ["a"]


@pytest.mark.parametrize("form", [str, Path])
def test_all_paths_may_be_texts(form: Callable[[Path], Any], lora: Path, tmp_path: Path) -> None:
    for naming in (Naming(output=form(tmp_path / "b.safetensors")), Naming(out_dir=form(tmp_path / "out"))):
        batch = make_batch([form(lora)], [Recipe(Weights.of("MIDD"), base=form(lora))], naming)
        ((_, (outcome,)),) = run_batch(batch)
        assert outcome.status == "baked"
    with pytest.raises(PresetError, match="cannot be read"):
        parse_part("a.safetensors:1:MIDD", form(tmp_path))


def test_what_is_written_has_one_name(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no output is named"):
        make_batch([lora], [Recipe()], Naming())
    with pytest.raises(OutputError, match="no output is named"):
        merge([lora], None)
    with pytest.raises(OutputError, match="named in several ways"):
        Naming(output=tmp_path / "b.safetensors", out_dir=tmp_path)
    with pytest.raises(OutputError, match="nothing is to be done"):
        make_batch([lora], [], Naming(out_dir=tmp_path))


def test_a_merge_may_come_from_lists_and_generators(lora: Path) -> None:
    pairs = [[str(lora), "MIDD"], [str(lora), [0.5] * 17]]
    several = (pair for pair in ((lora, "MIDD"), (lora, [0.5] * 17)))
    assert merge(pairs, None, dry_run=True) == merge(several, None, dry_run=True)  # type: ignore[arg-type]


def test_a_family_is_named_by_itself_too(lora: Path, tmp_path: Path) -> None:
    family = inspect(lora, family="SD1").family
    one, other = (bake(lora, None, "MIDD", family=named, dry_run=True) for named in (family, "sd1"))
    assert replace(one, seconds=0.0) == replace(other, seconds=0.0)
    assert merge([lora], None, family=family, dry_run=True) == merge([lora], None, family="sd1", dry_run=True)
    assert diff(lora, lora, family=family).family is inspect(lora, family=family).family is family
    add_preset("A", [0.5] * 17, family=family, presets=tmp_path / "a.yaml")
    assert convert_presets(tmp_path / "a.yaml", to="lbwpresets", family=family).presets == 1


def test_merge_takes_weights_per_file(lora: Path, tmp_path: Path, run: Run) -> None:
    merged = merge([lora, (lora, "MIDD")], tmp_path / "m.safetensors")
    assert merged.modules > 0
    run.done("merge", lora, f"{lora}:1:MIDD", "-o", tmp_path / "n.safetensors")
    one, other = (load_file(tmp_path / name) for name in ("m.safetensors", "n.safetensors"))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def test_preset_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "presets.yaml"
    path.write_text("MINE: 1,2\n")
    (finding,) = validate(path).findings
    assert (finding.line, finding.is_error) == (1, True)
    with pytest.raises(LbwError, match="cannot be read"):
        validate(tmp_path)
    for read in (validate, lambda path, kind: [*validate_all(path, kind=kind)]):
        with pytest.raises(PresetError, match="'json' is no kind"):
            read(path, kind="json")
    with pytest.raises(PresetError, match="'json' is no kind"):
        convert_presets(path, from_="json", to="lbwpresets")


def test_presets_are_added_and_removed_as_the_commands_do(tmp_path: Path, run: Run) -> None:
    ours, theirs = tmp_path / "a.yaml", tmp_path / "b.yaml"
    saved = add_preset("FACE", {"MID": 3, "*": 0}, family="sd1", elements=["IN05:attn:0.5"], presets=str(ours))
    assert (saved.path, [finding.code for finding in saved.findings]) == (ours, ["LBW306"])
    assert add_preset("FACE", [0.5] * 12, family="sdxl", description="sharp", presets=ours).findings == saved.findings
    options = ("--presets", theirs)
    run.done("presets", "add", "FACE", "MID=3.0 *=0.0", "--family", "sd1", "--element", "IN05:attn:0.5", *options)
    run.done("presets", "add", "FACE", ",".join(["0.5"] * 12), "--family", "sdxl", "-d", "sharp", *options)
    assert ours.read_text() == theirs.read_text()
    face = Weights.of(load_presets(ours)["FACE"])
    assert [face.for_family(family).blocks["MID"] for family in ("sd1", "SDXL")] == [3, 0.5]
    assert [str(rule) for rule in face.options.elements] == ["IN05:attn:0.5"]
    assert remove_preset("FACE", presets=ours) == ours
    assert ours.read_text() == ""


def test_presets_of_a_folder_cannot_be_changed(tmp_path: Path) -> None:
    folder = tmp_path / "presets.yaml"
    folder.mkdir()
    for change in (lambda: add_preset("A", [0.5] * 17, presets=folder), lambda: remove_preset("A", presets=folder)):
        with pytest.raises(PresetError, match="cannot be read"):
            change()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such locks")
@pytest.mark.parametrize("before", ["", "OLD: 1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0\n"], ids=["new file", "old file"])
def test_presets_added_at_once_exclude_each_other(before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.yaml"
    if before:
        path.write_text(before)
    original, refused = preset_files.with_preset, []

    def meanwhile(*args: Any, **options: Any) -> str:
        changed = original(*args, **options)
        monkeypatch.setattr(preset_files, "with_preset", original)
        try:
            add_preset("OTHER", [0.5] * 17, presets=path)
        except OutputError as error:
            refused.append(error)
        return changed

    monkeypatch.setattr(preset_files, "with_preset", meanwhile)
    try:
        add_preset("FACE", [0.5] * 17, presets=path)
    except OutputError as error:
        refused.append(error)
    assert len(refused) == 1
    assert re.search("about to replace it" if before else "has just made it", str(refused[0]))
    assert validate(path).presets == len(before.splitlines()) + 1


@pytest.mark.parametrize("weights", ["MIDD", "", "<lora:x:1:lbw=1,0>", "<lora:x:0.7:MIDD>", [], None], ids=str)
def test_only_what_says_weights_becomes_a_preset(weights: Any, tmp_path: Path) -> None:
    with pytest.raises(LbwError):
        add_preset("A", weights, presets=tmp_path / "a.yaml")
    assert list(tmp_path.iterdir()) == []


def test_presets_are_converted_to_a_text_or_a_file(tmp_path: Path) -> None:
    source, target = tmp_path / "presets.yaml", tmp_path / "lbwpresets.txt"
    source.write_text(f"# mine\nA: {MIDD}\nB:\n  description: sharp\n  elements: IN05:attn:0\n")
    made = convert_presets(str(source), to="lbwpresets")
    assert (made.text, made.presets, made.kind) == (f"A:{MIDD}\n", 2, "lbwpresets")
    assert made.lost == ("B: its element rules", "B: its description", "1 comment line")
    assert convert_presets(source, str(target)) == made
    assert target.read_text() == made.text
    with pytest.raises(OutputError, match="already exists"):
        convert_presets(source, target)
    assert convert_presets(source, source, replace=True).lost == ("1 comment line",)
    assert "mine" not in source.read_text()
    for to in (None, "json"):
        with pytest.raises(PresetError, match="formats are yaml, lbwpresets"):
            convert_presets(source, tmp_path / "a.out", to=to)


def test_sliders_need_a_terminal_and_a_sweep_a_number(lora: Path) -> None:
    with pytest.raises(LbwError, match=r"needs (a terminal|textual)"):
        mix(lora, "MIDD")
    with pytest.raises(WeightError, match="at is nan, not a finite number"):
        make_sweep(lora, {"x": "blocks=MID"}, Recipe(), at=float("nan"))
    half = make_sweep(lora, {"x": "blocks=MID"}, Recipe(), at=np.float32(0.5)).cells[0].weights.blocks["MID"]
    assert (half, type(half)) == (0.5, float)


def test_a_sweep_is_written_by_its_recipe(tmp_path: Path) -> None:
    tensors = unet_lora()
    lora = write(tmp_path / "a.safetensors", tensors, {"sshs_model_hash": "0" * 64})
    axes = {"x": "blocks=MID"}
    with pytest.raises(WeightError, match="not truncated"):
        make_sweep(lora, axes, Recipe(rank=2))
    list(write_sweep(make_sweep(lora, axes, Recipe(update_metadata=False)), tmp_path / "plot"))
    assert metadata_of(tmp_path / "plot" / "a-MID.safetensors")["sshs_model_hash"] == "0" * 64
    tensors[f"{MODULE}.lora_down.weight"][0, 0] = float("nan")
    strange = write(tmp_path / "b.safetensors", tensors)
    with pytest.raises(StrictError, match="1 NaN"):
        list(write_sweep(make_sweep(strange, {"x": "values=0.5"}, Recipe(strict=True)), tmp_path / "strict"))
    assert not list((tmp_path / "strict").glob("*.safetensors"))


@pytest.mark.parametrize("option", ["dry_run", "replace", "in_place", "skip_existing"])
def test_what_a_sweep_cannot_follow_in_its_recipe_is_refused(option: str, lora: Path) -> None:
    options: Any = {option: True}
    with pytest.raises(OutputError, match=f"{option} in its recipe says nothing"):
        make_sweep(lora, {"x": "values=0,1"}, Recipe(**options))


def test_paths_of_a_sweep_may_be_texts(lora: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plot"
    plot = make_sweep(str(lora), {"x": "values=0,1"}, Recipe(), presets=None)
    assert len(list(write_sweep(plot, str(folder)))) == 2
    with pytest.raises(FileFormatError, match="holds none of the sweep's 2 pictures"):
        assemble_grid(str(folder), str(tmp_path), str(tmp_path / "grid.png"))
    with pytest.raises(LbwError, match="theme 'pink' is not one of light, dark"):
        assemble_grid(folder, tmp_path, tmp_path / "grid.png", theme="pink")


@pytest.mark.parametrize("name", ["X", "w", "seed"])
def test_an_axis_of_another_name_is_not_passed_over(name: str, lora: Path) -> None:
    with pytest.raises(WeightError, match=f"there is no axis '{name}'"):
        make_sweep(lora, {"x": "blocks=MID", name: "values=0,1"}, Recipe())


@pytest.mark.parametrize(
    "given", [np.full(17, 0.5), np.full(17, 0.5, np.float16), (0.5 for _ in range(17)), ("0.5",) * 17], ids=type
)
def test_a_vector_is_whatever_holds_numbers_in_order(given: Any) -> None:
    assert Weights.of(given) == Weights.of([0.5] * 17)


@pytest.mark.parametrize("given", [np.empty(0), iter(()), {}, [], "", None], ids=type)
def test_what_is_empty_says_no_weights(given: Any) -> None:
    with pytest.raises(WeightError, match="no weights are given"):
        Weights.of(given)


@pytest.mark.parametrize("given", [0.5, True, np.float32(0.5), np.array(0.5), Options(), Path("MIDD")], ids=type)
def test_what_holds_no_numbers_says_no_weights(given: Any) -> None:
    with pytest.raises(WeightError, match="says no weights"):
        Weights.of(given)


@pytest.mark.parametrize("selector", [1, None, ("IN01", "IN02")])
def test_blocks_are_named_by_texts(selector: Any) -> None:
    with pytest.raises(WeightError, match="sd1 has no block"):
        Weights.of({selector: 0.5}).for_family("sd1")


@pytest.mark.parametrize("given", ["MIDD", MIDD, [0.5] * 17, {"MID": 0.5}, load_presets()["MIDD"]], ids=type)
def test_whatever_weights_are_given_as_there_is_more_to_choose(given: Any) -> None:
    rule = Weights.parse(elements=["IN04:attn:0"]).options.elements[0]
    weights = Weights.parse(given, options=Options(strength=0.7, elements=(rule,)), elements=["MID:attn:1"])
    assert weights.source == Weights.of(given).source
    assert weights.options.strength == 0.7
    assert list(map(str, weights.options.elements)) == ["IN04:attn:0", "MID:attn:1"]


def test_one_text_is_not_its_letters() -> None:
    both = Weights.parse(elements=["MID:attn:0"], element_presets=["ATTNDEEPON"])
    assert Weights.parse(elements="MID:attn:0", element_presets="ATTNDEEPON") == both


@pytest.mark.parametrize("given", [["a"] * 17, {"MID": "half"}, {"MID": None}])
def test_what_is_no_number_is_no_weight(given: Any) -> None:
    with pytest.raises(WeightError, match=r"a weight is .*, not a number"):
        Weights.of(given)


def test_weights_are_given_once() -> None:
    with pytest.raises(WeightError, match="weights are given as 'MIDD' and as 'INS'"):
        Weights.parse("MIDD", preset="INS")


def test_a_recipe_wants_weights_that_are_understood() -> None:
    with pytest.raises(WeightError, match="'MIDD' are not understood yet"):
        Recipe("MIDD")  # type: ignore[arg-type]


def test_recipes_of_one_batch_differ_in_weights_alone(lora: Path, tmp_path: Path) -> None:
    """The first one's options would be those of all."""
    recipes = [Recipe(Weights.of("ALL")), Recipe(Weights.of("MIDD"), rank=2)]
    with pytest.raises(OutputError, match="more than weights"):
        make_batch([lora], recipes, Naming(out_dir=tmp_path / "out", template="{stem}-{preset}"))


def test_nothing_cannot_be_merged(tmp_path: Path) -> None:
    with pytest.raises(LbwError, match="nothing to merge"):
        merge([], tmp_path / "a.safetensors")


def test_the_sliders_start_at_a_preset_of_the_file_that_is_named(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tui = pytest.importorskip("lbw_bake.tui")
    (tmp_path / "p.yaml").write_text("FACE: {MID: 0.5}\n")
    monkeypatch.setattr(lbw_bake.api, "_require_terminal", lambda: None)
    monkeypatch.setattr(tui.Mixer, "run", lambda self: self._start)
    left = mix(lora, "FACE", presets=tmp_path / "p.yaml")
    assert left is not None
    assert left.weights["MID"] == 0.5
