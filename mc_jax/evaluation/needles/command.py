"""The command line of `eval.py needles`."""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mc_jax import data
from mc_jax.allocator import keep_freed_memory
from mc_jax.data import haystack, needles
from mc_jax.data.tokenizers import Tokenizer
from mc_jax.errors import InputError
from mc_jax.evaluation import pictures, results
from mc_jax.evaluation.generation import open_model
from mc_jax.evaluation.needles.run import Cell, Generate, evaluate_cell
from mc_jax.evaluation.summary import table
from mc_jax.inference import Sampling, cache_after_training, generate
from mc_jax.model import ModelConfig
from mc_jax.training import Saved
from mc_jax.training.cli import Parser, add_caching_option, add_checkpoint_options, which_checkpoint

NEEDLES = """Needle in a haystack, after RULER: how often a model finds one sentence in a long text.

  python eval.py needles --workdir=runs/default
  python eval.py needles --workdir=runs/default --tasks 2 3 --essays=essays.txt \\
      --lengths 1024 2048 4096 8192 16384

Tasks are S-NIAH-1 (a number in repeated sentences), 2 (a number in essays) and 3 (a UUID in
essays). A length holds the prompt and the tokens of the answer. Results, all predictions and the
picture of accuracy by length and depth go to eval/needles/NAME in the workdir, which is a run's or
a folder that `eval.py export` wrote. A run that was stopped goes on where it was; more --samples
keep those that are there. docs/needles.md says what is RULER's and what is not.
"""


def needles_command(arguments: list[str]) -> int:
    """Run `eval.py needles`; returns the exit code."""
    options = _parser().parse_args(arguments)
    _check(options)
    noise, essays = haystack.noise(), None
    if set(options.tasks) & set(needles.ESSAY_TASKS):
        essays = haystack.essays(options.essays or "stdlib", "--essays")
    saved = open_model(Path(options.workdir), which_checkpoint(options))
    if saved.config.data.task not in ("text", "needles"):
        raise InputError("workdir", options.workdir, "a model that was trained on text or needles")
    config = ModelConfig.from_dict(saved.config.model.to_dict())
    if options.post_training_caching is not None:
        length = saved.config.data.length
        config = cache_after_training(config, length, options.post_training_caching)
    tokenizer = data.tokenizer(saved.config.data)
    cells = []
    for task in sorted(set(options.tasks)):
        text = noise if essays is None or task not in needles.ESSAY_TASKS else essays
        cells += _cells(options, saved.step, task, text, tokenizer)
    folder = Path(options.workdir) / "eval" / "needles" / _name(options, saved.step)
    done = sum(min(len(cell.done(folder)), options.samples) for cell in cells)
    results.make_folder(folder)
    keep_freed_memory()
    complete = _generate(config, saved, tokenizer, options.new_tokens)
    found = []
    total = options.samples * len(cells)
    with tqdm(total=total, initial=done, unit="prompt", dynamic_ncols=True) as bar:
        for cell in cells:
            bar.set_description(f"S-NIAH-{cell.prompts.task}, {cell.length:,} tokens")
            found.append(evaluate_cell(cell, folder, complete, options.batch_size, bar.update))
    pictures.draw_needles(
        folder / "needles.png",
        [result.content for result in results.find([folder]) if result.kind == "needles"],
    )
    print(summary(found, saved.step))
    print(f"\nall numbers, predictions and the picture: {folder}")
    return 0


def summary(found: Sequence[dict[str, Any]], step: int) -> str:
    """Accuracies, and in brackets of how many prompts, by task and length."""
    cells = {(row["task"], row["length"]): row for row in found}
    tasks = sorted({task for task, _ in cells})
    lengths = sorted({length for _, length in cells})
    lines = [[f"step {step}, accuracy", *(f"{length:,}" for length in lengths)]]
    for task in tasks:
        row = [cells[task, length] for length in lengths]
        lines.append([task, *(f"{one['accuracy']:.3f} ({one['samples']})" for one in row)])
    return table(lines)


