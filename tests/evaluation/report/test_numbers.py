"""Every number of the page and of the Markdown file is that of a result file or the paper's."""

import json
from importlib import resources

import pytest

from mc_jax.evaluation.report import paper
from tests.evaluation.report.made import (
    TABLE1,
    curve,
    markdown_cells,
    needles,
    recall,
    score,
    sweep,
    text,
    workdir,
)

PAPER = json.loads((resources.files("mc_jax.evaluation") / "paper_tables.json").read_text())
TITLE1 = "Language modelling and common sense (the paper's Table 1)"
COLUMNS1 = {
    "WikiText ppl": "wiki_ppl",
    "LAMBADA ppl": "lmb_ppl",
    "LAMBADA": "lmb_acc",
    "PIQA": "piqa",
    "HellaSwag": "hellaswag_n",
    "WinoGrande": "winogrande",
    "ARC-e": "arc_e",
    "ARC-c": "arc_c_n",
    "SIQA": "siqa",
    "BoolQ": "boolq",
    "average": "avg",
}


def numbers(cells):
    return {name: float(text) for name, text in cells.items()}


def of_paper(row):
    return {name: row[key] for name, key in COLUMNS1.items()}


def table1(folder, first, **settings):
    """Numbers first, first + 1, ... in the columns of Table 1."""
    names = [key for key in COLUMNS1.values() if key != "avg"]
    for i, name in enumerate(names):
        score(folder, name, {(TABLE1, name): first + i}, **settings)


def test_table_1_beside_the_papers(report, tmp_path):
    base, cached = workdir(tmp_path / "a", aggregation="none"), workdir(tmp_path / "b")
    table1(base, 40.25)
    table1(cached, 41.5)
    page, file, _ = report(base, cached)

    for found in (page.cells("table1"), markdown_cells(file, TITLE1)):
        ours = {
            label.partition(",")[0]: numbers(c) for (g, label), c in found.items() if g == "ours"
        }
        assert list(ours) == ["Titans", "Titans+GRM"]
        names = [name for name in COLUMNS1 if name != "average"]
        # The mean of the accuracies, the third to the tenth column: 40.25 + (2 + ... + 9) / 8.
        expected = {name: 40.25 + i for i, name in enumerate(names)} | {"average": 45.75}
        assert ours["Titans"] == expected
        assert ours["Titans+GRM"] == {name: x + 1.25 for name, x in expected.items()}
        for size, key in (("760M", "760M_30B"), ("1.3B", "1.3B_100B")):
            for model in ("Titans", "Titans+GRM"):
                row = PAPER["table1_language_modelling"][key][model]
                assert numbers(found[f"the paper's, {size} parameters", model]) == of_paper(row)
        assert len(found) == 6  # and no other row of the paper

    for found in (page.cells("table1", 1), markdown_cells(file, TITLE1, 1)):
        difference = "Titans+GRM \N{MINUS SIGN} Titans"
        assert set(numbers(found["ours", difference]).values()) == {1.25}
        rows = PAPER["table1_language_modelling"]["1.3B_100B"]
        expected = {
            name: pytest.approx(rows["Titans+GRM"][key] - rows["Titans"][key], abs=0.006)
            for name, key in COLUMNS1.items()
        }
        assert numbers(found["the paper's, 1.3B parameters", difference]) == expected
        assert expected["average"] == 58.33 - 56.82


def test_the_best_is_bold(report, tmp_path):
    base, cached = workdir(tmp_path / "a", aggregation="none"), workdir(tmp_path / "b")
    for folder, perplexity, accuracy in ((base, 20.5, 60.25), (cached, 21.5, 61.25)):
        score(folder, "wikitext", {(TABLE1, "wiki_ppl"): perplexity})
        score(folder, "piqa", {(TABLE1, "piqa"): accuracy})
    page, file, to = report(base, cached)
    html = (to / "report.html").read_text()
    assert "<strong>20.50</strong>" in html and "<strong>21.50</strong>" not in html
    assert "<strong>61.25</strong>" in html and "<strong>60.25</strong>" not in html
    assert "**20.50**" in file and "**61.25**" in file
    # The average would be of one task in place of eight.
    assert all("average" not in row for row in page.cells("table1").values())
    assert "Of 11 columns 2 are measured." in page.text


