"""Metadata: kept, but for what a bake would make a lie; one record of ours is added."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import (
    SD1_ALL_BLOCKS,
    BakeFile,
    Run,
    Tensors,
    data_of,
    kohya_lora,
    metadata_of,
    record_in,
    sdxl_lora,
    unet_lora,
    write,
)
from safetensors.numpy import load_file, save

from lbw_bake import __version__

TRAINED = {
    "ss_output_name": "original",
    "ss_base_model_version": "sd_v1",
    "ss_tag_frequency": '{"a": {"日本": 1}}',
    "modelspec.title": "original",
    "format": "pt",
}
HASHES = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8, "modelspec.hash_sha256": "0x" + "0" * 64}
# More than a megabyte, so that the window of the legacy hash holds data; and a file that ends before it.
SIZES = pytest.mark.parametrize("rank", [4, 450], ids=["small", "large"])


def pair(rank: int = 4) -> Tensors:
    """A module of the text encoder and one of the UNet."""
    return kohya_lora(["te_text_model_encoder_layers_0_mlp_fc1", "unet_middle_block_1_proj_in"], rank, width=400)


class TestHashes:
    """The library's own writer is the judge, as trainers call it."""

    @SIZES
    @pytest.mark.parametrize("weights", ["*=0.5", "*=1", "MID=0 *=1"])
    def test_the_hash_of_the_data_is_that_of_the_new_data(
        self, weights: str, rank: int, tmp_path: Path, bake_file: BakeFile
    ) -> None:
        baked = bake_file(write(tmp_path / "a.safetensors", pair(rank), TRAINED | HASHES), "-w", weights)
        digest = hashlib.sha256(data_of(baked)).hexdigest()
        assert metadata_of(baked)["sshs_model_hash"] == digest
        assert metadata_of(baked)["modelspec.hash_sha256"] == f"0x{digest}"

    @SIZES
    @pytest.mark.parametrize("weights", ["*=0.5", "*=1", "MID=0 *=1"])
    def test_the_legacy_hash_is_that_of_a_file_with_the_trainers_metadata_alone(
        self, weights: str, rank: int, tmp_path: Path, bake_file: BakeFile
    ) -> None:
        baked = bake_file(write(tmp_path / "a.safetensors", pair(rank), TRAINED | HASHES), "-w", weights)
        metadata = metadata_of(baked)
        judge = save(load_file(baked), {name: text for name, text in metadata.items() if name.startswith("ss_")})
        assert (len(judge) > 0x110000) == (rank > 4)
        assert metadata["sshs_legacy_hash"] == hashlib.sha256(judge[0x100000:0x110000]).hexdigest()[:8]

    def test_the_legacy_hash_of_a_file_whose_metadata_fill_its_window(
        self, tmp_path: Path, bake_file: BakeFile
    ) -> None:
        """As the tags of a large data set do. With one entry of the trainer's the judge's order is ours."""
        trained = {"ss_tag_frequency": json.dumps({f"tag {i}": i for i in range(80_000)})}
        tensors = kohya_lora(["unet_middle_block_1_proj_in"])
        source = write(tmp_path / "a.safetensors", tensors, trained | {"sshs_legacy_hash": ""})
        judge = save(tensors, trained)
        assert len(judge) > 0x110000
        expected = hashlib.sha256(judge[0x100000:0x110000]).hexdigest()[:8]
        assert metadata_of(bake_file(source, "-w", "*=0.5"))["sshs_legacy_hash"] == expected

    @pytest.mark.parametrize("options", [(), ("--prune",), ("--dtype", "f32"), ("--dtype", "f32", "--prune")])
    def test_the_legacy_hash_of_a_file_without_metadata_of_the_trainer(
        self, options: tuple[str, ...], tmp_path: Path, bake_file: BakeFile
    ) -> None:
        """As kohya's trainer signs files with --no_metadata; no family is certain, so there is none afterwards."""
        tensors = kohya_lora(["unet_middle_block_1_proj_in", "unet_middle_block_1_proj_out"], 800, width=640)
        source = write(tmp_path / "a.safetensors", tensors, {"sshs_legacy_hash": ""})
        baked = bake_file(source, "-w", "*=0.5", "--element", ":proj_out:0", *options)
        judge = save(load_file(baked), {})
        assert not any(name.startswith("ss_") for name in metadata_of(baked))
        assert len(judge) > 0x110000
        assert metadata_of(baked)["sshs_legacy_hash"] == hashlib.sha256(judge[0x100000:0x110000]).hexdigest()[:8]

    @pytest.mark.parametrize("name", HASHES)
    def test_each_is_renewed_alone_and_none_is_added(self, name: str, tmp_path: Path, bake_file: BakeFile) -> None:
        baked = metadata_of(bake_file(write(tmp_path / "a.safetensors", pair(), {name: HASHES[name]}), "-w", "*=0.5"))
        assert baked.keys() & HASHES.keys() == {name}
        assert baked[name] != HASHES[name]

    def test_they_hold_where_modules_are_removed_and_tensors_widened(self, tmp_path: Path, bake_file: BakeFile) -> None:
        tensors = pair() | {"lora_unet_input_blocks_4_1_proj_in.set_weight": np.ones((4, 4), np.float16)}
        source = write(tmp_path / "a.safetensors", tensors, HASHES)
        baked = bake_file(source, "-w", "IN04=0 *=0.5", "--dtype", "f32")
        assert metadata_of(baked)["sshs_model_hash"] == hashlib.sha256(data_of(baked)).hexdigest()


