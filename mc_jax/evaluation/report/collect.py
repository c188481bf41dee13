"""Everything in the given folders that a report can show."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mc_jax.errors import InputError
from mc_jax.evaluation import results
from mc_jax.evaluation.report import kinds
from mc_jax.evaluation.report.models import (
    Model,
    cached_after_training,
    distinct,
    read_model,
    unknown_model,
)
from mc_jax.evaluation.results import Result
from mc_jax.training import metrics

_OF_A_MODEL: dict[str, Callable[[Result, Model], Any]] = {
    "evaluation": kinds.read_evaluation,
    "harness": kinds.read_score,
    "needles": kinds.read_needles,
}


class Curve(NamedTuple):
    """The numbers of a model's training, one record a step that was logged."""

    model: Model
    records: list[dict[str, Any]]


class Found(NamedTuple):
    """What there is to show.

    Attributes:
      models: in the order of the folders that were given; one that was evaluated with post-training
        caching as well is there a second time.
      curves: of the models that were trained here.
      evaluations: of `eval.py`.
      scores: of the harness.
      needles: of the needle tasks.
      sweeps: over many runs; the runs in a sweep's folder are no models of the report.
      unknown: results of a kind that the report does not know.
      left_out: files that are damaged, each with the reason.
    """

    models: list[Model]
    curves: list[Curve]
    evaluations: list[kinds.Evaluation]
    scores: list[kinds.Score]
    needles: list[kinds.Needles]
    sweeps: list[kinds.Sweep]
    unknown: list[Result]
    left_out: list[str]

    @property
    def results(self) -> list[Result]:
        """Every result file that is shown, by path."""
        groups: list[list[Any]] = [self.evaluations, self.scores, self.needles, self.sweeps]
        shown = [x.result for group in groups for x in group] + self.unknown
        return sorted(shown, key=lambda result: result.path)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.curves or self.results)


def collect(folders: Sequence[Path]) -> Found:
    """Look into folders and all folders in them. A damaged file is left out.

    Raises:
      InputError: a folder that is not there.
    """
    roots = list(dict.fromkeys(folders))
    found = results.search(roots)
    left_out = [f"{path}: not readable as JSON" for path in found.damaged]
    sweeps = [r.path.parent for r in found.results if r.kind == "sweep"]
    shown = [r for r in found.results if r.kind == "sweep" or not _within(r.path, sweeps, roots)]
    homes = {r.path: _home(r.path.parent, roots) for r in shown}
    configs = [path for root in roots for path in sorted(root.rglob("config.json"))]
    places = [path.parent for path in configs if not _within(path, sweeps, roots)]
    places += [homes[r.path] for r in shown if r.kind in _OF_A_MODEL]
    models, curves = _models(dict.fromkeys(places), roots, left_out)
    by_folder = {model.folder: model for model in models}
    cached: dict[tuple[Path, float], Model] = {}
    read: dict[str, list[Any]] = {kind: [] for kind in (*_OF_A_MODEL, "sweep")}
    unknown = []
    for result in shown:
        try:
            if result.kind in _OF_A_MODEL:
                model = by_folder[homes[result.path]]
                if (decay := _post_training(result)) is not None:
                    key = model.folder, decay
                    model = cached.setdefault(key, cached_after_training(model, decay))
                read[result.kind].append(_OF_A_MODEL[result.kind](result, model))
            elif result.kind == "sweep":
                read["sweep"].append(kinds.read_sweep(result))
            else:
                unknown.append(result)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            left_out.append(f"{result.path}: no whole {result.kind} result, {error!r}")
    used = {x.model for kind in _OF_A_MODEL for x in read[kind]}
    used |= {curve.model for curve in curves}
    trained_and_cached = [
        each for m in models for each in (m, *(x for x in cached.values() if x.folder == m.folder))
    ]
    return Found(
        [model for model in trained_and_cached if model in used],
        curves,
        read["evaluation"],
        read["harness"],
        read["needles"],
        read["sweep"],
        unknown,
        sorted(left_out),
    )


def _post_training(result: Result) -> float | None:
    """Decay of the post-training caching that a result was made with, or None."""
    content = result.content
    settings = content.get("settings")
    if not isinstance(settings, dict):
        settings = {}
    decay = content.get("post_training_caching", settings.get("post_training_caching"))
    return None if decay is None else float(decay)


def _models(
    folders: Iterable[Path], roots: Sequence[Path], left_out: list[str]
) -> tuple[list[Model], list[Curve]]:
    """The models of folders, and the curves of those that were trained there."""
    models, records = [], {}
    for folder in folders:
        model = unknown_model(folder)
        try:
            if (folder / "config.json").exists():
                model = read_model(folder)
            if (folder / "metrics.jsonl").exists():
                records[folder] = metrics.read(folder / "metrics.jsonl")
        except InputError as error:
            left_out.append(f"{error}")
        models.append(model)
    models = distinct(sorted(models, key=lambda model: (_place(model.folder, roots), model.rank)))
    return models, [Curve(m, records[m.folder]) for m in models if records.get(m.folder)]


def _place(folder: Path, roots: Sequence[Path]) -> int:
    """Number of the first given folder that it is, or is in."""
    return next(i for i, root in enumerate(roots) if root == folder or root in folder.parents)


def _within(path: Path, sweeps: Sequence[Path], roots: Sequence[Path]) -> bool:
    """Whether a file belongs to a run of a sweep, unless that run's folder itself was given."""
    inside = [sweep for sweep in sweeps if sweep in path.parents]
    return any(
        not any(root in path.parents and sweep in root.parents for root in roots)
        for sweep in inside
    )


def _home(folder: Path, roots: Sequence[Path]) -> Path:
    """The nearest folder up to the given one that has a config, or the given one."""
    while not (folder / "config.json").exists() and folder not in roots:
        folder = folder.parent
    return folder
