"""The tasks of Based and Just Read Twice that lm-eval has not: prompts and their one metric.

Documents of hazyresearch/based_drop, based_nq_512 (1024, 2048) and based_triviaqa have a `context`,
a `question` put as the beginning of a sentence that the answer completes, and `answers`. The
prompts are in form those of Just Read Twice (arXiv 2407.05483); the tasks/*.yaml beside this file
name them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Doc = Mapping[str, Any]

# Marks of paragraphs, documents and titles in the texts of TriviaQA.
_MARKS = re.compile(r"\[PAR\]|\[DOC\]|\[TLE\]")


def prompt(doc: Doc) -> str:
    """The document, which may end with the question already, and the question."""
    context, question = doc["context"].strip(), doc["question"].strip()
    while question and context.lower().endswith(question.lower()):
        context = context[: -len(question)]
    return f"{context.strip().strip('.')}. {question}"


def triviaqa_prompt(doc: Doc) -> str:
    """The same without the marks in the document."""
    return prompt({**doc, "context": _MARKS.sub("", doc["context"].strip())})


def target(doc: Doc) -> str:
    """The first answer, as it would follow the prompt."""
    return " " + (doc["answers"][0] if doc["answers"] else "unanswerable")


def contains(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Whether one of the answers stands in the generated text, whatever the case."""
    found = (re.search(re.escape(answer), results[0], re.IGNORECASE) for answer in doc["answers"])
    return {"contains": float(any(found))}
