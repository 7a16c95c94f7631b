"""Where Ray runs: the cluster that the user names, one that this process already uses, or one for this call alone."""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import getLogger
from pathlib import Path
from unittest import mock

import psutil
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
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial that fails at once reports no metric
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends at once; what a trial reported is on disk
    try:
        _start(address)
    except Exception as error:  # where Ray's processes do not come up it raises whatever they ran into
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(
            f"Cannot use the Ray cluster {address}: {reason}; see docs/sweeps.md, which also says how to give the "
            "cluster's token."
            if address
            else f"Ray did not start on this machine, tried twice: {reason}; nothing was written: free processes or "
            "memory and start the same command again, or name a running cluster with --ray_address."
        ) from error
    handle_again()
    try:
        yield
    finally:
        ray.shutdown()


def _start(address: str | None) -> None:
    """Ray, started here and once more where that fails; or a connection to the cluster at the address."""
    # Workers import the package from where this process does.
    paths = [str(Path(recbole_prmkd.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")]
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, paths))}}
    if address:
        ray.init(address=address, runtime_env=environment, log_to_driver=False)
        return
    for last in (False, True):
        before = psutil.Process().children(recursive=True)
        try:
            with _on_this_machine_alone():
                ray.init("local", runtime_env=environment, log_to_driver=False, include_dashboard=False)
            return
        except Exception as error:
            ray.shutdown()
            for process in {*psutil.Process().children(recursive=True)} - {*before}:  # of what has half started
                with suppress(psutil.Error):
                    process.kill()
            if last:
                raise
            getLogger().warning(f"Ray did not start ({' '.join(str(error).split())[:200]}): trying once more.")


@contextmanager
def _on_this_machine_alone() -> Iterator[None]:
    """Inside, Ray starts on the loopback address and leaves out its API server.

    That one asks the metadata servers of three cloud providers, on the network, where it runs, even with usage
    reports off, and none of what it serves is used here. Token authentication is Ray's default; it keeps its token in
    the user's home, where there is one to write to.
    """
    if not ({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or os.access(Path.home(), os.W_OK)):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with (
        mock.patch("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False),
        mock.patch("ray._private.services.start_api_server", lambda *given, **named: (None, None)),
    ):
        yield


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