@pytest.mark.parametrize("change", [{"steps": 40}, {"seed": 1}, {"dim": 64}, {"length": 128}])
def test_no_difference_from_another_model(change, report, tmp_path):
    """The base has the same size, data, steps and seed, or there is none."""
    base, cached = workdir(tmp_path / "a", aggregation="none"), workdir(tmp_path / "b")
    config = json.loads((base / "config.json").read_text())
    for group in (config, config["model"], config["data"], config["train"]):
        group.update({name: value for name, value in change.items() if name in group})
    (base / "config.json").write_text(json.dumps(config))
    text(base, 2.5)
    text(cached, 2.25)
    page, _, _ = report(base, cached)
    assert "in-short" not in page.sections
    assert all("against no caching" not in row for row in page.cells("text").values())
    assert "the same model without caching" in page.text


def test_no_difference_between_other_documents(report, tmp_path):
    base, cached = workdir(tmp_path / "a", aggregation="none"), workdir(tmp_path / "b")
    score(base, "piqa", {(TABLE1, "piqa"): 60.0})
    score(cached, "piqa", {(TABLE1, "piqa"): 61.0}, limit=10, documents=10)
    page, _, to = report(base, cached)
    assert len(page.tables["table1"]) == 1
    assert "<strong>61.00</strong>" not in (to / "report.html").read_text()
    assert "first documents of some tasks only (piqa: 10)" in page.text


def test_of_two_results_the_later_step(report, tmp_path):
    folder = workdir(tmp_path / "a")
    for step in (100, 20):
        score(folder, "piqa", {(TABLE1, "piqa"): 60.0 + step}, step=step)
        text(folder, 2.0 + step / 1000, step=step)
    page, _, _ = report(folder)
    assert [c["PIQA"] for (g, _), c in page.cells("table1").items() if g == "ours"] == ["160.00"]
    (row,) = page.cells("text").values()
    assert (row["step"], row["bits per byte"]) == ("100", "2.1000")
    # The other stays in the list of all.
    assert page.text.count("piqa_None-20-None.json") == 1


def test_held_out_text(report, tmp_path):
    base, cached = workdir(tmp_path / "a", aggregation="none"), workdir(tmp_path / "b")
    text(base, 2.5)
    text(base, 2.375, post_training=0.5)
    text(cached, 2.25)
    page, file, to = report(base, cached)
    for found in (page.cells("text"), markdown_cells(file, "Held-out text")):
        rows = {label: row for (_, label), row in found.items()}
        assert list(rows) == ["Titans", "Titans, post-training caching 0.5", "Titans+GRM"]
        assert rows["Titans+GRM"] == {
            "step": "20",
            "length": "64",
            "tokens": "512",
            "nats a token": "1.2500",
            "perplexity": "3.490",
            "bits per byte": "2.2500",
            "against no caching": "-0.2500",
        }
        changes = [row.get("against no caching") for row in rows.values()]
        assert changes == [None, "-0.1250", "-0.2500"]
    for found in (page.cells("text", 1), markdown_cells(file, "Held-out text", 1)):
        assert found["", "Titans+GRM"] == {"0": "3.7500", "1": "2.7500", "2-3": "2.2500"}
    short = page.cells("in-short")
    assert short["", "Titans+GRM"]["bits per byte"] == "2.2500 (-0.2500)"
    assert (to / "pictures" / "positions.svg").stat().st_size > 5000


def test_recall_and_gates(report, tmp_path):
    gates = [{"block": 0, "online": [0.25, 0.75], "on_answer": [0.125, 0.5]}]
    base = workdir(tmp_path / "a", "linear", "none", "mqar")
    cached = workdir(tmp_path / "b", "linear", "grm", "mqar")
    recall(base, 0.5)
    recall(cached, 0.875, gates)
    (cached / "eval" / "gates.png").write_bytes(b"a picture")
    page, file, to = report(base, cached)
    for found in (page.cells("recall"), markdown_cells(file, "Associative recall")):
        row = found["", "Linear+GRM"]
        assert (row["overall"], row["against no caching"]) == ("0.8750", "+0.3750")
        assert (row["pairs 2"], row["pairs 4"]) == ("0.8950", "0.9150")
    assert page.cells("recall", 1)["", "Linear+GRM"] == {"1": "0.4375"}
    assert page.cells("gates") == {
        ("", "Linear+GRM, block 0"): {
            "online memory": "0.25 0.75",
            "the memory with the answer": "0.12 0.50",
        }
    }
    assert (to / "pictures" / "gates-1.png").read_bytes() == b"a picture"


