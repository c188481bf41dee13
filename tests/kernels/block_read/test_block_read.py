"""The kernels and the XLA form against the reference, outputs and all gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax.errors import InputError
from mc_jax.kernels.block_read import Config, block_read, xla
from mc_jax.memory.network import MlpNetwork, MlpWeights
from tests.compiling import quick_jit
from tests.kernels.reads import TOLERANCE, assert_close
from tests.kernels.tpu import TOPOLOGIES, compile_for, needs_libtpu


@dataclasses.dataclass(frozen=True)
class Case:
    """One read; matrices without a hidden layer."""

    size: int = 128
    blocks: int = 3
    reads: int = 2
    memories: int = 5
    head_dim: int = 32
    hidden: int | None = None
    mem_norm: str = "layer"
    activation: str = "gelu"
    config: Config | None = None

    @property
    def network(self):
        return self.hidden and MlpNetwork(self.activation, self.mem_norm)


# Grid steps of one part and of several, memories in two stacks and the last one not full.
STACKS = Config(part=128, parts=3, resident=3, resident_backward=2)
MATRICES = [
    Case(),
    Case(blocks=1, reads=1, memories=1),
    Case(size=256, reads=4, memories=130, head_dim=64),
    Case(size=1024, blocks=2, head_dim=96),
    Case(blocks=5, reads=7, memories=9, head_dim=128),
    Case(head_dim=256),
    Case(size=640, blocks=2),
    Case(size=256, blocks=6, config=dataclasses.replace(STACKS, parts=2, group=1)),
]
NETWORKS = [
    Case(hidden=64),
    Case(hidden=64, config=STACKS),
    Case(hidden=128, mem_norm="none", activation="silu", config=STACKS),
    Case(blocks=1, reads=1, memories=1, hidden=64, activation="relu"),
    Case(size=256, blocks=6, reads=4, memories=70, head_dim=64, hidden=64, mem_norm="weight_l2"),
    Case(size=256, blocks=3, hidden=256, config=dataclasses.replace(STACKS, parts=2)),
    Case(size=384, head_dim=96, hidden=96, activation="gelu_tanh"),
]
# What XLA alone takes.
ODD = [Case(size=5, blocks=7), Case(size=1, blocks=300), Case(size=96, blocks=11, hidden=48)]


def arguments(case: Case, dtype=jnp.float32, seed: int = 0):
    """Inputs, memories, those that are read, and gates; the first block reads none."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / shape[-1] ** 0.5, dtype)

    tokens, d = case.size * case.blocks, case.head_dim
    x = normal(d, tokens) * tokens**0.5
    if case.hidden:
        maps = ((case.memories, d, case.hidden), (case.memories, case.hidden, d))
        weights = MlpWeights(*(normal(*shape) for shape in maps))
    else:
        weights = normal(case.memories, d, d)
    best = [rng.permutation(case.memories + case.reads)[: case.reads] for _ in range(case.blocks)]
    memory = np.minimum(np.stack(best, 1), case.memories)
    if case.blocks > 1:
        memory[:, 0] = case.memories
    gate = rng.uniform(size=(case.reads, tokens))
    gate = np.where(np.repeat(memory, case.size, 1) < case.memories, gate, 0)
    return x, weights, jnp.asarray(memory, jnp.int32), jnp.asarray(gate, jnp.float32)


def outputs_and_gradients(case: Case, args, implementation: str):
    config = case.config if implementation == "pallas_interpret" else None

    @quick_jit
    def run(x, weights, memory, gate):
        def read(x, weights, gate):
            return block_read(
                *(x, weights, memory, gate),
                **{"network": case.network, "implementation": implementation, "config": config},
            )

        y, pull = jax.vjp(read, x, weights, gate)
        return y, pull(jax.random.normal(jax.random.key(0), y.shape, y.dtype))

    return run(*args)


