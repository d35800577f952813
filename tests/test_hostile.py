"""Files of strangers: refused in one line, in little time and memory; read by name alone; never obeyed."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import socket
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import strategies
from conftest import MODULE, ROOT, Entry, Run, python, unet_lora, write, write_header, write_raw
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lbw_bake import alphas
from lbw_bake.checks import check
from lbw_bake.cli import main
from lbw_bake.console import escape, json_text
from lbw_bake.errors import FileFormatError, LbwError, WeightError
from lbw_bake.families import FAMILIES, OTHER
from lbw_bake.keys import LONGEST_NAME, parse_key
from lbw_bake.presets.document import MOST_FINDINGS
from lbw_bake.presets.findings import RULES
from lbw_bake.presets.formats import LONGEST, READERS, read_document
from lbw_bake.scaling import FLOATS
from lbw_bake.tensordata import TensorData
from lbw_bake.tensorfile import LONGEST_HEADER, MOST_VALUES, read_header
from lbw_bake.tokens import parse_token
from lbw_bake.weights import Options, parse_elements, parse_source, resolve

sys.path.insert(0, str(ROOT / "fuzz"))
import fuzz

RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
LORA: tuple[Entry, ...] = (
    (f"{MODULE}.lora_down.weight", "F16", (2, 4), bytes(range(16))),
    (f"{MODULE}.lora_up.weight", "F16", (4, 2), bytes(range(16))),
)

# Every command that reads a LoRA; FILE is the stranger's, GOOD another, OUT must not appear when FILE is refused.
COMMANDS: dict[str, tuple[str, ...]] = {
    "bake": ("bake", "FILE", "-w", "*=0.5", "-o", "OUT"),
    "dry run": ("bake", "FILE", "-w", "*=0.5", "--dry-run", "--json"),
    "truncate": ("bake", "FILE", "-w", "*=0.5", "-o", "OUT", "--rank", "1"),
    "inspect": ("inspect", "FILE", "--spectrum"),
    "inspect two": ("inspect", "FILE", "GOOD", "--json"),
    "diff": ("diff", "GOOD", "FILE"),
    "merge": ("merge", "GOOD", "FILE:0.5:ALL", "-o", "OUT"),
    "sweep": ("sweep", "FILE", "--x", "values=0,0.5", "-o", "OUT"),
}
EVERY_COMMAND = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good.safetensors", unet_lora())


def filled(command: Sequence[str], file: Path, good: Path, out: Path) -> list[str]:
    paths = {"FILE": file, "GOOD": good, "OUT": out}
    return [re.sub("FILE|GOOD|OUT", lambda match: str(paths[match[0]]), part) for part in command]


def entry(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def file_of(header: object, data: bytes = b"1234", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


TRUE = file_of({"x": entry()})
NESTED = b"[" * 100_000 + b"]" * 100_000
ENTRY = json.dumps(entry()).encode()


def zipped(name: str = "archive/data.pkl", pickled: bytes = pickle.dumps({})) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, pickled)
    return content.getvalue()


# Content, and what the error has to say.
VIOLATIONS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "shorter than the 8 bytes"),
    "shorter than a length": (b"\x10\0\0", "shorter than the 8 bytes"),
    "shorter than a length by a byte": (TRUE[:7], "shorter than the 8 bytes"),
    "a length and no more": (TRUE[:8], "ends before its header"),
    "a header of no bytes": (file_of(b"", b""), "invalid JSON"),
    "cut off in the header": (TRUE[:20], "ends before its header"),
    "a length one too long": (file_of({"x": entry()}, b"", len(TRUE)), "ends before its header"),
    "a length beyond the file": (file_of({"x": entry()}, length=1 << 20), "ends before its header"),
    "a length one too short": (file_of({"x": entry()}, length=len(TRUE) - 13), "invalid JSON"),
    "a length just above 100 MB": (file_of(b"{}", length=LONGEST_HEADER + 1), "longer than 100 MB"),
    "a length of 2^62": (file_of({"x": entry()}, length=1 << 62), "longer than 100 MB"),
    "a length of 2^63": (file_of(b"{}", length=1 << 63), "longer than 100 MB"),
    "a length of 2^64 - 1": (file_of(b"{}", length=(1 << 64) - 1), "longer than 100 MB"),
    "cut off in the data": (TRUE[:-1], "longer or shorter than its tensors"),
    "trailing bytes": (TRUE + b"5", "longer or shorter than its tensors"),
    "a text of no UTF-8": (file_of(b'"\xff"', b""), "invalid UTF-8"),
    "no UTF-8": (file_of(b'{"\xff":' + ENTRY + b"}"), "invalid UTF-8"),
    "an overlong zero": (file_of(b'{"\xc0\x80":' + ENTRY + b"}"), "invalid UTF-8"),
    "surrogates in UTF-8": (file_of(b'{"\xed\xa0\x80":' + ENTRY + b"}"), "invalid UTF-8"),
    "UTF-16": (file_of(json.dumps({"x": entry()}).encode("utf-16-le")), "invalid JSON"),
    "a byte order mark": (file_of(b"\xef\xbb\xbf" + json.dumps({"x": entry()}).encode()), "invalid JSON"),
    "a lone surrogate": (file_of(b'{"\\ud800":' + ENTRY + b"}"), "invalid JSON"),
    "no JSON": (file_of(b"{nope}"), "invalid JSON"),
    "JSON of another kind": (file_of([]), "invalid JSON"),
    "a number": (file_of(b"1"), "invalid JSON"),
    "null": (file_of(b"null"), "invalid JSON"),
    "JSON and more": (file_of(b'{"x":' + ENTRY + b"}{}"), "invalid JSON"),
    "a comma at the end": (file_of(b'{"x":' + ENTRY + b",}"), "invalid JSON"),
    "a comment": (file_of(b'{/**/"x":' + ENTRY + b"}"), "invalid JSON"),
    "NaN": (file_of(b'{"x":{"dtype":"U8","shape":[NaN],"data_offsets":[0,4]}}'), "invalid JSON"),
    "nested lists": (file_of(NESTED), "invalid JSON"),
    "nested lists without an end": (file_of(b"[" * 100_000), "invalid JSON"),
    "a nested shape": (file_of(b'{"x":{"dtype":"U8","data_offsets":[0,4],"shape":' + NESTED + b"}}"), "invalid JSON"),
    "a nested field of no meaning": (
        file_of(b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"more":' + NESTED + b"}}"),
        "invalid JSON",
    ),
    "a number of 10,000 digits": (
        file_of(b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"more":' + b"1" * 10_000 + b"}}"),
        "number out of range",
    ),
    "a tensor listed twice": (file_of(b'{"x":' + ENTRY + b',"x":' + ENTRY + b"}"), "'x' is listed twice"),
    "a name listed twice in two spellings": (
        file_of(b'{"x":' + ENTRY + b',"\\u0078":' + ENTRY + b"}"),
        "'x' is listed twice",
    ),
    "metadata listed twice": (file_of(b'{"__metadata__":{},"__metadata__":{},"x":' + ENTRY + b"}"), "duplicate field"),
    "a metadata key listed twice": (
        file_of(b'{"__metadata__":{"a":"1","a":"2"},"x":' + ENTRY + b"}"),
        "'a' is listed twice",
    ),
    "a dtype listed twice": (
        file_of(b'{"x":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}'),
        "duplicate field",
    ),
    "metadata that are a list": (file_of({"__metadata__": [], "x": entry()}), "invalid JSON"),
    "metadata that are a text": (file_of({"__metadata__": "x", "x": entry()}), "invalid JSON"),
    "a number in the metadata": (file_of({"__metadata__": {"a": 1}, "x": entry()}), "expected a string"),
    "null in the metadata": (file_of({"__metadata__": {"a": None}, "x": entry()}), "expected a string"),
    "a mapping in the metadata": (file_of({"__metadata__": {"a": {}}, "x": entry()}), "expected a string"),
    "an entry that is null": (file_of({"x": None}), "invalid JSON"),
    "an entry that is a list": (file_of({"x": []}), "invalid JSON"),
    "no dtype": (file_of({"x": {"shape": [4], "data_offsets": [0, 4]}}), "missing field `dtype`"),
    "no shape": (file_of({"x": {"dtype": "U8", "data_offsets": [0, 4]}}), "missing field `shape`"),
    "no offsets": (file_of({"x": {"dtype": "U8", "shape": [4]}}), "missing field `data_offsets`"),
    "an unknown dtype": (file_of({"x": entry("F128")}), "holds numbers of an unknown dtype, F128"),
    "a dtype in small letters": (file_of({"x": entry("u8")}), "holds numbers of an unknown dtype, u8"),
    "a dtype that is a number": (file_of({"x": entry(8)}), "invalid JSON"),
    "a shape too large for its bytes": (file_of({"x": entry(shape=[5])}), "as many as its shape"),
    "a shape too small for its bytes": (file_of({"x": entry(shape=[3])}), "as many as its shape"),
    "a shape that overflows": (file_of({"x": entry(shape=[1 << 40, 1 << 40])}), "larger than any file"),
    "a shape beyond 64 bits": (file_of({"x": entry(shape=[1 << 64])}), "invalid JSON"),
    "a negative shape": (file_of({"x": entry(shape=[-4])}), "invalid value: integer `-4`"),
    "a shape of floats": (file_of({"x": entry(shape=[4.0])}), "floating point `4.0`"),
    "a shape of booleans": (file_of({"x": entry(shape=[True, 4])}), "boolean `true`"),
    "a shape of texts": (file_of({"x": entry(shape=["4"])}), "invalid JSON"),
    "a shape that is a number": (file_of({"x": entry(shape=4)}), "invalid JSON"),
    "half a byte": (file_of({"x": entry("F4", [1], [0, 1])}, b"1"), "byte boundary"),
    "one offset": (file_of({"x": entry(offsets=[0])}), "invalid JSON"),
    "three offsets": (file_of({"x": entry(offsets=[0, 4, 4])}), "invalid JSON"),
    "offsets that are floats": (file_of({"x": entry(offsets=[0, 4.0])}), "invalid JSON"),
    "offsets that are booleans": (file_of({"x": entry(shape=[1], offsets=[False, True])}, b"1"), "invalid JSON"),
    "negative offsets": (file_of({"x": entry(offsets=[-4, 0])}), "invalid value: integer `-4`"),
    "offsets of 2^64": (file_of({"x": entry(offsets=[0, 1 << 64])}), "invalid JSON"),
    "offsets near 2^64": (
        file_of({"x": entry(shape=[0], offsets=[(1 << 64) - 1] * 2), "y": entry()}),
        "overlap, leave a gap or end before they start",
    ),
    "offsets beyond the data": (file_of({"x": entry(shape=[8], offsets=[0, 8])}), "longer or shorter"),
    "offsets in reverse": (file_of({"x": entry(offsets=[4, 0])}), "overlap, leave a gap or end before they start"),
    "overlapping tensors": (
        file_of({"x": entry(), "y": entry(shape=[2], offsets=[2, 4])}),
        "overlap, leave a gap or end before they start; the first is `y`",
    ),
    "the same bytes twice": (file_of({"x": entry(), "y": entry()}), "overlap, leave a gap"),
    "a gap before": (file_of({"x": entry(shape=[3], offsets=[1, 4])}), "overlap, leave a gap"),
    "a gap between": (
        file_of({"x": entry(shape=[2], offsets=[0, 2]), "y": entry(shape=[1], offsets=[3, 4])}),
        "overlap, leave a gap",
    ),
    "more values than any model": (file_of(b'{"x":{"shape":[' + b"0," * MOST_VALUES + b"0]}}"), "more than any model"),
    "a zip archive": (zipped(), "is a zip archive"),
    "a zip archive of an empty file": (zipped("data.pkl", b""), "is a zip archive"),
    "a pickled checkpoint": (pickle.dumps({"state_dict": {}}, 2), "is a Python pickle"),
    "a pickled checkpoint of today": (pickle.dumps({"state_dict": list(range(100))}, 4), "is a Python pickle"),
    **{
        f"a pickle of protocol {protocol}": (pickle.dumps(dict.fromkeys(range(99)), protocol), "is a Python pickle")
        for protocol in (2, 3, 4, 5)
    },
    "a GGUF file": (b"GGUF\x03\0\0\0" + bytes(64), "is a GGUF file"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "a web page": (b"<!DOCTYPE html><html></html>", "is a web page"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_every_violation_is_an_error_of_the_format(name: str, tmp_path: Path) -> None:
    file = tmp_path / "stranger.safetensors"
    file.write_bytes(VIOLATIONS[name][0])
    with pytest.raises(FileFormatError, match=re.escape(str(file))):
        read_header(file)


@EVERY_COMMAND
@pytest.mark.parametrize("name", VIOLATIONS)
def test_every_violation_is_refused_in_one_line_that_names_it(
    name: str, command: tuple[str, ...], tmp_path: Path, good: Path, run: Run
) -> None:
    content, said = VIOLATIONS[name]
    file = tmp_path / "stranger.safetensors"
    file.write_bytes(content)
    before = set(tmp_path.rglob("*"))
    code, out, error = run(*filled(command, file, good, tmp_path / "out"))
    first, *rest = [line for line in error.splitlines() if line.startswith(("error: ", "hint: "))]
    assert code == 1
    assert first.startswith(f"error: {file}: ")
    assert said in first
    assert len(rest) <= 1
    assert all(line.startswith("hint: ") for line in rest)
    assert "Traceback" not in out + error
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize(
    ("content", "said"),
    [(zipped(), "is a zip archive"), (pickle.dumps({}, 2), "is a Python pickle")],
    ids=["zip", "pickle"],
)
def test_pytorch_checkpoints_are_named_and_never_unpickled(
    suffix: str, content: bytes, said: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "load", None)
    file = tmp_path / f"model{suffix}"
    file.write_bytes(content)
    error = run.refused("bake", file, "-w", "*=0.5", "-o", tmp_path / "out.safetensors")
    assert said in error
    assert "hint: convert it to safetensors first" in error


# Forms that look odd and that the format allows, beside a LoRA.
ALLOWED: dict[str, dict[str, object]] = {
    "null metadata": {"__metadata__": None},
    "empty metadata": {"__metadata__": {}},
    "an empty tensor": {"empty": entry("F16", [0], [32, 32])},
    "an empty tensor of a huge shape": {"empty": entry("F16", [1 << 40, 0], [32, 32])},
    "an empty tensor amid the others": {"empty": entry("F16", [3, 0], [16, 16])},
    "a field of no meaning": {"empty": entry("U8", [0], [32, 32], more={"a": [1, None, "x"]})},
    "a name of nothing": {"": entry("U8", [0], [32, 32])},
    "a name of a megabyte": {"x" * (1 << 20): entry("U8", [0], [32, 32])},
    "a name of a megabyte of dots": {"lora_unet_" + "." * (1 << 20): entry("U8", [0], [32, 32])},
    "a role's name of a megabyte": {f"lora_unet_{'self_attn_' * 100_000}.lora_up.weight": entry("U8", [0], [32, 32])},
    "more digits than Python turns into a number": {
        f"lora_unet_down_blocks_{'9' * 5000}_x.lora_up.weight": entry("U8", [0], [32, 32])
    },
}


@EVERY_COMMAND
@pytest.mark.parametrize("name", ALLOWED)
def test_what_the_format_allows_is_read(name: str, command: tuple[str, ...], tmp_path: Path, run: Run) -> None:
    header = {"__metadata__": {"a": "b"}}
    header |= {tensor: entry(dtype, shape, (16 * i, 16 * i + 16)) for i, (tensor, dtype, shape, _) in enumerate(LORA)}
    file = write_header(
        tmp_path / "a.safetensors", json.dumps(header | ALLOWED[name]).encode(), b"".join(data for *_, data in LORA)
    )
    good = write_raw(tmp_path / "good.safetensors", LORA)
    error = run.done(*filled(command, file, good, tmp_path / "out"))
    assert len(error) < 20_000


class TestBounds:
    """A limit on memory makes the process fail where it takes more than it should."""

    CODE = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 20,) * 2)\n"
        "from lbw_bake.cli import main; main(sys.argv[2:])"
    )

    @staticmethod
    def headers() -> Iterator[tuple[str, bytes, str]]:
        tail = b'"shape":[0],"data_offsets":[0,0]'
        fill = LONGEST_HEADER - 100
        yield "one name", b'{"' + b"a" * fill + b'":{"dtype":"U8",' + tail + b"}}", "no LoRA module"
        yield "spaces", b"{" + b" " * fill + b"}", "empty file"
        yield "one value", b'{"__metadata__":{"a":"' + b"\\u0001" * (fill // 6) + b'"}}', "empty file"
        tensors = b",".join(b'"%x":{"dtype":"U8",%b}' % (i, tail) for i in range(1_000_000))
        yield "a million tensors", b"{" + tensors + b"}", "more than any model"
        yield (
            "eight million keys",
            b'{"__metadata__":{' + b",".join(b'"%x":""' % i for i in range(8_000_000)) + b"}}",
            ("more than any model"),
        )
        yield "fifty million sizes", b'{"x":{"shape":[' + b"0," * (fill // 2) + b"0]}}", "more than any model"
        yield "nested lists", b"[" * fill, "more than any model"

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS as Linux has it")
    @pytest.mark.parametrize("case", range(7))
    def test_a_header_of_100_mb_is_read_or_refused_in_bounded_memory(self, case: int, tmp_path: Path) -> None:
        _, header, said = list(self.headers())[case]
        assert len(header) <= LONGEST_HEADER
        file = write_header(tmp_path / "a.safetensors", header)
        result = python("-c", self.CODE, 1400, "inspect", file)
        assert result.returncode == 1, result.stderr[-500:]
        assert said in result.stderr
        assert len(result.stderr) < 20_000

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS as Linux has it")
    @pytest.mark.parametrize("command", [("inspect", "--spectrum"), ("diff", "FILE"), ("merge", "FILE", "-o", "OUT")])
    @pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "tucker", "full"])
    def test_thin_factors_do_not_become_thick_matrices(
        self, kind: str, command: tuple[str, ...], tmp_path: Path
    ) -> None:
        n = 1 << 20
        tall, flat = np.zeros((n, 1), np.float16), np.zeros((1, n), np.float16)
        tensors = {
            "lora": {"lora_down.weight": tall, "lora_up.weight": flat},
            "full": {"lora_down.weight": flat, "lora_up.weight": tall, "diff": flat},
            "loha": {"hada_w1_a": flat, "hada_w1_b": tall, "hada_w2_a": flat, "hada_w2_b": tall},
            "lokr": {"lokr_w1": tall, "lokr_w2": flat},
            "tucker": {
                "lora_down.weight": flat,
                "lora_up.weight": flat.T,
                "lora_mid.weight": np.zeros((n, 1, 1, 1), "f2"),
            },
        }[kind]
        file = write(tmp_path / "a.safetensors", {f"{MODULE}.{role}": array for role, array in tensors.items()})
        arguments = [{"FILE": str(file), "OUT": str(tmp_path / "out")}.get(part, part) for part in command[1:]]
        result = python("-c", self.CODE, 4000, command[0], file, *arguments)
        assert result.returncode in (0, 1), result.stderr[-500:]
        assert "Traceback" not in result.stderr


@RELAXED
@given(content=strategies.headers(), data=st.binary(max_size=8))
def test_any_header_at_all_is_read_or_refused(
    content: object, data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(file_of(content, data))
    with contextlib.suppress(LbwError):
        read_header(path)


def finite(path: Path) -> bool:
    """Whether all numbers of a file are."""
    file = read_header(path)
    with TensorData(file) as data, np.errstate(all="ignore"):
        return all(np.isfinite(data.read(tensor)).all() for tensor in file.tensors if tensor.dtype in FLOATS)


def read_or_refused(command: Sequence[str], entries: Sequence[Entry], base: Sequence[Entry] = ()) -> None:
    """Call a command with FILE, and BASE, of these tensors: no traceback, and no infinity that was not there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, out = write_raw(folder / "a.safetensors", entries), folder / "out"
        there = write_raw(folder / "base.safetensors", base)
        with pytest.raises(SystemExit) as stop:
            main([str(there) if part == "BASE" else part for part in filled(command, file, file, out)])
        assert stop.value.code in (None, 0, 1)
        assert not out.is_file() or finite(out) or not finite(file)


