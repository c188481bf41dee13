"""The commands `eval.py generate` and `eval.py export`."""

import argparse
import re
import sys
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mc_jax import data
from mc_jax.allocator import keep_freed_memory
from mc_jax.caching import FORMS
from mc_jax.errors import InputError
from mc_jax.inference import (
    ModelCache,
    Sampling,
    Storage,
    cache_after_training,
    memories_lost,
    prefill,
    stream,
)
from mc_jax.inference.generation import check_request, encode
from mc_jax.inference.session import Session, load_session, save_session
from mc_jax.inference.storage import WHEN_FULL
from mc_jax.inference.weights import (
    CONFIG,
    Weights,
    check_folder,
    export_weights,
    import_weights,
    read_config,
)
from mc_jax.model import ModelConfig
from mc_jax.training import Saved, load
from mc_jax.training.cli import Parser, add_caching_option, add_checkpoint_options, which_checkpoint

# Bytes of the units of --memory_budget.
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

GENERATE = """Continue a text with a trained model, on standard output as it is written.

  python eval.py generate --workdir=runs/default --prompt="def main("
  python eval.py generate --workdir=runs/default --prompt_file=chapter.txt --temperature=0
  cat chapter.txt | python eval.py generate --workdir=runs/default

A long document can be read once and kept:

  python eval.py generate --workdir=runs/default --prompt_file=book.txt --save_session=book.session
  python eval.py generate --workdir=runs/default --session=book.session --prompt=" The moral is"

The workdir is a run's, or a folder that `eval.py export` wrote.
"""

EXPORT = """Write a model's weights as safetensors and its config as JSON.

  python eval.py export --workdir=runs/default --to=my-model
"""


def generate_command(arguments: list[str]) -> int:
    """Run `eval.py generate`; returns the exit code."""
    parser = Parser(GENERATE)
    add_checkpoint_options(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="what to continue")
    prompt.add_argument("--prompt_file", metavar="FILE", help="the same from a file; - for stdin")
    parser.add_argument("--max_tokens", type=int, default=256, metavar="N", help="default 256")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest token")
    parser.add_argument("--top_k", type=int, default=0, help="draw from the k likeliest tokens")
    parser.add_argument("--top_p", type=float, default=1.0, help="draw from this share")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")
    parser.add_argument("--stop", action="append", default=[], help="end before this text; often")
    parser.add_argument("--session", metavar="FILE", help="go on from a text that was kept")
    parser.add_argument("--save_session", metavar="FILE", help="keep the text up to the prompt")
    add_caching_option(parser)
    _add_storage_options(parser)
    options = parser.parse_args(arguments)
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    storage = _storage(options)
    if options.save_session:
        _check_file("--save_session", Path(options.save_session))
    check_request(options.max_tokens, options.stop, options.seed)
    text = _prompt(options.prompt, options.prompt_file, options.session)
    saved = open_model(Path(options.workdir), which_checkpoint(options))
    if saved.config.data.task not in ("text", "needles"):
        raise InputError("workdir", options.workdir, "a model that was trained on text")
    config = ModelConfig.from_dict(saved.config.model.to_dict())
    if options.post_training_caching is not None:
        length = saved.config.data.length
        config = cache_after_training(config, length, options.post_training_caching)
    storage.check(config)
    tokenizer = data.tokenizer(saved.config.data)
    keep_freed_memory()
    session = None
    if options.session:
        session = load_session(Path(options.session), config, saved.params)
        if (sequences := session.logits.shape[0]) != 1:
            raise InputError("--session", f"{sequences} texts", "a session of one")
    started = time.perf_counter()
    if text or session is None:
        tokens, _ = encode(tokenizer, [text])
        cache = None if session is None else session.cache
        long = tokens.shape[1] > 10_000
        read = prefill(config, saved.params, tokens, cache, storage=storage, progress=long)
        session = Session(*jax.block_until_ready(read))
        seconds = time.perf_counter() - started
        print(f"read {tokens.shape[1]:,} tokens in {seconds:.1f} s", file=sys.stderr)
        _tell_lost(config, session.cache)
    if options.save_session:
        save_session(Path(options.save_session), config, saved.params, session)
    for piece in stream(
        config,
        saved.params,
        tokenizer,
        *session,
        max_tokens=options.max_tokens,
        sampling=sampling,
        storage=storage,
        stop=options.stop,
        seed=options.seed,
    ):
        print(piece, end="", flush=True)
    print()
    return 0


