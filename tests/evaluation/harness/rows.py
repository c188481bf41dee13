"""Small data sets with the columns of those on the hub, as a --data_dir."""

import json

SWDE = (
    "Duel at Diablo (1966) A western. Year of release: 1966. Directed by Ralph Nelson, with James "
    "Garner and Sidney Poitier. "
    * 3
    + "\n\nSummary of information above...\ngenre: Western\nyear of release:"
)

# For each data set on the hub: its config (or None), and the rows of each split.
ROWS = {
    "EleutherAI/wikitext_document_level": (
        "wikitext-2-raw-v1",
        {
            "test": [
                {"page": " = Robert <unk> = \n \n Robert is an English actor , born in 1980 . \n"},
                {"page": " = Du Fu = \n \n He wrote 1 @,@ 500 poems ; few were read . \n"},
            ]
        },
    ),
    "EleutherAI/lambada_openai": (
        "default",
        {
            "test": [
                {"text": "he took the lamp down from the wall and lit the lamp"},
                {"text": '"i know , " she said , and so did he ; they both know'},
                {"text": "a b"},
            ]
        },
    ),
    "baber/piqa": (
        None,
        {
            "train": [
                {"goal": "open a jar", "sol1": "turn", "sol2": "sing", "label": 0},
                {"goal": "open a can", "sol1": "sing", "sol2": "turn", "label": 1},
            ],
            "validation": [
                {
                    "goal": "dry a wet phone",
                    "sol1": "put it in rice",
                    "sol2": "in milk",
                    "label": 0,
                },
                {
                    "goal": "boil eggs",
                    "sol1": "use a net",
                    "sol2": "use a pot of water",
                    "label": 1,
                },
            ],
        },
    ),
    "Rowan/hellaswag": (
        None,
        {
            "validation": [
                {
                    "ind": 24,
                    "activity_label": "Roof shingle removal",
                    "ctx_a": "A man is sitting on a roof.",
                    "ctx_b": "he",
                    "ctx": "A man is sitting on a roof. he",
                    "endings": [
                        "is using wrap to wrap a pair of skis.",
                        "is ripping level tiles off.",
                        "is holding a rubik's cube. [step] Then more.",
                        "starts pulling up roofing on a roof.",
                    ],
                    "source_id": "activitynet~v_-JhWjGDPHMY",
                    "split": "val",
                    "split_type": "indomain",
                    "label": "3",
                },
                {
                    "ind": 8,
                    "activity_label": "Clean and jerk",
                    "ctx_a": "[header] How to lift [title] Stand.",
                    "ctx_b": "",
                    "ctx": "[header] How to lift [title] Stand.",
                    "endings": ["Bend.", "Sing a song to the crowd.", "Lie down.", "Go away now."],
                    "source_id": "wikihow~1",
                    "split": "val",
                    "split_type": "indomain",
                    "label": "0",
                },
            ]
        },
    ),
    "allenai/winogrande": (
        "winogrande_xl",
        {
            "validation": [
                {
                    "sentence": "Sarah was a better surgeon than Maria so _ got the easy cases.",
                    "option1": "Sarah",
                    "option2": "Maria",
                    "answer": "2",
                },
                {
                    "sentence": "The cup did not fit the box as _ was too big.",
                    "option1": "the cup",
                    "option2": "the box",
                    "answer": "1",
                },
            ]
        },
    ),
    "allenai/ai2_arc": (
        "ARC-Easy",
        {
            "test": [
                {
                    "id": "Mercury_7220990",
                    "question": "Which is a mammal?",
                    "choices": {"text": ["a dog", "a trout", "an ant"], "label": ["A", "B", "C"]},
                    "answerKey": "A",
                },
                {
                    "id": "Mercury_2",
                    "question": "What is frozen water?",
                    "choices": {"text": ["steam", "ice"], "label": ["1", "2"]},
                    "answerKey": "2",
                },
            ]
        },
    ),
    "lighteval/siqa": (
        None,
        {
            "validation": [
                {
                    "context": "Tracy did not go home that night.",
                    "question": "What does Tracy need to do before this?",
                    "answerA": "make a new plan",
                    "answerB": "go home",
                    "answerC": "find somewhere to go",
                    "label": "3",
                }
            ]
        },
    ),
    "aps/super_glue": (
        "boolq",
        {
            "validation": [
                {"question": "is water wet", "passage": "Water wets things.", "idx": 0, "label": 1},
                {"question": "do cats bark", "passage": "Dogs bark.", "idx": 1, "label": 0},
            ]
        },
    ),
    "hazyresearch/based-swde-v2": (
        "default",
        {
            "validation": [
                {
                    "doc_id": "id0484",
                    "file_name": "0484.htm",
                    "key": "year of release",
                    "value": "1966",
                    "text": SWDE,
                }
            ]
        },
    ),
    "hazyresearch/based-squad": (
        "default",
        {
            "validation": [
                {
                    "doc_id": "56be4db0acb8001400a502ed",
                    "title": "Super_Bowl_50",
                    "context": "The Denver Broncos beat Carolina 24 to 10.",
                    "question": "Who won?",
                    "value": "Denver Broncos",
                    "text": "The Denver Broncos beat Carolina 24 to 10. The winner was the",
                },
                {
                    "doc_id": "56d20362e7d4791d009025e8",
                    "title": "Super_Bowl_50",
                    "context": "The game was in Santa Clara.",
                    "question": "Where was it?",
                    "value": "Santa Clara",
                    "text": "The game was in Santa Clara. Its place was",
                },
            ]
        },
    ),
    "hazyresearch/based-fda": (
        "default",
        {
            "validation": [
                {
                    "doc_id": "K181525",
                    "file_name": "K181525.txt",
                    "key": "510(k) number",
                    "value": "K181525",
                    "text": "SUBSTANTIAL EQUIVALENCE. A. 510(k) Number: K181525 B. Purpose: new "
                    "assay. C. Measurand: a drug.\n510(k) number:",
                }
            ]
        },
    ),
    "hazyresearch/based_drop": (
        None,
        {
            "validation": [
                {
                    "context": "The Lions led by 17 points. They scored 44 in all.",
                    "question": "The points that the Lions scored in all were",
                    "orig_question": "How many points did the Lions score?",
                    "answers": ["44", "forty-four"],
                },
                {
                    "context": "Smith ran 19 yards... The runner was",
                    "question": "The runner was",
                    "orig_question": "Who ran?",
                    "answers": ["Smith"],
                },
            ]
        },
    ),
    "hazyresearch/based_triviaqa": (
        None,
        {
            "validation": [
                {
                    "doc_id": "tc_33",
                    "context": "[DOC] [TLE] Mordant [PAR] A mordant sets dyes.",
                    "question": "What sets dyes is a",
                    "orig_question": "What sets dyes?",
                    "answers": ["mordant", "mordants"],
                }
            ]
        },
    ),
    **{
        f"hazyresearch/based_nq_{n}": (
            None,
            {
                "validation": [
                    {
                        "context": f"The set of {n} was found in Ur. " + "It was old. " * 20,
                        "question": "The set was found in",
                        "orig_question": "where was it found",
                        "answers": ["Ur"],
                        "tok_pos": 7,
                    }
                ]
            },
        )
        for n in (512, 1024, 2048)
    },
}


