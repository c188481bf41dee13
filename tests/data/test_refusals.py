"""Bad input of every kind: one line that says what was found where, and what is allowed."""

import gzip
import json
import os
import sys

import pyarrow
import pyarrow.parquet
import pytest
import tokenizers as hf
from array_record.python.array_record_module import ArrayRecordWriter

from mc_jax import data
from mc_jax.errors import InputError


def refuse(config, *expected, call=None):
    """Asserts that making the training stream raises one line with every expected part."""
    with pytest.raises(InputError) as caught:
        (call or (lambda: data.train_iterator(config, seed=0)))()
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


SETTINGS = {
    "task": ("task", "image", "'text', 'mqar' or 'needles'"),
    "length": ("length", 0, "at least 1"),
    "batch": ("batch_size", 0, "at least 1"),
    "workers": ("workers", -1, "at least 0"),
    "eval batch": ("eval_batch_size", 0, "at least 1"),
    "eval batches": ("eval_batches", -1, "at least 0"),
    "no source": ("sources", (), "at least one"),
    "unknown kind": ("sources", ("txt:/a",), "stdlib, files, jsonl"),
    "no path": ("sources", ("files:",), "'files:' and then a path"),
    "stdlib with a path": ("sources", ("stdlib:/a",), "'stdlib' alone"),
    "no file": ("sources", ("files:/no/such/*.txt",), "a path or glob that matches a file"),
    "unknown option": ("sources", ("files:/a?feild=x",), "name=value of max_tokens"),
    "max_tokens": ("sources", ("stdlib?max_tokens=many",), "a positive integer"),
    "weights too many": ("weights", (1.0, 2.0), "one weight for each of the 1 data.sources"),
    "negative weight": ("weights", (-1.0,), "positive numbers"),
    "nan weight": ("weights", (float("nan"),), "positive numbers"),
    "fraction": ("eval_fraction", 1.0, "[0, 1)"),
    "tokenizer kind": ("tokenizer", "words", "'bytes', 'sentencepiece:"),
    "tokenizer path": ("tokenizer", "hf:", "'bytes', 'sentencepiece:"),
    "tokenizer file": ("tokenizer", "sentencepiece:/no/x.model", "a file that exists"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(case, config):
    key, value, allowed = SETTINGS[case]
    config[key] = value
    field = f"data.{key}"
    refuse(config, field, repr(value[0] if key == "sources" and value else value), allowed)


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("pairs", (65,), ("data.mqar.pairs", "(65,)", "data.length = 256: at most 64")),
        ("eval_pairs", (8, 65), ("data.mqar.eval_pairs", "(8, 65)", "at most 64")),
        ("pairs", (), ("data.mqar.pairs", "one or more pair counts")),
        ("pairs", (0,), ("data.mqar.pairs", "each at least 1")),
        ("vocab_size", 129, ("data.mqar.vocab_size", "129", "at least 130")),
        ("power_a", 0.0, ("data.mqar.power_a", "positive")),
        ("power_a", float("nan"), ("data.mqar.power_a", "positive")),
    ],
)
def test_mqar_sizes(key, value, parts, config):
    config.task, config.length = "mqar", 256
    config.mqar[key] = value
    refuse(config, *parts)
    refuse(config, *parts, call=lambda: data.eval_batches(config))


def test_the_smallest_mqar_vocabulary_works(config):
    config.task, config.length, config.mqar.vocab_size = "mqar", 256, 130
    assert next(data.train_iterator(config, seed=0))["inputs"].max() < 130


def test_mqar_without_eval_batches(config):
    config.task, config.eval_batches, config.length = "mqar", 0, 256
    refuse(config, "data.eval_batches", "at least 1 for mqar")


def test_processes_and_seed(use, corpus):
    config = use(f"files:{corpus}")

    def start(seed=0, process_index=0, process_count=1):
        return lambda: data.train_iterator(
            config, seed=seed, process_index=process_index, process_count=process_count
        )

    refuse(config, "data.batch_size", "4", "multiple of the 3", call=start(process_count=3))
    refuse(config, "process_index", "2", "[0, 2)", call=start(process_index=2, process_count=2))
    refuse(config, "seed", "-1", "non-negative", call=start(seed=-1))


