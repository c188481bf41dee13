"""Mean, spread and the learning rate that is chosen, of numbers given by hand."""

import matplotlib.image
import numpy as np
import pytest

from configs import tiny
from mc_jax.sweeps import Cell, Lines, Rows, Sweep
from mc_jax.sweeps.collect import collect
from mc_jax.sweeps.description import grid
from mc_jax.sweeps.pictures import draw
from mc_jax.sweeps.report import choice, table
from mc_jax.sweeps.runs import RunResult, runs_of, seconds_left


def config_of(**axes):
    return tiny.get_config("mqar")  # eval_pairs are (2, 4)


def sweep(number="accuracy", rates=(0.1, 0.2, 0.3), **more):
    cells = grid(config_of, read=("base", "grm"), rate=rates)
    return Sweep(cells, (0, 1), number, Rows("read"), choose="rate", **more)


def results(sweep, workdir, values):
    """Ended runs; `values` by (read, rate) has a number a seed, or one for each of two pairs."""
    ended = []
    for run in runs_of(sweep, sweep.cells, workdir):
        given = values.get((run.cell.axes["read"], run.cell.axes["rate"]), ())
        if run.seed >= len(given):
            continue
        value = given[run.seed]
        if value is None:
            ended.append((run, RunResult(None, "loss is nan at step 3", None)))
            continue
        by_pairs = value if isinstance(value, tuple) else (value, value)
        held_out = {
            sweep.number: value,
            "by_pairs": [
                {"pairs": n, sweep.number: x} for n, x in zip((2, 4), by_pairs, strict=True)
            ],
        }
        ended.append((run, RunResult(held_out, None, 1.0)))
    return ended


@pytest.mark.parametrize(
    ("number", "values", "chosen", "mean"),
    [
        # The best mean, not the best seed.
        ("accuracy", {0.1: (0.5, 0.6), 0.2: (0.9, 0.1), 0.3: (0.4, 0.5)}, 0.1, 0.55),
        ("loss", {0.1: (0.5, 0.6), 0.2: (0.9, 0.1), 0.3: (0.4, 0.5)}, 0.3, 0.45),
        # Not the mean of the seed that is left.
        ("accuracy", {0.1: (0.5, 0.6), 0.2: (0.9, None)}, 0.1, 0.55),
        # Unless every value lost one.
        ("accuracy", {0.1: (0.5, None), 0.2: (None, 0.9)}, 0.2, 0.9),
        # Nor that of a value whose seeds are not all finished yet.
        ("loss", {0.1: (0.5, 0.6), 0.2: (0.1,)}, 0.1, 0.55),
        # The first of equals.
        ("accuracy", {0.2: (0.25, 0.75), 0.3: (0.5, 0.5)}, 0.2, 0.5),
    ],
)
def test_the_value_with_the_best_mean_is_chosen(tmp_path, number, values, chosen, mean):
    asked = sweep(number)
    given = {("grm", rate): found for rate, found in values.items()}
    (place,) = collect(asked, results(asked, tmp_path, given))
    assert place.axes == {"read": "grm"} and place.chosen == chosen
    assert place.to_json()["mean"] == pytest.approx(mean)


def test_one_value_is_chosen_for_all_parts(tmp_path):
    asked = sweep(by="pairs")
    values = {
        ("base", 0.1): ((0.9, 0.1), (0.7, 0.1)),  # best with 2 pairs, mean 0.45
        ("base", 0.2): ((0.6, 0.5), (0.6, 0.4)),  # mean 0.525
        ("grm", 0.3): ((0.8, None),)[:0],
        ("grm", 0.1): (None, None),
    }
    places = collect(asked, results(asked, tmp_path, values))
    assert [(place.axes, place.chosen) for place in places] == [
        ({"read": "base", "pairs": 2}, 0.2),
        ({"read": "base", "pairs": 4}, 0.2),
        ({"read": "grm", "pairs": 2}, 0.1),
        ({"read": "grm", "pairs": 4}, 0.1),
    ]
    found = places[1].to_json()
    assert (found["lowest"], found["highest"], found["values"]) == (0.4, 0.5, {"0": 0.5, "1": 0.4})
    assert places[3].to_json()["mean"] is None and places[3].diverged == [0, 1]
    assert table(asked, places).splitlines() == [
        "| read | recall, 2 pairs | recall, 4 pairs | rate | seeds |",
        "| --- | --- | --- | --- | --- |",
        "| base | 0.600 (0.600 to 0.600) | 0.450 (0.400 to 0.500) | 0.2 | 2 |",
        "| grm | diverged | diverged | 0.1 | 0, 2 diverged |",
    ]
    assert "rate: of each cell the one with the best mean recall over seeds" in choice(asked)


def test_time_left(tmp_path):
    """A cell's own time, else the mean of all; a run that was stopped has none."""
    asked = sweep(rates=(0.1,))
    runs = runs_of(asked, asked.cells, tmp_path)
    assert [(run.cell.axes["read"], run.seed) for run in runs] == [
        ("base", 0), ("grm", 0), ("base", 1), ("grm", 1),
    ]  # fmt: skip
    assert len({run.folder for run in runs}) == 4 and seconds_left(runs) is None

    def end(run, seconds):
        run.folder.mkdir()
        text = '{"held_out": {}, "diverged": null, "seconds": %s}'
        (run.folder / "outcome.json").write_text(text % seconds)

    end(runs[0], 10)
    assert seconds_left(runs) == 10 + 10 + 10
    end(runs[1], 40)
    assert seconds_left(runs) == 10 + 40
    end(runs[2], "null")
    assert seconds_left(runs) == 40


@pytest.mark.parametrize("panels", [None, "width"])
@pytest.mark.parametrize("kind", ["lines", "rows"])
def test_pictures_show_the_means(tmp_path, kind, panels):
    """Another mean is another picture, and a run that diverged leaves none."""
    widths = (16, 32) if panels else (16,)
    cells = [
        Cell({"read": read, "width": width}, config_of())
        for read in ("base", "grm")
        for width in widths
    ]
    picture = Lines("pairs", "read", panels) if kind == "lines" else Rows("read", panels)
    asked = Sweep(cells, (0, 1), "accuracy", picture, by="pairs" if kind == "lines" else None)

    def pixels(name, value):
        held_out = {
            "accuracy": value,
            "by_pairs": [{"pairs": 2, "accuracy": value}, {"pairs": 4, "accuracy": 0.9}],
        }
        ended = [
            (run, RunResult(held_out if run.cell.axes["read"] == "grm" else None, None, None))
            for run in runs_of(asked, cells, tmp_path)
        ]
        draw(tmp_path / name, asked, collect(asked, ended))
        return matplotlib.image.imread(tmp_path / name)

    low, same, high = pixels("low.png", 0.2), pixels("same.png", 0.2), pixels("high.png", 0.6)
    assert np.array_equal(low, same)
    assert low.shape != high.shape or np.abs(low - high).max() > 0.5
    assert low.shape[1] > (600 if panels else 300) and low.shape[0] > 150
