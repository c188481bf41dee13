"""The paper's tables 1, 3 and 4: which tasks they are made of, and which of lm-eval's numbers."""

from typing import NamedTuple

# Tokens that the documents of Table 3 are cut to.
CONTEXTS = (512, 1024, 2048, 16384)
# Natural Questions come as documents of about these lengths, a data set for each.
NQ_CONTEXTS = (512, 1024, 2048)


class Column(NamedTuple):
    """A column of one of the paper's tables.

    Attributes:
      table: the paper's.
      name: of the column; that of Table 3 is followed by the context.
      metric: lm-eval's name of the number.
      percent: whether the paper gives it in percent.
    """

    table: str
    name: str
    metric: str
    percent: bool = True


_TABLE1, _TABLE3, _TABLE4 = "table1_language_modelling", "table3_retrieval", "table4_longbench"

_LONGBENCH = (
    *("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique"),
    *("gov_report", "qmsum", "multi_news", "trec", "triviaqa", "samsum", "lcc", "repobench-p"),
)

# Columns that a task fills.
COLUMNS: dict[str, tuple[Column, ...]] = {
    "wikitext": (Column(_TABLE1, "wiki_ppl", "word_perplexity", percent=False),),
    "lambada_openai": (
        Column(_TABLE1, "lmb_ppl", "perplexity", percent=False),
        Column(_TABLE1, "lmb_acc", "acc"),
    ),
    "piqa": (Column(_TABLE1, "piqa", "acc"),),
    "hellaswag": (Column(_TABLE1, "hellaswag_n", "acc_norm"),),
    "winogrande": (Column(_TABLE1, "winogrande", "acc"),),
    "arc_easy": (Column(_TABLE1, "arc_e", "acc"),),
    "arc_challenge": (Column(_TABLE1, "arc_c_n", "acc_norm"),),
    "social_iqa": (Column(_TABLE1, "siqa", "acc"),),
    "boolq": (Column(_TABLE1, "boolq", "acc"),),
    "swde": (Column(_TABLE3, "swde", "contains"),),
    "squad_completion": (Column(_TABLE3, "squad", "contains"),),
    "fda": (Column(_TABLE3, "fda", "contains"),),
    "based_triviaqa": (Column(_TABLE3, "triviaqa", "contains"),),
    "based_drop": (Column(_TABLE3, "drop", "contains"),),
    **{f"based_nq_{n}": (Column(_TABLE3, "nq", "contains"),) for n in NQ_CONTEXTS},
    **{f"longbench_{name}": (Column(_TABLE4, name, "score"),) for name in _LONGBENCH},
}

# What --tasks takes beside names of tasks.
GROUPS: dict[str, tuple[str, ...]] = {
    f"table{number}": tuple(task for task, (first, *_) in COLUMNS.items() if first.table == table)
    for number, table in ((1, _TABLE1), (3, _TABLE3), (4, _TABLE4))
}


def column_name(column: Column, context: int | None) -> str:
    """Of a column, as the paper's numbers have it: "swde_512", "swde_16k"."""
    if context is None:
        return column.name
    return f"{column.name}_{context // 1024}k" if context >= 4096 else f"{column.name}_{context}"


def belongs(task: str, context: int) -> bool:
    """Whether Table 3 has a task at a context: Natural Questions have a data set for each."""
    return not task.startswith("based_nq_") or task == f"based_nq_{context}"
