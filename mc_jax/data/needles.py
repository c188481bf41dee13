"""Needle in a haystack after RULER (Hsieh et al. 2024, arXiv 2404.06654): S-NIAH-1, 2 and 3.

A prompt hides one sentence, "One of the special magic numbers for KEY is: VALUE.", in a long text
and asks for the value of the key:

  1  niah_single_1: the same five sentences on every line; the value is a number of 7 digits
  2  niah_single_2: essays; a number of 7 digits
  3  niah_single_3: essays; a UUID

The words of the prompts are RULER's. Where the needle stands is asked for in tokens and met to
within one token (`placement="token"`): it stands between two sentences, and the haystack's first
and last sentence are cut off where the lengths say. `placement="sentence"` is RULER's own rule: the
haystack starts with the text's first sentence, holds as many whole words (of essays) or lines (of
noise) as fit, and the needle stands before the sentence that the depth falls into.

A prompt is made from its index alone: nothing is stored, and any one can be had at once.
"""

import dataclasses
import functools
import uuid
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mc_jax.data.fit import fit
from mc_jax.data.haystack import Haystack
from mc_jax.data.tokenizers import Tokenizer
from mc_jax.data.words import draw_key, longest_key
from mc_jax.errors import InputError

TASKS = (1, 2, 3)
ESSAY_TASKS = (2, 3)
PLACEMENTS = ("token", "sentence")
# RULER's depths, in percent of the haystack.
DEPTHS = tuple(int(depth) for depth in np.round(np.linspace(0, 100, 40)))
# RULER's tokens for the answer.
NEW_TOKENS = 128
DIGITS = 7
MOST_DIGITS = 18  # of a number: 64 bits hold them

_OPENING = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
_NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
_CLOSING = (
    "\nWhat is the special magic {kind} for {key} mentioned in the provided text? "
    "The special magic {kind} for {key} mentioned in the provided text is"
)
# Fewest tokens of a haystack worth the name.
_SMALLEST = 32
# Places in the text that are tried for one prompt.
_TRIES = 16


class Question(NamedTuple):
    """What one prompt hides and asks for.

    Attributes:
      task: 1, 2 or 3.
      key: two words.
      value: what is to be found.
      depth: where, in percent of the haystack.
    """

    task: int
    key: str
    value: str
    depth: float

    @property
    def opening(self) -> str:
        """The prompt up to the haystack."""
        return _OPENING.format(kind=self._kind)

    @property
    def needle(self) -> str:
        """The hidden sentence."""
        return _NEEDLE.format(kind=self._kind, key=self.key, value=self.value)

    @property
    def closing(self) -> str:
        """The prompt from behind the haystack on: the question, and how its answer starts."""
        return _CLOSING.format(kind=self._kind, key=self.key)

    @property
    def _kind(self) -> str:
        return "uuid" if self.task == 3 else "number"


class Sample(NamedTuple):
    """A prompt and what is known of it; places are tokens, counted from 0.

    Attributes:
      question: what it hides and asks for.
      prompt: the text.
      ids: the prompt's tokens, int32 [length].
      start: where the haystack starts.
      needle: where the hidden sentence starts.
      value: where the value in it starts, with the space before it if that is a part of a token.
      filler: tokens of the haystack without the hidden sentence.
    """

    question: Question
    prompt: str
    ids: np.ndarray
    start: int
    needle: int
    value: int
    filler: int

    @property
    def depth(self) -> float:
        """Percent of the haystack that stand before the needle."""
        return 100 * (self.needle - self.start) / self.filler if self.filler else 0.0


