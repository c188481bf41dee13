"""One chunk of the write and of the online read, on values that lie in VMEM.

A few heads go side by side, step for step, and hide each other's latencies. Tokens are rows. Both
weight matrices lie as [head_dim, hidden], `w2` transposed: what has to be turned around for a
product is then [chunk, head_dim], never [chunk, hidden]. The equations are those of
`mc_jax.memory.chunk`; the gradient of a chunk is `jax.vjp` of `chunk_step`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.kernels.activations import value_and_slope
from mc_jax.kernels.deep_write.products import dot, outer_sum
from mc_jax.memory.network import NORM_EPS
from mc_jax.typing import Array, Float


class Memory(NamedTuple):
    """Both linear maps of an MLP memory, or their momentum."""

    w1: Float[Array, "heads head_dim hidden"]
    w2: Float[Array, "heads head_dim hidden"]


class ChunkState(NamedTuple):
    """What goes from chunk to chunk; momentum is None for DLA."""

    weights: Memory
    momentum: Memory | None


class Affine(NamedTuple):
    """Affine of the memory norm; None stands for a memory without a norm."""

    scale: Float[Array, "heads 1 head_dim"]
    bias: Float[Array, "heads 1 head_dim"]


class Tokens(NamedTuple):
    """A chunk's tokens, float32.

    Attributes:
      q: queries.
      k: keys.
      v: values.
      gates: the sums of log_alpha up to each token, eta and, for Titans, the sums of log_beta and
        applied.
    """

    q: Float[Array, "heads chunk head_dim"]
    k: Float[Array, "heads chunk head_dim"]
    v: Float[Array, "heads chunk head_dim"]
    gates: Float[Array, "heads gates chunk"]


class Network(NamedTuple):
    """Static facts of the memory: its activation, and the type that products run in."""

    activation: str
    dtype: jnp.dtype


class Coefficients(NamedTuple):
    """What the gates make of a chunk's start and gradients at token t, as in `memory.chunk`.

    Attributes:
      weights: A(t).
      grads: G(t, i) at [t, i].
      momentum: c(t); None for DLA, as the rest.
      momentum_kept: weight of S_0 in the last S.
      momentum_grads: minus the weights of the gradients in the last S.
    """

    weights: Float[Array, "heads chunk 1"]
    grads: Float[Array, "heads chunk chunk"]
    momentum: Float[Array, "heads chunk 1"] | None = None
    momentum_kept: Float[Array, "heads 1 1"] | None = None
    momentum_grads: Float[Array, "heads 1 chunk"] | None = None


class Factors(NamedTuple):
    """Inner gradients of a chunk's tokens: `delta hiddenᵀ` for w1, `k errorᵀ` for w2."""

    delta: Float[Array, "heads chunk head_dim"]
    hidden: Float[Array, "heads chunk hidden"]
    error: Float[Array, "heads chunk hidden"]


class KeyProducts(NamedTuple):
    """Products with the weights of a chunk's start that the inner gradients take.

    Attributes:
      inputs: `w2 k`.
      outputs: `w1 hidden`; None where the loss needs none.
      back: `w1ᵀ delta`.
    """

    inputs: Float[Array, "heads chunk hidden"]
    outputs: Float[Array, "heads chunk head_dim"] | None
    back: Float[Array, "heads chunk hidden"]


def chunk_step(
    network: Network,
    affine: Affine | None,
    state: ChunkState,
    tokens: Tokens,
    known: KeyProducts | None = None,
) -> tuple[Array, ChunkState]:
    """Features of the online memory [heads, chunk, head_dim] and the state after the chunk.

    Args:
      network: the memory.
      affine: of its norm.
      state: at the start of the chunk.
      tokens: of the chunk.
      known: products that are not taken again, where only the gradient is wanted.
    """
    coefficients = chunk_coefficients(network, tokens.gates)
    # Keys and queries in one product, for which w2 goes to the matrix unit once.
    both = jnp.concatenate([tokens.k, coefficients.weights * tokens.q], 1)
    both = dot(both, state.weights.w2, 0, network.dtype, known and known.inputs)
    key_inputs, query_inputs = jnp.split(both, 2, 1)
    factors, _ = inner_gradients(network, affine, state, tokens, key_inputs, known)
    y = _online_output(network, state, tokens, coefficients, factors, query_inputs)
    features = y if affine is None else _normalise(y)
    return features, _advance(network, state, tokens.k, coefficients, factors)


def next_state(
    network: Network, affine: Affine | None, state: ChunkState, tokens: Tokens
) -> tuple[ChunkState, KeyProducts]:
    """The state after the chunk alone, and the products that it took."""
    inputs = dot(tokens.k, state.weights.w2, 0, network.dtype)
    factors, products = inner_gradients(network, affine, state, tokens, inputs)
    coefficients = chunk_coefficients(network, tokens.gates)
    return _advance(network, state, tokens.k, coefficients, factors), products


def key_products(
    network: Network, affine: Affine | None, state: ChunkState, tokens: Tokens
) -> KeyProducts:
    """The products of the chunk alone."""
    inputs = dot(tokens.k, state.weights.w2, 0, network.dtype)
    return inner_gradients(network, affine, state, tokens, inputs)[1]


