"""What kernels are asked for: the facts of the reads and writes of fresh sequences."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from mc_jax.caching.options import Options
from mc_jax.caching.segments import capacity_for
from mc_jax.caching.write import write_dtype
from mc_jax.kernels import block_read, deep_read, deep_write, linear_read, linear_write
from mc_jax.kernels.linear_write.config import MOST_TOKENS
from mc_jax.kernels.tiles import round_up
from mc_jax.memory.deep import DeepRule, TitansGates
from mc_jax.memory.network import accumulator
from mc_jax.memory.rule import Rule


class Sizes(NamedTuple):
    """What the arrays of fresh sequences are like.

    Attributes:
      heads: of all sequences.
      length: tokens of a sequence.
      head_dim: width of a head.
      hidden: hidden width of an MLP memory; None for a matrix.
      dtype: type of queries, keys and values.
    """

    heads: int
    length: int
    head_dim: int
    hidden: int | None
    dtype: jnp.dtype

    def memories(self, options: Options) -> int:
        """Those that the last token may read, or levels of them; at least 1."""
        found = capacity_for(self.length - 1, options.segment_len, options.segmentation)
        return max(found, 1)

    def matrices(self) -> list[tuple[int, int]]:
        """Shapes of a memory's matrices, (out, in)."""
        if self.hidden is None:
            return [(self.head_dim, self.head_dim)]
        return [(self.hidden, self.head_dim), (self.head_dim, self.hidden)]


def _read_facts(options: Options, sizes: Sizes) -> dict[str, Any]:
    """What reads of matrices and of MLPs have in common."""
    return {
        "tokens": sizes.length,
        "length": sizes.length,
        "memories": sizes.memories(options),
        "head_dim": sizes.head_dim,
        "segment_len": options.segment_len,
        "top_k": options.selected,
        "routed": options.gated,
        "dtype": jnp.dtype(sizes.dtype),
    }


def linear_read_calls(options: Options, sizes: Sizes) -> list[linear_read.Call]:
    """Facts of one head's reads of each of a memory's matrices, by a fresh sequence."""
    facts = _read_facts(options, sizes)
    return [linear_read.Call(**facts, out=out, width=width) for out, width in sizes.matrices()]


def deep_read_call(options: Options, rule: Rule, sizes: Sizes) -> deep_read.Call:
    """Facts of one head's read of MLP memories, by a fresh sequence."""
    assert isinstance(rule, DeepRule)
    return deep_read.Call(
        **_read_facts(options, sizes),
        hidden=sizes.hidden,
        activation=rule.network.activation,
        layer_norm=rule.network.mem_norm == "layer",
    )


def block_read_call(options: Options, rule: Rule, sizes: Sizes) -> block_read.Call:
    """Facts of one head's read of the memories that blocks of a fresh sequence select."""
    memories = sizes.memories(options)
    blocks = round_up(sizes.length, options.segment_len) // options.route_every
    # Of an MLP the second matrix says both widths.
    shape, network = sizes.matrices()[-1], rule.network if isinstance(rule, DeepRule) else None
    reads = min(options.top_k, memories)
    facts = options.route_every, shape, sizes.dtype, network, reads
    return block_read.call_of(*facts, blocks, memories)


def deep_write_call(options: Options, rule: Rule, sizes: Sizes) -> deep_write.Call:
    """Facts of the write of fresh sequences into MLP memories."""
    assert isinstance(rule, DeepRule)
    return deep_write.Call(
        heads=sizes.heads,
        length=sizes.length,
        head_dim=sizes.head_dim,
        hidden=sizes.hidden,
        segment_len=written_segment(options, sizes.length, options.chunk_len),
        chunk_len=options.chunk_len,
        independent=options.resets,
        titans=rule.gates_type is TitansGates,
        activation=rule.network.activation,
        layer_norm=rule.network.mem_norm == "layer",
        dtype=jnp.dtype(write_dtype(options, rule, sizes.dtype)),
        ends_dtype=accumulator(sizes.dtype),
    )


def linear_write_call(options: Options, sizes: Sizes) -> linear_write.Call:
    """Facts of the write of fresh sequences into matrix memories."""
    segment_len = written_segment(options, sizes.length, MOST_TOKENS)
    facts = sizes.heads, sizes.length, sizes.head_dim, segment_len, options.resets
    return linear_write.Call(*facts, jnp.dtype(sizes.dtype))


def written_segment(options: Options, length: int, chunk_len: int) -> int:
    """Tokens between two ends that a write gives; without caching one, which nobody reads."""
    return options.segment_len if options.caches else round_up(length, chunk_len)
