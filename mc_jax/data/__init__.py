"""Training and evaluation data: text from many formats, associative recall (MQAR), needles.

    train = train_iterator(config.data, seed=0)   # endless; get_state() and set_state() resume it
    for batch in eval_batches(config.data): ...   # held out, finite, the same every time

A batch is {"inputs": int32 [B, L], "targets": int32 [B, L], "weights": float32 [B, L]}: the token
to predict at each place, and 0 where no loss is taken. The evaluation batches of MQAR also hold
{"distance": int32 [B, L], "pairs": int32 [B]}, those of needles {"distance", "task": int32 [B],
"depth": float32 [B]}.

Everything here is numpy; only `train_iterator` imports Grain.
"""

from typing import TYPE_CHECKING

from mc_jax.data import mqar, needle_examples, text, tokenizers
from mc_jax.data.batches import EvalBatches
from mc_jax.data.config import Config, check, default_config
from mc_jax.data.tokenizers import Tokenizer
from mc_jax.errors import InputError

if TYPE_CHECKING:
    from mc_jax.data.pipeline import TrainIterator

__all__ = ["default_config", "eval_batches", "tokenizer", "train_iterator", "vocab_size"]


def train_iterator(
    config: Config, *, seed: int, process_index: int = 0, process_count: int = 1
) -> "TrainIterator":
    """Returns this process's part of the endless stream of training batches.

    The global batches depend on `config` and `seed` alone, not on the number of processes or
    workers. Tokenises the text first where no earlier run has.

    Args:
      config: `config.data`.
      seed: order of the text, or which recall examples; non-negative.
      process_index: this process.
      process_count: processes that share each batch.

    Returns:
      An iterator of batches of `batch_size / process_count` examples, whose state is one integer:
      `get_state()` gives {"next_batch": n} with n the batches taken. With `workers` it starts
      processes, so the script needs its `if __name__ == "__main__"`; `close()` ends them.

    Raises:
      InputError: for anything in the config, or in a file that it names, that cannot be used.
    """
    check(config)
    if not 0 <= seed < 2**63:
        raise InputError("seed", seed, "a non-negative integer")
    if config.batch_size % process_count:
        raise InputError(
            "data.batch_size", config.batch_size, f"a multiple of the {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise InputError("process_index", process_index, f"an integer in [0, {process_count})")
    from mc_jax.data import pipeline  # imports Grain

    if config.task == "mqar":
        stream = pipeline.generated(mqar.training(config, seed))
    elif config.task == "needles":
        stream = pipeline.generated(needle_examples.training(config, tokenizer(config), seed))
    else:
        stream = pipeline.shuffled_mixture(*text.train_windows(config), seed=seed)
    return pipeline.TrainIterator(
        stream,
        config.batch_size,
        workers=config.workers,
        process_index=process_index,
        process_count=process_count,
    )


def eval_batches(config: Config) -> EvalBatches:
    """Returns the held-out batches, in the same order every time; `len()` of it is their number.

    Every process gets whole batches of `eval_batch_size` examples.

    Raises:
      InputError: as `train_iterator`, or when no text is held out.
    """
    check(config)
    if config.task == "mqar":
        return EvalBatches(mqar.held_out(config), config.eval_batch_size)
    if config.task == "needles":
        held_out = needle_examples.held_out(config, tokenizer(config))
        return EvalBatches(held_out, config.eval_batch_size)
    return EvalBatches(text.eval_windows(config), config.eval_batch_size, config.eval_batches)


def tokenizer(config: Config) -> Tokenizer:
    """Returns the tokenizer of text or needles (see `mc_jax.data.tokenizers.Tokenizer`).

    Raises:
      InputError: another task, or a tokenizer that cannot be loaded.
    """
    if config.task not in ("text", "needles"):
        allowed = "'text' or 'needles': only text has a tokenizer"
        raise InputError("data.task", config.task, allowed)
    return tokenizers.load(config.tokenizer)


def vocab_size(config: Config) -> int:
    """Returns the number of token ids in the batches, which the model's must not be below."""
    return config.mqar.vocab_size if config.task == "mqar" else tokenizer(config).vocab_size
