"""Evaluate a checkpoint of a run on its held-out data.

  python eval.py --workdir=runs/default
      the newest checkpoint; --best for the one with the lowest held-out loss, --step=N for
      another that is kept

  python eval.py --workdir=runs/default --eval_batches=0
      all of the held-out text instead of a part of it

  python eval.py --workdir=runs/default --length=2048
      the same model at another length of context than it was trained at

Text models: bits per byte and perplexity, overall and by position in the context. Recall models:
accuracy overall, by the number of key-value pairs and by the distance from value to query. For
both, where the gates over memories look, in one held-out example.

The run's folder receives eval/step_N.json, with all numbers, and the pictures
eval/loss_by_position.png (text) or eval/recall.png (recall), and eval/gates.png.

Exit codes: 0 done; 2 a setting, a file or the checkpoint cannot be used.
"""

from pathlib import Path

from mc_jax.evaluation import evaluate, summary
from mc_jax.training.cli import Parser, run


def main() -> int:
    """Run the evaluation that the command line describes; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--workdir", metavar="FOLDER", required=True, help="the run's folder")
    checkpoint = parser.add_mutually_exclusive_group()
    checkpoint.add_argument("--step", type=int, metavar="N", help="a step that is kept")
    checkpoint.add_argument("--best", action="store_true", help="the lowest held-out loss")
    parser.add_argument(
        "--eval_batches", type=int, metavar="N", help="instead of the run's data.eval_batches"
    )
    parser.add_argument("--length", type=int, metavar="N", help="instead of the run's data.length")
    arguments = parser.parse_args()
    which = "best" if arguments.best else "latest" if arguments.step is None else arguments.step
    workdir = Path(arguments.workdir)
    results = evaluate(workdir, which, arguments.eval_batches, arguments.length)
    print(summary(results))
    print(f"\nall numbers and the pictures: {workdir / 'eval'}")
    return 0


if __name__ == "__main__":
    run(main)
