"""Evaluate a checkpoint on held-out data or on benchmarks; or generate text with it, or export it.

  python eval.py --workdir=runs/default
      the newest checkpoint; --best for the one with the lowest held-out loss, --step=N for
      another that is kept

  python eval.py --workdir=runs/default --eval_batches=0
      all of the held-out text instead of a part of it

  python eval.py --workdir=runs/default --length=2048
      the same model at another length of context than it was trained at

  python eval.py --workdir=runs/NAME --length=2048 --post_training_caching=0.5
      a model that was trained without caching, with its states cached every training length
      (paper, §4.3); results go to eval/post_training

  python eval.py generate --workdir=runs/default --prompt="def main("
      continue a text; python eval.py generate --help says more

  python eval.py needles --workdir=runs/default
      needle in a haystack, after RULER, over lengths and depths

  python eval.py export --workdir=runs/default --to=my-model
      the weights as safetensors, for other programs

  python eval.py harness --workdir=runs/default --tasks=table1
      the paper's tasks, or any, with the LM evaluation harness; --help says more

  python eval.py report --workdir runs/a runs/b
      a page of all results beside the paper's numbers

  python eval.py suite --workdir runs/a runs/b
      every evaluation that needs no network, then the report; goes on where it was stopped

Text models: bits per byte and perplexity, overall and by position in the context. Recall models:
accuracy overall, by the number of key-value pairs and by the distance from value to query. Models
of needles: answers that are right to the last token, by depth. For all, where the gates over
memories look, in one held-out example.

The run's folder receives eval/step_N.json, with all numbers, and the pictures
eval/loss_by_position.png (text), eval/recall.png (recall) or eval/needles.png, and eval/gates.png.

Exit codes: 0 done; 2 a setting, a file or the checkpoint cannot be used.
"""

import sys
from pathlib import Path

from mc_jax.allocator import restart_with_huge_pages
from mc_jax.evaluation import evaluate, summary
from mc_jax.evaluation.generation import export_command, generate_command
from mc_jax.evaluation.needles import needles_command
from mc_jax.evaluation.report import report_command
from mc_jax.evaluation.suite import suite_command
from mc_jax.training.cli import (
    Parser,
    add_caching_option,
    add_checkpoint_options,
    run,
    which_checkpoint,
)


def harness_command(arguments: list[str]) -> int:
    """Run `eval.py harness`, which needs lm-eval; nothing else does."""
    from mc_jax.evaluation.harness import cli

    return cli.harness_command(arguments)


COMMANDS = {
    "generate": generate_command,
    "export": export_command,
    "needles": needles_command,
    "harness": harness_command,
    "report": report_command,
    "suite": suite_command,
}


def main() -> int:
    """Run what the command line describes; returns the exit code."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        return COMMANDS[sys.argv[1]](sys.argv[2:])
    parser = Parser(__doc__)
    add_checkpoint_options(parser)
    parser.add_argument(
        "--eval_batches", type=int, metavar="N", help="instead of the run's data.eval_batches"
    )
    parser.add_argument("--length", type=int, metavar="N", help="instead of the run's data.length")
    add_caching_option(parser)
    arguments = parser.parse_args()
    workdir = Path(arguments.workdir)
    cached = arguments.post_training_caching
    results = evaluate(
        workdir, which_checkpoint(arguments), arguments.eval_batches, arguments.length, cached
    )
    print(summary(results))
    folder = workdir / "eval" / ("" if cached is None else "post_training")
    print(f"\nall numbers and the pictures: {folder}")
    return 0


if __name__ == "__main__":
    restart_with_huge_pages()
    run(main)
