"""Every task of the paper on rows like those of the hub, against scores worked out by hand.

Log-likelihoods are the model's own logits' (`Direct`); what follows from them, and everything that
is told from generated text, is computed here from the rows.
"""

import json
import math
import shutil
import sys

import numpy as np
import pytest

import eval as program
from mc_jax.evaluation.harness import MCJaxLM
from mc_jax.evaluation.harness.tables import COLUMNS, GROUPS
from tests.evaluation.harness import rows


def rows_of(name):
    return list(rows.ROWS[name][1].values())[-1]


def read(folder):
    """Results by task, of one set of settings."""
    found = {}
    for path in (folder / "eval" / "harness").glob("*.json"):
        result = json.loads(path.read_text())
        assert result["kind"] == "harness" and result["lm_eval"]
        found[result["task"], result["context"]] = result
    return found


@pytest.fixture(scope="module")
def table1(exported, data_dir):
    """Results of the command, in a folder of its own."""
    folder = shutil.copytree(exported, exported.parent / "table1")
    with pytest.MonkeyPatch.context() as patch:
        arguments = [f"--workdir={folder}", "--tasks=table1", f"--data_dir={data_dir}"]
        patch.setattr(sys, "argv", ["eval.py", "harness", *arguments, "--max_length=256"])
        assert program.main() == 0
    return {task: result for (task, _), result in read(folder).items()}


def value(result, metric):
    return result["metrics"][metric]["value"]


def test_all_of_table_1_is_there(table1):
    assert sorted(table1) == sorted(GROUPS["table1"])
    for result in table1.values():
        assert result["step"] == 7 and result["settings"]["max_length"] == 256


def test_wikitext(table1, direct):
    """Detokenised text is scored; words are counted in the text as it was."""
    texts = [
        " = Robert <unk> = \n \n Robert is an English actor, born in 1980. \n",
        " = Du Fu = \n \n He wrote 1,500 poems; few were read. \n",
    ]
    texts = [text.replace(" \n", "\n").replace("\n ", "\n") for text in texts]
    total = sum(direct.text("", text)[0] for text in texts)
    pages = [row["page"] for row in rows_of("EleutherAI/wikitext_document_level")]
    words = sum(len(page.replace("\n", " ").split()) + 2 for page in pages)
    count = sum(len(page.encode()) for page in pages)
    found = table1["wikitext"]
    assert value(found, "word_perplexity") == pytest.approx(math.exp(-total / words), 1e-5)
    assert value(found, "bits_per_byte") == pytest.approx(-total / count / math.log(2), 1e-5)
    assert found["paper"] == [
        {
            "table": "table1_language_modelling",
            "column": "wiki_ppl",
            "metric": "word_perplexity",
            "value": value(found, "word_perplexity"),
        }
    ]


def test_lambada(table1, direct):
    """The last word after the rest."""
    found = []
    for row in rows_of("EleutherAI/lambada_openai"):
        start, _, word = row["text"].rpartition(" ")
        found.append(direct.text(start, " " + word))
    result = table1["lambada_openai"]
    expected = math.exp(-np.mean([score for score, _ in found]))
    assert value(result, "perplexity") == pytest.approx(expected, 1e-5)
    assert value(result, "acc") == np.mean([greedy for _, greedy in found])
    assert result["metrics"]["perplexity"]["stderr"] > 0
    assert [(c["column"], c["value"]) for c in result["paper"]] == [
        ("lmb_ppl", value(result, "perplexity")),
        ("lmb_acc", 100 * value(result, "acc")),
    ]


def hellaswag_text(text):
    text = text.strip().replace(" [title]", ". ")
    for mark in ("[header]", "[step]"):
        text = text.replace(mark, "")
    return text.replace("  ", " ")


def questions(task):
    """Context, choices as they are scored, the choices, and the right one, of each row."""
    name = {
        "piqa": "baber/piqa",
        "hellaswag": "Rowan/hellaswag",
        "arc_easy": "allenai/ai2_arc",
        "arc_challenge": "allenai/ai2_arc",
        "social_iqa": "lighteval/siqa",
        "boolq": "aps/super_glue",
    }[task]
    for row in rows_of(name):
        if task == "piqa":
            context, choices = f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]]
            right = row["label"]
        elif task == "hellaswag":
            text = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
            context, right = hellaswag_text(text), int(row["label"])
            choices = [hellaswag_text(ending) for ending in row["endings"]]
        elif task == "social_iqa":
            context = f"Q: {row['context']} {row['question']}\nA:"
            choices, right = [row[f"answer{x}"] for x in "ABC"], int(row["label"]) - 1
        elif task == "boolq":
            context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
            choices, right = ["no", "yes"], row["label"]
        else:
            context, choices = f"Question: {row['question']}\nAnswer:", row["choices"]["text"]
            right = row["choices"]["label"].index(row["answerKey"])
        yield context, choices, right


@pytest.mark.parametrize(
    "task", ["piqa", "hellaswag", "arc_easy", "arc_challenge", "social_iqa", "boolq"]
)
def test_choices(task, table1, direct):
    """The likeliest choice, and the likeliest by its length in characters."""
    plain, by_length = [], []
    for context, choices, right in questions(task):
        scores = [direct.text(context, " " + choice)[0] for choice in choices]
        plain.append(np.argmax(scores) == right)
        shares = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
        by_length.append(np.argmax(shares) == right)
    result = table1[task]
    assert value(result, "acc") == np.mean(plain)
    if "acc_norm" in result["metrics"]:
        assert value(result, "acc_norm") == np.mean(by_length)
    if len(plain) == 2:
        spread = np.std(plain, ddof=1) / math.sqrt(2)
        assert result["metrics"]["acc"]["stderr"] == pytest.approx(spread)
    (column,) = result["paper"]
    assert column["metric"] == ("acc_norm" if task in ("hellaswag", "arc_challenge") else "acc")
    assert column["value"] == 100 * value(result, column["metric"])