def test_a_text_task_alone_has_a_tokenizer(config):
    config.task = "mqar"
    refuse(config, "data.task", "'mqar'", call=lambda: data.tokenizer(config))


FILES = {
    "empty file": ("files", b"", ("with 0 training tokens", "data.length + 1 = 17")),
    "shorter than a window": ("files", b"0123456789", ("training tokens", "at least data.length")),
    "not utf-8": ("files", b"0123\xff456" * 50, ("x, byte 4", "b'\\xff456'", "UTF-8")),
    "cut utf-8": ("files", b"0123456789" * 9 + b"\xe6\xbc", ("x, byte 90", "unexpected end")),
    "bad json": ("jsonl", b'{"text": "a"}\n\n{"text": }', ("x:3", '{"text": }', "column 10")),
    "not an object": ("jsonl", b'{"text": "a"}\n["text"]', ("x:2", '["text"]', "a JSON object")),
    "no field": ("jsonl", b'{"id": 1, "body": "b"}', ("x:1", "'text'", "'id', 'body'")),
    "not a string": ("jsonl", b'{"text": "a"}\n{"text": 5}', ("x:2", "5", "a string in")),
    "bytes in json": ("jsonl", b'{"text": "\xff"}', ("x:1, byte 10", "UTF-8")),
    "half a surrogate": ("jsonl", b'{"text": "\\ud800"}', ("document x:1", "valid Unicode")),
    "not parquet": ("parquet", b"no such format" * 9, ("x: found", "Parquet")),
    "empty parquet": ("parquet", b"", ("x: found", "0 bytes", "a readable Parquet file")),
    "not arrayrecord": ("arrayrecord", b"no such format" * 99, ("x: found", "ArrayRecord file")),
    "empty arrayrecord": ("arrayrecord", b"", ("x: found", "empty", "ArrayRecord file")),
}


@pytest.mark.parametrize("case", FILES)
def test_broken_files(case, use, tmp_path):
    kind, content, parts = FILES[case]
    (tmp_path / "x").write_bytes(content)
    refuse(use(f"{kind}:{tmp_path}/x"), str(tmp_path) if case[:4] != "half" else "x", *parts)
    assert os.listdir(tmp_path / "cache") == [] or case in ("empty file", "shorter than a window")


def test_cut_gzip(use, tmp_path):
    whole = gzip.compress(b'{"text": "aaaa"}\n' * 99)
    (tmp_path / "x.gz").write_bytes(whole[:-20])
    refuse(use(f"jsonl:{tmp_path}/x.gz"), "x.gz", "an intact gzip file")
    (tmp_path / "x.gz").write_bytes(b"no gzip at all")
    refuse(use(f"jsonl:{tmp_path}/x.gz"), "x.gz", "an intact gzip file")
    (tmp_path / "x.gz").write_bytes(whole[:15] + b"\xff\xff" + whole[17:])
    refuse(use(f"jsonl:{tmp_path}/x.gz"), "x.gz", "an intact gzip file")


def test_parquet_columns(use, tmp_path):
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "body": ["b"]}), path)
    refuse(use(f"parquet:{path}"), "x.parquet", "'text'", "'id', 'body'")
    refuse(use(f"parquet:{path}?field=id"), "x.parquet, row 0", "found 1", "a string")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    refuse(use(f"parquet:{path}"), "x.parquet, row 1", "found None", "a string")


def test_a_damaged_parquet_page(use, tmp_path):
    path = tmp_path / "x.parquet"
    table = pyarrow.table({"text": [f"document number {i}" for i in range(300)]})
    pyarrow.parquet.write_table(
        table, path, compression="none", use_dictionary=False, write_page_checksum=True
    )
    content = bytearray(path.read_bytes())
    content[content.index(b"number 100")] ^= 1
    path.write_bytes(content)
    refuse(use(f"parquet:{path}"), "x.parquet", "CRC", "a readable Parquet file")


