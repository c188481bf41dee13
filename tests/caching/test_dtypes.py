"""float32 and bfloat16 as users run them, and gates at the ends of their ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rare import param

from .cases import Case, assert_close, call, cast, combinations, make_inputs, quick_call, quick_jit
from .naive import naive_memory_caching

LENGTH = 41


# The gate is computed in one place for every rule and memory; one kind of it is enough here.
@pytest.mark.parametrize(
    "case",
    [
        param(case, rare=case.write_mode == "checkpoint", id=str(case))
        for case in combinations(gates=("context",))
    ],
)
def test_float32(case):
    # Wide enough that the norm of a DLA memory seldom meets a vector that is nearly constant, which
    # magnifies rounding.
    inputs = make_inputs(case, LENGTH, dim=8, hidden=16)
    expected, _ = naive_memory_caching(**inputs, **case.options())
    with jax.default_matmul_precision("highest"):
        out, cache = quick_call(case, inputs)
    assert out.dtype == jnp.float32
    assert_close(out, expected, 1e-4)
    assert_float32(cache)


@pytest.mark.parametrize(
    "case",
    [c for c in combinations(gates=("context",)) if c.write_mode == "independent"],
    ids=str,
)
def test_bfloat16(case):
    inputs = make_inputs(case, LENGTH)
    # A layer norm over a collapsed vector magnifies rounding a hundredfold: keep to gentle writes.
    if case.deep:
        inputs["gates"] = inputs["gates"]._replace(eta=0.03 * inputs["gates"].eta)
    # The same rounded inputs in float64, so that only the arithmetic differs.
    inputs = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(np.float64), inputs)
    expected, _ = naive_memory_caching(**inputs, **case.options())
    out, cache = quick_call(case, inputs, jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    error = np.linalg.norm(np.asarray(out, np.float64) - expected) / np.linalg.norm(expected)
    assert error <= 1e-2, f"{error:.3g}"
    assert_float32(cache)


@pytest.mark.parametrize(
    "options",
    [{"aggregation": "none"}, {"write_mode": "checkpoint"}, {"segmentation": "logarithmic"}],
    ids=str,
)
def test_bfloat16_over_many_segments(options):
    """Compressed in bfloat16 the same outputs are 30 to 80% off."""
    case = Case("dla", **({"aggregation": "grm"} | options), chunk_len=16, segment_len=32)
    inputs = make_inputs(case, 512, dim=16, hidden=32)
    inputs = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(np.float32), inputs)
    exact, _ = quick_call(case, inputs)
    out, _ = quick_call(case, inputs, jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    error = np.linalg.norm(out.astype(np.float32) - exact) / np.linalg.norm(exact)
    assert error <= 1e-2, f"{error:.3g}"


def assert_float32(cache):
    """State and memories keep float32 whatever the inputs are."""
    assert {x.dtype.name for x in jax.tree.leaves(cache)} == {"float32", "int32"}


@pytest.mark.parametrize("implementation", ["chunked", "recurrent"])
@pytest.mark.parametrize("rule", ["linear", "swla", "dla", "titans"])
def test_extreme_gates_stay_finite(rule, implementation):
    """alpha from 1e-6 to 1 side by side, beta near 0 and 1, logits in the hundreds."""
    case = Case(rule, "grm", chunk_len=6, segment_len=12)

    def loss(inputs):
        return call(case, inputs, implementation=implementation)[0].sum()

    inputs = make_inputs(case, LENGTH)
    rng = np.random.default_rng(0)
    shape = inputs["q"].shape[:3]
    gates = {"alpha": rng.choice([1e-6, 0.5, 1.0], size=shape)}
    if rule in ("swla", "titans"):
        gates["beta"] = rng.choice([1e-6, 0.999], size=shape)
    inputs["gates"] = inputs["gates"]._replace(**gates)
    inputs["u"] = 1e3 * inputs["u"]
    value, gradient = quick_jit(jax.value_and_grad(loss))(cast(inputs, jnp.float32))
    assert np.isfinite(value)
    for path, g in jax.tree.flatten_with_path(gradient)[0]:
        assert np.isfinite(g).all(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("aggregation", ["grm", "soup", "ssc"])
def test_large_logits_select_one_memory(aggregation):
    """With logits far apart the softmax is an argmax, with no overflow on the way."""
    case = Case("linear", aggregation, gate="position", top_k=1)
    inputs = make_inputs(case, LENGTH, places=8)
    inputs["u"] = np.zeros_like(inputs["u"])
    inputs["u"][..., 1] = 3e4
    out, _ = quick_call(case, inputs)
    expected, final = naive_memory_caching(**inputs, **case.options())
    assert_close(out, expected, 1e-4)
    previous = final[0][0].cached[-1].weights["w"]
    assert_close(out[0, -1, 0], previous @ inputs["q"][0, -1, 0], 1e-4)
