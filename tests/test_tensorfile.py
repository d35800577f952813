"""Headers: read as they are, judged before they are trusted, written as they were."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    MODULE,
    Entry,
    Run,
    bound_by_permissions,
    entries_of,
    header_of,
    lbw,
    metadata_of,
    write_header,
    write_raw,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lbw_bake.errors import FileFormatError, LbwError
from lbw_bake.inspection import inspect
from lbw_bake.tensorfile import Header, Tensor, in_data_order, read_header

# Every dtype of the format, with the bits of an element.
BITS = {
    4: ("F4",),
    6: ("F6_E2M3", "F6_E3M2"),
    8: ("BOOL", "U8", "I8", "F8_E8M0", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    16: ("U16", "I16", "F16", "BF16"),
    32: ("U32", "I32", "F32"),
    64: ("U64", "I64", "F64", "C64"),
}
DTYPES = {dtype: bits for bits, dtypes in BITS.items() for dtype in dtypes}
# A LoRA module, so that there is something to bake.
LORA: tuple[Entry, ...] = (
    (f"{MODULE}.lora_down.weight", "F16", (2, 4), bytes(range(16))),
    (f"{MODULE}.lora_up.weight", "F16", (4, 2), bytes(range(16))),
)


def every_dtype() -> list[Entry]:
    return [(f"tensor of {dtype}", dtype, (4, 2), bytes(range(bits))) for dtype, bits in DTYPES.items()]


def test_every_dtype_is_read(tmp_path: Path) -> None:
    file = read_header(write_raw(tmp_path / "a.safetensors", every_dtype()))
    assert {tensor.dtype: tensor.nbytes for tensor in file.tensors} == DTYPES
    assert {tensor.size for tensor in file.tensors} == {8}


def test_every_dtype_survives_a_bake(tmp_path: Path, run: Run) -> None:
    source = write_raw(tmp_path / "a.safetensors", [*every_dtype(), *LORA])
    run.done("bake", source, "-w", "*=0.5", "-o", tmp_path / "b.safetensors")
    before, after = entries_of(source), entries_of(tmp_path / "b.safetensors")
    assert {name: after[name] for name, *_ in every_dtype()} == {name: before[name] for name, *_ in every_dtype()}


@pytest.mark.parametrize(
    "header_order", [None, lambda name: name, lambda name: name[::-1]], ids=["data", "a-z", "mixed"]
)
def test_a_header_may_list_tensors_in_another_order_than_their_data(
    tmp_path: Path, header_order: Callable[[str], str] | None
) -> None:
    path = write_raw(tmp_path / "a.safetensors", every_dtype(), header_order=header_order)
    file = read_header(path)
    assert [tensor.name for tensor in file.tensors] == list(header_of(path))
    assert [tensor.name for tensor in in_data_order(file.tensors)] == [name for name, *_ in every_dtype()]


METADATA = [
    {},
    {"a": "1"},
    {"ключ": "значение 東京 🎨", "quote": 'a "b" \\ \n\t\x1f /', "empty": ""},
    {"\x7f\u2028": "\u202e"},
]


@pytest.mark.parametrize("metadata", METADATA)
def test_a_header_that_is_read_and_written_is_the_same(tmp_path: Path, metadata: dict[str, str]) -> None:
    first = read_header(write_raw(tmp_path / "a.safetensors", every_dtype(), metadata, header_order=lambda name: name))
    data = (tmp_path / "a.safetensors").read_bytes()[first.data_start :]
    (tmp_path / "b.safetensors").write_bytes(Header(first.tensors).encode(first.metadata) + data)
    second = read_header(tmp_path / "b.safetensors")
    assert (second.tensors, second.metadata) == (first.tensors, metadata)
    assert second.data_start % 8 == 0
    with safe_open(tmp_path / "b.safetensors", framework="np") as judge:
        assert (judge.metadata() or {}) == metadata


@pytest.mark.parametrize("spelling", [{"separators": (",", ":")}, {}, {"indent": "\t"}], ids=["short", "usual", "long"])
@pytest.mark.parametrize("place", ["first", "amid", "last"])
def test_metadata_are_read_wherever_a_writer_puts_them(tmp_path: Path, spelling: dict[str, Any], place: str) -> None:
    entries: list[tuple[str, Any]] = [
        (name, {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}) for i, name in enumerate("ab")
    ]
    entries.insert(["first", "amid", "last"].index(place), ("__metadata__", {"a": '},"b":{', "b": "{"}))
    file = read_header(write_header(tmp_path / "a.safetensors", json.dumps(dict(entries), **spelling).encode(), b"12"))
    assert file.metadata == dict(entries)["__metadata__"]
    assert file.tensors == (Tensor("a", "U8", (1,), 0, 1), Tensor("b", "U8", (1,), 1, 2))


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["short", "usual"])
def test_metadata_that_a_reader_changes_are_the_files_own_to_the_next(
    tmp_path: Path, separators: tuple[str, str]
) -> None:
    header = {"__metadata__": {"a": "1"}, "x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    path = write_header(tmp_path / "a.safetensors", json.dumps(header, separators=separators).encode(), b"\0")
    metadata: Any = read_header(path).metadata
    metadata.clear()
    assert read_header(path).metadata == {"a": "1"}


def test_no_metadata_may_be_written_as_null(tmp_path: Path) -> None:
    header = b'{"__metadata__":null,"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    assert read_header(write_header(tmp_path / "a.safetensors", header, b"\0")).metadata == {}


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_tensors_may_be_empty_or_scalar(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = b"" if 0 in shape else b"\0\0"
    file = read_header(write_raw(tmp_path / "a.safetensors", [("x", "F16", shape, data), ("y", "U8", (1,), b"1")]))
    assert [(tensor.shape, tensor.nbytes) for tensor in file.tensors] == [(shape, len(data)), ((1,), 1)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_header_is_refused_or_read_but_never_a_surprise(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(write_raw(tmp_path / "a.safetensors", LORA, {"key": "value"}).read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.sampled_from(b'\x00 "{}[],:0129-eFIU\xff'))
    (tmp_path / "a.safetensors").write_bytes(content)
    with contextlib.suppress(LbwError):
        inspect(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", ["folder", "missing"])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(FileFormatError) as problem:
        read_header(path)
    assert problem.value.message.startswith(f"{path}: ")


@bound_by_permissions
def test_an_unreadable_file_is_refused_by_name(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.safetensors", LORA)
    path.chmod(0)
    with pytest.raises(FileFormatError, match="cannot be read: Permission denied"):
        read_header(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    result = lbw("inspect", tmp_path / "pipe.safetensors", timeout=10)
    assert result.returncode == 1
    assert "is a pipe or device, not a file" in result.stderr


@pytest.mark.parametrize("command", [("inspect",), ("bake", "-w", "*=0.5", "-o", "out.safetensors"), ("diff", "x")])
def test_no_command_shows_a_traceback(tmp_path: Path, command: tuple[str, ...]) -> None:
    broken = write_header(tmp_path / "a.safetensors", b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', b"123")
    result = lbw(*command, broken)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_metadata_and_its_order_survive_a_bake(tmp_path: Path, run: Run) -> None:
    metadata = {"z": "1", "a": METADATA[2]["ключ"], "m": METADATA[2]["quote"]}
    source = write_raw(tmp_path / "a.safetensors", LORA, metadata)
    run.done("bake", source, "-w", "*=0.5", "-o", tmp_path / "b.safetensors")
    assert list(metadata_of(tmp_path / "b.safetensors").items())[:3] == list(metadata.items())


def test_a_header_may_be_as_long_as_a_pickle_begins(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = write_header(tmp_path / "a.safetensors", header + b" " * (0x280 - len(header)), bytes(4))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert [tensor.name for tensor in read_header(path).tensors] == ["a"]
