"""Every key of `config.data`, and the checks that need no file to be opened."""

from typing import Any

import ml_collections

from mc_jax.data.needles import MOST_DIGITS, TASKS, check_depths
from mc_jax.errors import InputError

Config = Any  # an ml_collections.ConfigDict, or anything with the same attributes


def default_config() -> ml_collections.ConfigDict:
    """Returns every key of `config.data` with its default: bytes of the standard library."""
    config = ml_collections.ConfigDict()
    config.task = "text"  # "text" | "mqar" (multi-query associative recall) | "needles" (in a
    #                       haystack, after RULER)
    config.length = 512  # tokens of one training example
    config.batch_size = 16  # examples of one step, over all processes
    config.workers = 0  # processes that prepare batches; 0: threads of this process

    config.eval_batch_size = 16
    config.eval_batches = 16  # text: at most so many, spread over the held-out text (0: all of it);
    #                           mqar, needles: exactly so many for each pair count or task

    # Text. A source is "kind:path" or "kind:path?option=value&option=value":
    #   stdlib                          the Python standard library's own sources
    #   files:/data/**/*.txt            one document per file
    #   jsonl:/data/*.jsonl?field=text  one document per line (.jsonl.gz as well)
    #   parquet:/data/*.parquet?field=text
    #   arrayrecord:/data/*.arrayrecord[?field=text]   records are text, or JSON objects
    #   hf:HuggingFaceFW/fineweb:sample-10BT?field=text&split=train   (needs a network)
    # Every kind takes the option max_tokens=N: stop after N tokens.
    config.sources = ("stdlib",)
    config.weights = ()  # share of each source in a batch; (): as many tokens as each has
    config.eval_sources = ()  # held-out text; (): a part of the sources' documents
    config.eval_fraction = 0.05  # that part, chosen by a hash of the document's name
    config.tokenizer = "bytes"  # "bytes" | "sentencepiece:/x.model" | "hf:/x/tokenizer.json"
    config.cache_dir = "~/.cache/mc_jax"  # tokenised text is kept here

    config.mqar = ml_collections.ConfigDict()
    config.mqar.vocab_size = 256  # keys are [1, V/2), values are [V/2, V)
    config.mqar.pairs = (64,)  # key-value pairs of a training example, drawn from these
    config.mqar.eval_pairs = (8, 16, 32, 64)  # held-out examples for each of these
    config.mqar.power_a = 0.01  # the n-th place after the pairs is asked with p ~ n^(a - 1)

    # Needles in tokens of `tokenizer`: a prompt and its answer fill the length.
    config.needles = ml_collections.ConfigDict()
    config.needles.tasks = (1,)  # of S-NIAH-1, 2, 3: drawn from; each has held-out examples
    config.needles.depths = ()  # percent of the haystack before the needle; (): RULER's 40
    config.needles.digits = 7  # of a number; RULER's have 7
    config.needles.essays = "stdlib"  # of tasks 2 and 3: a text file, a folder, or a source
    config.needles.loss = "answer"  # "answer" | "all": the tokens that count
    return config


def check(config: Config) -> None:
    """Raises InputError for any value of `config.data` that cannot work."""
    if config.task not in ("text", "mqar", "needles"):
        raise InputError("data.task", config.task, "'text', 'mqar' or 'needles'")
    for key, smallest in (
        ("length", 1),
        ("batch_size", 1),
        ("workers", 0),
        ("eval_batch_size", 1),
        ("eval_batches", 0),
    ):
        if config[key] < smallest:
            raise InputError(f"data.{key}", config[key], f"an integer of at least {smallest}")
    if config.task != "text" and config.eval_batches < 1:
        raise InputError("data.eval_batches", config.eval_batches, f"at least 1 for {config.task}")
    {"text": _check_text, "mqar": _check_mqar, "needles": _check_needles}[config.task](config)


def _check_types(field: str, values: Any, kind: type | tuple[type, ...], allowed: str) -> None:
    """Check the elements of a tuple; a bool is no number here."""
    if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
        raise InputError(field, tuple(values), allowed)


def _check_text(config: Config) -> None:
    for key in ("sources", "eval_sources"):
        _check_types(f"data.{key}", config[key], str, "a tuple of strings, such as ('stdlib',)")
    _check_types("data.weights", config.weights, (int, float), "a tuple of numbers")
    if not config.sources:
        raise InputError("data.sources", tuple(config.sources), "at least one, such as 'stdlib'")
    if config.weights and len(config.weights) != len(config.sources):
        raise InputError(
            "data.weights",
            tuple(config.weights),
            f"one weight for each of the {len(config.sources)} data.sources, or ()",
        )
    if not all(0 < weight < float("inf") for weight in config.weights):
        raise InputError("data.weights", tuple(config.weights), "positive numbers")
    if not 0 <= config.eval_fraction < 1:
        raise InputError("data.eval_fraction", config.eval_fraction, "a number in [0, 1)")


def _check_mqar(config: Config) -> None:
    mqar = config.mqar
    if not 0 < mqar.power_a < float("inf"):
        raise InputError("data.mqar.power_a", mqar.power_a, "a positive number")
    for key in ("pairs", "eval_pairs"):
        field, counts = f"data.mqar.{key}", tuple(mqar[key])
        _check_types(field, counts, int, "a tuple of integers")
        if not counts or min(counts) < 1:
            raise InputError(field, counts, "one or more pair counts, each at least 1")
        if 4 * max(counts) > config.length:
            raise InputError(
                field,
                counts,
                f"4 * pairs <= data.length = {config.length}: at most {config.length // 4}",
            )
        if max(counts) > mqar.vocab_size // 2 - 1:
            raise InputError(
                "data.mqar.vocab_size",
                mqar.vocab_size,
                f"at least {2 * max(counts) + 2}: the {max(counts)} pairs of {field} need "
                "as many different keys in [1, V/2)",
            )


def _check_needles(config: Config) -> None:
    task = config.needles
    if not task.tasks or any(one not in TASKS for one in task.tasks):
        raise InputError("data.needles.tasks", tuple(task.tasks), "one or more of 1, 2 and 3")
    check_depths("data.needles.depths", task.depths)
    if not 1 <= task.digits <= MOST_DIGITS:
        raise InputError("data.needles.digits", task.digits, f"an integer from 1 to {MOST_DIGITS}")
    if task.loss not in ("answer", "all"):
        raise InputError("data.needles.loss", task.loss, "'answer' or 'all'")
