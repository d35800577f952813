"""A batch on a real Dask cluster of processes, one of which is killed at work."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, measured, unet_lora, write
from safetensors.numpy import load_file

from lbw_bake import Naming, Recipe, Weights, make_batch, run_batch
from lbw_bake.batch import _DASKS_LOGS, _ended, _silence, for_cluster
from lbw_bake.errors import OutputError
from lbw_bake.jobs import Job
from lbw_bake.run import Outcome

distributed = pytest.importorskip("distributed", reason="needs dask.distributed")

# Sockets that a killed worker leaves behind are closed by the garbage collector.
pytestmark = pytest.mark.filterwarnings("default::ResourceWarning", "default::pytest.PytestUnraisableExceptionWarning")

ORIGINAL = unet_lora()
FILES = 30


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two worker processes."""
    settings = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with distributed.LocalCluster(**settings) as running:
        yield running


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """A folder of LoRAs."""
    folder = tmp_path / "loras"
    folder.mkdir()
    for i in range(FILES):
        write(folder / f"{i:02}.safetensors", ORIGINAL)
    return folder


def test_a_worker_elsewhere_finds_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(base=Path("models/base.safetensors"))
    too_long = Path(f"{'b' * 300}.safetensors")  # which is its own problem, not the batch's
    job, _ = (for_cluster(Job(Path("a.safetensors"), ((path, recipe),))) for path in (Path("b.safetensors"), too_long))
    ((output, elsewhere),) = job.outputs
    assert [job.input, output, elsewhere.base] == [
        tmp_path / name for name in ("a.safetensors", "b.safetensors", "models/base.safetensors")
    ]


def test_a_worker_that_dies_loses_nothing(loras: Path, cluster: Any, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    victim = next(iter(cluster.workers.values())).pid

    def kill_when_at_work() -> None:
        while not any(out.glob("*.safetensors")):
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill_when_at_work)
    killer.start()
    code, printed, error = run(
        "bake", loras, "-w", "*=0.5", "--out-dir", out, "--cluster", cluster.scheduler_address, "--json", "-q"
    )
    killer.join()
    assert code == 0, error
    outcomes = [json.loads(line) for line in printed.splitlines()]
    assert {outcome["status"] for outcome in outcomes} <= {"baked", "skipped"}
    baked = sorted(out.glob("*.safetensors"))
    assert len(baked) == FILES
    assert all(set(measured(ORIGINAL, load_file(path))) == {0.5} for path in baked)


@pytest.mark.parametrize(
    ("error", "reason"), [(RuntimeError("out of memory"), "out of memory"), (OSError(), "OSError")]
)
def test_a_job_that_no_worker_survives_fails_alone(error: Exception, reason: str, tmp_path: Path) -> None:
    job, future = Job(tmp_path / "a", ((tmp_path / "b", Recipe()),)), Future[list[Outcome]]()
    future.set_exception(error)
    _, (outcome,) = _ended(future, job)
    assert (outcome.input, outcome.output, outcome.status) == (tmp_path / "a", tmp_path / "b", "failed")
    assert f"{tmp_path / 'a'}: was not done by the cluster: {reason}" in str(outcome.error)


def test_no_cluster_replaces_inputs(loras: Path) -> None:
    """What it does twice would be baked twice."""
    batch = make_batch([loras], Recipe(Weights.of("*=0.5"), in_place=True), Naming(in_place=True))
    with pytest.raises(OutputError, match="may do a file twice"):
        next(run_batch(batch, cluster="tcp://127.0.0.1:1"))


def test_failures_are_those_of_the_files(loras: Path, cluster: Any, tmp_path: Path, run: Run) -> None:
    (loras / "bad.safetensors").write_bytes(b"no LoRA")
    existing = tmp_path / "out" / "00.safetensors"
    existing.parent.mkdir()
    existing.write_bytes(b"old")
    options = ("-w", "*=0.5", "--out-dir", existing.parent, "--cluster", cluster.scheduler_address, "--json")
    code, printed, error = run("bake", loras, *options)
    assert code == 1
    failed = {Path(outcome["input"]).name for outcome in map(json.loads, printed.splitlines()) if outcome["error"]}
    assert failed == {"bad.safetensors", "00.safetensors"}
    assert f"{FILES - 1} written, 2 failed" in error
    assert existing.read_bytes() == b"old"


@pytest.mark.parametrize("address", ["tcp:nowhere", "inproc://foo", "tls://127.0.0.1:1", "ucx://127.0.0.1:1", "a://b"])
def test_a_cluster_that_is_not_there_is_one_line(address: str, loras: Path, tmp_path: Path, run: Run) -> None:
    options = ("-w", "*=0.5", "--out-dir", tmp_path / "out", "--cluster", address)
    said = [line.partition(": ")[::2] for line in run.refused("bake", loras, *options).splitlines()]
    assert [label for label, _ in said] == ["error", "hint"]
    assert said[0][1].startswith(f"--cluster {address}: cannot be reached: ")


def test_a_program_hears_of_its_own_clusters_afterwards(loras: Path, cluster: Any, tmp_path: Path) -> None:
    logs = [logging.getLogger(name) for name in _DASKS_LOGS]
    before = [log.level for log in logs]
    batch = make_batch([loras], [Recipe(Weights.of("*=0.5"))], Naming(out_dir=tmp_path / "out"))
    for _ in run_batch(batch, cluster=cluster.scheduler_address):
        assert {log.level for log in logs} == {logging.CRITICAL}
    assert [log.level for log in logs] == before


def test_batches_on_clusters_that_overlap_are_heard_of_when_all_have_ended() -> None:
    logs = [logging.getLogger(name) for name in _DASKS_LOGS]
    before = [log.level for log in logs]
    with ExitStack() as first, ExitStack() as second:
        for batch in (first, second):
            batch.enter_context(_silence)
        first.close()
        assert {log.level for log in logs} == {logging.CRITICAL}
    assert [log.level for log in logs] == before


def test_waiting_for_workers_is_said_and_a_scheduler_that_dies(loras: Path, tmp_path: Path) -> None:
    found = tmp_path / "scheduler.json"
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(found)]
    scheduler += ["--port", "0", "--dashboard-address", ":0", "--host", "127.0.0.1"]
    with subprocess.Popen(scheduler, stderr=subprocess.DEVNULL) as dying:
        try:
            while not found.exists() or not found.read_text():
                time.sleep(0.1)
            address = json.loads(found.read_text())["address"]
            command = [sys.executable, "-m", "lbw_bake", "bake", str(loras), "-w", "*=0.5", "--cluster", address]
            command += ["--out-dir", str(tmp_path / "out")]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as baking:
                assert baking.stderr
                assert baking.stderr.readline() == f"waiting: for workers; the cluster {address} has none\n"
                dying.kill()
                _, error = baking.communicate(timeout=100)
        finally:
            dying.kill()
    assert baking.returncode == 1
    assert error.count(": was not done by the cluster: its scheduler is gone\nhint: ") == FILES
    assert error.splitlines()[2 * FILES :] == [f"done: 0 written, {FILES} failed"]
