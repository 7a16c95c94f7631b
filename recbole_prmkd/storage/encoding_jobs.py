"""Encoding jobs that outlive a kill: an array [N, D] filled batch by batch, the batches in a fixed order.

While it runs, a job has a folder `.pass-<kind>-<hash of identity>` beside the stored folder that it will become. The
folder holds the array, memory-mapped, and `progress.json` with a checksum of each finished batch, written after the
array is on disk. A later call with the same identity and batches goes on after them, or after the last one before a
batch that is damaged; what does not fit is started anew. Where two processes do the same job, the second works in a
folder of its own, from the start, and removes it at the end.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from torch import Tensor
from tqdm import tqdm

from recbole_prmkd.errors import UserError
from recbole_prmkd.storage import json_files, store
from recbole_prmkd.storage.disk import remove_stale, writing

_ARRAY, _PROGRESS, _LOCK = "vectors.npy", "progress.json", "lock"
COUNT_SECONDS = 5.0  # from one count of the finished batches to the next
_STALE_SECONDS = 7 * 24 * 3600  # of a job that nobody has resumed


Encode = Callable[[Tensor], np.ndarray]  # numbers of a batch's entries [B] -> their vectors [B, D]
Mapper = Callable[[Encode, Sequence[Tensor]], Iterable[np.ndarray]]
_mapper: ContextVar[Mapper] = ContextVar("mapper", default=map)


@contextmanager
def spread_by(mapper: Mapper) -> Iterator[None]:
    """Inside, encoding jobs compute their batches by this function, which gives the results in the batches' order."""
    token = _mapper.set(mapper)
    try:
        yield
    finally:
        _mapper.reset(token)


