"""Many jobs: one after the other, in a process per core, or on a Dask cluster; a failure does not stop the rest."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DeviceError, LbwError
from .jobs import Batch, Job
from .recipes import Recipe
from .run import FAILED, Outcome, run

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

# A worker process takes about half a second to start, in which a core bakes some 200 MB.
_WORTH_PROCESSES = 400_000_000

# A worker that dies takes its job along; somebody else's job it may have been that killed it.
_RETRIES = 3


Submit = Callable[[Job], "Future[list[Outcome]]"]


def _processes(batch: Batch, workers: int) -> int:
    """How many processes to start for so many jobs at a time (0: one per core); none where that would not pay."""
    workers = min(workers or os.cpu_count() or 1, len(batch.jobs))
    return workers if workers > 1 and batch.nbytes >= _WORTH_PROCESSES else 0


@contextmanager
def _submitting(workers: int, cluster: str | None) -> Iterator[Submit | None]:
    """What takes jobs: a Dask cluster by its address, or so many processes; None where there are to be none.

    Raises DeviceError if the cluster cannot be reached.
    """
    if cluster:
        with _dask(cluster) as executor:
            yield lambda job: executor.submit(run, job)
        return
    if not workers:
        yield None
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Fresh processes: forking one that has threads is not safe.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker)
    try:
        yield lambda job: pool.submit(_run_interruptibly, job)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError:
        raise DeviceError("--cluster needs dask.distributed", "pip install 'lbw-bake[dask]'") from None
    try:
        client = Client(address, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise DeviceError(f"--cluster {address}: {error}", "start a scheduler there, or check the address") from error
    with client:
        yield client.get_executor(retries=_RETRIES, pure=False)  # type: ignore[no-untyped-call]


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _run_interruptibly(job: Job) -> list[Outcome]:
    """Run a job in a worker process. Elsewhere Ctrl-C could leave a lock behind that others wait for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run(job)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C waiting, where the system can; in processes that are started meanwhile too, until they are ready."""
    if sys.platform == "win32":
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def for_cluster(jobs: Sequence[Job]) -> list[Job]:
    """Jobs as other machines can do them, twice if need be: absolute paths, and what is finished is left alone.

    A worker may die between finishing a file and saying so; then the next one finds it finished. Outputs that exist
    before the batch are still refused.
    """

    def elsewhere(path: Path | None, recipe: Recipe) -> tuple[Path | None, Recipe]:
        recipe = replace(recipe, base=recipe.base and recipe.base.absolute())
        if path is None:
            return None, recipe
        return path.absolute(), recipe if path.exists() else replace(recipe, skip_existing=True)

    return [
        replace(job, input=job.input.absolute(), outputs=tuple(elsewhere(*output) for output in job.outputs))
        for job in jobs
    ]


def run_batch(batch: Batch, *, workers: int = 0, cluster: str | None = None) -> Iterator[tuple[Job, list[Outcome]]]:
    """Run all jobs, some at a time (0: one per core) or on a Dask cluster; yields each with its outcomes as it ends.

    Raises DeviceError if the cluster cannot be reached.
    """
    processes = _processes(batch, workers)
    share = sum(job.nbytes * len(job.outputs) for job in batch.jobs) // (processes or 1)
    jobs = for_cluster(batch.jobs) if cluster else [replace(job, share=share) for job in batch.jobs]
    with _submitting(processes, cluster) as submit:
        yield from _run_all(jobs, submit)


def _run_all(jobs: Sequence[Job], submit: Submit | None) -> Iterator[tuple[Job, list[Outcome]]]:
    if submit is None:
        yield from ((job, run(job)) for job in jobs)
        return
    from concurrent.futures import as_completed, wait

    pending: dict[Future[list[Outcome]], Job] = {}
    try:
        with _uninterrupted():
            pending.update((submit(job), job) for job in jobs)
        for future in as_completed([*pending]):
            yield _ended(future, pending.pop(future))
    except (KeyboardInterrupt, SystemExit):  # what is finished by now is said before the batch ends
        done = {future: job for future, job in pending.items() if not future.cancel()}
        wait(done)
        yield from (_ended(future, job) for future, job in done.items() if future.exception() is None)
        raise


def _ended(future: Future[list[Outcome]], job: Job) -> tuple[Job, list[Outcome]]:
    try:
        return job, future.result()
    except Exception as error:  # noqa: BLE001 - a worker that died takes its job along, not the batch
        ended = LbwError(f"{job.input}: its worker process ended: {error or type(error).__name__}", "run it again")
        return job, [Outcome(job.input, output, FAILED, error=ended) for output, _ in job.outputs]
