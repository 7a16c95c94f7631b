"""The teachers' encoding jobs on Ray Data: the batches of the local job, on actors of the whole cluster.

Each batch is computed by the function of the local job, on the same examples, and comes back in the same order,
so files and hashes are equal byte for byte. Batches travel in shards; a worker that is lost costs its shard, which
Ray computes again elsewhere. What has come back counts as finished for a later run, as in the local job.
"""

import pickle
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
            result = self.encode(self.batches[row["id"]])
        except UserError as error:  # comes back as a value, since Ray Data wraps what is raised
            result = error
        return {"result": pickle.dumps(result)}


@contextmanager
def spread(gpu: float) -> Iterator[None]:
    """Inside, encoding jobs run on the Ray cluster that is in use, each actor on one CPU or this share of a GPU."""
    threads = torch.get_num_threads()

    def mapper(encode: encoding_jobs.Encode, batches: Sequence[Tensor]) -> Iterator[np.ndarray]:
        total = ray.cluster_resources()
        most = max(1, int(total.get("GPU", 0) / gpu if gpu else total.get("CPU", 1)))
        shards = max(1, len(batches) // _SHARD, most)
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        encoder: Any = _Encoder  # Ray's annotation knows functions only
        data = ray.data.range(len(batches), override_num_blocks=min(shards, len(batches))).map(
            encoder,
            fn_constructor_args=[ray.put((encode, list(batches))), threads],
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(batches))),
            num_cpus=1,
            num_gpus=gpu or None,
        )
        for row in data.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, UserError):
                raise result
            yield result

    with encoding_jobs.spread_by(mapper):
        yield


@contextmanager
def encode_on(address: str | None) -> Iterator[None]:
    """Inside, a plain run's encoding jobs run on the cluster at this address, on whole GPUs where it has any; None:
    here.

    Raises:
        UserError: there is no such cluster, or it does not accept the token.
    """
    if address is None:
        yield
        return
    with cluster(address), spread(min(1.0, ray.cluster_resources().get("GPU", 0.0))):
        yield
