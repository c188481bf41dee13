"""The benchmarks' own parts that run without measuring anything."""

import sys

import pytest

from benchmarks import decode, throughput


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
