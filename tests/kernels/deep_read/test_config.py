"""Block sizes that are picked, and what a call is said to cost."""

import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from mc_jax.kernels.deep_read.config import (
    Call,
    Config,
    backward_cost,
    default_config,
    forward_cost,
    reads,
)

CHIPS = (pltpu.ChipVersion.TPU_V5E, pltpu.ChipVersion.TPU_V5P, pltpu.ChipVersion.TPU_V6E)


def call_with(**facts) -> Call:
    standard = {
        **{"tokens": 1024, "length": 1024, "memories": 4, "head_dim": 128, "hidden": 512},
        **{"segment_len": 256, "top_k": None, "routed": True, "activation": "gelu"},
        **{"layer_norm": True, "dtype": jnp.dtype(jnp.bfloat16)},
    }
    return Call(**standard | facts)


def picked(call: Call, chip: pltpu.TpuInfo) -> Config:
    config = default_config(call, chip)
    assert config is not None
    return config


@pytest.mark.parametrize("version", CHIPS)
@pytest.mark.parametrize("memories", [1, 9, 64, 300, 1024])
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("top_k", [None, 2])
def test_blocks_suit_the_call_and_fit(version, memories, head_dim, top_k):
    chip = pltpu.get_tpu_info_for_chip(version, 1)
    call = call_with(memories=memories, head_dim=head_dim, hidden=4 * head_dim, top_k=top_k)
    config = picked(call, chip)
    config.check(call)
    for cost in (forward_cost(call, config), backward_cost(call, config)):
        assert cost.vmem_bytes < 0.8 * chip.vmem_capacity_bytes
    assert config.narrow == (version is pltpu.ChipVersion.TPU_V6E)


def test_tokens_are_gathered_where_they_select_few_of_many_memories():
    chip = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5E, 1)
    slots = {}
    for memories in (8, 16, 32, 64):
        config = picked(call_with(memories=memories, top_k=4), chip)
        slots[memories] = config.slots, config.slots_backward
    assert slots == {8: (None, None), 16: (None, None), 32: (128, 128), 64: (128, 128)}


def test_reads_and_flops_by_hand():
    """Segments of 256 see 0, 1, 2 and 3 memories; a product takes 2 * 128 * 512 FLOPs."""
    call = call_with()
    config = picked(call, pltpu.get_tpu_info_for_chip(CHIPS[0], 1))
    assert reads(call) == 256 * 6
    assert forward_cost(call, config).flops == 256 * 6 * 2 * 131072
    assert backward_cost(call, config).flops == 256 * 6 * 6 * 131072
    without_norm = call_with(layer_norm=False)
    assert backward_cost(without_norm, config).flops == 256 * 6 * 5 * 131072
    assert reads(call_with(top_k=2)) == 256 * (1 + 2 + 2)
    assert reads(call_with(length=900)) == 256 * (1 + 2) + 132 * 3


def test_bytes_by_hand():
    """Forward: queries, router queries and features; the weights; the router's lines."""
    call = call_with()
    config = picked(call, pltpu.get_tpu_info_for_chip(CHIPS[0], 1))
    tokens, weights = 2 * 1024 * 128, 2 * 4 * 2 * 128 * 512
    lines = 2 * 4 * 1024 + 4 * 4 * 128
    assert forward_cost(call, config).hbm_bytes == 3 * tokens + weights + lines
    unrouted = call_with(routed=False)
    assert backward_cost(unrouted, config).hbm_bytes == 3 * tokens + 2 * weights
