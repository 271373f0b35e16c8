"""Start or join Ray, quietly, and end what was started."""

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from rlhf_marl.config.schema import RuntimeConfig
from rlhf_marl.errors import UsageError
from rlhf_marl.sanitise import first_line

_OBJECT_STORE = 2**28  # bytes of shared memory for messages and states; Ray would take 30% of the machine's


def check_installed(where: str) -> None:
    """Raise UsageError if Ray is not installed. where: the key or option that asks for it."""
    if find_spec("ray") is None:
        raise UsageError(f"{where}: Ray is not installed: pip install '.[distributed]' in the toolkit's folder")


def connect(runtime: RuntimeConfig, n_workers: int, where: str) -> Callable[[], None]:
    """Start a local Ray, or join the one at `runtime.address`; returns a function that ends what was started.

    A Ray to which this process is already connected is used as it is, and stays.

    Raises:
        UsageError: Ray cannot be reached, or has too few CPUs or GPUs for the workers.
    """
    added = _prepare_environment(local=runtime.address is None)
    import ray

    if ray.is_initialized():
        _check_resources(runtime, n_workers, where)
        return lambda: None
    # Ray prints the deaths of workers by itself, besides the one line that the team writes.
    ray._private.worker._worker_logs_enabled = False
    may_cluster = ray._private.ray_constants.ENABLE_RAY_CLUSTER
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    folder: str | None = None
    if runtime.address is None:
        # A folder of its own, which other users cannot read. Its path must be short, since it holds sockets; a run
        # directory's may be long.
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # as the variable below, if Ray was imported before
        folder = tempfile.mkdtemp(prefix="rlhf-marl-")
        quiet |= {
            "num_cpus": n_workers * runtime.cpus_per_worker,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE,
            "_temp_dir": folder,
        }

    def end() -> None:
        ray.shutdown()
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = may_cluster
        for name in added:
            os.environ.pop(name, None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    address = runtime.address
    try:
        if address == "auto":
            address = _found()
        if address is not None:
            _check_reachable(address)
        ray.init(address=address or "local", **quiet)
        _check_resources(runtime, n_workers, where)
    except UsageError:
        end()
        raise
    except Exception as error:  # ConnectionError, RuntimeError, OSError, ValueError, ...
        end()
        if address == "auto":
            what, reason = "address: no Ray on this machine", "start one with `ray start --head`, or give host:port"
        else:
            what = f"address: no Ray at {address!r}" if address else "kind: Ray cannot be started"
            reason = first_line(error)
        remedy = "; set TMPDIR to a folder with a shorter path" if "AF_UNIX" in str(error) else ""
        raise UsageError(f"{where}: runtime.{what}: {reason}{remedy}") from None
    return end


def _found() -> str:
    """host:port of $RAY_ADDRESS, of a Ray that runs on this machine, or of the last one that was started here.

    Raises:
        ConnectionError: there is none.
    """
    from ray._private.services import get_ray_address_from_environment

    return get_ray_address_from_environment("auto", None)


def _check_reachable(address: str) -> None:
    """Raise OSError or ValueError if nothing listens at host:port: Ray would try for minutes, and log it."""
    from ray._private.services import resolve_ip_for_localhost

    host, _, port = address.rpartition(":")
    if not host or "://" in host or not port.isdigit():
        raise ValueError("give host:port, or auto")
    socket.create_connection((resolve_ip_for_localhost(host), int(port)), timeout=10).close()


def _prepare_environment(*, local: bool) -> list[str]:
    """Set what Ray reads when it is imported and started; what the user has set stays. Returns the names set."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without it Ray warns of a future change
    }
    if local:
        settings["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the only switch that makes Ray listen on loopback alone
    if local and "ray" not in sys.modules:  # it reads these when it is imported; else it makes a token of its own
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    added = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in added})
    return added


def _check_resources(runtime: RuntimeConfig, n_workers: int, where: str) -> None:
    import ray

    there = ray.cluster_resources()
    for kind, each in (("CPU", runtime.cpus_per_worker), ("GPU", runtime.gpus_per_worker)):
        if (needed := each * n_workers) > there.get(kind, 0.0):
            raise UsageError(
                f"{where}: runtime.{kind.lower()}s_per_worker: {n_workers} workers need {needed:g} {kind}s; "
                f"the Ray cluster has {there.get(kind, 0.0):g}"
            )
    if (fitting := room(runtime)) < n_workers:
        raise UsageError(
            f"{where}: runtime: a worker needs {runtime.cpus_per_worker} CPUs and {runtime.gpus_per_worker:g} GPUs of "
            f"one host; the cluster's hosts have room for {fitting} of {n_workers}"
        )


def room(runtime: RuntimeConfig) -> int:
    """How many workers the hosts of the connected cluster have room for, if nobody else uses them."""
    import ray

    return sum(room_of(node["Resources"], runtime) for node in ray.nodes() if node["Alive"])


def room_of(host: Mapping[str, float], runtime: RuntimeConfig) -> int:
    """How many workers a host has room for. host: its CPUs and GPUs, as Ray counts them."""
    wanted = {"CPU": runtime.cpus_per_worker, "GPU": runtime.gpus_per_worker}
    return min(int(host.get(kind, 0.0) / each + 1e-9) for kind, each in wanted.items() if each)