def chunk_coefficients(network: Network, gates: Float[Array, "heads gates chunk"]) -> Coefficients:
    """See `DeepRule.coefficients`."""
    columns = gates.swapaxes(1, 2)
    log_alpha, eta, *others = (gates[:, i : i + 1] for i in range(gates.shape[1]))
    products = _decay_products(columns[:, :, 0:1], log_alpha)
    total = jnp.exp(columns[:, :, 0:1])
    if not others:
        return Coefficients(total, products * eta)
    log_beta, applied = others
    products = products * applied
    momenta = _decay_products(columns[:, :, 2:3], log_beta) * eta
    kept = jnp.exp(log_beta)
    return Coefficients(
        total,
        dot(products, momenta, 0, network.dtype),
        jnp.sum(products * kept, 2, keepdims=True),
        kept[:, :, -1:],
        momenta[:, -1:],
    )


def _decay_products(column: Array, row: Array) -> Array:
    """Decay from token i to token t at [t, i], 0 for i after t; from the sums of its logs."""
    shape = (1, row.shape[2], row.shape[2])
    causal = lax.broadcasted_iota(jnp.int32, shape, 1) >= lax.broadcasted_iota(jnp.int32, shape, 2)
    return jnp.exp(jnp.where(causal, column - row, -jnp.inf))


def inner_gradients(
    network: Network,
    affine: Affine | None,
    state: ChunkState,
    tokens: Tokens,
    inputs: Array,
    known: KeyProducts | None = None,
) -> tuple[Factors, KeyProducts]:
    """Gradients of the rule's loss at the weights of the chunk's start, and their products.

    Args:
      network: the memory.
      affine: of its norm.
      state: at the start of the chunk.
      tokens: of the chunk.
      inputs: `w2 k`.
      known: products that are not taken again.
    """
    dtype, w1, titans = network.dtype, state.weights.w1, state.momentum is not None
    hidden, slope = value_and_slope(network.activation, dtype, inputs)
    delta, outputs = -tokens.v, None
    if titans or affine is not None:
        y = outputs = dot(hidden, w1, 1, dtype, known and known.outputs)
        if affine is not None:
            y, normalise_grad = jax.vjp(_normalise, y)
        if titans:
            y = y if affine is None else affine.scale * y + affine.bias
            delta = 2 * (tokens.k + y - tokens.v)
        if affine is not None:
            (delta,) = normalise_grad(affine.scale * delta)
    back = dot(delta, w1, 0, dtype, known and known.back)
    return Factors(delta, hidden, slope * back), KeyProducts(inputs, outputs, back)


def _online_output(
    network: Network,
    state: ChunkState,
    tokens: Tokens,
    coefficients: Coefficients,
    factors: Factors,
    inputs: Array,
) -> Array:
    """`W1_t act(W2_t q_t)`; `inputs` are the part of `W2_t q_t` that the chunk started with."""
    dtype, w1, (q, k) = network.dtype, state.weights.w1, tokens[:2]
    scores = dot(q, k, 1, dtype) * coefficients.grads
    inputs = inputs - dot(scores, factors.error, 0, dtype)
    if state.momentum is not None:
        inputs = inputs + dot(coefficients.momentum * q, state.momentum.w2, 0, dtype)
    hidden, _ = value_and_slope(network.activation, dtype, inputs)
    scores = dot(hidden, factors.hidden, 1, dtype) * coefficients.grads
    y = coefficients.weights * dot(hidden, w1, 1, dtype)
    y = y - dot(scores, factors.delta, 0, dtype)
    if state.momentum is not None:
        y = y + coefficients.momentum * dot(hidden, state.momentum.w1, 1, dtype)
    return y


def _normalise(y: Array) -> Array:
    """Rows brought to mean 0 and variance 1."""
    y = y - jnp.mean(y, 2, keepdims=True)
    return y * lax.rsqrt(jnp.mean(y * y, 2, keepdims=True) + NORM_EPS)


def _advance(
    network: Network, state: ChunkState, k: Array, coefficients: Coefficients, factors: Factors
) -> ChunkState:
    """State after the last token of the chunk."""
    weights, kept = state.weights, coefficients.weights[:, -1:]
    outer = ((factors.delta, factors.hidden), (k, factors.error))

    def summed(scale: Array) -> Memory:
        return Memory(*(outer_sum(a, b, scale, network.dtype) for a, b in outer))

    written = summed(coefficients.grads[:, -1:])
    if state.momentum is None:
        return ChunkState(jax.tree.map(lambda w, g: kept * w - g, weights, written), None)
    added = coefficients.momentum[:, -1:]
    weights = jax.tree.map(
        lambda w, s, g: kept * w + added * s - g, weights, state.momentum, written
    )
    momentum = jax.tree.map(
        lambda s, g: coefficients.momentum_kept * s - g,
        state.momentum,
        summed(coefficients.momentum_grads),
    )
    return ChunkState(weights, momentum)
