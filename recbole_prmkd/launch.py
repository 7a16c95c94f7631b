"""Several processes, one for each GPU: RecBole's own multi-process training (`--nproc`), with distillation.

Teachers and their caches are made once, before the processes start. Each process then maps them and trains on its own
part of every batch.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import distributed, multiprocessing

from recbole_prmkd.errors import UserError
from recbole_prmkd.interruption import children_wait_for_signals, end_at_once
from recbole_prmkd.preparation import Steps, prepare
from recbole_prmkd.quick_start import output_dir, run_recbole_prmkd
from recbole_prmkd.recbole_host.checks import check_run
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.run_files import run_logging


def run_processes(
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
    Raises:
        UserError: the port is none, or that of a process.
    """
    if not (str(port).isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"--port={port} is no port: give a number from 1 to 65535 that is free on the first machine.")
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
    received, sent = multiprocessing.get_context("spawn").Pipe(duplex=False)
    given = (arguments, model, dataset, config_file_list, settings, saved, sent)
    with children_wait_for_signals():
        processes = multiprocessing.spawn(_rank, args=given, nprocs=nproc, join=False)
    returned: Any = None
    try:
        while not processes.join(timeout=0.5):  # raises what a process raised
            if received.poll():  # taken while they run: a long result would not fit into the pipe
                returned = received.recv()
    except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException):
        if received.poll():
            returned = received.recv()
        if isinstance(returned, UserError):
            raise returned from None
        raise
    return returned or received.recv()


def _rank(rank: int, arguments: list[str], *given: Any) -> None:
    """One process: the whole run; what stands before the student is reused."""
    end_at_once()
    model, dataset, config_file_list, settings, saved, sent = given
    sys.argv = arguments
    try:
        returned = run_recbole_prmkd(model, dataset, config_file_list, {**settings, "local_rank": rank}, saved)
    except UserError as error:
        sent.send(error)  # its sentence; what is raised here reaches the first process as a traceback
        raise
    distributed.destroy_process_group()
    if rank == 0:
        sent.send(returned)
