"""The public core: memory caching over whole batches."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mc_jax.caching import storage
from mc_jax.caching.cache import Cache, empty_cache, grow
from mc_jax.caching.calls import Sizes
from mc_jax.caching.chunked import chunked
from mc_jax.caching.context import Context
from mc_jax.caching.kernels import check_implementation, write_on_kernel
from mc_jax.caching.options import Options
from mc_jax.caching.recurrent import recurrent
from mc_jax.caching.segments import capacity_for
from mc_jax.caching.token_read import READS, SEQUENCES
from mc_jax.caching.validate import check_arrays, check_cache, check_lengths
from mc_jax.caching.write import write_dtype
from mc_jax.errors import InputError
from mc_jax.memory import DeepParams, get_rule
from mc_jax.memory.network import accumulator
from mc_jax.memory.rule import Rule
from mc_jax.typing import Array, Float, Int

IMPLEMENTATIONS = ("chunked", "decode", "recurrent", "xla", "pallas", "pallas_interpret")


def memory_caching(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length heads head_dim"],
    v: Float[Array, "batch length heads head_dim"],
    u: Array | None,
    gates: Any,
    params: DeepParams | None = None,
    *,
    rule: str = "linear",
    aggregation: str = "grm",
    segment_len: int = 256,
    segmentation: str = "constant",
    write_mode: str = "independent",
    gate: str = "context",
    top_k: int = 4,
    chunk_len: int = 64,
    pooled: str = "keys",
    route_every: int = 1,
    mem_norm: str = "layer",
    activation: str = "gelu",
    initial_cache: Cache | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    implementation: str | None = None,
    context_axis: str | None = None,
    exchange: str = "gather",
    placement: str = "contiguous",
) -> tuple[Float[Array, "batch length heads head_dim"], Cache | None]:
    """A recurrent memory that keeps its states and lets every token read them.

    Each head of each sequence compresses its keys and values into a memory M, keeps the memory at
    the end of every segment, and reads the running memory and the kept ones (arXiv 2602.24281,
    eqs. 7 to 17). Queries, keys and values are taken as given: normalising, convolving and
    activating them is the caller's work.

    One call on a whole sequence, calls on pieces of it and calls token by token give the same
    result, when each call is handed the cache of the one before.

    Args:
      q: queries.
      k: keys.
      v: values.
      u: what the gate scores memories with. For `gate="context"` router queries, shaped as q: the
        score of a memory is `<u_t, descriptor of its segment>`. For "shared_query" None, or a
        temperature [heads] on `<q_t, descriptor>`. For "position" scores by distance
        [batch, length, heads, distances]: entry 0 is the online memory's, entry i that of the
        memory i segments back (with logarithmic segments, of level i - 1); the last entry serves
        all that lie further. Not read by "none", nor where the aggregation has no gate.
      gates: the rule's gates, arrays [batch, length, heads]: `LinearGates` or None, `SWLAGates`,
        `DLAGates`, `TitansGates` of `mc_jax.memory`.
      params: `mc_jax.memory.DeepParams` for MLP memories (dla, titans), None for matrices.
      rule: how a memory is written: linear | swla | dla | titans.
      aggregation: how memories are read. none: the plain RNN; residual: the sum of all reads;
        grm: their gated sum; soup: one read of the gated sum of parameters; ssc: grm over the
        online memory and the `top_k` best-scored cached ones.
      segment_len: tokens between two cached memories; a multiple of `chunk_len`.
      segmentation: constant | logarithmic (the prefix as a Fenwick tree of segments).
      write_mode: independent (each segment starts afresh) | checkpoint (one continuing
        recurrence, of which snapshots are kept).
      gate: context | shared_query | position | none (every weight is 1). Read by grm, soup, ssc.
      top_k: cached memories that ssc selects.
      chunk_len: tokens compressed in parallel. MLP memories take their inner gradients at the
        weights of the chunk's start, so there it is part of the meaning; 1 is the exact recurrence.
      pooled: whose mean over a segment is its descriptor: keys | values.
      route_every: of ssc: tokens that read the same memories, those that the first of them selects,
        each with weights of its own; a divisor of `segment_len`. 1 is the paper's: every token
        selects. Blocks of a multiple of 128 are what a TPU has a kernel for; with few tokens a
        block, and with `exchange="ring"`, reading is no faster for them.
      mem_norm: norm of an MLP memory: layer | none | weight_l2.
      activation: of an MLP memory: gelu (exact) | gelu_tanh | silu | relu.
      initial_cache: cache of an earlier call with the same options, to go on from.
      lengths: how many of the call's tokens are there, [] or of each sequence [batch]; the rest
        is padding, whose outputs mean nothing. None for all. Sequences of different lengths have
        a `position` each in the cache from then on.
      implementation: recurrent (a token at a time, as the equations are printed) | decode (a token
        at a time, reading only what it needs) | chunked (chunk-parallel, with the best kernels of
        the device) | xla | pallas | pallas_interpret (chunk-parallel, every kernel of that kind);
        None picks decode for a single token and else chunked. Kernels run on one device: with
        arrays on several, call this inside `jax.shard_map`, as the model does, or name xla.
      context_axis: inside `jax.shard_map`, the mesh axis that sequences are split over: the call
        has this device's run of them, whole segments, and outputs are those of the whole
        sequences. None if the call has all tokens.
      exchange: how devices of that axis get each other's memories: gather (each one holds all) |
        ring (they are passed on, and none holds more than those of two devices).
      placement: which run of the sequences a device of that axis has: contiguous (device i of D the
        i-th of D) | zigzag (of 2 D runs the i-th and the i-th from the end, in this order, so that
        all devices have as many memories to read; `write_mode="independent"`).

    Returns:
      Outputs, shaped and typed as v, and the cache to continue from; None in its place with a
      `context_axis`. Under `jit` a cache cannot grow: see `mc_jax.reserve`.

    Raises:
      InputError: an option or an array that does not fit; it names the argument.
    """
    options = Options(
        *(aggregation, segment_len, segmentation, write_mode, gate, top_k, chunk_len),
        *(pooled, route_every),
    )
    the_rule = get_rule(rule, mem_norm=mem_norm, activation=activation)
    check_arrays(options, the_rule, q, k, v, u, gates, params)
    if implementation is None:
        implementation = "decode" if q.shape[1] == 1 else "chunked"
    if implementation not in IMPLEMENTATIONS:
        raise InputError("implementation", implementation, " | ".join(IMPLEMENTATIONS) + " | None")
    hidden = None if params is None else params.w1.shape[-1]
    batch, length, heads, head_dim = q.shape
    sizes = Sizes(batch * heads, length, head_dim, hidden, q.dtype)
    context = None if context_axis is None else Context(context_axis, exchange, placement)
    check_implementation(implementation, options, the_rule, sizes, context)
    check_lengths(q, lengths)
    if not options.gated:
        u = None
    if initial_cache is not None:
        if not isinstance(initial_cache, Cache):
            found = type(initial_cache).__name__
            raise InputError("initial_cache", found, "the Cache that an earlier call returned")
        expected = _empty(options, the_rule, q, gates, params, initial_cache)
        check_cache(options, expected, initial_cache)
        if options.caches and not isinstance(initial_cache.position, jax.core.Tracer):
            length = int(jnp.max(initial_cache.position)) + q.shape[1]
            initial_cache = grow(initial_cache, capacity_for(length, segment_len, segmentation))
    if lengths is not None:
        lengths = jnp.asarray(lengths, jnp.int32)
    if context is not None:
        if initial_cache is not None or lengths is not None:
            field = "lengths" if initial_cache is None else "initial_cache"
            raise InputError(field, "a value", "None with a context_axis: sequences start there")
        if implementation in ("decode", "recurrent"):
            allowed = "None or a chunk-parallel one with a context_axis"
            raise InputError("implementation", implementation, allowed)
        context.check(options, the_rule, q.shape[1], the_rule.window(gates))
    arrays = (q, k, v, u, gates, params, initial_cache, lengths)
    return _run(options, the_rule, implementation, context, *arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(
    options: Options,
    rule: Rule,
    implementation: str,
    context: Context | None,
    q: Array,
    k: Array,
    v: Array,
    u: Array | None,
    gates: Any,
    params: DeepParams | None,
    cache: Cache | None,
    lengths: Array | None,
) -> tuple[Array, Cache | None]:
    # With lengths nothing about the grid of segments is static, as in a sequence that goes on.
    fresh = cache is None and lengths is None
    token_wise = implementation in ("decode", "recurrent")
    window = rule.window(gates)
    own_positions = cache is not None and cache.position.ndim > 0
    capacity = 0
    if options.caches:
        length = q.shape[1] * (1 if context is None else context.size)
        capacity = capacity_for(length, options.segment_len, options.segmentation)
    kernel = None if implementation == "chunked" else implementation
    output_dtype = v.dtype
    k, v = (x.astype(write_dtype(options, rule, x.dtype)) for x in (k, v))
    written = None
    # The kernels start from the rule's own initial state.
    if fresh and not token_wise and (context is None or options.resets):
        with jax.named_scope("compress"):
            written = write_on_kernel(options, rule, params, q, k, v, gates, kernel)

    def head(q, k, v, u, gates, params, cache, lengths, written):
        if cache is None:
            dtype = accumulator(q.dtype)
            cache = empty_cache(rule, options, params, q.shape[0], window, dtype, capacity)
        arguments = (rule, options, params, q, k, v, u, gates, cache, lengths)
        if token_wise:
            return recurrent(*arguments, READS[implementation])
        return chunked(*arguments, fresh, kernel, written, context)

    # One head of one sequence has its tokens on the last axis.
    q, k, v, gates = jax.tree.map(lambda x: jnp.moveaxis(x, 1, -1), (q, k, v, gates))
    temperature = u is not None and u.ndim == 1
    if u is not None and not temperature:
        u = jnp.moveaxis(u, 1, -1)
    ragged = lengths is not None and lengths.ndim > 0
    heads = jax.vmap(
        head,
        in_axes=(0, 0, 0, 0, 0, 0, None if cache is None else _cache_axes(None), None, 0),
        out_axes=(0, None if context else _cache_axes(None)),
    )
    sequences = jax.vmap(
        heads,
        in_axes=(
            *(0, 0, 0, None if temperature else 0, 0, None),
            None if cache is None else _cache_axes(0 if own_positions else None),
            0 if ragged else None,
            0,
        ),
        out_axes=(0, None if context else _cache_axes(0 if ragged or own_positions else None)),
        axis_name=SEQUENCES,
    )
    y, cache = sequences(q, k, v, u, gates, params, cache, lengths, written)
    y = y.astype(output_dtype)
    return jnp.moveaxis(y, -1, 1), cache


def _cache_axes(position: int | None) -> Any:
    """Axes that a cache is mapped over; the counter of tokens is one for all heads."""
    return Cache(*(position, 0, 0, 0, 0, 0, 0))  # type: ignore[arg-type]


def _empty(
    options: Options, rule: Rule, q: Array, gates: Any, params: DeepParams | None, like: Cache
) -> Cache:
    """Shapes of a cache with leading axes [batch, heads], of the same room as `like`."""

    def one(params: DeepParams | None) -> Cache:
        dtype = accumulator(q.dtype)
        window = rule.window(gates)
        return empty_cache(rule, options, params, q.shape[-1], window, dtype, like.capacity)

    def all_heads(params: DeepParams | None) -> Cache:
        heads = jax.vmap(one, in_axes=0, out_axes=_cache_axes(None), axis_size=q.shape[2])
        cache = heads(params)
        if like.memories is not None:
            # Of whatever form the cache keeps its memories in.
            stored = storage.as_stored(like.memories.weights, cache.memories.weights)
            cache = cache._replace(memories=cache.memories._replace(weights=stored))
        batched = jax.tree.map(lambda x: jnp.broadcast_to(x, (q.shape[0], *x.shape)), cache)
        return batched if like.position.ndim else batched._replace(position=cache.position)

    return jax.eval_shape(all_heads, params)
