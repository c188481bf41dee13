"""The token store: built once, for exactly one text and tokenizer, whole or not at all."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from mc_jax.data import sources, store, tokenizers


def open_(spec, cache, held_out=0.2, tokenizer="bytes"):
    source = sources.parse(spec, "data.sources[0]")
    return store.open_store(source, tokenizers.load(tokenizer), held_out, str(cache))


def ids(files):
    return {name: file.map().tolist() for name, file in files.items()}


@pytest.fixture
def spec(corpus):
    return f"files:{corpus}"


@pytest.fixture
def no_building(monkeypatch):
    def fail(*_):
        raise AssertionError("the store was built again")

    return lambda: monkeypatch.setattr(store, "_build", fail)


def test_a_store_is_read_the_second_time(spec, tmp_path, no_building):
    first = open_(spec, tmp_path / "cache")
    assert all(len(part) > 100 for part in ids(first).values())
    no_building()
    assert ids(open_(spec, tmp_path / "cache")) == ids(first)


def test_another_text_tokenizer_or_split_is_another_store(spec, tmp_path, documents):
    cache = tmp_path / "cache"
    first = ids(open_(spec, cache))
    assert ids(open_(spec, cache, held_out=0.5)) != first
    assert ids(open_(spec + "?max_tokens=300", cache)) != first
    changed = next((tmp_path / "corpus").rglob("*.txt"))
    changed.write_bytes(changed.read_bytes() + b"!")
    assert ids(open_(spec, cache)) != first
    assert len(list(cache.iterdir())) == 4


DAMAGES = {
    "short": lambda folder: os.truncate(folder / "train.bin", 100),
    "flipped byte": lambda folder: (folder / "held_out.bin").write_bytes(
        b"\x01" + (folder / "held_out.bin").read_bytes()[1:]
    ),
    "lost file": lambda folder: (folder / "train.bin").unlink(),
    "lost meta": lambda folder: (folder / "meta.json").unlink(),
    "broken meta": lambda folder: (folder / "meta.json").write_text('{"splits": {'),
    "other meta": lambda folder: (folder / "meta.json").write_text('{"splits": {"train": 3}}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_built_again(damage, spec, tmp_path, caplog):
    cache = tmp_path / "cache"
    whole = ids(open_(spec, cache))
    [folder] = cache.iterdir()
    DAMAGES[damage](folder)
    with caplog.at_level("WARNING", logger=store.__name__):
        assert ids(open_(spec, cache)) == whole
    assert f"{folder} is damaged" in caplog.text
    assert list(cache.iterdir()) == [folder]
    caplog.clear()
    open_(spec, cache)
    assert not caplog.text


def test_damage_in_the_middle_of_a_large_file_changes_the_checksum(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 40)
    size = path.stat().st_size
    for block, everything in ((256, True), (100, False)):  # 64 blocks of 256 hold the whole file
        whole = store._checksum(str(path), 64, block)
        seen = 0
        for at in range(0, size, 97):
            damaged = bytearray(path.read_bytes())
            damaged[at] ^= 1
            other = tmp_path / "y"
            other.write_bytes(damaged)
            seen += store._checksum(str(other), 64, block) != whole
        places = len(range(0, size, 97))
        assert seen == places if everything else 0.5 < seen / places < 0.75


def test_a_build_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "good"}\n{"text": "go')
    with pytest.raises(ValueError, match="x.jsonl:2"):
        open_(f"jsonl:{tmp_path}/x.jsonl", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def _build_at_once(spec, cache, barrier, results):
    tokenizer = tokenizers.load("bytes")
    source = sources.parse(spec, "data.sources[0]")
    build = store._build

    def build_together(*args):
        build(*args)
        barrier.wait(30)  # both have built before either publishes

    store._build = build_together
    files = store.open_store(source, tokenizer, 0.2, cache)
    results.put({name: file.map().tolist() for name, file in files.items()})


def test_two_processes_build_at_once(spec, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    cache = str(tmp_path / "cache")
    builders = [
        context.Process(target=_build_at_once, args=(spec, cache, barrier, results))
        for _ in range(2)
    ]
    for builder in builders:
        builder.start()
    found = [results.get(timeout=60) for _ in builders]
    for builder in builders:
        builder.join(30)
    assert found[0] == found[1] == ids(open_(spec, tmp_path / "other"))
    assert len(list(Path(cache).iterdir())) == 1


def test_ids_are_16_bits_wide_where_they_fit(spec, tmp_path, monkeypatch):
    narrow = open_(spec, tmp_path / "cache")["train"]
    assert narrow.map().dtype == np.uint16
    monkeypatch.setattr(tokenizers.ByteTokenizer, "vocab_size", 65537)
    wide = open_(spec, tmp_path / "wide")["train"]
    assert wide.map().dtype == np.uint32
    assert wide.map().tolist() == narrow.map().tolist()


def test_meta_says_what_the_store_holds(spec, tmp_path, documents):
    open_(spec, tmp_path / "cache")
    [folder] = (tmp_path / "cache").iterdir()
    meta = json.loads((folder / "meta.json").read_text())
    splits = meta["splits"].values()
    assert meta["source"] == spec and meta["tokenizer"] == "bytes"
    assert sum(split["documents"] for split in splits) == len(documents)
    assert sum(s["text_bytes"] for s in splits) == sum(len(d.encode()) for d in documents)
    assert [s["tokens"] - s["text_bytes"] - s["documents"] for s in splits] == [1, 1]