ODD = {
    **{name: COMMANDS[name] for name in ("inspect", "diff", "merge", "sweep", "truncate")},
    "inexact": (*COMMANDS["bake"], "--inexact", "allow"),
    "zeroed": ("bake", "FILE", "-w", "*=0", "--prune", "--dtype", "bf16", "-o", "OUT"),
}


@pytest.mark.parametrize("command", ODD.values(), ids=ODD)
@RELAXED
@given(entries=strategies.modules())
@example(entries=[(f"{MODULE}.oft_blocks", "I64", (0, 0, 0, 0), b"")])
@example(entries=[(f"{MODULE}.oft_blocks", "F16", (1, 1, 1), b"\x00}")])  # a signalling NaN
@example(entries=[*LORA, (f"{MODULE}.alpha", "F64", (), np.float64(1e300).tobytes())])
@example(entries=[(f"{MODULE}.diff_b", "F64", (1,), np.float64(1e100).tobytes())])
@example(entries=[(f"{MODULE}.diff", "F64", (2, 2), np.full(4, 1e200).tobytes())])  # whose squares are not finite
@example(
    entries=[  # finite factors whose product is not
        (f"{MODULE}.lokr_w1", "F64", (1, 1), np.float64(1e300).tobytes()),
        (f"{MODULE}.lokr_w2", "F64", (2, 2), np.full(4, 1e300).tobytes()),
    ]
)
def test_modules_of_any_shapes_and_dtypes_are_read_or_refused(command: tuple[str, ...], entries: list[Entry]) -> None:
    read_or_refused(command, entries)


