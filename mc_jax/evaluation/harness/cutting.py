"""Documents cut to so many tokens, as Just Read Twice does (arXiv 2407.05483).

A window of the document is kept that begins half its length before the first place where the
answer (or for facts of a page, the fact's name) stands; where the task has no such place, or the
answer does not stand in the document, the window begins at the head. What asks at the prompt's end
is not cut, or where it takes more than half of the room, its last line. Window, question and 50
tokens for an answer make up the context.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mc_jax.data.tokenizers import Tokenizer
from mc_jax.errors import InputError

Doc = Mapping[str, Any]

# Tokens left for the answer.
ANSWER = 50


class Cut(NamedTuple):
    """How the documents of a task are cut.

    Attributes:
      field: that holds the document.
      answers: fields with the answer, or more of what the window is to hold.
      question: where in that field the question begins, or the question's own field.
    """

    field: str
    answers: tuple[str, ...]
    question: Callable[[Doc], int] | str


def _summary(doc: Doc) -> int:
    """SWDE: what is known of the page so far, and the name of the fact, stand under a heading."""
    at = doc["text"].find("Summary of information above...")
    return at if at >= 0 else _fact(doc)


def _fact(doc: Doc) -> int:
    """FDA: the fact's name and a colon."""
    text, name = doc["text"].rstrip(), f"{doc['key']}:"
    return len(text) - len(name) if text.lower().endswith(name.lower()) else _sentence(doc)


def _sentence(doc: Doc) -> int:
    """SQuAD: the sentence that the answer completes."""
    ends = list(re.finditer(r"[.!?]\s+|\n+", doc["text"].rstrip()))
    return ends[-1].end() if ends else 0


CUTS: dict[str, Cut] = {
    "swde": Cut("text", ("key", "value"), _summary),
    "fda": Cut("text", ("key", "value"), _fact),
    "squad_completion": Cut("text", ("value",), _sentence),
    "based_drop": Cut("context", (), "question"),
    "based_triviaqa": Cut("context", (), "question"),
    **{f"based_nq_{n}": Cut("context", ("answers",), "question") for n in (512, 1024, 2048)},
}


def cut(doc: Doc, how: Cut, context: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """A document of which a window is left.

    Args:
      doc: a row of the data set.
      how: see `CUTS`.
      context: tokens of prompt and answer together.
      tokenizer: of the model.

    Raises:
      InputError: the question alone takes more.
    """
    text = doc[how.field].strip()
    if isinstance(how.question, str):
        document, end, after = text, f". {doc[how.question]}", ""
    else:
        at = how.question({**doc, how.field: text})
        if len(tokenizer.encode(text[at:])) > (context - ANSWER) // 2:
            at = max(at, text.rfind("\n") + 1)
        document = text[:at].rstrip()
        end = after = (text[len(document) : at] or " ") + text[at:]
    room = context - ANSWER - len(tokenizer.encode(end))
    if room < 1:
        allowed = f"at least {context - room + 1}, for a question of this task and its answer"
        raise InputError("--context", context, allowed)
    ids = tokenizer.encode(document)
    if len(ids) <= room:
        return dict(doc)
    place = _place(document, [doc[name] for name in how.answers])
    start = max(0, len(tokenizer.encode(document[:place])) - room // 2)
    window = _text(ids[start:], room, tokenizer)
    return {**doc, how.field: window + after}


def _place(document: str, answers: list[Any]) -> int:
    """Where the first of the answers stands that is there at all, else 0."""
    texts = [answer[0] if isinstance(answer, list) else answer for answer in answers if answer]
    found = [re.search(re.escape(text), document, re.IGNORECASE) for text in texts if text]
    return min((match.start() for match in found if match), default=0)


def _text(ids: np.ndarray, room: int, tokenizer: Tokenizer) -> str:
    """The text of the first ids, so many that it is of `room` tokens at most."""
    count = room
    while True:
        # Half a character at the ends is left out.
        text = tokenizer.decode(ids[:count]).strip("\ufffd")
        over = len(tokenizer.encode(text)) - room
        if over <= 0:
            return text
        count -= over
