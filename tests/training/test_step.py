"""Loss and metrics against numpy, and microbatches against the batch."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mc_jax.training.experiment import check
from mc_jax.training.functions import functions_of
from mc_jax.training.sharding import BATCH_KEYS, data_parallel
from mc_jax.training.state import initial_state
from mc_jax.training.step import Sums, batch_sums, logit_scores, make_train_step, means

VOCAB = 7


class Table(nn.Module):
    """Logits that depend on the token alone."""

    @nn.compact
    def __call__(self, tokens):
        return nn.Embed(VOCAB, VOCAB, name="table")(tokens)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (2, 12, 5), dtype=np.int32)
    weights = rng.choice([0.0, 1.0, 0.5], (12, 5)).astype(np.float32)
    return {"inputs": tokens[0], "targets": tokens[1], "weights": weights}


def test_metrics_against_numpy(batch):
    table = np.random.default_rng(1).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    token_bytes = np.array([0, 1, 2, 3, 1, 1, 4], np.int32)
    params = {"table": {"embedding": jnp.asarray(table)}}
    found = means(batch_sums(Table(), params, batch, jnp.asarray(token_bytes)))

    logits, targets, weights = table[batch["inputs"]], batch["targets"], batch["weights"]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    expected = {
        "loss": (weights * nll).sum() / weights.sum(),
        "accuracy": (weights * (logits.argmax(-1) == targets)).sum() / weights.sum(),
        "bits_per_byte": (weights * nll).sum() / np.log(2) / (weights * token_bytes[targets]).sum(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    assert "bits_per_byte" not in means(batch_sums(Table(), params, batch, None))


def test_loss_has_a_gradient_without_a_scatter():
    """Also beside a token that is impossible."""
    logits = jax.random.normal(jax.random.key(0), (3, 5, VOCAB)).at[:, 2, 4].set(-jnp.inf)
    targets = jnp.arange(15).reshape(3, 5) % 4
    weights = jnp.linspace(-1, 1, 15).reshape(3, 5)

    def total(loss, logits):
        return jnp.sum(weights * loss(logits, targets))

    def run(loss):
        return jax.value_and_grad(lambda logits: total(loss, logits))(logits)

    def ours(logits, targets):
        return logit_scores(logits, targets)[0]

    expected = run(optax.softmax_cross_entropy_with_integer_labels)
    for found, value in zip(run(ours), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
    gradient = jax.make_jaxpr(jax.grad(lambda logits: total(ours, logits)))(logits)
    assert "scatter" not in str(gradient)


def test_sums_add_over_batches(batch):
    """Rows of different weight: the mean of the parts' means would be another number."""
    params = Table().init(jax.random.key(0), batch["inputs"])["params"]
    whole = batch_sums(Table(), params, batch, None)
    parts = Sums.zeros(text=False)
    for rows in (slice(0, 3), slice(3, 12)):
        part = {key: value[rows] for key, value in batch.items()}
        parts = jax.tree.map(jnp.add, parts, batch_sums(Table(), params, part, None))
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("microbatches", [2, 3, 12])
def test_microbatches_are_one_big_batch(batch, microbatches):
    optimizer = optax.sgd(1.0)
    schedule = optax.constant_schedule(1.0)
    results = []
    for number in (1, microbatches):
        state = initial_state(Table(), optimizer, seed=0)
        step = jax.jit(make_train_step(Table(), optimizer, schedule, number, None))
        results.append(step(state, batch))
    (whole, whole_metrics), (parts, parts_metrics) = results
    # With plain gradient descent the parameters show the gradient itself.
    np.testing.assert_allclose(
        parts.params["table"]["embedding"], whole.params["table"]["embedding"], rtol=1e-5, atol=1e-6
    )
    assert parts_metrics.keys() == whole_metrics.keys()
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(parts_metrics[name], value, rtol=1e-5, err_msg=name)


def test_gradient_norm_shows_what_is_not_finite(batch):
    """Logits that are far apart have a finite loss; the gradient here is made to overflow."""

    class Overflow(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            scale = self.param("scale", nn.initializers.zeros, (1,))
            # sqrt has an infinite slope at 0, where its value is finite.
            return Table(name="table")(tokens) + jnp.sqrt(scale)

    optimizer = optax.sgd(1.0)
    step = make_train_step(Overflow(), optimizer, optax.constant_schedule(1.0), 1, None)
    _, metrics = step(initial_state(Overflow(), optimizer, seed=0), batch)
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])


def test_a_profile_tells_the_parts_of_a_step(config):
    """Of the forward and of the backward pass: by the names of a layer's parts."""
    experiment = check(config)
    functions = functions_of(experiment, data_parallel(), None)
    shape = config.data.batch_size, config.data.length
    batch = {key: jax.ShapeDtypeStruct(shape, jnp.int32) for key in BATCH_KEYS}
    compiled = functions.train_step.lower(functions.state, batch).compile()
    names = set(re.findall(r'op_name="([^"]*)"', compiled.as_text()))
    backward = {name for name in names if "transpose(" in name}
    forward = {name for name in names - backward if "jvp(" in name}
    for part in ("qkv", "convolve", "compress", "gate", "read", "out", "mlp", "loss"):
        for way in (forward, backward):
            assert any(re.search(rf"\b{part}\b", name) for name in way), part
    assert any("/update/" in name for name in names)


def test_likeliest_is_the_first_of_equals():
    logits = jnp.array(
        [[1.0, 3.0, 3.0, 0.0]] * 4 + [[0.0] * 4] * 2 + [[-jnp.inf, 0, 0, 0], [jnp.nan] * 4]
    )
    targets = jnp.array([0, 1, 2, 3, 0, 3, 1, 0])
    _, correct = logit_scores(logits, targets)
    assert correct.tolist() == [False, True, False, False, True, False, True, False]
    some = jax.random.randint(jax.random.key(0), (50, 20, 7), -3, 3).astype(jnp.float32)
    wanted = jax.random.randint(jax.random.key(1), (50, 20), 0, 7)
    _, correct = logit_scores(some, wanted)
    np.testing.assert_array_equal(correct, np.argmax(some, -1) == wanted)
