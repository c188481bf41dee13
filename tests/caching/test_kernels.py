"""The core on Pallas kernels, step by step on the CPU, is the core on XLA."""

import jax
import jax.numpy as jnp
import pytest

from mc_jax import InputError
from tests.caching.cases import Case, call, cast, cut, make_inputs
from tests.compiling import quick_jit
from tests.kernels.reads import assert_close
from tests.kernels.tpu import compile_for, needs_libtpu
from tests.rare import param

LENGTH, DIM = 100, 16
CASES = [
    Case("linear", "grm", segment_len=12),
    Case("linear", "residual", gate="none", segment_len=12),
    Case("linear", "ssc", gate="shared_query", write_mode="checkpoint", segment_len=12),
    Case("swla", "soup", segment_len=12),
    Case("linear", "grm", gate="none", segment_len=12),
    Case("linear", "none", gate="none"),
    Case("swla", "none", gate="none", write_mode="checkpoint"),
    Case("swla", "grm", segment_len=16, chunk_len=16),
    Case("linear", "grm", segment_len=32, chunk_len=16),
    Case("linear", "soup", segment_len=16, chunk_len=8, write_mode="checkpoint"),
    # Buckets merge by the retention of what the kernel wrote.
    Case("linear", "grm", "logarithmic", segment_len=16, chunk_len=16),
    Case(
        "linear", "residual", "logarithmic", "checkpoint", gate="none", segment_len=16, chunk_len=16
    ),
    Case("linear", "grm", "logarithmic", segment_len=128, chunk_len=16),
    Case(
        "linear",
        "residual",
        "logarithmic",
        "checkpoint",
        gate="none",
        segment_len=128,
        chunk_len=16,
    ),
    Case("dla", "soup", "logarithmic", segment_len=128, chunk_len=64),
    Case("titans", "none", gate="none", chunk_len=16),
    Case("dla", "none", gate="none", chunk_len=16),
    Case("titans", "ssc", segment_len=32, chunk_len=16, mem_norm="none"),
    Case("dla", "grm", write_mode="checkpoint", segment_len=32, chunk_len=16),
    Case("linear", "ssc", segment_len=256, chunk_len=64, route_every=128),
    Case("titans", "ssc", segment_len=128, chunk_len=64, route_every=128),
    Case("dla", "soup", segment_len=32, chunk_len=16),
]


def inputs_of(case):
    # Four segments, of which the last reads buckets of two levels.
    length = max(LENGTH, 3 * case.segment_len + 20)
    return cast(make_inputs(case, length, dim=DIM, hidden=2 * DIM), jnp.float32)


@pytest.mark.parametrize(
    "case", [param(case, rare=case == CASES[-1], id=str(case)) for case in CASES]
)
def test_outputs_cache_and_gradients(case):
    def run(implementation):
        def outputs(inputs):
            y, cache = call(case, inputs, implementation=implementation)
            return y, cache.memories, cache.state

        @quick_jit
        def both(inputs):
            y, back = jax.vjp(outputs, inputs)
            return y, back(jax.tree.map(jnp.cos, y))

        return both(inputs_of(case))

    # The norm of an MLP's outputs magnifies rounding; XLA's own error against float64 is 1e-4.
    tolerance = 3e-5 if case.rule in ("linear", "swla") else 3e-4
    assert_close(run("pallas_interpret"), run("xla"), tolerance)


@pytest.mark.parametrize(
    "case",
    [
        Case("linear", "ssc", segment_len=12),
        Case("linear", "grm", segment_len=16, chunk_len=16),
        Case("linear", "none", gate="none"),
        Case("swla", "grm", segment_len=16, chunk_len=16),
        Case("titans", "grm", segment_len=32, chunk_len=16, mem_norm="none"),
    ],
    ids=str,
)
def test_a_sequence_goes_on_from_its_cache(case):
    """In the middle of a segment and of a chunk."""
    inputs = inputs_of(case)
    whole, _ = call(case, inputs, implementation="xla")
    kernel = {"implementation": "pallas_interpret"}
    y, cache = call(case, cut(inputs, case, 0, 41), **kernel)
    rest, _ = call(case, cut(inputs, case, 41, inputs["q"].shape[1]), initial_cache=cache, **kernel)
    assert_close(jnp.concatenate([y, rest], 1), whole, 3e-5)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case("titans", "none", gate="none", mem_norm="weight_l2", chunk_len=16), "weight_l2"),
        (Case("dla", "grm"), "multiple of 16, not 3"),
        (Case("linear", "grm", "logarithmic"), "logarithmic"),
        (Case("linear", "grm", gate="position"), "position"),
        (Case("linear", "ssc", route_every=3), "multiple of 128 tokens, not 3"),
    ],
    ids=str,
)
def test_a_named_kernel_runs_or_says_why_not(case, reason):
    with pytest.raises(InputError, match=reason):
        call(case, inputs_of(case), implementation="pallas_interpret")


def test_without_a_tpu_the_kernels_are_refused():
    with pytest.raises(InputError, match="run on a TPU or a GPU"):
        call(CASES[0], inputs_of(CASES[0]), implementation="pallas")


@needs_libtpu
@pytest.mark.parametrize("chip", ["v5e", param("tpu7x", rare=True)])
@pytest.mark.parametrize(
    ("case", "kernels"),
    [
        (
            Case("linear", "grm", segment_len=64, chunk_len=32),
            ["linear_write_backward", "linear_read_backward"],
        ),
        (
            Case("linear", "grm", "logarithmic", segment_len=128, chunk_len=32),
            ["linear_write_backward", "level_read_backward"],
        ),
        (
            Case("titans", "grm", segment_len=64, chunk_len=32),
            ["deep_write_backward", "deep_read_backward"],
        ),
        (
            Case("titans", "ssc", segment_len=128, chunk_len=32, route_every=128),
            ["deep_write_backward", "block_read_backward"],
        ),
    ],
    ids=str,
)
def test_on_a_tpu_kernels_are_the_default(case, kernels, chip):
    inputs = cast(make_inputs(case, 512, dim=128, hidden=256), jnp.float32)
    inputs |= {name: inputs[name].astype(jnp.bfloat16) for name in ("q", "k", "v", "u")}

    def loss(inputs):
        return jnp.sum(call(case, inputs)[0].astype(jnp.float32))

    program = compile_for(chip, jax.grad(loss), inputs).as_text()
    assert not [name for name in kernels if name not in program]
