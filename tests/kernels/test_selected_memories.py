"""Reading the memories that a token selects, grouped by memory, against reading all of them."""

import functools

import jax
import jax.numpy as jnp
import pytest

from mc_jax.kernels import in_place, selected_memories
from mc_jax.kernels.deep_read import deep_read
from mc_jax.kernels.gates import Router, Scores
from mc_jax.kernels.linear_read import linear_read
from mc_jax.memory.network import MlpWeights
from tests.kernels.reads import TOLERANCE, assert_close, heads_and_sequences, with_gradients
from tests.kernels.tpu import compile_for, needs_libtpu

HEAD_DIM = 16
DEEP = {"activation": "gelu", "mem_norm": "layer"}


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """Always select, with blocks that the cases fill several of."""
    monkeypatch.setattr(selected_memories, "BLOCK", 4)
    monkeypatch.setattr(in_place, "TILE", 8)
    for cost in ("COST_ON_CPU", "COST_ELSEWHERE"):
        monkeypatch.setattr(selected_memories, cost, 0)


def arguments(seed, tokens, memories, deep=False, scores=False, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 6)
    q = jax.random.normal(keys[0], (HEAD_DIM, tokens)).astype(dtype)
    if deep:
        weights = MlpWeights(
            w1=jax.random.normal(keys[1], (memories, HEAD_DIM, 32)) / 6,
            w2=jax.random.normal(keys[2], (memories, 32, HEAD_DIM)) / 4,
        )
    else:
        weights = jax.random.normal(keys[1], (memories, HEAD_DIM, HEAD_DIM)) / 4
    online = jax.random.normal(keys[3], (tokens,))
    if scores:
        return q, weights, Scores(online, jax.random.normal(keys[4], (memories, tokens)))
    u = jax.random.normal(keys[4], (HEAD_DIM, tokens)).astype(dtype)
    return q, weights, Router(u, online, jax.random.normal(keys[5], (memories, HEAD_DIM)))


def compare(args, monkeypatch, tolerance=TOLERANCE[jnp.float32], **options):
    """Outputs and gradients of the grouped read equal the reference's."""
    op = deep_read if isinstance(args[1], MlpWeights) else linear_read
    options |= DEEP if op is deep_read else {}
    used = []
    read = selected_memories.group
    monkeypatch.setattr(selected_memories, "group", lambda *a: used.append(1) or read(*a))
    tokens = args[0].shape[1]
    keys = jax.random.split(jax.random.key(9))
    cotangents = jax.random.normal(keys[0], (HEAD_DIM, tokens)), jax.random.normal(keys[1], tokens)
    found = with_gradients(op, args, cotangents, implementation="xla", **options)
    assert used, "the grouped read did not run"
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), args)
    expected = with_gradients(op, exact, cotangents, implementation="reference", **options)
    assert_close(found, expected, tolerance)


@pytest.mark.parametrize("top_k", [1, 3, 5])
@pytest.mark.parametrize("tokens, memories, segment_len", [(61, 12, 5), (40, 5, 8), (7, 6, 1)])
@pytest.mark.parametrize("deep", [False, True])
def test_equal_to_reading_all(deep, tokens, memories, segment_len, top_k, monkeypatch):
    args = arguments(0, tokens, memories, deep)
    compare(args, monkeypatch, segment_len=segment_len, top_k=top_k)


@pytest.mark.parametrize("deep", [False, True])
def test_all_blocks_at_once(deep, monkeypatch):
    """As on other devices than a CPU."""
    for module in (selected_memories, in_place):
        monkeypatch.setattr(module, "on_cpu", lambda: False)
    compare(arguments(0, 61, 12, deep), monkeypatch, segment_len=5, top_k=3)


@pytest.mark.parametrize("deep", [False, True])
def test_sequences_that_go_on(deep, monkeypatch):
    args = arguments(1, 30, 12, deep)
    compare(args, monkeypatch, segment_len=4, top_k=2, first_segment=jnp.int32(3))


