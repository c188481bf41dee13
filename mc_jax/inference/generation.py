"""Generating text: a compiled loop over tokens, and around it what needs to know the text."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mc_jax.data.tokenizers import Tokenizer
from mc_jax.errors import InputError
from mc_jax.inference.run import decode_step, prefill, room_for
from mc_jax.inference.sampling import AS_TRAINED, Sampling, draw
from mc_jax.inference.storage import AS_IT_IS, Storage, make_keeper
from mc_jax.model import ModelConfig
from mc_jax.model.cache import ModelCache
from mc_jax.typing import Array, PyTree

# Tokens between two looks at the text.
BLOCK = 32


class Completion(NamedTuple):
    """What was generated after a prompt.

    Attributes:
      text: without the stop string.
      tokens: ids, up to the one that completes the stop string or ends the document.
      reason: why it ended: "end" (of a document), "stop" (a stop string) or "length".
    """

    text: str
    tokens: list[int]
    reason: str


class Drawing(NamedTuple):
    """How a text is drawn.

    Attributes:
      max_tokens: most tokens of a sequence.
      sampling: how tokens are drawn.
      end: id at which a sequence ends.
      seed: of the random numbers.
    """

    max_tokens: int
    sampling: Sampling
    end: int
    seed: int


def generate(
    config: ModelConfig,
    params: PyTree,
    tokenizer: Tokenizer,
    prompts: Sequence[str] | Sequence[np.ndarray],
    *,
    max_tokens: int = 256,
    sampling: Sampling = AS_TRAINED,
    storage: Storage = AS_IT_IS,
    stop: Sequence[str] = (),
    seed: int = 0,
    progress: bool = False,
) -> list[Completion]:
    """Complete prompts, side by side.

    Args:
      config: the model.
      params: its parameters.
      tokenizer: of the text that the model was trained on.
      prompts: texts of any lengths, none of them empty; or their ids, arrays of integers.
      max_tokens: most tokens of a completion.
      sampling: how tokens are drawn. Those of one prompt do not depend on the others, but on its
        place among them: the same prompt twice is completed in two ways.
      storage: how cached memories are kept.
      stop: strings before which a completion ends.
      seed: of the random numbers.
      progress: whether to show a progress bar of reading the prompts.

    Raises:
      InputError: an empty prompt, or an option that is not allowed.
    """
    check_request(max_tokens, stop, seed)
    tokens, lengths = encode(tokenizer, prompts)
    state = prefill(config, params, tokens, lengths=lengths, storage=storage, progress=progress)
    texts = [_Text(tokenizer, stop, max_tokens) for _ in prompts]
    drawing = Drawing(max_tokens, sampling, tokenizer.eos_id, seed)
    for block, _ in decode(config, params, *state, drawing, storage):
        for text, column in zip(texts, block, strict=True):
            text.add(column)
        if all(text.reason for text in texts):
            break
    return [text.completion() for text in texts]


def stream(
    config: ModelConfig,
    params: PyTree,
    tokenizer: Tokenizer,
    logits: Array,
    cache: ModelCache,
    *,
    max_tokens: int = 256,
    sampling: Sampling = AS_TRAINED,
    storage: Storage = AS_IT_IS,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> Iterator[str]:
    """Complete one prompt that `prefill` has read, giving the text piece by piece.

    Args as of `generate`; the cache is used up. Joined, the pieces are the completion's text.

    Raises:
      InputError: an option that is not allowed.
    """
    check_request(max_tokens, stop, seed)
    text = _Text(tokenizer, stop, max_tokens)
    shown = 0
    state = (logits, cache)
    drawing = Drawing(max_tokens, sampling, tokenizer.eos_id, seed)
    for block, _ in decode(config, params, *state, drawing, storage):
        text.add(block[0])
        sure = text.sure()
        if len(sure) > shown:
            yield sure[shown:]
            shown = len(sure)
        if text.reason:
            return


def decode(
    config: ModelConfig,
    params: PyTree,
    logits: Array,
    cache: ModelCache,
    drawing: Drawing,
    storage: Storage = AS_IT_IS,
) -> Iterator[tuple[np.ndarray, ModelCache]]:
    """Draw tokens until all sequences have ended, at most `drawing.max_tokens`.

    Args:
      config: the model.
      params: its parameters.
      logits: of the first token [batch, vocab].
      cache: after the prompts; it is used up.
      drawing: how tokens are drawn, and how many.
      storage: how cached memories are kept.

    Yields:
      Blocks of ids [batch, tokens], where -1 stands behind a sequence's end; and the cache after
      the block, which is used up when the next one is asked for.
    """
    position = int(jnp.max(cache.position))
    length = room_for(config, position + drawing.max_tokens)
    keeper = make_keeper(config, params, storage, logits.shape[0], cache)
    most = keeper.tokens_at_a_time(BLOCK)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(drawing.seed)))(
        jnp.arange(logits.shape[0])
    )
    state = _Decoding(jnp.int32(0), logits, jnp.zeros(logits.shape[0], bool), cache)
    for start in range(0, drawing.max_tokens, most):
        size = min(most, drawing.max_tokens - start)
        state = state._replace(cache=keeper.ready(state.cache, size, length))
        tokens, state = _decode_block(
            config, drawing.sampling, params, state, keys, jnp.int32(size), drawing.end
        )
        drawn = int(state.drawn) - start
        yield np.asarray(tokens)[:, :drawn], state.cache
        if state.ended.all():
            return


class _Decoding(NamedTuple):
    """What goes from token to token."""

    drawn: Array  # tokens so far
    logits: Array
    ended: Array  # whether a sequence has ended
    cache: ModelCache


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _decode_block(
    config: ModelConfig,
    sampling: Sampling,
    params: PyTree,
    state: _Decoding,
    keys: Array,
    size: Array,
    end: Array,
) -> tuple[Array, _Decoding]:
    """Draw up to `size` tokens, and read them into the cache."""
    first = state.drawn

    def unfinished(carry: tuple[Array, _Decoding]) -> Array:
        state = carry[1]
        return (state.drawn - first < size) & ~jnp.all(state.ended)

    def step(carry: tuple[Array, _Decoding]) -> tuple[Array, _Decoding]:
        tokens, state = carry
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, state.drawn)
        token = draw(state.logits, now, sampling)
        tokens = tokens.at[:, state.drawn - first].set(jnp.where(state.ended, -1, token))
        logits, cache = decode_step(config, params, token, state.cache)
        return tokens, _Decoding(state.drawn + 1, logits, state.ended | (token == end), cache)

    tokens = jnp.full((keys.shape[0], BLOCK), -1, jnp.int32)
    return jax.lax.while_loop(unfinished, step, (tokens, state))


def encode(
    tokenizer: Tokenizer, prompts: Sequence[str] | Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids [batch, length] of texts, or of arrays of ids, and lengths, None if all are the same.

    Raises:
      InputError: no prompt, or one without a token.
    """
    listed = isinstance(prompts, Sequence) and not isinstance(prompts, str) and len(prompts) > 0
    if listed and all(isinstance(text, str) for text in prompts):
        ids = tokenizer.encode_batch([str(text) for text in prompts])
    elif listed and all(isinstance(one, np.ndarray) for one in prompts):
        ids = [np.asarray(one) for one in prompts]
    else:
        raise InputError("prompts", prompts, "a list of one or more texts, or of arrays of ids")
    for text, one in zip(prompts, ids, strict=True):
        if not len(one):
            raise InputError("prompt", text, "a text of at least one token")
    lengths = np.array([len(one) for one in ids])
    tokens = np.zeros((len(ids), lengths.max()), np.int32)
    for row, one in zip(tokens, ids, strict=True):
        row[: len(one)] = one
    return tokens, None if (lengths == lengths[0]).all() else lengths


