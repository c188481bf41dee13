"""Extreme gates, ties, what nobody sees, traced segments, heads by vmap, refusals."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mc_jax.errors import InputError
from mc_jax.kernels.deep_read import Config, deep_read, unsupported
from mc_jax.kernels.deep_read.config import Call
from mc_jax.kernels.gates import Scores
from mc_jax.memory.network import MlpNetwork, linear_of
from tests.kernels.deep_read.cases import SMALL, Case, inputs, outputs_and_gradients, program_of
from tests.kernels.reads import assert_close, heads_and_sequences


@pytest.mark.parametrize("top_k", [None, 2])
def test_extreme_gates(top_k):
    """One-hot, equal and masked-out logits give finite values, those of the reference."""
    case = Case(head_dim=16, tokens=160, memories=6, segment_len=20, top_k=top_k)
    (q, weights, router), cotangents = inputs(case)
    router = router._replace(u=jnp.abs(router.u))
    everywhere, descriptors = jnp.full_like(router.online, 1), router.descriptors
    directions = {
        "one memory takes all": router._replace(descriptors=descriptors.at[1].set(20)),
        "one memory is never read": router._replace(descriptors=descriptors.at[1].set(-1e4)),
        "the online memory takes all": router._replace(online=1e4 * everywhere),
        "the online memory takes nothing": router._replace(online=-1e30 * everywhere),
        "all alike": router._replace(u=0 * router.u, online=0 * everywhere),
        "a logit of 1e4": router._replace(descriptors=descriptors.at[1].set(1e4)),
    }
    run, reference = program_of(case, "pallas_interpret"), program_of(case, "reference")
    for name, extreme in directions.items():
        args = q, weights, extreme
        actual, expected = run(args, cotangents), reference(args, cotangents)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(actual)), name
        # Gradients of u are 0 up to rounding, times that descriptor.
        assert_close(actual, expected, 1e-2 if name == "a logit of 1e4" else 2e-5)


def test_of_equal_scores_the_oldest_memories_are_selected():
    case = Case(tokens=128, memories=8, segment_len=16, top_k=2, first_segment=8)
    (q, weights, router), _ = inputs(case)
    router = router._replace(u=jnp.zeros_like(router.u))
    y, own = deep_read(
        q, weights, router, implementation="pallas_interpret", config=SMALL, **case.options
    )
    share = 1 / (jnp.exp(router.online) + 2)
    network = MlpNetwork("gelu", "layer")
    first, second = (
        network.features(linear_of(jax.tree.map(lambda w, i=i: w[i], weights), q.dtype), q)
        for i in range(2)
    )
    assert jnp.allclose(own, 1 - 2 * share, atol=1e-6)
    assert jnp.allclose(y, share * (first + second), atol=1e-5)


def test_all_tokens_may_select_the_same_memories():
    """Those are read by whole blocks where columns are meant, the others not at all."""
    config = dataclasses.replace(SMALL, slots=128, slots_backward=128)
    case = Case(head_dim=16, hidden=64, tokens=256, memories=10, segment_len=16, top_k=2)
    case = dataclasses.replace(case, config=config, first_segment=5)
    (q, weights, router), cotangents = inputs(case)
    router = router._replace(
        u=jnp.abs(router.u), descriptors=jnp.linspace(2, -2, 10)[:, None] * jnp.ones((1, 16))
    )
    args = q, weights, router
    actual = outputs_and_gradients(case, "pallas_interpret", args, cotangents)
    assert_close(actual, outputs_and_gradients(case, "reference", args, cotangents), 2e-5)


@pytest.mark.parametrize(
    ("implementation", "slots"),
    [("xla", None), ("pallas_interpret", None), ("pallas_interpret", 128)],
)
def test_what_nobody_sees_may_hold_anything(implementation, slots):
    """Slots past the last visible segment hold NaN; no result of anything else does."""
    config = dataclasses.replace(SMALL, slots=slots, slots_backward=slots)
    case = Case(tokens=96, memories=20, segment_len=32, top_k=2, hidden=512, config=config)
    (q, weights, router), cotangents = inputs(case)
    run = program_of(case, implementation)
    clean = run((q, weights, router), cotangents)
    weights = jax.tree.map(lambda w: w.at[2:].set(jnp.nan), weights)
    if implementation == "pallas_interpret":
        router = router._replace(descriptors=router.descriptors.at[2:].set(jnp.nan))
    poisoned = run((q, weights, router), cotangents)
    assert_close(poisoned, clean, 1e-6)


def test_parts_that_do_not_see_a_memory_do_not_read_it():
    """A gate of 0 would not keep NaN away."""
    case = Case(tokens=256, memories=1, segment_len=128)
    (q, weights, router), cotangents = inputs(case)
    weights = jax.tree.map(lambda w: jnp.full_like(w, jnp.nan), weights)
    found = outputs_and_gradients(case, "pallas_interpret", (q, weights, router), cotangents)
    for x in (found["outputs"][0], found["gradients"][0]):
        assert bool(jnp.all(jnp.isfinite(x[:, :128])))
        assert bool(jnp.all(jnp.isnan(x[:, 128:])))


@pytest.mark.parametrize("slots", [None, 128])
def test_columns_leave_out_what_nobody_selects(slots):
    """Without columns memories with gates of 0 are read; a pair is read together."""
    config = dataclasses.replace(SMALL, slots=slots, slots_backward=slots)
    case = Case(tokens=96, memories=10, segment_len=8, top_k=2, hidden=512, first_segment=10)
    case = dataclasses.replace(case, config=config)
    (q, weights, router), cotangents = inputs(case)
    router = router._replace(u=jnp.abs(router.u), descriptors=router.descriptors.at[4:6].set(-20))
    weights = jax.tree.map(lambda w: w.at[4:6].set(jnp.nan), weights)
    found = outputs_and_gradients(case, "pallas_interpret", (q, weights, router), cotangents)
    for x in (found["outputs"][0], found["gradients"][0]):
        assert bool(jnp.all(jnp.isfinite(x))) == (slots is not None)


def test_the_first_segment_may_be_traced():
    case = Case(head_dim=16, tokens=64, memories=12, segment_len=16, top_k=3)
    (q, weights, router), cotangents = inputs(case)

    def run(first, implementation):
        def read(*args):
            return deep_read(
                *args,
                implementation=implementation,
                config=SMALL if implementation == "pallas_interpret" else None,
                **case.options | {"first_segment": first},
            )

        outputs, back = jax.vjp(read, q, weights, router)
        return outputs, back(cotangents)

    for implementation in ("xla", "pallas_interpret"):
        jitted = jax.jit(run, static_argnums=1)
        for first in (0, 3, 30):
            expected = run(first, "reference")
            assert_close(jitted(jnp.int32(first), implementation), expected, 2e-5)


def test_heads_and_sequences_by_vmap():
    case = Case(head_dim=16, tokens=64, memories=4, segment_len=16)
    many = heads_and_sequences(lambda seed: inputs(case, seed)[0])

    def run(implementation):
        def loss(*args):
            y, own = jax.vmap(
                jax.vmap(
                    lambda *args: deep_read(*args, implementation=implementation, **case.options)
                )
            )(*args)
            return jnp.sum(y**3) + jnp.sum(own**2)

        return jax.value_and_grad(loss, (0, 1, 2))(*many)

    assert_close(run("pallas_interpret"), run("reference"), 2e-5)


def test_refusals_name_the_reason():
    case = Case(tokens=40, memories=2)
    (q, weights, router), _ = inputs(case)

    def read(implementation, q=q, weights=weights, router=router, config=None, **options):
        chosen = {"implementation": implementation, "config": config}
        return deep_read(q, weights, router, **case.options | chosen | options)

    with pytest.raises(InputError, match=r"reference \| xla \| pallas"):
        read("fast")
    with pytest.raises(InputError, match="runs on a TPU"):
        read("pallas")
    with pytest.raises(InputError, match="not float16"):
        read("pallas_interpret", q=q.astype(jnp.float16))
    with pytest.raises(InputError, match="position"):
        read("pallas_interpret", router=Scores(router.online, jnp.zeros((2, 40))))
    with pytest.raises(InputError, match="multiple of 16"):
        read(
            "pallas_interpret",
            q=q[:20],
            weights=weights._replace(w1=weights.w1[:, :20], w2=weights.w2[..., :20]),
            router=None,
        )
    with pytest.raises(InputError, match="multiple of 8, not 30"):
        narrow = weights._replace(w1=weights.w1[..., :30], w2=weights.w2[:, :30])
        read("pallas_interpret", weights=narrow)
    with pytest.raises(InputError, match="xla has no blocks"):
        read("xla", config=SMALL)
    with pytest.raises(InputError, match="config.part"):
        Config(tokens=200, part=100, resident=8, resident_backward=8, group=2)
    with pytest.raises(InputError, match="config.tokens"):
        Config(tokens=384, part=256, resident=8, resident_backward=8, group=2)
    with pytest.raises(InputError, match="config.group"):
        Config(tokens=256, part=256, resident=8, resident_backward=8, group=0)
    with pytest.raises(InputError, match="selects no memories"):
        read("pallas_interpret", config=dataclasses.replace(SMALL, slots=128))
    with pytest.raises(InputError, match="config.resident_backward"):
        read(
            "pallas_interpret",
            weights=jax.tree.map(lambda w: jnp.concatenate([w] * 20), weights),
            router=None,
            config=Config(tokens=256, part=256, resident=40, resident_backward=12, group=1),
        )


def test_what_does_not_go_together():
    case = Case(tokens=40, memories=3)
    (q, weights, router), _ = inputs(case)
    short = weights._replace(w2=weights.w2[:, :8])
    few = router._replace(descriptors=router.descriptors[:2])
    for field, args, options in (
        ("mem_norm", (weights, router), {"mem_norm": "Layer"}),
        ("activation", (weights, router), {"activation": "tanh"}),
        ("weights.w2.shape", (short, router), {}),
        ("router.descriptors.shape", (weights, few), {}),
    ):
        with pytest.raises(InputError) as caught:
            deep_read(q, *args, **case.options | options)
        assert caught.value.field == field


def test_what_does_not_fit_into_vmem_is_refused():
    facts: dict[str, Any] = {
        **{"tokens": 1024, "length": 1024, "memories": 16, "head_dim": 512, "hidden": 2048},
        **{"segment_len": 128, "top_k": None, "routed": False, "activation": "gelu"},
        **{"layer_norm": True, "dtype": jnp.dtype(jnp.float32)},
    }
    assert "VMEM" in str(unsupported(Call(**facts), any_device=True))
