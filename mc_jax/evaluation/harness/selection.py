"""Tasks by name, with their data: what `--tasks`, `--include_path` and `--data_dir` say.

The only file that looks into how lm-eval builds tasks: it has no public way to give a task other
data.
"""

import contextlib
import copy
import difflib
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import lm_eval.tasks
import yaml
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from mc_jax.data.tokenizers import Tokenizer
from mc_jax.errors import InputError
from mc_jax.evaluation.harness import hub
from mc_jax.evaluation.harness.cutting import CUTS, cut
from mc_jax.evaluation.harness.tables import CONTEXTS, GROUPS, belongs

OWN_TASKS = Path(__file__).parent / "tasks"
# Folders of lm-eval in which the paper's tasks are: reading all of them takes seconds.
_FOLDERS = (
    *("wikitext", "lambada", "piqa", "hellaswag", "winogrande", "arc", "siqa"),
    *("super_glue/boolq", "swde", "squad_completion", "fda", "longbench"),
)
# Readers of files that `datasets` has itself: a task with one of these names its files.
_READERS = ("json", "csv", "parquet", "text", "arrow")
# This task means to ask for what the others of Based ask for, but lm-eval's default (256 tokens, up
# to an empty line) is in its way.
_GENERATION = {"squad_completion": {"until": ["\n"], "max_gen_toks": 48, "do_sample": False}}
# Seed of the examples before a question; lm-eval's own.
FEWSHOT_SEED = 1234


class Choice(NamedTuple):
    """A task, and the tokens that its documents are cut to, or None."""

    task: str
    context: int | None

    def __str__(self) -> str:
        return self.task if self.context is None else f"{self.task}-{self.context}"


def choose(
    names: str, contexts: Sequence[int] | None, include_path: Path | None
) -> tuple[list[Choice], dict[str, Entry]]:
    """What is to be run, in order.

    Args:
      names: groups of the paper's tables, and names of tasks, tags and groups, with commas between.
      contexts: tokens that documents are cut to, where a task's can be; None for those of Table 3
        with the group table3, and for whole documents otherwise.
      include_path: folder with tasks of the user's own, or None.

    Returns:
      The choices, and lm-eval's index of tasks.

    Raises:
      InputError: an unknown name, with those close to it; a task file that cannot be read; contexts
        for tasks that cannot be cut.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise InputError("--tasks", names, f"{' | '.join(GROUPS)}, or names of lm-eval's tasks")
    own = [OWN_TASKS, *_user_folder(include_path)]
    folder = Path(lm_eval.tasks.__file__).parent
    manager = TaskManager(include_path=[folder / f for f in _FOLDERS] + own, include_defaults=False)
    if any(name not in GROUPS and name not in manager.task_index for name in wanted):
        manager = TaskManager(include_path=own)
    choices: list[Choice] = []
    for name in wanted:
        if name not in GROUPS and name not in manager.task_index:
            close = difflib.get_close_matches(name, [*GROUPS, *manager.all_tasks], n=3)
            hint = f"close: {', '.join(close)}; " if close else ""
            allowed = f"{hint}{' | '.join(GROUPS)}, or names of lm-eval's tasks"
            raise InputError("--tasks", name, allowed)
        cuts = contexts or (CONTEXTS if name == "table3" else None)
        tasks = GROUPS.get(name) or _members(name, manager.task_index)
        choices += [
            Choice(task, context)
            for task in tasks
            for context in (cuts if cuts and task in CUTS else (None,))
            if context is None or name != "table3" or belongs(task, context)
        ]
    if contexts and not any(choice.context for choice in choices):
        raise InputError("--context", contexts[0], f"this with one of {', '.join(CUTS)} or table3")
    return list(dict.fromkeys(choices)), manager.task_index


def _user_folder(include_path: Path | None) -> list[Path]:
    """The folder, whose files have been seen to be whole."""
    if include_path is None:
        return []
    if not include_path.is_dir():
        raise InputError("--include_path", str(include_path), "a folder that exists")
    for path in sorted(include_path.glob("**/*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except (OSError, ValueError, yaml.YAMLError) as error:
            allowed = f"a task file of lm-eval ({_line(error)})"
            raise InputError("--include_path", str(path), allowed) from None
    return [include_path]


def _members(name: str, index: dict[str, Entry]) -> list[str]:
    """The tasks that a name stands for."""
    entry = index[name]
    if entry.kind == Kind.TAG:
        return sorted(entry.tags)
    if entry.kind != Kind.GROUP:
        return [name]
    parts = (entry.cfg or {}).get("task")
    if not isinstance(parts, list) or not all(isinstance(p, str) and p in index for p in parts):
        raise InputError("--tasks", name, "a group that only names tasks; or its tasks themselves")
    return [task for part in parts for task in _members(part, index)]


def load(
    names: Iterable[str],
    index: dict[str, Entry],
    data_dir: Path | None = None,
    num_fewshot: int | None = None,
) -> dict[str, Task]:
    """Build tasks and read their data.

    Args:
      names: of tasks.
      index: from `choose`.
      data_dir: folder with data sets, or None; see `hub.local`.
      num_fewshot: examples before each question; None for what the task says, or none.

    Raises:
      InputError: data sets that are nowhere, damaged or not what the task expects; a package that
        a task needs and that is not installed.
    """
    configs = {name: _config(name, index[name]) for name in dict.fromkeys(names)}
    sources = {name: _source(config) for name, config in configs.items()}
    places = hub.find([source for source in sources.values() if source], data_dir)
    tasks = {}
    for name, config in configs.items():
        source = sources[name]
        place = places[source] if source else None
        try:
            changes = _changes(config, place, num_fewshot) if place else {}
            task = TaskFactory().build(index[name], overrides=changes, registry=index)
            assert isinstance(task, Task)
            if name in _GENERATION:
                task.set_config("generation_kwargs", _GENERATION[name])
            _set_fewshot(task, num_fewshot)
        except InputError:
            raise
        except Exception as error:  # `datasets`, lm-eval and templates raise many types.
            where = str(place or config.get("dataset_path"))
            allowed = f"data that the task {name} can read ({_line(error)})"
            raise InputError("--data_dir" if data_dir else "--tasks", where, allowed) from None
        tasks[name] = task
    return tasks


def _config(name: str, entry: Entry) -> dict[str, Any]:
    try:
        return load_yaml(entry.yaml_path)
    except ImportError as error:
        missing = error.__context__ if error.__context__ else error
        allowed = f"tasks whose packages are installed ({missing}): requirements-eval.txt has them"
        raise InputError("--tasks", name, allowed) from None
    except Exception as error:  # a function that is not there, say
        raise InputError("--tasks", str(entry.yaml_path), f"a task file ({_line(error)})") from None


def _source(config: dict[str, Any]) -> hub.Source | None:
    """What a task takes from the hub."""
    if "class" in config:
        path, name = config["class"].DATASET_PATH, config["class"].DATASET_NAME
    else:
        path, name = config.get("dataset_path"), config.get("dataset_name")
    if not path or config.get("custom_dataset") or path in _READERS or Path(path).exists():
        return None
    return hub.Source(path, name)


def _changes(config: dict[str, Any], place: hub.Source, num_fewshot: int | None) -> dict[str, Any]:
    """What becomes of a task's config where its data are in `place`."""
    found = datasets.load_dataset(place.path, place.name, **(config.get("dataset_kwargs") or {}))
    if "class" in config:
        about = {"DATASET_PATH": place.path, "DATASET_NAME": place.name}
        return {"class": type(config["class"].__name__, (config["class"],), about)}
    changes: dict[str, Any] = {"dataset_path": place.path, "dataset_name": place.name}
    # lm-eval reads the splits that examples could come from, whether there are any or not.
    asked = config.get("test_split") or config.get("validation_split")
    shots = config.get("num_fewshot") if num_fewshot is None else num_fewshot
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        split = config.get(key)
        if split and split not in found:
            if split == asked or shots:
                raise ValueError(f"no split {split!r} among {sorted(found)}")
            changes[key] = None
    return changes