@dataclasses.dataclass(frozen=True)
class Prompts(Sequence):
    """Random access to the prompts of one stream.

    Attributes:
      task: 1, 2 or 3.
      tokenizer: in whose tokens lengths are counted.
      haystack: `noise()` for task 1, `essays(...)` for the others.
      tokens: of a prompt.
      size: number of prompts.
      depths: in percent of the haystack. Held-out prompts take them in turn, so that each has as
        many; others draw one.
      seed: non-negative.
      held_out: whether these are evaluation prompts, whose keys no training prompt has.
      digits: of a number.
      placement: "token" or "sentence", see above.
    """

    task: int
    tokenizer: Tokenizer
    haystack: Haystack
    tokens: int
    size: int
    depths: tuple[float, ...] = DEPTHS
    seed: int = 0
    held_out: bool = True
    digits: int = DIGITS
    placement: str = "token"

    def __len__(self):
        return self.size

    def __getitem__(self, index) -> Sample:
        """Returns the prompt of an index.

        Raises:
          InputError: `tokens` hold no prompt, or the text cannot be cut to so many.
        """
        question, rng = self.draw(index)
        return self.place(question, self.tokens, rng)

    def draw(self, index: int) -> tuple[Question, np.random.Generator]:
        """Draws what a prompt hides; and the random numbers that go on from there."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        place = (int(self.held_out), self.task, index)
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=place))
        key = draw_key(rng, self.held_out)
        if self.task == 3:
            value = str(uuid.UUID(bytes=rng.bytes(16), version=4))
        else:
            value = str(rng.integers(10 ** (self.digits - 1), 10**self.digits))
        at = index if self.held_out else int(rng.integers(len(self.depths)))
        return Question(self.task, key, value, self.depths[at % len(self.depths)]), rng

    def place(self, question: Question, tokens: int, rng: np.random.Generator) -> Sample:
        """Writes a prompt of so many tokens.

        Raises:
          InputError: see `__getitem__`.
        """
        needed = len(self.tokenizer.encode(question.opening + question.needle + question.closing))
        room = tokens - needed
        if room < 0:
            allowed = f"at least {needed} for this prompt's needle"
            raise InputError("length", f"{tokens} tokens", allowed)
        if self.placement == "sentence":
            return self._by_sentence(question, tokens)
        off = 0.0
        for _ in range(_TRIES):
            start = int(self.haystack.starts[rng.integers(len(self.haystack.starts))])
            lead = max(0, round(question.depth / 100 * room - off))
            sample = self._by_token(question, tokens, lead, start)
            wrong = sample.needle - sample.start - question.depth / 100 * sample.filler
            if abs(len(sample.ids) - tokens) <= 1 and abs(wrong) <= 1:
                return sample
            off += wrong / 2
        found = f"text that cannot be cut to {tokens} tokens with a needle at {question.depth}%"
        raise InputError("essays", found, "text in which tokens are a few characters")

    def _by_token(self, question: Question, tokens: int, lead: int, start: int) -> Sample:
        """A prompt whose needle stands behind `lead` tokens, where a sentence starts."""
        text, rate = self.haystack, self._characters_of_a_token
        opening, needle, closing = question.opening, question.needle, question.closing

        def count(whole: str) -> int:
            return len(self.tokenizer.encode(whole))

        def before(characters: int) -> str:
            return text.before(start, characters)

        def after(characters: int) -> str:
            return (text.gap + text.after(start, characters))[:characters]

        # Tokens of the needle where it follows a sentence: one may hold the gap as well.
        sentence = self.tokenizer.encode("So." + text.gap)
        followed = self.tokenizer.encode("So." + text.gap + needle)
        hidden = len(followed) - _common(sentence, followed)
        first = before(
            fit(
                self.tokenizer,
                whole=lambda n: opening + before(n) + needle,
                part=lambda n, k: opening[-16:] + before(n)[: n - k],
                wanted=count(opening) + lead + hidden,
                guess=round(lead * rate),
                rate=rate,
            )
        )
        missing = tokens - count(opening + first + needle + closing)
        second = after(
            fit(
                self.tokenizer,
                whole=lambda n: text.gap + needle + after(n) + closing,
                part=lambda n, k: after(n)[k:] + closing[:16],
                wanted=count(text.gap + needle + closing) + missing,
                guess=max(0, round(missing * rate)),
                rate=rate,
            )
        )
        return self._sample(question, first, second)

    def _by_sentence(self, question: Question, tokens: int) -> Sample:
        """The longest prompt of whole words or lines, by RULER's rule."""
        unit, gap = ("lines" if self.task == 1 else "words"), self.haystack.gap

        def context(parts: int) -> tuple[str, str]:
            sentences = self.haystack.opening(unit, parts)
            at = int(len(sentences) * (question.depth / 100))
            before, after = sentences[:at], sentences[at:]
            if unit == "lines":  # a needle is one more line
                return gap.join([*before, ""]), gap.join(["", *after])
            return gap.join(before) + gap, gap + gap.join(after)

        def length(parts: int) -> int:
            before, after = context(parts)
            whole = question.opening + before + question.needle + after + question.closing
            return len(self.tokenizer.encode(whole))

        low, high = 0, tokens  # every part is a token or more
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if length(middle) <= tokens else (low, middle - 1)
        return self._sample(question, *context(low))

    def _sample(self, question: Question, before: str, after: str) -> Sample:
        """Measures a prompt whose haystack stands around its needle."""
        opening, needle, closing = question.opening, question.needle, question.closing
        prompt = opening + before + needle + after + closing
        ids = self.tokenizer.encode(prompt)

        def position(in_front: str) -> int:
            """The token in which the text behind a part of the prompt starts."""
            return _common(self.tokenizer.encode(in_front), ids)

        return Sample(
            question=question,
            prompt=prompt,
            ids=ids,
            start=position(opening),
            needle=position(opening + before),
            value=position(opening + before + needle.split(":")[0] + ":"),
            filler=len(ids) - len(self.tokenizer.encode(opening + needle + closing)),
        )

    @functools.cached_property
    def _characters_of_a_token(self) -> float:
        some = self.haystack.after(0, 10_000)
        return max(1.0, len(some) / len(self.tokenizer.encode(some)))


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens that two texts have in common before they differ."""
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if len(different) else size


def least_tokens(tokenizer: Tokenizer, task: int, digits: int = DIGITS) -> int:
    """Tokens that every prompt of a task fits into, with a haystack of a sentence or two."""
    value = str(uuid.UUID(int=2**128 - 1)) if task == 3 else "9" * digits
    question = Question(task, longest_key(), value, 0)
    prompt = question.opening + question.needle + question.closing
    return len(tokenizer.encode(prompt)) + _SMALLEST


def check_depths(field: str, depths: Sequence[float]) -> None:
    """Refuses depths that are none.

    Raises:
      InputError: naming the field.
    """
    for depth in depths:
        number = isinstance(depth, int | float) and not isinstance(depth, bool)
        if not number or not 0 <= depth <= 100:
            raise InputError(field, depth, "percent of the haystack, numbers from 0 to 100")