def test_needles_beside_table_2(report, tmp_path):
    base, cached = workdir(tmp_path / "a", "dla", "none"), workdir(tmp_path / "b", "dla")
    for length in (512, 4096):
        needles(base, 1, length, [0.25, 0.5])
        needles(cached, 1, length, [0.75, 1.0])
    page, file, to = report(base, cached)
    title = "Needles in a haystack (the paper's Table 2)"
    for found in (page.cells("table2"), markdown_cells(file, title)):
        ours = [numbers(row) for (group, _), row in found.items() if group == "ours"]
        assert ours == [
            {"S-NIAH-1 512": 37.5, "S-NIAH-1 4K": 37.5},
            {"S-NIAH-1 512": 87.5, "S-NIAH-1 4K": 87.5},
        ]
        row = PAPER["table2_needle"]["DLA+GRM"]
        assert numbers(found["the paper's", "DLA+GRM"]) == {
            f"S-NIAH-1 {n}": row[f"s_niah_1_{n.lower()}"] for n in ("4K", "8K", "16K")
        }
    changes = page.cells("table2", 1)
    difference = "DLA+GRM \N{MINUS SIGN} DLA"
    assert numbers(changes["ours", difference]) == {"S-NIAH-1 512": 50, "S-NIAH-1 4K": 50}
    # 100.0 - 96.4
    assert numbers(changes["the paper's", difference]) == {"S-NIAH-1 4K": 3.6}
    (picture,) = (a for tag, a in page.tags if tag == "img" and "of DLA+GRM" in a["alt"])
    assert "S-NIAH-1 at 4,096 tokens 87.5%" in picture["alt"]
    assert (to / "pictures" / "needles-2.svg").stat().st_size > 5000


def test_needles_of_a_model_that_the_paper_has_not(report, tmp_path):
    folder = workdir(tmp_path / "a", "linear", "grm")
    needles(folder, 2, 2048, [0.25, 0.5])
    page, _, _ = report(folder)
    (row,) = page.cells("table2").values()
    assert row == {"S-NIAH-2 2K": "37.50"} and "The paper has no row" in page.text


def test_tables_3_and_4(report, tmp_path):
    folder = workdir(tmp_path / "a", "titans", "soup")
    score(folder, "swde", {("table3_retrieval", "swde_512"): 12.5}, context=512)
    score(folder, "longbench_trec", {("table4_longbench", "trec"): 7.25})
    page, _, _ = report(folder)
    for section, column, key, table in (
        ("table3", "SWDE 512", "swde_512", "table3_retrieval"),
        ("table4", "trec", "trec", "table4_longbench"),
    ):
        rows = {group: row for (group, _), row in page.cells(section).items()}
        assert float(rows["ours"][column]) == (12.5 if section == "table3" else 7.25)
        assert rows["the paper's"] == {column: str(PAPER[table]["Titans+Soup"][key])}
    every = [row for _, row in page.cells("harness").items()]
    assert every[0]["value"] == "0.4321" and every[0]["standard error"] == "0.0123"


@pytest.mark.parametrize(
    ("memory", "row"),
    [
        ({}, "Titans+GRM"),
        ({"segmentation": "logarithmic"}, "Titans+Log-Linear++"),
        ({"aggregation": "ssc"}, "Titans+SSC"),
        ({"aggregation": "residual"}, None),
        ({"gate": "position"}, None),
        ({"write_mode": "checkpoint"}, None),
        ({"aggregation": "soup", "segmentation": "logarithmic"}, None),
        ({"rule": "linear"}, None),
    ],
)
def test_which_row_of_the_paper(memory, row, report, tmp_path):
    """Only the same memory: what differs has no row."""
    folder = workdir(tmp_path / "a", **memory)
    score(folder, "piqa", {(TABLE1, "piqa"): 60.0})
    page, _, _ = report(folder)
    rows = {label for group, label in page.cells("table1") if group != "ours"}
    assert rows == ({row} if row else set())


