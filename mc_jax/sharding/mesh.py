"""The mesh, and arrays in a program that runs on one."""

from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from mc_jax.sharding.config import AXES, MeshConfig
from mc_jax.sharding.rules import spec
from mc_jax.typing import Array


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of those devices, all that there are by default.

    Neighbours on `tensor`, then `context`, lie closest to each other: they talk the most.

    Raises:
      InputError: the axes do not make up the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    placed = mesh_utils.create_device_mesh(
        tuple(sizes.values()), devices, allow_split_physical_axes=True
    )
    # Automatic axes: the compiler finds what the table of rules does not say.
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def active_mesh() -> AbstractMesh | None:
    """The mesh that `jax.set_mesh` has entered, if it is one of `make_mesh`'s with several
    devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES and mesh.size > 1 else None


def constrain(x: Array, *axes: str | None) -> Array:
    """Split `x` over the active mesh, an entry of `RULES` or None for each of its axes; without a
    mesh `x` as it is."""
    mesh = active_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, spec(mesh, axes, x.shape))
