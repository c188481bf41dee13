"""Needle prompts: RULER's words, places and lengths to the token, and the task to train on."""

import io
import re
import uuid

import numpy as np
import pytest
import sentencepiece
import tokenizers as hf

from mc_jax import data
from mc_jax.data import haystack, tokenizers
from mc_jax.data.needles import Prompts, least_tokens
from mc_jax.errors import InputError

LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ESSAY = """It was late.  Nobody, as far as I know, had asked for a longer   way home!
Did we take it? We did: over the bridge, past the mill (which had burnt down in 1911).
"Look," she said. The river was high. """
# RULER's: 40 from 0 to 100, rounded.
DEPTHS = [
    0,
    3,
    5,
    8,
    10,
    13,
    15,
    18,
    21,
    23,
    26,
    28,
    31,
    33,
    36,
    38,
    41,
    44,
    46,
    49,
    51,
    54,
    56,
    59,
]
DEPTHS += [62, 64, 67, 69, 72, 74, 77, 79, 82, 85, 87, 90, 92, 95, 97, 100]


@pytest.fixture(scope="module")
def essays(tmp_path_factory):
    """A text that prompts read several times over."""
    path = tmp_path_factory.mktemp("essays") / "an [essay].txt"
    path.write_text(ESSAY + "So the 3rd evening went — größer than life. " * 3)
    return haystack.essays(str(path), "essays")


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory, essays):
    """The tokenizer of bytes, and small ones of other kinds whose tokens are whole words."""
    folder = tmp_path_factory.mktemp("vocabularies")
    lines = [essays.text, LINE, "One of the special magic numbers for", "hidden within the text"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 3), model_writer=model, vocab_size=400, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "x.model").write_bytes(model.getvalue())
    byte_level = hf.Tokenizer(hf.models.BPE())
    byte_level.pre_tokenizer = hf.pre_tokenizers.ByteLevel()
    byte_level.decoder = hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet)
    byte_level.train_from_iterator(lines * 3, trainer)
    byte_level.save(f"{folder}/x.json")
    specs = {"sentencepiece": f"sentencepiece:{folder}/x.model", "hf": f"hf:{folder}/x.json"}
    return {name: tokenizers.load(spec) for name, spec in {"bytes": "bytes", **specs}.items()}


@pytest.fixture
def make(essays, vocabularies):
    def make(task, kind="bytes", tokens=600, size=40, **changes):
        text = haystack.noise() if task == 1 else essays
        return Prompts(task, vocabularies[kind], text, tokens, size, **changes)

    return make


def frame(kind, key, value):
    """RULER's prompt for one needle, in three parts: up to the haystack, the needle, the rest."""
    return (
        f"A special magic {kind} is hidden within the following text. Make sure to memorize it. I "
        f"will quiz you about the {kind} afterwards.\n",
        f"One of the special magic {kind}s for {key} is: {value}.",
        f"\nWhat is the special magic {kind} for {key} mentioned in the provided text? The special "
        f"magic {kind} for {key} mentioned in the provided text is",
    )


@pytest.mark.parametrize("task", [1, 2, 3])
def test_a_prompt_is_rulers_to_the_letter(task, make, essays):
    circle = (LINE + "\n") * 20 if task == 1 else essays.text * 20
    for sample in make(task):
        key, value = sample.question.key, sample.question.value
        assert re.fullmatch("[a-z]+-[a-z]+", key)
        if task == 3:
            assert str(uuid.UUID(value)) == value and uuid.UUID(value).version == 4
        else:
            assert re.fullmatch("[1-9][0-9]{6}", value)
        opening, needle, closing = frame("uuid" if task == 3 else "number", key, value)
        assert sample.prompt.startswith(opening) and sample.prompt.endswith(closing)
        context = sample.prompt[len(opening) : -len(closing)]
        before, after = context.split(needle)
        gap = "\n" if task == 1 else " "
        # The needle takes the place of a gap between two sentences of the text.
        assert before == "" or before.endswith(gap)
        assert after == "" or after.startswith(gap)
        assert before + after.removeprefix(gap) in circle
        if len(before) > 2:
            assert before[-2] in '.!?)"'


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "hf"])
@pytest.mark.parametrize("task", [1, 2, 3])
def test_length_and_depth_are_met_to_the_token(kind, task, make):
    for tokens in (least_tokens(make(task, kind).tokenizer, task), 701, 1500):
        prompts = make(task, kind, tokens, depths=(0, 3, 37.5, 50, 99, 100), size=12)
        for sample in prompts:
            text, tokenizer = sample.prompt, prompts.tokenizer
            np.testing.assert_array_equal(sample.ids, tokenizer.encode(text))
            assert abs(len(sample.ids) - tokens) <= 1
            # Where tokens start, in bytes of the text.
            ends = np.cumsum(tokenizer.token_bytes[sample.ids])
            assert ends[-1] == len(text.encode())
            q = sample.question
            opening, needle, closing = frame("uuid" if task == 3 else "number", q.key, q.value)
            places = len(opening), text.index(needle), text.index(": " + q.value) + 1
            found = [np.searchsorted(ends, len(text[:at].encode()), "right") for at in places]
            # A space may be a part of the token that follows it.
            assert [sample.start, sample.needle, sample.value] == pytest.approx(found, abs=1)
            if kind == "bytes":
                assert [sample.start, sample.needle, sample.value] == found
            filler = len(sample.ids) - len(tokenizer.encode(opening + needle + closing))
            assert sample.filler == filler
            assert abs(sample.needle - sample.start - q.depth / 100 * filler) <= 1


