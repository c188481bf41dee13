"""The command `eval.py harness`."""

import argparse
import logging
import os
import warnings
from pathlib import Path

import datasets

from mc_jax.allocator import keep_freed_memory
from mc_jax.errors import InputError
from mc_jax.evaluation.harness import selection
from mc_jax.evaluation.harness.adapter import check_batch
from mc_jax.evaluation.harness.cutting import CUTS
from mc_jax.evaluation.harness.lengths import REFUSE, TOO_LONG, Limit
from mc_jax.evaluation.harness.run import Files, Settings, evaluate
from mc_jax.evaluation.harness.subject import describe
from mc_jax.evaluation.harness.summary import summary
from mc_jax.training.cli import Parser, add_caching_option, add_checkpoint_options, which_checkpoint

HARNESS = """Evaluate a model with the LM evaluation harness (lm-eval), on the paper's tasks or any.

  python eval.py harness --workdir=runs/x --tasks=table1 --max_length=2048
  python eval.py harness --workdir=runs/x --tasks=table3 --max_length=16384
  python eval.py harness --workdir=runs/x --tasks=table3 --context=512,1024 --max_length=1024
  python eval.py harness --workdir=runs/x --tasks=table4 --max_length=16384 --too_long=left
  python eval.py harness --workdir=runs/x --tasks=piqa,my_task --include_path=my_tasks --limit=100

table1: wikitext, lambada_openai, piqa, hellaswag, winogrande, arc_easy, arc_challenge, social_iqa,
boolq. table3: swde, squad_completion, fda, and the DROP, NQ and TriviaQA of Based. table4: the
paper's 14 tasks of LongBench. docs/harness.md says where their data come from.

The workdir is a run's, or a folder that `eval.py export` wrote. It receives
eval/harness/TASK-step_N-ID.json, a file for each task (and context), where ID stands for the
settings. A command that was stopped, or killed, goes on where it was; tasks that are done with the
same checkpoint and settings are not done again.
"""


def harness_command(arguments: list[str]) -> int:
    """Run `eval.py harness`; returns the exit code."""
    options = _parser().parse_args(arguments)
    _keep_quiet()
    workdir, include_path = Path(options.workdir), options.include_path
    contexts = _contexts(options.context)
    _check_numbers(options, contexts)
    batch_size = check_batch(options.batch_size)
    choices, index = selection.choose(
        options.tasks, contexts, Path(include_path) if include_path else None
    )
    subject = describe(
        workdir, which_checkpoint(options), options.post_training_caching, options.tokenizer
    )
    max_length = subject.trained_length if options.max_length is None else options.max_length
    Limit(max_length, options.too_long).check()
    longest = max((choice.context or 0 for choice in choices), default=0)
    if longest > max_length:
        allowed = f"at most --max_length={max_length}; or a longer --max_length"
        raise InputError("--context", longest, allowed)
    settings = Settings(
        max_length,
        options.too_long,
        options.limit,
        options.num_fewshot,
        options.post_training_caching,
        options.log_samples,
    )
    files = Files(workdir, subject, settings)
    found = {} if options.again else {choice: files.finished(choice) for choice in choices}
    left = [choice for choice in choices if not found.get(choice)]
    if left:
        data_dir = Path(options.data_dir) if options.data_dir else None
        tasks = selection.load((c.task for c in left), index, data_dir, options.num_fewshot)
    if done := [str(choice) for choice in choices if choice not in left]:
        print(f"done already, with this checkpoint and these settings: {', '.join(done)}")
    if left:
        keep_freed_memory()
        results = evaluate(workdir, subject, settings, left, tasks, batch_size)
        found |= dict(zip(left, results, strict=True))
    print(summary([result for choice in choices if (result := found[choice])]))
    print(f"\nall numbers: {files.folder}")
    return 0


def _parser() -> Parser:
    parser = Parser(HARNESS)
    add_checkpoint_options(parser)
    parser.add_argument(
        "--tasks", metavar="NAMES", required=True, help="tables and tasks, with commas between"
    )
    parser.add_argument("--include_path", metavar="FOLDER", help="with task files of your own")
    parser.add_argument("--data_dir", metavar="FOLDER", help="with data sets (docs/harness.md)")
    parser.add_argument(
        "--context",
        metavar="N[,N]",
        help=f"cut the documents of {', '.join(CUTS)} to so many tokens, question and answer "
        "included; with table3 512,1024,2048,16384 by default",
    )
    parser.add_argument(
        "--max_length", type=int, metavar="N", help="longest context in tokens; as in training"
    )
    parser.add_argument(
        "--too_long",
        default=REFUSE,
        choices=TOO_LONG,
        help="refuse to begin if a request is longer (default), or cut it from the left",
    )
    parser.add_argument("--limit", type=float, metavar="N", help="first documents; below 1 a share")
    parser.add_argument("--num_fewshot", type=int, metavar="N", help="examples before a question")
    parser.add_argument("--batch_size", metavar="N", help="requests at a time; 8 by default")
    parser.add_argument("--tokenizer", metavar="KIND:PATH", help="where its file is now")
    parser.add_argument("--log_samples", action="store_true", help="keep requests and answers")
    parser.add_argument("--again", action="store_true", help="do tasks again that are done")
    add_caching_option(parser)
    return parser


def _contexts(text: str | None) -> list[int] | None:
    if text is None:
        return None
    numbers = text.split(",")
    if not all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
        raise InputError("--context", text, "numbers of tokens, such as 512 or 512,1024,2048,16384")
    return [int(number) for number in numbers]


def _check_numbers(options: argparse.Namespace, contexts: list[int] | None) -> None:
    if options.limit is not None and not (
        0 < options.limit < 1 or (options.limit >= 1 and options.limit == int(options.limit))
    ):
        raise InputError("--limit", options.limit, "a number of documents, or a share below 1")
    if options.num_fewshot is not None and options.num_fewshot < 0:
        raise InputError("--num_fewshot", options.num_fewshot, "an integer >= 0")
    if options.num_fewshot and (contexts or "table3" in options.tasks):
        raise InputError("--num_fewshot", options.num_fewshot, "0 where documents are cut")


def _keep_quiet() -> None:
    """Leave the terminal to this command's own lines."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message="Using slow pure-python SequenceMatcher")
    # Resampling in processes forked from one with threads can hang.
    os.environ["DISABLE_MULTIPROC"] = "1"