def test_scores_that_are_given(monkeypatch):
    compare(arguments(2, 33, 8, scores=True), monkeypatch, segment_len=4, top_k=3)


def test_bfloat16(monkeypatch):
    args = arguments(3, 64, 12, deep=True, dtype=jnp.bfloat16)
    tolerance = TOLERANCE[jnp.bfloat16]
    compare(args, monkeypatch, tolerance=tolerance, segment_len=5, top_k=3)


def test_of_equal_logits_the_older_memory_is_read(monkeypatch):
    q, weights, router = arguments(4, 30, 10)
    router = router._replace(descriptors=jnp.ones_like(router.descriptors))
    compare((q, weights, router), monkeypatch, segment_len=3, top_k=2)


def test_all_tokens_read_one_memory(monkeypatch):
    q, weights, router = arguments(5, 50, 9, scores=True)
    router = router._replace(cached=router.cached.at[2].add(100.0))
    compare((q, weights, router), monkeypatch, segment_len=5, top_k=1)


@pytest.mark.parametrize("deep", [False, True])
def test_what_no_token_sees_may_hold_anything(deep):
    q, weights, router = arguments(6, 30, 12, deep)
    op, options = (deep_read, DEEP) if deep else (linear_read, {})
    # Tokens of segments 2 to 7 see memories 0 to 6.
    poisoned = jax.tree.map(lambda w: w.at[7:].set(jnp.nan), weights)

    def read(q, weights):
        first = jnp.int32(2)
        y, _ = op(
            q,
            weights,
            router,
            segment_len=5,
            top_k=3,
            first_segment=first,
            implementation="xla",
            **options,
        )
        return jnp.sum(y**2)

    clean = jax.value_and_grad(read, (0, 1))(q, weights)
    found = jax.value_and_grad(read, (0, 1))(q, poisoned)
    assert_close(found, clean, 0)


def test_heads_and_sequences_by_vmap(monkeypatch):
    args = heads_and_sequences(lambda seed: arguments(seed, 40, 8))

    def read(implementation):
        one = lambda *args: linear_read(  # noqa: E731
            *args, segment_len=4, top_k=2, implementation=implementation
        )[0]
        return jax.vmap(jax.vmap(one))(*args)

    assert_close(read("xla"), read("reference"), TOLERANCE[jnp.float32])


def test_many_pairs_are_sorted_as_few():
    """With so many memories that a pair and its memory are more than one number holds."""
    memory = jax.random.randint(jax.random.key(0), (300,), 0, 20)
    few, many = (selected_memories._sorted(memory, n) for n in (20, 2**24))
    assert_close(few, many, 0)
    assert_close(few[1], jnp.argsort(memory), 0)


@pytest.mark.parametrize("memories, selects", [(6, False), (127, True)])
def test_few_memories_are_all_read(memories, selects, monkeypatch):
    monkeypatch.undo()
    used = []
    read = selected_memories.group
    monkeypatch.setattr(selected_memories, "group", lambda *a: used.append(1) or read(*a))
    args = arguments(0, 64 * (memories + 1), memories)
    jax.eval_shape(lambda *x: linear_read(*x, segment_len=64, top_k=2, implementation="xla"), *args)
    assert bool(used) == selects


@needs_libtpu
def test_memories_are_gathered_a_few_at_a_time(monkeypatch):
    """One for each of 320 blocks would be 84 MB, and their gradients twice as much."""
    monkeypatch.undo()
    memories, tokens, head_dim, hidden = 64, 8192, 128, 512

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    weights = MlpWeights(array(memories, head_dim, hidden), array(memories, hidden, head_dim))
    router = Scores(array(tokens, dtype=jnp.float32), array(memories, tokens, dtype=jnp.float32))

    def run(*args):
        read = functools.partial(deep_read, segment_len=128, top_k=4, **DEEP)
        y, back = jax.vjp(lambda *args: read(*args)[0], *args)
        return back(y)

    compiled = compile_for("v5e", run, array(head_dim, tokens), weights, router)
    assert compiled.memory_analysis().temp_size_in_bytes < 100e6