def test_placement_by_sentence_is_rulers_rule(make, essays):
    sentences = [
        *("It was late.", "Nobody, as far as I know, had asked for a longer way home!"),
        *("Did we take it?", "We did: over the bridge, past the mill (which had burnt down in"),
    ]
    for depth, at in ((0, 0), (49, 1), (50, 2), (99, 3), (100, 4)):
        prompts = make(2, depths=(depth,), placement="sentence", size=1)
        question, _ = prompts.draw(0)
        opening, needle, closing = frame("number", question.key, question.value)
        parts = [" ".join(sentences[:at]), needle, " ".join(sentences[at:])]
        expected = opening + " ".join(parts) + closing
        # One more word does not fit.
        for tokens in (len(expected), len(expected) + 5):
            sample = make(2, tokens=tokens, depths=(depth,), placement="sentence", size=1)[0]
            assert sample.prompt == expected


def test_noise_by_sentence_is_whole_lines(make):
    for depth, at in ((0, 0), (34, 1), (67, 2), (100, 3)):
        prompts = make(1, tokens=680, depths=(depth,), placement="sentence", size=1)
        question, _ = prompts.draw(0)
        opening, needle, closing = frame("number", question.key, question.value)
        lines = [LINE] * 3
        lines.insert(at, needle)
        assert prompts[0].prompt == opening + "\n".join(lines) + closing
        assert 680 - len(LINE) <= len(prompts[0].prompt) <= 680


def test_more_than_the_essays_hold_is_read_from_the_start_again(make, essays):
    long = make(2, tokens=4 * len(essays.text), placement="sentence", size=1)[0]
    assert long.prompt.count("Did we take it?") == 3
    assert haystack.split_sentences("A b. C (d.) e! f") == ["A b.", "C (d.)", "e!", "f"]


def test_depths_take_turns_when_held_out_and_are_drawn_in_training(make):
    assert [sample.question.depth for sample in make(1)] == DEPTHS
    prompts = make(1, size=4000, held_out=False)
    drawn = [prompts.draw(i)[0].depth for i in range(4000)]
    assert sorted(set(drawn)) == DEPTHS
    counts = np.unique(drawn, return_counts=True)[1]
    assert ((counts - 100.0) ** 2 / 100).sum() < 73  # 39 degrees of freedom: p < 0.001 above 73


def test_a_prompt_depends_on_seed_and_index_alone(make):
    one, other = make(3), make(3)
    for index in (39, 3, 20):
        assert one[index].prompt == other[index].prompt
    assert make(3, size=99)[3].prompt == one[3].prompt
    assert len({sample.prompt for sample in one}) == 40
    values = {make(task, seed=seed)[5].question.value for task in (1, 2) for seed in (0, 1)}
    assert len(values) == 4
    with pytest.raises(IndexError):
        one[40]


def test_no_key_is_both_trained_on_and_held_out(make):
    keys = {}
    for held_out in (False, True):
        streams = [make(1, size=3000, seed=seed, held_out=held_out) for seed in (0, 7)]
        keys[held_out] = {p.draw(i)[0].key for p in streams for i in range(3000)}
    assert not keys[False] & keys[True]
    assert len(keys[False]) > 4000 and len(keys[True]) > 1500


@pytest.fixture
def task(config, tmp_path):
    (tmp_path / "essay.txt").write_text(ESSAY)
    config.update(task="needles", length=560, eval_batches=2)
    config.needles.update(tasks=(1, 3), essays=str(tmp_path / "essay.txt"), depths=(0, 40, 100))
    return config


