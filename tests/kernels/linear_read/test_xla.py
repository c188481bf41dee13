"""The tiles of XLA's form."""

import jax
import pytest

from mc_jax.kernels.linear_read import xla
from tests.kernels.reads import assert_close


@pytest.mark.parametrize(
    "tokens, width, longest",
    [(128, 8, 16), (127, 8, None), (128, 7, None)],
    ids=["long and wide", "short", "narrow"],
)
def test_long_sequences_of_wide_matrices_have_long_tiles(tokens, width, longest, monkeypatch):
    keys = jax.random.split(jax.random.key(0))
    q = jax.random.normal(keys[0], (width, tokens))
    weights = jax.random.normal(keys[1], (5, width, width))
    expected = xla.xla(q, weights, None, 20, 0, None)
    chosen = []

    def seen(*args):
        chosen.append(args[-1])
        return whole(*args)

    whole = xla.sum_over_memories
    monkeypatch.setattr(xla, "sum_over_memories", seen)
    monkeypatch.setattr(xla, "SHARED_TILE", 16)
    monkeypatch.setattr(xla, "SHARED_WIDTH", 8)
    assert_close(xla.xla(q, weights, None, 20, 0, None), expected, 2e-5)
    assert chosen == [longest]
