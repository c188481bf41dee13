"""What a model costs: parameters, and floating-point operations of the forward pass.

A multiply-add counts 2; only products with weights, states and keys are counted. Memories are
counted as their equations are written, token by token: the chunk-parallel form does more work
inside a chunk to do it in large matmuls, and that is the implementation's to answer for.
"""

import math

import jax
import jax.numpy as jnp

from mc_jax.model.config import MemoryConfig, ModelConfig
from mc_jax.model.lm import LanguageModel


def param_count(config: ModelConfig) -> int:
    """All parameters, embeddings included (a tied table once), from shapes alone."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    variables = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), tokens)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def flops_per_token(config: ModelConfig, length: int) -> float:
    """Forward FLOPs per token of sequences of `length` tokens, averaged over the sequence.

    Args:
      config: the model.
      length: tokens of a sequence; a token pays for what lies before it only.
    """
    feed_forward = 2 * 3 * config.dim * config.mlp_dim
    mixers = {
        "memory": lambda: _memory_layer(config, length),
        "attention": lambda: _attention(config, length, length),
        "sliding": lambda: _attention(config, length, config.attention.window),
    }
    group = sum(mixers[mixer]() + feed_forward for mixer in config.pattern)
    head = 2 * config.dim * config.vocab_size
    return config.num_layers / len(config.pattern) * group + head


def _attention(config: ModelConfig, length: int, window: int) -> float:
    """Projections q, k, v and out; scores and their sum over the keys that a token sees."""
    window = min(window, length)
    # Mean over t of min(t + 1, window).
    keys = window - window * (window - 1) / (2 * length)
    return 2 * 4 * config.dim**2 + 2 * 2 * config.dim * keys


def _memory_layer(config: ModelConfig, length: int) -> float:
    """Projections q, k, v, gate and out, convolution, router, writes and reads."""
    memory, heads, width = config.memory, config.num_heads, config.head_dim
    read = 2 * _memory_weights(memory, width)
    scored, visible, rewritten = _visits(memory, length)
    cost: float = 2 * 5 * config.dim**2 + 2 * 3 * config.dim * memory.conv_width
    cost += heads * (1 + rewritten) * _write(memory, width)
    cost += heads * (1 + visible) * read
    if memory.aggregation != "none":
        cost += heads * visible * 2 * width  # the sum of the reads
    if memory.options.gated and memory.gate == "context":
        cost += 2 * config.dim**2
    if memory.options.gated and memory.gate == "position":
        cost += 2 * config.dim * heads * memory.position_slots
    if memory.options.routed:
        cost += heads * (1 + scored) * 2 * width
    return cost


def _memory_weights(memory: MemoryConfig, width: int) -> int:
    """Fast weights of one head."""
    return 2 * memory.expansion * width**2 if memory.deep else width**2


def _write(memory: MemoryConfig, width: int) -> int:
    """FLOPs with which one head writes one token."""
    weights = _memory_weights(memory, width)
    if not memory.deep:
        return 2 * weights * (memory.window if memory.rule == "swla" else 1)
    # Forward through both maps, back through the outer one, an outer product for each.
    return 2 * weights + weights + 2 * weights


def _visits(memory: MemoryConfig, length: int) -> tuple[float, float, float]:
    """Means over a sequence's tokens.

    Returns:
      Cached memories that a token scores, those that it reads, and how often it is written again
      into the memory of a longer segment.
    """
    if memory.aggregation == "none":
        return 0.0, 0.0, 0.0
    logarithmic = memory.segmentation == "logarithmic"
    completed = length // memory.segment_len
    scored = read = 0
    for segment in range(completed + 1):
        tokens = min(memory.segment_len, length - segment * memory.segment_len)
        seen = segment.bit_count() if logarithmic else segment
        reads = min(seen, memory.top_k) if memory.aggregation == "ssc" else seen
        read += tokens * reads
        # The first token of a block scores all, the others what it has selected.
        leaders = -(-tokens // memory.route_every)
        scored += leaders * seen + (tokens - leaders) * reads
    rewritten = 0
    if logarithmic and memory.deep and memory.write_mode == "independent":
        for level in range(1, completed.bit_length()):
            rewritten += (completed >> level << level) * memory.segment_len
    return scored / length, read / length, rewritten / length