def check_request(max_tokens: int, stop: Sequence[str], seed: int) -> None:
    """Refuse ends of a text that are none, and seeds that none can be.

    Raises:
      InputError: naming the option.
    """
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise InputError("max_tokens", max_tokens, "an integer >= 1")
    listed = isinstance(stop, Sequence) and not isinstance(stop, str)
    if not listed or not all(isinstance(s, str) and s for s in stop):
        raise InputError("stop", stop, "a list of strings, none of them empty")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError("seed", seed, f"an integer from 0 to {2**32 - 1}")


class _Text:
    """The text of one completion as it grows."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], max_tokens: int):
        self._tokenizer, self._stop, self._max = tokenizer, list(stop), max_tokens
        self._tokens: list[int] = []
        self._text = ""
        self.reason = ""

    def add(self, tokens: np.ndarray) -> None:
        """Take a block of ids; what stands behind the end is left out."""
        if self.reason:
            return
        self._tokens += [int(token) for token in tokens if token >= 0]
        self._text = self._tokenizer.decode(self._tokens)
        if any(s in self._text for s in self._stop):
            self._end_before_stop(len(tokens))
        elif self._tokens and self._tokens[-1] == self._tokenizer.eos_id:
            self.reason = "end"
        elif len(self._tokens) >= self._max:
            self.reason = "length"

    def _end_before_stop(self, newest: int) -> None:
        """Leave out the stop string that came first, and the tokens after it."""
        for count in range(max(0, len(self._tokens) - newest), len(self._tokens) + 1):
            text = self._tokenizer.decode(self._tokens[:count])
            found = [at for s in self._stop if (at := text.find(s)) >= 0]
            if found:
                self._tokens, self._text, self.reason = (
                    self._tokens[:count],
                    text[: min(found)],
                    "stop",
                )
                return

    def sure(self) -> str:
        """The text without what later tokens may change: half a character, half a stop string."""
        text = self._text
        if self.reason:
            return text
        text = text.rstrip("\ufffd")
        ends = [
            size
            for stop in self._stop
            for size in range(1, len(stop))
            if text.endswith(stop[:size])
        ]
        return text[: len(text) - max(ends, default=0)]

    def completion(self) -> Completion:
        """The whole."""
        return Completion(self._text, self._tokens, self.reason)
