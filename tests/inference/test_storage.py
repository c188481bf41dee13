"""Memories in other forms and places, and within a budget: what is read, kept and lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax import InputError
from mc_jax.inference import Storage, memories_lost, prefill
from mc_jax.inference.generation import Drawing, decode
from mc_jax.inference.sampling import Sampling
from mc_jax.inference.session import Session, load_session, save_session
from mc_jax.inference.storage import bytes_of_a_memory, make_keeper
from mc_jax.model.cache import memories_of
from tests.model import tiny

SSC = {"rule": "linear", "aggregation": "ssc"}
GREEDY = Drawing(20, Sampling(temperature=0), -1, 0)


def model(memory, **changes):
    config = tiny.config(memory=memory, **changes)
    return config, tiny.perturbed(config)


def budget_of(lm, memories, batch=2):
    return memories * bytes_of_a_memory(*lm, Storage(), batch, None)


def test_forms_and_places_go_on_as_they_are():
    """Through reading in pieces, decoding and growing; also where layers are scanned."""
    lm = model(SSC, num_layers=2, scan_layers=True)
    ids = tiny.tokens(2, 80)
    exact, _ = prefill(*lm, ids, piece=16)
    scale = float(jnp.abs(exact).max())
    for form, host, tolerance in (("bfloat16", True, 2e-2), ("int8", False, 6e-2)):
        storage = Storage(form=form, host=host)
        logits, cache = prefill(*lm, ids, storage=storage, piece=16)
        error = float(jnp.abs(logits - exact).max()) / scale
        assert 0 < error < tolerance
        for _, after in decode(*lm, logits, cache, GREEDY, storage):
            (memory,) = memories_of(lm[0], after)
            leaf = jax.tree.leaves(memory.memories)[0]
            assert str(leaf.dtype) == form
            assert leaf.sharding.memory_kind == ("pinned_host" if host else "device")
            assert memory.capacity >= 100 // 4


def test_the_oldest_are_dropped():
    """What goes on within a budget reads what a text without its beginning would."""
    # One layer without a convolution, which sees of the past what is in its memories.
    lm = model(SSC | {"conv_width": 1})
    ids, more = tiny.tokens(2, 80), tiny.tokens(2, 3, seed=1)
    storage = Storage(budget=budget_of(lm, 8))
    _, cache = prefill(*lm, ids, storage=storage)
    assert memories_lost(lm[0], cache) == 80 // 4 - 8
    (memory,) = memories_of(lm[0], cache)
    kept = jax.tree.leaves((memory.memories, memory.descriptors))
    assert sum(x.nbytes for x in kept) == storage.budget
    found, _ = prefill(*lm, more, cache)
    for beginning, same in ((80 - 8 * 4, True), (0, False)):
        expected, _ = prefill(*lm, more, prefill(*lm, ids[:, beginning:])[1])
        assert np.allclose(found, expected, 1e-4, 1e-5) == same


def test_sequences_of_different_lengths_lose_their_own():
    lm = model(SSC)
    storage = Storage(budget=budget_of(lm, 8))
    ids, lengths = tiny.tokens(2, 80), np.array([80, 42])
    logits, cache = prefill(*lm, ids, lengths=lengths, storage=storage)
    assert memories_lost(lm[0], cache).tolist() == [12, 3]
    alone, _ = prefill(*lm, ids[1:, :42], storage=Storage(budget=storage.budget // 2))
    np.testing.assert_allclose(np.asarray(logits[1]), np.asarray(alone[0]), 1e-4, 1e-5)


@pytest.mark.parametrize("mode", ["independent", "checkpoint"])
def test_neighbours_are_merged(mode):
    """Sums of matrices, read as the sum of both; of snapshots the later one."""
    lm = model({"rule": "linear", "aggregation": "residual", "write_mode": mode})
    ids = tiny.tokens(1, 32)
    _, cache = prefill(*lm, ids)
    keeper = make_keeper(*lm, Storage(budget=budget_of(lm, 8, 1), when_full="merge"), 1, cache)
    (before,) = memories_of(lm[0], cache)
    (after,) = memories_of(lm[0], keeper.ready(cache, 8, 40))
    weights, merged = (np.asarray(x.memories.weights.w)[0, 0] for x in (before, after))
    two = weights[:4:2] + weights[1:4:2] if mode == "independent" else weights[1:4:2]
    np.testing.assert_allclose(merged[:6], np.concatenate([two, weights[4:]]), 1e-6)
    assert not merged[6:].any()
    assert int(after.position) == 32 - 2 * 4
    if mode == "independent":
        more = tiny.tokens(1, 3, seed=1)
        expected, _ = prefill(*lm, more, prefill(*lm, ids)[1])
        cache = keeper.ready(prefill(*lm, ids)[1], 8, 40)
        np.testing.assert_allclose(prefill(*lm, more, cache)[0], expected, 1e-4, 1e-5)


def test_decoding_stays_within_the_budget(caplog):
    lm = model({"rule": "dla", "aggregation": "grm"})
    storage = Storage(budget=budget_of(lm, 4))
    logits, cache = prefill(*lm, tiny.tokens(2, 12), storage=storage)
    assert not caplog.records
    drawing = GREEDY._replace(max_tokens=60)
    for _, after in decode(*lm, logits, cache, drawing, storage):
        assert memories_of(lm[0], after)[0].capacity <= 4
    assert memories_lost(lm[0], after) == 72 // 4 - 4
    assert [record.message for record in caplog.records] == [
        "memory budget full after 12 tokens: old memories are dropped"
    ]


def test_a_cache_without_a_budget_is_cut_to_one():
    """One session goes on within less than it has."""
    lm = model(SSC)
    ids, more = tiny.tokens(2, 80), tiny.tokens(2, 3, seed=1)
    storage = Storage(budget=budget_of(lm, 8))
    _, cache = prefill(*lm, more, prefill(*lm, ids)[1], storage=storage)
    assert memories_of(lm[0], cache)[0].capacity == 8
    assert memories_lost(lm[0], cache) == 80 // 4 - 7


def test_a_session_keeps_its_form(tmp_path):
    lm = model(SSC)
    storage = Storage(form="int8", budget=budget_of(lm, 4))
    session = Session(*prefill(*lm, tiny.tokens(2, 40), storage=storage))
    save_session(tmp_path / "s", *lm, session)
    found = load_session(tmp_path / "s", *lm)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(session), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize(
    ("storage", "memory", "field", "allowed"),
    [
        ({"form": "int4"}, SSC, "storage.form", "bfloat16 | int8"),
        ({"when_full": "stop"}, SSC, "storage.when_full", "drop | merge"),
        ({"budget": 0}, SSC, "storage.budget", "at least 1"),
        ({"budget": 2.5}, SSC, "storage.budget", "at least 1"),
        ({"when_full": "merge"}, SSC, "storage.when_full", "with a budget only"),
        ({"budget": 100}, SSC, "storage.budget", "at least 1,280 bytes, 4 of 320 for each"),
        ({"host": True}, {"aggregation": "grm"}, "storage.host", "ssc with constant"),
        ({"form": "int8"}, {"aggregation": "none"}, "storage", "caches memories"),
        ({"budget": 9**9}, {"segmentation": "logarithmic"}, "storage.budget", "constant segments"),
        ({"budget": 9**9, "when_full": "merge"}, {"rule": "dla"}, "storage.when_full", "drop"),
        ({"budget": 9**9, "when_full": "merge"}, {"gate": "position"}, "storage.when_full", "drop"),
    ],
)
def test_what_cannot_be(storage, memory, field, allowed):
    lm = model({"rule": "linear", "aggregation": "ssc"} | memory)
    with pytest.raises(InputError) as error:
        prefill(*lm, tiny.tokens(2, 5), storage=Storage(**storage))
    assert error.value.field == field
    assert allowed in str(error.value)
