"""A file appears complete or not at all, whatever happens on the way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from types import ModuleType

import pytest
from conftest import Run, bound_by_permissions, called, content_of, lbw, measured, python, unet_lora, write
from safetensors.numpy import load_file

from lbw_bake import atomic, temporary, tensordata
from lbw_bake.atomic import atomic_write, claim, make_room, write_all
from lbw_bake.errors import OutputError
from lbw_bake.temporary import TEMPORARY_SUFFIX

REPLACE = pytest.mark.parametrize("replace", [False, True], ids=["new", "replaced"])


@pytest.fixture(params=["new", "replaced"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
    """A path to write to, and whether something is there that may be replaced."""
    path = tmp_path / "out.safetensors"
    replace = request.param == "replaced"
    if replace:
        path.write_bytes(b"old")
    return path, replace


def test_what_was_replaced_just_before_it_was_claimed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    for file in (path, other):
        file.write_bytes(file.name.encode())
    monkeypatch.setattr(atomic, "lock", lambda file: other.replace(path).exists())
    with pytest.raises(OutputError, match="another process is about to replace it"), claim(path):
        pytest.fail("whoever replaced it is not to be overwritten")
    monkeypatch.undo()
    with claim(path):
        assert path.read_bytes() == b"b.yaml"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """No file may become larger: the nearest thing to a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python would cache only the beginnings of modules that are imported meanwhile, and stumble over them ever after.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = writes


def test_it_appears_when_it_is_complete(target: tuple[Path, bool]) -> None:
    path, replace = target
    before = content_of(path.parent)
    with atomic_write(path, replace=replace) as file:
        write_all(file, b"new")
        (temporary,) = {entry.name for entry in path.parent.iterdir()} - before.keys()
        assert {name: content for name, content in content_of(path.parent).items() if name in before} == before
    assert content_of(path.parent) == {"out.safetensors": b"new"}
    assert path.stat().st_nlink == 1
    # A web UI that scans the folder meanwhile must not offer it.
    assert temporary.startswith(".")
    assert not temporary.endswith(".safetensors")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_what_goes_wrong_leaves_all_as_it_was(target: tuple[Path, bool], error: type[BaseException]) -> None:
    path, replace = target
    before = content_of(path.parent)

    def fail_halfway() -> None:
        with atomic_write(path, replace=replace) as file:
            write_all(file, b"new")
            raise error

    with pytest.raises((error, OutputError)):
        fail_halfway()
    assert content_of(path.parent) == before


def test_an_existing_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    with pytest.raises(OutputError, match=r"out\.safetensors: already exists"), atomic_write(path, replace=False):
        path.write_bytes(b"somebody was quicker")
    assert content_of(tmp_path) == {"out.safetensors": b"somebody was quicker"}


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_the_mode_is_that_of_any_new_file(tmp_path: Path, mask: int) -> None:
    with umask(mask), atomic_write(tmp_path / "out", replace=False):
        pass
    assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o666 & ~mask


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o460])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "out"
    path.touch()
    path.chmod(mode)
    with umask(0o077), atomic_write(path, replace=True):
        (temporary,) = tmp_path.glob(f".*{TEMPORARY_SUFFIX}")
        assert temporary.stat().st_mode & 0o7777 == mode, "what was private is readable by others for a while"
    assert path.stat().st_mode & 0o7777 == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_replaced_file_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.touch()
    os.chown(path, 1234, 5678)
    with atomic_write(path, replace=True):
        pass
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


def test_a_write_protected_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(OutputError, match="write-protected"), atomic_write(path, replace=True):
        pass
    assert content_of(tmp_path) == {"out": b"old"}


