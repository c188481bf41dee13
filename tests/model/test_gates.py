"""The ranges of an update rule's gates: at the start, and whatever is learned."""

import jax
import numpy as np
import pytest

from mc_jax.memory import DLAGates, LinearGates, SWLAGates, TitansGates
from mc_jax.model import MemoryConfig
from mc_jax.model.gates import RuleGates

from . import tiny

SEGMENT, CHUNK = 256, 64
RULES = [
    ("linear", dict(decay="on"), LinearGates),
    ("swla", dict(window=2), SWLAGates),
    ("swla", dict(window=4), SWLAGates),
    ("dla", {}, DLAGates),
    ("titans", {}, TitansGates),
]


def make(rule, options, noise):
    config = MemoryConfig(rule=rule, segment_len=SEGMENT, chunk_len=CHUNK, **options)
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    layer = RuleGates(config, 3)
    params = jax.tree.map(np.asarray, tiny.quick_jit(layer.init)(jax.random.key(0), x))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + noise * rng.normal(size=p.shape).astype(p.dtype), params)
    return tiny.quick_jit(layer.apply)(params, x)


@pytest.mark.parametrize(("rule", "options", "kind"), RULES)
def test_at_the_start(rule, options, kind):
    gates = make(rule, options, 0.0)
    assert type(gates) is kind
    assert all(gate.shape[:3] == (2, 5, 3) and gate.dtype == np.float32 for gate in gates)
    assert (gates.alpha >= 1 - 1 / (4 * SEGMENT)).all() and (gates.alpha < 1).all()
    if rule == "swla":
        assert gates.beta.shape[3:] == (options["window"] - 1,)
        assert (gates.lam > 0.9).all()
        np.testing.assert_allclose(gates.beta, 0.5)
    if rule == "dla":
        np.testing.assert_allclose(gates.eta, 0.05)
    if rule == "titans":
        np.testing.assert_allclose(gates.beta, 0.5)
        np.testing.assert_allclose(gates.eta, 0.25 / CHUNK)


@pytest.mark.parametrize(("rule", "options", "kind"), RULES)
def test_whatever_is_learned(rule, options, kind):
    gates = make(rule, options, 3.0)._asdict()
    eta = gates.pop("eta", None)
    for gate in gates.values():
        assert (gate > 0).all() and (gate <= 1).all() and np.ptp(gate) > 0.1
    if rule == "dla":
        assert (eta >= 0).all() and (eta <= 0.1).all() and np.ptp(eta) > 0.01
    if rule == "titans":
        # The bound under which the inner descent stays finite, token by token.
        assert (eta >= 0).all() and (eta * CHUNK <= 1 - gates["beta"]).all() and np.ptp(eta) > 0


def test_no_decay():
    assert make("linear", {}, 0.0) is None
    assert make("dla", dict(decay="off"), 0.0).alpha is None


def test_a_window_of_one_has_no_weights_for_earlier_tokens():
    assert make("swla", dict(window=1), 0.0).beta.shape == (2, 5, 3, 0)
