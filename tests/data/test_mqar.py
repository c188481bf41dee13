"""MQAR examples against an independent look-up, and the law that places the queries."""

import numpy as np
import pytest

from mc_jax import data
from mc_jax.data.mqar import MQAR


def examples(count=200, **changes):
    options = dict(
        length=64, vocab_size=64, pairs=(4, 16), power_a=0.01, seed=0, held_out=True, size=count
    )
    return MQAR(**{**options, **changes})


def check_example(example, vocab_size):
    """Finds every answer by hand: the token after the key among the pairs."""
    tokens, pairs = example["inputs"].tolist(), int(example["pairs"])
    written = {}
    for place in range(0, 2 * pairs, 2):
        assert 1 <= tokens[place] < vocab_size // 2 <= tokens[place + 1] < vocab_size
        assert tokens[place] not in written
        written[tokens[place]] = place + 1
    assert len({tokens[place] for place in written.values()}) == pairs
    asked = []
    for place in range(len(tokens)):
        if example["weights"][place] == 0:
            assert example["targets"][place] == example["distance"][place] == 0
            continue
        assert place >= 2 * pairs and place % 2 == 0
        asked.append(tokens[place])
        assert example["targets"][place] == tokens[written[tokens[place]]]
        assert example["distance"][place] == place - written[tokens[place]] > 0
    assert sorted(asked) == sorted(written)


@pytest.mark.parametrize(
    ("length", "vocab_size", "pairs"), [(64, 64, (4, 16)), (33, 18, (8,)), (20, 300, (1, 5))]
)
def test_every_answer_is_the_value_of_its_key(length, vocab_size, pairs):
    seen = set()
    for example in examples(length=length, vocab_size=vocab_size, pairs=pairs):
        check_example(example, vocab_size)
        seen.add(int(example["pairs"]))
    assert seen == set(pairs)


def test_keys_values_and_filler_use_their_whole_range():
    found = [examples(2000, vocab_size=40)[i] for i in range(2000)]
    keys = {int(t) for e in found for t in e["inputs"][: 2 * e["pairs"] : 2]}
    values = {int(t) for e in found for t in e["inputs"][1 : 2 * e["pairs"] : 2]}
    assert keys == set(range(1, 20)) and values == set(range(20, 40))
    filler = {int(t) for e in found for t in e["inputs"][2 * e["pairs"] + 1 :: 2]}
    assert filler == set(range(40))


def test_queries_follow_the_power_law():
    """One pair: place n of 31 is asked with probability n^(a-1) / sum."""
    for power_a in (0.01, 0.5, 1.0):
        found = examples(4000, pairs=(1,), power_a=power_a)
        places = [int(np.flatnonzero(e["weights"])[0] - 2) // 2 for e in found]
        share = np.arange(1, 32) ** (power_a - 1.0)
        share /= share.sum()
        counts = np.bincount(places, minlength=31)
        chi_squared = ((counts - 4000 * share) ** 2 / (4000 * share)).sum()
        assert chi_squared < 60, power_a  # 30 degrees of freedom: p < 0.001 above 60


def test_with_more_pairs_places_are_drawn_one_after_the_other():
    """Two pairs: the first one's place, then the second's among the rest."""
    share = np.arange(1, 4) ** (0.01 - 1)
    share /= share.sum()
    expected = np.zeros((3, 3))
    for i in range(3):
        for j in set(range(3)) - {i}:
            expected[i, j] = share[i] * share[j] / (1 - share[i])
    counts = np.zeros((3, 3))
    for e in examples(4000, length=10, pairs=(2,)):
        queries = np.flatnonzero(e["weights"])
        asked = {int(e["inputs"][query]): (query - 4) // 2 for query in queries}
        counts[asked[int(e["inputs"][0])], asked[int(e["inputs"][2])]] += 1
    np.testing.assert_allclose(counts / 4000, expected, atol=0.03)


def test_an_example_depends_on_its_index_and_seed_alone():
    one, other = examples(), examples()
    for index in (199, 3, 70):
        np.testing.assert_array_equal(one[index]["inputs"], other[index]["inputs"])
    assert (one[0]["inputs"] != one[1]["inputs"]).any()
    assert (one[0]["inputs"] != examples(seed=1)[0]["inputs"]).any()


def test_training_and_held_out_examples_have_nothing_in_common():
    drawn = [
        {bytes(e["inputs"]) for e in examples(seed=seed, held_out=held_out)}
        for seed in (0, 1, 4)
        for held_out in (False, True)
    ]
    assert len(set.union(*drawn)) == sum(map(len, drawn)) == 6 * 200


def test_eval_batches_have_each_pair_count_in_turn(config):
    config.task, config.length, config.eval_batches = "mqar", 64, 3
    config.mqar.pairs, config.mqar.eval_pairs = (4,), (2, 16)
    found = list(data.eval_batches(config))
    assert [set(batch["pairs"].tolist()) for batch in found] == [{2}] * 3 + [{16}] * 3
    for batch in found:
        assert batch["inputs"].shape == batch["distance"].shape == (4, 64)
        assert batch["pairs"].dtype == batch["distance"].dtype == np.int32
        for row in range(4):
            check_example({key: value[row] for key, value in batch.items()}, 256)
    rows = {bytes(row) for batch in found for row in batch["inputs"]}
    assert len(rows) == 24


def test_the_vocabulary_is_the_tasks(config):
    assert data.vocab_size(config) == 257
    config.task, config.mqar.vocab_size = "mqar", 300
    assert data.vocab_size(config) == 300