BASE_WEIGHT = "model.diffusion_model.middle_block.1.proj_in.weight"
SQUARE = np.ones((2, 2), np.float32).tobytes()
DECOMPOSED: tuple[Entry, ...] = (
    (f"{MODULE}.lora_down.weight", "F32", (2, 2), SQUARE),
    (f"{MODULE}.lora_up.weight", "F32", (2, 2), SQUARE),
)
ON_BASE = {
    "bake": (*COMMANDS["bake"], "--verify"),
    **{name: COMMANDS[name] for name in ("merge", "truncate", "sweep")},
}


@pytest.mark.parametrize("command", ON_BASE.values(), ids=ON_BASE)
@RELAXED
@given(entries=strategies.modules(), base=strategies.bases())
@example(  # weights without rows
    entries=[*DECOMPOSED, (f"{MODULE}.dora_scale", "F32", (1, 2), SQUARE[:8])],
    base=[(BASE_WEIGHT, "F32", (), SQUARE[:4])],
)
@example(  # magnitudes that are no floats
    entries=[*DECOMPOSED, (f"{MODULE}.dora_scale", "I32", (1, 2), SQUARE[:8])],
    base=[(BASE_WEIGHT, "F32", (2, 2), SQUARE)],
)
@example(entries=[(f"{MODULE}.oft_blocks", "F32", (2,), SQUARE[:8])], base=[(BASE_WEIGHT, "F32", (2, 2), SQUARE)])
@example(  # integers larger than all factors
    entries=[
        (f"{MODULE}.oft_blocks", "F32", (1, 1, 1), SQUARE[:4]),
        (f"{MODULE}.alpha", "I64", (2,), SQUARE),
    ],
    base=[(BASE_WEIGHT, "F32", (1, 1), SQUARE[:4])],
)
@example(  # factors without columns
    entries=[
        *((f"{MODULE}.{role}", "F32", (2,), SQUARE[:8]) for role in ("lokr_w1_a", "lokr_w1_b")),
        (f"{MODULE}.lokr_w2", "F32", (2, 2), SQUARE),
        (f"{MODULE}.dora_scale", "F32", (1, 2), SQUARE[:8]),
    ],
    base=[(BASE_WEIGHT, "F32", (2, 2), SQUARE)],
)
@example(  # a signalling NaN
    entries=[(f"{MODULE}.set_weight", "F32", (1,), SQUARE[:4])],
    base=[(BASE_WEIGHT, "F32", (1,), b"\x01\x00\x80\x7f")],
)
def test_modules_meet_any_base(command: tuple[str, ...], entries: list[Entry], base: list[Entry]) -> None:
    read_or_refused((*command, "--base", "BASE", "--family", "sd1"), entries, base)


