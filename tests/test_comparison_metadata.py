"""What a diff says of metadata, and of files that other tools baked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import SD1_BLOCKS, BakeFile, Run, unet_lora, write


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write(
        tmp_path / "original.safetensors", unet_lora(), {"gone": "1", "kept": "2", "ss_output_name": "original"}
    )


def test_keys_added_removed_and_changed_are_named(original: Path, tmp_path: Path, run: Run) -> None:
    metadata = {"kept": "2", "ss_output_name": "other", "new": "x" * 500}
    other = write(tmp_path / "other.safetensors", unet_lora(), metadata)
    assert run.json("diff", original, other, "--json")["metadata"] == {
        "added": {"new": "x" * 500},
        "removed": {"gone": "1"},
        "changed": {"ss_output_name": ["original", "other"]},
    }
    error = run.done("diff", original, other)
    lines = [line for line in error.splitlines() if line.startswith("metadata: ")]
    assert lines[1:] == ["metadata: gone removed: 1", "metadata: ss_output_name changed: original -> other"]
    assert lines[0].startswith("metadata: new added: xxx")
    assert len(lines[0]) < 100


def test_a_bake_adds_its_record(original: Path, bake_file: BakeFile, run: Run) -> None:
    baked = bake_file(original, "-p", "MIDD")
    metadata = run.json("diff", original, baked, "--json")["metadata"]
    assert set(metadata["added"]) == {"lbw_bake", "ss_base_model_version"}
    assert metadata["removed"] == {}


@pytest.mark.parametrize(("scaled", "power"), [(("up",), 1), (("up", "down"), 2), (("up", "down", "alpha"), 3)])
def test_a_weight_written_into_several_factors_shows_as_its_power(
    scaled: tuple[str, ...], power: int, original: Path, tmp_path: Path, run: Run
) -> None:
    """The usual fault of bakers: 0.5 in up and down is 0.25 in the picture."""
    tensors = {
        name: array * np.float32(0.5) if any(part in name.rsplit(".lora_")[-1] for part in scaled) else array
        for name, array in unet_lora().items()
    }
    blocks = run.json("diff", original, write(tmp_path / "other.safetensors", tensors), "--json")["blocks"]
    assert [block["weight"] for block in blocks.values()] == pytest.approx([0.5**power] * len(SD1_BLOCKS))
    assert all(block["error"] < 1e-6 for block in blocks.values())
