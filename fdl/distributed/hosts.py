"""Many hosts: each runs the same program in one process, and `start` joins the processes."""

import os
import socket
import time

import jax

from fdl.checks import check_count

# If a process sends no heartbeat for this long, it counts as dead, and the others end.
HEARTBEAT_SECONDS = 30


def start(
    coordinator: str | None = None,
    *,
    processes: int | None = None,
    process: int | None = None,
    timeout: int = 60,
) -> bool:
    """Joins this process to the others of the job. Call it first, before anything that uses JAX.

    Every process then sees the devices of all processes in `jax.devices()`. If `place` laid out a
    run, all processes together compute each of its training steps. If a process dies, the others
    end within a minute; when the job is started again, it continues from its checkpoint.

    On SLURM, Kubernetes, Open MPI and TPU, JAX finds the arguments itself. Elsewhere, and if the
    job has one process, `start()` without arguments does nothing.

    Args:
      coordinator: the address of the first process, such as "10.0.0.1:1234". None means the
        environment variable JAX_COORDINATOR_ADDRESS, or the address that JAX finds.
      processes: the number of processes. None means the number that JAX finds.
      process: the number of this process, in [0, processes). None means the number that JAX finds.
      timeout: how many seconds to wait for the other processes, an int >= 1.

    Returns:
      True if there are several processes.

    Raises:
      ValueError: some of the arguments are missing, and JAX cannot find them.
      RuntimeError: there are several processes, but JAX was used before; or the first process
        cannot be reached in time. (If another process does not join in time, JAX prints an error
        and ends this process.)

    Example:
      >>> start()  # there is only this process
      False
    """
    timeout = check_count("start", "timeout", timeout, "say how many seconds to wait")
    if jax.distributed.is_initialized():
        return jax.process_count() > 1
    address = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None and processes is None and process is None and not _in_a_cluster():
        return False
    if address is not None and process:
        _reach(address, timeout)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        raise ValueError(
            f"start: expected coordinator, processes and process, got "
            f"{address!r}, {processes} and {process}; pass all three, as in "
            "start('10.0.0.1:1234', processes=2, process=0)"
        ) from error
    except RuntimeError as error:
        if "before" not in str(error):
            raise
        raise RuntimeError(
            "start: expected a process in which JAX has not computed yet, got one in which it has; "
            "call fdl.distributed.start() in the first line of the program"
        ) from error
    return jax.process_count() > 1


def _in_a_cluster() -> bool:
    """Whether JAX finds a job of several processes around this process.

    `jax.distributed.initialize` does not look for one if JAX was used before, and nothing else of
    JAX's public API does.
    """
    from jax._src.clusters import ClusterEnv

    kinds = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method)
    return any(kind.is_env_present() and kind.get_process_count() > 1 for kind in kinds)


def _reach(address: str, timeout: int) -> None:
    """Waits for the first process; raises if it cannot be reached, where JAX would just exit."""
    host, _, port = address.rpartition(":")
    last = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=timeout).close()
            return
        except (OSError, ValueError) as error:
            if time.monotonic() > last or isinstance(error, ValueError):
                raise RuntimeError(
                    f"start: expected the first process at {address} within {timeout} seconds, got "
                    f"{error}; check that it runs, and that this host can reach its address"
                ) from error
        time.sleep(0.2)


def is_first() -> bool:
    """Whether this is the first process, which prints and writes files for all of them.

    Example:
      >>> is_first()
      True
    """
    return jax.process_index() == 0
