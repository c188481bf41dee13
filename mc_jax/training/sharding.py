"""Where the things that a step takes live, and batches on their way there."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mc_jax.errors import InputError
from mc_jax.sharding import MeshConfig, make_mesh, spec, tree_shardings
from mc_jax.typing import Array, PyTree

BATCH_KEYS = ("inputs", "targets", "weights")


class Rows(NamedTuple):
    """Rows of the global batches that this process prepares: the `part`-th of `parts`."""

    part: int
    parts: int


ALL_ROWS = Rows(0, 1)


class Shardings(NamedTuple):
    """Placement over a mesh."""

    mesh: Mesh

    @property
    def everywhere(self) -> NamedSharding:
        """For what every device has: scalars, and parameters where they are not split."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """For arrays [batch, length]."""
        return NamedSharding(self.mesh, spec(self.mesh, ("batch", "length"), (0, 0)))

    def state(self, tree: PyTree) -> PyTree:
        """For each array of a training state, or of parameters alone."""
        return tree_shardings(self.mesh, tree)

    def on_mesh(self, function: Callable) -> Callable:
        """`function` called with the mesh entered, so that models split their work over it."""

        def run(*args: Any) -> Any:
            with jax.set_mesh(self.mesh):
                return function(*args)

        return run

    def rows_here(self, batch_size: int, length: int) -> Rows:
        """Which rows of batches [batch_size, length] the devices of this process hold."""
        held = self.batch.addressable_devices_indices_map((batch_size, length)).values()
        rows = {row for index in held if index for row in range(*index[0].indices(batch_size))}
        size = len(rows)
        if max(rows) - min(rows) + 1 == size and not min(rows) % size and not batch_size % size:
            return Rows(min(rows) // size, batch_size // size)
        # Rows that lie apart: every process prepares all, and takes its own.
        return ALL_ROWS


def data_parallel() -> Shardings:
    """Placement of a model on every device, which share the batch."""
    return Shardings(make_mesh(MeshConfig()))


def check_batch_size(field: str, batch_size: int, ways: int, microbatches: int = 1) -> None:
    """Check that a batch splits evenly over `ways` devices and `microbatches`.

    Raises:
      InputError: it does not.
    """
    parts = microbatches * ways
    if batch_size % parts:
        allowed = f"a multiple of {parts} ({ways} devices x {microbatches} microbatches)"
        raise InputError(field, batch_size, allowed)


def to_devices(
    batch: Mapping[str, np.ndarray], sharding: NamedSharding, rows: Rows = ALL_ROWS
) -> dict[str, Array]:
    """The arrays of a batch that a step reads, as global arrays.

    Args:
      batch: `rows` of the global batch, on this host.
      sharding: of the global batch.
      rows: which they are; all by default.
    """

    def place(x: np.ndarray) -> Array:
        first = rows.part * len(x)
        shape = (rows.parts * len(x), *x.shape[1:])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(shape[0])
            return x[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, part)

    return {key: place(batch[key]) for key in BATCH_KEYS}
