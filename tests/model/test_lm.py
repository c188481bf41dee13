"""The whole model: what it may see, and that options which must not matter do not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax.errors import InputError
from mc_jax.model import LanguageModel

from . import tiny

HYBRID = tiny.config(
    dict(rule="titans"),
    pattern=("memory", "attention", "sliding"),
    num_layers=3,
    attention=dict(window=3),
    tie_embeddings=False,
    mlp_dim=0,
)


def test_causal():
    """The derivative of each position's logits is 0 by later tokens, and not by earlier ones."""
    params = tiny.perturbed(HYBRID)
    ids = np.arange(11)[None]  # a table row for each position
    direction = np.random.default_rng(1).normal(size=params["embedding"].shape)

    def logits(moves):
        table = params["embedding"].at[:11].add(moves[:, None] * direction[:11])
        variables = {"params": {**params, "embedding": table}}
        return LanguageModel(HYBRID).apply(variables, ids)[0] @ weights

    weights = np.random.default_rng(2).normal(size=(tiny.VOCAB, 3))
    jacobian = tiny.quick_jit(jax.jacrev(logits))(jnp.zeros(11))
    reach = np.abs(jacobian).max(1)
    assert (reach[np.triu_indices(11, 1)] == 0).all()
    assert (reach[np.tril_indices(11)] > 0).all()


def test_sequences_of_a_batch_do_not_meet():
    params, ids = tiny.perturbed(HYBRID), tiny.tokens()
    forward = tiny.forward(HYBRID)
    logits = forward(params, ids)
    tiny.assert_close(forward(params, ids[::-1])[::-1], logits, 1e-6)
    other = np.stack([ids[0], (ids[1] + 1) % tiny.VOCAB])
    changed = forward(params, other)
    tiny.assert_close(changed[0], logits[0], 1e-6)
    assert float(jnp.abs(changed[1] - logits[1]).max()) > 0.1


def test_logits_of_some_places():
    """Each sequence has its own, in any order."""
    params, ids = tiny.perturbed(HYBRID), tiny.tokens()
    at = np.array([[10, 0, 3], [4, 4, 9]])
    found = tiny.quick_jit(LanguageModel(HYBRID).apply)({"params": params}, ids, at)
    whole = tiny.forward(HYBRID)(params, ids)
    tiny.assert_close(found, jnp.take_along_axis(whole, at[..., None], 1), 1e-6)


def test_bfloat16_is_close():
    rough = dataclasses.replace(HYBRID, dtype="bfloat16")
    params, ids = tiny.init(HYBRID), tiny.tokens()
    expected, found = tiny.forward(HYBRID)(params, ids), tiny.forward(rough)(params, ids)
    assert found.dtype == jnp.float32
    error = float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))
    assert 1e-4 < error < 0.05
    leaves = jax.tree.leaves(jax.eval_shape(LanguageModel(rough).init, jax.random.key(0), ids))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


def test_a_tied_head_is_the_embedding():
    tied = tiny.config(pattern=("attention",))
    untied = dataclasses.replace(tied, tie_embeddings=False)
    params, ids = tiny.perturbed(tied), tiny.tokens()
    assert "head" not in params
    expected = tiny.forward(tied)(params, ids)
    found = tiny.forward(untied)({**params, "head": params["embedding"]}, ids)
    tiny.assert_close(found, expected, 1e-6)
    other = tiny.init(untied)
    assert float(jnp.abs(other["head"] - other["embedding"]).max()) > 0.1


def stacked(params, groups):
    """Parameters of the unrolled model as the scanned one wants them."""
    layers = [params[f"layers_{g}"] for g in range(groups)]
    rest = {name: x for name, x in params.items() if not name.startswith("layers_")}
    return {**rest, "layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}


def test_scan_and_remat_change_nothing():
    plain = tiny.config(
        dict(aggregation="residual"),
        pattern=("memory", "sliding"),
        num_layers=4,
        mlp_dim=0,
        attention=dict(window=3),
    )
    params, ids = tiny.perturbed(plain), tiny.tokens()
    value, grads = tiny.value_and_grad(plain)(params, ids)
    scanned = dataclasses.replace(plain, remat="dots", scan_layers=True)
    found = tiny.value_and_grad(scanned)(stacked(params, 2), ids)
    tiny.assert_close(found, (value, stacked(grads, 2)), 1e-4)
    fresh = tiny.init(scanned)["layers"]
    assert jax.tree.structure(fresh) == jax.tree.structure(stacked(params, 2)["layers"])
    kernel = fresh["block_0"]["mixer"]["qkv"]["kernel"]
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.1, "the groups start alike"


def test_full_remat_changes_nothing():
    plain = tiny.config(pattern=("attention",))
    params, ids = tiny.perturbed(plain), tiny.tokens()
    found = tiny.value_and_grad(dataclasses.replace(plain, remat="full"))(params, ids)
    tiny.assert_close(found, tiny.value_and_grad(plain)(params, ids), 1e-4)


def kept_for_the_backward_pass(remat):
    """Bytes, of a model with one block of each kind."""
    config = dataclasses.replace(HYBRID, remat=remat)
    ids = tiny.tokens(length=40)
    params = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), ids)["params"]
    pullback = jax.eval_shape(lambda p: jax.vjp(lambda p: tiny.loss(config, p, ids), p)[1], params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pullback))