class TestNames:
    def test_the_alias_becomes_the_new_name(self, tmp_path: Path, run: Run) -> None:
        source = write(tmp_path / "a.safetensors", pair(), TRAINED)
        run("bake", source, "-w", "*=0.5", "-o", tmp_path / "new.name.safetensors")
        assert metadata_of(tmp_path / "new.name.safetensors")["ss_output_name"] == "new.name"

    def test_no_alias_is_added(self, tmp_path: Path, bake_file: BakeFile) -> None:
        assert "ss_output_name" not in metadata_of(bake_file(write(tmp_path / "a.safetensors", pair()), "-w", "*=0.5"))

    @pytest.mark.parametrize(("tensors", "version"), [(unet_lora(), "sd_v1"), (sdxl_lora(), "sdxl_base_v1-0")])
    def test_a_missing_base_model_is_added_where_it_is_certain(
        self, tensors: Tensors, version: str, tmp_path: Path, bake_file: BakeFile
    ) -> None:
        metadata = metadata_of(bake_file(write(tmp_path / "a.safetensors", tensors), "-w", "*=0.5"))
        assert metadata.keys() == {"lbw_bake", "ss_base_model_version"}
        assert metadata["ss_base_model_version"] == version

    @pytest.mark.parametrize("v2", [{}, {"ss_v2": "False"}])
    def test_so_is_the_entry_by_which_sd2_is_told(
        self, v2: dict[str, str], tmp_path: Path, bake_file: BakeFile
    ) -> None:
        tensors = kohya_lora(["te_text_model_encoder_layers_0_self_attn_q_proj"], width=1024)
        metadata = metadata_of(bake_file(write(tmp_path / "a.safetensors", tensors, v2), "-w", "*=0.5"))
        assert metadata["ss_base_model_version"] == "sd_v2"
        assert metadata["ss_v2"] == v2.get("ss_v2", "True")

    def test_it_is_not_added_where_several_fit(self, tmp_path: Path, bake_file: BakeFile) -> None:
        source = write(tmp_path / "a.safetensors", kohya_lora(["unet_middle_block_1_proj_in"]))
        assert metadata_of(bake_file(source, "-w", "*=0.5")).keys() == {"lbw_bake"}

    def test_none_is_added_of_a_model_that_kohya_has_no_name_for(self, tmp_path: Path, bake_file: BakeFile) -> None:
        names = [f"unet_double_stream_blocks_{i}_block_attn1_to_q" for i in range(16)]
        source = write(tmp_path / "a.safetensors", kohya_lora(names, width=2560))
        baked = bake_file(source, "-w", "*=0.5")
        assert record_in(baked)["family"] == "hidream"
        assert metadata_of(baked).keys() == {"lbw_bake"}

    def test_one_that_is_there_is_kept(self, tmp_path: Path, bake_file: BakeFile) -> None:
        source = write(tmp_path / "a.safetensors", unet_lora(), {"ss_base_model_version": "sd_v1_custom"})
        assert metadata_of(bake_file(source, "-w", "*=0.5"))["ss_base_model_version"] == "sd_v1_custom"