def test_a_sweep(report, tmp_path):
    axes = {"read": ["base", "grm"], "learning_rate": [0.1, 0.2], "pairs": [4, 8]}
    cells = {
        ("base", 4): [0.25, 0.5],
        ("base", 8): [0.125, 0.25],
        ("grm", 4): [0.75, 1.0],
        ("grm", 8): [0.5, 0.75],
    }
    sweep(tmp_path / "sweep", "figure5", cells, axes, "learning_rate")
    (tmp_path / "sweep" / "sweep.png").write_bytes(b"a picture")
    inside = workdir(tmp_path / "sweep" / "grm-seed0")
    curve(inside, [3.0, 2.0])
    page, file, _ = report(tmp_path / "sweep")
    for found in (
        page.cells("sweep-1"),
        markdown_cells(file, "Title of figure5 (the paper's Figure 5)"),
    ):
        assert found["", "base"] == {
            "pairs 4": "0.375 (0.250\N{EN DASH}0.500)",
            "pairs 8": "0.188 (0.125\N{EN DASH}0.250)",
            "chosen learning_rate": "0.008",
        }
        assert found["", "grm"]["pairs 4"] == "0.875 (0.750\N{EN DASH}1.000)"
    assert "8 of 9 runs are finished" in page.text
    # The sweep's runs are no models of their own.
    assert "models" not in page.sections and "curves" not in page.sections


def test_table_5_stands_beside_its_sweep(report, tmp_path):
    axes = {"aggregation": ["grm"], "row": ["full", "shared u and q"]}
    cells = {("grm", "full"): [0.5], ("grm", "shared u and q"): [0.25]}
    sweep(tmp_path / "sweep", "table5", cells, axes)
    page, _, _ = report(tmp_path / "sweep")
    assert page.cells("sweep-1")["", "grm, full"] == {"recall": "0.500"}
    found = page.cells("sweep-1", 1)
    for model, rows in PAPER["table5_ablation"].items():
        for name, row in rows.items():
            expected = (
                {}
                if row is None
                else {
                    k: str(v)
                    for k, v in zip(
                        ("perplexity", "common sense", "retrieval"), row.values(), strict=True
                    )
                }
            )
            assert found[f"the paper's, {model}", name] == expected


def test_curves_tell_where_they_end(report, tmp_path):
    folder = workdir(tmp_path / "a")
    curve(folder, [5.0, 4.0, 3.0])
    page, _, to = report(folder)
    picture = next(a for tag, a in page.tags if tag == "img")
    assert "Titans+GRM 3.250 (held-out)" in picture["alt"]
    assert (to / "pictures" / "curves-text.svg").stat().st_size > 5000
    (row,) = page.cells("models").values()
    assert (row["tokens trained on"], row["seed"], row["steps"]) == ("768", "0", "20")


def test_throughput(report, tmp_path):
    rows = [
        {"model": "base", "part": "step", "length": 2048, "tokens_per_s": 6482.77},
        {"model": "grm", "part": "step", "length": 2048, "tokens_per_s": 5451.53},
        {"model": "grm", "part": "step", "length": 4096, "bytes": 5},
        {"model": "grm", "part": "layer", "length": 2048, "tokens_per_s": 1.0},
    ]
    about = {"date": "2026-11-24", "device": "2 cores", "versions": {"jax": "0.10.2"}}
    (tmp_path / "x.json").write_text(json.dumps({**about, "rows": rows}))
    (tmp_path / "empty").mkdir()
    page, _, _ = report(tmp_path / "empty", more=[f"--throughput={tmp_path / 'x.json'}"])
    assert page.cells("throughput") == {
        ("", "base"): {"2,048": "6,483"},
        ("", "grm"): {"2,048": "5,452"},
    }
    assert "2 cores, 2026-11-24; jax 0.10.2" in page.text


def test_the_papers_averages_are_means_of_its_columns():
    """So ours can be made in the same way."""
    for table in (paper.language_modelling(), paper.retrieval()):
        keys = [c.key for c in table.columns if c.averaged and c.key != "avg"]
        for rows in table.rows:
            for row in rows.values():
                assert sum(row[key] for key in keys) / len(keys) == pytest.approx(
                    row["avg"], abs=0.006
                )
