"""Several hosts that train one model: how they find each other, agree, and notice a loss.

Every host runs the same program on the same workdir. What is written beside checkpoints, and what
is shown, comes from the first one; errors come from any.
"""

import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import mc_jax
from mc_jax.errors import InputError
from mc_jax.training.cli import BAD_INPUT

# A host that is silent for so long is lost, seconds; the others then end.
HEARTBEAT = 30
# Seconds that the others then have to close what they can; so has a host that has failed.
CLOSING = 15
# Exit code of the others, and of a host that has failed by itself.
HOST_LOST, FAILED = 3, 1


class HostLostError(RuntimeError):
    """Another host has left in the middle of a run."""


def join(
    distributed: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Find the other hosts; to be called before JAX looks for devices.

    Args:
      distributed: find them in what Cloud TPU, GKE or SLURM say of this machine.
      coordinator: else where the first one listens, HOST:PORT.
      processes: with `coordinator`, how many there are.
      process: with `coordinator`, which this one is, from 0.

    Raises:
      InputError: an option is missing, or they cannot be found.
    """
    named = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    given = [name for name, value in named.items() if value is not None]
    if not given and not distributed:
        return
    if given and len(given) < len(named):
        missing = ", ".join(name for name in named if name not in given)
        raise InputError("arguments", " ".join(given), f"all of {', '.join(named)}; not {missing}")
    if given and distributed:
        found = f"--distributed and {', '.join(given)}"
        raise InputError("arguments", found, "one way to find the other hosts")
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise InputError("--coordinator", coordinator, "HOST:PORT, where the first host listens")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise InputError("--process", process, f"an integer from 0 to {processes - 1}")
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (RuntimeError, ValueError) as error:
        found = coordinator or "--distributed"
        allowed = (
            "hosts that reach each other: on Cloud TPU, GKE or SLURM --distributed, elsewhere "
            "--coordinator=HOST:PORT --processes=N --process=I on each"
        )
        raise InputError("hosts", found, f"{allowed} ({str(error).splitlines()[0]})") from None


def is_first() -> bool:
    """Whether this host is the one that writes and shows."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are others."""
    return jax.process_count() > 1


def wait_for_all(name: str) -> None:
    """Return when every host has come here."""
    if several():
        multihost_utils.sync_global_devices(name)


def check_joined() -> None:
    """Check that hosts whose devices are seen have been joined.

    Raises:
      InputError: they have not.
    """
    if several() and not jax.distributed.is_initialized():
        found = f"devices of {jax.process_count()} hosts"
        raise InputError("hosts", found, "--distributed on every host")


def check_same(config: Mapping[str, Any]) -> None:
    """Check that all hosts have the same experiment and the same code.

    Raises:
      InputError: on every host, naming those that differ from the first.
    """
    if not several():
        return
    package = Path(mc_jax.__file__).parent
    code = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        code.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    experiment = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for field, digest in (("config", experiment), ("the code of mc_jax", code)):
        _check_alike(field, np.frombuffer(digest.digest(), np.uint8), "the same on all hosts")


def check_shared(folder: Path, latest: int) -> None:
    """Check that all hosts see one workdir.

    Args:
      folder: of the checkpoints, which the first host has made.
      latest: the newest one that this host sees.

    Raises:
      InputError: on every host, naming those that see another one.
    """
    if several():
        seen = np.array([folder.is_dir(), latest])
        _check_alike("workdir", seen, "one folder for all hosts, on storage that they share")


def _check_alike(field: str, mine: np.ndarray, allowed: str) -> None:
    """Raise InputError on every host unless all have what the first has."""
    everywhere = multihost_utils.process_allgather(mine)
    other = np.flatnonzero(np.any(everywhere != everywhere[0], axis=-1))
    if other.size:
        raise InputError(field, f"another one on host {', '.join(map(str, other))}", allowed)


@contextmanager
def not_held_up() -> Iterator[None]:
    """What fails in here ends this host in a while, whatever the others do.

    JAX leaves when all hosts do, and they may be waiting for this one: they have to find it lost.
    """
    try:
        yield
    except BaseException as error:
        if jax.distributed.is_initialized():
            code = BAD_INPUT if isinstance(error, InputError) else FAILED
            end_soon(f"{error!r}: this host has left the others", code)
        raise


def end_soon(message: str, code: int) -> None:
    """End this process in a while, should closing what it has open wait for other hosts."""

    def end() -> None:
        print(message, file=sys.stderr, flush=True)
        os._exit(code)

    timer = threading.Timer(CLOSING, end)
    timer.daemon = True
    timer.start()


def agree(mine: bool) -> bool:
    """What the first host says."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(mine))) if several() else mine
