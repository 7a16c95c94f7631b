"""The teachers' encoding passes as a Ray Data job: the batches of the local pass, on actors of the whole cluster.

Each batch is computed by the function that the local pass calls, on the same rows, and comes back in the same order,
so files and hashes are equal byte for byte. Batches travel in shards; a worker that is lost costs its shard, which
Ray computes again elsewhere. What has come back counts as finished for a later run, as in the local pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from torch import Tensor

from recbole_prmkd.errors import UserError
from recbole_prmkd.teacher_cache import encoding_jobs
from recbole_prmkd.tune.cluster import cluster

_SHARD = 8  # batches


class _Encoder:
    """The actor: holds the encoding function, and with it the teacher, for all its shards."""

    def __init__(self, job: Any, threads: int) -> None:
        torch.set_num_threads(threads)
        self.encode, self.batches = ray.get(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            vectors = np.ascontiguousarray(self.encode(self.batches[row["id"]]))
        except UserError as error:  # comes back as a value, since Ray Data wraps what is raised
            return {"error": str(error), "bytes": b"", "dtype": "", "width": 0}
        return {"error": "", "bytes": vectors.tobytes(), "dtype": str(vectors.dtype), "width": vectors.shape[1]}


@contextmanager
def spread(gpu: float) -> Iterator[None]:
    """Inside, passes run on the Ray cluster that is in use, each actor on one CPU or this share of a GPU."""
    threads = torch.get_num_threads()

    def mapper(encode: encoding_jobs.Encode, batches: Sequence[Tensor]) -> Iterator[np.ndarray]:
        yield from _encoded(encode, batches, gpu, threads)

    with encoding_jobs.spread_by(mapper):
        yield


def _encoded(encode: encoding_jobs.Encode, batches: Sequence[Tensor], gpu: float, threads: int) -> Iterator[np.ndarray]:
    total = ray.cluster_resources()
    most = max(1, int(total.get("GPU", 0) / gpu if gpu else total.get("CPU", 1)))
    shards = max(1, len(batches) // _SHARD)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    encoder: Any = _Encoder  # Ray's annotation knows functions only
    data = ray.data.range(len(batches), override_num_blocks=min(max(shards, most), len(batches))).map(
        encoder,
        fn_constructor_args=[ray.put((encode, list(batches))), threads],
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(batches))),
        num_cpus=1,
        num_gpus=gpu or None,
    )
    for row in data.iter_rows():
        if row["error"]:
            raise UserError(row["error"])
        yield np.frombuffer(row["bytes"], dtype=row["dtype"]).reshape(-1, row["width"])


@contextmanager
def encode_on(address: str | None) -> Iterator[None]:
    """Inside, a plain run's passes run on the cluster at this address, on whole GPUs where it has any; None: here.

    Raises:
        UserError: there is no such cluster, or it refuses the token.
    """
    if address is None:
        yield
        return
    with cluster(address), spread(min(1.0, ray.cluster_resources().get("GPU", 0.0))):
        yield