def _longbench(context, question, answers, **more):
    return {
        "question": question,
        "context": context,
        "answers": answers,
        "length": len(context.split()),
        "dataset": "longbench",
        "language": "en",
        "all_classes": None,
        "_id": "0",
    } | more


LONGBENCH = {
    "narrativeqa": [_longbench("Mark met a fox.", "Who met a fox?", ["Mark Hunt", "he"])],
    "trec": [
        _longbench(
            "Question: Who is he?\nType: Individual\n",
            "Question: Where is Ur?\nType:",
            ["Other location"],
            all_classes=["Other location", "City", "location"],
        )
    ],
    "gov_report": [_longbench("Rates rose.", "", ["the rates rose in one year"])],
    "lcc": [_longbench("def f(x):\n", "", ["    return x + 1"], language="python")],
}


def write(folder, *names):
    """Write data sets, all by default; returns the folder."""
    sets = {name: ROWS[name] for name in names} if names else ROWS
    for name, (config, splits) in sets.items():
        _write(folder / name.replace("/", "__") / (config or ""), splits)
    if not names:
        arc = folder / "allenai__ai2_arc" / "ARC-Challenge"
        _write(arc, ROWS["allenai/ai2_arc"][1])
        for name, rows in LONGBENCH.items():
            _write(folder / "Xnhyacinth__LongBench" / name, {"test": rows})
    return folder


def _write(folder, splits):
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
