"""Evaluates a checkpoint of a run: numbers into JSON, pictures beside them."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from mc_jax import data
from mc_jax.allocator import keep_freed_memory
from mc_jax.evaluation import gates, pictures, scores
from mc_jax.evaluation.answers import evaluate_answers
from mc_jax.evaluation.recall import evaluate_recall
from mc_jax.evaluation.results import make_folder, write
from mc_jax.evaluation.text import evaluate_text
from mc_jax.inference import cache_after_training
from mc_jax.model import LanguageModel
from mc_jax.training import Experiment, check, load
from mc_jax.training.sharding import check_batch_size, data_parallel
from mc_jax.typing import PyTree

Results = dict[str, Any]


def evaluate(
    workdir: Path,
    which: str | int = "latest",
    eval_batches: int | None = None,
    length: int | None = None,
    post_training: float | None = None,
) -> Results:
    """Evaluate a checkpoint.

    Args:
      workdir: the run; its eval/ receives step_N.json, loss_by_position.png (text), recall.png
        (recall) or needles.png, and gates.png.
      which: "latest", "best", or a step.
      eval_batches: in place of `data.eval_batches`.
      length: tokens of an example, in place of `data.length`.
      post_training: the decay of `mc_jax.inference.cache_after_training`, for a model that was
        trained without caching; results go to eval/post_training. None for the model as it is.

    Returns:
      What the JSON file holds, beside what `results.write` adds: `step`, `task`, `length`,
      `post_training_caching`; `held_out`, the numbers overall and by position, by pairs and
      distance, or by task and depth; `gates`, see `_look`.

    Raises:
      InputError: no such checkpoint, a damaged one, or a setting that cannot be used.
    """
    saved = load(workdir, which)
    trained_length = saved.config.data.length
    with saved.config.unlocked():
        for name, value in (("eval_batches", eval_batches), ("length", length)):
            if value is not None:
                saved.config.data[name] = value
    experiment = check(saved.config)
    batch_size = saved.config.data.eval_batch_size
    check_batch_size("data.eval_batch_size", batch_size, jax.device_count())
    folder = workdir / "eval"
    if post_training is not None:
        model = cache_after_training(experiment.model, trained_length, post_training)
        experiment = experiment._replace(model=model)
        folder = folder / "post_training"
    make_folder(folder)
    keep_freed_memory()
    results: Results = {
        "step": saved.step,
        "task": saved.config.data.task,
        "length": saved.config.data.length,
        "post_training_caching": post_training,
        "held_out": _held_out(experiment, saved.params, folder),
        "gates": _look(experiment, saved.params, folder / "gates.png"),
    }
    return write(folder / f"step_{saved.step}.json", "evaluation", results)


def _held_out(experiment: Experiment, params: PyTree, folder: Path) -> Results:
    """Score the held-out batches, and draw the picture of the task."""
    config = experiment.config.data
    batches = data.eval_batches(config)
    score = scores.make_score(LanguageModel(experiment.model), params, data_parallel())
    bar = tqdm(batches, desc="evaluating", unit="batch", dynamic_ncols=True)
    if experiment.text:
        token_bytes = np.asarray(data.tokenizer(config).token_bytes)
        text = evaluate_text(score, bar, config.length, token_bytes)
        pictures.draw_positions(folder / "loss_by_position.png", text, _first_cached(experiment))
        return text.to_json()
    if config.task == "needles":
        answers = evaluate_answers(score, bar)
        pictures.draw_answers(folder / "needles.png", answers)
        return answers.to_json()
    recall = evaluate_recall(score, bar, config.length, config.mqar.eval_pairs)
    pictures.draw_recall(folder / "recall.png", recall)
    return recall.to_json()


def _first_cached(experiment: Experiment) -> int | None:
    """Tokens after which the model caches its first memory, or None."""
    memory = experiment.model.memory
    caches = "memory" in experiment.model.pattern and memory.options.caches
    return memory.segment_len if caches else None


def _look(experiment: Experiment, params: PyTree, path: Path) -> Results:
    """Draw the gates for one held-out example.

    Returns:
      `layers`: for each memory layer its `block`, and for each head the mean weight of the
      `online` memory among the tokens that see a cached one; for recall and needles also that
      `on_answer`, of the memory that holds the value, among the queries whose value is in a cached
      one. Without a
      gate to look at, `none`: why.
    """
    if why := no_gates(experiment):
        path.unlink(missing_ok=True)
        return {"none": why}
    # For recall an example of the last number of pairs; for needles of the last task.
    example = data.eval_batches(experiment.config.data).parts[-1][0]
    model = LanguageModel(experiment.model)
    maps = gates.gate_maps(experiment.model, model, params, example["inputs"])
    options = experiment.model.memory.options
    answers = None
    if "distance" in example:
        query = np.flatnonzero(example["weights"])
        column = gates.column_of(options, query, query - example["distance"][query])
        answers = query, column
    pictures.draw_gates(path, maps, answers)
    return {"layers": [_layer(options.segment_len, layer, answers) for layer in maps]}


def no_gates(experiment: Experiment) -> str | None:
    """Why there is no gate to look at, or None."""
    memory = experiment.model.memory
    length = experiment.config.data.length
    if "memory" not in experiment.model.pattern:
        return "the model has no memory layer"
    if not memory.options.gated:
        cause = "gate" if memory.aggregation in ("grm", "soup") else "aggregation"
        return f"{cause}={getattr(memory, cause)!r} weighs no memories against each other"
    if length <= memory.segment_len:
        return f"{length} tokens do not fill a segment of {memory.segment_len}: nothing is cached"
    return None


def _layer(
    segment_len: int, layer: gates.GateMap, answers: tuple[np.ndarray, np.ndarray] | None
) -> Results:
    """What is told of one layer."""
    result: Results = {
        "block": layer.block,
        "online": _floats(layer.weights[:, segment_len:, 0].mean(1)),
    }
    if answers is not None:
        query, column = answers
        cached = column > 0
        if cached.any():
            on_answer = layer.weights[:, query[cached], column[cached]]
            result["on_answer"] = _floats(on_answer.mean(1))
    return result


def _floats(values: jax.Array | np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]
