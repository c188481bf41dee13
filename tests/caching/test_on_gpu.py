"""The core as a GPU runs it: its kernels step by step, and all chunks of a matrix at once."""

import itertools

import jax
import jax.numpy as jnp
import pytest

import mc_jax
from mc_jax.caching.running_sums import running_sums
from mc_jax.memory import LinearGates, SWLAGates
from mc_jax.memory.network import narrow_matmul
from mc_jax.memory.scan import decayed_sums
from tests.kernels.gpu import imitated_gpu, lowered, on_a_gpu  # noqa: F401
from tests.kernels.reads import assert_close
from tests.rare import param

OPTIONS = {
    "base": {"aggregation": "none"},
    "residual": {"aggregation": "residual"},
    "grm": {"aggregation": "grm"},
    "ssc": {"aggregation": "ssc", "top_k": 2},
    "checkpoints": {"aggregation": "grm", "write_mode": "checkpoint"},
    "log-linear++": {"aggregation": "grm", "segmentation": "logarithmic"},
    "chunks of a segment": {"aggregation": "grm", "chunk_len": 32},
}


def inputs(length: int, rule: str, dtype=jnp.float32, head_dim: int = 16):
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (2, length, 3, head_dim)
    q, k, v, u = jax.random.normal(keys[0], (4, *shape)).astype(dtype) / head_dim**0.25
    alpha, lam, beta = jax.random.uniform(keys[1], (3, *shape[:3]), minval=0.9)
    gates = LinearGates(alpha) if rule == "linear" else SWLAGates(alpha, beta[..., None], lam)
    return q, k, v, u, gates


