"""TAB in a shell: asked as shells ask, and in the shells that are here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import imported, lbw, lbw_on_path

# What stands on the line -> some of what is offered, and what is not.
LINES = {
    "lbw bake a.safetensors --preset MI": ({"MIDD"}, {"ALL"}),
    "lbw bake a.safetensors --preset ": ({"MIDD", "ALL0.5"}, {"ATTNDEEPON"}),
    "lbw bake a.safetensors --preset MIDD -p OUT": ({"OUTD", "OUTS", "OUTALL"}, {"MIDD"}),
    "lbw bake a.safetensors --element-preset A": ({"ATTNDEEPON"}, {"ALL"}),
    "lbw bake a.safetensors --family flux": ({"flux", "flux2_dev"}, {"sdxl"}),
    "lbw inspect --family sdx": ({"sdxl"}, {"flux"}),
    'lbw bake a.safetensors --weights "IN0': ({"IN00", "IN08"}, {"IN10", "OUT00"}),
    'lbw bake a.safetensors --weights "BASE=1 IN04-IN0': ({"BASE=1 IN04-IN05"}, {"IN05"}),
    'lbw bake a.safetensors --weights "BASE=1 NOT MI': ({"BASE=1 NOT MID=", "BASE=1 NOT MID-"}, {"MID"}),
    "lbw bake a.safetensors --weights 1,0,": ({"1,0,BASE"}, set()),
    "lbw bake a.safetensors --family flux --weights D1": ({"D10", "D18"}, {"D19"}),
    "lbw bake a.safetensors --family nonsense --weights IN0": ({"IN00"}, {"MID"}),
    'lbw bake a.safetensors --element "IN05-OUT05:at': ({"IN05-OUT05:attn1:"}, {"attn1"}),
    'lbw bake a.safetensors --element "IN0': ({"IN04"}, {"IN04:attn1:"}),
    "lbw sweep a.safetensors --base-weights MI": ({"MIDD"}, {"ALL"}),
    "lbw presets show ATT": ({"ATTNDEEPON"}, {"ALL"}),
    "lbw val": ({"validate"}, {"bake"}),
}
PRESETS = """
MINE: {description: "[odd] help", weights: {"*": 1}}
two words: {weights: {"*": 1}}
$(touch harm): {weights: {"*": 1}}
"""


def offered(line: str, shell: str = "bash", **environment: str) -> set[str]:
    """What `lbw` offers at the end of a line; it must say nothing else."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(_last_word(line)), "_TYPER_COMPLETE_ARGS": line}
    words["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    result = lbw(_LBW_COMPLETE=f"complete_{shell}", **words, **environment)
    assert result.stderr == ""
    return set(result.stdout.splitlines())


def _last_word(line: str) -> int:
    start, quote, _ = line.partition('"')
    return len(start.split()) if quote or line.endswith(" ") else len(line.split()) - 1


@pytest.mark.parametrize("line", LINES)
def test_bash_is_offered_what_fits(line: str) -> None:
    wanted, unwanted = LINES[line]
    found = offered(line)
    assert wanted <= found
    assert not unwanted & found


def test_fish_and_zsh_are_told_what_it_means(tmp_path: Path) -> None:
    line = "lbw bake a.safetensors --preset MI"
    mine = tmp_path / "presets.yaml"
    mine.write_text(PRESETS)
    assert offered(line, "fish", LBW_PRESETS=str(mine)) == {
        "MIDD\tthe deep blocks on both sides of the middle",
        "MINE\t[odd] help",
    }
    assert '"MIDD":"the deep blocks on both sides of the middle"' in "".join(offered(line, "zsh"))


def test_the_presets_file_on_the_line_counts(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(PRESETS)
    found = offered(f"lbw bake a.safetensors --presets {tmp_path}/mine.yaml --preset ")
    assert {"MINE", "MIDD"} <= found
    assert not any("$" in name or " " in name for name in found)  # a shell would run or split them


@pytest.mark.parametrize(
    "content", [b"MINE: 1,0", b"\xff\xfe", b"- [", None], ids=["wrong", "no text", "no YAML", "none"]
)
def test_a_broken_presets_file_is_passed_over(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "presets.yaml").write_bytes(content)
    found = offered("lbw bake a.safetensors --preset M", LBW_PRESETS=str(tmp_path / "presets.yaml"))
    assert found == {"MIDD"}


def test_it_imports_little() -> None:
    environment = {"COMP_WORDS": "lbw bake --preset M", "COMP_CWORD": "3", "_LBW_COMPLETE": "complete_bash"}
    assert not imported(**environment) & {"numpy", "torch", "safetensors", "ml_dtypes", "rich"}


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return lbw_on_path(tmp_path)


def shell(name: str, home: dict[str, str], script: str, *options: str) -> list[str]:
    """Let a shell install the completion for itself and run a script; returns the lines that the script prints."""
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    command = [name, *options, "-c", f"lbw --install-completion >/dev/null\n{script}"]
    result = subprocess.run(command, env=home, capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""
    return result.stdout.splitlines()


def test_bash_completes(home: dict[str, str]) -> None:
    script = r"""
        . ~/.bashrc
        COMP_WORDS=(lbw bake a.safetensors --weights '"BASE=1 IN0') COMP_CWORD=4
        "$(complete -p lbw | sed 's/.*-F \([^ ]*\) .*/\1/')" lbw
        printf '%s\n' "${COMPREPLY[@]}"
    """
    assert "BASE=1 IN04" in shell("bash", home, script, "--norc")


def test_fish_completes(home: dict[str, str]) -> None:
    script = "source ~/.config/fish/completions/lbw.fish; complete -C 'lbw bake a.safetensors --preset MI'"
    assert shell("fish", home, script) == ["MIDD\tthe deep blocks on both sides of the middle"]


def test_zsh_loads_it(home: dict[str, str]) -> None:
    script = "fpath+=~/.zfunc; autoload -Uz compinit && compinit -u; . ~/.zfunc/_lbw; print $_comps[lbw]"
    assert shell("zsh", home, script, "-f") == ["_lbw_completion"]