def test_winogrande(table1, direct):
    """The rest of the sentence after each of the two."""
    right = []
    for row in rows_of("allenai/winogrande"):
        before, after = row["sentence"].split("_")
        scores = [
            direct.text(before + option, " " + after.strip())[0]
            for option in (row["option1"], row["option2"])
        ]
        right.append(np.argmax(scores) == int(row["answer"]) - 1)
    assert value(table1["winogrande"], "acc") == np.mean(right)


@pytest.fixture
def writes(monkeypatch):
    """Let the model write given texts: what follows a prompt's last words; returns the prompts."""
    prompts = {}

    def writes(texts):
        def generate_until(self, requests, disable_tqdm=False):
            for request in requests:
                prompts[request.args[0]] = request.args[1]
            return [
                next(text for end, text in texts.items() if request.args[0].endswith(end))
                for request in requests
            ]

        monkeypatch.setattr(MCJaxLM, "generate_until", generate_until)
        return prompts

    return writes


ANSWERS = {
    "genre: Western\nyear of release:": " 1966, says the page",
    "The winner was the": " DENVER broncos",
    "Its place was": " Santa Claus",
    "510(k) number:": " K18152",
    "The points that the Lions scored in all were": " Forty-Four.",
    "The runner was": " Jones",
    "What sets dyes is a": " Mordant",
    "The set was found in": " UR and nowhere else",
}


def test_table_3(harness, writes, workdir, data_dir, capsys):
    prompts = writes(ANSWERS)
    harness(
        f"--workdir={workdir}",
        "--tasks=table3",
        "--context=512,1024",
        "--max_length=1024",
        f"--data_dir={data_dir}",
    )
    found = {key: result for key, result in read(workdir).items() if key[1]}
    share = {
        "swde": 1,
        "squad_completion": 0.5,
        "fda": 0,
        "based_drop": 0.5,
        "based_triviaqa": 1,
    }
    for context in (512, 1024):
        expected = share | {f"based_nq_{context}": 1}
        assert {task for task, at in found if at == context} == set(expected)
        for task, right in expected.items():
            result = found[task, context]
            assert value(result, "contains") == right
            (column,) = result["paper"]
            assert column["column"] == f"{COLUMNS[task][0].name}_{context}"
            assert column["value"] == 100 * right
    shown = capsys.readouterr().out
    assert "squad_completion at 512" in shown and "nq_1024" in shown
    # The forms of the prompts.
    assert "The Lions led by 17 points. They scored 44 in all. " + list(ANSWERS)[4] in prompts
    assert "Smith ran 19 yards. The runner was" in prompts
    assert "Mordant  A mordant sets dyes. What sets dyes is a" in prompts
    assert rows.SWDE in prompts
    for how in prompts.values():
        assert (how["max_gen_toks"], how["until"]) == (48, ["\n"])


def test_longbench(harness, writes, workdir, data_dir):
    writes(
        {
            "Question: Who met a fox?\n\nAnswer:": " The Mark, he met",
            "Question: Where is Ur?\nType:": " Other location, City",
            "Summary:": " the rates fell in one year",
            "Next line of code:": "\n# a comment\n    return x - 1\nmore",
        }
    )
    tasks = ",".join(f"longbench_{name}" for name in rows.LONGBENCH)
    harness(
        f"--workdir={workdir}", f"--tasks={tasks}", f"--data_dir={data_dir}", "--max_length=1024"
    )
    found = {task: result for (task, _), result in read(workdir).items()}
    # Of "mark he met" (without punctuation and articles) one word is one of "mark hunt"'s two, and
    # one is all of "he": 2 * 1/3 * 1 / (1/3 + 1).
    assert value(found["longbench_narrativeqa"], "qa_f1_score") == pytest.approx(0.5)
    # Two classes stand in the text beside one that is part of the right one.
    assert value(found["longbench_trec"], "classification_score") == pytest.approx(1 / 2)
    # ROUGE-L: of 6 words each, "the rates in one year" are in common, in order.
    assert value(found["longbench_gov_report"], "rouge_score") == pytest.approx(5 / 6)
    # The first line that is code; one of 16 characters differs.
    assert value(found["longbench_lcc"], "code_sim_score") == pytest.approx(0.94)
    for name in rows.LONGBENCH:
        result = found[f"longbench_{name}"]
        (column,) = result["paper"]
        assert (column["table"], column["column"]) == ("table4_longbench", name)
        assert column["value"] == 100 * value(result, "score")


def test_columns_are_the_papers():
    """Names as in the tables, which a context follows in Table 3."""
    first = [column.name for task in GROUPS["table1"] for column in COLUMNS[task]]
    assert first == [
        *("wiki_ppl", "lmb_ppl", "lmb_acc", "piqa", "hellaswag_n", "winogrande", "arc_e"),
        *("arc_c_n", "siqa", "boolq"),
    ]
    assert len(GROUPS["table4"]) == 14
