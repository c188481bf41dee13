"""Compiling for a TPU on a machine without one: libtpu's compiler needs no device."""

import functools
import os
import platform
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.rare import param

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# An older one, with a quarter of their VMEM or less, and a newer one, for which fewer are compiled.
OTHERS = {"v4": "v4:2x2x1", "tpu7x": "tpu7x:2x2x1"}

# There requirements-dev.txt brings it, so that these tests run or fail.
HAS_LIBTPU = sys.platform == "linux" and platform.machine() == "x86_64"
needs_libtpu = pytest.mark.skipif(
    not HAS_LIBTPU, reason="libtpu, which compiles for TPUs, exists for Linux on x86-64 only"
)


def on_every_chip(cases: dict, rare=()):
    """Parametrize by `chip` and `case`; float32, and some, are `rare` for all chips but one."""

    return pytest.mark.parametrize(
        ("chip", "case"),
        [
            param(
                *(chip, case),
                rare=(case.dtype == jnp.float32 or name in rare) and chip != "v5e",
                id=f"{name}-{chip}",
            )
            for name, case in cases.items()
            for chip in TOPOLOGIES
        ],
    )


@functools.cache
def devices(chip: str):
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    name = (TOPOLOGIES | OTHERS)[chip]
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def device(chip: str):
    return devices(chip)[0]


def compile_for(chip: str, function, *args):
    """The compiled program of `function` for one chip; arguments are arrays or their shapes."""
    mesh = Mesh(np.array([device(chip)]), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args)
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*shapes).compile()
