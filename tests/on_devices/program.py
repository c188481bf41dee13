"""What is read off programs that were compiled here; run by tests/planning/test_program.py."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from mc_jax.planning.program import Program, totals

TURNS, SIZE = 5, 32


def exchanges(function, out_specs):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    split = jax.shard_map(
        function, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=out_specs, check_vma=False
    )
    text = jax.jit(split).lower(jnp.zeros((4 * SIZE, 8))).compile().as_text()
    return totals(Program(text).collectives())


def test_a_loop_of_permutes():
    def run(x):
        def turn(x, _):
            return lax.ppermute(x, "x", [(i, (i + 1) % 4) for i in range(4)]) * 2, None

        return lax.scan(turn, x, length=TURNS)[0]

    found = exchanges(run, PartitionSpec("x"))
    assert found == {"collective-permute": (TURNS, TURNS * SIZE * 8 * 4)}


def test_gather_and_sum():
    def run(x):
        return lax.psum(jnp.sin(lax.all_gather(x, "x", tiled=True)), "x")

    found = exchanges(run, PartitionSpec())
    size = 4 * SIZE * 8 * 4
    assert found["all-gather"] == (1, size * 3 / 4)
    assert found["all-reduce"] == (1, 2 * size * 3 / 4)
