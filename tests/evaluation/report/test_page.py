"""The page: alone, safe, accessible, and the same each time."""

import base64
import re
import shutil
import xml.etree.ElementTree as ElementTree

import pytest

from mc_jax.evaluation.report import markdown
from mc_jax.evaluation.report.document import Cell, with_best
from tests.evaluation.report.made import (
    TABLE1,
    curve,
    needles,
    recall,
    result,
    score,
    sweep,
    text,
    workdir,
)


@pytest.fixture
def everything(tmp_path):
    """Folders with a result of every kind."""
    first, second = workdir(tmp_path / "a", aggregation="none"), workdir(tmp_path / "b")
    third = workdir(tmp_path / "c", "linear", "grm", "mqar")
    for folder, bits in ((first, 2.5), (second, 2.25)):
        curve(folder, [5.0, 4.0, 3.0])
        text(folder, bits)
        score(folder, "piqa", {(TABLE1, "piqa"): 10 * bits})
        needles(folder, 1, 512, [0.5, 0.25])
    recall(third, 0.5, [{"block": 0, "online": [0.5, 0.5]}])
    sweep(tmp_path / "sweep", "figure5", {("grm", 4): [0.5, 0.75]}, {"read": ["grm"], "pairs": [4]})
    return [first, second, third, tmp_path / "sweep"]


def test_nothing_is_loaded_from_elsewhere(report, everything):
    page, _, to = report(*everything)
    expected = ["in-short", "models", "curves", "text", "recall", "gates", "table1", "table2"]
    assert page.sections == [*expected, "harness", "sweep-1", "missing", "sources"]
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name, "#")
            assert value.startswith("#") or (tag == "img" and value.startswith("data:image/"))
    html = (to / "report.html").read_text()
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
    assert len(pictures) == len(list((to / "pictures").glob("*.svg"))) == 6
    for picture in pictures:
        tree = ElementTree.fromstring(base64.b64decode(picture))
        for element in tree.iter():
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:"))


def test_links_lead_somewhere_and_pictures_say_what_they_show(report, everything):
    page, file, to = report(*everything)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"].removeprefix("#") for tag, a in page.tags if tag == "a"]
    assert links == page.sections
    named = [a[n] for _, a in page.tags for n in ("aria-labelledby",) if n in a]
    assert set(named) <= set(ids)
    for tag, attributes in page.tags:
        if tag == "img":
            assert len(attributes["alt"]) > 20
        if tag == "th":
            assert attributes["scope"] in ("row", "col", "rowgroup", "colgroup")
    for path in re.findall(r"\]\((.*?)\)", file):
        assert (to / path).is_file()


def test_the_same_each_time(report, everything, tmp_path):
    _, _, to = report(*everything)
    before = {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}
    shutil.rmtree(to)
    report(*everything)
    assert {path: path.read_bytes() for path in to.rglob("*") if path.is_file()} == before


def test_text_of_results_is_text(report, tmp_path):
    evil = "<script>alert(1)</script> & **a** | `b`"
    first, second = workdir(tmp_path / "<i>a & b"), workdir(tmp_path / "c")
    text(first, 2.5, command=f"python eval.py --x='{evil}'")
    text(second, 2.5)
    score(first, evil.replace("/", ""), {(TABLE1, "piqa"): 60.0}, too_long=evil)
    sweep(tmp_path / "sweep", evil, {(evil, 4): [0.5]}, {"read": [evil], "pairs": [4]})
    result(tmp_path / "c" / "odd.json", evil)
    page, file, to = report(first, second, tmp_path / "sweep")
    html = (to / "report.html").read_text()
    assert "<script" not in html and "<i>" not in html
    assert not any(tag in ("script", "i") for tag, _ in page.tags)
    # Two models are told apart by their folders.
    assert "Titans+GRM (<i>a & b)" in {label for _, label in page.cells("text")}
    assert evil in page.text and f"--x='{evil}'" in page.text
    assert "<script" not in file.replace("`", "")
    assert "Titans+GRM (&lt;i>a &amp; b)" in file
    row = next(line for line in file.splitlines() if line.startswith("| &lt;script"))
    assert markdown.escape(evil) in row


def test_sections_only_of_what_is_there(report, tmp_path):
    folder = workdir(tmp_path / "a")
    curve(folder, [5.0, 4.0])
    page, file, _ = report(folder)
    assert page.sections == ["models", "curves", "missing"]
    assert re.findall("^## (.*)", file, re.MULTILINE) == ["Models", "Training", "Missing"]
    missing = [row["command"] for row in page.cells("missing").values()]
    assert f"python eval.py needles --workdir={folder}" in page.text
    assert missing and all(command.startswith("python ") for command in missing)


def test_the_best_of_a_column():
    cells = with_best(
        [[2.0, 1.0, None, 5.0], [1.0, 1.0, 3.0, None]],
        [["2", "1", "", "5"], ["1", "1", "3", ""]],
        [True, False, False, False],
    )
    # Where all are equal, or one is alone, nothing is the best.
    assert cells == [
        [Cell("2"), Cell("1"), Cell(""), Cell("5")],
        [Cell("1", True), Cell("1"), Cell("3"), Cell("")],
    ]
