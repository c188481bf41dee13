"""Bad sweeps and bad arguments: one clear line each, before anything is trained or written."""

import dataclasses
from pathlib import Path

import pytest

from configs import tiny
from mc_jax.errors import InputError
from mc_jax.sweeps import Cell, Lines, Rows, Sweep, grid
from mc_jax.sweeps.check import check
from mc_jax.sweeps.cli import _share, sweep_command
from mc_jax.sweeps.runs import runs_of
from mc_jax.training.cli import call_in_file

ROOT = Path(__file__).parents[2]


def config_of(task="mqar", **axes):
    return tiny.get_config(task)


def cells(**axes):
    return grid(config_of, **axes)


GOOD = Sweep(cells(read=("base", "grm"), dim=(16, 32)), (0,), "accuracy", Lines("dim", "read"))


def broken(**settings):
    config = config_of()
    config.model.update(settings)
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": []}, "sweep.cells: found []; allowed: one Cell"),
        ({"cells": [Cell({}, config_of())]}, "one Cell or more, each with its axes"),
        ({"cells": cells(dim=(16, 16))}, "sweep.cells: found ['16']; allowed: each name once"),
        ({"cells": cells(seed=(1, 2))}, "sweep.cells: found ['seed']; allowed: another name"),
        (
            {"cells": cells(read=("grm",)) + cells(dim=(16,))},
            "sweep.cells: 16: found ['dim']; allowed: the axes of the first one",
        ),
        ({"cells": cells(dim=(None,))}, "sweep.cells: None: dim: found None"),
        ({"cells": [Cell({"dim": 1}, {})]}, "sweep.cells: 1: found 'dict'; allowed: a ConfigDict"),
        (
            {"cells": [*GOOD.cells, Cell({"read": "soup", "dim": 8}, broken(num_heads=3))]},
            "sweep.cells: soup-8: model.num_heads: found 3; allowed: a divisor",
        ),
        (
            {"cells": [*GOOD.cells, Cell({"read": "grm", "dim": 8}, config_of("text"))]},
            "sweep.cells: grm-8: data.task: found 'text'; allowed: 'mqar'",
        ),
        ({"seeds": ()}, "seeds: found (); allowed: one integer"),
        ({"seeds": (0, -1)}, "seeds: found (0, -1)"),
        ({"seeds": (1, 2, 1)}, "seeds: found [1]; allowed: each seed once"),
        ({"number": "acc"}, "sweep.number: found 'acc'; allowed: loss | accuracy for"),
        ({"by": "distance"}, "sweep.by: found 'distance'; allowed: pairs | length | None"),
        ({"by": "length"}, "sweep.lengths: found (); allowed: some with by='length'"),
        ({"lengths": (64,)}, "sweep.lengths: found (64,); allowed: some with by='length', ()"),
        ({"by": "length", "lengths": (64, 32, 64)}, "sweep.lengths: found [64]; allowed: each"),
        (
            {"by": "length", "lengths": (64, 8)},
            "sweep.lengths: found 8; allowed: lengths that base-16 can be evaluated at "
            "(data.mqar.pairs: found (4,)",
        ),
        (
            {
                "cells": cells(task=("needles",)),
                "number": "exact",
                "by": "length",
                "lengths": (300,),
            },
            "sweep.lengths: found 300; allowed: lengths that needles can be evaluated at "
            "(data.length: found 300; allowed: at least 4",
        ),
        ({"choose": "rate"}, "sweep.choose: found 'rate'; allowed: read | dim | None"),
        ({"picture": None}, "sweep.picture: found None; allowed: Lines"),
        ({"picture": Lines("pairs", "read")}, "sweep.picture: found 'pairs'; allowed: read | dim"),
        ({"picture": Rows("read")}, "one that shows 'dim' as well, which has 2 values"),
        ({"picture": Lines("read", "dim")}, "sweep.picture.x: read: found ['base', 'grm']"),
        ({"by": "pairs"}, "one that shows 'pairs' as well"),
        ({"choose": "dim"}, "sweep.picture: found 'dim'; allowed: read"),
    ],
)
def test_a_bad_sweep(changes, message):
    check(GOOD)
    with pytest.raises(InputError) as error:
        check(dataclasses.replace(GOOD, **changes))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "dim=3"], "--only: found 'dim=3'; allowed: AXIS=VALUE,... of aggregation"),
        (["--only", "aggregation=soup"], "found 'aggregation=soup'; allowed: aggregation=none |"),
        (
            ["--only", "aggregation=none", "aggregation=grm"],
            "--only: found 'aggregation=none aggregation=grm'; allowed: values that a cell has",
        ),
        (["--share=3/2"], "--share: found '3/2'; allowed: I/N with I from 1 to N"),
        (["--share=half"], "--share: found 'half'"),
        (["--share=0/2"], "--share: found '0/2'"),
        (["--share=1/2", "--report"], "not allowed with"),
        (["--seeds", "-1"], "seeds: found (-1,)"),
        (["--seeds", "one"], "arguments: found"),
        (["--steps=3"], "arguments: found"),
    ],
)
def test_bad_arguments(file, tmp_path, arguments, message):
    with pytest.raises(InputError) as error:
        sweep_command([f"--sweep={file}", f"--workdir={tmp_path / 'sweep'}", *arguments])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("shares", [1, 2, 3, 9])
def test_shares_are_the_whole(shares):
    runs = runs_of(dataclasses.replace(GOOD, seeds=(0, 1)), GOOD.cells, Path("runs"))
    parts = [_share(runs, f"{i}/{shares}") for i in range(1, shares + 1)]
    assert sorted(run.name for part in parts for run in part) == sorted(run.name for run in runs)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "a Python file; its folder has"),
        ("x = 1", "a Python file that defines get_sweep()"),
        ("def get_sweep(:", "a Python file that can be run"),
        ("def get_sweep(): return 3", "a get_sweep() that returns a Sweep"),
    ],
)
def test_a_bad_file(tmp_path, text, message):
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="--sweep: found") as error:
        sweep_command([f"--sweep={path}"])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("figure5.py", 6 * 3 * 3 * 3),
        ("figure5.py:titans", 6 * 3 * 3 * 3),
        ("figure5.py:linear,zoology", 6 * 6 * 6 * 4 * 5),
        ("table5.py", 2 * 7 * 3),
        ("table5.py:text", 2 * 7 * 3),
        ("needles.py", 4 * 6 * 3),
    ],
)
def test_the_sweeps_of_this_repository(name, runs):
    sweep = call_in_file("--sweep", str(ROOT / "configs" / "sweeps" / name), "get_sweep", Sweep)
    check(sweep)
    assert len(sweep.cells) * len(sweep.seeds) == runs
    settings = {cell.config.to_json() for cell in sweep.cells}
    assert len(settings) == len(sweep.cells), "no two cells are the same experiment"


def test_the_example_of_the_documentation(tmp_path):
    text = (ROOT / "docs" / "sweeps.md").read_text()
    (tmp_path / "own.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    sweep = call_in_file("--sweep", str(tmp_path / "own.py"), "get_sweep", Sweep)
    check(sweep)
    assert [cell.name for cell in sweep.cells][:3] == ["grm-8-0.004", "grm-8-0.008", "grm-16-0.004"]


@pytest.mark.parametrize(
    ("name", "found"), [("figure5.py:linear,zoo", "linear,zoo"), ("table5.py:texts", "texts")]
)
def test_arguments_of_these_sweeps(name, found):
    with pytest.raises(InputError, match=f"--sweep: found '{found}'"):
        call_in_file("--sweep", str(ROOT / "configs" / "sweeps" / name), "get_sweep", Sweep)