def test_array_records(use, tmp_path):
    path = tmp_path / "x.arrayrecord"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(json.dumps({"body": "b"}).encode())
    writer.write(b"\xff")
    writer.close()
    refuse(use(f"arrayrecord:{path}?field=text"), "record 0", "'text'", "'body'")
    refuse(use(f"arrayrecord:{path}"), "record 1, byte 0", "UTF-8")
    content = bytearray(path.read_bytes())
    at = bytes(content).index(b'"body"')
    content[at] ^= 0xFF
    path.write_bytes(content)
    refuse(use(f"arrayrecord:{path}"), "x.arrayrecord", "hash mismatch", "readable")


def test_tokenizer_files(config, tmp_path):
    (tmp_path / "x").write_text("neither of them")
    config.tokenizer = f"sentencepiece:{tmp_path}/x"
    refuse(config, "data.tokenizer", "/x", "a SentencePiece model")
    config.tokenizer = f"hf:{tmp_path}/x"
    refuse(config, "data.tokenizer", "/x", "a tokenizer.json")
    (tmp_path / "x").write_text('{"decoder": {"type": "ByteLevel"}}')
    refuse(config, "data.tokenizer", "/x", "a tokenizer.json")
    lossy = hf.Tokenizer(hf.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    lossy.decoder = hf.decoders.WordPiece()
    lossy.save(str(tmp_path / "x"))
    refuse(config, "data.tokenizer", "WordPiece", "others lose spaces")


@pytest.mark.parametrize(
    ("module", "setting", "pip"),
    [
        ("sentencepiece", {"tokenizer": "sentencepiece:{x}"}, "pip install sentencepiece"),
        ("tokenizers", {"tokenizer": "hf:{x}"}, "pip install tokenizers"),
        ("datasets", {"sources": ("hf:a/b",)}, "pip install datasets"),
        ("pyarrow", {"sources": ("parquet:{x}",)}, "pip install pyarrow"),
        (
            "array_record.python.array_record_module",
            {"sources": ("arrayrecord:{x}",)},
            "pip install array_record",
        ),
    ],
)
def test_missing_libraries_are_named(module, setting, pip, config, tmp_path, monkeypatch):
    (tmp_path / module).write_text("some file")
    monkeypatch.setitem(sys.modules, module, None)
    for key, value in setting.items():
        where = str(tmp_path / module)
        config[key] = (
            value.format(x=where) if isinstance(value, str) else (value[0].format(x=where),)
        )
    refuse(config, f"no module {module.split('.')[0]}", pip)


def test_a_dataset_that_cannot_be_had(use, monkeypatch):
    import datasets

    def load(name, config, split, streaming):
        assert (name, config, split, streaming) == ("owner/name", "part", "test", True)
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", load)
    config = use("hf:owner/name:part?split=test")
    refuse(config, "hf:owner/name:part", "Couldn't reach", "a network", "data.sources=stdlib")


def test_a_dataset_without_the_field(use, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"id": 1, "body": "b"}')
    refuse(use(f"hf:{tmp_path}"), "row 0", "'text'", "'id', 'body'")


def test_no_held_out_text(use, corpus):
    config = use(f"files:{corpus}", eval_fraction=0.0)
    refuse(config, "data.eval_fraction", "0.0", call=lambda: data.eval_batches(config))


def test_eval_sources_name_themselves(use):
    config = use("stdlib", eval_sources=("stdlib", "txt:/a"))
    refuse(config, "data.eval_sources[1]", "txt:/a", call=lambda: data.eval_batches(config))


def test_every_source_is_looked_at_before_any_is_tokenised(use, tmp_path):
    refuse(use("stdlib", "files:/no/such"), "data.sources[1]", "/no/such")
    config = use("stdlib", eval_sources=("stdlib", "files:/no/such"))
    refuse(config, "data.eval_sources[1]", "/no/such")
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written(use, corpus, tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    config = use(f"files:{corpus}")
    config.cache_dir = str(tmp_path / "file" / "cache")
    refuse(config, "data.cache_dir", config.cache_dir, "a folder")
