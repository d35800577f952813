"""Many jobs: one after the other, in a process per core, or on a Dask cluster; a failure does not stop the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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


@contextmanager
def executor_for(batch: Batch, workers: int, cluster: str | None) -> Iterator[Executor | None]:
    """What runs jobs: a Dask cluster by its address, or processes for so many at a time (0: one per core).

    None where starting processes would not pay. Raises DeviceError if the cluster cannot be reached.
    """
    if cluster:
        with _dask(cluster) as executor:
            yield executor
        return
    workers = min(workers or os.cpu_count() or 1, len(batch.jobs))
    if workers < 2 or batch.nbytes < _WORTH_PROCESSES:
        yield None
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Fresh processes: forking one that has threads is not safe.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield pool
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


def for_cluster(jobs: Sequence[Job]) -> list[Job]:
    """Jobs as other machines can do them, twice if need be: absolute paths, and what is finished is left alone.

    A worker may die between finishing a file and saying so; then the next one finds it finished. Outputs that exist
    before the batch are still refused.
    """

    def elsewhere(path: Path | None, recipe: Recipe) -> tuple[Path | None, Recipe]:
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
    jobs = for_cluster(batch.jobs) if cluster else batch.jobs
    with executor_for(batch, workers, cluster) as executor:
        yield from _run_all(jobs, executor)


def _run_all(jobs: Sequence[Job], executor: Executor | None) -> Iterator[tuple[Job, list[Outcome]]]:
    if executor is None:
        yield from ((job, run(job)) for job in jobs)
        return
    from concurrent.futures import as_completed

    pending: dict[Future[list[Outcome]], Job] = {executor.submit(run, job): job for job in jobs}
    for future in as_completed(pending):
        job = pending[future]
        try:
            yield job, future.result()
        except Exception as error:  # noqa: BLE001 - a worker that died takes its job along, not the batch
            ended = LbwError(f"{job.input}: its worker process ended: {error or type(error).__name__}", "run it again")
            yield job, [Outcome(job.input, output, FAILED, error=ended) for output, _ in job.outputs]
