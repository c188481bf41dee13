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
    monkeypatch.setattr(common, "RESULTS", tmp_path / "benchmarks" / "results")
    common.RESULTS.parent.mkdir()
    common.write_results("some", (), {"whole": True, "length": 3}, [])
    record = json.loads((common.RESULTS / "some.json").read_text())
    assert record["settings"] == {"length": 3}