class EncodingJob:
    """The array of one encoding job: `pending` gives the batches that are still to do, `write` stores their vectors."""

    def __init__(self, folder: Path, number: int, dtype: Any, label: str, unit: str) -> None:
        self._folder, self._number, self._dtype = folder, number, np.dtype(dtype)
        self._label, self._unit = label, unit
        self._array: np.ndarray | None = None
        self._batches = ""  # digest of the batches
        self._checksums: list[str] = []  # of the finished batches
        self._counted = 0  # finished batches in the file
        self._counted_at = time.monotonic()

    @property
    def array(self) -> np.ndarray:
        """What is written so far, [N, D]; zero where no batch has been. D is 0 before the first vector."""
        return np.zeros((self._number, 0), self._dtype) if self._array is None else self._array

    @property
    def _done(self) -> int:
        """Finished batches."""
        return len(self._checksums)

    def pending(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The batches that are still to do; `write` each one before taking the next.

        batches: numbers of entries, int64 on the CPU, none in two batches.
        """
        self._batches = store.digest(batches)
        self._resume(batches)
        total = sum(map(len, batches))
        first = sum(map(len, batches[: self._done]))
        if first:
            getLogger().info(f"{self._label}: the encoding job resumes at {self._unit} {first} of {total}.")
        if first == total:
            return
        started = time.monotonic()
        with tqdm(total=total, initial=first, desc=self._label, unit=self._unit) as bar:
            for index in batches[self._done :]:
                yield index
                bar.update(len(index))
        self.count()
        seconds = max(time.monotonic() - started, 1e-3)
        number, unit = total - first, self._unit
        getLogger().info(f"{self._label}: {number} {unit}s in {seconds:.1f} s ({number / seconds:.0f} {unit}s/s).")

    def fill(self, batches: Sequence[Tensor], encode: Encode) -> np.ndarray:
        """Encode and store every batch that is not finished, here or where `spread_by` says; returns the array."""

        def results() -> Iterator[np.ndarray]:  # runs after `pending` has found what is finished
            yield from _mapper.get()(encode, batches[self._done :])

        for index, vectors in zip(self.pending(batches), results(), strict=False):
            self.write(index, vectors)
        return self.array

    def write(self, index: Tensor, vectors: np.ndarray) -> None:
        """Store the vectors [B, D] of the batch that `pending` gave last."""
        if self._array is None:
            self._array = self._new(vectors.shape[1])
        if vectors.shape != (len(index), self._array.shape[1]):
            raise ValueError(f"{len(index)} vectors of {self._array.shape[1]} numbers were wanted, not {vectors.shape}")
        self._array[index.numpy()] = vectors
        self._checksums.append(_checksum(vectors.astype(self._dtype, copy=False)))
        if time.monotonic() - self._counted_at > COUNT_SECONDS:
            self.count()

    def count(self) -> None:
        """Put the finished batches on disk: first the array, then their checksums."""
        if self._counted == self._done or not isinstance(self._array, np.memmap):
            return
        with writing(self._folder):
            self._array.flush()
            size = (self._folder / _ARRAY).stat().st_size
            progress = {"batches": self._batches, "width": self._array.shape[1], "bytes": size}
            json_files.write_sealed(self._folder / _PROGRESS, {**progress, "checksums": self._checksums})
        self._counted, self._counted_at = self._done, time.monotonic()

    def forget(self) -> None:
        """Remove what an earlier call left."""
        for name in (_PROGRESS, _ARRAY):
            (self._folder / name).unlink(missing_ok=True)

    def _new(self, width: int) -> np.ndarray:
        file = self._folder / _ARRAY
        with writing(file):
            array = np.lib.format.open_memmap(file, mode="w+", dtype=self._dtype, shape=(self._number, width))
            if sys.platform == "linux":  # writing to a mapped file without room would kill the process
                with file.open("r+b") as opened:
                    os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        return array

    def _resume(self, batches: Sequence[Tensor]) -> None:
        """Take what an earlier call left, if it fits: the array, and its batches up to the first that is damaged."""
        if not (self._folder / _ARRAY).exists():
            return
        try:
            array, checksums = self._left(len(batches))
        except FileNotFoundError:
            getLogger().info(f"{self._folder} is not used: its job was stopped before its first count.")
            self.forget()
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            getLogger().warning(f"{self._folder} is not used: {error}; the encoding job is started anew.")
            self.forget()
            return
        pairs = enumerate(zip(batches, checksums, strict=False))
        damaged = (number for number, (index, given) in pairs if _checksum(array[index.numpy()]) != given)
        sound = next(damaged, len(checksums))
        if sound < len(checksums):
            getLogger().warning(f"{self._folder}: batch {sound + 1} is damaged; it and those after it are made anew.")
        rest = np.ones(self._number, dtype=bool)  # entries of no batch, which no checksum covers: zero, as they began
        for index in batches:
            rest[index.numpy()] = False
        array[rest] = 0
        self._array, self._checksums, self._counted = array, checksums[:sound], sound

    def _left(self, batches: int) -> tuple[np.ndarray, list[str]]:
        """The array of an earlier call and the checksums of its finished batches; ValueError where they do not fit."""
        file = self._folder / _ARRAY
        progress = json_files.read_sealed(self._folder / _PROGRESS)
        if file.stat().st_size != progress["bytes"]:  # numpy would lengthen it with zeros
            raise ValueError(f"{_ARRAY} has another size")
        try:
            array = np.lib.format.open_memmap(file, mode="r+")
        except Exception as error:  # numpy's parser of the header raises what it likes
            raise ValueError(f"the header of {_ARRAY} is damaged") from error
        if progress["batches"] != self._batches:
            raise ValueError("it has other batches")
        if array.shape != (self._number, progress["width"]) or array.dtype != self._dtype:
            raise ValueError(f"its array is {array.dtype} {array.shape}")
        if not 0 < len(progress["checksums"]) <= batches:
            raise ValueError(f"it counts {len(progress['checksums'])} of {batches} batches")
        return array, progress["checksums"]


@contextmanager
def resumable(
    root: Path,
    kind: str,
    identity: Mapping[str, Any],
    number: int,
    *,
    label: str,
    unit: str = "item",
    dtype: Any = np.float32,
    rebuild: bool = False,
) -> Iterator[EncodingJob]:
    """An encoding job of `number` vectors; save its array inside the block, whose end removes the job's folder.

        with resumable(root, "text", identity, len(texts), label="Item texts") as work:
            store.save(root, "text", identity, {"vectors": work.fill(batches, encode)})

    Args:
        root, kind, identity: of the stored folder.
        number: of the array's vectors, N.
        label, unit: what the bar and the log call the job, and one of its entries.
        dtype: of the array.
        rebuild: start anew whatever an earlier call left.
    Raises:
        UserError: the folder cannot be written (full disk, no permission).
    """
    folder = root / f".pass-{kind}-{store.digest([dict(identity)])[:16]}"
    with writing(folder):
        root.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
        if lock is None:
            getLogger().info(
                f"{folder} is in use: this encoding job works in a folder of its own and cannot be resumed."
            )
            folder = folder.with_name(f"{folder.name}-{os.getpid()}")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        remove_stale(root, ".pass-*", _STALE_SECONDS)
        work = EncodingJob(folder, number, dtype, label, unit)
        if rebuild:
            work.forget()
    keep = False
    try:
        yield work
    except BaseException:
        with suppress(UserError):  # the first error is the one to raise
            work.count()
        keep = lock is not None and (folder / _PROGRESS).exists()
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def equal_together(number: Tensor, size: int) -> list[Tensor]:
    """Positions of `number` [N] in batches of `size` distinct numbers, ascending; equal numbers share a batch.

    Numbers count from 0 without a gap, so that a batch holds those from k * size on; negative ones are left out.
    """
    order = torch.argsort(number, stable=True)
    order = order[number[order] >= 0]
    sizes = torch.unique_consecutive(number[order] // size, return_counts=True)[1]
    return list(order.split(sizes.tolist()))


def precision(config: Config) -> str:
    """What encoders compute in: `kd_encode_precision`, where the device decides what `auto` is."""
    if config["kd_encode_precision"] != "auto":
        return config["kd_encode_precision"]
    if torch.device(config["device"]).type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def precision_entry(config: Config) -> dict[str, str]:
    """What the precision adds to an identity: nothing for float32."""
    name = precision(config)
    return {} if name == "float32" else {"precision": name}


def autocast(config: Config) -> AbstractContextManager:
    """Inside, encoders compute in `precision`."""
    name = precision(config)
    if name == "float32":
        return nullcontext()
    return torch.autocast(torch.device(config["device"]).type, dtype=getattr(torch, name))


def _locked(folder: Path) -> int | None:
    """Descriptor of the folder's lock file, locked; None where another process has it or there are no locks."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its owner removed the folder just now
            continue
        try:
            import fcntl  # not on Windows

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (ImportError, OSError):
            os.close(lock)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(folder / _LOCK)):
                os.utime(folder)  # in use, so not stale
                return lock
        os.close(lock)  # the lock of a folder that its owner has removed


def _checksum(vectors: np.ndarray) -> str:
    """Of one batch's vectors: 16 hex digits, which damage by chance does not meet."""
    return hashlib.sha256(np.ascontiguousarray(vectors).reshape(-1).view(np.uint8).data).hexdigest()[:16]
