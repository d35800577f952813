"""`lbw validate`: findings in every format, exit codes, and a command that starts quickly and needs little."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from conftest import ROOT, Run, called, lbw_on_path, python

from lbw_bake.presets.findings import RULES

DATA = Path(__file__).parent / "data" / "presets"
GOOD = "FACE:1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0\n"
WARNED = "XYZ:1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0\n"
WRONG = GOOD + "BODY:1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0\n"
MESSAGE = "16 values; the extension takes 12, 17, 20, 26 or 61, the nearest is 17"


@pytest.fixture(autouse=True)
def _not_in_github(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lbwpresets.txt"
    path.write_text(WRONG)
    return path


class TestExitCodes:
    @pytest.mark.parametrize(
        ("text", "options", "expected"),
        [
            (GOOD, (), 0),
            (GOOD, ("--strict",), 0),
            (WARNED, (), 0),
            (WARNED, ("--strict",), 1),
            (WRONG, (), 1),
            ("A: 17\n", (), 1),
            ("A: R\n", (), 1),
            (WRONG, ("--format", "xml"), 2),
            (WRONG, ("--kind", "csv"), 2),
            (GOOD, ("nowhere.txt",), 1),
        ],
    )
    @pytest.mark.parametrize("form", ["text", "json", "github", "sarif"])
    def test_errors_fail_and_warnings_do_when_strict(
        self, text: str, options: tuple[str, ...], expected: int, form: str, file: Path, run: Run
    ) -> None:
        file.write_text(text)
        assert run("validate", file, "--format", form, *options)[0] == expected

    @pytest.mark.parametrize("missing", ["nowhere.txt", "a" * 300, "empty", "lbwpresets.txt/x"])
    @pytest.mark.parametrize("form", ["text", "json", "github", "sarif"])
    def test_what_cannot_be_read_is_a_finding_beside_those_of_the_others(
        self, missing: str, form: str, file: Path, run: Run
    ) -> None:
        (file.parent / "empty").mkdir()
        code, out, _ = run("validate", file.parent / missing, file, "--format", form)
        assert code == 1
        for said in ("LBW112", missing, "LBW301", MESSAGE.partition(";")[0]):
            assert said in out

    def test_json_is_a_flag_too(self, file: Path, run: Run) -> None:
        expected = run("validate", file, "--format", "json")
        for options in (("--json",), ("--json", "--format", "json")):
            assert run("validate", file, *options) == expected
        assert run("validate", file, "--json", "--format", "text")[0] == 2

    def test_without_files_there_is_nothing_to_do(self, run: Run) -> None:
        assert run("validate")[0] == 2

    def test_the_built_in_file_is_clean(self, run: Run) -> None:
        code, out, error = run("validate", ROOT / "presets.yaml", "--strict")
        assert (code, out) == (0, "")
        assert error == "done: nothing to report in 13 presets of 1 file\n"

    def test_quiet_leaves_out_the_summary(self, file: Path, run: Run) -> None:
        assert run("validate", file)[2] == "done: 1 error, 0 warnings in 2 presets of 1 file\n"
        assert run("validate", file, "--quiet")[2] == ""


class TestFinding:
    """Which files are looked at, and as what."""

    def test_files_and_folders(self, tmp_path: Path, run: Run) -> None:
        for name in ("a/lbwpresets.txt", "a/b/elempresets.txt", "a/b/x.yaml", "a/.hidden/x.txt", "a/notes.md", "x.txt"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("?\n")
        _, out, _ = run("validate", tmp_path / "a", tmp_path / "x.txt", "--format", "json")
        found = [str(Path(finding["file"]).relative_to(tmp_path)) for finding in json.loads(out)]
        assert list(dict.fromkeys(found)) == ["a/b/elempresets.txt", "a/b/x.yaml", "a/lbwpresets.txt", "x.txt"]

    def test_a_folder_without_preset_files_is_an_error(self, tmp_path: Path, run: Run) -> None:
        code, out, _ = run("validate", tmp_path)
        assert code == 1
        assert f"{tmp_path}:1:1: error LBW112: holds no files ending in .yaml, .yml, .txt\n    name the" in out

    @pytest.mark.parametrize(
        ("text", "options", "codes"),
        [
            (WRONG, (), ["LBW301"]),
            ("ATTN:IN05:attn\n", ("--kind", "elempresets"), ["LBW401"]),
            ("A: {IN55: 1}\n", (), ["LBW403"]),
            ("# none\nA:1,1,1,1,1,1,1,1,1,1,1,1", ("--kind", "inspire"), ["LBW108"]),
        ],
    )
    def test_standard_input(self, text: str, options: tuple[str, ...], codes: list[str]) -> None:
        result = called(sys.executable, "-m", "lbw_bake", "validate", "-", "--json", *options, input=text)
        found = json.loads(result.stdout)
        assert [finding["code"] for finding in found] == codes
        assert {finding["file"] for finding in found} == {"-"}


class TestFormats:
    def test_text(self, file: Path, run: Run) -> None:
        _, out, _ = run("validate", file)
        assert out == f"{file}:2:6: error LBW301: {MESSAGE}\n    give one value per block of a known layout\n"

    def test_json_is_a_list_of_objects(self, file: Path, run: Run) -> None:
        _, out, _ = run("validate", file, "--format", "json")
        assert json.loads(out) == [
            {
                "file": str(file),
                "line": 2,
                "column": 6,
                "severity": "error",
                "code": "LBW301",
                "name": "BODY",
                "message": MESSAGE,
            }
        ]
        file.write_text(GOOD)
        assert run.json("validate", file, "--format", "json") == []

    def test_github(self, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """Properties end at a comma and a colon, the message at the end of the line: they are escaped."""
        path = tmp_path / "100%,lbwpresets.txt"
        path.write_text("50%\x07\n")
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        code, out, _ = run("validate", path)
        assert code == 1
        match = re.fullmatch(r"::error file=(.*),line=1,col=1,title=LBW105 no colon::(.*)\n", out)
        assert match
        assert unquote(match[1]) == str(path)
        assert "," not in match[1]
        assert unquote(match[2]).startswith("'50%\\x07' has no colon")

    def test_the_variable_of_github_chooses_the_format(self, file: Path, run: Run, monkeypatch: Any) -> None:
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        assert run("validate", file)[1].startswith("::error file=")
        assert run("validate", file, "--format", "text")[1].startswith(f"{file}:2:6: error")

    def test_sarif(self, file: Path, run: Run) -> None:
        _, out, _ = run("validate", file, "--format", "sarif")
        log = json.loads(out)
        assert log["version"] == "2.1.0"
        (part,) = log["runs"]
        rules = part["tool"]["driver"]["rules"]
        assert [rule["id"] for rule in rules] == list(RULES)
        (result,) = part["results"]
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == "LBW301"
        assert result["level"] == "error"
        assert result["message"]["text"].startswith(MESSAGE)
        (location,) = result["locations"]
        assert location["physicalLocation"]["region"] == {"startLine": 2, "startColumn": 6}
        assert location["physicalLocation"]["artifactLocation"]["uri"] == file.as_uri()

    def test_names_cannot_drive_a_terminal(self, file: Path, run: Run) -> None:
        file.write_text("\x1b[31mRED\x1b]0;title\x07:1,0\n")
        _, out, error = run("validate", file)
        assert "\x1b" not in out + error
        assert "\\x1b[31mRED" in out


class TestRules:
    def test_codes_are_stable_and_severities_known(self) -> None:
        for code, rule in RULES.items():
            assert re.fullmatch(r"LBW[1-5]\d\d", code)
            assert rule.code == code
            assert rule.severity in ("error", "warning")
            assert rule.title
            assert rule.remedy

    def test_the_manual_has_a_section_for_each(self) -> None:
        text = (ROOT / "docs" / "preset-rules.md").read_text(encoding="utf-8")
        headings = re.findall(r"^### (.*)$", text, re.MULTILINE)
        assert headings == [f"{code}: {rule.title} ({rule.severity})" for code, rule in RULES.items()]
        sections = text.split("\n### ")[1:]
        for section, rule in zip(sections, RULES.values(), strict=True):
            assert f"What to do: {rule.remedy}" in " ".join(section.split())


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the packages that action.yml installs, with what they require, and lbw."""
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    (line,) = re.findall(r"pip install --quiet (?!--)(.*)", str(action["runs"]["steps"][1]["run"]))
    folder = tmp_path_factory.mktemp("lean")
    (folder / "lbw_bake").symlink_to(ROOT / "lbw_bake")
    (folder / "presets.yaml").symlink_to(ROOT / "presets.yaml")
    waiting, done = line.split(), set()
    while waiting:
        name = re.split(r"[^\w.-]", waiting.pop())[0]
        if name.lower() in done:
            continue
        done.add(name.lower())
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # required on other systems or Pythons only
        waiting += [required for required in distribution.requires or () if "extra ==" not in required]
        for top in {file.parts[0] for file in distribution.files or () if not file.parts[0].startswith((".", "_"))}:
            target = Path(str(distribution.locate_file(top)))
            if target.suffix != ".dist-info" and target.exists() and not (folder / top).exists():
                (folder / top).symlink_to(target)
    assert not (folder / "torch").exists()
    return folder


