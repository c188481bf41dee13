"""The benchmarks' own parts that run without measuring anything."""

import json
import sys

import pytest

from benchmarks import common, decode, throughput


@pytest.mark.parametrize("benchmark", [throughput, decode])
@pytest.mark.parametrize("rule", throughput.RULES)
def test_every_model_has_a_config(benchmark, rule, monkeypatch):
    monkeypatch.setattr(sys, "argv", [benchmark.__name__, "--rule", rule, "--size", "small"])
    args = benchmark.arguments()
    configs = {name: throughput.model_config(args, name, "cpu") for name in args.models}
    assert configs["ssc"].memory.route_every == 1
    assert configs["transformer++"].pattern == ("attention",)
    if "ssc-blocks" in configs:
        assert configs["ssc-blocks"].memory.route_every == 128


@pytest.mark.parametrize(
    "options, whole",
    [
        ([], True),
        (["--rounds", "1", "--threads", "1"], True),
        (["--rule", "titans", "--size", "350m"], True),
        (["--lengths", "256"], False),
        (["--top_k", "2"], False),
        (["--models", "base"], False),
    ],
)
def test_a_part_is_known_as_one(options, whole, monkeypatch):
    """Results of a part do not replace the whole's."""
    monkeypatch.setattr(sys, "argv", ["throughput", *options])
    assert throughput.arguments().whole == whole


def test_whether_a_run_was_whole_is_not_written(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "ROOT", tmp_path)
    common.write_results("some", (), {"whole": True, "length": 3}, [])
    record = json.loads((common.RESULTS / "some.json").read_text())
    assert record["settings"] == {"length": 3}


def test_what_is_unfinished_replaces_no_results(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "ROOT", tmp_path)

    def written(rows, **options):
        common.write_results("some", (), {}, rows, **options)
        return {path.name: json.loads(path.read_text())["rows"] for path in tmp_path.iterdir()}

    assert written([1]) == {"some.json": [1]}
    assert written([2], unfinished=True) == {"some.json": [1], "some_unfinished.json": [2]}
    assert written([2, 3]) == {"some.json": [2, 3]}


def test_other_code_has_a_folder_of_its_own(monkeypatch, tmp_path):
    """So has another version of a package."""
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(common.importlib.metadata, "version", {"jax": "1", "flax": "1"}.get)
    file = tmp_path / "mc_jax" / "some.py"
    file.parent.mkdir()
    file.write_text("1")
    first = common.folder_of_this_code(tmp_path / "runs", ("jax", "flax"))
    assert common.folder_of_this_code(tmp_path / "runs", ("jax", "flax")) == first
    file.write_text("2")
    second = common.folder_of_this_code(tmp_path / "runs", ("jax", "flax"))
    monkeypatch.setattr(common.importlib.metadata, "version", {"jax": "1", "flax": "2"}.get)
    third = common.folder_of_this_code(tmp_path / "runs", ("jax", "flax"))
    assert len({first, second, third}) == 3 and third.is_dir()