def test_remat_keeps_less():
    none, dots, full = (kept_for_the_backward_pass(remat) for remat in ("none", "dots", "full"))
    assert full < dots < none


# Every rule and every aggregation; all pairs of them are differentiated in tests/caching.
PAIRS = [("linear", name) for name in ("none", "residual", "grm", "soup", "ssc")] + [
    ("swla", "ssc"),
    ("dla", "soup"),
    ("titans", "grm"),
]


@pytest.mark.parametrize(("rule", "aggregation"), PAIRS)
def test_a_step_lowers_the_loss_and_reaches_every_parameter(rule, aggregation):
    config = tiny.config(dict(rule=rule, aggregation=aggregation), mlp_dim=0)
    params, ids = tiny.init(config), tiny.tokens()
    step = tiny.value_and_grad(config)
    before, grads = step(params, ids)
    slope = sum(float(jnp.sum(g * g)) for g in jax.tree.leaves(grads))
    after, _ = step(jax.tree.map(lambda p, g: p - 0.001 * g, params, grads), ids)
    assert float(before - after) == pytest.approx(0.001 * slope, rel=0.3)
    silent = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if not (np.isfinite(g).all() and (g != 0).any())
    ]
    assert not silent


@pytest.mark.parametrize(
    ("gate", "name"),
    [("context", "query"), ("shared_query", "temperature"), ("position", "distance")],
)
def test_a_gate_moves_what_has_a_choice_of_memories(gate, name):
    config = tiny.config(dict(gate=gate))
    params, ids = tiny.perturbed(config), tiny.tokens()
    mixer = params["layers_0"]["block_0"]["mixer"]
    assert list(mixer["score"]) == [name]
    before = tiny.forward(config)(params, ids)
    mixer["score"] = jax.tree.map(lambda x: 2 * x, mixer["score"])
    moved = np.abs(tiny.forward(config)(params, ids) - before).max((0, 2))
    first = tiny.MEMORY["segment_len"]
    assert (moved[:first] == 0).all(), "a single memory has weight 1 whatever its score"
    assert (moved[first:] > 0).all()


def test_without_a_gate_there_is_no_router():
    for options in (dict(gate="none"), dict(aggregation="residual"), dict(aggregation="none")):
        config = tiny.config(options)
        shapes = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), tiny.tokens())
        assert "score" not in shapes["params"]["layers_0"]["block_0"]["mixer"]


@pytest.mark.parametrize(("scan_layers", "pooled"), [(False, "values"), (True, "keys")])
def test_router_inputs_are_sown(scan_layers, pooled):
    config = tiny.config({"pooled": pooled}, num_layers=2, scan_layers=scan_layers)
    model = LanguageModel(config)
    run = tiny.quick_jit(lambda p, ids: model.apply({"params": p}, ids, mutable=["intermediates"]))
    _, state = run(tiny.init(config), tiny.tokens())
    layer = "layers" if scan_layers else "layers_0"
    (sown,) = state["intermediates"][layer]["block_0"]["mixer"]["router"]
    layers = (2,) if scan_layers else ()
    assert sown.q.shape == sown.pooled.shape == sown.u.shape == (*layers, 2, 11, 2, 4)
    np.testing.assert_allclose(jnp.linalg.norm(sown.q, axis=-1), 1, atol=1e-3)
    unit = np.abs(jnp.linalg.norm(sown.pooled, axis=-1) - 1) < 1e-3
    assert unit.all() if pooled == "keys" else not unit.any()
    assert float(jnp.abs(sown.q - sown.pooled).max()) > 0.1


def test_tokens_need_two_axes():
    with pytest.raises(InputError, match=r"tokens: found \(5,\); allowed: \[batch, length\]"):
        LanguageModel(tiny.config()).init(jax.random.key(0), np.zeros(5, np.int32))
