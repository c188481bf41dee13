"""What is drawn, where a text ends, and how it streams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax import InputError
from mc_jax.data.tokenizers import ByteTokenizer
from mc_jax.inference import Completion, Sampling, decode_step, generate, prefill, stream
from mc_jax.inference.generation import BLOCK, _decode_block, encode
from mc_jax.inference.sampling import draw, kept
from mc_jax.model import LanguageModel
from tests.model import tiny

TOKENIZER = ByteTokenizer()
PROMPTS = ["def main(", "x", "Grüße aus der Höhle, 1234567890"]
GREEDY = Sampling(temperature=0)


class NeverEnds(ByteTokenizer):
    """With an end of the document that is not in the vocabulary."""

    eos_id = 999


@pytest.fixture(scope="module")
def lm():
    config = tiny.config(vocab_size=257, memory={"aggregation": "ssc"})
    return config, tiny.perturbed(config)


def by_hand(config, params, prompt, count):
    """Greedy ids, from the whole text anew for each token."""
    forward = jax.jit(lambda ids: LanguageModel(config).apply({"params": params}, ids))
    ids = np.zeros((1, 128), np.int32)
    length = len(prompt)
    ids[0, :length] = prompt
    for at in range(length, length + count):
        # Causal: what stands behind changes nothing.
        ids[0, at] = int(jnp.argmax(forward(ids)[0, at - 1]))
    return ids[0, length : length + count].tolist()


def test_greedy_is_the_most_likely_token_of_the_training_forward(lm):
    """Over more than one block, of prompts of different lengths side by side."""
    found = generate(*lm, TOKENIZER, PROMPTS, max_tokens=BLOCK + 5, sampling=GREEDY)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        expected = by_hand(*lm, TOKENIZER.encode(prompt), BLOCK + 5)
        if TOKENIZER.eos_id in expected:
            expected = expected[: expected.index(TOKENIZER.eos_id) + 1]
        assert completion.tokens == expected
        assert completion.text == TOKENIZER.decode(expected)


def test_a_seed_gives_one_text_whatever_stands_beside_it(lm):
    draws = [generate(*lm, TOKENIZER, ["x", "yz"], max_tokens=20, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    alone = generate(*lm, TOKENIZER, ["x"], max_tokens=20, seed=1)
    assert alone[0] == draws[0][0]


def test_a_long_text_compiles_one_program(lm):
    """However many segments end in it."""
    before = _decode_block._cache_size()
    (found,) = generate(*lm, NeverEnds(), ["x"], max_tokens=4 * BLOCK, sampling=GREEDY)
    assert len(found.tokens) == 4 * BLOCK > 30 * lm[0].memory.segment_len
    assert _decode_block._cache_size() == before + 1


def test_stream_is_generate(lm):
    config, params = lm
    (expected,) = generate(*lm, TOKENIZER, PROMPTS[:1], max_tokens=80, seed=3)
    state = prefill(config, params, encode(TOKENIZER, PROMPTS[:1])[0])
    pieces = list(stream(*lm, TOKENIZER, *state, max_tokens=80, seed=3))
    assert "".join(pieces) == expected.text
    assert len(pieces) > 1


def test_stop_strings(lm):
    """The text ends before the one that comes first; nothing of it is ever shown."""
    config, params = lm
    (whole,) = generate(*lm, TOKENIZER, ["x"], max_tokens=60, sampling=GREEDY)
    assert len(whole.text) > 30
    stop = [whole.text[25:28], whole.text[20:22], "never"]
    first = min(whole.text.find(s) for s in stop[:2])
    (found,) = generate(*lm, TOKENIZER, ["x"], max_tokens=60, sampling=GREEDY, stop=stop)
    assert found.text == whole.text[:first]
    assert found.reason == "stop"
    assert found.tokens == whole.tokens[: len(found.tokens)]
    assert len(found.tokens) < len(whole.tokens)
    state = prefill(config, params, encode(TOKENIZER, ["x"])[0])
    pieces = stream(*lm, TOKENIZER, *state, max_tokens=60, sampling=GREEDY, stop=stop)
    assert "".join(pieces) == found.text


def test_the_end_of_the_document_ends_the_text(lm):
    """A head that always prefers the end after a few tokens would; here it is made to."""
    config, params = lm
    (whole,) = generate(*lm, TOKENIZER, ["x"], max_tokens=9, sampling=GREEDY)

    class Ends(ByteTokenizer):
        eos_id = whole.tokens[4]

    (found,) = generate(*lm, Ends(), ["x"], max_tokens=9, sampling=GREEDY)
    first = whole.tokens.index(whole.tokens[4])
    assert found.tokens == whole.tokens[: first + 1]
    assert found.reason == "end"
    assert whole.reason == "length"
    assert isinstance(whole, Completion)


def test_half_a_character_is_not_shown(monkeypatch, lm):
    """A block may end inside of one."""
    ids = iter([b"a", "é".encode()[:1], "é".encode()[1:], b"b"])

    def blocks(*_):
        for block in ids:
            yield np.array([list(block)]), None

    monkeypatch.setattr("mc_jax.inference.generation.decode", blocks)
    pieces = stream(*lm, TOKENIZER, None, None, max_tokens=4)
    assert list(pieces) == ["a", "é", "b"]


def test_sampling_follows_the_probabilities():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.1]]))
    keys = jax.random.split(jax.random.key(0), 4000)

    @functools.partial(jax.jit, static_argnums=0)
    def shares(sampling):
        drawn = draw(jnp.repeat(logits, 4000, 0), keys, sampling)
        return jnp.bincount(drawn, length=4) / 4000

    np.testing.assert_allclose(shares(Sampling()), [0.5, 0.25, 0.15, 0.1], atol=0.03)
    np.testing.assert_allclose(shares(Sampling(top_k=2)), [2 / 3, 1 / 3, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(Sampling(top_p=0.7)), [2 / 3, 1 / 3, 0, 0], atol=0.03)
    sharp = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(shares(Sampling(0.5)), sharp / sharp.sum(), atol=0.03)
    assert shares(Sampling(0.0))[0] == 1


def test_top_p_keeps_the_token_that_reaches_the_share():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.3, 0.2]]))
    for top_p, count in ((0.39, 1), (0.41, 2), (0.71, 3), (0.95, 4), (1.0, 4)):
        assert jnp.isfinite(kept(logits, Sampling(top_p=top_p))).sum() == count


def test_of_equal_tokens_the_first_are_kept():
    """As many as are asked for, and with one the token that greedy decoding takes."""
    logits = jnp.array([[0.0, 2.0, 2.0, 2.0]])
    kept_of = {k: jnp.isfinite(kept(logits, Sampling(top_k=k))).tolist() for k in (1, 2, 9)}
    assert kept_of == {
        1: [[False, True, False, False]],
        2: [[False, True, True, False]],
        9: [[True] * 4],
    }
    inside = jnp.isfinite(kept(jnp.zeros((1, 8)), Sampling(top_p=0.3)))
    assert inside.tolist() == [[True] * 3 + [False] * 5]


@pytest.mark.parametrize(
    "sampling", [{"temperature": 1e-38}, {"temperature": 1e-320}, {"top_p": 1e-46}], ids=str
)
def test_the_smallest_values_take_the_most_likely_token(sampling):
    """Neither overflows nor leaves nothing to draw from."""
    logits = jnp.array([[1.0, 5.0, 3.0], [-1.0, -5.0, -3.0]])
    assert draw(logits, jax.random.split(jax.random.key(0)), Sampling(**sampling)).tolist() == [
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_bad_sampling(values, field):
    with pytest.raises(InputError) as error:
        Sampling(**values)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("prompts", "more", "field"),
    [
        ([], {}, "prompts"),
        ("one text", {}, "prompts"),
        (["a", ""], {}, "prompt"),
        (["a", 3], {}, "prompts"),
        (["a"], {"max_tokens": 0}, "max_tokens"),
        (["a"], {"max_tokens": 2.5}, "max_tokens"),
        (["a"], {"stop": "text"}, "stop"),
        (["a"], {"stop": [""]}, "stop"),
        (["a"], {"stop": [3]}, "stop"),
        (["a"], {"stop": 3}, "stop"),
        (["a"], {"stop": iter(["text"])}, "stop"),
        (["a"], {"seed": 2**64}, "seed"),
        (["a"], {"seed": 0.5}, "seed"),
    ],
)
def test_bad_requests_cost_nothing(monkeypatch, lm, prompts, more, field):
    """They are refused before the model runs."""
    monkeypatch.setattr("mc_jax.inference.generation.prefill", None)
    with pytest.raises(InputError) as error:
        generate(*lm, TOKENIZER, prompts, **more)
    assert error.value.field == field


def test_decode_step_is_pure(lm):
    """Compiled without donation the cache can be used again: two continuations of one text."""
    config, params = lm
    _, cache = prefill(config, params, np.array([[5, 6, 7]]))
    step = jax.jit(decode_step, static_argnums=0)
    first = step(config, params, np.array([8]), cache)[0]
    np.testing.assert_array_equal(first, step(config, params, np.array([8]), cache)[0])
