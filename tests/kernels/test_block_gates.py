"""Which memories the tokens of a block read, and their weights."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from mc_jax.kernels.block_gates import store_gates
from mc_jax.kernels.gates import Router, softmax_gates
from tests.compiling import quick_jit

LOGITS = {
    "distinct": lambda key, shape: jax.random.normal(key, shape),
    "a few values": lambda key, shape: jax.random.randint(key, shape, 0, 3).astype(jnp.float32),
    "one value": lambda key, shape: jnp.full(shape, -2.0),
    "huge": lambda key, shape: 1e30 * jax.random.randint(key, shape, -1, 2),
}


@functools.cache
def program(top_k):
    """`block_gates`, compiled once for logits of one shape."""
    return quick_jit(functools.partial(block_gates, top_k))


def block_gates(top_k, logits, online, seen):
    """What a kernel writes; its router's descriptors are a unit matrix, and so u the logits."""
    memories, tokens = logits.shape

    def kernel(u, online, descriptors, seen, own, gates):
        each = seen[...]
        gates[...] = jnp.zeros_like(gates)
        store_gates(top_k, Router(u, online, descriptors), each, jnp.max(each), own, gates)

    return pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct((1, tokens), jnp.float32),
            jax.ShapeDtypeStruct((memories, tokens), jnp.float32),
        ),
        interpret=True,
    )(logits, online, jnp.eye(memories), seen)


@pytest.mark.parametrize("memories, top_k", [(9, 1), (16, 3), (24, 4), (21, 8), (32, 5)])
@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
@pytest.mark.parametrize("most", [0.3, 1.0])
def test_the_best_are_read_and_of_equal_ones_the_first(memories, top_k, logits, most):
    """By tokens that see nothing, fewer than they may read, and all."""
    tokens, keys = 384, jax.random.split(jax.random.key(top_k), 3)
    values = logits(keys[0], (memories, tokens))
    online = jax.random.normal(keys[1], (1, tokens))
    seen = jax.random.randint(keys[2], (1, tokens), 0, int(most * memories) + 1)
    own, gates = program(top_k)(values, online, seen)
    visible = jnp.arange(memories)[:, None] < seen
    expected_own, expected = softmax_gates(online[0], values, visible, top_k)
    assert jnp.array_equal(gates > 0, expected > 0)
    assert jnp.allclose(gates, expected, atol=1e-6)
    assert jnp.allclose(own[0], expected_own, atol=1e-6)
