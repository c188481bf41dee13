"""The adapter against the model itself, and as lm-eval calls it."""

import json

import lm_eval
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from mc_jax import InputError
from mc_jax.evaluation.harness import MCJaxLM
from mc_jax.evaluation.harness.lengths import Limit
from mc_jax.evaluation.harness.scoring import SMALLEST, compiled_scores
from mc_jax.inference import Sampling, generate
from mc_jax.model import LanguageModel
from mc_jax.training.sharding import data_parallel

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def adapter(subject, direct):
    def adapter(batch_size=4, max_length=256, too_long="refuse"):
        return MCJaxLM.of(subject, direct.params, Limit(max_length, too_long), batch_size)

    return adapter


def requests(kind, *arguments):
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def likeliest(direct, context, count):
    """Ids that the model itself writes after a context."""
    ids = list(context)
    for _ in range(count):
        padded = np.zeros((1, 1024), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(direct.logits(direct.params, padded)[0, len(ids) - 1].argmax()))
    return ids[len(context) :]


def test_scores_are_the_models_whatever_the_batch(adapter, direct):
    """200 requests of mixed lengths; some continuations are what the model would write."""
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(200):
        context = rng.integers(0, 257, rng.integers(1, 130)).tolist()
        size = int(rng.integers(1, 60))
        written = i % 10 == 0
        continuation = likeliest(direct, context, 2) if written else rng.integers(0, 257, size)
        pairs.append((context, list(map(int, continuation))))
    expected = [direct.score(*pair) for pair in pairs]
    assert sum(greedy for _, greedy in expected) >= 20
    programs = compiled_scores(LanguageModel(direct.config), data_parallel())
    before = programs._cache_size()
    for batch_size, order in ((16, 1), (5, -1)):
        lm = adapter(batch_size)
        asked = [(("", ""), *pair) for pair in pairs[::order]]
        found = lm._loglikelihood_tokens(asked, disable_tqdm=True)[::order]
        np.testing.assert_allclose(
            [value for value, _ in found], [value for value, _ in expected], rtol=1e-6
        )
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    # Lengths 32, 64, 128 and 256, with few places or all, for each size of batch.
    assert programs._cache_size() - before <= 2 * 4 * 2


def test_texts(adapter, direct):
    """Spaces belong to the continuation; without a context the text is scored after the end of
    another."""
    pairs = [("def f", "(x)"), ("Answer: ", "yes"), ("", "Grüße"), ("a\n", "b")]
    found = adapter().loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    expected = [
        direct.text("def f", "(x)"),
        direct.text("Answer:", " yes"),
        direct.text("", "Grüße"),
        direct.text("a", "\nb"),
    ]
    for one, other in zip(found, expected, strict=True):
        assert one == (pytest.approx(other[0], rel=1e-6), other[1])


