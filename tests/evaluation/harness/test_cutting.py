"""Which part of a document is left: around the answer, or the head; the question always."""

import numpy as np
import pytest

from mc_jax import InputError
from mc_jax.data.tokenizers import ByteTokenizer
from mc_jax.evaluation.harness.based import contains, prompt, target, triviaqa_prompt
from mc_jax.evaluation.harness.cutting import ANSWER, CUTS, cut

BYTES = ByteTokenizer()
# 1,000 bytes in which every place has a text of its own, and the answer at 600.
WORDS = "".join(f"{i:03d} " for i in range(150))
DOCUMENT = f"{WORDS}The answer is Ur-Nammu. {WORDS}"[:1000]


def test_around_the_answer():
    """Half of the room before the first answer, the rest behind it."""
    doc = {"context": DOCUMENT, "question": "The answer is", "answers": ["ur-nammu", "x"]}
    found = cut(doc, CUTS["based_nq_512"], 300, BYTES)
    room = 300 - ANSWER - len("The answer is") - 2
    start = DOCUMENT.index("Ur-Nammu") - room // 2
    assert found["context"] == DOCUMENT[start : start + room]
    assert found["question"] == doc["question"]
    assert len(BYTES.encode(prompt(found))) + ANSWER <= 300


@pytest.mark.parametrize("answers", [["Uruk"], []])
def test_the_head_where_there_is_no_answer(answers):
    doc = {"context": DOCUMENT, "question": "The answer is", "answers": answers}
    found = cut(doc, CUTS["based_nq_512"], 300, BYTES)
    assert DOCUMENT.startswith(found["context"]) and len(found["context"]) == 300 - ANSWER - 15
    # DROP and TriviaQA are cut so whether the answer is there or not.
    doc["answers"] = ["Ur-Nammu"]
    for task in ("based_drop", "based_triviaqa"):
        assert cut(doc, CUTS[task], 300, BYTES)["context"] == found["context"]


@pytest.mark.parametrize(
    ("task", "end", "doc"),
    [
        ("swde", "\n\nSummary of information above...\nx: 1\nking:", {"key": "king"}),
        ("swde", "\n\nking:", {"key": "king"}),
        ("fda", "\nKing:", {"key": "king"}),
        ("squad_completion", ". He was. The king was", {}),
        ("squad_completion", "\nThe king was", {}),
    ],
)
def test_the_question_at_the_end_stays(task, end, doc):
    question = end.split("He was. ")[-1].lstrip()
    doc = {"text": f" {DOCUMENT}{end} ", "value": "Ur-Nammu", **doc}
    text = cut(doc, CUTS[task], 300, BYTES)["text"]
    assert text.endswith(question) and "Ur-Nammu" in text
    assert len(BYTES.encode(text)) + ANSWER <= 300
    window = text[: -len(question)].rstrip()
    assert window in DOCUMENT and len(window) > 300 - ANSWER - len(question) - 6


def test_of_a_long_question_the_last_line_stays():
    known = "".join(f"fact {i}: {i}\n" for i in range(40))
    end = f"\n\nSummary of information above...\n{known}king:"
    doc = {"text": DOCUMENT + end, "key": "king", "value": "Ur-Nammu"}
    text = cut(doc, CUTS["swde"], 300, BYTES)["text"]
    assert text.endswith("\nking:") and "Ur-Nammu" in text and "fact 39" not in text
    assert len(BYTES.encode(text)) + ANSWER <= 300


def test_a_fact_is_found_by_its_name_as_well():
    doc = {"text": f"{DOCUMENT}\n007:", "key": "007", "value": "Ur-Nammu"}
    assert cut(doc, CUTS["fda"], 200, BYTES)["text"].startswith("000 001")


def test_short_documents_stay_as_they_are():
    doc = {"context": "Short. ", "question": "It is", "answers": ["short"]}
    assert cut(doc, CUTS["based_drop"], 512, BYTES) == doc


def test_half_characters_are_left_out():
    """Counted in tokens of the text that is left, however the cut falls."""
    for context in range(120, 126):
        doc = {"context": "größer als 記憶 " * 40, "question": "Was", "answers": ["記憶"]}
        text = cut(doc, CUTS["based_nq_512"], context, BYTES)["context"]
        assert "\ufffd" not in text
        assert context - ANSWER - 5 - 4 <= len(BYTES.encode(text)) <= context - ANSWER - 5


def test_a_question_that_does_not_fit():
    doc = {"context": DOCUMENT, "question": "q" * 100, "answers": ["x"]}
    with pytest.raises(InputError, match="--context: found 120; allowed: at least 153"):
        cut(doc, CUTS["based_drop"], 120, BYTES)
    cut(doc, CUTS["based_drop"], 153, BYTES)


def test_prompts():
    doc = {"context": " A b. the end IS", "question": " The end is ", "answers": ["C"]}
    assert prompt(doc) == "A b. The end is"
    doc["context"] = "[TLE] A [PAR] b.."
    assert triviaqa_prompt(doc) == "A  b. The end is"
    assert target(doc) == " C" and target({"answers": []}) == " unanswerable"


def test_contains():
    """In any case, of any of the answers, and letter by letter."""
    doc = {"answers": ["St. Ives", "(a+b)"]}
    found = [
        contains(doc, [text])["contains"] for text in ("in st. ives,", "StX Ives", "(A+B)", "")
    ]
    np.testing.assert_array_equal(found, [1, 0, 1, 0])
