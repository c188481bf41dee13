"""The read of matrix memories: every form against the reference, outputs and all gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from mc_jax.errors import InputError
from mc_jax.kernels.gates import Router, Scores
from mc_jax.kernels.linear_read import Config, linear_read
from tests.kernels.reads import TOLERANCE, assert_close, heads_and_sequences, program
from tests.kernels.tpu import compile_for, needs_libtpu, on_every_chip
from tests.rare import named


@dataclasses.dataclass(frozen=True)
class Case:
    """One read; small blocks by default, so that every loop of the kernel runs."""

    head_dim: int = 32
    tokens: int = 300
    memories: int = 9
    segment_len: int = 32
    first_segment: int = 0
    top_k: int | None = None
    dtype: type = jnp.float32
    routed: bool = True
    config: Config | None = Config(tokens=128, resident=8, group=4, scale="outputs")
    shape: tuple[int, int] | None = None

    @property
    def options(self) -> dict:
        return {
            "segment_len": self.segment_len,
            "first_segment": self.first_segment,
            "top_k": self.top_k,
        }


CASES = {
    "grm": Case(),
    "residual": Case(routed=False),
    "ssc of one": Case(top_k=1),
    "ssc": Case(top_k=3),
    "ssc of more than there are": Case(top_k=20),
    "inputs weighted first": Case(config=Config(128, 9, 8, "inputs")),
    "one stack, chosen blocks": Case(config=None),
    "one memory": Case(tokens=50, memories=1),
    "nothing cached in sight": Case(tokens=20, memories=3),
    "odd lengths": Case(tokens=101, memories=14, segment_len=7, top_k=2),
    "many memories": Case(
        tokens=262, memories=130, segment_len=2, top_k=5, config=Config(128, 64, 16, "inputs")
    ),
    "many memories, all read": Case(
        tokens=262, memories=130, segment_len=2, config=Config(128, 64, 16, "inputs")
    ),
    "segments past the last memory": Case(tokens=300, memories=5),
    "later part of a sequence": Case(tokens=100, memories=20, first_segment=17, top_k=4),
    "head of 64": Case(head_dim=64, config=Config(128, 16, 8, "inputs")),
    "head of 96": Case(head_dim=96, tokens=150, memories=4),
    "head of 128": Case(head_dim=128, tokens=150, memories=4, top_k=2),
    "head of 256": Case(head_dim=256, tokens=100, memories=3),
    "bfloat16": Case(dtype=jnp.bfloat16, config=Config(128, 16, 8, "outputs")),
    "bfloat16, inputs weighted first": Case(
        head_dim=64, dtype=jnp.bfloat16, config=Config(128, 16, 8, "inputs")
    ),
    "wide memories": Case(shape=(16, 64), top_k=3),
    "wide memories, inputs weighted first": Case(
        shape=(16, 64), top_k=3, config=Config(128, 16, 8, "inputs")
    ),
    "tall memories": Case(shape=(64, 16)),
    "tall memories, inputs weighted first": Case(
        shape=(64, 16), config=Config(128, 8, 4, "inputs")
    ),
    "tall memories, chosen blocks": Case(shape=(128, 32), dtype=jnp.bfloat16, config=None),
    "wide memories, residual": Case(shape=(16, 64), routed=False),
    "bfloat16 residual": Case(dtype=jnp.bfloat16, routed=False),
}


def inputs(case: Case, seed: int = 0):
    """Queries, memories, router, and cotangents of both outputs."""
    keys = iter(jax.random.split(jax.random.key(seed), 8))

    def normal(*shape, dtype=case.dtype):
        return jax.random.normal(next(keys), shape).astype(dtype)

    d, tokens, memories = case.head_dim, case.tokens, case.memories
    out, width = case.shape or (d, d)
    q, w = normal(width, tokens), normal(memories, out, width) / width**0.5
    router = Router(
        normal(d, tokens) / d**0.5,
        normal(tokens, dtype=jnp.float32),
        normal(memories, d, dtype=jnp.float32),
    )
    cotangents = normal(out, tokens, dtype=jnp.float32), normal(tokens, dtype=jnp.float32)
    return (q, w, router if case.routed else None), cotangents


def program_of(case: Case, implementation: str):
    """Compiled (args, cotangents) to outputs and gradients."""
    config = case.config if implementation == "pallas_interpret" else None
    return program(linear_read, implementation=implementation, config=config, **case.options)


def outputs_and_gradients(case: Case, implementation: str, args, cotangents) -> dict:
    return program_of(case, implementation)(args, cotangents)


# A minute to compile: a network that sorts 130 logits, of which test_block_gates has smaller ones.
RARE = ("many memories",)


@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
@pytest.mark.parametrize("case", named(CASES, RARE))
def test_equals_the_reference(case, implementation):
    args, cotangents = inputs(case)
    actual = outputs_and_gradients(case, implementation, args, cotangents)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), args)
    expected = outputs_and_gradients(case, "reference", exact, cotangents)
    assert_close(actual, expected, TOLERANCE[case.dtype])


@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_extreme_gates(implementation, top_k):
    """One-hot, equal and masked-out logits give finite values, those of the reference."""
    case = Case(tokens=160, memories=6, segment_len=20, top_k=top_k)
    (q, w, router), cotangents = inputs(case)
    router = router._replace(u=jnp.abs(router.u))
    directions = {
        "one memory takes all": router._replace(descriptors=router.descriptors.at[1].set(20)),
        "one memory is never read": router._replace(descriptors=router.descriptors.at[1].set(-20)),
        "the online memory takes all": router._replace(online=jnp.full_like(router.online, 1e4)),
        "the online memory takes nothing": router._replace(
            online=jnp.full_like(router.online, -1e30)
        ),
        "all alike": router._replace(
            u=jnp.zeros_like(router.u), online=jnp.zeros_like(router.online)
        ),
    }
    run, reference = program_of(case, implementation), program_of(case, "reference")
    for name, extreme in directions.items():
        actual = run((q, w, extreme), cotangents)
        expected = reference((q, w, extreme), cotangents)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(actual)), name
        assert_close(actual, expected, 2e-5)


@pytest.mark.parametrize("memories", [8, 21, 48])
def test_of_equal_scores_the_oldest_memories_are_selected(memories):
    """Those after the first, which scores lower."""
    case = Case(tokens=128, memories=memories, segment_len=16, top_k=2, first_segment=memories)
    (q, w, router), _ = inputs(case)
    router = router._replace(
        u=jnp.ones_like(router.u), descriptors=jnp.zeros_like(router.descriptors).at[0].set(-1)
    )
    y, own = linear_read(
        q, w, router, implementation="pallas_interpret", config=case.config, **case.options
    )
    share = 1 / (jnp.exp(router.online) + 2)
    assert jnp.allclose(own, 1 - 2 * share, atol=1e-6)
    assert jnp.allclose(y, share * ((w[1] + w[2]) @ q), atol=1e-5)


@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
def test_what_nobody_sees_may_hold_anything(implementation):
    """Slots past the last visible segment hold NaN; no result of anything else does."""
    case = Case(tokens=96, memories=20, segment_len=32, top_k=2)
    (q, w, router), cotangents = inputs(case)
    run = program_of(case, implementation)
    clean = run((q, w, router), cotangents)
    w = w.at[2:].set(jnp.nan)
    if implementation == "pallas_interpret":
        router = router._replace(descriptors=router.descriptors.at[2:].set(jnp.nan))
    poisoned = run((q, w, router), cotangents)
    assert_close(poisoned, clean, 1e-6)


def test_the_first_segment_may_be_traced():
    case = Case(tokens=64, memories=12, segment_len=16, top_k=3)
    (q, w, router), _ = inputs(case)

    def read(first, implementation):
        return linear_read(
            q,
            w,
            router,
            segment_len=16,
            first_segment=first,
            top_k=3,
            implementation=implementation,
        )

    for first in (0, 3, 30):
        actual = jax.jit(read, static_argnums=1)(jnp.int32(first), "pallas_interpret")
        assert_close(actual, read(first, "reference"), 2e-5)


def test_heads_and_sequences_by_vmap():
    case = Case(tokens=64, memories=4, segment_len=16)
    many = heads_and_sequences(lambda seed: inputs(case, seed)[0])

    def run(implementation):
        def read(q, w, router):
            return linear_read(q, w, router, segment_len=16, implementation=implementation)

        return jax.vmap(jax.vmap(read))(*many)

    assert_close(run("pallas_interpret"), run("reference"), 2e-5)


def test_refusals_name_the_reason():
    (q, w, router), _ = inputs(Case(tokens=40, memories=2))

    def read(implementation, q=q, router=router, **options):
        return linear_read(q, w, router, segment_len=16, implementation=implementation, **options)

    with pytest.raises(InputError, match=r"reference \| xla \| pallas"):
        read("fast")
    with pytest.raises(InputError, match="run on a TPU or a GPU"):
        read("pallas")
    with pytest.raises(InputError, match="not float16"):
        read("pallas_interpret", q=q.astype(jnp.float16))
    with pytest.raises(InputError, match="position"):
        read("pallas_interpret", router=Scores(router.online, jnp.zeros((2, 40))))
    with pytest.raises(InputError, match="xla has no blocks"):
        read("xla", config=Config(tokens=128, resident=8, group=8, scale="outputs"))
    with pytest.raises(InputError, match="config.tokens"):
        Config(tokens=100, resident=8, group=8, scale="outputs")
    with pytest.raises(InputError, match="config.group"):
        Config(tokens=128, resident=8, group=6, scale="outputs")
    with pytest.raises(InputError, match="config.resident"):
        many = jnp.zeros((40, 32, 32))
        linear_read(
            q,
            many,
            None,
            segment_len=16,
            implementation="pallas_interpret",
            config=Config(tokens=128, resident=12, group=4, scale="outputs"),
        )


@needs_libtpu
@on_every_chip(
    {
        "ssc": Case(128, 2048, 16, 128, top_k=4, dtype=jnp.bfloat16, config=None),
        "float32": Case(64, 512, 30, 16, dtype=jnp.float32, config=None),
        "head of 96": Case(96, 1000, 15, 64, dtype=jnp.bfloat16, routed=False, config=None),
        "several stacks": Case(256, 512, 300, 2, dtype=jnp.bfloat16, config=None),
        "tall memories": Case(
            *(128, 1024, 7, 128), dtype=jnp.bfloat16, config=None, shape=(512, 128)
        ),
        "wide memories": Case(96, 1024, 7, 128, dtype=jnp.bfloat16, config=None, shape=(96, 384)),
    },
    rare=("several stacks",),
)
def test_compiles_for_tpus(chip, case):
    """Forward and backward."""
    args, _ = inputs(case)

    def run(*args):
        def loss(*args):
            y, own = linear_read(*args, **case.options)
            return jnp.sum(y.astype(jnp.float32) ** 2) + jnp.sum(own)

        return jax.grad(loss, argnums=(0, 1, 2))(*args)

    heads = jax.tree.map(lambda x: jnp.stack([x] * 2), args)
    compiled = compile_for(chip, jax.vmap(run), *heads)
    assert "linear_read_backward" in compiled.as_text()


@needs_libtpu
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_nothing_of_size_tokens_by_memories_is_in_hbm(chip):
    case = Case(128, 2048, 128, 16, top_k=4, dtype=jnp.bfloat16, config=None)
    args, _ = inputs(case)
    compiled = compile_for(chip, lambda *args: linear_read(*args, **case.options), *args)
    assert "linear_read_forward" in compiled.as_text()
    gates = case.tokens * case.memories * 2
    assert compiled.memory_analysis().temp_size_in_bytes < gates / 8