class TestNames:
    """Names and values of a file are shown, and drive nothing."""

    UNSAFE = re.compile(
        r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|##\[|^\s*::", re.MULTILINE
    )

    @pytest.fixture
    def hostile(self, tmp_path: Path) -> Path:
        """A LoRA, named by a stranger, whose names and metadata are all the strange texts there are."""
        everything = "".join(text for text in strategies.DRIVING if text != "\ufffd")
        entries = [*LORA, (f"{everything}.lora_up.weight", "U8", (1,), b"1"), (everything, "U8", (1,), b"1")]
        entries += [
            (f"lora_unet_middle_block_1_{everything}.lora_{role}.weight".replace(".org", "_org"), "F16", (1, 1), b"12")
            for role in ("up", "down")
        ]
        metadata = {
            everything: everything,
            "ss_output_name": everything,
            "modelspec.architecture": everything,
            "lbw_bake": everything,
        }
        folder = tmp_path / "::error::x"
        folder.mkdir()
        return write_raw(folder / f"::e{everything.replace('/', '')[:60]}.safetensors", entries, metadata)

    @EVERY_COMMAND
    def test_no_output_drives_a_terminal_or_a_runner(
        self,
        command: tuple[str, ...],
        hostile: Path,
        good: Path,
        tmp_path: Path,
        run: Run,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(hostile.parent)
        code, out, error = run(*filled(command, Path(hostile.name), good, tmp_path / "out"))
        assert code in (0, 1)
        assert not self.UNSAFE.findall(out + error)
        assert "Traceback" not in error

    @pytest.mark.parametrize(
        "command", [("inspect", "--json"), ("diff", "FILE", "--json"), ("bake", "-w", "*=0.5", "--dry-run", "--json")]
    )
    def test_json_is_one_line_and_says_the_names_as_they_are(
        self, command: tuple[str, ...], hostile: Path, run: Run
    ) -> None:
        out = run.out(command[0], hostile, *(str(hostile) if part == "FILE" else part for part in command[1:]))
        (line,) = out.splitlines()
        assert not self.UNSAFE.findall(line)
        assert str(hostile) in json.loads(line).values()

    def test_markup_and_emoji_codes_are_only_text(self, tmp_path: Path, run: Run) -> None:
        file = write_raw(tmp_path / "[red]:skull:[bold].safetensors", LORA)
        assert "[red]:skull:[bold].safetensors" in run("inspect", file)[1]
        assert "[red]:skull:[bold]" in run("inspect", file, file)[1]
        assert "[red]:skull:[bold].safetensors" in run("bake", file, "-w", "*=1", "--dry-run")[2]

    @pytest.mark.parametrize("kind", [".svg", ".png"])
    def test_a_picture_holds_names_as_text(self, kind: str, tmp_path: Path, run: Run) -> None:
        pytest.importorskip("matplotlib")
        files = [write_raw(tmp_path / f"{name}.safetensors", LORA) for name in ("\x1b[31m$x^{\n", "_-->\u202e<script>")]
        for chosen in (files, files[:1], files[1:]):
            run.done("inspect", *chosen, "--plot", tmp_path / f"x{kind}", "--force")
        if kind == ".svg":
            import xml.etree.ElementTree as ET

            assert not [node for node in ET.parse(tmp_path / "x.svg").iter() if node.tag.endswith("script")]

    @given(text=strategies.names)
    def test_escaping_leaves_nothing_that_drives(self, text: str) -> None:
        assert not self.UNSAFE.findall(escape(text))
        assert not self.UNSAFE.findall(json_text({text: text}))
        assert json.loads(json_text({text: [text, float("nan")]})) == {text: [text, None]}

    @given(text=st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="#:"), max_size=100))
    def test_plain_text_is_left_as_it_is(self, text: str) -> None:
        assert escape(text) == text or self.UNSAFE.search(text)

    def test_a_name_without_end_is_cut(self) -> None:
        assert len(escape("x" * 10_000_000)) < 5000

    @RELAXED
    @given(name=strategies.names, kind=strategies.kinds)
    def test_findings_are_one_line_each_in_every_format(self, name: str, kind: str) -> None:
        from lbw_bake import reports

        checked = check(f"{name}:1,2\n{name}: {{Q1: x}}".encode("utf-8", "replace"), Path(name), kind)
        for format_, lines in reports.FORMATS.items():
            for line in lines([checked]):
                if format_ in ("json", "sarif"):
                    json.loads(line)
                elif format_ == "github":
                    assert re.match(r"::(error|warning) file=", line)
                    assert not self.UNSAFE.findall(line.removeprefix("::"))
                else:
                    assert "\n" not in line
                assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]", line)


