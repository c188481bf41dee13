"""How the cached memories of a text are kept: in which form, where, and how many at most.

With a budget a cache has a fixed number of slots. Before tokens are read that could fill more, the
oldest memories are dropped, or neighbours among the older half merged into one. What is left moves
up, and the memories' own count of tokens goes back by as many segments, so that nothing else has to
know of it; how far it is behind the text's count says what is gone (`memories_lost`).
"""

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mc_jax.caching import FORMS, Cache, store
from mc_jax.caching.placement import HOST, fetch, on_host
from mc_jax.caching.storage import as_floats, as_stored, form_of
from mc_jax.errors import InputError
from mc_jax.memory import get_rule
from mc_jax.memory.network import Weights
from mc_jax.model import LanguageModel, ModelConfig
from mc_jax.model.cache import ModelCache, make_room, map_memories, memories_of
from mc_jax.typing import Array, Int, PyTree

WHEN_FULL = ("drop", "merge")
# Fewest tokens that are read at a time; a budget has to hold the memories that they complete.
SMALLEST = 16


@dataclasses.dataclass(frozen=True)
class Storage:
    """How cached memories are kept.

    Attributes:
      form: their type, one of `mc_jax.caching.FORMS`. None leaves the one they have: float32, or
        a session's.
      host: whether they lie in the host's memory, from which a token fetches the memories that it
        reads; for aggregation="ssc" with constant segments. False leaves them where they are.
      budget: most bytes that the memories and descriptors of all sequences and layers take; None
        for no limit. Which memories a token finds depends then on the sizes of the pieces that a
        text is read in, too.
      when_full: what makes room in a budget: "drop" the oldest memories, or "merge" neighbours
        among the older half: for matrices, whose sum reads as the sum of both, and for snapshots,
        of which the later one stays.

    Raises:
      InputError: a value that is not allowed.
    """

    form: str | None = None
    host: bool = False
    budget: int | None = None
    when_full: str = "drop"

    def __post_init__(self) -> None:
        """Check every value."""
        if self.form is not None and self.form not in FORMS:
            raise InputError("storage.form", self.form, " | ".join(FORMS))
        if self.when_full not in WHEN_FULL:
            raise InputError("storage.when_full", self.when_full, " | ".join(WHEN_FULL))
        if self.budget is None:
            if self.when_full != "drop":
                raise InputError("storage.when_full", self.when_full, "this with a budget only")
        elif not isinstance(self.budget, int) or self.budget < 1:
            raise InputError("storage.budget", self.budget, "a number of bytes, at least 1")

    def check(self, config: ModelConfig) -> None:
        """Raise InputError if a model's memories cannot be kept so."""
        if self == AS_IT_IS:
            return
        memory = config.memory
        if "memory" not in config.pattern or not memory.options.caches:
            raise InputError("storage", self, "a model that caches memories; this one has none")
        constant = memory.segmentation == "constant"
        if self.host and (memory.aggregation != "ssc" or not constant):
            found = f"{memory.aggregation}, {memory.segmentation} segments"
            allowed = "ssc with constant segments: with others every token reads every memory"
            raise InputError("storage.host", found, allowed)
        # What libtpu 0.0.42 compiles.
        fits = self.form != "int8" and config.head_dim % 128 == 0
        if self.host and jax.default_backend() == "tpu" and not fits:
            found = f"{self.form}, heads of width {config.head_dim}"
            allowed = "float32 | bfloat16 and heads of a multiple of 128, on a TPU"
            raise InputError("storage.host", found, allowed)
        if self.budget is not None and not constant:
            allowed = "constant segments; of logarithmic ones few memories are kept in any case"
            raise InputError("storage.budget", f"{memory.segmentation} segments", allowed)
        if self.budget is not None and self.when_full == "merge":
            self._check_merge(config)

    def _check_merge(self, config: ModelConfig) -> None:
        memory = config.memory
        if memory.write_mode == "independent" and not get_rule(memory.rule).merges:
            allowed = "drop: independent memories merge as sums, for linear and swla"
            raise InputError("storage.when_full", f"merge, for {memory.rule}", allowed)
        if memory.options.gate == "position":
            allowed = "drop: this gate weighs memories by their distance, which merging changes"
            raise InputError("storage.when_full", f"merge, for gate={memory.gate}", allowed)