def export_command(arguments: list[str]) -> int:
    """Run `eval.py export`; returns the exit code."""
    parser = Parser(EXPORT)
    add_checkpoint_options(parser)
    parser.add_argument("--to", metavar="FOLDER", required=True, help="made if it is not there")
    options = parser.parse_args(arguments)
    to = Path(options.to)
    check_folder(to)
    saved = load(Path(options.workdir), which_checkpoint(options))
    params = jax.tree.map(np.asarray, saved.params)
    export_weights(to, Weights(saved.config.to_dict(), params, saved.step))
    count = sum(x.size for x in jax.tree.leaves(params))
    print(f"{count:,} parameters of step {saved.step} in {options.to}")
    return 0


def open_model(folder: Path, which: str | int, weights: bool = True) -> Saved:
    """The model of a run, or of a folder that `eval.py export` wrote.

    Args:
      folder: the run or the export.
      which: of a run's checkpoints, see `mc_jax.training.load`.
      weights: whether to read the parameters, which are None otherwise.

    Raises:
      InputError: neither, or a damaged one; or a checkpoint of such a folder, which has no other.
    """
    if (folder / "checkpoints").is_dir() or not (folder / CONFIG).is_file():
        return load(folder, which, weights)
    config, step = read_config(folder)
    if which not in ("latest", step):
        allowed = f"no --best, and no --step but {step}: the one that was exported"
        raise InputError("checkpoint", which, allowed)
    return Saved(step, ConfigDict(config), import_weights(folder).params if weights else None)


def _add_storage_options(parser: Parser) -> None:
    """Add what `Storage` has."""
    parser.add_argument("--memory_form", choices=FORMS, help="type of the cached memories")
    parser.add_argument(
        "--memory_budget",
        metavar="SIZE",
        help="most that cached memories take, 500MB or 2GiB, say; no limit by default",
    )
    parser.add_argument(
        "--when_full",
        choices=WHEN_FULL,
        help="what makes room in the budget: drop the oldest memories (default), or merge "
        "neighbours among the older half",
    )
    parser.add_argument(
        "--host_memories",
        action="store_true",
        help="keep cached memories in the host's memory (aggregation=ssc)",
    )


def _storage(options: argparse.Namespace) -> Storage:
    """What those options say."""
    budget = None
    if options.memory_budget is not None:
        size = re.fullmatch(r"(\d+(?:\.\d+)?) *(k|M|G|Ki|Mi|Gi)?B?", options.memory_budget)
        if not size:
            allowed = "a number and B, kB, MB, GB, KiB, MiB or GiB"
            raise InputError("--memory_budget", options.memory_budget, allowed)
        budget = int(float(size[1]) * _UNITS[size[2] or ""])
    elif options.when_full:
        raise InputError("--when_full", options.when_full, "this with --memory_budget only")
    return Storage(options.memory_form, options.host_memories, budget, options.when_full or "drop")


def _tell_lost(config: ModelConfig, cache: ModelCache) -> None:
    """Say which part of a text the budget has taken from the memories."""
    if not config.memory.options.caches or "memory" not in config.pattern:
        return
    if lost := int(memories_lost(config, cache)):
        total = int(cache.position) // config.memory.segment_len
        print(
            f"memory budget: of {total:,} memories {lost:,} are dropped or merged into others",
            file=sys.stderr,
        )


def _check_file(field: str, path: Path) -> None:
    """Raise InputError if there can be no such file."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(field, str(path), "a file in a folder that exists")


def _prompt(text: str | None, file: str | None, session: str | None) -> str:
    """The prompt, from the option, the file or standard input, exactly as it stands there."""
    if text is None and file is None and session is not None:
        return ""
    if text is None:
        text = _read_standard_input() if file in (None, "-") else _read_file(Path(str(file)))
    if not text:
        raise InputError("prompt", text, "a text of at least one token")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("--prompt", text, "a text in UTF-8") from None
    return text


def _read_file(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        allowed = f"a text file that can be read ({error})"
        raise InputError("--prompt_file", str(path), allowed) from None


def _read_standard_input() -> str:
    if sys.stdin.isatty():
        print("reading the prompt from the terminal; end it with Ctrl-D", file=sys.stderr)
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError("prompt", "standard input", f"a text in UTF-8 ({error})") from None
