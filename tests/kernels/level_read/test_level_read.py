"""The kernel and the XLA form against the reference, outputs and all gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax.errors import InputError
from mc_jax.kernels.level_read import level_read
from tests.compiling import quick_jit
from tests.kernels.deep_write.cases import assert_close
from tests.kernels.tpu import TOPOLOGIES, compile_for, needs_libtpu

# Tokens of a segment, segments, levels, and the shape of a matrix.
CASES = [
    (128, 1, 1, (32, 32)),
    (128, 5, 3, (64, 64)),
    (256, 3, 2, (96, 96)),
    # Two steps a segment, and matrices that are not square.
    (1024, 2, 2, (128, 32)),
    (128, 2, 7, (16, 256)),
]


def arguments(case, dtype=jnp.float32):
    """Inputs, matrices and gates, some of which are 0, and all of a segment's."""
    segment_len, segments, levels, shape = case
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(shape[1], segments * segment_len)), dtype)
    weights = [jnp.asarray(rng.normal(size=(segments, *shape)), dtype) for _ in range(levels)]
    gate = rng.uniform(size=(levels, segments, segment_len))
    gate[rng.uniform(size=(levels, segments)) < 0.4] = 0
    if segments > 1:
        gate[:, 0] = 0
    return x, weights, jnp.asarray(gate.reshape(levels, -1), jnp.float32)


def outputs_and_gradients(args, implementation):
    @quick_jit
    def run(*args):
        y, pull = jax.vjp(functools.partial(level_read, implementation=implementation), *args)
        return y, pull(jax.random.normal(jax.random.key(0), y.shape, y.dtype))

    return run(*args)


@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_all_gradients(case, implementation):
    args = arguments(case)
    found = outputs_and_gradients(args, implementation)
    assert_close(found, outputs_and_gradients(args, "reference"), 2e-5)


@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
def test_bfloat16(implementation):
    args = arguments(CASES[1], jnp.bfloat16)
    found = outputs_and_gradients(args, implementation)
    assert_close(found, outputs_and_gradients(args, "reference"), 1e-2)


def test_the_reference_is_the_equation():
    x, weights, gate = arguments((3, 2, 2, (4, 5)))
    y = level_read(x, weights, gate, implementation="reference")
    for token in range(6):
        matrix = sum(gate[level, token] * weights[level][token // 3] for level in range(2))
        np.testing.assert_allclose(y[:, token], matrix @ x[:, token], rtol=2e-5)


def test_heads_side_by_side():
    x, weights, gate = arguments(CASES[1])
    heads = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), (x, weights, gate))
    found = jax.vmap(functools.partial(level_read, implementation="pallas_interpret"))(*heads)
    y = level_read(x, weights, gate, implementation="reference")
    assert_close(found, jnp.stack([y, 8 * y]), 2e-5)


@pytest.mark.parametrize(
    ("case", "dtype", "implementation", "reason"),
    [
        (CASES[0], jnp.float32, "pallas", "runs on a TPU"),
        (CASES[0], jnp.float16, "pallas_interpret", "float16"),
        ((64, 1, 1, (32, 32)), jnp.float32, "pallas_interpret", "not 64"),
        ((640, 1, 1, (32, 32)), jnp.float32, "pallas_interpret", "not 640"),
        ((128, 1, 1, (32, 24)), jnp.float32, "pallas_interpret", "not 32 x 24"),
        (CASES[0], jnp.float32, "triton", "reference | xla | pallas"),
        ((512, 1, 8, (512, 2048)), jnp.bfloat16, "pallas_interpret", "8 levels of 512 x 2048"),
    ],
)
def test_refusals(case, dtype, implementation, reason):
    with pytest.raises(InputError) as error:
        level_read(*arguments(case, dtype), implementation=implementation)
    assert reason in str(error.value)


def test_arrays_that_do_not_go_together():
    x, weights, gate = arguments((4, 2, 2, (3, 3)))
    with pytest.raises(InputError, match="gate.shape"):
        level_read(x, weights, gate[:1])
    with pytest.raises(InputError, match="at least one level"):
        level_read(x, [], gate)
    with pytest.raises(InputError, match=r"weights\[1\].shape"):
        level_read(x, [weights[0], weights[1][:1]], gate)
    with pytest.raises(InputError, match=r"weights\[0\].shape"):
        level_read(x[:2], weights, gate)
    with pytest.raises(InputError, match="whole segments"):
        level_read(x[:, :7], weights, gate[:, :7])


@needs_libtpu
@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [((256, 4, 6, (128, 128)), jnp.bfloat16), ((1024, 2, 3, (64, 256)), jnp.float32)],
    ids=str,
)
def test_forward_and_backward_compile(chip, case, dtype):
    def gradient(*args):
        heads = jax.vmap(functools.partial(level_read, implementation="pallas"))
        y, pull = jax.vjp(heads, *args)
        return pull(y)

    heads = jax.tree.map(lambda a: jnp.stack([a, a]), arguments(case, dtype))
    text = compile_for(chip, gradient, *heads).as_text()
    assert "level_read_forward" in text and "level_read_backward" in text