AS_IT_IS = Storage()
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Keeper:
    """Keeps the caches of a model in a storage.

    Attributes:
      config: the model.
      storage: how memories are kept.
      most: memories that each head of each sequence may keep; None for no limit.
    """

    config: ModelConfig
    storage: Storage
    most: int | None

    def tokens_at_a_time(self, wanted: int) -> int:
        """Tokens that may be read in one piece: a power of two, at most those that are wanted."""
        if self.most is None:
            return wanted
        within = max(SMALLEST, self.config.memory.segment_len * max(1, self.most // 4))
        return min(wanted, 1 << (within.bit_length() - 1))

    def ready(
        self, cache: ModelCache, tokens: int | Int[np.ndarray, "*batch"], length: int
    ) -> ModelCache:
        """A cache that can read more tokens, within the budget.

        Args:
          cache: of the tokens so far; it is used up.
          tokens: to be read next, of each sequence or of all.
          length: of a whole text that there is to be room for, unless the budget is smaller.
        """
        cache = self.keep(cache)
        if self.most is not None:
            cache = self._free(cache, self.most, -(-tokens // self.config.memory.segment_len))
        return make_room(self.config, cache, length, self.most)

    def keep(self, cache: ModelCache) -> ModelCache:
        """The cache with its memories in their form and place."""
        form, host = self.storage.form, self.storage.host

        def kept(memory: Cache) -> Cache:
            weights = _weights(memory)
            found = form_of(weights), on_host(weights)
            wanted = form or found[0], host or found[1]
            return memory if found == wanted else store(memory, *wanted)

        return map_memories(self.config, cache, kept)

    def _free(self, cache: ModelCache, most: int, new: int | np.ndarray) -> ModelCache:
        """The cache with no more slots than `most`, and as many memories that `new` ones fit in."""
        memory = self.config.memory
        lost = memories_lost(self.config, cache)
        used = cache.position // memory.segment_len - lost
        excess = jnp.where(new > 0, jnp.maximum(used + new - most, 0), 0)
        slots = memories_of(self.config, cache)[0].capacity
        if not excess.any() and slots <= most:
            return cache
        if excess.any() and not lost.any():
            tokens = int(jnp.max(cache.position))
            what = "are dropped" if self.storage.when_full == "drop" else "are merged"
            _LOG.warning("memory budget full after %s tokens: old memories %s", f"{tokens:,}", what)
        pairs = jnp.zeros_like(excess)
        if self.storage.when_full == "merge":
            quarter = jnp.maximum(used // 4, excess)
            pairs = jnp.where(excess > 0, jnp.minimum(quarter, used // 2), 0)
        dropped = jnp.maximum(excess - pairs, 0)
        sums = memory.write_mode == "independent"
        static = memory.segment_len, sums, min(slots, most)
        lose = functools.partial(_lose, *static, pairs=pairs, dropped=dropped)
        return map_memories(self.config, cache, lose)


def make_keeper(
    config: ModelConfig, params: PyTree, storage: Storage, batch: int, cache: ModelCache | None
) -> Keeper:
    """A keeper of the caches of `batch` sequences.

    Args:
      config: the model.
      params: its parameters, or their shapes.
      storage: how memories are kept.
      batch: sequences.
      cache: the one to go on from; None where the sequences start.

    Raises:
      InputError: memories that cannot be kept so, or a budget that does not hold enough of them.
    """
    storage.check(config)
    if storage.budget is None:
        return Keeper(config, storage, None)
    each = bytes_of_a_memory(config, params, storage, batch, cache)
    needed = -(-SMALLEST // config.memory.segment_len)
    if storage.budget < each * needed:
        allowed = f"at least {each * needed:,} bytes, {needed} of {each:,} for each head and layer"
        raise InputError("storage.budget", f"{storage.budget:,} bytes", allowed)
    return Keeper(config, storage, storage.budget // each)


def bytes_of_a_memory(
    config: ModelConfig, params: PyTree, storage: Storage, batch: int, cache: ModelCache | None
) -> int:
    """Bytes that one more cached memory takes, in all heads, layers and sequences together."""
    unlimited = Keeper(config, Storage(form=storage.form), None)

    def with_one(params: PyTree, cache: ModelCache | None) -> ModelCache:
        if cache is None:
            tokens = jnp.zeros((batch, config.memory.segment_len), jnp.int32)
            extend: Any = LanguageModel(config).apply
            _, cache = extend({"params": params}, tokens, method=LanguageModel.extend)
        return unlimited.keep(cache)

    memories = memories_of(config, jax.eval_shape(with_one, params, cache))
    slots = memories[0].capacity
    if not slots:
        return bytes_of_a_memory(config, params, storage, batch, None)
    kept = [(memory.memories, memory.descriptors) for memory in memories]
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept)) // slots


def memories_lost(config: ModelConfig, cache: ModelCache) -> Int[Array, "*batch"]:
    """Segments whose memories a budget has dropped, or merged into others, of each sequence."""
    position = memories_of(config, cache)[0].position
    position = position[0] if config.scan_layers else position
    return (cache.position - position) // config.memory.segment_len


def memory_form(config: ModelConfig, cache: ModelCache) -> str | None:
    """The form of a cache's memories; None if there are none."""
    for memory in memories_of(config, cache):
        return form_of(_weights(memory))
    return None


def _weights(memory: Cache) -> Weights:
    assert memory.memories is not None
    return memory.memories.weights


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _lose(
    segment_len: int, sums: bool, slots: int, memory: Cache, pairs: Array, dropped: Array
) -> Cache:
    """Merge the oldest `pairs` of neighbours, or drop the oldest memories, of one layer.

    Args:
      segment_len: tokens of a segment.
      sums: whether two memories merge as their sum; else the later one stays.
      slots: that are left.
      memory: leaves [batch, heads, slots, ...].
      pairs: how many, [] or [batch].
      dropped: how many, behind which the pairs are counted, [] or [batch].
    """
    assert memory.memories is not None
    stored = memory.memories.weights
    weights = fetch(stored)

    def head(weights: Any, described: Array | None, pairs: Array, dropped: Array) -> Any:
        place = jnp.arange(slots)
        paired = place < pairs
        first = jnp.where(paired, 2 * place, place + pairs) + dropped

        def at(x: Any, index: Array) -> Any:
            return jax.tree.map(lambda x: jnp.take(x, index, 0, mode="fill", fill_value=0), x)

        if described is not None:
            second = at(described, first + 1)
            described = at(described, first)
            described = jnp.where(paired[:, None], (described + second) / 2, described)
        if not sums:
            return at(weights, first + paired), described
        dtype = memory.state.weights[0].dtype
        older, newer = (as_floats(at(weights, i), dtype) for i in (first, first + 1))
        merged = jax.tree.map(lambda x, y: jnp.where(paired[:, None, None], x + y, x), older, newer)
        return as_stored(weights, merged), described

    heads = jax.vmap(head, (0, 0, None, None))
    each = 0 if pairs.ndim else None
    weights, descriptors = jax.vmap(heads, (0, 0, each, each))(
        weights, memory.descriptors, pairs, dropped
    )
    if on_host(stored):
        weights = jax.device_put(weights, HOST)
    return memory._replace(
        position=memory.position - (pairs + dropped) * segment_len,
        memories=memory.memories._replace(weights=weights),
        descriptors=descriptors,
    )
