"""Decoding reads only the memories that it needs, and sequences may have lengths of their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mc_jax
from mc_jax.caching.token_read import BLOCK
from tests.rare import param

from .cases import Case, assert_close, call, cast, cut, make_inputs, quick_call, quick_jit

LENGTH = 41
RAGGED = np.array([0, 41, 17, 24])


def many(rule, aggregation, **more):
    """Segments of two tokens: more memories than fit into a block."""
    return Case(rule, aggregation, segment_len=2, chunk_len=1, **more)


def alone(tree, row):
    """One sequence of a batch of inputs."""
    return {
        name: value
        if name == "params" or value is None
        else jax.tree.map(lambda x: x[row : row + 1], value)
        for name, value in tree.items()
    }


@pytest.mark.parametrize(
    "case",
    [
        many("linear", "grm"),
        many("titans", "grm"),
        many("titans", "soup"),
        many("swla", "residual", gate="none"),
        many("dla", "ssc"),
        many("linear", "ssc", gate="position"),
        many("linear", "ssc", top_k=30),
        many("titans", "ssc", route_every=2),
    ],
    ids=str,
)
def test_equals_the_equations(case, x64):
    """Outputs, cache and gradients of all blocks of memories, the last of which is not full."""
    length = 2 * BLOCK + LENGTH
    inputs = make_inputs(case, length)

    def run(implementation):
        def total(inputs):
            out, cache = call(case, inputs, implementation=implementation)
            return jnp.sum(jnp.sin(out)), (out, cache)

        return quick_jit(jax.grad(total, has_aux=True))(inputs)

    assert length // case.segment_len > 2 * BLOCK
    assert_close(run("decode"), run("recurrent"), 1e-12)


@pytest.mark.parametrize("implementation", ["chunked", "xla", "decode", "recurrent"])
@pytest.mark.parametrize("route_every", [1, 3])
def test_a_broken_memory_shows(route_every, implementation):
    """Whatever reads it, and is not left out of what is read."""
    case = Case("linear", "ssc", top_k=2, route_every=route_every)
    inputs = make_inputs(case, LENGTH)
    inputs["k"][0, 3] = np.nan
    y, _ = quick_call(case, inputs, implementation=implementation)
    assert np.all(np.isnan(y[:, 6:]))


@pytest.mark.parametrize("implementation", ["chunked", "decode", "recurrent"])
@pytest.mark.parametrize(
    "case",
    [
        Case("linear", "grm"),
        Case("swla", "ssc", write_mode="checkpoint"),
        Case("linear", "ssc", route_every=3, top_k=1),
        Case("titans", "soup"),
        Case("dla", "grm", "logarithmic"),
        param(Case("linear", "grm", "logarithmic"), rare=True, id="linear-grm-logarithmic"),
        Case("linear", "none", gate="none"),
    ],
    ids=str,
)
def test_lengths(case, implementation, x64):
    """A batch of sequences of different lengths is each of them by itself, from the start and on.

    Padding holds large numbers that would show.
    """
    inputs = make_inputs(case, LENGTH + 8, batch=len(RAGGED))
    more = np.array([8, 3, 0, 7])

    def padded(first, lengths, size):
        rows = [
            cut(alone(inputs, i), case, n, n + m)
            for i, (n, m) in enumerate(zip(first, lengths, strict=True))
        ]

        def pad(*parts):
            fill = np.where(np.abs(parts[0]).max(initial=0.5) < 1, 0.9, 50.0)
            full = [
                np.pad(
                    x,
                    [(0, 0), (0, size - x.shape[1])] + [(0, 0)] * (x.ndim - 2),
                    constant_values=fill,
                )
                for x in parts
            ]
            return np.concatenate(full)

        tokens = [{k: v for k, v in row.items() if k != "params"} for row in rows]
        return jax.tree.map(pad, *tokens) | {"params": inputs["params"]}

    def run(piece, lengths, cache=None):
        return call(
            case, piece, initial_cache=cache, lengths=lengths, implementation=implementation
        )

    out, cache = quick_jit(run)(padded(0 * RAGGED, RAGGED, LENGTH), RAGGED)
    cache = mc_jax.reserve(cache, LENGTH + 8, segment_len=6, segmentation=case.segmentation)
    rest, cache = quick_jit(run)(padded(RAGGED, more, 8), more, cache)
    assert cache.position.tolist() == (RAGGED + more).tolist()
    whole = quick_jit(lambda piece: call(case, piece, implementation=implementation))
    for i, (n, m) in enumerate(zip(RAGGED, more, strict=True)):
        expected, after = whole(cut(alone(inputs, i), case, 0, int(n + m)))
        assert_close(out[i : i + 1, :n], expected[:, :n], 1e-10)
        assert_close(rest[i : i + 1, :m], expected[:, n:], 1e-10)
        own = jax.tree.map(lambda x, i=i: x[i : i + 1], cache)._replace(position=after.position)
        room = after.capacity
        assert_close(
            jax.tree.map(
                lambda x: x,
                own._replace(
                    memories=cut_room(own.memories, room),
                    descriptors=cut_room(own.descriptors, room),
                    streams=cut_room(own.streams, room),
                ),
            ),
            after,
            1e-10,
            f"cache of sequence {i}",
        )


def cut_room(tree, room):
    """The first slots."""
    return jax.tree.map(lambda x: x[:, :, :room], tree)


def test_one_length_for_all_keeps_one_position():
    case = Case("linear", "ssc")
    inputs = cast(make_inputs(case, LENGTH, batch=2), jnp.float32)
    out, cache = quick_jit(lambda n: call(case, inputs, lengths=n))(jnp.int32(20))
    expected, after = quick_call(case, cut(inputs, case, 0, 20))
    assert cache.position.shape == ()
    assert_close(out[:, :20], expected, 1e-5)
    assert_close(cache.state, after.state, 1e-5)


@pytest.mark.parametrize(
    ("lengths", "found"),
    [([1, 2, 3], "[1, 2, 3]"), ([-1, 2], "[-1, 2]"), ([3, 42], "[3, 42]"), (1.5, "1.5")],
)
def test_lengths_that_do_not_fit(lengths, found):
    case = Case("linear")
    inputs = cast(make_inputs(case, LENGTH, batch=2), jnp.float32)
    with pytest.raises(mc_jax.InputError, match="lengths") as error:
        call(case, inputs, lengths=np.array(lengths))
    assert found in str(error.value)
    assert f"0 to {LENGTH}" in str(error.value)


@pytest.mark.parametrize("aggregation", ["grm", "soup", "ssc"])
def test_a_token_copies_no_cache(aggregation):
    """In a compiled loop that owns its cache, the room for memories is updated where it lies."""
    case = Case("linear", aggregation, segment_len=8, chunk_len=4)
    inputs = cast(make_inputs(case, 8, dim=16), jnp.float32)
    _, cache = call(case, inputs)
    cache = mc_jax.reserve(cache, 8 * 1000, segment_len=8)

    def decode(cache, inputs):
        def token(cache, index):
            one = {
                name: value
                if name == "params"
                else jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index, 1, 1), value)
                for name, value in inputs.items()
            }
            out, cache = call(case, one, initial_cache=cache)
            return cache, out

        return jax.lax.scan(token, cache, jnp.arange(8))

    compiled = jax.jit(decode, donate_argnums=0).lower(cache, inputs).compile()
    memories = sum(x.nbytes for x in jax.tree.leaves(cache.memories))
    assert compiled.memory_analysis().temp_size_in_bytes < memories / 4


def test_options_of_the_case_matter():
    """The cases above do read several blocks and select among more memories than they read."""
    case = many("linear", "ssc")
    inputs = make_inputs(case, LENGTH)
    few = quick_call(case, inputs)[0]
    assert not np.allclose(few, quick_call(dataclasses.replace(case, top_k=30), inputs)[0])
