"""Reading a prompt into a cache, and one more token.

Compiled programs have fixed shapes. A prompt is read in pieces whose sizes are powers of two, the
last one padded, and caches are given room in powers of two, so that few programs serve prompts and
texts of any length.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mc_jax.errors import InputError
from mc_jax.inference.storage import AS_IT_IS, SMALLEST, Storage, make_keeper
from mc_jax.model import LanguageModel, ModelConfig
from mc_jax.model.cache import ModelCache, sequences_of
from mc_jax.typing import Array, Float, Int, PyTree

# Tokens that are read at a time: a long prompt takes the memory of its cache and such a piece.
PIECE = 2048


def prefill(
    config: ModelConfig,
    params: PyTree,
    tokens: Int[np.ndarray, "batch length"],
    cache: ModelCache | None = None,
    *,
    lengths: Int[np.ndarray, " batch"] | None = None,
    storage: Storage = AS_IT_IS,
    piece: int = PIECE,
    progress: bool = False,
) -> tuple[Float[Array, "batch vocab"], ModelCache]:
    """Read tokens, as training does, in parallel.

    Args:
      config: the model.
      params: its parameters.
      tokens: ids; all of a text or what comes next of it.
      cache: of the tokens before, which is used up; None where the sequences start.
      lengths: tokens of each sequence, from 1 on; what stands behind them is not read. None if all
        have the same.
      storage: how cached memories are kept.
      piece: tokens that are read at a time, a power of two; fewer if a budget is small.
      progress: whether to show a progress bar.

    Returns:
      Logits of the token that follows each sequence's last one, and the cache.

    Raises:
      InputError: tokens that are none, or not in the vocabulary; lengths or a cache that do not
        fit them; memories that cannot be kept so.
    """
    tokens = _checked(config, tokens)
    batch, length = tokens.shape
    if cache is not None and (sequences := sequences_of(config, cache)) != batch:
        raise InputError("cache", f"{sequences} sequences", f"as many as of tokens, {batch}")
    if lengths is not None:
        lengths = np.asarray(lengths)
        whole = np.issubdtype(lengths.dtype, np.integer) and lengths.shape == (batch,)
        if not whole or lengths.min() < 1 or lengths.max() > length:
            allowed = f"{batch} integers from 1 to {length}"
            raise InputError("lengths", lengths.tolist(), allowed)
    if piece < SMALLEST or piece & (piece - 1):
        raise InputError("piece", piece, f"a power of two from {SMALLEST} on")
    keeper = make_keeper(config, params, storage, batch, cache)
    piece = keeper.tokens_at_a_time(piece)
    logits: Array | None = None
    before = 0 if cache is None else int(jnp.max(cache.position))
    bar = tqdm(total=length, desc="reading", unit="token", disable=not progress, unit_scale=True)
    for start in range(0, length, piece):
        part = tokens[:, start : start + piece]
        count = None if lengths is None else np.clip(lengths - start, 0, part.shape[1])
        size = padded_size(part.shape[1])
        if size != part.shape[1]:
            count = np.int32(part.shape[1]) if count is None else count
            part = np.pad(part, [(0, 0), (0, size - part.shape[1])])
        if cache is not None:
            room = room_for(config, before + start + size)
            cache = keeper.ready(cache, size if count is None else count, room)
        new, cache = _read(config, params, part, cache, count)
        # A sequence that ended in an earlier piece has had its last logits.
        if logits is not None and lengths is not None:
            new = jnp.where((lengths > start)[:, None], new, logits)
        logits = new
        bar.update(min(piece, length - start))
    bar.close()
    assert logits is not None
    assert cache is not None
    return logits, keeper.keep(cache)


def decode_step(
    config: ModelConfig,
    params: PyTree,
    tokens: Int[Array, " batch"],
    cache: ModelCache,
) -> tuple[Float[Array, "batch vocab"], ModelCache]:
    """Read one more token of each sequence. A pure function, to be compiled by the caller.

    Compile it, or a loop around it, with the cache donated (`jax.jit(..., donate_argnums=...)`):
    otherwise every step copies the cached memories.

    Args:
      config: the model.
      params: its parameters.
      tokens: ids.
      cache: with room for the token; see `make_room`. Without, logits are NaN.

    Returns:
      Logits of the next token, and the cache.
    """
    return _extend(config, params, tokens[:, None], cache, None)


def room_for(config: ModelConfig, length: int) -> int:
    """Tokens that a cache is given room for when it needs room for `length`.

    That is a power of two times a few segments, so that caches have few sizes.
    """
    unit = SMALLEST * config.memory.segment_len if "memory" in config.pattern else PIECE
    return unit * padded_size(-(-length // unit), 1)


def padded_size(size: int, smallest: int = SMALLEST) -> int:
    """The next power of two."""
    return max(smallest, 1 << (size - 1).bit_length())


def _extend(
    config: ModelConfig,
    params: PyTree,
    tokens: Array,
    cache: ModelCache | None,
    lengths: Array | None,
) -> tuple[Array, ModelCache]:
    extended: Any = LanguageModel(config).apply(
        {"params": params}, tokens, cache, lengths, last=True, method=LanguageModel.extend
    )
    return extended[0][:, 0], extended[1]


_read = jax.jit(_extend, static_argnums=0, donate_argnums=3)


def _checked(config: ModelConfig, tokens: Int[np.ndarray, "batch length"]) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or 0 in tokens.shape or not np.issubdtype(tokens.dtype, np.integer):
        found = f"{tokens.dtype}{list(tokens.shape)}"
        raise InputError("tokens", found, "integers [batch, length], at least one token each")
    if tokens.min() < 0 or tokens.max() >= config.vocab_size:
        wrong = tokens[(tokens < 0) | (tokens >= config.vocab_size)][0]
        allowed = f"ids from 0 to {config.vocab_size - 1}, the model's vocabulary"
        raise InputError("tokens", int(wrong), allowed)
    return tokens.astype(np.int32)