def test_examples_ask_for_the_value(task):
    found = list(data.eval_batches(task))
    assert [batch["task"].tolist() for batch in found] == [[1] * 4] * 2 + [[3] * 4] * 2
    assert [d for b in found for d in b["depth"]] == [0, 40, 100, 0, 40, 100, 0, 40] * 2
    ends = []
    for batch in found:
        for i in range(4):
            ids = np.append(batch["inputs"][i], batch["targets"][i][-1])
            np.testing.assert_array_equal(ids[1:], batch["targets"][i])
            at = np.flatnonzero(batch["weights"][i])
            text = bytes(ids[: at[-1] + 1].tolist()).decode()
            value = re.search("is: (.*?)[.]", text)[1]
            assert text.endswith(f"mentioned in the provided text is {value}.")
            answer = [*f" {value}.".encode(), 256]
            assert batch["targets"][i][at].tolist() == answer
            assert at.tolist() == list(range(at[0], at[0] + len(answer)))
            assert (batch["targets"][i][at[-1] :] == 256).all()  # nothing but the end behind it
            ends.append(at[-1])
            # The distance leads from where a token is to be written back to where it stands.
            back = at - batch["distance"][i][at]
            assert batch["inputs"][i][back][:-1].tolist() == answer[:-1]
            assert batch["distance"][i][batch["weights"][i] == 0].max() == 0
    # Answers stand at different places, so that none of a segment is special.
    assert min(ends) >= 560 - 64 and max(ends) < 560 and len(set(ends)) > 8


def test_training_examples_are_others_and_may_count_every_token(task):
    iterator = data.train_iterator(task, seed=0)
    batches = [next(iterator) for _ in range(3)]
    iterator.close()
    rows = {bytes(row) for batch in batches for row in batch["inputs"]}
    assert len(rows) == 12
    assert not rows & {bytes(row) for batch in data.eval_batches(task) for row in batch["inputs"]}
    assert {int(n) for batch in batches for n in batch["weights"].sum(1)} == {10, 39}
    assert set(batches[0]) == {"inputs", "targets", "weights"}

    task.needles.loss = "all"
    iterator = data.train_iterator(task, seed=0)
    batch = next(iterator)
    iterator.close()
    np.testing.assert_array_equal(batch["inputs"], batches[0]["inputs"])
    # Every token up to the end of the text, and none behind it.
    ended = np.cumsum(batch["targets"] == 256, axis=1) - (batch["targets"] == 256)
    np.testing.assert_array_equal(batch["weights"], ended == 0)
    assert all(batch["weights"].sum(1).max() <= 39 for batch in data.eval_batches(task))


def test_the_vocabulary_is_the_tokenizers(task):
    assert data.vocab_size(task) == 257
    assert data.tokenizer(task).eos_id == 256


REFUSED = {
    "tasks": ({"tasks": (1, 4)}, "data.needles.tasks", "(1, 4)", "1, 2 and 3"),
    "no task": ({"tasks": ()}, "data.needles.tasks", "()", "one or more"),
    "depth": ({"depths": (0, 101)}, "data.needles.depths", "101", "0 to 100"),
    "negative depth": ({"depths": (-0.5,)}, "data.needles.depths", "-0.5", "0 to 100"),
    "digits": ({"digits": 0}, "data.needles.digits", "0", "from 1 to 18"),
    "loss": ({"loss": "some"}, "data.needles.loss", "'some'", "'answer' or 'all'"),
    "no essay": ({"essays": "/no/essay.txt"}, "data.needles.essays", "/no/essay.txt", "a path"),
    "no kind": ({"essays": "jsonl:"}, "data.needles.essays", "'jsonl:'", "and then a path"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_are_refused(case, task):
    changes, *parts = REFUSED[case]
    task.needles.update(changes)
    for call in (lambda: data.train_iterator(task, seed=0), lambda: data.eval_batches(task)):
        with pytest.raises(InputError) as caught:
            call()
        assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ("essays", "with 0 characters", "text with sentences")),
        (b"no end in sight " * 9, ("essays", "no end of a sentence")),
        (b"It was. \xff\xfe", ("essay.txt, byte 8", "UTF-8")),
    ],
)
def test_essays_that_are_none(content, parts, tmp_path):
    (tmp_path / "essay.txt").write_bytes(content)
    for spec in (tmp_path / "essay.txt", tmp_path, f"files:{tmp_path}/*.txt"):
        with pytest.raises(InputError) as caught:
            haystack.essays(str(spec), "essays")
        assert all(part in str(caught.value) for part in parts)


def test_a_length_that_holds_no_prompt(task):
    task.length = 400
    with pytest.raises(InputError, match="data.length: found 400; allowed: at least 435: the prom"):
        data.eval_batches(task)