def assert_equals_the_reference(case: Case, dtype, implementation: str) -> None:
    args = arguments(case, dtype)
    found = outputs_and_gradients(case, args, implementation)
    x, weights, memory, gate = args
    exact = jax.tree.map(lambda a: a.astype(jnp.float32), (x, weights))
    expected = outputs_and_gradients(case, (*exact, memory, gate), "reference")
    assert_close(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("case", MATRICES + NETWORKS, ids=str)
def test_kernels(case):
    assert_equals_the_reference(case, jnp.float32, "pallas_interpret")


@pytest.mark.parametrize("case", MATRICES[:3] + NETWORKS + ODD, ids=str)
def test_xla(case):
    assert_equals_the_reference(case, jnp.float32, "xla")


@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
@pytest.mark.parametrize("case", [MATRICES[2], NETWORKS[1], NETWORKS[2]], ids=str)
def test_bfloat16(case, implementation):
    assert_equals_the_reference(case, jnp.bfloat16, implementation)


@pytest.mark.parametrize("hidden", [None, 6])
def test_the_reference_is_the_equation(hidden):
    case = Case(3, 4, head_dim=4, hidden=hidden)
    x, weights, memory, gate = arguments(case)
    y = block_read(x, weights, memory, gate, network=case.network, implementation="reference")
    for token in range(12):
        expected = 0.0
        for read in range(case.reads):
            chosen = int(memory[read, token // 3])
            if chosen == case.memories:
                continue
            if case.hidden is None:
                features = weights[chosen] @ x[:, token]
            else:
                hidden = jax.nn.gelu(weights.w2[chosen] @ x[:, token], approximate=False)
                features = weights.w1[chosen] @ hidden
                features = (features - features.mean()) / jnp.sqrt(features.var() + 1e-6)
            expected += gate[read, token] * features
        np.testing.assert_allclose(y[:, token], expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["reference", "xla", "pallas_interpret"])
@pytest.mark.parametrize("case", [MATRICES[0], NETWORKS[1]], ids=str)
def test_memories_that_nobody_reads_may_hold_anything(case, implementation):
    x, weights, memory, gate = arguments(case)
    memory = jnp.where(memory == 0, case.memories, memory)
    gate = jnp.where(jnp.repeat(memory, case.size, 1) < case.memories, gate, 0)
    clean = outputs_and_gradients(case, (x, weights, memory, gate), implementation)
    poisoned = jax.tree.map(lambda w: w.at[0].set(jnp.nan), weights)
    y, (of_x, of_weights, of_gate) = outputs_and_gradients(
        case, (x, poisoned, memory, gate), implementation
    )
    jax.tree.map(np.testing.assert_array_equal, (y, (of_x, of_weights, of_gate)), clean)
    assert not any(w[0].any() for w in jax.tree.leaves(of_weights))


@pytest.mark.parametrize("implementation", ["reference", "xla", "pallas_interpret"])
def test_numbers_out_of_range_read_nothing(implementation):
    x, weights, memory, gate = arguments(MATRICES[0])
    outside = jnp.full_like(memory, -1).at[0].set(len(weights))
    y = block_read(x, weights, outside, jnp.ones_like(gate), implementation=implementation)
    np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize("case", [MATRICES[0], NETWORKS[1]], ids=str)
def test_many_steps(case, monkeypatch):
    """As on a device whose step takes as many blocks as it may gather."""
    monkeypatch.setattr(xla, "on_cpu", lambda: False)
    monkeypatch.setattr(
        xla,
        "MOST_GATHERED",
        2 * case.head_dim * (2 * case.hidden if case.hidden else case.head_dim),
    )
    assert_equals_the_reference(case, jnp.float32, "xla")


@pytest.mark.parametrize("case", [MATRICES[0], NETWORKS[1]], ids=str)
def test_heads_side_by_side(case):
    """Each with a selection of its own."""
    heads = [arguments(case, seed=seed) for seed in range(3)]
    assert not np.array_equal(heads[0][2], heads[1][2])
    options = {"network": case.network, "config": case.config}
    both = jax.tree.map(lambda *a: jnp.stack(a), *heads)
    run = functools.partial(block_read, implementation="pallas_interpret", **options)
    found = quick_jit(jax.vmap(run))(*both)
    alone = [block_read(*head, network=case.network, implementation="xla") for head in heads]
    assert_close(found, jnp.stack(alone), 2e-5)


@pytest.mark.parametrize(
    ("case", "dtype", "implementation", "reason"),
    [
        (Case(), jnp.float32, "pallas", "runs on a TPU"),
        (Case(size=96), jnp.float32, "pallas_interpret", "multiple of 128 tokens, not 96"),
        (Case(hidden=64), jnp.float16, "pallas_interpret", "float16"),
        (Case(head_dim=24, hidden=64), jnp.float32, "pallas_interpret", "24 x 64"),
        (Case(hidden=64, activation="tanh"), jnp.float32, "pallas_interpret", "'tanh'"),
        (Case(head_dim=2048, hidden=8192), jnp.float32, "pallas_interpret", "one memory"),
        (Case(), jnp.float32, "triton", "reference | xla | pallas"),
    ],
)
def test_refusals(case, dtype, implementation, reason):
    args = arguments(dataclasses.replace(case, blocks=1, memories=1), dtype)
    with pytest.raises(InputError) as error:
        block_read(*args, network=case.network, implementation=implementation)
    assert reason in str(error.value)


def test_arrays_and_blocks_that_do_not_go_together():
    case = NETWORKS[0]
    x, weights, memory, gate = arguments(case)
    run = functools.partial(block_read, network=case.network, implementation="pallas_interpret")
    with pytest.raises(InputError, match="gate.shape"):
        run(x, weights, memory, gate[:1])
    with pytest.raises(InputError, match="whole blocks"):
        run(x[:, :100], weights, memory, gate[:, :100])
    for field, value in (("part", 100), ("part", 256), ("parts", 2), ("resident", 0)):
        with pytest.raises(InputError, match=f"config.{field}"):
            sizes = {"part": 128, "parts": 1, "resident": 1, "resident_backward": 1}
            run(x, weights, memory, gate, config=Config(**sizes | {field: value}))
    with pytest.raises(InputError, match="config.narrow"):
        run(x, weights, memory, gate, config=dataclasses.replace(STACKS, narrow=True))


@needs_libtpu
@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (Case(128, 8, 4, 7, 128), jnp.bfloat16),
        (Case(128, 8, 4, 7, 128, hidden=512), jnp.bfloat16),
        (Case(256, 4, 3, 7, 64, hidden=128, mem_norm="none"), jnp.float32),
    ],
    ids=str,
)
def test_forward_and_backward_compile(chip, case, dtype):
    def gradient(x, weights, memory, gate):
        def head(x, weights, memory, gate):
            return block_read(
                x, weights, memory, gate, network=case.network, implementation="pallas"
            )

        y, pull = jax.vjp(lambda *a: jax.vmap(head)(*a[:2], memory, a[2]), x, weights, gate)
        return pull(y)

    heads = jax.tree.map(lambda a: jnp.stack([a, a]), arguments(case, dtype))
    text = compile_for(chip, gradient, *heads).as_text()
    assert "block_read_forward" in text and "block_read_backward" in text
