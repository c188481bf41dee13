"""Results that are written by hand, and what a page and a Markdown file say, read back."""

import json
from html.parser import HTMLParser

from configs import tiny

MADE = {
    "command": "python eval.py --workdir=runs/x",
    "date": "2026-11-25",
    "versions": {"python": "3.11.7", "mc_jax": "0.1.0", "jax": "0.10.2"},
}
SETTINGS = {"max_length": 64, "too_long": "refuse", "limit": None, "post_training_caching": None}


def result(path, kind, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"kind": kind, **MADE, **content}))


def workdir(folder, rule="titans", aggregation="grm", task="text", **memory):
    """A folder with the config of a run."""
    config = tiny.get_config(task)
    config.model.memory.update(rule=rule, aggregation=aggregation, **memory)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    return folder


def curve(folder, losses):
    """Two held-out losses among those of training."""
    records = [
        {"step": step, "loss": loss, "tokens": 256 * step} for step, loss in enumerate(losses, 1)
    ]
    for record in (records[0], records[-1]):
        record["held_out_loss"] = record["loss"] + 0.25
    lines = (json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text("".join(lines))


def text(folder, bits, step=20, post_training=None, **changes):
    name = "eval/post_training" if post_training is not None else "eval"
    by_position = [
        {"first": first, "last": last, "tokens": 8, "bits_per_byte": bits + extra}
        for first, last, extra in ((0, 0, 1.5), (1, 1, 0.5), (2, 3, 0.0))
    ]
    content = {
        "step": step,
        "task": "text",
        "length": 64,
        "post_training_caching": post_training,
        "held_out": {
            "tokens": 512,
            "loss": 1.25,
            "perplexity": 3.4903,
            "bits_per_byte": bits,
            "by_position": by_position,
        },
        "gates": {"none": "no gate"},
    }
    result(folder / name / f"step_{step}.json", "evaluation", **(content | changes))


def recall(folder, accuracy, gates=None):
    held_out = {
        "tokens": 48,
        "loss": 2.5,
        "accuracy": accuracy,
        "by_pairs": [
            {"pairs": pairs, "accuracy": accuracy + 0.01 * pairs, "tokens": 24} for pairs in (2, 4)
        ],
        "by_distance": [{"first": 1, "last": 1, "accuracy": accuracy / 2, "tokens": 48}],
    }
    content = {"step": 20, "task": "mqar", "length": 64, "post_training_caching": None}
    layers = {"layers": gates} if gates else {"none": "no gate"}
    path = folder / "eval" / "step_20.json"
    result(path, "evaluation", **content, held_out=held_out, gates=layers)


TABLE1 = "table1_language_modelling"


def score(folder, task, columns, step=20, context=None, limit=None, documents=100, **settings):
    """A task's numbers in the paper's tables, {(table, column): value}."""
    found = [
        {"table": t, "column": c, "metric": "acc", "value": v} for (t, c), v in columns.items()
    ]
    result(
        folder / "eval" / "harness" / f"{task}_{context}-{step}-{limit}.json",
        "harness",
        task=task,
        context=context,
        step=step,
        num_fewshot=0,
        documents=documents,
        metrics={"acc": {"value": 0.4321, "stderr": 0.0123}},
        paper=found,
        settings=SETTINGS | {"limit": limit} | settings,
    )


def needles(folder, task, length, accuracies, step=20):
    """Accuracies at depths from 0 to 100 percent."""
    count = len(accuracies)
    result(
        folder / "eval" / "needles" / f"step_{step}" / f"s-niah-{task}_{length}.json",
        "needles",
        task=f"S-NIAH-{task}",
        length=length,
        samples=10 * count,
        accuracy=sum(accuracies) / count,
        by_depth=[
            {"depth": 100 * i / (count - 1), "samples": 10, "accuracy": a}
            for i, a in enumerate(accuracies)
        ],
        step=step,
        post_training_caching=None,
        placement="token",
    )


def sweep(folder, name, cells, axes, chosen_axis=None):
    """Cells are {place: values of the seeds}, axes {name: values}."""
    result(
        folder / "sweep.json",
        "sweep",
        sweep=name,
        title=f"Title of {name}",
        axes=axes,
        number="accuracy",
        label="recall",
        better="higher",
        chosen_axis=chosen_axis,
        choice=None,
        planned=9,
        finished=8,
        cells=[
            {
                "axes": dict(zip([a for a in axes if a != chosen_axis], place, strict=True)),
                "mean": sum(values) / len(values),
                "lowest": min(values),
                "highest": max(values),
                "chosen": None if chosen_axis is None else 0.008,
                "diverged": [],
                "values": {str(seed): value for seed, value in enumerate(values)},
            }
            for place, values in cells.items()
        ],
    )


class Page(HTMLParser):
    """What is in a page.

    Attributes:
      sections: their anchors, in order.
      tables: for each section its tables, each a list of rows of (tag, attributes, text).
      tags: every tag with its attributes.
      text: all that is shown.
    """

    def __init__(self, html):
        super().__init__()
        self.sections, self.tables, self.tags, self.text = [], {}, [], ""
        self._open = []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag in ("meta", "img"):
            return
        self._open.append(tag)
        if tag == "section":
            self.sections.append(attributes["id"])
            self.tables[attributes["id"]] = []
        elif tag == "table":
            self.tables[self.sections[-1]].append([])
        elif tag == "tr":
            self._row = []
            self.tables[self.sections[-1]][-1].append(self._row)
        elif tag in ("th", "td"):
            self._row.append((tag, attributes, ""))

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.text += data
        if "th" in self._open or "td" in self._open:
            tag, attributes, text = self._row[-1]
            self._row[-1] = tag, attributes, text + data

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def cells(self, section, table=0):
        """{(group, row): {column: text}} of the cells that hold something."""
        columns, found, group = None, {}, ""
        for row in self.tables[section][table]:
            scope, (_, attributes, label) = row[0][1].get("scope"), row[0]
            if scope == "rowgroup":
                group = label
            elif scope == "row":
                texts = [text for _, _, text in row[1:]]
                values = zip(columns, texts, strict=True)
                found[group, label] = {column: text for column, text in values if text}
            elif columns is None:
                # Headings that are shared are followed by those of their columns.
                columns = []
                for _, attributes, text in row[1:]:
                    shared = attributes["scope"] == "colgroup"
                    columns += [[text]] * int(attributes["colspan"]) if shared else [text]
            else:
                lower = iter(text for _, _, text in row)
                columns = [c if isinstance(c, str) else f"{c[0]} {next(lower)}" for c in columns]
        return found


def markdown_cells(text, heading, table=0):
    """The same of a table below a heading of a Markdown file."""
    part = text.split(f"## {heading}\n")[1].split("\n## ")[0].strip()
    tables = [block for block in part.split("\n\n") if block.startswith("|")]
    head, _, *lines = (
        [c.strip() for c in x.strip("|").split("|")] for x in tables[table].split("\n")
    )
    found, group = {}, ""
    for label, *cells in lines:
        if label.startswith("**"):
            group = label.strip("*")
            continue
        values = zip(head[1:], cells, strict=True)
        found[group, label] = {name: x.strip("*`") for name, x in values if x}
    return found