class TestWithoutTorch:
    """CI that only checks presets installs no torch, and does not wait for what it does not need."""

    def test_neither_torch_nor_numpy_nor_yaml_is_imported_for_a_text_file(self, tmp_path: Path) -> None:
        path = tmp_path / "lbwpresets.txt"
        path.write_text(GOOD)
        heavy = ("torch", "numpy", "ml_dtypes", "safetensors", "rich", "yaml")
        code = (
            "import sys\nfrom lbw_bake.cli import main\n"
            f"try:\n    main(['validate', {str(path)!r}])\nexcept SystemExit as stop:\n    assert not stop.code\n"
            f"print([name for name in {heavy!r} if name in sys.modules])"
        )
        result = python("-c", code)
        assert result.stdout == "[]\n", result.stderr

    @pytest.mark.parametrize("command", [("validate",), ("presets", "list", "--presets"), ("presets", "convert")])
    def test_it_runs_with_what_the_action_installs(self, command: tuple[str, ...], lean: Path, tmp_path: Path) -> None:
        path = DATA / "valid" / "shapes.yaml"
        arguments = [*command, str(path), *([str(tmp_path / "lbwpresets.txt")] if "convert" in command else [])]
        code = f"import sys; sys.path[:0] = [{str(lean)!r}]; from lbw_bake.cli import main; main({arguments!r})"
        result = called(sys.executable, "-S", "-c", code, cwd=tmp_path)
        assert result.returncode == 0, result.stderr

    def test_the_action_passes_on_what_it_is_given(self) -> None:
        action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
        assert action["runs"]["using"] == "composite"
        for step in action["runs"]["steps"]:
            assert "${{" not in step.get("run", ""), "inputs go through env, where nobody can write a command into them"

    @pytest.mark.skipif(not (shutil.which("bash") and shutil.which("git")), reason="needs bash and git")
    @pytest.mark.parametrize(
        ("names", "said"), [((), "no preset files"), (("presets-\u00e9.yaml",), "1 preset of 1 file")]
    )
    def test_the_action_checks_what_is_named_like_presets(
        self, names: tuple[str, ...], said: str, tmp_path: Path
    ) -> None:
        step = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["runs"]["steps"][-1]
        environment = lbw_on_path(tmp_path) | {"RUNNER_TEMP": str(tmp_path), "PYTHONPATH": str(ROOT)}
        environment |= {"FILES": "", "STRICT": "false", "FORMAT": "text", "OUTPUT": ""}
        (tmp_path / "lbw").mkdir()
        (tmp_path / "lbw" / "bin").symlink_to(tmp_path / "bin")
        repository = tmp_path / "repository"
        repository.mkdir()
        subprocess.run(["git", "init", "-q"], cwd=repository, check=True)
        for name in names:
            (repository / name).write_text("A: {MID: 1}\n", encoding="utf-8")
        subprocess.run(["git", "add", "."], cwd=repository, check=True)
        result = called("bash", "-e", "-c", step["run"], cwd=repository, env=environment)
        assert result.returncode == 0, result.stderr
        assert said in result.stderr

    def test_the_hooks_find_preset_files(self) -> None:
        hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
        for hook in hooks:
            assert hook["entry"].startswith("lbw validate")
            for name in (
                "presets.yaml",
                "a/lbwpresets.txt",
                "elempresets.txt",
                "b/lbw-preset.custom.txt",
                "my_presets.yml",
            ):
                assert re.search(hook["files"], name), name
            for name in ("presets.py", "notes.txt", "presets/notes.md"):
                assert not re.search(hook["files"], name), name
