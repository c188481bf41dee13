"""Every format gives the plain text back, window by window, and the held-out split is a split."""

import gzip
import json
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from mc_jax import data
from mc_jax.data import readers, sources, text
from tests.data.conftest import make_text

EOS = 256


def stream(windows) -> list[int]:
    """The tokens that a list of windows reads and predicts, put together."""
    tokens = [windows[0]["inputs"][0]]
    for window in windows:
        scored = window["weights"] > 0
        np.testing.assert_array_equal(
            window["inputs"][1:][scored[:-1] & scored[1:]],
            window["targets"][:-1][scored[:-1] & scored[1:]],
        )
        tokens += list(window["targets"][scored])
    return [int(token) for token in tokens]


def split_documents(tokens: list[int]) -> list[str]:
    """Undoes the token stream: documents between end-of-text ids."""
    assert tokens[0] == tokens[-1] == EOS
    documents, current = [], []
    for token in tokens[1:]:
        if token == EOS:
            documents.append(bytes(current).decode())
            current = []
        else:
            current.append(token)
    return documents


def held_out_documents(config) -> list[str]:
    """All documents of sources that are held out whole."""
    [windows] = text.eval_windows(config)
    return split_documents(stream(windows))


@pytest.fixture
def spec_of(tmp_path, documents, corpus):
    """Writes the documents in a format and returns the source that reads them."""

    def write(kind):
        path = tmp_path / "data"
        rows = [json.dumps({"id": i, "body": t}) for i, t in enumerate(documents)]
        if kind == "files":
            return f"files:{corpus}"
        if kind == "jsonl":
            path.write_text("\n\n".join(rows) + "\n")
            return f"jsonl:{path}?field=body"
        if kind == "jsonl.gz":
            path = path.with_suffix(".jsonl.gz")
            path.write_bytes(gzip.compress("\n".join(rows).encode()))
            return f"jsonl:{path}?field=body"
        if kind == "parquet":
            table = pyarrow.table({"id": list(range(len(documents))), "body": documents})
            pyarrow.parquet.write_table(table, path, row_group_size=7)
            return f"parquet:{path}?field=body"
        if kind == "hf":
            path.mkdir()
            (path / "train.jsonl").write_text("\n".join(rows))
            return f"hf:{path}?field=body"
        writer = ArrayRecordWriter(str(path), "group_size:4")
        for row, document in zip(rows, documents, strict=True):
            writer.write((row if kind == "arrayrecord json" else document).encode())
        writer.close()
        return f"arrayrecord:{path}" + ("?field=body" if kind == "arrayrecord json" else "")

    return write


@pytest.mark.parametrize(
    "kind",
    ["files", "jsonl", "jsonl.gz", "parquet", "arrayrecord", "arrayrecord json", "hf"],
)
def test_every_format_gives_the_documents(kind, spec_of, use, documents):
    config = use("stdlib", eval_sources=(spec_of(kind),))
    found = held_out_documents(config)
    if kind == "files":  # sorted by path: 0/00, 0/03, ...
        documents = documents[0::3] + documents[1::3] + documents[2::3]
    assert found == documents


def test_training_windows_cover_the_corpus_and_drop_the_short_rest(use, corpus, documents):
    [windows], _ = text.train_windows(use(f"files:{corpus}"))
    tokens = stream(windows)
    whole = [EOS]
    for document in documents[0::3] + documents[1::3] + documents[2::3]:
        whole += [*document.encode(), EOS]
    assert tokens == whole[: len(tokens)]
    assert 0 <= len(whole) - len(tokens) < windows[0]["inputs"].size
    assert all(window["weights"].all() for window in windows)


def test_held_out_documents_and_training_documents_are_the_corpus(use, corpus, documents):
    config = use(f"files:{corpus}", eval_fraction=0.3)
    held_out = held_out_documents(config)
    assert 5 < len(held_out) < 31
    training = [EOS]
    for document in documents[0::3] + documents[1::3] + documents[2::3]:
        if document not in held_out:
            training += [*document.encode(), EOS]
    [windows], _ = text.train_windows(config)
    assert stream(windows) == training[: 1 + len(windows) * config.length]
    assert len(training) < 1 + (len(windows) + 1) * config.length


def test_the_split_is_by_name_and_stays_when_documents_are_added(tmp_path):
    def held_out(folder, names):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        source = sources.parse(f"files:{tmp_path / folder}/**/*.txt", "sources")
        return {piece.text for piece in source.pieces(0.2) if piece.held_out}

    names = [f"{i % 2}/{i}.txt" for i in range(100)]
    few, many = held_out("a", names[:50]), held_out("b", names)
    assert few == {name for name in many if name in names[:50]}
    assert 10 <= len(many) <= 30