def on_gpu_and_here(run, args, gpu):
    here = jax.jit(run)(*args)
    with gpu():
        there = jax.jit(lambda *args: run(*args))(*args)
    return there, here


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        param(rule, name, rare=rule == "swla" and name not in ("ssc", "chunks of a segment"))
        for rule, name in itertools.product(("linear", "swla"), OPTIONS)
    ],
)
def test_float32_is_the_same_as_elsewhere(rule, name, imitated_gpu):  # noqa: F811
    """Outputs, the cache and all gradients; no kernel takes float32."""
    args = inputs(150, rule)
    settings = {"segment_len": 32, "chunk_len": 16} | OPTIONS[name]

    def run(*args):
        def loss(*args):
            y, cache = mc_jax.memory_caching(*args, rule=rule, **settings)
            return jnp.sum(y * jnp.cos(jnp.arange(y.shape[1]))[:, None, None]), (y, cache)

        return jax.grad(loss, tuple(range(5)), has_aux=True, allow_int=True)(*args)

    assert_close(*on_gpu_and_here(run, args, imitated_gpu), 2e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_bfloat16_is_near_float32(options, imitated_gpu):  # noqa: F811
    """All kernels, outputs and gradients; scores are far apart, so that rounding selects none."""
    q, k, v, u, gates = inputs(150, "linear", jnp.bfloat16)
    args = (q, k, v, 16 * u, gates)
    settings = {"segment_len": 32, "chunk_len": 16} | options

    def run(*args):
        def loss(*args):
            y = mc_jax.memory_caching(*args, rule="linear", **settings)[0].astype(jnp.float32)
            return jnp.sum(y * jnp.cos(jnp.arange(y.shape[1]))[:, None, None]), y

        return jax.grad(loss, tuple(range(5)), has_aux=True)(*args)

    exact = jax.tree.map(lambda x: x.astype(jnp.float32), args)
    with imitated_gpu():
        there = jax.jit(lambda *args: run(*args))(*args)
    assert_close(there, run(*exact), 3e-2)


def test_swla_with_a_window_of_one(imitated_gpu):  # noqa: F811
    """Writes have a weight there, which linear attention's have not."""
    q, k, v, u, gates = inputs(64, "swla", jnp.bfloat16)
    gates = gates._replace(lam=0.3 * gates.lam, beta=gates.beta[..., :0])

    def run(*args):
        options = {"segment_len": 32, "chunk_len": 16}
        return mc_jax.memory_caching(*args, rule="swla", **options)[0]

    with imitated_gpu():
        there = jax.jit(lambda *args: run(*args))(q, k, v, u, gates)
    assert_close(there, run(q, k, v, u, gates), 2e-2)


def test_xla_means_no_kernel():
    args = inputs(256, "linear", jnp.bfloat16)

    def run(implementation):
        def read(*args):
            options = {"segment_len": 64, "implementation": implementation}
            return mc_jax.memory_caching(*args, rule="linear", **options)[0]

        return lowered(read, *args)

    assert "xla.gpu.triton" in run(None)
    assert "xla.gpu.triton" not in run("xla")


@pytest.mark.parametrize(("rule", "dtype"), [("swla", jnp.float32), ("linear", jnp.bfloat16)])
def test_pieces_are_the_whole(rule, dtype, imitated_gpu):  # noqa: F811
    q, k, v, u, gates = inputs(150, rule, dtype)

    def run(part, cache=None, lengths=None):
        arrays = jax.tree.map(lambda x: x[:, part], (q, k, v, u, gates))
        options = {"rule": rule, "segment_len": 32, "chunk_len": 16}
        return mc_jax.memory_caching(*arrays, initial_cache=cache, lengths=lengths, **options)

    with imitated_gpu():
        whole, _ = run(slice(None))
        first, cache = run(slice(90), lengths=jnp.int32(71))
        second, _ = run(slice(71, None), cache)
    tolerance = 2e-5 if dtype == jnp.float32 else 2e-2
    assert_close(jnp.concatenate([first[:, :71], second], 1), whole, tolerance)


@pytest.mark.parametrize("chunks", [1, 5, 128, 300])
@pytest.mark.parametrize("forgets", [1, 1000])
def test_decayed_sums_are_the_recurrence(chunks, forgets):
    """Also where the first half forgets nearly all and the second nothing."""
    keys = jax.random.split(jax.random.key(1), 3)
    logs = -jax.random.uniform(keys[0], (chunks,))
    logs = logs.at[: chunks // 2].multiply(forgets)
    writes, start = jax.random.normal(keys[1], (chunks, 3, 2)), jax.random.normal(keys[2], (3, 2))

    def recurrence(logs, writes, start):
        def step(state, x):
            state = jnp.exp(x[0]) * state + x[1]
            return state, state

        return jax.lax.scan(step, start, (logs, writes))[1]

    def run(form):
        y, back = jax.vjp(form, logs, writes, start)
        return y, back(jnp.cos(jnp.arange(y.size)).reshape(y.shape))

    assert_close(run(decayed_sums), run(recurrence), 2e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_whose_gradients_are_in_their_type(dtype):
    a, b = jax.random.normal(jax.random.key(3), (2, 4, 32, 32)).astype(dtype)
    weights = jax.random.normal(jax.random.key(4), a.shape)

    def run(form, a, b):
        y, back = jax.vjp(form, a, b)
        return y, back(weights)

    exact = run(jnp.matmul, a.astype(jnp.float32), b.astype(jnp.float32))
    assert_close(run(narrow_matmul, a, b), exact, 2e-5 if dtype == jnp.float32 else 1e-2)
    program = jax.jit(jax.grad(lambda a: jnp.sum(weights * narrow_matmul(a, b)))).lower(a).as_text()
    product = next(line for line in program.splitlines() if "dot_general" in line)
    kind = "f32" if dtype == jnp.float32 else "bf16"
    assert product.count(f"x{kind}>") == 3, "both factors and the product"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_running_sums_are_cumulative(dtype):
    x = jax.random.normal(jax.random.key(2), (8, 3, 20)).astype(dtype)

    def run():
        y, back = jax.vjp(lambda x: running_sums(x, jnp.float32), x)
        return y, back(y)

    with on_a_gpu():
        there = run()
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    assert_close(there[0], run()[0], 1e-6)
    assert_close(there[1], run()[1], tolerance)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_lowers_for_a_gpu_without_loops_over_chunks(options):
    args = inputs(1024, "linear", jnp.bfloat16, 64)
    settings = {"segment_len": 128, "chunk_len": 64} | options

    def loss(*args):
        y, _ = mc_jax.memory_caching(*args, rule="linear", **settings)
        return jnp.sum(y.astype(jnp.float32))

    program = lowered(jax.grad(loss, tuple(range(5))), *args)
    assert "chunk_read" in program
    assert "stablehlo.while" not in program
