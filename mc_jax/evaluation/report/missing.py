"""The section of what the report has no number for, with the commands that make them."""

import shlex
from collections.abc import Iterator

from mc_jax.evaluation.report import paper
from mc_jax.evaluation.report.collect import Found
from mc_jax.evaluation.report.document import Cell, Column, Row, Section, text_table
from mc_jax.evaluation.report.models import Model, base_of

Missing = tuple[str, str]  # what, and its command

_TABLES = (
    (paper.language_modelling, "language modelling and common sense (Table 1)"),
    (paper.retrieval, "recall from documents (Table 3)"),
    (paper.long_context, "LongBench (Table 4)"),
)
_SWEEPS = (
    ("figure5", "recall over width and pairs (Figure 5)"),
    ("table5", "ablations (Table 5)"),
)


def missing(found: Found, throughput: bool) -> Section | None:
    """What each model lacks, and what no model has.

    Args:
      found: the results.
      throughput: whether that is shown.
    """
    rows = [
        Row(model.label, [Cell(what), Cell(command)])
        for model in found.models
        if model.config is not None and model.post_training is None
        for what, command in _of_model(found, model)
    ]
    rows += [Row("any", [Cell(what), Cell(cmd)]) for what, cmd in _of_all(found, throughput)]
    if not rows:
        return None
    columns = [Column("missing", holds="text"), Column("command", holds="code")]
    table = text_table("What could stand here, and what makes it", "model", columns, rows)
    return Section("missing", "Missing", "Missing", [table])


def _of_model(found: Found, model: Model) -> Iterator[Missing]:
    workdir = f"--workdir={shlex.quote(str(model.folder))}"
    if not any(x.model is model for x in found.evaluations):
        yield "held-out numbers and gates", f"python eval.py {workdir}"
    if model.task == "text":
        columns = {key for x in found.scores if x.model is model for key, _ in x.columns}
        for table, what in _TABLES:
            if table().key not in columns:
                yield what, f"python eval.py harness {workdir} --tasks={table().anchor}"
    if model.task in ("text", "needles") and not any(x.model is model for x in found.needles):
        yield "needles in a haystack (Table 2)", f"python eval.py needles {workdir}"
    if model.caching and base_of(model, found.models) is None:
        command = "python train.py --config=FILE --config.model.memory.aggregation=none"
        yield "the same model without caching, to compare with", command


def _of_all(found: Found, throughput: bool) -> Iterator[Missing]:
    for name, what in _SWEEPS:
        if not any(sweep.name.startswith(name) for sweep in found.sweeps):
            yield what, f"python train.py sweep --sweep=configs/sweeps/{name}.py"
    if not throughput:
        yield "training throughput (Figure 4)", "python -m benchmarks.throughput"
