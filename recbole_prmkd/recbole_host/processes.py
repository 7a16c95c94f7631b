"""What the processes of one training (`--nproc`) share: batches, candidates, means, and where they meet.

Each batch is cut into parts and gradients are averaged. The candidates of kd_loss are still the positives of the whole
batch, since each process tells the others its own; so with shared prefixes the losses and gradients are those of one
process with that batch. RecBole's own loaders give each process the same number of examples, some of them twice.

RecBole takes NCCL and CUDA devices for granted. Without a GPU the same runs on gloo and the CPU, which is how it is
tested.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

WEIGHT = "kd_batch_weight"  # of a batch's mean loss among those of other processes
# What RecBole's collector has of each user or example; the rest is of the data set.
_COLLECTED = ("rec.items", "rec.topk", "rec.meanrank", "rec.score", "data.label")
_PATIENCE = timedelta(hours=12)  # a rank may wait that long for another one


def ranks(config: Config) -> tuple[int, int]:
    """This process's number and how many there are."""
    if config["single_spec"]:
        return 0, 1
    return config["local_rank"] + config["offset"], config["world_size"]


def share_of(positions: Tensor, config: Config) -> tuple[Tensor, float]:
    """This process's part of a batch [R], and the weight of a mean over it in the mean of all processes' means.

    A batch of fewer examples than processes goes to each of them whole.
    """
    rank, number = ranks(config)
    if number == 1 or len(positions) < number:
        return positions, 1.0
    part = positions.tensor_split(number)[rank]
    return part, len(part) * number / len(positions)


def weighted(loss: Tensor, interaction: Interaction) -> Tensor:
    """The mean loss of a part of a batch times its weight among those of other processes."""
    return loss * interaction[WEIGHT][0]


def gathered(targets: Tensor, config: Config) -> Tensor:
    """The targets [B] of all processes of several, one after the other, padded with 0."""
    _, number = ranks(config)
    max_length = torch.tensor(len(targets), device=targets.device)
    distributed.all_reduce(max_length, distributed.ReduceOp.MAX)
    padded = torch.nn.functional.pad(targets, (0, int(max_length) - len(targets)))
    parts = [torch.empty_like(padded) for _ in range(number)]
    distributed.all_gather(parts, padded)
    return torch.cat(parts)


def mean_over_ranks(values: Mapping[str, float], config: Config) -> dict[str, float]:
    """The mean of each number over the processes, which all have the same names."""
    _, number = ranks(config)
    if number == 1:
        return dict(values)
    table = torch.tensor(list(values.values()), dtype=torch.float64, device=config["device"])
    distributed.all_reduce(table)
    return dict(zip(values, (table / number).tolist(), strict=True))


def evaluate_once(trainer: Any, config: Config) -> None:
    """Make a trainer count each user once in evaluation; RecBole repeats users until all processes have as many.

    Each process ranks its own part. What it has collected then goes to all others, so that each computes the metrics
    of the whole, those of one process, coverage and popularity included.
    """
    rank, number = ranks(config)
    if number == 1:
        return
    evaluate, collector = trainer.evaluate, trainer.eval_collector
    collected, cut = collector.get_data_struct, True

    def evaluated(eval_data: Any, *given: Any, **named: Any) -> Any:
        nonlocal cut
        if eval_data:
            cut = eval_data.sample_size >= number  # else each has all of it
            part = torch.arange(eval_data.sample_size).tensor_split(number)[rank] if cut else None
            own = list(range(eval_data.sample_size)) if part is None else part.tolist()
            eval_data.batch_sampler.sampler = own
        return evaluate(eval_data, *given, **named)

    def gathered_struct() -> Any:
        struct = collected()
        names = [name for name in _COLLECTED if name in struct]
        parts: list[Any] = [None] * number
        if cut:
            distributed.all_gather_object(parts, [struct[name] for name in names])
            for name, tensors in zip(names, zip(*parts, strict=True), strict=True):
                struct.set(name, torch.cat(tensors))
        return struct

    trainer.evaluate, collector.get_data_struct = evaluated, gathered_struct
    trainer._map_reduce = lambda result, samples: result


def on_cpu(use_gpu: bool) -> bool:
    """Whether training runs on the CPU: RecBole's key use_gpu is False, or there is no GPU.

    Not to be asked before RecBole has set CUDA_VISIBLE_DEVICES to gpu_id: the first question settles what CUDA shows.
    """
    return not use_gpu or not torch.cuda.is_available()


@contextmanager
def any_device(use_gpu: bool) -> Iterator[None]:
    """Inside, RecBole joins the other processes on the CPU where training is there, and waits as long as it takes."""
    join, wrap, use = distributed.init_process_group, DistributedDataParallel, torch.cuda.set_device
    convert = torch.nn.SyncBatchNorm.convert_sync_batchnorm

    def joined(**given: Any) -> None:
        join(**given | {"timeout": _PATIENCE} | ({"backend": "gloo"} if on_cpu(use_gpu) else {}))

    def wrapped(model: Any, device_ids: list[int]) -> DistributedDataParallel:
        return wrap(model) if on_cpu(use_gpu) else wrap(model, device_ids=device_ids)

    replaced: dict[str, Any] = {
        "torch.distributed.init_process_group": joined,
        "torch.cuda.set_device": lambda device: None if on_cpu(use_gpu) else use(device),
        "torch.nn.SyncBatchNorm.convert_sync_batchnorm": lambda model: model if on_cpu(use_gpu) else convert(model),
        "recbole.trainer.trainer.DistributedDataParallel": wrapped,
    }
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch(name, function))
        yield
