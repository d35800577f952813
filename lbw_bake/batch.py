"""Many jobs: one after the other, in a process per core, or on a Dask cluster; a failure does not stop the rest."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from .errors import DeviceError, LbwError, OutputError
from .interrupts import uninterrupted
from .jobs import RETRIES, Batch, Job, Watch, repeatable
from .run import Outcome, failed, run

if TYPE_CHECKING:
    import logging
    from concurrent.futures import Future

# Worker processes take about half a second to start: two were quicker than none from 700 MB on for files of one kind
# without hashes, and sooner for others.
_WORTH_PROCESSES = 600_000_000

# How many at most on Windows, which waits for 63 things at a time: two for each.
_MOST_ON_WINDOWS = 31

# Seconds in which a cluster finishes nothing, after which one asks whether it is there.
_PATIENCE = 5

# Who tells of the cluster what errors and remarks of ours say.
_DASKS_LOGS = ("distributed", "distributed.client", "tornado.application")

_GONE = "its scheduler is gone"

Say = Callable[[str], None]


def run_batch(
    batch: Batch,
    *,
    workers: int = 0,
    cluster: str | None = None,
    say: Say = lambda _: None,
    watch: Watch = lambda *_: None,
) -> Generator[tuple[Job, list[Outcome]], None, None]:
    """Run all jobs, some at a time (0: one per core) or on a Dask cluster; yields each with its outcomes as it ends.

    They are run as the loop over them goes on, none before it begins; what processes are at when it is left, they
    finish. Processes are started only for so many bytes that it pays. `say` is told, in words, what a cluster keeps
    waiting for; `watch` is told a job, and the share of it, from 0 to 1, that this machine has done, if it is a large
    one. What is wrong with a file is in its outcomes. Raises DeviceError if a cluster cannot be reached, OutputError if
    it is to replace inputs.
    """
    if cluster:
        if any(recipe.in_place for job in batch.jobs for _, recipe in job.outputs):
            raise OutputError("a cluster may do a file twice, and in place would bake it twice", "name other outputs")
        yield from _on_cluster([for_cluster(job) for job in batch.jobs], cluster, say)
        return
    processes = _processes(batch, workers)
    share = sum(job.nbytes * len(job.outputs) for job in batch.jobs) // (processes or 1)
    jobs = [replace(job, share=share) for job in batch.jobs]
    if processes:
        from .workers import run_in_processes

        yield from run_in_processes(jobs, processes, watch)
    else:
        yield from ((job, run(job, partial(watch, job))) for job in jobs)


def _processes(batch: Batch, workers: int) -> int:
    """How many processes to start for so many jobs at a time (0: one per core); none where that would not pay."""
    workers = min(workers or os.cpu_count() or 1, len(batch.jobs))
    if sys.platform == "win32":
        workers = min(workers, _MOST_ON_WINDOWS)
    return workers if workers > 1 and batch.nbytes >= _WORTH_PROCESSES else 0


def for_cluster(job: Job) -> Job:
    """A job as another machine can do it, twice if need be, with absolute paths."""
    outputs = (
        (path and path.absolute(), replace(recipe, base=recipe.base and recipe.base.absolute()))
        for path, recipe in job.outputs
    )
    return repeatable(replace(job, input=job.input.absolute(), outputs=tuple(outputs)))


def _on_cluster(jobs: Sequence[Job], address: str, say: Say) -> Iterator[tuple[Job, list[Outcome]]]:
    """Run jobs on a Dask cluster. A scheduler that is gone for longer than Dask waits fails all that are left."""
    from concurrent.futures import TimeoutError as NothingYet
    from concurrent.futures import as_completed

    pending: dict[Future[list[Outcome]], Job] = {}
    waited = False
    with _dask(address) as client:
        executor = client.get_executor(retries=RETRIES, pure=False)
        try:
            with uninterrupted():
                pending.update((executor.submit(run, job), job) for job in jobs)
            while pending:
                try:
                    for future in as_completed([*pending], timeout=_PATIENCE):
                        yield _ended(future, pending.pop(future))
                except NothingYet:
                    if client.status == "closed":  # what it did not say by now it never will
                        break
                    if not waited and client.status == "running" and not client.scheduler_info()["workers"]:
                        say(f"for workers; the cluster {address} has none")
                        waited = True
            yield from (_lost(job, _GONE) for job in pending.values())
        except (KeyboardInterrupt, SystemExit):  # what is finished by now is said before the batch ends
            done = {future: job for future, job in pending.items() if not future.cancel()}
            yield from (_ended(future, job) for future, job in done.items() if future.exception() is None)
            raise


@contextmanager
def _dask(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError:
        raise DeviceError("--cluster needs dask.distributed", 'pip install "lbw-bake[dask]"') from None
    with _silence:
        try:
            client = Client(address, set_as_default=False)  # type: ignore[no-untyped-call]
        except Exception as error:  # of any kind, as the scheme and what follows it have it
            hint = "start a scheduler there, and give its address as tcp://HOST:PORT"
            raise DeviceError(f"--cluster {address}: cannot be reached: {_reason(error)}", hint) from error
        with client:
            yield client


class _Silence:
    """Keeps Dask's logs quiet while any batch needs it: a program may have other clusters, and want to hear of those.

    Batches may overlap, in one thread or several: the last one to end gives the logs their levels back.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._levels: dict[logging.Logger, int] = {}
        self._batches = 0

    def __enter__(self) -> None:
        import logging

        with self._lock:
            if not self._batches:
                self._levels = {log: log.level for log in map(logging.getLogger, _DASKS_LOGS)}
                for log in self._levels:
                    log.setLevel(logging.CRITICAL)
            self._batches += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._batches -= 1
            if not self._batches:
                for log, level in self._levels.items():
                    log.setLevel(level)


_silence = _Silence()


def _ended(future: Future[list[Outcome]], job: Job) -> tuple[Job, list[Outcome]]:
    if future.cancelled():  # by Dask
        return _lost(job, _GONE)
    try:
        return job, future.result()
    except Exception as error:  # noqa: BLE001 - a worker that died takes its job along, not the batch
        return _lost(job, _reason(error))


def _lost(job: Job, reason: str) -> tuple[Job, list[Outcome]]:
    problem = LbwError(f"{job.input}: was not done by the cluster: {reason}", "see to the cluster, and run it again")
    return job, failed(job, problem)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
