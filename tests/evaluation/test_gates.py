"""The gates that are shown: an independent softmax, and what the core in truth reads."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax import InputError, memory_caching
from mc_jax.caching import Options
from mc_jax.evaluation import gate_maps, memory_gates
from mc_jax.evaluation.gates import column_of
from mc_jax.model import LanguageModel, MemoryConfig, ModelConfig, RouterInputs

LENGTH, SEGMENT, HEADS, WIDTH = 30, 4, 2, 8
GATES = ("context", "shared_query", "position")
AGGREGATIONS = ("grm", "soup", "ssc")
SEGMENTATIONS = ("constant", "logarithmic")


def options_for(aggregation="grm", segmentation="constant", gate="context", segment_len=SEGMENT):
    return Options(aggregation, segment_len, segmentation, "independent", gate, 2, SEGMENT)


def random_inputs(gate, length=LENGTH):
    rng = np.random.default_rng(0)
    q, k, u = rng.normal(size=(3, length, HEADS, WIDTH)).astype(np.float32)
    if gate == "shared_query":
        u = np.array([0.5, 3.0], np.float32)
    if gate == "position":
        # So many distances that none of them share a score, for ties are broken at will.
        u = rng.normal(size=(length, HEADS, 9)).astype(np.float32)
    return RouterInputs(*map(jnp.asarray, (q, k, u)))


def spans_of(segment, segmentation):
    """The segments [start, end) of each memory that a segment sees, by column."""
    if segmentation == "constant":
        return {1 + i: (i, i + 1) for i in range(segment)}
    spans, start = {}, 0
    for level in reversed(range(segment.bit_length())):
        if segment >> level & 1:
            spans[1 + level] = (start, start + 2**level)
            start += 2**level
    return spans


def by_hand(inputs, aggregation, segmentation, gate, top_k=2, route_every=1):
    """Weights [heads, length] of dictionaries from columns to weights, straight from the paper."""
    q, k, u = (np.asarray(x, np.float64) for x in inputs)
    table = []
    for head, t in itertools.product(range(HEADS), range(LENGTH)):
        s = t // SEGMENT
        means = {0: k[s * SEGMENT : t + 1, head].mean(0)}
        spans = spans_of(s, segmentation)
        for column, (start, end) in spans.items():
            means[column] = k[start * SEGMENT : end * SEGMENT, head].mean(0)
        if gate == "context":
            logits = {c: u[t, head] @ mean for c, mean in means.items()}
            ranks = {c: u[t - t % route_every, head] @ mean for c, mean in means.items()}
        elif gate == "shared_query":
            logits = {c: u[head] * (q[t, head] @ mean) for c, mean in means.items()}
        else:
            back = {c: c if segmentation == "logarithmic" else s - spans[c][0] for c in spans}
            logits = {0: u[t, head, 0]} | {c: u[t, head, b] for c, b in back.items()}
        if aggregation == "ssc":
            by = logits if route_every == 1 else ranks
            best = sorted(spans, key=lambda c: -by[c])[:top_k]
            logits = {c: logits[c] for c in (0, *best)}
        total = sum(np.exp(x) for x in logits.values())
        table.append({c: np.exp(x) / total for c, x in logits.items()})
    return np.array(table, object).reshape(HEADS, LENGTH)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
@pytest.mark.parametrize("aggregation", ("grm", "ssc"))
def test_weights_are_a_softmax_over_what_is_visible(aggregation, segmentation, gate):
    inputs = random_inputs(gate)
    found = np.asarray(memory_gates(options_for(aggregation, segmentation, gate), inputs))
    memories = 7 if segmentation == "constant" else 3
    assert found.shape == (HEADS, LENGTH, 1 + memories)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    expected = by_hand(inputs, aggregation, segmentation, gate)
    for head, t in itertools.product(range(HEADS), range(LENGTH)):
        dense = [expected[head, t].get(column, 0) for column in range(1 + memories)]
        np.testing.assert_allclose(found[head, t], dense, rtol=1e-5, atol=1e-7)
        unseen = [column for column in range(1 + memories) if column not in expected[head, t]]
        assert np.all(found[head, t, unseen] == 0)


def test_the_first_token_of_a_block_selects():
    inputs = random_inputs("context")
    options = dataclasses.replace(options_for("ssc"), route_every=2)
    found = np.asarray(memory_gates(options, inputs))
    expected = by_hand(inputs, "ssc", "constant", "context", route_every=2)
    for head, t in itertools.product(range(HEADS), range(LENGTH)):
        dense = [expected[head, t].get(column, 0) for column in range(8)]
        np.testing.assert_allclose(found[head, t], dense, rtol=1e-5, atol=1e-7)
    assert not np.allclose(found, memory_gates(options_for("ssc"), inputs))
    the_core_reads_with_these_weights(options, inputs)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_core_reads_with_these_weights(aggregation, segmentation, gate):
    options = options_for(aggregation, segmentation, gate)
    the_core_reads_with_these_weights(options, random_inputs(gate))


def the_core_reads_with_these_weights(options, inputs):
    """Values name their segment, so an output tells how much of each one was read."""
    segment = np.arange(LENGTH) // SEGMENT
    v = jnp.broadcast_to(jax.nn.one_hot(segment, WIDTH)[:, None], inputs.q.shape)
    batched = [x[None] for x in (inputs.q, inputs.pooled, v)]
    u = inputs.u if options.gate == "shared_query" else inputs.u[None]
    out, _ = memory_caching(*batched, u, None, rule="linear", **dataclasses.asdict(options))
    weights = np.asarray(memory_gates(options, inputs))
    for head, t in itertools.product(range(HEADS), range(LENGTH)):
        sums = np.zeros(WIDTH)
        products = np.asarray(inputs.pooled[: t + 1, head] @ inputs.q[t, head])
        np.add.at(sums, segment[: t + 1], products)
        read = np.zeros(WIDTH)
        for i in range(segment[t] + 1):
            column = column_of(options, np.array(t), np.array(i * SEGMENT))
            read[i] = weights[head, t, column] * sums[i]
        np.testing.assert_allclose(out[0, t, head], read, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
def test_a_sequence_shorter_than_a_segment_reads_the_online_memory(segmentation):
    options = options_for(segmentation=segmentation)
    found = memory_gates(options, random_inputs("context", length=SEGMENT))
    np.testing.assert_array_equal(found, np.ones((HEADS, SEGMENT, 1)))


@pytest.mark.parametrize(("aggregation", "gate"), [("residual", "context"), ("grm", "none")])
def test_no_gate_is_refused(aggregation, gate):
    with pytest.raises(InputError, match="give every memory the weight 1"):
        memory_gates(options_for(aggregation, gate=gate), random_inputs("context"))


@pytest.mark.parametrize("gate", ["context", "shared_query"])
def test_gate_maps_find_every_memory_layer_scanned_or_not(gate):
    memory = MemoryConfig(segment_len=SEGMENT, chunk_len=SEGMENT, gate=gate, position_slots=3)
    config = ModelConfig(
        vocab_size=11, dim=16, num_layers=4, num_heads=2, mlp_dim=8,
        pattern=("attention", "memory"), memory=memory,
    )  # fmt: skip
    tokens = np.arange(18, dtype=np.int32) % 11
    params = jax.jit(LanguageModel(config).init)(jax.random.key(0), tokens[None])["params"]
    unrolled = gate_maps(config, LanguageModel(config), params, tokens)
    assert [layer.block for layer in unrolled] == [1, 3]
    assert not np.allclose(unrolled[0].weights, unrolled[1].weights)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), params["layers_0"], params["layers_1"])
    params = {name: x for name, x in params.items() if not name.startswith("layers_")}
    config = dataclasses.replace(config, scan_layers=True)
    scanned = gate_maps(config, LanguageModel(config), params | {"layers": stacked}, tokens)
    for one, other in zip(unrolled, scanned, strict=True):
        assert one.block == other.block and one.weights.shape == (2, 18, 5)
        np.testing.assert_allclose(one.weights, other.weights, rtol=1e-4, atol=1e-6)
