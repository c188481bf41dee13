"""eval.py needles: RULER's scoring, accuracy by hand, going on after an interruption."""

import json
import sys

import numpy as np
import pytest

import eval as program
from configs import tiny
from mc_jax.data import haystack
from mc_jax.data.needles import Prompts
from mc_jax.data.tokenizers import ByteTokenizer
from mc_jax.errors import InputError
from mc_jax.evaluation.answers import evaluate_answers
from mc_jax.evaluation.generation import open_model
from mc_jax.evaluation.needles import Cell, evaluate_cell, recalled
from mc_jax.inference import Sampling, generate
from mc_jax.model import ModelConfig
from mc_jax.training import train
from tests.evaluation.test_run import check_picture

N, U = "1234567", "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
# Prediction, and whether RULER's rule finds the answer in it.
CASES = {
    N: [
        ("1234567", True),
        (" 1234567.", True),
        (": 1234567", True),
        ("The special magic number is: 1234567.", True),
        ("\n\n1234567\n", True),
        ("\t1234567\x00", True),
        ("**1234567**", True),
        ("`1234567`", True),
        ("'1234567'", True),
        ("(1234567)", True),
        ("x1234567x", True),
        ("91234567", True),
        ("12345678", True),
        ("0001234567000", True),
        ("7654321 or 1234567", True),
        ("not 1234567", True),
        ("1234567 1234567", True),
        ("№1234567！", True),
        ("1234567" + " and so on" * 50, True),
        ("and so on " * 50 + "1234567", True),
        ("", False),
        (" ", False),
        ("123456", False),
        ("234567", False),
        ("1,234,567", False),
        ("1 234 567", False),
        ("123-4567", False),
        ("1234 567", False),
        ("123\n4567", False),
        ("123\x004567", False),
        ("1234.567", False),
        ("7654321", False),
        ("1234568", False),
        ("١٢٣٤٥٦٧", False),
        ("one two three four five six seven", False),
    ],
    U: [
        (U, True),
        (U.upper(), True),
        (U.title(), True),
        (f" {U}.", True),
        (f"UUID:{U.upper()}!", True),
        ("{" + U + "}", True),
        (f"urn:uuid:{U}", True),
        (U + U, True),
        (U.replace("-", ""), False),
        (U.replace("-", " "), False),
        (U.replace("-", "–"), False),
        (U[:-1], False),
        (U[1:], False),
        (U.replace("f", "F", 1).replace("0305", "03O5"), False),
        (U[:18] + "\n" + U[18:], False),
        (U[::-1], False),
    ],
}


@pytest.mark.parametrize("answer", CASES)
def test_an_answer_is_found_as_ruler_finds_it(answer):
    assert sum(map(len, CASES.values())) >= 50
    assert [p for p, found in CASES[answer] if recalled(answer, p) is not found] == []


DEPTHS = (0, 50, 100)
SETTINGS = {"depths": list(DEPTHS), "seed": 0}


def make(size=10, settings=SETTINGS):
    prompts = Prompts(1, ByteTokenizer(), haystack.noise(), 480, size, depths=DEPTHS)
    return Cell(prompts, 500, settings)


class Fake:
    """Finds the value where the needle stands early in the prompt; fails after some batches."""

    def __init__(self, batches=None):
        self.left, self.asked = batches, []

    def __call__(self, prompts):
        assert len(prompts) == 4
        if self.left is not None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
        self.asked += prompts
        answers = []
        for prompt in prompts:
            at = prompt.index("One of the special magic numbers")
            value = prompt[at:].split(": ")[1][:7]
            answers.append(f" {value}." if at < 230 else f" {value[::-1]}0.")
        return answers


def test_accuracy_by_depth_is_that_of_the_predictions(tmp_path):
    told = []
    result = evaluate_cell(make(), tmp_path, Fake(), 4, told.append)
    # Depths in turn: 0, 50, 100, 0, ...; 100 is found by no one, the others by all.
    assert result["by_depth"] == [
        {"depth": 0, "samples": 4, "accuracy": 1.0},
        {"depth": 50, "samples": 3, "accuracy": 1.0},
        {"depth": 100, "samples": 3, "accuracy": 0.0},
    ]
    assert (result["task"], result["length"], result["samples"]) == ("S-NIAH-1", 500, 10)
    assert result["accuracy"] == pytest.approx(0.7)
    assert (result["kind"], told) == ("needles", [4, 4, 2])
    written = json.loads((tmp_path / "s-niah-1_500.json").read_text())
    assert written == result
    settings, *records = map(json.loads, (tmp_path / "s-niah-1_500.jsonl").open())
    assert settings == SETTINGS and [record["index"] for record in records] == list(range(10))
    assert records[2]["prediction"] == f" {records[2]['answer'][::-1]}0."


def test_an_interrupted_evaluation_computes_nothing_twice(tmp_path):
    whole = evaluate_cell(make(), _folder(tmp_path / "whole"), Fake(), 4)
    folder = _folder(tmp_path / "parts")
    first, second, third = Fake(batches=1), Fake(batches=1), Fake()
    with pytest.raises(KeyboardInterrupt):
        evaluate_cell(make(), folder, first, 4)
    path = folder / "s-niah-1_500.jsonl"
    path.write_bytes(path.read_bytes() + b'{"index": 4, "dep')  # killed while it wrote
    assert len(make().done(folder)) == 4
    with pytest.raises(KeyboardInterrupt):
        evaluate_cell(make(), folder, second, 4)
    result = evaluate_cell(make(), folder, third, 4)
    expected = [sample.prompt for sample in make().prompts]
    # The last batch is filled up with its last prompt.
    asked = first.asked + second.asked + third.asked
    assert asked == [*expected, expected[-1], expected[-1]]
    assert result == whole
    assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    again = Fake()
    assert evaluate_cell(make(), folder, again, 4) == whole and again.asked == []


