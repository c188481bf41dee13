"""Tokenizers: ids give the text back, and token_bytes adds up to its UTF-8."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers as hf

from mc_jax.data import store, text, tokenizers
from tests.data.conftest import make_text

TEXTS = [
    make_text(3, 200),
    "   leading and trailing   ",
    "def f(x):\n\treturn  x\r\n",
    "<s> </s> <|endoftext|> <0x41> 𝔘nseen ☃",
]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Trains small tokenizers of each kind; returns the config value of each."""
    folder = tmp_path_factory.mktemp("tokenizers")
    lines = make_text(0, 3000).splitlines(keepends=True)
    specs = {"bytes": "bytes"}

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=320, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        minloglevel=2,
    )  # fmt: skip
    (folder / "x.model").write_bytes(model.getvalue())
    specs["sentencepiece"] = f"sentencepiece:{folder}/x.model"

    byte_level = hf.Tokenizer(hf.models.BPE())
    byte_level.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=True)
    byte_level.decoder = hf.decoders.ByteLevel()
    byte_level.post_processor = hf.processors.TemplateProcessing(
        "<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    byte_level.train_from_iterator(
        lines,
        hf.trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    byte_level.add_tokens(["\n\n\n"])
    byte_level.enable_truncation(5)
    byte_level.save(f"{folder}/byte_level.json")
    specs["hf byte level"] = f"hf:{folder}/byte_level.json"

    # As Llama's: spaces are written with the normalizer, unknown characters as bytes.
    fallback = hf.Tokenizer(hf.models.BPE(byte_fallback=True, unk_token="<unk>"))
    fallback.normalizer = hf.normalizers.Sequence(
        [hf.normalizers.Prepend("\u2581"), hf.normalizers.Replace(" ", "\u2581")]
    )
    fallback.decoder = hf.decoders.Sequence(
        [
            hf.decoders.Replace("\u2581", " "),
            hf.decoders.ByteFallback(),
            hf.decoders.Fuse(),
            hf.decoders.Strip(" ", 1, 0),
        ]
    )
    specials = ["<unk>", "<s>", "</s>"]
    fallback.train_from_iterator(
        lines,
        hf.trainers.BpeTrainer(
            vocab_size=600, special_tokens=specials + [f"<0x{i:02X}>" for i in range(256)]
        ),
    )
    spec = json.loads(fallback.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in specials]
    (folder / "fallback.json").write_text(json.dumps(spec))
    specs["hf byte fallback"] = f"hf:{folder}/fallback.json"
    return specs


KINDS = ["bytes", "sentencepiece", "hf byte level", "hf byte fallback"]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_give_the_text_back_and_count_its_bytes(kind, models):
    tokenizer = tokenizers.load(models[kind])
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes[tokenizer.eos_id] == 0
    for example, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, tokenizer.encode(example))
        assert tokenizer.decode(ids) == example
        assert tokenizer.token_bytes[ids].sum() == len(example.encode())
        assert tokenizer.eos_id not in ids
        # The end of a document and the rows that pad a model's vocabulary stand for no text.
        assert tokenizer.decode([*ids, tokenizer.eos_id, tokenizer.vocab_size + 3]) == example
    if kind != "bytes":
        assert len(tokenizer.encode(TEXTS[0])) < 0.7 * len(TEXTS[0].encode())


@pytest.mark.parametrize(
    ("kind", "vocab_size", "eos_id"),
    [
        ("bytes", 257, 256),
        ("sentencepiece", 320, 2),
        ("hf byte level", 301, 0),
        ("hf byte fallback", 600, 2),
    ],
)
def test_vocabulary_and_end_of_text(kind, vocab_size, eos_id, models):
    tokenizer = tokenizers.load(models[kind])
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (vocab_size, eos_id)


def test_a_vocabulary_without_an_end_of_text_gets_one_more_id(tmp_path):
    plain = hf.Tokenizer(hf.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    plain.decoder = hf.decoders.ByteLevel()
    plain.save(f"{tmp_path}/x.json")
    tokenizer = tokenizers.load(f"hf:{tmp_path}/x.json")
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (3, 4)
    assert tokenizer.token_bytes.tolist() == [1, 1, 2, 0]
    assert tokenizer.encode("aba").tolist() == [2, 0]


def test_a_sentencepiece_model_that_removes_spaces_keeps_those_of_its_ids(tmp_path):
    """As the library trains them by default: a text that goes on from another starts with one."""
    model = io.BytesIO()
    lines = make_text(0, 3000).splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=300, model_type="bpe",
        byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "x.model").write_bytes(model.getvalue())
    tokenizer = tokenizers.load(f"sentencepiece:{tmp_path}/x.model")
    example = "one two three"
    ids = tokenizer.encode(example)
    parts = [tokenizer.decode(ids[:cut]) + tokenizer.decode(ids[cut:]) for cut in range(len(ids))]
    assert parts == [example] * len(ids)
    # What the model itself does to a text stays.
    assert tokenizer.decode(tokenizer.encode("one  two ")) == "one two"


@pytest.mark.parametrize("kind", KINDS)
def test_token_bytes_add_up_over_the_held_out_windows(kind, models, use, corpus, documents):
    config = use("stdlib", eval_sources=(f"files:{corpus}",))
    config.tokenizer = models[kind]
    table = tokenizers.load(models[kind]).token_bytes
    [windows] = text.eval_windows(config)
    found = sum(int((table[w["targets"]] * w["weights"]).sum()) for w in windows)
    assert found == windows.file.text_bytes == sum(len(d.encode()) for d in documents)


def test_a_tokenizer_that_changes_text_is_reported(tmp_path, use, caplog):
    lower = hf.Tokenizer(hf.models.BPE({"a": 0, "b": 1}, []))
    lower.normalizer = hf.normalizers.Replace("X", "ab")
    lower.decoder = hf.decoders.ByteLevel()
    lower.save(f"{tmp_path}/x.json")
    (tmp_path / "x.txt").write_text("abX" * 100)
    config = use("stdlib", eval_sources=(f"files:{tmp_path}/x.txt",))
    config.tokenizer = f"hf:{tmp_path}/x.json"
    with caplog.at_level("WARNING", logger=store.__name__):
        text.eval_windows(config)
    assert "the tokenizer changes the text, its ids stand for +100 bytes" in caplog.text
