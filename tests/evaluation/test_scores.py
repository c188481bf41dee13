"""Bits per byte, perplexity and recall, against numbers worked out by hand or by brute force."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax.evaluation import scores
from mc_jax.evaluation.recall import evaluate_recall
from mc_jax.evaluation.text import evaluate_text
from mc_jax.training.evaluate import make_held_out
from mc_jax.training.sharding import data_parallel

LENGTH, VOCAB = 13, 6
TOKEN_BYTES = np.array([0, 1, 1, 2, 3, 1])


class Table(nn.Module):
    """Logits that depend on the token alone."""

    @nn.compact
    def __call__(self, tokens):
        logits = self.param("logits", nn.initializers.zeros, (VOCAB, VOCAB))
        return logits[tokens]


def random_batches(seed=0, count=3):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        weights = rng.integers(0, 2, (4, LENGTH)).astype(np.float32)
        yield {
            "inputs": rng.integers(VOCAB, size=(4, LENGTH), dtype=np.int32),
            "targets": rng.integers(VOCAB, size=(4, LENGTH), dtype=np.int32),
            "weights": weights,
            "pairs": rng.choice([2, 5], 4).astype(np.int32),
            "distance": (weights * rng.integers(1, LENGTH, (4, LENGTH))).astype(np.int32),
        }


@pytest.fixture
def params():
    return {"logits": jnp.asarray(np.random.default_rng(1).normal(size=(VOCAB, VOCAB)))}


@pytest.fixture
def score(params):
    return scores.make_score(Table(), params, data_parallel())


def test_bits_per_byte_by_hand():
    # After token 1: probabilities 1/2 for 3, 1/8 for 4, and the rest for others.
    rest = (1 - 5 / 8) / 4
    row = np.log([rest, rest, rest, 1 / 2, 1 / 8, rest])
    logits = np.zeros((VOCAB, VOCAB))
    logits[1] = row + 7  # a constant is no matter
    batch = {
        "inputs": np.array([[1, 1, 1, 0]], np.int32),
        "targets": np.array([[3, 4, 3, 5]], np.int32),
        "weights": np.array([[1, 1, 1, 0]], np.float32),
    }
    score = scores.make_score(Table(), {"logits": jnp.asarray(logits)}, data_parallel())
    found = evaluate_text(score, [batch], 4, TOKEN_BYTES).to_json()
    # 1 + 3 + 1 bits for 2 + 3 + 2 bytes.
    assert found["tokens"] == 3
    assert found["bits_per_byte"] == pytest.approx(5 / 7, rel=1e-6)
    assert found["loss"] == pytest.approx(5 / 3 * math.log(2), rel=1e-6)
    assert found["perplexity"] == pytest.approx(2 ** (5 / 3), rel=1e-6)
    assert found["accuracy"] == pytest.approx(2 / 3)
    first, second, third = found["by_position"]
    assert [(p["first"], p["last"]) for p in (first, second, third)] == [(0, 0), (1, 1), (2, 3)]
    assert [p["bits_per_byte"] for p in (first, second, third)] == pytest.approx([1 / 2, 1, 1 / 2])
    assert third["tokens"] == 1


def test_no_byte_has_no_bits_per_byte(score):
    batch = next(random_batches()) | {"targets": np.zeros((4, LENGTH), np.int32)}
    found = evaluate_text(score, [batch], LENGTH, TOKEN_BYTES).to_json()
    assert found["bits_per_byte"] is None and found["loss"] > 0


def test_positions_add_up_to_the_whole_and_to_the_loss_of_training(score, params):
    found = evaluate_text(score, random_batches(), LENGTH, TOKEN_BYTES).to_json()
    parts = found["by_position"]
    assert [p["first"] for p in parts] == [0, 1, 2, 4, 8]
    assert parts[-1]["last"] == LENGTH - 1
    assert sum(p["tokens"] for p in parts) == found["tokens"]
    loss = sum(p["tokens"] * p["loss"] for p in parts) / found["tokens"]
    assert loss == pytest.approx(found["loss"], rel=1e-6)
    held_out = make_held_out(Table(), jnp.asarray(TOKEN_BYTES), data_parallel())
    for name, value in held_out(params, random_batches()).items():
        assert found[name] == pytest.approx(value, rel=1e-5)


def test_recall_by_pairs_and_distance_is_that_of_brute_force(score, params):
    found = evaluate_recall(score, random_batches(), LENGTH, (5, 2)).to_json()
    best = np.argmax(params["logits"], 1)
    seen: dict[tuple[int, int], list[bool]] = {}
    for batch in random_batches():
        for row in range(4):
            for t in range(LENGTH):
                if batch["weights"][row, t]:
                    octave = int(batch["distance"][row, t]).bit_length()
                    hit = best[batch["inputs"][row, t]] == batch["targets"][row, t]
                    seen.setdefault((int(batch["pairs"][row]), octave), []).append(bool(hit))

    def expected(choose):
        hits = [hit for key, hits in seen.items() if choose(*key) for hit in hits]
        return len(hits), pytest.approx(np.mean(hits), rel=1e-6)

    def check(row, choose):
        assert (row["tokens"], row["accuracy"]) == expected(choose)

    check(found, lambda pairs, octave: True)
    assert [row["pairs"] for row in found["by_pairs"]] == [2, 5]
    for row in found["by_pairs"]:
        check(row, lambda pairs, octave, row=row: pairs == row["pairs"])
    spans = [(row["first"], row["last"]) for row in found["by_distance"]]
    assert spans == [(1, 1), (2, 3), (4, 7), (8, 12)]
    for row in found["by_distance"]:
        check(row, lambda pairs, octave, row=row: octave == row["first"].bit_length())
    assert len(found["by_pairs_and_distance"]) == len(seen)
    for row in found["by_pairs_and_distance"]:
        check(row, lambda *key, row=row: key == (row["pairs"], row["first"].bit_length()))


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9])
def test_octaves_cover_every_number_once(size):
    edges = scores.octaves(size)
    assert edges[0] == 0 and edges[-1] == size and np.all(np.diff(edges) > 0)
    assert all(end <= 2 * start for start, end in zip(edges[1:], edges[2:], strict=False))
