"""The numbers of the paper's tables (arXiv 2602.24281v1), which `paper_tables.json` holds."""

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

from mc_jax.evaluation.report.models import TRANSFORMER

AVERAGE = "avg"
LENGTHS = (4096, 8192, 16384)  # tokens, of Table 2


class PaperColumn(NamedTuple):
    """A column of a table of the paper.

    Attributes:
      key: its name in the data.
      name: its heading.
      over: a heading shared with its neighbours, or empty.
      lower: whether less is better: perplexities.
      averaged: whether the table's average has it.
    """

    key: str
    name: str
    over: str = ""
    lower: bool = False
    averaged: bool = True


class PaperTable(NamedTuple):
    """A table of the paper.

    Attributes:
      key: its name in the data and in result files.
      title: its heading.
      columns: with the average as the last one, where the paper has it.
      sizes: of the models, such as "1.3B"; one empty name where the table has no sizes.
      rows: for each size the rows by the model's name, numbers by column.
    """

    key: str
    title: str
    columns: tuple[PaperColumn, ...]
    sizes: tuple[str, ...]
    rows: tuple[Mapping[str, Mapping[str, float]], ...]

    @property
    def anchor(self) -> str:
        """The first part of its key: "table1"."""
        return self.key.partition("_")[0]

    def row(self, size: int, family: str, caching: str) -> Mapping[str, float] | None:
        """The row of a model, as in `Model`, or None."""
        rows = self.rows[size]
        name = f"{family}+{caching}" if caching else family
        # Two names for one thing.
        return rows.get(name) or (rows.get("Transformer") if name == TRANSFORMER else None)


_LANGUAGE = {
    "wiki_ppl": "WikiText ppl",
    "lmb_ppl": "LAMBADA ppl",
    "lmb_acc": "LAMBADA",
    "piqa": "PIQA",
    "hellaswag_n": "HellaSwag",
    "winogrande": "WinoGrande",
    "arc_e": "ARC-e",
    "arc_c_n": "ARC-c",
    "siqa": "SIQA",
    "boolq": "BoolQ",
}
_RETRIEVAL = {
    "swde": "SWDE",
    "squad": "SQuAD",
    "fda": "FDA",
    "triviaqa": "TriviaQA",
    "drop": "DROP",
    "nq": "NQ",
}


@functools.cache
def _data() -> Mapping[str, Any]:
    return json.loads(
        resources.files("mc_jax.evaluation").joinpath("paper_tables.json").read_text()
    )


def language_modelling() -> PaperTable:
    """Table 1."""
    key = "table1_language_modelling"
    data = _data()[key]
    columns = [
        PaperColumn(key, name, "", key.endswith("ppl"), not key.endswith("ppl"))
        for key, name in _LANGUAGE.items()
    ]
    title = "Language modelling and common sense (the paper's Table 1)"
    sizes = tuple(name.partition("_")[0] for name in data)
    average = PaperColumn(AVERAGE, "average")
    return PaperTable(key, title, (*columns, average), sizes, tuple(data.values()))


def needles() -> PaperTable:
    """Table 2."""
    key = "table2_needle"
    data = _data()[key]
    columns = tuple(
        PaperColumn(needle_key(task, length), length_name(length), f"S-NIAH-{task}")
        for task in (1, 2, 3)
        for length in LENGTHS
    )
    title = "Needles in a haystack (the paper's Table 2)"
    return PaperTable(key, title, columns, ("",), (data,))


def retrieval() -> PaperTable:
    """Table 3."""
    key = "table3_retrieval"
    data = _data()[key]
    keys = [key for key in next(iter(data.values())) if key != AVERAGE]
    columns = [
        PaperColumn(key, length, _RETRIEVAL[task])
        for key in keys
        for task, length in [key.rsplit("_", 1)]
    ]
    title = "Recall from documents that are cut to a length (the paper's Table 3)"
    average = PaperColumn(AVERAGE, "average")
    return PaperTable(key, title, (*columns, average), ("",), (data,))


def long_context() -> PaperTable:
    """Table 4."""
    key = "table4_longbench"
    data = _data()[key]
    columns = tuple(PaperColumn(key, key) for key in next(iter(data.values())))
    title = "LongBench (the paper's Table 4)"
    return PaperTable(key, title, columns, ("",), (data,))


def ablations() -> Mapping[str, Mapping[str, Mapping[str, float] | None]]:
    """Table 5: numbers by model and variant; None for the rows that the paper leaves unfilled."""
    return _data()["table5_ablation"]


def needle_key(task: int, length: int) -> str:
    """Name of a column of Table 2, or of one beside it at another length in tokens."""
    return f"s_niah_{task}_{length_name(length).lower()}"


def length_name(length: int) -> str:
    """4K for 4,096 tokens."""
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"
