"""Which jobs run when: as many at a time as this machine has room for, or as Ray finds room for in a cluster.

A job waits for the one that it needs; where that one fails, it fails for the same reason. The others go on.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from tqdm import tqdm

from recbole_prmkd.compare.job import Job, error_of, start, start_in

_POLL = 0.2  # seconds
_THREADS = 4  # of one process on a CPU, where OMP_NUM_THREADS says nothing


class Workers(Protocol):
    """Where jobs run."""

    def has_room(self) -> bool:
        """Whether another job may start."""

    def start(self, job: Job) -> None:
        """Start it."""

    def ended(self) -> list[tuple[Job, str | None]]:
        """Jobs that have ended since the last call, each with its error."""

    def close(self) -> None:
        """End what still runs."""


class Local:
    """Processes on this machine: one for each entry of `gpus`, on that GPU (None: without)."""

    def __init__(self, gpus: Sequence[str | None], threads: int) -> None:
        self.threads = threads
        self._free = list(gpus)[::-1]
        self._running: dict[subprocess.Popen[bytes], tuple[Job, str | None]] = {}

    def has_room(self) -> bool:
        return bool(self._free)

    def start(self, job: Job) -> None:
        gpu = self._free.pop()
        self._running[start(job, self.threads, gpu)] = job, gpu

    def ended(self) -> list[tuple[Job, str | None]]:
        over = [process for process in self._running if process.poll() is not None]
        jobs = []
        for process in over:
            job, gpu = self._running.pop(process)
            self._free.append(gpu)
            jobs.append((job, error_of(job.folder, process.returncode)))
        return jobs

    def close(self) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()


class OnRay:
    """Processes started by Ray tasks; the comparison's folder, data and cache lie on storage that all nodes share."""

    def __init__(self, threads: int, most: int | None = None, use_gpu: bool = True) -> None:
        """most: jobs at a time; None: Ray keeps the queue."""
        gpu = 1 if use_gpu and ray.cluster_resources().get("GPU", 0) >= 1 else 0
        self._task = ray.remote(_run_in).options(num_cpus=threads, num_gpus=gpu, max_retries=0)
        self._threads, self._most = threads, most
        self._running: dict[Any, Job] = {}

    def has_room(self) -> bool:
        return self._most is None or len(self._running) < self._most

    def start(self, job: Job) -> None:
        job.write()
        self._running[self._task.remote(str(job.folder), self._threads)] = job

    def ended(self) -> list[tuple[Job, str | None]]:
        over, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        jobs = []
        for task in over:
            try:
                error = ray.get(task)
            except ray.exceptions.RayError as failure:
                error = " ".join(str(failure).split())[:300]
            jobs.append((self._running.pop(task), error))
        return jobs

    def close(self) -> None:
        for task in self._running:
            with suppress(ray.exceptions.RayError):
                ray.cancel(task, force=True)


def _run_in(folder: str, threads: int) -> str | None:
    """One job on a node of the cluster, on the GPU that Ray lent to it."""
    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU") or []
    process = start_in(Path(folder), threads, ",".join(map(str, gpus)))
    return error_of(Path(folder), process.wait())


def run_jobs(
    jobs: Sequence[Job], workers: Workers, counted: str = "", finished: int = 0, title: str = "cells"
) -> dict[Path, str]:
    """Run the jobs in their order; returns the error of each that failed, by folder.

    Args:
        counted: the work that the bar counts; other jobs (preparations) are only named beside it.
        finished: how many of these had ended before.
    """
    waiting, failed, running = list(jobs), dict[Path, str](), dict[Path, str]()
    pending = {job.folder for job in jobs}
    total = finished + sum(job.work == counted for job in jobs)
    with tqdm(total=total, initial=finished, desc=title, unit="cell", smoothing=0, dynamic_ncols=True) as bar:
        try:
            while waiting or running:
                ended = _failed_by_need(waiting, failed)
                for job in [job for job in waiting if job.needs not in pending]:
                    if not workers.has_room():
                        break
                    waiting.remove(job)
                    running[job.folder] = job.name
                    workers.start(job)
                for job, error in [*ended, *(workers.ended() if running else [])]:
                    pending.discard(job.folder)
                    running.pop(job.folder, None)
                    bar.update(job.work == counted)
                    if error is not None:
                        failed[job.folder] = error
                        bar.write(f"Failed: {job.name}: {error}", file=sys.stderr)
                _show(bar, running)
                time.sleep(_POLL)
        finally:
            workers.close()
    return failed


def _failed_by_need(waiting: list[Job], failed: Mapping[Path, str]) -> list[tuple[Job, str | None]]:
    """Takes the jobs out of `waiting` whose need has failed, with the error that they inherit."""
    lost = [job for job in waiting if job.needs in failed]
    for job in lost:
        waiting.remove(job)
    return [(job, failed[job.needs]) for job in lost if job.needs is not None]


def _show(bar: Any, running: Mapping[Path, str]) -> None:
    """What runs now and the time left; once a second on a terminal, once a minute in a file."""
    every = 1.0 if sys.stderr.isatty() else 60.0
    if time.time() - getattr(bar, "shown_at", 0.0) >= every:
        bar.shown_at = time.time()
        names = list(running.values())
        bar.set_postfix_str("; ".join(names[:2]) + (f"; {len(names) - 2} more" if len(names) > 2 else ""))


def workers_here(wanted: int | None, gpus: Sequence[str]) -> Local:
    """Room on this machine.

    Args:
        wanted: processes at a time; None: one for each GPU, or as many as the cores allow at 4 threads each (or at
            OMP_NUM_THREADS, where that is set).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    named = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(named) if named.isdecimal() and int(named) else min(_THREADS, cores)
    number = wanted or len(gpus) or max(1, cores // threads)
    slots = [gpus[slot % len(gpus)] if gpus else None for slot in range(number)]
    return Local(slots, max(1, min(threads, cores // number) if named else cores // number))


def chosen_gpus(named: Any, there: Sequence[str]) -> list[str]:
    """The GPUs that the key gpu_id names, which RecBole may read as a number: all without it, none if it is empty."""
    if named is None or not there:
        return list(there)
    # 1, (0, 2) and "0,2" alike; not keys.as_list, which refuses the empty part of "(1,)"
    parts = [part.strip(" '\"") for part in str(named).strip("[]() ").split(",")]
    return [part for part in parts if part not in ("", "-1")]


def most_cpus() -> int:
    """CPUs of the largest node of the Ray cluster: a task that asks for more would wait for ever."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return max(1, int(max((node["Resources"].get("CPU", 0) for node in nodes), default=1)))


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use; call it before RecBole, which changes the variable."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return (
        [gpu for gpu in named.split(",") if gpu]
        if named is not None
        else list(map(str, range(torch.cuda.device_count())))
    )
