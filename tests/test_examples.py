"""The examples do what they say, as far as they run without the programs they are for."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, python, unet_lora, write
from safetensors.numpy import load_file

from lbw_bake import diff

EXAMPLES = ROOT / "examples"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A small SD1 LoRA in a folder of LoRAs."""
    (tmp_path / "loras").mkdir()
    return write(tmp_path / "loras" / "x.safetensors", unet_lora())


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts modules of a host program, which is not here, in their place."""

    def install(**modules: object) -> None:
        for name, content in modules.items():
            module = ModuleType(name.replace("__", "."))
            vars(module).update(vars(content))
            monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def weight_of(original: Path, baked: Path, block: str) -> float | None:
    return diff(original, baked).blocks[block][0].weight


def test_the_script_runs_from_top_to_bottom(lora: Path, tmp_path: Path) -> None:
    result = python(EXAMPLES / "python_api.py", lora, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "did you mean MIDD?" in result.stdout
    names = {path.stem for path in (tmp_path / "out").iterdir()}
    assert names == {"midd", "vector", "face", "token", "gentle", "both"}


def test_the_comfyui_node_bakes_once_and_loads_what_it_baked(
    lora: Path, tmp_path: Path, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []

    def load_torch_file(path: str, *, safe_load: bool) -> dict[str, np.ndarray]:
        assert safe_load
        loaded.append(Path(path))
        return load_file(path)

    host(
        folder_paths=SimpleNamespace(
            get_filename_list=lambda kind: [path.name for path in (tmp_path / kind).iterdir()],
            get_full_path=lambda kind, name: str(tmp_path / kind / name),
            get_temp_directory=lambda: str(tmp_path / "temp"),
        ),
        comfy=SimpleNamespace(),
        comfy__sd=SimpleNamespace(load_lora_for_models=lambda model, clip, lora, *strengths: (lora, strengths)),
        comfy__utils=SimpleNamespace(load_torch_file=load_torch_file),
    )
    sys.modules["comfy"].sd, sys.modules["comfy"].utils = sys.modules["comfy.sd"], sys.modules["comfy.utils"]
    node = runpy.run_path(str(EXAMPLES / "comfyui" / "__init__.py"))["NODE_CLASS_MAPPINGS"]["LoadBakedLora"]
    assert node.INPUT_TYPES()["required"]["lora_name"] == ([lora.name],)
    for _ in range(2):
        _, strengths = node().load(None, None, lora.name, "MID=0.5 *=1", 0.7)
    assert strengths == (0.7, 0.7)
    (baked,) = set(loaded)
    assert weight_of(lora, baked, "MID") == pytest.approx(0.5)
    presets = tmp_path / "presets.yaml"
    monkeypatch.setenv("LBW_PRESETS", str(presets))
    for weight in (0.25, 0.75):
        presets.write_text(f"MINE: {{MID: {weight}, '*': 1}}\n")
        node().load(None, None, lora.name, "MINE", 0.7)
        assert weight_of(lora, loaded[-1], "MID") == pytest.approx(weight, rel=1e-3)


def test_the_web_ui_script_bakes_and_prompts(lora: Path, host: Any) -> None:
    told: list[str] = []
    host(
        gradio=SimpleNamespace(Textbox=dict, Slider=dict),
        networks=SimpleNamespace(list_available_networks=lambda: told.append("networks")),
        modules=SimpleNamespace(
            scripts=SimpleNamespace(Script=object),
            shared=SimpleNamespace(cmd_opts=SimpleNamespace(lora_dir=str(lora.parent))),
        ),
        modules__processing=SimpleNamespace(process_images=lambda p: p.prompt),
    )
    script = runpy.run_path(str(EXAMPLES / "a1111" / "lbw_bake_script.py"))["Script"]()
    given = ("x", "MID=0.5 *=1", 0.8)
    assert len(script.ui(is_img2img=False)) == len(given)
    prompts = [script.run(SimpleNamespace(prompt="a cat"), *given) for _ in range(2)]
    (baked,) = (path for path in lora.parent.iterdir() if path != lora)
    assert set(prompts) == {f"a cat <lora:{baked.stem}:0.8>"}
    assert told == ["networks"]
    assert weight_of(lora, baked, "MID") == pytest.approx(0.5)


def test_what_the_api_page_says_runs(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lora.rename(tmp_path / "doraemon.safetensors")
    write(tmp_path / "loras" / "y.safetensors", unet_lora())
    (tmp_path / "my-presets.yaml").write_text("MINE: {MID: 1}\n")
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    names = {"__name__": "__main__"}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert {path.name for path in tmp_path.rglob("*midd*")} == {"doraemon-midd.safetensors"}
    assert (tmp_path / "baked" / "y.safetensors").exists()
