"""Sums over memories tile by tile, against one sum over all memories and tokens."""

import jax
import jax.numpy as jnp
import pytest

from mc_jax.kernels import causal_tiles
from mc_jax.kernels.causal_tiles import seen_memories, sum_over_memories
from mc_jax.kernels.gates import visible_memories
from tests.kernels.reads import assert_close

OUT, WIDTH = 5, 4


def network(weights, x):
    """Not linear, and with outputs of another width."""
    return jnp.tanh(weights["b"] @ jnp.tanh(weights["a"] @ x))


def arguments(tokens, memories, segment_len, first_segment):
    keys = jax.random.split(jax.random.key(0), 5)
    weights = {
        "a": jax.random.normal(keys[0], (memories, 6, WIDTH)),
        "b": jax.random.normal(keys[1], (memories, OUT, 6)),
    }
    visible = visible_memories(memories, tokens, segment_len, first_segment)
    gate = jnp.where(visible, jax.random.normal(keys[2], (memories, tokens)), 0)
    x = jax.random.normal(keys[3], (WIDTH, tokens))
    return (weights, gate, x), jax.random.normal(keys[4], (OUT, tokens))


@pytest.mark.parametrize("on_cpu, longest", [(True, None), (True, 16), (False, 16)])
@pytest.mark.parametrize("first_segment", [0, 3])
@pytest.mark.parametrize("tokens, segment_len", [(1, 2), (16, 4), (61, 5), (100, 7)])
def test_equal_to_one_sum(tokens, segment_len, first_segment, on_cpu, longest, monkeypatch):
    monkeypatch.setattr(causal_tiles, "SHORTEST", 4)
    monkeypatch.setattr(causal_tiles, "LONGEST_ON_CPU", 8)
    monkeypatch.setattr(causal_tiles, "on_cpu", lambda: on_cpu)
    args, cotangent = arguments(tokens, 9, segment_len, first_segment)

    def in_tiles(first, weights, gate, x):
        facts = segment_len, first, None, longest
        return sum_over_memories(network, weights, gate, x, *facts)

    def at_once(weights, gate, x):
        return jnp.einsum("it,iot->ot", gate, jax.vmap(network, (0, None))(weights, x))

    def run(form):
        y, back = jax.vjp(form, *args)
        weights, gate, x = back(cotangent)
        # Where no memory is seen there is no gradient to speak of.
        return y, weights, jnp.where(args[1] == 0, 0, gate), x

    found = jax.jit(lambda first: run(lambda *a: in_tiles(first, *a)))(jnp.int32(first_segment))
    assert_close(found, run(at_once), 1e-5)
    assert_close(run(lambda *a: in_tiles(first_segment, *a)), found, 1e-6)


def test_memories_that_no_token_sees_are_not_touched():
    (weights, gate, x), _ = arguments(40, 9, 8, 0)
    clean = sum_over_memories(network, weights, gate, x, 8, 0)
    poisoned = jax.tree.map(lambda w: w.at[4:].set(jnp.nan), weights)
    assert_close(sum_over_memories(network, poisoned, gate, x, 8, 0), clean, 0)


def test_how_many_are_seen():
    assert seen_memories(9, 40, 8, 0) == (4, 2)
    assert seen_memories(3, 40, 8, 0) == (3, 1.5)
    assert seen_memories(9, 40, 8, jnp.int32(0)) == (9, 9)
