"""The read of matrix memories on a GPU, step by step: against the reference, with all gradients."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest

from mc_jax.errors import InputError
from mc_jax.kernels.gates import Router, Scores, selected_gates, visible_memories
from mc_jax.kernels.linear_read import Call, Config, linear_read, triton_selected, unsupported
from mc_jax.kernels.linear_read.gpu import gpu
from mc_jax.kernels.linear_read.reference import reference
from mc_jax.kernels.linear_read.triton_route import select_memories
from mc_jax.kernels.triton import stages
from tests.kernels.gpu import lowered, on_a_gpu
from tests.kernels.linear_read.test_linear_read import Case, inputs
from tests.kernels.reads import TOLERANCE, assert_close, with_gradients

CASES = {
    "grm": Case(),
    "residual": Case(routed=False),
    "ssc": Case(top_k=3),
    "ssc of most": Case(top_k=8),
    "ssc of more than there are": Case(top_k=20),
    "ssc of more than are selected in registers": Case(memories=20, segment_len=16, top_k=9),
    "odd lengths": Case(tokens=201, memories=29, segment_len=7, top_k=2),
    "odd lengths, all": Case(tokens=201, memories=29, segment_len=7),
    "many memories": Case(tokens=262, memories=130, segment_len=2, top_k=5),
    "segments past the last memory": Case(tokens=300, memories=5),
    "later part of a sequence": Case(tokens=100, memories=20, first_segment=17, top_k=4),
    "later part, all": Case(tokens=100, memories=20, first_segment=17),
    "nothing cached in sight": Case(tokens=20, memories=3),
    "head of 128": Case(head_dim=128, tokens=150, memories=4),
    # Gates are then shaped as a block of 128 tokens is.
    "as many memories as a head is wide": Case(
        head_dim=128, tokens=40, memories=128, first_segment=100
    ),
    "bfloat16": Case(dtype=jnp.bfloat16),
    "bfloat16, ssc": Case(dtype=jnp.bfloat16, top_k=2),
    "wide memories": Case(shape=(16, 64), top_k=3),
    "router of another width": Case(head_dim=48, shape=(32, 32), top_k=2),
    "tall memories": Case(shape=(64, 16)),
}


def read(form, case: Case, args, cotangents) -> dict:
    options = {"interpret": True} if form is gpu else {}
    return with_gradients(form, args, cotangents, **case.options, **options)


def selecting(case: Case):
    """Inputs whose router queries are bfloat16's, as they are selected by, and the tolerance."""
    (q, w, router), cotangents = inputs(case)
    if case.top_k is None or router is None:
        return (q, w, router), cotangents, TOLERANCE[case.dtype]
    u = router.u.astype(jnp.bfloat16).astype(router.u.dtype)
    return (q, w, router._replace(u=u)), cotangents, TOLERANCE[jnp.bfloat16]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_reference(case):
    args, cotangents, tolerance = selecting(case)
    actual = read(gpu, case, args, cotangents)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), args)
    assert_close(actual, read(reference, case, exact, cotangents), tolerance)


@pytest.mark.parametrize("top_k", [None, 2])
def test_extreme_gates(top_k):
    case = Case(tokens=160, memories=6, segment_len=20, top_k=top_k)
    (q, w, router), cotangents, tolerance = selecting(case)
    for name, extreme in {
        "the online memory takes all": router._replace(online=jnp.full_like(router.online, 1e4)),
        "the online memory takes nothing": router._replace(
            online=jnp.full_like(router.online, -1e30)
        ),
        "one memory takes all": router._replace(
            u=jnp.abs(router.u), descriptors=router.descriptors.at[1].set(20)
        ),
    }.items():
        actual = read(gpu, case, (q, w, extreme), cotangents)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(actual)), name
        assert_close(actual, read(reference, case, (q, w, extreme), cotangents), tolerance)


@pytest.mark.parametrize("top_k", [None, 2])
def test_what_nobody_sees_may_hold_anything(top_k):
    case = Case(tokens=96, memories=20, segment_len=32, top_k=top_k)
    (q, w, router), cotangents = inputs(case)
    clean = read(gpu, case, (q, w, router), cotangents)
    poisoned = read(gpu, case, (q, w.at[2:].set(jnp.nan), router), cotangents)
    assert_close(poisoned, clean, 1e-6)


@pytest.mark.parametrize(
    ("tokens", "memories", "segment_len", "first_segment", "top_k"),
    [(640, 4, 128, 0, 2), (300, 70, 4, 0, 3), (200, 7, 50, 2, 4), (130, 130, 1, 0, 8)],
)
def test_selects_what_top_k_does(tokens, memories, segment_len, first_segment, top_k):
    keys = jax.random.split(jax.random.key(0), 5)
    # In bfloat16, as the kernel reads it, so that nothing is selected by rounding.
    u = jax.random.normal(keys[0], (32, tokens), jnp.bfloat16).astype(jnp.float32)
    online = jax.random.normal(keys[1], (tokens,))
    descriptors = jax.random.normal(keys[2], (memories, 32))
    weights = jax.random.normal(keys[3], (1 + top_k, tokens))
    visible = visible_memories(memories, tokens, segment_len, first_segment)

    def found(select):
        def loss(*router):
            own, gate, memory = select(Router(*router))
            return jnp.sum(weights * jnp.concatenate([own[None], gate])), (own, gate, memory)

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(u, online, descriptors)

    def on_gpu(router):
        return select_memories(router, segment_len, jnp.int32(first_segment), top_k, interpret=True)

    (_, expected), gradients = found(lambda router: selected_gates(router, visible, top_k))
    (_, actual), actual_gradients = found(on_gpu)
    assert jnp.array_equal(actual[2], expected[2])
    assert_close(actual[:2], expected[:2], 2e-5)
    assert_close(actual_gradients, gradients, 1e-2)


