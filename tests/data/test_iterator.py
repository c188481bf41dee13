"""The training stream: exact resume, the same for any number of workers or processes, mixing."""

import itertools
import json
import random

import numpy as np
import pytest

from mc_jax import data


@pytest.fixture
def mixture(use, tmp_path, corpus):
    """A config of two sources; the second one's text is all in capitals."""
    (tmp_path / "upper.txt").write_text("ALL OF THIS IS IN CAPITALS " * 40)
    return use(f"files:{corpus}", f"files:{tmp_path}/upper.txt", weights=(3.0, 1.0))


@pytest.fixture
def recall(config):
    config.task, config.length = "mqar", 32
    config.mqar.pairs = config.mqar.eval_pairs = (4, 8)
    config.mqar.vocab_size = 64
    return config


@pytest.fixture(params=["text", "mqar"])
def any_task(request):
    """The config of each task."""
    return request.getfixturevalue({"text": "mixture", "mqar": "recall"}[request.param])


def take(config, count, start=0, **options):
    """`count` batches, from batch `start` on."""
    iterator = data.train_iterator(config, seed=7, **options)
    iterator.set_state({"next_batch": start})
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() == {"inputs", "targets", "weights"}
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_resumes_exactly_at_any_batch(any_task):
    batches = take(any_task, 40)
    rng = random.Random(0)
    for at in [0, 1, 39, *(rng.randrange(40) for _ in range(5))]:
        iterator = data.train_iterator(any_task, seed=7)
        for _ in range(at):
            next(iterator)
        state = json.loads(json.dumps(iterator.get_state()))
        next(iterator)  # what is prefetched after the state does not matter
        iterator.close()
        resumed = data.train_iterator(any_task, seed=7)
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert_same(list(itertools.islice(resumed, 40 - at)), batches[at:])
        resumed.close()


def test_an_iterator_can_be_set_back_while_it_runs(any_task):
    iterator = data.train_iterator(any_task, seed=7)
    state = iterator.get_state()
    first = list(itertools.islice(iterator, 5))
    iterator.set_state(state)
    assert_same(list(itertools.islice(iterator, 5)), first)
    iterator.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers, mixture):
    expected = take(mixture, 12, start=3)
    mixture.workers = workers
    assert_same(take(mixture, 12, start=3), expected)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_global_batches(processes, any_task):
    expected = take(any_task, 9, start=4)
    hosts = [
        take(any_task, 9, start=4, process_index=i, process_count=processes)
        for i in range(processes)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*hosts, strict=True)
    ]
    assert_same(joined, expected)


def test_an_epoch_holds_every_window_once_and_the_next_is_in_another_order(use, corpus):
    config = use(f"files:{corpus}")
    config.batch_size = 1
    count = len(data.text.train_windows(config)[0][0])
    rows = [batch["inputs"].tobytes() for batch in take(config, 2 * count)]
    expected = sorted(w["inputs"].tobytes() for w in data.text.train_windows(config)[0][0])
    assert sorted(rows[:count]) == sorted(rows[count:]) == expected
    assert rows[:count] != rows[count:]
    assert rows[:count] != [w["inputs"].tobytes() for w in data.text.train_windows(config)[0][0]]


def test_another_seed_is_another_order(mixture):
    first = next(data.train_iterator(mixture, seed=0))["inputs"]
    other = next(data.train_iterator(mixture, seed=1))["inputs"]
    assert (first != other).any()


def capitals(batches) -> float:
    rows = np.concatenate([batch["targets"] for batch in batches])
    return float(np.mean([(row >= 97).sum() == 0 for row in rows]))


def test_sources_are_mixed_by_weight(mixture):
    assert capitals(take(mixture, 100)) == pytest.approx(0.25, abs=0.01)
    mixture.weights = (1.0, 9.0)
    assert capitals(take(mixture, 100)) == pytest.approx(0.9, abs=0.01)


def test_without_weights_every_window_is_equally_likely(mixture):
    mixture.weights = ()
    sizes = [len(part) for part in data.text.train_windows(mixture)[0]]
    assert capitals(take(mixture, 100)) == pytest.approx(sizes[1] / sum(sizes), abs=0.02)


def test_the_targets_are_the_inputs_one_later(mixture):
    for batch in take(mixture, 3):
        assert batch["inputs"].shape == batch["weights"].shape == (4, 16)
        assert batch["inputs"].dtype == batch["targets"].dtype == np.int32
        assert batch["weights"].dtype == np.float32
        np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
        assert (batch["weights"] == 1).all()
