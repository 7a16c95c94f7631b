"""Where Ray runs: the cluster that the user names, one that this process already uses, or one for this call alone."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

import recbole_prmkd
from recbole_prmkd.errors import UserError
from recbole_prmkd.interruption import handle_again


def check_address(address: str | None) -> None:
    """Reject a cluster that cannot be reached; Ray itself would try for minutes.

    Raises:
        UserError: nothing listens at the address.
    """
    host, colon, port = (address or "").rpartition(":")
    if not colon or "://" in host or not port.isdigit():  # auto and Ray's other words, which fail fast
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"No Ray cluster answers at {address} ({error}): check --ray_address; docs/sweeps.md says how to start one."
        ) from error


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Ray, for the length of the block.

    Args:
        address: of a running cluster, such as `auto` or `10.0.0.5:6379`; None: this machine.
    Raises:
        UserError: there is no such cluster, or it does not accept the token.
    """
    if ray.is_initialized():
        yield
        return
    check_address(address)
    # Ray writes down the sweep's state every second, so that a killed driver loses no trial that had ended, and does
    # not warn that this is often.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends at once; what a trial reported is on disk
    # Workers import the package from where this process does.
    paths = [str(Path(recbole_prmkd.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")]
    try:
        ray.init(
            address=address or "local",
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, paths))}},
            log_to_driver=False,
            include_dashboard=None if address else False,
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"Cannot use the Ray cluster {address or 'of this machine'}: {reason}; see docs/sweeps.md, which also "
            "says how to give the cluster's token."
        ) from error
    handle_again()
    try:
        yield
    finally:
        ray.shutdown()


def check_room(cpu: float, gpu: float) -> None:
    """Reject a trial for which no node has room: Ray would wait for ever for one.

    Args:
        cpu, gpu: what a trial takes of a node.
    Raises:
        UserError: with what the nodes have.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= cpu and node.get("GPU", 0) >= gpu for node in nodes):
        return
    have = "; ".join(sorted({f"cpu: {node.get('CPU', 0):g}, gpu: {node.get('GPU', 0):g}" for node in nodes}))
    raise UserError(
        f"A trial asks for cpu: {cpu:g}, gpu: {gpu:g}, but no node has as much (there is {have}): lower resources."
    )
