"""Several processes, one for each GPU: RecBole's own multi-process training (`--nproc`), with distillation.

Teachers and knowledge are made once, before the processes start; each then maps them and reads its own rows alone.
Each batch is cut into parts and gradients are averaged. The candidates of kd_loss are still the positives of the whole
batch, since each process tells the others its own; so with shared prefixes the losses and gradients are those of one
process with that batch. RecBole's own loaders draw the same number of rows for each process, some of them twice.

RecBole takes NCCL and CUDA devices for granted. Without a GPU the same runs on gloo and the CPU, which is how it is
tested.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from recbole.config import Config
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

_PATIENCE = timedelta(hours=12)  # a rank may wait that long for another one


def ranks(config: Config) -> tuple[int, int]:
    """This process's number and how many there are."""
    if config["single_spec"]:
        return 0, 1
    return config["local_rank"] + config["offset"], config["world_size"]


def share_of(places: Tensor, config: Config) -> tuple[Tensor, float]:
    """This process's part of a batch [R], and the weight of a mean over it in the mean of all processes' means.

    A batch of fewer rows than processes goes to each of them whole.
    """
    rank, number = ranks(config)
    if number == 1 or len(places) < number:
        return places, 1.0
    part = places.tensor_split(number)[rank]
    return part, len(part) * number / len(places)


def gathered(targets: Tensor, config: Config) -> Tensor:
    """The targets [B] of all processes, one after the other, padded with 0; those given where there is one process."""
    _, number = ranks(config)
    if number == 1:
        return targets
    longest = torch.tensor(len(targets), device=targets.device)
    distributed.all_reduce(longest, distributed.ReduceOp.MAX)
    padded = torch.nn.functional.pad(targets, (0, int(longest) - len(targets)))
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


@contextmanager
def any_device() -> Iterator[None]:
    """Inside, RecBole joins the other processes on the CPU where there is no GPU, and waits as long as it takes."""
    join, wrap = distributed.init_process_group, DistributedDataParallel
    if torch.cuda.is_available():
        with mock.patch.object(
            distributed, "init_process_group", lambda **given: join(**{**given, "timeout": _PATIENCE})
        ):
            yield
        return
    on_cpu = {
        "torch.distributed.init_process_group": lambda **given: join(
            **{**given, "backend": "gloo", "timeout": _PATIENCE}
        ),
        "torch.cuda.set_device": lambda device: None,
        "torch.nn.SyncBatchNorm.convert_sync_batchnorm": lambda model: model,
        "recbole.trainer.trainer.DistributedDataParallel": lambda model, device_ids: wrap(model),
    }
    patches = [mock.patch(name, function) for name, function in on_cpu.items()]
    try:
        for patch in patches:
            patch.start()
        yield
    finally:
        mock.patch.stopall()


def run_on_ranks(
    model: str | None,
    dataset: str | None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    nproc: int = 1,
    world_size: int = -1,
    ip: str = "localhost",
    port: str | int = "5678",
    group_offset: int = 0,
) -> dict[str, Any]:
    """`run_recbole_prmkd` in `nproc` processes here; the arguments are those of `recbole.quick_start.run`.

    Args:
        nproc: processes on this machine. world_size: processes on all machines; below 1: those here.
        group_offset: processes on the machines before this one.
    Returns:
        what the first process here returned.
    """
    from recbole_prmkd.checks import check_run
    from recbole_prmkd.config import load_config
    from recbole_prmkd.host import run_logging
    from recbole_prmkd.preparation import Steps, prepare
    from recbole_prmkd.quick_start import output_dir

    config = load_config(model, dataset, config_file_list, config_dict)
    output = output_dir(config)
    check_run(config, output)
    with tempfile.TemporaryDirectory() as folder, run_logging(config, Path(folder)):
        prepare(config, Steps())
    settings = {
        **(config_dict or {}),
        "kd_output_dir": str(output),
        "kd_rebuild": False,
        "nproc": nproc,
        "world_size": world_size if world_size > 0 else nproc,
        "ip": ip,
        "port": port,
        "offset": group_offset,
    }
    arguments = [argument for argument in sys.argv if not argument.startswith("--kd_rebuild=")]
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    given = (arguments, model, dataset, config_file_list, settings, saved, queue)
    multiprocessing.spawn(_rank, args=given, nprocs=nproc)
    return queue.get()


def _rank(rank: int, arguments: list[str], *given: Any) -> None:
    """One process: the whole run, where everything before the student is reused."""
    from recbole_prmkd.quick_start import run_recbole_prmkd

    model, dataset, config_file_list, settings, saved, queue = given
    sys.argv = arguments
    returned = run_recbole_prmkd(model, dataset, config_file_list, {**settings, "local_rank": rank}, saved)
    distributed.destroy_process_group()
    if rank == 0:
        queue.put(returned)