class TestPaths:
    """Where a file is written is said by the user and by the input's own name, by nothing inside the file."""

    STEERING = ("../../owned", "/tmp/owned", "..\\owned", "a/b", "~/owned", "owned\0", "..", "")

    @pytest.mark.parametrize("name", STEERING)
    def test_metadata_name_no_output(self, name: str, tmp_path: Path, run: Run) -> None:
        inside = tmp_path / "a" / "b"
        inside.mkdir(parents=True)
        metadata = dict.fromkeys(("ss_output_name", "modelspec.title", "name", "lbw_bake", "format"), name)
        file = write_raw(inside / "x.safetensors", LORA, metadata)
        run.done("bake", file, "-w", "*=0.5", "--out-dir", inside / "out")
        run.done("merge", file, file, "-o", inside / "merged.safetensors")
        run.done("sweep", file, "--x", "values=0.5", "-o", inside / "plot")
        found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
        plot = {
            f"a/b/plot/{name}"
            for name in ("x-0.5.safetensors", "manifest.json", "prompts.txt", "prompt-sr.txt", "comfyui.txt")
        }
        assert found == {"a/b/x.safetensors", "a/b/out/x.safetensors", "a/b/merged.safetensors", *plot}

    @pytest.mark.parametrize("name", ["../owned", "a/b", "/tmp/owned"])
    def test_a_preset_s_name_leads_out_of_no_folder(self, name: str, tmp_path: Path, run: Run) -> None:
        (tmp_path / "p.yaml").write_text(f'"{name}": {",".join(["1"] * 17)}\n')
        file = write_raw(tmp_path / "x.safetensors", LORA)
        before = set(tmp_path.rglob("*"))
        presets = ("--presets", tmp_path / "p.yaml")
        named = ("-p", name, "--out-dir", tmp_path / "out", "--name", "{preset}")
        assert "is not a file name" in run.refused("bake", file, *presets, *named)
        assert set(tmp_path.rglob("*")) <= {*before, tmp_path / "out"}
        run.done("sweep", file, *presets, "--x", f"presets={name}", "-o", tmp_path / "plot")
        assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {tmp_path, tmp_path / "plot"}

    @pytest.mark.parametrize(
        "shard", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "..\\x", "x\0", 5, None]
    )
    def test_an_index_of_shards_stays_in_its_folder(self, shard: object, tmp_path: Path, run: Run) -> None:
        folder = tmp_path / "model" / "unet"
        folder.mkdir(parents=True)
        (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        base = ("--base", tmp_path / "model", "--family", "sd1")
        error = run.refused("bake", self.dora(tmp_path), "-w", "*=0.5", "-o", tmp_path / "o", *base)
        assert "m.safetensors.index.json: " in error

    @pytest.mark.parametrize("text", ["[" * 100_000, '{"weight_map": []}', "{}", "[]", "\xff", ""])
    def test_an_index_that_is_none_is_refused(self, text: str, tmp_path: Path, run: Run) -> None:
        (tmp_path / "m.safetensors.index.json").write_bytes(text.encode("latin-1"))
        base = ("--base", tmp_path, "--family", "sd1")
        error = run.refused("bake", self.dora(tmp_path), "-w", "*=0.5", "-o", tmp_path / "o", *base)
        assert "is no index of shards" in error

    @staticmethod
    def dora(folder: Path) -> Path:
        """A file that needs its base model."""
        return write(folder / "x.safetensors", unet_lora() | {f"{MODULE}.dora_scale": np.ones((1, 8), np.float32)})


CONFIGS = {
    "an expression without end": {"lora_alpha": 4, "alpha_pattern": {"(a+)+$": 2}},
    "alternatives": {"lora_alpha": 4, "alpha_pattern": {"a|b": 2}},
    "patterns that are a list": {"lora_alpha": 4, "alpha_pattern": [1]},
    "an alpha that is a list": {"lora_alpha": []},
    "an alpha beyond floats": {"lora_alpha": 10**400},
}


# Pattern, name, and whether PEFT takes one for the other's.
PATTERNS = (
    ("proj_in", "mid_block.attentions.0.proj_in", True),
    ("proj_in", "mid_block.attentions.0.other_proj_in", False),
    ("^proj_in", "a.proj_in", False),
    ("^a.proj_in$", "a.proj_in", True),
    (r"layers\.\d+\.q", "model.layers.12.q", True),
    (r"layers\.\d+\.q", "model.layers.x.q", False),
    (r"x\d+.*2", "x12", True),
    ("mid_block.*proj_in", "mid_block.attentions.0.proj_in", True),
    ("mid_block.*proj_in", "mid_block.attentions.0.proj_in.x", False),
    ("a.*b.*c", "x.a.c.b", False),
    (".*", "anything", True),
)


@pytest.mark.parametrize(("pattern", "name", "fits"), PATTERNS)
def test_alpha_patterns_mean_what_they_mean_to_peft(pattern: str, name: str, fits: bool) -> None:
    assert alphas._fits(pattern, name) == fits == bool(re.match(rf"(.*\.)?({pattern})$", name))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("where", ["metadata", "beside"])
def test_an_adapter_configuration_is_data(config: object, where: str, tmp_path: Path, run: Run) -> None:
    name = f"unet.mid_block.attentions.0.{'a' * 40}.proj_in"
    entries = [(f"{name}.lora_{role}.weight", "F16", (2, 2), bytes(8)) for role in "AB"]
    text = json.dumps(config)
    metadata = {"lora_adapter_metadata": text} if where == "metadata" else {}
    file = write_raw(tmp_path / "x.safetensors", entries, metadata)
    (tmp_path / "adapter_config.json").write_text(text)
    error = run.refused("merge", file, file, "-o", tmp_path / "o.safetensors")
    assert "x.safetensors: the alpha of unet.mid_block.attentions.0" in error


class TestPresetFiles:
    BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 8)}]\n" for i in range(9)
    )
    REFUSED: ClassVar = {
        "a billion laughs": (BOMB, "LBW502", 2),
        "a merge key": ("a: 1,0\nb:\n  <<: {x: 1}\n", "LBW505", 3),
        "an alias": ("a: 1\nb: *a\n", "LBW502", 2),
        "a tag that makes an object": ("a: !!python/object/apply:os.system [x]\n", "LBW502", 1),
        "a key given twice": (f"a: {','.join('1' * 17)}\na: {','.join('0' * 17)}\n", "LBW201", 2),
        "lists without end": ("a: " + "[" * 10_000, "LBW507", 1),
        "mappings without end": ("a: " + "{a: " * 10_000, "LBW507", 1),
        "blocks without end": ("\n".join(" " * i + "a:" for i in range(500)), "LBW507", 21),
        "a selector of 10,000 words": ("a:\n  elements: '" + "Q " * 10_000 + ":x:1'", "LBW507", 2),
        "10,000 block rules": ("a: {" + ", ".join(f"Q{i}: 1" for i in range(10_000)) + "}", "LBW507", 1),
        "a quarter of a megabyte": ("#" * (LONGEST + 1), "LBW507", 1),
    }

    @pytest.mark.parametrize("name", REFUSED)
    def test_what_no_preset_file_needs_is_an_error_with_its_place(self, name: str, tmp_path: Path, run: Run) -> None:
        text, rule, line = self.REFUSED[name]
        path = tmp_path / "p.yaml"
        path.write_text(text)
        code, out, _ = run("validate", path, "--format", "json")
        found = next(finding for finding in json.loads(out) if finding["code"] == rule)
        assert code == 1
        assert found["line"] == line
        error = run.refused("presets", "show", "a", "--presets", path)
        assert error.startswith(f"error: {path}:")

    @pytest.mark.parametrize("kind", READERS)
    @pytest.mark.parametrize(
        "unit",
        [
            "\n",
            " ",
            "#",
            "A:1,2\n",
            "A:",
            ",",
            "1,",
            "A:Q:x:1\n\n",
            "A:Q:x:1,",
            "[",
            "- ",
            "? ",
            '"',
            "\x85",
            "@a: 1",
            "\t",
            "A: {Q: 1}\n",
            "\uff1a",
            "a" * 99 + " ",
        ],
    )
    def test_a_file_of_the_longest_length_ends(self, kind: str, unit: str) -> None:
        found = check((unit * LONGEST)[:LONGEST].encode()[:LONGEST], Path("x"), kind).findings
        assert len(found) <= 2 * MOST_FINDINGS + 2

    def test_reading_ends_in_an_error_where_there_is_no_end_of_findings(self) -> None:
        findings = check(b"A:1,2\n" * 10_000, Path("x"), "lbwpresets").findings
        assert "LBW111" in {finding.code for finding in findings}
        assert RULES["LBW111"].severity == "error"

    def test_a_device_without_end_is_not_read_to_its_end(self, run: Run) -> None:
        if not Path("/dev/zero").exists():
            pytest.skip("needs /dev/zero")
        code, out, _ = run("validate", "/dev/zero", "--kind", "yaml", "--format", "text")
        assert code == 1
        assert "LBW507" in out
        assert "what a LoRA holds is shown by lbw inspect" in out

    @RELAXED
    @given(data=strategies.preset_files, kind=st.none() | strategies.kinds)
    def test_any_bytes_are_checked_and_every_place_is_in_the_file(self, data: bytes, kind: str | None) -> None:
        lines = re.split(r"\r\n|[\r\n\x85\u2028\u2029]", data.decode("utf-8", "replace"))
        for finding in check(data, Path("presets"), kind).findings:
            assert 1 <= finding.line <= len(lines)
            assert finding.column >= 1
        document = read_document(data, Path("presets"), kind)
        for preset in document.presets:
            for family in FAMILIES.values():
                with contextlib.suppress(LbwError):
                    resolve(preset.source_for(family), family, Options(x=1.0, seed=1, a=1.0, b=1.0))