def test_pairs_of_a_popular_memory_are_shared(monkeypatch):
    """A memory that all tokens read has several programs, one that few read a part of a block."""
    monkeypatch.setattr(triton_selected, "PAIRS", 16)
    monkeypatch.setattr(triton_selected, "MOST_PAIRS", 32)
    keys = jax.random.split(jax.random.key(0), 4)
    memories, tokens = 5, 150
    weights = jax.random.normal(keys[0], (memories, 16, 16))
    gate, x = jax.random.uniform(keys[1], (2, tokens)), jax.random.normal(keys[2], (16, tokens))
    # Each token reads memory 3; a few memory 1 as well, the others nothing else.
    second = jnp.where(jnp.arange(tokens) % 37 == 0, 1, memories)
    memory = jnp.stack([jnp.full(tokens, 3), second])

    def by_one_hot(weights, gate, x):
        selected = jax.nn.one_hot(memory, memories, axis=1)
        return jnp.einsum("jt,jmt,moi,it->ot", gate, selected, weights, x)

    def run(form):
        y, back = jax.vjp(form, weights, gate, x)
        return y, back(jax.random.normal(keys[3], y.shape))

    actual = run(lambda w, gate, x: triton_selected.mix_selected(w, gate, memory, x, True))
    assert_close(actual, run(by_one_hot), 2e-5)


def test_of_equal_scores_the_oldest_memories_are_selected():
    router = Router(
        jnp.ones((16, 128)), jnp.zeros(128), jnp.zeros((80, 16)).at[jnp.array([0, 70])].set(-1)
    )
    _, _, memory = select_memories(router, 1, 80, 3, interpret=True)
    assert jnp.array_equal(memory, jnp.broadcast_to(jnp.array([[1], [2], [3]]), (3, 128)))


def test_a_descriptor_that_is_no_number_shows():
    """In whoever sees it, and in nobody else."""
    router = Router(jnp.ones((16, 256)), jnp.zeros(256), jnp.zeros((80, 16)).at[70, 0].set(jnp.nan))
    own, gate, _ = select_memories(router, 2, 0, 3, interpret=True)
    sees = jnp.arange(256) >= 2 * 71
    assert jnp.array_equal(jnp.isnan(own), sees)
    assert jnp.array_equal(jnp.isnan(gate).any(0), sees)


@pytest.mark.parametrize("capability, ahead", [("9.0", 3), ("8.9", 2), ("12.0", 2), (None, 3)])
def test_gpus_with_little_shared_memory_load_less_ahead(capability, ahead, monkeypatch):
    gpu = types.SimpleNamespace(**{} if capability is None else {"compute_capability": capability})
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    assert stages() == ahead


def call_with(out, width, dtype=jnp.bfloat16):
    return Call(64, 64, 3, width, 16, None, True, out, width, jnp.dtype(dtype))


def test_what_a_gpu_runs():
    with on_a_gpu():
        assert unsupported(call_with(128, 128)) is None
        assert unsupported(call_with(64, 128), scores=True) is None
        assert "bfloat16, not float32" in unsupported(call_with(128, 128, jnp.float32))
        assert "96 x 96" in unsupported(call_with(96, 96))
        nothing = dataclasses.replace(call_with(128, 128), memories=0)
        assert "at least one memory" in unsupported(nothing)
        q, w = jnp.zeros((32, 64)), jnp.zeros((3, 32, 32))
        with pytest.raises(InputError, match="bfloat16, not float32"):
            linear_read(q, w, None, segment_len=16, implementation="pallas")
        q, blocks = q.astype(jnp.bfloat16), Config(128, 8, 4, "outputs")
        with pytest.raises(InputError, match="on a GPU blocks"):
            linear_read(q, w, None, segment_len=16, implementation="pallas", config=blocks)


@pytest.mark.parametrize("top_k", [None, 2, 12])
@pytest.mark.parametrize("head_dim", [16, 128])
def test_lowers_for_a_gpu(head_dim, top_k):
    """Forward and backward, of logits from descriptors and of given ones."""
    case = Case(head_dim, 300, 24, 16, top_k=top_k, dtype=jnp.bfloat16)
    (q, w, router), _ = inputs(case)
    scores = Scores(router.online, jnp.zeros((24, 300)))
    for logits in (router, scores):

        def loss(q, w, logits):
            y, own = linear_read(q, w, logits, **case.options)
            return jnp.sum(y.astype(jnp.float32) ** 2) + jnp.sum(own)

        heads = jax.tree.map(lambda x: jnp.stack([x] * 2), (q, w, logits))
        program = lowered(jax.vmap(jax.grad(loss, (0, 1, 2))), *heads)
        assert program.count("linear_read") >= 3
        assert ("select_memories" in program) == (top_k == 2 and logits is router)