def _parser() -> Parser:
    parser = Parser(NEEDLES)
    add_checkpoint_options(parser)
    many: dict[str, Any] = {"nargs": "+", "metavar": "N"}
    for name, kind, default, help in (
        ("--tasks", int, [1, 2, 3], "of 1, 2 and 3; default all"),
        ("--lengths", int, [1024, 2048, 4096], "in tokens; default 1024 2048 4096"),
        ("--depths", float, [], "in percent; default RULER's 40, evenly spaced"),
    ):
        parser.add_argument(name, type=kind, default=default, help=help, **many)
    parser.add_argument(
        "--samples", type=int, default=500, metavar="N", help="of each task and length; default 500"
    )
    parser.add_argument(
        "--essays",
        metavar="FILE",
        help="of tasks 2 and 3: a text file, a folder of .txt files, or a source as in "
        "data.sources (jsonl:FILE?field=text, say); default the standard library's sources",
    )
    parser.add_argument(
        "--placement",
        choices=needles.PLACEMENTS,
        default="token",
        help="token: lengths and depths to the token (default); sentence: RULER's rule",
    )
    parser.add_argument(
        "--digits", type=int, default=needles.DIGITS, metavar="N", help="of numbers; RULER's have 7"
    )
    parser.add_argument(
        "--new_tokens",
        type=int,
        default=needles.NEW_TOKENS,
        metavar="N",
        help="of an answer; RULER allows 128",
    )
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="prompts at a time")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the prompts")
    parser.add_argument("--name", help="of the results; default step_N")
    add_caching_option(parser)
    return parser


def _check(options: argparse.Namespace) -> None:
    """Check what can be checked without the model."""
    for task in options.tasks:
        if task not in needles.TASKS:
            raise InputError("--tasks", task, "1, 2 and 3, for S-NIAH-1, 2 and 3")
    for name in ("samples", "new_tokens", "batch_size"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name}", getattr(options, name), "an integer >= 1")
    needles.check_depths("--depths", options.depths)
    if not 1 <= options.digits <= needles.MOST_DIGITS:
        allowed = f"an integer from 1 to {needles.MOST_DIGITS}"
        raise InputError("--digits", options.digits, allowed)
    if options.seed < 0:
        raise InputError("--seed", options.seed, "an integer >= 0")
    if options.name is not None and Path(options.name).name != options.name:
        raise InputError("--name", options.name, "the name of a folder, without others in it")
    if options.essays is not None and not set(options.tasks) & set(needles.ESSAY_TASKS):
        raise InputError("--essays", options.essays, "this with --tasks 2 or 3 only")
    if options.digits != needles.DIGITS and set(options.tasks) == {3}:
        raise InputError("--digits", options.digits, "this with --tasks 1 or 2 only")


def _cells(
    options: argparse.Namespace, step: int, task: int, text: haystack.Haystack, tokenizer: Tokenizer
) -> list[Cell]:
    """One task at all lengths."""
    needed = needles.least_tokens(tokenizer, task, options.digits) + options.new_tokens
    depths = tuple(int(d) if d.is_integer() else d for d in options.depths) or needles.DEPTHS
    settings: dict[str, Any] = {
        "step": step,
        "post_training_caching": options.post_training_caching,
        "depths": list(depths),
        "placement": options.placement,
        "new_tokens": options.new_tokens,
        "seed": options.seed,
    }
    if task in needles.ESSAY_TASKS:
        settings["essays"] = options.essays or "stdlib"
        settings["essays_digest"] = hashlib.blake2b(text.text.encode(), digest_size=8).hexdigest()
    if task != 3:
        settings["digits"] = options.digits
    cells = []
    for length in sorted(set(options.lengths)):
        if length < needed:
            parts = f"the prompt of S-NIAH-{task} and {options.new_tokens} new tokens"
            raise InputError("--lengths", length, f"at least {needed}: {parts}")
        prompts = needles.Prompts(
            task=task,
            tokenizer=tokenizer,
            haystack=text,
            tokens=length - options.new_tokens,
            size=options.samples,
            depths=depths,
            seed=options.seed,
            digits=options.digits,
            placement=options.placement,
        )
        cells.append(Cell(prompts, length, settings))
    return cells


def _name(options: argparse.Namespace, step: int) -> str:
    if options.name:
        return options.name
    decay = options.post_training_caching
    return f"step_{step}" + ("" if decay is None else f"_post_training_{decay}")


def _generate(config: ModelConfig, saved: Saved, tokenizer: Tokenizer, new_tokens: int) -> Generate:
    """The model, always writing the likeliest token."""

    def complete(prompts: list[str]) -> list[str]:
        greedy = Sampling(temperature=0)
        found = generate(
            config, saved.params, tokenizer, prompts, max_tokens=new_tokens, sampling=greedy
        )
        return [completion.text for completion in found]

    return complete
