"""Bytes: what `state_size` says is what the cache holds, and what training keeps per token."""

import math

import jax
import jax.numpy as jnp
import pytest

import mc_jax
from mc_jax.caching import FORMS
from mc_jax.errors import InputError
from tests.compiling import QUICK
from tests.rare import param

from .cases import Case, call, cast, make_inputs

EXPANSION = 2


def shapes_of(case, length, window=2):
    """Shapes only: nothing is computed."""
    inputs = make_inputs(case, length, hidden=5 * EXPANSION, window=window)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), inputs)


def bytes_of(tree):
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def size(case, length, **more):
    """`state_size` with a case's options, without those that change no size."""
    options = case.options()
    del options["mem_norm"], options["activation"], options["pooled"]
    return mc_jax.state_size(
        length, heads=2, head_dim=5, expansion=EXPANSION, dtype="float32", **options, **more
    )


@pytest.mark.parametrize("length", [1, 6, 17])
@pytest.mark.parametrize(
    "case",
    [
        Case("linear"),
        Case("linear", "none", gate="none"),
        Case("swla", "ssc", "logarithmic", gate="position"),
        Case("dla", "soup", "logarithmic", "checkpoint", "shared_query"),
        Case("titans", "grm", "logarithmic"),
        Case("titans", "residual", gate="none"),
    ],
    ids=str,
)
def test_state_size_is_that_of_the_cache(case, length):
    """Here at several lengths; test_combinations.py has every combination."""
    _, cache = jax.eval_shape(lambda x: call(case, x), shapes_of(case, length))
    assert size(case, length) == bytes_of(cache)


@pytest.mark.parametrize("window", [1, 3])
def test_state_size_of_windows(window):
    case = Case("swla")
    _, cache = jax.eval_shape(lambda x: call(case, x), shapes_of(case, 17, window))
    assert size(case, 17, window=window) == bytes_of(cache)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", [Case("swla", "ssc"), Case("titans", segmentation="logarithmic")])
def test_state_size_of_forms(case, form):
    _, cache = call(case, cast(make_inputs(case, 17, hidden=10), jnp.float32))
    assert size(case, 17, form=form) == bytes_of(mc_jax.store(cache, form))


def test_state_size_by_hand():
    """41 tokens of plain and of cached linear attention, 2 heads of 5, float32."""
    plain = Case("linear", "none", gate="none")
    matrix, counter = 2 * 5 * 5 * 4, 4
    assert matrix + counter <= size(plain, 41) <= matrix + counter + 2 * 4
    key = 2 * 5 * 4
    six_more = 6 * (matrix + key) + key
    assert size(Case("linear"), 41) == size(plain, 41) + six_more
    assert size(Case("linear"), 10_000) > 250 * size(plain, 10_000)
    assert size(Case("linear", segmentation="logarithmic"), 10_000) < 20 * size(plain, 10_000)


def test_kv_cache_size():
    assert mc_jax.kv_cache_size(7, heads=2, head_dim=5) == 2 * 7 * 2 * 5 * 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("length", -1), ("heads", 0), ("head_dim", 0), ("expansion", 0), ("window", 0)],
)
def test_state_size_refuses(field, value):
    arguments = {"length": 8, "heads": 2, "head_dim": 4} | {field: value}
    with pytest.raises(InputError) as caught:
        mc_jax.state_size(**arguments, rule="swla" if field == "window" else "dla")
    assert caught.value.field == field


# Training: temporaries per token against one memory's size.

HEAD_DIM, HIDDEN, SEGMENT, CHUNK = 64, 256, 128, 32
MEMORY_BYTES = 2 * HEAD_DIM * HIDDEN * 4


def temporaries(case, length, implementation):
    """Bytes that a training-like step of one head needs beyond its arguments and results."""
    inputs = make_inputs(case, length, heads=1, dim=HEAD_DIM, hidden=HIDDEN)

    def loss(inputs):
        return (call(case, inputs, implementation=implementation)[0] ** 2).sum()

    lowered = jax.jit(jax.grad(loss)).lower(cast(inputs, jnp.float32))
    return lowered.compile(compiler_options=QUICK).memory_analysis().temp_size_in_bytes


def growth(case, implementation="chunked"):
    """Bytes per token by which a step grows from 4 to 8 segments."""
    short, long = (temporaries(case, n * SEGMENT, implementation) for n in (4, 8))
    return (long - short) / (4 * SEGMENT)


@pytest.mark.parametrize(
    ("rule", "aggregation", "write_mode"),
    [
        ("titans", "none", "independent"),
        param("titans", "grm", "independent", rare=True),
        ("titans", "grm", "checkpoint"),
        ("titans", "soup", "independent"),
        param("titans", "soup", "checkpoint", rare=True),
        ("titans", "ssc", "independent"),
        param("titans", "ssc", "checkpoint", rare=True),
        param("dla", "grm", "checkpoint", rare=True),
        param("dla", "soup", "independent", rare=True),
    ],
)
def test_training_keeps_no_memory_per_token(rule, aggregation, write_mode):
    """It grows as cached memories and activations do: far under one memory for each token."""
    gate = "none" if aggregation == "none" else "context"
    case = Case(
        rule,
        aggregation,
        write_mode=write_mode,
        gate=gate,
        segment_len=SEGMENT,
        chunk_len=CHUNK,
    )
    assert growth(case) < 0.5 * MEMORY_BYTES


def test_a_memory_per_token_would_be_seen():
    """The per-token form keeps one for the backward pass."""
    case = Case("titans", "none", gate="none", segment_len=SEGMENT, chunk_len=CHUNK)
    assert growth(case, "recurrent") > MEMORY_BYTES
