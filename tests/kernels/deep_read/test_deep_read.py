"""The kernels that read MLP memories against the reference, outputs and all gradients."""

import dataclasses

import jax.numpy as jnp
import pytest

from mc_jax.kernels.deep_read import Config
from tests.kernels.deep_read.cases import (
    SMALL,
    Case,
    assert_equals_the_reference,
)
from tests.rare import named

# Tokens gathered for each memory, as far as they are few.
COLUMNS = dataclasses.replace(SMALL, tokens=512, slots=128, slots_backward=128)
CASES = {
    "grm": Case(),
    "grm without a norm": Case(mem_norm="none"),
    "residual": Case(routed=False),
    "residual without a norm": Case(routed=False, mem_norm="weight_l2"),
    "ssc of one": Case(top_k=1),
    "ssc": Case(top_k=3, mem_norm="none"),
    "ssc of more than there are": Case(top_k=20),
    "chosen blocks": Case(config=None),
    "one part to a block": Case(config=Config(128, 128, 9, 8, 1)),
    "many parts of blocks": Case(
        *(16, 700, 20, 30), hidden=24, first_segment=3, config=Config(512, 128, 8, 16, 1)
    ),
    "all resident, then stacks": Case(config=Config(256, 256, 9, 8, 4)),
    "stacks, then all resident": Case(config=Config(384, 128, 8, 9, 2), segment_len=20),
    "by columns": Case(
        tokens=400, memories=20, segment_len=20, top_k=2, hidden=256, config=COLUMNS
    ),
    "by columns, some twice": Case(
        tokens=700,
        memories=20,
        segment_len=40,
        top_k=3,
        hidden=1024,
        mem_norm="none",
        config=COLUMNS,
    ),
    "by columns, several products of some": Case(
        *(16, 1024, 6, 192), top_k=1, hidden=512, mem_norm="none", config=COLUMNS
    ),
    "by columns, bfloat16": Case(
        tokens=700,
        memories=20,
        segment_len=40,
        top_k=2,
        hidden=320,
        dtype=jnp.bfloat16,
        config=COLUMNS,
    ),
    "one memory": Case(tokens=50, memories=1),
    "nothing cached in sight": Case(tokens=20, memories=3),
    "odd lengths": Case(tokens=101, memories=14, segment_len=7, top_k=2),
    "many memories": Case(
        *(16, 262, 130, 2), top_k=5, mem_norm="none", hidden=24, config=Config(256, 128, 64, 32, 2)
    ),
    "many memories, all read": Case(
        *(16, 262, 130, 2), mem_norm="none", hidden=24, config=Config(256, 128, 64, 32, 2)
    ),
    "segments past the last memory": Case(tokens=300, memories=5),
    "later part of a sequence": Case(tokens=100, memories=20, first_segment=17, top_k=4),
    "narrow hidden layer": Case(hidden=40, mem_norm="none"),
    "head of 64": Case(head_dim=64, tokens=150, memories=4),
    "head of 96": Case(head_dim=96, tokens=150, memories=4, mem_norm="none"),
    "head of 128": Case(head_dim=128, tokens=150, memories=4, top_k=2),
    "head of 256": Case(head_dim=256, tokens=70, memories=3, mem_norm="none"),
    "gelu by tanh": Case(activation="gelu_tanh", mem_norm="none"),
    "silu": Case(activation="silu", mem_norm="none"),
    "relu": Case(activation="relu", mem_norm="none"),
    "bfloat16": Case(dtype=jnp.bfloat16),
    "bfloat16 without a norm": Case(dtype=jnp.bfloat16, mem_norm="none", head_dim=64),
    **{
        f"{activation} in bfloat16": Case(
            *(64, 200, 5),
            dtype=jnp.bfloat16,
            activation=activation,
            config=dataclasses.replace(SMALL, narrow=True),
        )
        for activation in ("gelu", "gelu_tanh", "silu", "relu")
    },
    "bfloat16 residual": Case(dtype=jnp.bfloat16, routed=False),
}


# A minute to compile, as linear_read's; activations by themselves are in test_activations.
RARE = ("many memories", "silu in bfloat16", "relu in bfloat16")


@pytest.mark.parametrize("case", named(CASES, RARE))
def test_equals_the_reference(case):
    assert_equals_the_reference(case, "pallas_interpret")