def _set_fewshot(task: Task, num_fewshot: int | None) -> None:
    """lm-eval's rule: a task that says 0 has none."""
    said = task.get_config("num_fewshot")
    if said is None or (num_fewshot is not None and said != 0):
        task.set_config("num_fewshot", num_fewshot or 0)
    elif num_fewshot and said == 0:
        print(f"{task.get_config('task')}: no examples before a question, as the task says")


def with_requests(task: Task, choice: Choice, tokenizer: Tokenizer, limit: float | None) -> Task:
    """A task with its requests, and its documents cut where the choice says so.

    Args:
      task: from `load`; it stays as it is.
      choice: of the task.
      tokenizer: of the model.
      limit: the first documents: so many, or below 1 this share of them; None for all.

    Raises:
      InputError: a context that a question does not fit into, or a document that is not what the
        task expects.
    """
    task = copy.copy(task)
    count = documents(task, limit)
    try:
        if choice.context is not None:
            docs, how = task.dataset["validation"], CUTS[choice.task]
            kept = [cut(docs[i], how, choice.context, tokenizer) for i in range(count)]
            task.dataset = {"validation": datasets.Dataset.from_list(kept, docs.features)}
        task.set_fewshot_seed(FEWSHOT_SEED)
        with contextlib.redirect_stderr(io.StringIO()):  # a bar without a name
            task.build_all_requests(limit=count, rank=0, world_size=1)
    except InputError:
        raise
    except Exception as error:  # templates and tasks' own functions raise many types.
        raise InputError(
            "--tasks", choice.task, f"data that it can read ({_line(error)})"
        ) from None
    return task


def documents(task: Task, limit: float | None) -> int:
    """Documents of a task that a limit leaves."""
    count = len(task.eval_docs)
    if limit is None:
        return count
    return min(count, math.ceil(count * limit) if limit < 1 else int(limit))


def _line(error: BaseException) -> str:
    """The cause of an error on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
