"""Block sizes that are picked, and what a call is said to cost."""

import dataclasses

import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from mc_jax.kernels.block_read.config import (
    Call,
    Config,
    default_config,
    flops,
    hbm_bytes,
    vmem_bytes,
)

CHIPS = (pltpu.ChipVersion.TPU_V5E, pltpu.ChipVersion.TPU_V5P, pltpu.ChipVersion.TPU_V6E)
# Four blocks of 256 tokens that read two of five matrices.
MATRICES = Call(4, 256, 2, 5, (128, 128), jnp.dtype(jnp.bfloat16))
NETWORKS = dataclasses.replace(MATRICES, shape=(128, 512), activation="gelu", layer_norm=True)


def picked(call: Call, version: pltpu.ChipVersion = CHIPS[0]) -> Config:
    config = default_config(call, pltpu.get_tpu_info_for_chip(version, 1))
    assert config is not None
    return config


@pytest.mark.parametrize("version", CHIPS)
@pytest.mark.parametrize("size", [128, 256, 384, 640, 1024])
@pytest.mark.parametrize("memories", [1, 64, 1024])
@pytest.mark.parametrize("head_dim", [32, 96, 128, 256])
@pytest.mark.parametrize("call", [MATRICES, NETWORKS], ids=["matrices", "networks"])
def test_blocks_suit_the_call_and_fit(version, size, memories, head_dim, call):
    shape = head_dim, head_dim if call.hidden is None else 4 * head_dim
    call = dataclasses.replace(call, size=size, memories=memories, shape=shape, blocks=7)
    config = picked(call, version)
    config.check(call)
    chip = pltpu.get_tpu_info_for_chip(version, 1)
    assert vmem_bytes(call, config) < 0.8 * chip.vmem_capacity_bytes
    assert config.narrow == (version is pltpu.ChipVersion.TPU_V6E)
    # As many memories as fit are there at a time.
    assert config.resident == memories or config.resident >= config.resident_backward
    one_more = dataclasses.replace(config, resident_backward=config.resident_backward + 1)
    if config.resident_backward < memories:
        assert vmem_bytes(call, one_more) > 0.6 * chip.vmem_capacity_bytes


def test_a_block_is_read_in_the_largest_parts_and_steps_have_several():
    assert dataclasses.astuple(picked(MATRICES))[:4] == (256, 4, 5, 5)
    odd = dataclasses.replace(MATRICES, size=384, blocks=7)
    assert dataclasses.astuple(picked(odd))[:2] == (384, 1)
    assert picked(dataclasses.replace(MATRICES, size=1024)).part == 512


def test_no_blocks_for_sizes_that_lanes_do_not_divide():
    call = dataclasses.replace(MATRICES, size=96)
    assert default_config(call, pltpu.get_tpu_info_for_chip(CHIPS[0], 1)) is None


def test_costs_by_hand():
    """1,024 tokens read two memories: a matrix is 128^2, an MLP two of 128 x 512."""
    matrix, network = 2 * 128 * 128, 2 * 128 * 512
    assert flops(MATRICES) == 1024 * 2 * matrix
    assert flops(MATRICES, backward=True) == 2 * flops(MATRICES)
    assert flops(NETWORKS) == 1024 * 2 * 2 * network
    assert flops(NETWORKS, backward=True) == 3 * flops(NETWORKS)
    unnormed = dataclasses.replace(NETWORKS, layer_norm=False)
    assert flops(unnormed, backward=True) == 2.5 * flops(NETWORKS)
    # Inputs and matrices in bfloat16, outputs and gates in float32.
    tokens = 1024 * 128
    assert hbm_bytes(MATRICES) == tokens * (2 + 4) + 4 * 2 * 1024 + 5 * 2 * 128 * 128
    back = tokens * (2 * 2 + 4) + 2 * 4 * 2 * 1024 + 2 * 5 * 2 * 128 * 128
    assert hbm_bytes(MATRICES, backward=True) == back