@RELAXED
@given(text=strategies.weights)
def test_any_weights_mean_something_or_are_refused(text: str) -> None:
    for family in (FAMILIES["sd1"], FAMILIES["sdxl"], FAMILIES["flux"]):
        with contextlib.suppress(LbwError):
            found = resolve(parse_source(text), family, Options(x=1.0, seed=1, a=1.0, b=1.0))
            assert found.blocks.keys() == {*family.blocks, OTHER}
            assert all(np.isfinite(weight) for weight in found.blocks.values())
    with contextlib.suppress(WeightError):
        assert parse_elements(",".join(map(str, parse_elements(text)))) == parse_elements(text)


@RELAXED
@given(text=strategies.tokens)
def test_any_token_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(LbwError):
        parse_token(text)


@given(
    name=strategies.names, ending=st.sampled_from(("", ".lora_up.weight", ".lora_A.x.weight", ".alpha", ".weight\n"))
)
def test_any_name_is_taken_apart_or_left(name: str, ending: str) -> None:
    key = parse_key(name + ending)
    if key:
        assert (name + ending).startswith(key.stem.partition("[")[0])


# What makes backtracking explode: long runs of one character or word, that nearly match.
RUNS = (" ", "a", "1", ".", "_", ":", ",", "-", "\t", "x ", "1.", "a:", "IN01=", "1,", "%-", "NOT ", "#")

