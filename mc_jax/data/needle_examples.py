"""Needles as a task to train on: prompts with their answers, in `data.length` tokens.

Prompts are up to 64 tokens shorter than they could be: a model that has seen answers at one place
within a segment alone has not learned to write them at others.
"""

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np

from mc_jax.data import haystack
from mc_jax.data.config import Config
from mc_jax.data.needles import DEPTHS, ESSAY_TASKS, Prompts, Question, least_tokens
from mc_jax.data.tokenizers import Tokenizer
from mc_jax.errors import InputError

# Lengths of prompts, up to the longest.
_SPREAD = 64
# Tokens of an answer beside the value, and to spare for the value: a space before it, a point and
# the end of the text behind.
_ANSWER = 40


@dataclasses.dataclass(frozen=True)
class Examples(Sequence):
    """Random access to the examples of one stream.

    An example is a prompt, " VALUE." and the end of the text, which is what a model is to write.

    Attributes:
      prompts: of each task, of which an example draws one.
      length: tokens of an example that are read.
      spread: how many lengths of prompts there are, the longest of which fills `length`.
      everything: whether all tokens are targets, not only those of the answer.
    """

    prompts: tuple[Prompts, ...]
    length: int
    spread: int
    everything: bool

    def __len__(self):
        return self.prompts[0].size

    def __getitem__(self, index):
        """Returns one example.

        Returns:
          {"inputs", "targets": int32 [length], "weights": float32 [length]}; held-out ones, whose
          targets are always the answer's, also {"distance": int32 [length], tokens from what is to
          be copied to where it is to be written, 0 elsewhere, "task": int32, "depth": float32,
          what was asked for in percent}.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        prompts = self.prompts[index % len(self.prompts)]
        question, rng = prompts.draw(index)
        tokenizer = prompts.tokenizer
        answer = np.append(tokenizer.encode(_answer(question)), np.int32(tokenizer.eos_id))
        shorter = int(rng.integers(self.spread))
        sample = prompts.place(question, self.length + 1 - len(answer) - shorter, rng)
        written = np.concatenate([sample.ids, answer])
        # A prompt may be a token too long; then its first one is left out.
        cut = max(0, len(written) - (self.length + 1))
        ids = np.full(self.length + 1, tokenizer.eos_id, np.int32)
        ids[: len(written) - cut] = written[cut:]
        first = len(sample.ids) - cut - 1  # reads the prompt's last token
        asked = slice(first, first + len(answer))

        weights = np.zeros(self.length, np.float32)
        weights[slice(0, asked.stop) if self.everything else asked] = 1
        example = {"inputs": ids[:-1], "targets": ids[1:], "weights": weights}
        if prompts.held_out:
            distance = np.zeros(self.length, np.int32)
            distance[asked] = first - (sample.value - cut)
            example["distance"] = distance
            example["task"] = np.array(question.task, np.int32)
            example["depth"] = np.array(question.depth, np.float32)
        return example


def training(config: Config, tokenizer: Tokenizer, seed: int) -> Examples:
    """Returns the endless training examples of `config.data.needles`.

    Raises:
      InputError: essays that cannot be used, or a length that holds no prompt.
    """
    prompts = tuple(_prompts(config, tokenizer, seed, held_out=False, size=sys.maxsize))
    spread = min(_spread(config, tokenizer, task) for task in config.needles.tasks)
    return Examples(prompts, config.length, spread, everything=config.needles.loss == "all")


def held_out(config: Config, tokenizer: Tokenizer) -> list[Examples]:
    """Returns as many evaluation examples for each of `tasks` as `eval_batches` hold.

    Raises:
      InputError: as `training`.
    """
    size = config.eval_batches * config.eval_batch_size
    found = _prompts(config, tokenizer, seed=0, held_out=True, size=size)
    return [
        Examples(
            (prompts,), config.length, _spread(config, tokenizer, prompts.task), everything=False
        )
        for prompts in found
    ]


def _prompts(
    config: Config, tokenizer: Tokenizer, seed: int, held_out: bool, size: int
) -> list[Prompts]:
    task = config.needles
    found = []
    for number in task.tasks:
        if _spread(config, tokenizer, number) < 1:
            needed = least_tokens(tokenizer, number, task.digits) + _ANSWER
            allowed = f"at least {needed}: the prompt of S-NIAH-{number} and its answer"
            raise InputError("data.length", config.length, allowed)
        text = haystack.noise()
        if number in ESSAY_TASKS:
            text = haystack.essays(task.essays, "data.needles.essays")
        depths = tuple(task.depths) or DEPTHS
        about = {"depths": depths, "seed": seed, "held_out": held_out, "digits": task.digits}
        found.append(Prompts(number, tokenizer, text, config.length, size, **about))
    return found


def _spread(config: Config, tokenizer: Tokenizer, task: int) -> int:
    """Lengths of prompts that there is room for, at most `_SPREAD`; below 1 for none."""
    needed = least_tokens(tokenizer, task, config.needles.digits) + _ANSWER
    return min(_SPREAD, config.length - needed + 1)


def _answer(question: Question) -> str:
    return f" {question.value}."