def test_rolling_windows_of_lm_eval(adapter, direct):
    """Every token once: 32 after the one before them, and the last 4 after as many as fit."""
    texts = ["".join(chr(97 + i * i % 26) for i in range(100)), "short", ""]
    asked = requests("loglikelihood_rolling", *((text,) for text in texts))
    found = adapter(max_length=32).loglikelihood_rolling(asked, disable_tqdm=True)
    ids = list(texts[0].encode())
    windows = [([256], ids[:32]), (ids[31:32], ids[32:64]), (ids[63:64], ids[64:96])]
    windows.append((ids[67:96], ids[96:]))
    expected = [
        sum(direct.score(*window)[0] for window in windows),
        direct.text("", "short")[0],
        0,
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_generation_is_generate(adapter, subject, direct):
    prompts = ["def main(", "x", "Grüße aus der Höhle, 1234567890", "x y", "class A:\n", ""]
    options = [{"max_gen_toks": 40, "until": []}, {"max_gen_toks": 24, "until": ["c", "\n\n"]}]
    asked = [(prompt, options[i % 2]) for i, prompt in enumerate(prompts)]
    found = adapter(4).generate_until(requests("generate_until", *asked), disable_tqdm=True)
    lm = (direct.config, direct.params, subject.tokenizer)
    for (prompt, how), text in zip(asked, found, strict=True):
        prompt = prompt if prompt else np.array([256])
        (expected,) = generate(
            *lm, [prompt] * 4, max_tokens=how["max_gen_toks"], stop=how["until"], sampling=GREEDY
        )[:1]
        assert text == expected.text
    assert len(set(found)) > 3

    # Drawn tokens: those that generate draws for the batch, the longest prompt first.
    how = {"max_gen_toks": 20, "temperature": 0.8, "do_sample": True, "top_k": 50, "until": "q"}
    asked = requests("generate_until", *((prompt, how) for prompt in ("ab", "abcd", "abc", "a")))
    found = adapter(4).generate_until(asked, disable_tqdm=True)
    expected = generate(
        *lm,
        ["abcd", "abc", "ab", "a"],
        max_tokens=20,
        stop=["q"],
        sampling=Sampling(0.8, 50),
    )
    assert [found[i] for i in (1, 2, 0, 3)] == [completion.text for completion in expected]


def test_too_long(adapter, subject, direct):
    context, answer = "abcdefghij" * 4, " answer"
    refuse = adapter(max_length=32)
    with pytest.raises(InputError, match=r"found 32; allowed: at least 46, .* --too_long=left"):
        refuse.loglikelihood(requests("loglikelihood", (context, answer)), disable_tqdm=True)
    cut = adapter(max_length=32, too_long="left")
    asked = requests("loglikelihood", (context, answer), ("ab", answer))
    found = cut.loglikelihood(asked, disable_tqdm=True)
    # The last token of the answer is not read.
    expected = [direct.text(context[-26:], answer), direct.text("ab", answer)]
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=1e-6)
    with pytest.raises(InputError, match="at least 42, for the tokens of an answer"):
        cut.loglikelihood(requests("loglikelihood", ("ab", "c" * 42)), disable_tqdm=True)

    asked = requests("generate_until", (context, {"max_gen_toks": 20}))
    with pytest.raises(InputError, match="found 32; allowed: at least 60"):
        refuse.generate_until(asked, disable_tqdm=True)
    (found,) = cut.generate_until(asked, disable_tqdm=True)
    lm = (direct.config, direct.params, subject.tokenizer)
    expected = generate(*lm, [context[-12:]] * 4, max_tokens=20, sampling=GREEDY)
    assert found == expected[0].text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:0"}, "device: found 'cuda:0'; allowed: none"),
        ({"max_batch_size": 64}, "max_batch_size: found 64"),
        ({"batch_size": "auto"}, "--batch_size: found 'auto'; allowed: 1 or more"),
        ({"max_length": 1}, "--max_length: found 1; allowed: an integer >= 2"),
        ({"too_long": "middle"}, r"--too_long: found 'middle'; allowed: refuse \| left"),
        ({"tokenizer": "hf:/no/file"}, "--tokenizer: found 'hf:/no/file'; allowed: a file"),
    ],
)
def test_options(options, message, exported):
    with pytest.raises(InputError, match=message):
        MCJaxLM(str(exported), **options)


def test_generation_arguments(adapter):
    asked = requests("generate_until", ("a", {"max_gen_toks": 2, "num_beams": 4}))
    with pytest.raises(InputError, match="generation_kwargs: found 'num_beams=4'"):
        adapter().generate_until(asked)


def test_from_lm_eval_itself(exported, direct, tmp_path):
    """By its name and a string of arguments, on a task of one's own."""
    docs = [{"q": "2+2=", "a": "4"}, {"q": "Sky?", "a": "blue"}]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}},
        "output_type": "loglikelihood",
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "perplexity", "higher_is_better": False}],
    }
    found = lm_eval.simple_evaluate(
        model="mc_jax",
        model_args=f"workdir={exported},max_length={SMALLEST}",
        tasks=[task],
        batch_size=2,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )
    expected = np.exp(-np.mean([direct.text("2+2=", " 4")[0], direct.text("Sky?", " blue")[0]]))
    # The delimiter of lm-eval stands before targets of choices alone.
    plain = np.exp(-np.mean([direct.text("2+2=", "4")[0], direct.text("Sky?", "blue")[0]]))
    assert expected != plain
    assert found["results"]["sums"]["perplexity,none"] == pytest.approx(plain, rel=1e-5)