def test_more_samples_keep_those_that_are_there(tmp_path):
    few, more = Fake(), Fake()
    evaluate_cell(make(4), tmp_path, few, 4)
    result = evaluate_cell(make(8), tmp_path, more, 4)
    assert few.asked + more.asked == [sample.prompt for sample in make(8).prompts]
    assert result["samples"] == 8
    fewer = evaluate_cell(make(3), tmp_path, None, 4)
    assert (fewer["samples"], fewer["accuracy"]) == (3, pytest.approx(2 / 3))
    assert len(make(8).done(tmp_path)) == 8


def test_predictions_of_other_settings_are_kept(tmp_path):
    evaluate_cell(make(4), tmp_path, Fake(), 4)
    before = (tmp_path / "s-niah-1_500.jsonl").read_bytes()
    with pytest.raises(InputError, match="found {'seed': 1}; allowed: {'seed': 0}.*--name"):
        evaluate_cell(make(4, SETTINGS | {"seed": 1}), tmp_path, Fake(), 4)
    assert (tmp_path / "s-niah-1_500.jsonl").read_bytes() == before


def _folder(path):
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A run of two steps on needles, whose model writes what it likes."""
    config = tiny.get_config("needles")
    config.model.update(num_layers=1, dim=8, mlp_dim=8)
    config.train.update(steps=2, tensorboard=False)
    config.data.update(batch_size=2, eval_batch_size=2, eval_batches=2)
    config.data.needles.depths = (0.0, 100.0)
    folder = tmp_path_factory.mktemp("writer")
    train(config.lock(), folder)
    return folder


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, arguments)])
    assert program.main() == 0


def test_the_command_asks_the_model(writer, monkeypatch, capsys, tmp_path):
    (tmp_path / "essay.txt").write_text("It rained. We waited for a train that was late. " * 3)
    arguments = ["needles", f"--workdir={writer}", "--tasks", 2, 1, "--lengths", 440, 500]
    arguments += ["--depths", 0, 100, "--samples", 3, "--new_tokens", 9, "--batch_size", 2]
    arguments += [f"--essays={tmp_path / 'essay.txt'}"]
    run(monkeypatch, *arguments)
    shown = capsys.readouterr().out
    assert "step 2, accuracy" in shown and "440" in shown
    assert shown.count("0.000 (3)") == 4
    folder = writer / "eval" / "needles" / "step_2"
    check_picture(folder / "needles.png", 400, 400)
    names = {f"s-niah-{task}_{length}.json" for task in (1, 2) for length in (440, 500)}
    assert {path.name for path in folder.glob("*.json")} == names

    saved = open_model(writer, "latest")
    config = ModelConfig.from_dict(saved.config.model.to_dict())
    essays = haystack.essays(str(tmp_path / "essay.txt"), "")
    prompts = Prompts(2, ByteTokenizer(), essays, 491, 3, depths=(0, 100))
    _, *records = map(json.loads, (folder / "s-niah-2_500.jsonl").open())
    greedy = Sampling(temperature=0)
    for sample, record in zip(prompts, records, strict=True):
        twice = [sample.prompt] * 2
        model = config, saved.params, ByteTokenizer()
        found, _ = generate(*model, twice, max_tokens=9, sampling=greedy)
        assert record["prediction"] == found.text
        assert record["answer"] in sample.prompt and record["tokens"] == 491

    # The same command reads what is there; another seed is another result.
    monkeypatch.setattr("mc_jax.evaluation.needles.command.generate", None)
    run(monkeypatch, *arguments)
    assert capsys.readouterr().out == shown


def test_a_model_of_needles_is_evaluated(writer, monkeypatch, capsys):
    run(monkeypatch, f"--workdir={writer}")
    shown = capsys.readouterr().out
    assert "S-NIAH-1, depth 75-100%" in shown and "whole answers" in shown
    results = json.loads((writer / "eval" / "step_2.json").read_text())["held_out"]
    assert (results["examples"], results["tokens"]) == (4, 40)
    assert [(row["depth"], row["examples"]) for row in results["by_depth"]] == [(0, 2), (100, 2)]
    check_picture(writer / "eval" / "needles.png", 600, 300)
    (last,) = [
        record
        for record in map(json.loads, (writer / "metrics.jsonl").open())
        if "held_out_loss" in record
    ]
    assert results["loss"] == pytest.approx(last["held_out_loss"], 1e-5)
    assert results["accuracy"] == pytest.approx(last["held_out_accuracy"], 1e-5)


def test_answers_count_when_every_token_is_right():
    weights = np.array([[0, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 0]], np.float32)
    correct = np.array([[0, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1]], bool)
    loss = np.array([[9, 1, 2], [3, 4, 5], [9, 9, 6], [9, 9, 9]], np.float32)
    batch = {"weights": weights, "task": np.array([1, 1, 2, 0]), "depth": np.array([0, 20, 25, 0])}
    found = evaluate_answers(lambda batch: (loss, correct), [batch]).to_json()
    assert [(row["depth"], row["exact"]) for row in found["by_depth"]] == [(0, 1), (20, 0), (25, 0)]
    first, second = found["by_quarter"]
    assert first == {
        **{"task": 1, "from": 0, "to": 25, "examples": 2, "tokens": 5},
        **{"exact": 0.5, "accuracy": 0.8, "loss": 3.0},
    }
    assert (second["from"], second["exact"], second["accuracy"], second["loss"]) == (25, 0, 0, 6)
    assert (found["examples"], found["tokens"]) == (3, 6)
    assert found["exact"] == pytest.approx(1 / 3)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["loss"] == pytest.approx(21 / 6)