# Matches every expression that meets texts without a limit (names have one, `LONGEST_NAME`) with runs of 100,000.
MATCH_ALL = f"""
import re
from lbw_bake import alphas, axes, lora, positions, selectors, sources, sweeps, tokens, values, weights
from lbw_bake.presets import grammar, lines, writers
from lbw_bake.presets.formats import READERS
MODULES = (alphas, axes, lora, positions, selectors, sources, sweeps, tokens, values, weights, grammar, lines, writers)
found = [(value, name) for module in MODULES
         for name, value in vars(module).items() if isinstance(value, re.Pattern)]
found += [(re.compile(format_.line), kind) for kind, format_ in READERS.items()]
found += [(re.compile(slip.shape), slip.hint) for slip in values.NAME_SLIPS]
found += [(re.compile(variable.spelling), variable.what) for variable in values.VARIABLES]
assert len(found) > 20
for pattern, name in found:
    print(name, flush=True)
    for run in {RUNS!r}:
        for start in ("", "A:", "@a", "<lora:"):
            for end in ("", "!", "x#"):
                text = start + run * (100_000 // len(run)) + end
                pattern.match(text), pattern.fullmatch(text)
"""


def test_no_expression_takes_more_than_linear_time() -> None:
    # What is quadratic takes minutes for each of the hundreds of texts; the last name printed is the one.
    result = python("-c", MATCH_ALL, timeout=300)
    assert result.returncode == 0, result.stderr


