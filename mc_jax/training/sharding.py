"""Where arrays live: the batch split over all devices, the state on each of them."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mc_jax.errors import InputError
from mc_jax.typing import Array

BATCH_KEYS = ("inputs", "targets", "weights")


class Shardings(NamedTuple):
    """Placement of the two things that a step takes."""

    state: NamedSharding
    batch: NamedSharding


def data_parallel() -> Shardings:
    """Shardings over a mesh of all devices with one axis."""
    # Linen's parameters need automatic axes.
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return Shardings(
        NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    )


def check_batch_size(field: str, batch_size: int, microbatches: int = 1) -> None:
    """Check that a batch splits evenly over the devices and `microbatches`.

    Raises:
      InputError: it does not.
    """
    parts = microbatches * jax.device_count()
    if batch_size % parts:
        allowed = (
            f"a multiple of {parts} ({jax.device_count()} devices x {microbatches} microbatches)"
        )
        raise InputError(field, batch_size, allowed)


def to_devices(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, Array]:
    """The arrays of this host's `batch` that a step reads, as global arrays."""
    return {key: jax.make_array_from_process_local_data(sharding, batch[key]) for key in BATCH_KEYS}