class TestKept:
    def test_exactly_one_key_is_added(self, tmp_path: Path, bake_file: BakeFile) -> None:
        baked = metadata_of(bake_file(write(tmp_path / "a.safetensors", pair(), TRAINED), "-w", "*=0.5"))
        del baked["lbw_bake"]
        assert baked == TRAINED | {"ss_output_name": "a"}

    def test_nothing_else_changes_if_not_wanted(self, tmp_path: Path, bake_file: BakeFile) -> None:
        metadata = TRAINED | HASHES
        del metadata["ss_base_model_version"]
        source = write(tmp_path / "a.safetensors", pair(), metadata)
        baked = metadata_of(bake_file(source, "-w", "*=0.5", "--no-metadata-update"))
        assert baked.pop("lbw_bake")
        assert baked == metadata


class TestRecord:
    def test_it_says_what_was_baked(self, tmp_path: Path, bake_file: BakeFile) -> None:
        source = write(tmp_path / "some lora.safetensors", unet_lora())
        options = ("--strength", "0.8", "--te", "0.5", "--unet", "2", "--element", "IN05-OUT05:attn:0.5")
        record = record_in(bake_file(source, "--preset", "MIDD", *options))
        midd = {"BASE", "IN05", "IN07", "IN08", "MID", "OUT03", "OUT04", "OUT05", "OUT06"}
        assert record == {
            "version": __version__,
            "family": "sd1",
            "preset": "MIDD",
            "weights": {block: float(block in midd) for block in SD1_ALL_BLOCKS} | {"OTHER": 1.0},
            "strength": 0.8,
            "te": 0.5,
            "unet": 2.0,
            "elements": ["IN05-OUT05:attn:0.5"],
            "seed": None,
            "source": "some lora.safetensors",
        }

    def test_random_weights_are_recorded_as_numbers(self, lora: Path, bake_file: BakeFile) -> None:
        record = record_in(bake_file(lora, "-w", ",".join("R" * 17), "--seed", "7"))
        assert record["seed"] == 7
        assert len({record["weights"][block] for block in ("BASE", "IN01", "MID", "OUT11")}) == 4

    def test_elements_are_recorded_as_exactly_as_they_were_used(self, lora: Path, bake_file: BakeFile) -> None:
        baked = bake_file(lora, "-w", "*=1", "--element", "MID:proj:0.123456789")
        assert [float(rule.split(":")[2]) for rule in record_in(baked)["elements"]] == [0.123456789]

    def test_a_file_that_fits_several_families_says_which(self, tmp_path: Path, bake_file: BakeFile) -> None:
        source = write(tmp_path / "a.safetensors", kohya_lora(["unet_input_blocks_4_1_proj_in"], width=640))
        found = {family: record_in(bake_file(source, "-w", "*=0.5", *family)) for family in ((), ("--family", "sdxl"))}
        assert found[()]["candidates"] == ["sd1", "sd2", "sdxl"]
        assert "candidates" not in found["--family", "sdxl"]
        assert found["--family", "sdxl"]["family"] == "sdxl"

    @pytest.mark.parametrize("earlier", [{"version": "0"}, [{"version": "0"}], "not a record", 5])
    def test_baking_again_makes_it_a_list_and_warns(self, earlier: Any, tmp_path: Path, run: Run) -> None:
        text = earlier if isinstance(earlier, str) else json.dumps(earlier)
        source = write(tmp_path / "a.safetensors", pair(), {"lbw_bake": text})
        error = run.done("bake", source, "-w", "*=0.5", "-o", tmp_path / "b.safetensors")
        assert "was baked before" in error
        records = record_in(tmp_path / "b.safetensors")
        assert records[:-1] == (earlier if isinstance(earlier, list) else [earlier])
        assert records[-1]["family"] == "sd1"

    def test_both_bakes_multiply(self, lora: Path, bake_file: BakeFile, run: Run) -> None:
        twice = bake_file(bake_file(lora, "-w", "MID=0.5 *=1"), "-w", "MID=0.5 *=0.25")
        facts = run.json("diff", lora, twice, "--json")
        assert facts["matches_record"] is True
        assert facts["blocks"]["MID"]["weight"] == pytest.approx(0.25)
        assert facts["blocks"]["OUT03"]["weight"] == pytest.approx(0.25)
