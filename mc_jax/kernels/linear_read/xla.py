"""The read of matrix memories in XLA: one after another, or each by the tokens that chose it."""

import jax.numpy as jnp

from mc_jax.kernels.causal_tiles import (
    TILES,
    seen_memories,
    starts_here,
    sum_over_memories,
)
from mc_jax.kernels.gates import Router, Scores, read_gates, visible_memories
from mc_jax.kernels.linear_read.one_matrix import pull_matrix, pull_rows, read_matrix, read_rows
from mc_jax.kernels.linear_read.small_matrices import read_small_matrices, worth_it
from mc_jax.kernels.selected_memories import RowRead, read_selected, worth_selecting
from mc_jax.typing import Array, Float, Int

# Tokens of a tile on a CPU where there are many: XLA shares a product among the cores from about
# 2**23 multiplications, which are 2,048 tokens of a matrix 64 wide, however many heads it has.
SHARED_TILE, SHARED_WIDTH = 2048, 64
# Runs of tokens for whose small matrices gates are computed: those that the run's last token sees.
RUNS = 4
ROWS = RowRead(read_rows, pull_rows)


def xla(
    q: Float[Array, "in tokens"],
    weights: Float[Array, "memories out in"],
    router: Router | Scores | None,
    segment_len: int,
    first_segment: Int[Array, ""] | int,
    top_k: int | None,
) -> tuple[Float[Array, "out tokens"], Float[Array, " tokens"]]:
    """See `linear_read`."""
    tokens = q.shape[1]
    seen, on_average = seen_memories(weights.shape[0], tokens, segment_len, first_segment)
    if router is not None and worth_selecting(top_k, on_average, tokens):
        y, own = read_selected(ROWS, weights, router, q, segment_len, first_segment, top_k)
        return y.astype(q.dtype), own
    if starts_here(first_segment) and worth_it(seen, weights.shape[1:], q.dtype):
        return _read_in_runs(q, weights[:seen], router, segment_len, top_k)
    visible = visible_memories(weights.shape[0], tokens, segment_len, first_segment)
    own, gate = read_gates(router, visible, top_k, q.dtype)
    if not seen:
        return jnp.zeros((weights.shape[1], tokens), q.dtype), own
    shared = tokens >= TILES * SHARED_TILE and min(weights.shape[1:]) >= SHARED_WIDTH
    longest = SHARED_TILE if shared else None
    facts = segment_len, first_segment, pull_matrix, longest
    y = sum_over_memories(read_matrix, weights[:seen], gate[:seen], q, *facts)
    return y.astype(q.dtype), own


def _read_in_runs(
    q: Float[Array, "in tokens"],
    weights: Float[Array, "memories out in"],
    router: Router | Scores | None,
    segment_len: int,
    top_k: int | None,
) -> tuple[Float[Array, "out tokens"], Float[Array, " tokens"]]:
    """The read of a sequence that starts here, of small matrices.

    Beside the products of these, gates take a good part of the time, half of them for memories that
    come after a token.
    """
    memories, tokens = weights.shape[0], q.shape[1]
    # The first one, too, sees a memory.
    run = segment_len * max(2, -(-tokens // (RUNS * segment_len)))
    reads = []
    for first in range(0, tokens, run):
        part = slice(first, min(first + run, tokens))
        ahead, seen = first // segment_len, min(memories, (part.stop - 1) // segment_len)
        visible = visible_memories(seen, part.stop - first, segment_len, ahead)
        of_part = None if router is None else router.cut(part, seen)
        own, gate = read_gates(of_part, visible, top_k, q.dtype)
        y = read_small_matrices(weights[:seen], gate, q[:, part], segment_len, ahead)
        reads.append((y, own))
    ys, owns = zip(*reads, strict=True)
    return jnp.concatenate(ys, 1), jnp.concatenate(owns)
