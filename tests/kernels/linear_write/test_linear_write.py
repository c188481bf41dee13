"""The kernel and the XLA form against the reference, outputs and all gradients."""

import jax
import jax.numpy as jnp
import pytest

from mc_jax.device import this_chip
from mc_jax.errors import InputError
from mc_jax.kernels.linear_write import Call, Config, default_config, flops, linear_write
from mc_jax.memory.linear import LinearGates, SWLAGates, Writes
from mc_jax.memory.rule import State, get_rule
from tests.kernels.deep_write.cases import assert_close
from tests.kernels.linear_write.cases import Case, arguments, outputs_and_gradients
from tests.kernels.tpu import TOPOLOGIES, compile_for, needs_libtpu

CASES = [
    # A chunk a segment: nothing goes from chunk to chunk.
    (Case("independent", 32, 64, 150), 2e-5),
    (Case("independent", 64, 48, 48), 2e-5),
    (Case("independent", 256, 32, 7, heads=1), 2e-5),
    # Several chunks a segment, the last one with a single token.
    (Case("independent", 96, 64, 145, config=Config(1, 16)), 2e-5),
    (Case("checkpoint", 32, 64, 129, config=Config(2, 16)), 2e-5),
    # A segment longer than the sequence.
    (Case("checkpoint", 16, 512, 300), 2e-5),
    (Case("checkpoint", 128, 64, 150, heads=3), 2e-5),
    (Case("independent", 64, 64, 150, gates="extreme"), 2e-5),
    (Case("checkpoint", 64, 64, 150, gates="extreme"), 2e-5),
    (Case("checkpoint", 64, 64, 150, gates="all forget"), 2e-5),
    # A chunk of 256 that forgets all many times over, and then nearly nothing.
    (Case("checkpoint", 16, 256, 300, gates="extreme first"), 2e-5),
    (Case("independent", 32, 64, 150, window=1), 2e-5),
    (Case("checkpoint", 32, 64, 129, config=Config(2, 16), window=3, gates="extreme"), 2e-5),
    # The window reaches back before the sequence, and before its last segment.
    (Case("independent", 32, 32, 34, window=3), 2e-5),
    (Case("independent", 64, 64, 150, jnp.bfloat16, window=1), 1e-2),
    (Case("independent", 64, 64, 150, jnp.bfloat16, config=Config(1, 32)), 1e-2),
    (Case("checkpoint", 32, 128, 300, jnp.bfloat16), 1e-2),
]


@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
@pytest.mark.parametrize("case, tolerance", CASES, ids=str)
def test_outputs_and_all_gradients(case, tolerance, implementation):
    found = outputs_and_gradients(case, implementation)
    # In float32 the reference itself is off by more where retention underflows.
    exact = case.gates.startswith("extreme") and implementation == "pallas_interpret"
    assert_close(found, outputs_and_gradients(case, "reference", exact), tolerance)


@pytest.mark.parametrize("write_mode", ["independent", "checkpoint"])
@pytest.mark.parametrize("length", [64, 70])
@pytest.mark.parametrize("window", [0, 2])
def test_the_reference_is_the_rule_token_by_token(window, length, write_mode):
    case = Case(write_mode, 16, 32, length, heads=1, window=window)
    q, k, v, writes = arguments(case)
    log_alpha, scale = writes
    rule = get_rule("swla" if window else "linear")
    written = linear_write(
        q, k, v, writes, segment_len=32, write_mode=write_mode, implementation="reference"
    )
    initial = rule.initial_state(None, 16, window, jnp.float32)
    state, features, ends = initial, [], []
    for token in range(length):
        alpha = jnp.exp(log_alpha[0, token])
        gates = LinearGates(alpha)
        if window:
            gates = SWLAGates(alpha, scale[0, 1:, token], scale[0, 0, token])
        state = rule.step(None, state, k[0, token][:, None], v[0, token][:, None], gates)
        features.append(state.weights.w @ q[0, token])
        if token % 32 == 31 or token == length - 1:
            ends.append(State(state.weights, log_decay=state.log_decay))
        if token % 32 == 31 and write_mode == "independent":
            state = initial
    expected = jnp.stack(features), jax.tree.map(lambda *x: jnp.stack(x), *ends), state
    assert_close(jax.tree.map(lambda x: x[0], tuple(written)), expected, 2e-5)


def test_the_causal_half_is_what_counts():
    call = Call(2, 64, 32, 64, True, jnp.dtype(jnp.float32))
    config = default_config(call, this_chip())
    pairs = 64 * 65 // 2
    # Scores and values for each pair, and the state that is written.
    assert flops(call, config) == 2 * (2 * 2 * pairs * 32 + 2 * 64 * 32 * 32)


def neutral(heads, length):
    return Writes(jnp.zeros((heads, length)), jnp.ones((heads, 1, length)))


def write(length=32, head_dim=32, dtype=jnp.float32, **options):
    x = jnp.ones((4, length, head_dim), dtype)
    return linear_write(x, x, x, neutral(4, length), **{"segment_len": 32, **options})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"implementation": "pallas"}, "runs on a TPU"),
        ({"implementation": "pallas_interpret", "dtype": jnp.float16}, "float16"),
        ({"implementation": "pallas_interpret", "head_dim": 24}, "multiple of 16, not 24"),
        ({"implementation": "pallas_interpret", "segment_len": 24}, "not 24 tokens"),
        ({"implementation": "pallas_interpret", "config": Config(3, 16)}, "a divisor of 4"),
        ({"implementation": "pallas_interpret", "config": Config(1, 64)}, "a divisor of 32"),
        ({"implementation": "xla", "config": Config(1, 16)}, "xla has no blocks"),
        ({"implementation": "triton"}, "reference | xla | pallas"),
        ({"write_mode": "forever"}, "independent | checkpoint"),
        ({"segment_len": 0}, "at least 1"),
        ({"length": 0}, "at least one token"),
    ],
)
def test_refusals(options, reason):
    with pytest.raises(InputError) as error:
        write(**options)
    assert reason in str(error.value)


@pytest.mark.parametrize(("heads", "tokens"), [(0, 16), (1, 8), (1, 40)])
def test_steps_that_no_call_has(heads, tokens):
    with pytest.raises(InputError, match="config"):
        Config(heads, tokens)


def test_arrays_that_do_not_go_together():
    x = jnp.ones((2, 32, 16))
    with pytest.raises(InputError, match="log_alpha.shape"):
        linear_write(x, x, x, neutral(2, 31), segment_len=16)
    with pytest.raises(InputError, match="scale.shape"):
        writes = neutral(2, 32)._replace(scale=jnp.ones((2, 1, 31)))
        linear_write(x, x, x, writes, segment_len=16)
    with pytest.raises(InputError, match="v.shape"):
        linear_write(x, x, x[:, :31], neutral(2, 32), segment_len=16)


@needs_libtpu
@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize(
    "case",
    [
        Case("independent", 128, 256, 1024, jnp.bfloat16, heads=4),
        Case("checkpoint", 64, 96, 250),
        Case("independent", 16, 16, 40),
        Case("independent", 256, 512, 1024, jnp.bfloat16, heads=1, window=1),
    ],
    ids=str,
)
def test_forward_and_backward_compile(chip, case):
    def gradient(*args):
        def run(*args):
            return linear_write(
                *args,
                segment_len=case.segment_len,
                write_mode=case.write_mode,
                implementation="pallas",
            )

        written, pull = jax.vjp(run, *args)
        return pull(written)

    text = compile_for(chip, gradient, *arguments(case)).as_text()
    assert "linear_write_forward" in text and "linear_write_backward" in text