def test_a_file_is_on_disk_before_it_replaces_another_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    events: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def flushed(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        fsync(descriptor)
        events.append(f"{kind} flushed")

    def renamed(source: Path, target: Path) -> None:
        rename(source, target)
        events.append("renamed")

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    with atomic_write(path, replace=True) as file:
        write_all(file, b"new")
    assert events == ["file flushed", "renamed", "folder flushed"]


LONGEST = {"ascii": "x" * 243 + ".safetensors", "wide": "東" * 81 + ".safetensors"}


@REPLACE
@pytest.mark.parametrize("name", LONGEST.values(), ids=LONGEST)
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path, name: str, replace: bool) -> None:
    assert len(name.encode()) == 255
    with atomic_write(tmp_path / name, replace=replace) as file:
        write_all(file, b"new")
    assert content_of(tmp_path) == {name: b"new"}


REFUSED = {
    "no folder": ("missing/out", errno.ENOENT),
    "a file for a folder": ("file/out", errno.ENOTDIR),
    "a name too long": ("x" * 256, errno.ENAMETOOLONG),
}


@REPLACE
@pytest.mark.parametrize(("name", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_the_system_refuses_is_said_with_the_path(tmp_path: Path, name: str, reason: int, replace: bool) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / name
    with pytest.raises(OutputError) as problem, atomic_write(path, replace=replace):
        pass
    assert problem.value.message == f"{path}: cannot be written: {os.strerror(reason)}"


@bound_by_permissions
def test_a_folder_one_may_not_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"), atomic_write(tmp_path / "out", replace=False):
        pass


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with atomic_write(tmp_path / "out", replace=False) as file:
        write_all(file, b"new")
    assert content_of(tmp_path) == {"out": b"new"}
    with pytest.raises(OutputError, match="already exists"), atomic_write(tmp_path / "out", replace=False):
        pass


@pytest.mark.parametrize("options", [("-w", "*=0.5"), ("-w", "*=1")], ids=["multiplied", "copied by the kernel"])
def test_a_full_disk_leaves_nothing_behind(
    target: tuple[Path, bool],
    options: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, _ = target
    monkeypatch.setattr("lbw_bake.outputs._LONG", 0)
    source = write(tmp_path_factory.mktemp("input") / "a.safetensors", unet_lora())
    before = content_of(path.parent)
    with largest_file(source.stat().st_size // 2):
        error = run.refused("bake", source, "-o", path, "--force", *options)
    assert f"error: {path}: cannot be written: {os.strerror(errno.EFBIG)}" in error
    assert "hint: " in error
    assert content_of(path.parent) == before


@pytest.mark.parametrize("fault", ["header", "data", "header again", "flush"])
@pytest.mark.parametrize("full", ["MIDD", "OUTALL"])
def test_of_several_outputs_the_one_that_cannot_be_written_is_named(
    full: str, fault: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.safetensors", unet_lora(), {"sshs_model_hash": "0"})

    class File(FileIO):
        written = False

        def write(self, data: bytes | memoryview) -> int:
            what = "data" if self.tell() else "header again" if self.written else "header"
            if full in os.fsdecode(self.name) and fault == what:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.written = True
            return super().write(data)

    def fsync(descriptor: int) -> None:
        if full in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(temporary, "FileIO", File)
    if fault == "flush":
        monkeypatch.setattr(os, "fsync", fsync)
    places = ("--out-dir", tmp_path, "--name", "{stem}-{preset}", "--family", "sd1", "--verify")
    threads = threading.active_count()
    error = run.refused("bake", source, "-p", "MIDD", "-p", "OUTALL", *places)
    assert threading.active_count() == threads
    assert f"error: {tmp_path / f'a-{full}.safetensors'}: cannot be written: {os.strerror(errno.ENOSPC)}" in error
    assert content_of(tmp_path).keys() == {"a.safetensors"}


@pytest.mark.parametrize("opener", [temporary, tensordata], ids=["output", "input"])
def test_too_many_open_files_are_said_with_the_limit_to_raise(
    opener: ModuleType, lora: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(opener, "FileIO", refuse)
    error = run.refused("bake", lora, "-w", "*=0.5", "-o", tmp_path / "b.safetensors")
    assert os.strerror(errno.EMFILE) in error
    assert "hint: raise the limit of open files (ulimit -n)" in error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = called("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("options", [("-w", "*=0.5"), ("-w", "*=1"), ("-w", "*=0.5", "--in-place")], ids=" ".join)
def test_a_disk_that_is_really_full(options: tuple[str, ...], small_disk: Path, run: Run) -> None:
    source = write(small_disk / "a.safetensors", unet_lora())
    (small_disk / "out.safetensors").write_bytes(b"old")
    (small_disk / "filler").write_bytes(bytes(48 * 1024 - source.stat().st_size))
    before = content_of(small_disk)
    place = () if "--in-place" in options else ("-o", small_disk / "out.safetensors", "--force")
    error = run.refused("bake", source, *options, *place)
    assert "No space left on device" in error
    assert "hint: make room on the disk" in error
    assert content_of(small_disk) == before


def test_a_full_device_is_said_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left") as problem, atomic_write(tmp_path / "out", replace=False):
        Path("/dev/full").write_bytes(b"x")
    assert problem.value.hint == "make room on the disk and run it again"


class TestLeftovers:
    """What a killed run leaves behind is removed by the next one, and nothing else is."""

    NAME = f".out.safetensors.0123abcd{TEMPORARY_SUFFIX}"

    @pytest.fixture
    def left(self, tmp_path: Path) -> Path:
        left = tmp_path / self.NAME
        left.write_bytes(b"half")
        return left

    @staticmethod
    def write_another(folder: Path) -> None:
        temporary.clear_leftovers_once.cache_clear()  # as in a process of its own
        with atomic_write(folder / "another", replace=True):
            pass

    def test_they_are_removed(self, left: Path) -> None:
        self.write_another(left.parent)
        assert content_of(left.parent) == {"another": b""}

    @pytest.mark.parametrize("command", [("bake", "A", "-w", "*=0.5"), ("merge", "A", "A")], ids=["bake", "merge"])
    def test_a_killed_run_leaves_what_the_next_removes(
        self, command: tuple[str, ...], lora: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        code = (
            "import os, signal, sys; from lbw_bake import cli, tensorfile, outputs, merging\n"
            "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
            "outputs.write_all = merging.write_all = die\n"
            "cli.main(sys.argv[1:])"
        )
        args = [lora if word == "A" else word for word in command]
        assert python("-c", code, *args, "-o", out / "b.safetensors").returncode == -signal.SIGKILL
        (left,) = out.iterdir()
        assert left.name.startswith(".")
        assert left.name.endswith(TEMPORARY_SUFFIX)
        assert lbw(*args, "-o", out / "b.safetensors").returncode == 0
        assert [path.name for path in out.iterdir()] == ["b.safetensors"]

    def test_one_that_is_being_written_stays(self, tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from lbw_bake.atomic import atomic_write, write_all\n"
            "with atomic_write(Path(sys.argv[1]), replace=False) as file:\n"
            "    write_all(file, b'half'); print('writing', flush=True)\n"
            "    sys.stdin.readline(); write_all(file, b' whole')"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "out")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            process.stdout.readline()
            (temporary,) = tmp_path.iterdir()
            os.utime(temporary, (0, 0))  # however old it is
            self.write_another(tmp_path)
            assert temporary.exists()
            process.communicate("\n", timeout=60)
        assert process.returncode == 0
        assert content_of(tmp_path) == {"out": b"half whole", "another": b""}

    @pytest.mark.parametrize("name", [f".x{TEMPORARY_SUFFIX}", f"x.0123abcd{TEMPORARY_SUFFIX}", ".x.0123abcd.partial"])
    def test_what_lbw_does_not_make_stays(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).touch()
        self.write_another(tmp_path)
        assert content_of(tmp_path).keys() == {name, "another"}

    def test_links_and_folders_stay(self, left: Path, tmp_path: Path) -> None:
        target = left.rename(tmp_path / "precious")
        left.symlink_to(target)
        (tmp_path / f".x.00000000{TEMPORARY_SUFFIX}").mkdir()
        self.write_another(tmp_path)
        assert len(list(tmp_path.iterdir())) == 4
        assert target.read_bytes() == b"half"

    @pytest.mark.parametrize(("hours", "stays"), [(23, True), (25, False)])
    def test_without_locks_it_is_a_day(
        self, hours: int, stays: bool, left: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        written = time.time() - hours * 3600
        os.utime(left, (written, written))
        self.write_another(left.parent)
        assert left.exists() is stays

    def test_a_new_file_that_is_taken_for_one_is_made_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between making a file and locking it another process may find it unlocked."""
        flock, meddled = fcntl.flock, []

        def meddle(file: FileIO, flags: int) -> None:
            if not meddled:
                meddled.append(file.name)
                Path(os.fsdecode(file.name)).unlink()
            flock(file, flags)

        monkeypatch.setattr(fcntl, "flock", meddle)
        with atomic_write(tmp_path / "out", replace=False) as file:
            write_all(file, b"new")
        assert meddled
        assert content_of(tmp_path) == {"out": b"new"}


# Of two writers that race each other; more of them with ROUNDS=300 python -m pytest.
ROUNDS = int(os.environ.get("ROUNDS", "20"))

WRITERS = {
    "new": ("-o", "OUT", "already exists"),
    "in place": ("--in-place", "another process is about to replace it|was replaced while it was read|changed while"),
    "replaced": ("-o", "OUT", "--force", "nothing: one after the other"),
}


@pytest.mark.parametrize("case", WRITERS.values(), ids=WRITERS)
def test_of_two_writers_one_wins_whole_and_the_other_says_so(case: tuple[str, ...], tmp_path: Path) -> None:
    """Two processes start their bakes at the same moment, each with a weight of its own, again and again."""
    *options, said = case
    weights = (0.5, 0.25)
    with ExitStack() as running:
        bakers = [running.enter_context(Baker()) for _ in weights]
        for number in range(ROUNDS):
            source = write(tmp_path / f"{number}.safetensors", unet_lora())
            output = tmp_path / f"{number}.out.safetensors" if "OUT" in options else source
            places = [str(output) if option == "OUT" else option for option in options]
            for baker, weight in zip(bakers, weights, strict=True):
                baker.start("bake", str(source), "-w", f"*={weight}", *places)
            codes, errors = zip(*(baker.wait() for baker in bakers), strict=True)
            (got,) = set(measured(unet_lora(), load_file(output)))
            if codes == (0, 0):
                assert got in {"--in-place": (0.125,), "--force": weights}[options[-1]]
            else:
                assert sorted(codes) == [0, 1]
                assert got == weights[codes.index(0)]
                assert re.search(said, errors[codes.index(1)]), errors
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


class Baker:
    """A process that runs `lbw` commands when told to, so that two can start at the same moment."""

    _CODE = """
import contextlib, io, json, sys
from lbw_bake.cli import main
for line in sys.stdin:
    code, said = 0, io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            main(json.loads(line))
    except SystemExit as stop:
        code = stop.code or 0
    print(json.dumps([code, said.getvalue()]), flush=True)
"""

    def __enter__(self) -> Baker:
        command = [sys.executable, "-c", self._CODE]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate(timeout=60)

    def start(self, *args: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(args) + "\n")
        self._process.stdin.flush()

    def wait(self) -> tuple[int, str]:
        assert self._process.stdout
        code, said = json.loads(self._process.stdout.readline())
        return code, said


def test_an_output_that_is_no_file_is_not_replaced(lora: Path, tmp_path: Path) -> None:
    """As root, replacing /dev/null would be the last thing many programs see of it."""
    os.mkfifo(tmp_path / "pipe")
    result = lbw("bake", lora, "-p", "MIDD", "-o", tmp_path / "pipe", "--force", timeout=20)
    assert result.returncode == 1
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system finds no room ahead")
@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSPC])
def test_room_that_cannot_be_found_ahead_is_left_to_who_writes(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with atomic_write(tmp_path / "a", replace=False) as file:
        make_room(file, 0, 100)
        write_all(file, b"content")
    assert (tmp_path / "a").read_bytes() == b"content"