def test_names_are_taken_apart_up_to_a_length() -> None:
    ending = ".lora_up.weight"
    stem = "a" * (LONGEST_NAME - len(ending))
    assert parse_key(stem + ending)
    assert parse_key(f"a{stem}{ending}") is None


def test_no_command_touches_the_network(tmp_path: Path, good: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    presets = tmp_path / "p.yaml"
    presets.write_text(f"A: {','.join('1' * 17)}\n")
    commands: list[Sequence[object]] = [
        *(filled(command, good, good, tmp_path / f"out{i}") for i, command in enumerate(COMMANDS.values())),
        ("validate", presets),
        *(("presets", *words) for words in (("list",), ("show", "MIDD"), ("schema",))),
        ("presets", "add", "B", ",".join("1" * 17), "--presets", presets),
        ("presets", "convert", presets, tmp_path / "lbwpresets.txt"),
        ("presets", "remove", "B", "--presets", presets),
    ]
    for command in commands:
        run.done(*command)


FUZZED = sorted(path for path in fuzz.CRASHES.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", FUZZED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_crashed_a_reader_does_not(path: Path) -> None:
    fuzz.TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_the_fuzz_targets_run(target: str) -> None:
    for data in fuzz.seeds(target):
        fuzz.TARGETS[target](data)


class TestPictures:
    """The manifest and the pictures of a grid may come from anybody too."""

    MANIFEST: ClassVar = {
        "axes": {"x": {"kind": "values", "cells": ["0"]}},
        "cells": [{"x": "0", "y": None, "z": None, "file": "a.safetensors"}],
    }

    @pytest.mark.parametrize(
        "content", ["%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "GIF89a", "\x89PNG\r\n\x1a\n", ""]
    )
    def test_only_pictures_are_opened(self, content: str, tmp_path: Path, run: Run) -> None:
        pytest.importorskip("PIL")
        (tmp_path / "manifest.json").write_text(json.dumps(self.MANIFEST))
        (tmp_path / "a.png").write_bytes(content.encode("latin-1"))
        error = run.refused("sweep", "--grid", tmp_path, "-o", tmp_path / "grid.png")
        assert "is not a picture" in error

    @pytest.mark.parametrize(
        "change",
        [
            {"axes": {"x": {"kind": "values", "cells": []}}},
            {"axes": {"y": {"kind": "analyse", "cells": ["0"]}}},
            {"axes": {"x": {"kind": "values", "cells": ["0"] * 2_000_000}}},
            {"axes": []},
            {"cells": [{"x": "0", "y": None, "z": None, "file": "../a.safetensors"}]},
            {"cells": [{"x": [], "y": None, "z": None, "file": "a.safetensors"}]},
        ],
        ids=["no cells", "analysis of rows", "too many cells", "no axes", "another folder", "unhashable"],
    )
    def test_a_manifest_that_no_sweep_wrote_is_refused(
        self, change: dict[str, object], tmp_path: Path, run: Run
    ) -> None:
        image = pytest.importorskip("PIL.Image")
        (tmp_path / "manifest.json").write_text(json.dumps(self.MANIFEST | change))
        image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        error = run.refused("sweep", "--grid", tmp_path, "-o", tmp_path / "grid.png")
        assert "manifest" in error or "more cells" in error

    def test_labels_of_several_lines_are_drawn(self, tmp_path: Path, run: Run) -> None:
        image = pytest.importorskip("PIL.Image")
        label = "a\n\x1b[31mb"
        manifest = {
            "axes": {axis: {"kind": "values", "cells": [label]} for axis in "xyz"},
            "cells": [dict.fromkeys("xyz", label) | {"file": "a.safetensors"}],
        }
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        code, out, error = run("sweep", "--grid", tmp_path, "-o", tmp_path / "grid.png")
        assert code == 0, error
        assert not TestNames.UNSAFE.findall(out + error)
