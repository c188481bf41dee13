"""TPUs that are not here: their devices, for the compiler, and what the hardware can do."""

import importlib.util
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from mc_jax.errors import InputError

ALLOWED = (
    "CHIP:SHAPE such as v5e:4x8, v5p:4x4x4, v6e:16x16 or tpu7x:4x4x4; a v5p shape is three "
    "numbers, a v5e or v6e shape two"
)

# Published inter-chip bandwidth, both directions together, bytes/s a chip.
_LINKS = {"v4": 300e9, "v5e": 200e9, "v5p": 600e9, "v6e": 448e9, "7x": 1200e9}
# The compiler counts in these cycles a second.
_CLOCKS = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}


class Hardware(NamedTuple):
    """What one device can do.

    Attributes:
      name: of the chip.
      hbm: bytes.
      flops: bfloat16 FLOP/s.
      bandwidth: HBM bytes/s.
      links: bytes/s that it can send to other chips; None if it is not known.
      clock: cycles/s; None if it is not known.
    """

    name: str
    hbm: int
    flops: float
    bandwidth: float
    links: float | None
    clock: float | None


def devices_of(topology: str) -> Sequence[jax.Device]:
    """Devices of a topology, such as "v5p:4x4x4".

    Raises:
      InputError: no such topology, or no compiler for TPUs is installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        allowed = "a machine with libtpu: pip install -r requirements-tpu.txt"
        raise InputError("--topology", topology, allowed)
    # libtpu would look for the machine that it runs on.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise InputError("--topology", topology, f"{ALLOWED} ({reason})") from None


def hardware_of(devices: Sequence[jax.Device]) -> Hardware:
    """What one of those devices can do."""
    with jax.set_mesh(Mesh(np.array(devices[:1]), ("x",))):
        info = pltpu.get_tpu_info()
    name, cores = str(info.chip_version), info.num_cores
    # Chips whose cores are devices of their own share the links.
    sharing = 2 if name in ("v4", "7x") and cores == 1 else 1
    links = _LINKS.get(name)
    return Hardware(
        name,
        cores * info.hbm_capacity_bytes,
        cores * info.bf16_ops_per_second,
        cores * info.mem_bw_bytes_per_second,
        links and links / 2 / sharing,
        _CLOCKS.get(name),
    )
