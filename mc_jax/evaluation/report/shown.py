"""Which result stands for a model where there are several, and what caching changes."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from mc_jax.evaluation.report import paper
from mc_jax.evaluation.report.collect import Found
from mc_jax.evaluation.report.kinds import Evaluation, Needles, Score
from mc_jax.evaluation.report.models import Model, base_of
from mc_jax.evaluation.report.paper import AVERAGE, PaperTable

T = TypeVar("T")


class Value(NamedTuple):
    """A number of ours.

    Attributes:
      number: in the paper's unit, where the paper has it.
      conditions: what it depends on beside the model; numbers are compared under equal ones.
    """

    number: float
    conditions: Hashable


Values = Mapping[str, Value]  # by column


def newest(
    found: Iterable[T], key: Callable[[T], Hashable], rank: Callable[[T], Any]
) -> dict[Any, T]:
    """Of all that have the same key the one of the highest rank, in the order of the keys found."""
    chosen: dict[Any, T] = {}
    for each in found:
        name = key(each)
        if name not in chosen or rank(each) >= rank(chosen[name]):
            chosen[name] = each
    return chosen


def evaluations(found: Found, task: str) -> list[Evaluation]:
    """Of each model that of the last step."""
    of_task = [x for x in found.evaluations if x.task == task]
    chosen = newest(of_task, lambda x: x.model, lambda x: x.step)
    return [chosen[model] for model in found.models if model in chosen]


def scores(found: Found, table: PaperTable) -> Mapping[Model, Values]:
    """Of each model the harness's numbers in columns of a table of the paper, and the average."""
    fitting = [
        (x, column.key)
        for x in found.scores
        for column in table.columns
        if (table.key, column.key) in x.columns
    ]
    chosen = newest(fitting, lambda pair: (pair[0].model, pair[1]), lambda pair: _rank(pair[0]))
    values: dict[Model, dict[str, Value]] = {}
    for model in found.models:
        own = {column: x for x, column in chosen.values() if x.model is model}
        if own:
            values[model] = {
                column: Value(x.columns[table.key, column], x.conditions)
                for column, x in own.items()
            }
            _add_average(values[model], table)
    return values


def needles(found: Found) -> dict[Model, list[Needles]]:
    """Of each model the needle results, of each task and length that of the last step."""
    chosen = newest(
        found.needles,
        lambda x: (x.model, x.task, x.length),
        lambda x: (x.step, x.samples),
    )
    by_model: dict[Model, list[Needles]] = {}
    for model in found.models:
        own = [x for x in chosen.values() if x.model is model]
        if own:
            by_model[model] = sorted(own, key=lambda x: (x.task, x.length))
    return by_model


def needle_values(results: Iterable[Needles]) -> Values:
    """The same as numbers in columns of Table 2, in percent."""
    return {
        paper.needle_key(x.task, x.length): Value(100 * x.accuracy, x.conditions) for x in results
    }


def summary(found: Found) -> Mapping[Model, Values]:
    """One number for each evaluation of a model, by what it is called."""
    values: dict[Model, dict[str, Value]] = {model: {} for model in found.models}
    for task, name, title in (
        ("text", "bits_per_byte", "bits per byte"),
        ("mqar", "accuracy", "recall"),
        ("needles", "exact", "whole answers"),
    ):
        for x in evaluations(found, task):
            number = x.overall.get(name)
            if number is not None:
                own = Value(number, (x.step, x.length, x.overall["tokens"]))
                values[x.model][title] = own
    for model, results in needles(found).items():
        mean = sum(x.accuracy for x in results) / len(results)
        conditions = tuple(x.conditions for x in results)
        values[model]["needles, %"] = Value(100 * mean, conditions)
    for table, title in (
        (paper.language_modelling(), "Table 1 average"),
        (paper.retrieval(), "Table 3 average"),
    ):
        for model, columns in scores(found, table).items():
            if AVERAGE in columns:
                values[model][title] = columns[AVERAGE]
    return {model: own for model, own in values.items() if own}


def deltas(values: Mapping[Model, Values]) -> dict[Model, tuple[Model, dict[str, float]]]:
    """For models with caching: the same model without it, and what caching adds to each number.

    Only numbers that were found under the same conditions are compared.
    """
    found = {}
    for model, own in values.items():
        base = base_of(model, list(values))
        if base is None:
            continue
        changes = {
            key: value.number - values[base][key].number
            for key, value in own.items()
            if key in values[base] and values[base][key].conditions == value.conditions
        }
        if changes:
            found[model] = base, changes
    return found


def _add_average(values: dict[str, Value], table: PaperTable) -> None:
    """The mean of all columns that the paper averages, if all of them are there."""
    keys = [column.key for column in table.columns if column.averaged and column.key != AVERAGE]
    if table.columns[-1].key == AVERAGE and all(key in values for key in keys):
        mean = sum(values[key].number for key in keys) / len(keys)
        values[AVERAGE] = Value(mean, tuple(values[key].conditions for key in keys))


def _rank(score: Score) -> tuple[int, int, str]:
    """The last step first, then the most documents, then the last day."""
    return score.step, score.documents, score.result.content["date"]