@pytest.mark.parametrize("line_end", ["\n", "", "漢"])
def test_of_a_single_file_the_end_is_held_out(line_end, tmp_path, use):
    whole = make_text(0, 3000).replace("\n", line_end)
    (tmp_path / "one.txt").write_bytes(whole.encode())
    config = use(f"files:{tmp_path}/one.txt", eval_fraction=0.1)
    [tail] = held_out_documents(config)
    [windows], _ = text.train_windows(config)
    head = bytes(t for t in stream(windows) if t != EOS).decode(errors="ignore")
    assert whole.endswith(tail) and whole.startswith(head)
    assert abs(len(tail.encode()) / len(whole.encode()) - 0.1) < 0.001
    assert 0 <= len(whole) - len(head) - len(tail) <= config.length


def test_large_files_are_read_in_pieces_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_BLOCK", 37)  # cuts characters as well
    whole = make_text(1, 400) + "no line end " * 20
    (tmp_path / "one.txt").write_bytes(whole.encode())
    pieces = [piece for _, piece in readers.read_text(str(tmp_path / "one.txt"))]
    assert "".join(pieces) == whole
    assert len(pieces) > 20
    # Pieces end with a line wherever a line ends inside 37 bytes.
    assert all(p.endswith("\n") or "\n" not in p for p in pieces)


def test_the_standard_library_is_there_and_split_by_file(use):
    source = sources.parse("stdlib", "sources")
    names = [os.path.basename(path) for path in source.files()]
    assert {"argparse.py", "ast.py", "typing.py"} < set(names)
    folders = {part for path in source.files() for part in path.split(os.sep)[-3:-1]}
    assert not folders & {"site-packages", "test", "tests", "idle_test", "pydoc_data"}
    config = use("stdlib", eval_fraction=0.05)
    [held_out], [training], _ = text.eval_windows(config), *text.train_windows(config)
    total = held_out.file.text_bytes + training.file.text_bytes
    assert total == source.size() > 5_000_000
    assert 0.02 < held_out.file.text_bytes / total < 0.1
    pieces = list(source.pieces(0.05))
    held = {piece.document for piece in pieces if piece.held_out}
    assert held.isdisjoint(piece.document for piece in pieces if not piece.held_out)
    assert held_out.file.documents == len(held) > 10


def test_max_tokens_bounds_a_source(use, corpus, documents):
    whole = use(f"files:{corpus}")
    [windows], _ = text.train_windows(whole)
    [bounded], _ = text.train_windows(use(f"files:{corpus}?max_tokens=700"))
    assert bounded.file.text_bytes == 700
    assert stream(bounded) == stream(windows)[: len(stream(bounded))]


def test_options_of_a_source_and_wildcards():
    source = sources.parse("jsonl:/a/?/b*.jsonl?field=x&max_tokens=5", "sources")
    assert (source.path, source.options["field"]) == ("/a/?/b*.jsonl", "x")
    assert source.max_tokens == 5
    assert sources.parse("files:/a/?.txt", "sources").path == "/a/?.txt"


def test_eval_batches_hold_every_held_out_token_once(use, corpus, documents):
    config = use("stdlib", eval_sources=(f"files:{corpus}", f"files:{corpus}"))
    config.eval_batches = 0
    batches = data.eval_batches(config)
    found = list(batches)
    assert len(found) == len(batches)
    assert {batch["inputs"].shape for batch in found} == {(4, 16)}
    scored = sum(int(batch["weights"].sum()) for batch in found)
    assert scored == 2 * sum(len(document.encode()) + 1 for document in documents)
    table = data.tokenizer(config).token_bytes
    text_bytes = sum(int((table[b["targets"]] * b["weights"]).sum()) for b in found)
    assert text_bytes == 2 * sum(len(document.encode()) for document in documents)
    for again, batch in zip(batches, found, strict=True):
        np.testing.assert_array_equal(again["targets"], batch["targets"])


def test_capped_eval_batches_are_spread_over_the_text(use, corpus):
    config = use("stdlib", eval_sources=(f"files:{corpus}",))
    [windows] = text.eval_windows(config)
    config.eval_batches = 2
    rows = np.concatenate([batch["inputs"] for batch in data.eval_batches(config)])
    at = [i * len(windows) // 8 for i in range(8)]
    np.testing.assert_array_equal(rows, [windows[i]["inputs"] for i in at])
    assert at[-1] > 0.8 * len(windows)
