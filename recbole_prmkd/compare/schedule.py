"""Which jobs run when: as many at a time as this machine has room for, or as Ray finds room for in a cluster.

A job waits for the one that it needs; where that one fails, it fails for the same reason. The others go on.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import ray
import torch
from tqdm import tqdm

from recbole_prmkd.compare.job import Job, error_of, start_in

_THREADS = 4  # of one process on a CPU, where OMP_NUM_THREADS says nothing


class Workers(Protocol):
    """Where jobs run. room: at a time; None: as many as there are."""

    room: int | None

    def __call__(self, job: Job) -> str | None:
        """Run the job to its end, in a thread of its own; returns its error."""

    def close(self) -> None:
        """End what still runs."""


class Local:
    """Processes on this machine: one for each entry of `gpus`, on that GPU (None: without)."""

    def __init__(self, gpus: Sequence[str | None], threads: int) -> None:
        self.room: int | None = len(gpus)
        self.gpus, self.threads = list(gpus), threads
        self._free: SimpleQueue[str | None] = SimpleQueue()
        for gpu in gpus:
            self._free.put(gpu)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def __call__(self, job: Job) -> str | None:
        gpu = self._free.get()
        job.write()
        process = start_in(job.folder, self.threads, gpu)
        self._running.add(process)
        if self._closed:  # meanwhile
            process.kill()
        code = process.wait()
        self._running.discard(process)
        self._free.put(gpu)
        return error_of(job.folder, code)

    def close(self) -> None:
        self._closed = True
        for process in list(self._running):
            process.kill()


class OnRay:
    """Processes started by Ray tasks; the comparison's folder, data and cache lie on storage that all nodes share."""

    def __init__(self, threads: int, room: int | None = None, use_gpu: bool = True) -> None:
        # A task that asks for more CPUs than the largest node has would wait for ever.
        nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        self.threads, self.room = max(1, min(threads, int(max(nodes, default=1)))), room
        gpu = 1 if use_gpu and ray.cluster_resources().get("GPU", 0) >= 1 else 0
        self._task = ray.remote(_run_in).options(num_cpus=self.threads, num_gpus=gpu, max_retries=0)
        self._running: set[Any] = set()

    def __call__(self, job: Job) -> str | None:
        job.write()
        task = self._task.remote(str(job.folder), self.threads)
        self._running.add(task)
        try:
            return ray.get(task)
        except ray.exceptions.RayError as failure:
            return " ".join(str(failure).split())[:300]
        finally:
            self._running.discard(task)

    def close(self) -> None:
        for task in list(self._running):
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
    waiting, running, failed = list(jobs), dict[Future[str | None], Job](), dict[Path, str]()
    pending = {job.folder for job in jobs}

    def run(job: Job) -> str | None:
        return failed[job.needs] if job.needs in failed else workers(job)

    total = finished + sum(job.work == counted for job in jobs)
    bar = tqdm(total=total, initial=finished, desc=title, unit="cell", smoothing=0, dynamic_ncols=True)
    with bar, ThreadPoolExecutor(workers.room or max(1, len(jobs))) as pool:
        try:
            while waiting or running:
                for job in [job for job in waiting if job.needs not in pending]:
                    waiting.remove(job)
                    running[pool.submit(run, job)] = job
                over, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for future in over:
                    job, error = running.pop(future), future.result()
                    pending.discard(job.folder)
                    bar.update(job.work == counted)
                    if error is not None:
                        failed[job.folder] = error
                        bar.write(f"Failed: {job.name}: {error}", file=sys.stderr)
                names = [job.name for future, job in running.items() if future.running()]
                more = f"; {len(names) - 2} more" if len(names) > 2 else ""
                bar.set_postfix_str("; ".join(names[:2]) + more, refresh=sys.stderr.isatty())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            workers.close()
    return failed


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
    parts = re.split(r"[\s,()\[\]'\"]+", str(named))  # 1, (0, 2) and "0,2" alike
    return [part for part in parts if part not in ("", "-1")]


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use; call it before RecBole, which changes the variable."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [*filter(None, named.split(","))] if named is not None else [*map(str, range(torch.cuda.device_count()))]
