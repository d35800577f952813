"""Worker processes on this machine, each with one job at a time: one that dies takes no other's job with it.

Each has a pipe of its own, which ends when either side does. So there is no lock that a process could die with, and
whoever started them is outlived by no more than the jobs they are at.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from .errors import LbwError
from .interrupts import end_quietly, uninterrupted
from .jobs import RETRIES, Job, Watch, repeatable
from .run import Outcome, failed, run
from .temporary import clear_leftovers


@dataclass(frozen=True, slots=True)
class _Task:
    """A job to run, the job to run instead if its process dies, and how often that may happen."""

    job: Job
    again: Job
    retries: int

    @classmethod
    def of(cls, job: Job) -> _Task:
        """A job that is run for the first time; one that bakes in place cannot be run again."""
        in_place = any(recipe.in_place for _, recipe in job.outputs)
        return cls(job, repeatable(job), 0 if in_place else RETRIES)


class _Worker:
    """A process, and our end of its pipe. An interrupt must come between no two steps of what is done with it."""

    def __init__(self) -> None:
        context = get_context("spawn")  # forking a process that has threads is not safe
        self.pipe, theirs = context.Pipe()
        # Daemons are ended with the program if nobody ends them before, as where a batch is left halfway.
        self.process: BaseProcess = context.Process(target=_work, args=(theirs,), daemon=True)
        with theirs:
            self.process.start()
        self._said: list[Outcome] | str | None = None

    def begin(self, job: Job) -> None:
        """Give it a job; if it has died, its result says so."""
        self._said = None
        with suppress(OSError):
            self.pipe.send(job)

    @uninterrupted()
    def news(self) -> list[Outcome] | str | float | None:
        """Wait for what it says next: the share of its job that is done, its outcomes, or what failed in our own code.

        None if it died. Outcomes are said again until it has another job: an interrupt may come before they are heard.
        """
        if self._said is None:
            wait([self.pipe, self.process.sentinel])
            with suppress(EOFError, OSError):
                if self.pipe.poll():
                    news: list[Outcome] | str | float = self.pipe.recv()
                    if isinstance(news, float):
                        return news
                    self._said = news
        return self._said

    def result(self) -> list[Outcome] | str | None:
        """What became of its job: as `news`, without the shares."""
        while isinstance(news := self.news(), float):
            pass
        return news

    def end(self) -> int | None:
        """Let it finish its job, and wait until it has ended; returns its exit code."""
        self.pipe.close()
        self.process.join()
        return self.process.exitcode


def run_in_processes(jobs: Iterable[Job], count: int, watch: Watch) -> Iterator[tuple[Job, list[Outcome]]]:
    """Run jobs in so many processes; yields each with its outcomes as it ends.

    One whose process dies is done again in another. Interrupted, it yields what is finished before it raises.
    """
    _start_tracker()
    tasks = deque(_Task.of(job) for job in jobs)
    idle: list[_Worker] = []
    busy: dict[_Worker, _Task] = {}
    try:
        while tasks or busy:
            while tasks and len(busy) < count:
                with uninterrupted():  # and so is a new process, until it is ready
                    worker = idle.pop() if idle else _Worker()
                    busy[worker] = tasks.popleft()
                    worker.begin(busy[worker].job)
            for worker in _ready(busy):
                task, news = busy[worker], worker.news()
                if isinstance(news, float):
                    watch(task.job, news)
                    continue
                del busy[worker]
                if news is not None:
                    idle.append(worker)
                    yield task.job, _outcomes(task.job, news)
                elif task.retries:
                    _clear_after(worker, task.job)
                    tasks.append(_Task(task.again, task.again, task.retries - 1))
                else:
                    code = _clear_after(worker, task.job)
                    yield task.job, _outcomes(task.job, f"its process died (exit code {code})")
    except (KeyboardInterrupt, SystemExit):  # what is finished by now is said before the batch ends
        with uninterrupted():
            for worker, task in busy.items():
                if isinstance(result := worker.result(), list):
                    yield task.job, result
        raise
    finally:
        with uninterrupted():
            for worker in (*idle, *busy):
                worker.end()


def _start_tracker() -> None:
    """Start Python's resource tracker: if the first process started it, signals held back would come through."""
    if sys.platform != "win32":
        with uninterrupted():
            resource_tracker.ensure_running()


def _ready(workers: Iterable[_Worker]) -> list[_Worker]:
    """The workers that have something to say, or died; waits for the first."""
    ready = set(wait([each for worker in workers for each in (worker.pipe, worker.process.sentinel)]))
    return [worker for worker in workers if ready & {worker.pipe, worker.process.sentinel}]


def _clear_after(worker: _Worker, job: Job) -> int | None:
    """Remove what a process that died left of its outputs: others have looked before. Returns its exit code."""
    code = worker.end()
    for folder in {path.parent for path, _ in job.outputs if path}:
        clear_leftovers(folder)
    return code


def _outcomes(job: Job, result: list[Outcome] | str) -> list[Outcome]:
    if isinstance(result, list):
        return result
    return failed(job, LbwError(f"{job.input}: {result}", "run it again; with --jobs 1 it has all memory to itself"))


def _work(pipe: Any) -> None:
    """Do jobs as they come in, in a process of its own, until there are no more."""
    end_quietly()
    gc.set_threshold(200_000)  # as in `__main__`, and for its reason

    def tell(share: float) -> None:
        with suppress(OSError):  # a job is finished even if nobody waits for it any longer
            pipe.send(share)

    with suppress(EOFError, OSError):  # whoever gave the jobs is done, or gone
        while True:
            job = pipe.recv()
            result: list[Outcome] | str
            try:
                result = run(job, tell)
            except Exception as error:  # noqa: BLE001 - a bug of ours ends one job, not the batch
                result = f"failed unexpectedly: {type(error).__name__} {error}"
            pipe.send(result)
