"""The models that results are of: what each is called, and which differ in caching alone."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mc_jax.errors import InputError
from mc_jax.model import ModelConfig
from mc_jax.model.flops import param_count

Config = Mapping[str, Any]

# As the paper calls them.
_RULES = {"linear": "Linear", "swla": "SWLA", "dla": "DLA", "titans": "Titans"}
_CACHING = {"none": "", "residual": "Residual", "grm": "GRM", "soup": "Soup", "ssc": "SSC"}
TRANSFORMER = "Transformer++"


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model that was trained.

    Attributes:
      folder: its workdir, or an exported model.
      label: what the report calls it; no two models have the same.
      family: the paper's name of the model without caching, such as "Titans".
      caching: the paper's name of how memories are read, such as "GRM"; empty without caching.
      variant: how caching differs from the paper's, or empty.
      config: of the experiment; None if it is not known.
      parameters: their number; None if it is not known.
      post_training: decay of the caching that it was evaluated with, having been trained without
        any; None for a model as it was trained.
    """

    folder: Path
    label: str
    family: str
    caching: str
    variant: str = ""
    config: Config | None = None
    parameters: int | None = None
    post_training: float | None = None

    @property
    def task(self) -> str | None:
        """What it was trained on, such as "text" or "mqar"; None if it is not known."""
        return None if self.config is None else self.config["data"]["task"]

    @property
    def rank(self) -> tuple[str, int]:
        """Sorts the models of one folder: families, and in each the ways to read memories."""
        order = ["", "Residual", "Log-Linear++", "GRM", "Soup", "SSC"]
        return self.family, order.index(self.caching) if self.caching in order else len(order)

    @property
    def size(self) -> str:
        """Its parameters, such as "1.3B"; empty if they are not known."""
        return "" if self.parameters is None else short(self.parameters)


# What tells models of one name apart, the first that does; no two have the same folder.
_SUFFIXES: tuple[Callable[[Model], str], ...] = (
    lambda model: model.size,
    lambda model: model.task or "",
    lambda model: model.folder.name,
    lambda model: str(model.folder),
)


def short(number: float) -> str:
    """A number of three digits or fewer: 1.3B, 760M, 24K."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            digits = 1 if number < 10 * size else 0
            return f"{number / size:.{digits}f}".removesuffix(".0") + unit
    return f"{number:g}"


def read_model(folder: Path) -> Model:
    """The model whose config.json stands in `folder`.

    Raises:
      InputError: the file cannot be read, or is no config of an experiment.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
        config = config.get("experiment", config)  # so in an exported model
        family, caching, variant = _name(config["model"])
        # What tables and comparisons take from it.
        _facts(config), described(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(str(path), repr(error)[:80], "the config.json of a run") from None
    label = family + ("+" + caching if caching else "") + (f", {variant}" if variant else "")
    return Model(folder, label, family, caching, variant, config, _parameters(config["model"]))


def cached_after_training(model: Model, decay: float) -> Model:
    """The same model, read with post-training caching."""
    return dataclasses.replace(
        model,
        label=f"{model.label}, post-training caching {decay:g}",
        caching="post-training caching",
        variant=f"decay {decay:g}",
        post_training=decay,
    )


def unknown_model(folder: Path) -> Model:
    """A model of which nothing but results is there."""
    return Model(folder, str(folder), str(folder), "")


def distinct(models: Sequence[Model]) -> list[Model]:
    """The same with different labels: size, task or folder is added where it tells them apart."""
    labels = {}
    for label in dict.fromkeys(model.label for model in models):
        same = [model for model in models if model.label == label]
        for suffix in _SUFFIXES:
            found = [suffix(model) for model in same]
            if len(set(found)) == len(same):
                break
        for model, text in zip(same, found, strict=True):
            labels[model] = label if len(same) == 1 else f"{label} ({text})"
    return [dataclasses.replace(model, label=labels[model]) for model in models]


def base_of(model: Model, models: Sequence[Model]) -> Model | None:
    """The model without caching that is otherwise the same, or None.

    Equal are the update rule, the width and number of blocks and heads, data, steps and seed; the
    width of the feed-forward is not, with which models are brought to one number of parameters.
    """
    if model.config is None or not model.caching:
        return None
    for other in models:
        plain = None if other.caching else other.config
        if plain is not None and _facts(plain) == _facts(model.config):
            return other
    return None


def comparable(models: Sequence[Model]) -> bool:
    """Whether models have one size, data and steps."""
    facts = [_facts(m.config, rule=False) for m in models if m.config is not None]
    return len(facts) == len(models) and all(fact == facts[0] for fact in facts)


def described(config: Config) -> dict[str, str]:
    """Size, caching, data and training of a model in words."""
    model, data, train = (config[name] for name in ("model", "data", "train"))
    memory = model["memory"]
    segments = "none"
    if "memory" in model["pattern"] and memory["aggregation"] != "none":
        segments = f"{memory['segment_len']} tokens, {memory['segmentation']}"
        segments += f", {memory['write_mode']}"
    if data["task"] == "text":
        text = f"{', '.join(data['sources'])}; tokenizer {data['tokenizer']}"
    elif data["task"] == "mqar":
        text = f"MQAR, {', '.join(map(str, data['mqar']['pairs']))} pairs"
    else:
        text = str(data["task"])
    return {
        "size": f"{model['num_layers']} × {model['dim']}, {model['num_heads']} heads",
        "segments": segments,
        "data": f"{text}; {data['length']:,} tokens an example",
        "steps": f"{train['steps']:,}",
        "seed": f"{config['seed']}",
    }


def _name(model: Config) -> tuple[str, str, str]:
    """Family, caching and variant, as in `Model`."""
    mixers, memory = list(model["pattern"]), model["memory"]
    if "memory" not in mixers:
        return (TRANSFORMER if set(mixers) == {"attention"} else "+".join(mixers)), "", ""
    family = _RULES.get(memory["rule"], str(memory["rule"]))
    if set(mixers) != {"memory"}:
        family += f" in {'-'.join(mixers)}"
    aggregation, variants = memory["aggregation"], []
    caching = _CACHING.get(aggregation, str(aggregation))
    if not caching:
        return family, "", ""
    if memory["segmentation"] == "logarithmic":
        if aggregation == "grm":
            caching = "Log-Linear++"
        else:
            variants.append("logarithmic")
    if memory["gate"] != "context" and aggregation != "residual":
        variants.append(f"gate {memory['gate']}")
    if memory["write_mode"] != "independent":
        variants.append(f"writes {memory['write_mode']}")
    if memory.get("pooled", "keys") != "keys":
        variants.append(f"pooled {memory['pooled']}")
    if memory.get("route_every", 1) != 1:
        variants.append(f"selects every {memory['route_every']}")
    return family, caching, ", ".join(variants)


def _facts(config: Config, rule: bool = True) -> tuple[Any, ...]:
    """What two models share that caching is to be judged by."""
    model, data, train = (config[name] for name in ("model", "data", "train"))
    memory = [model["memory"][name] for name in ("rule", "window", "expansion")] if rule else []
    return (
        *([model["pattern"], config["seed"]] if rule else []),
        memory,
        [model[name] for name in ("dim", "num_layers", "num_heads", "vocab_size")],
        [data[name] for name in ("task", "length", "batch_size")],
        data.get(data["task"]),  # settings of a task of its own
        [data[name] for name in ("sources", "weights", "tokenizer")],
        train["steps"],
    )


def _parameters(model: Config) -> int | None:
    """Their number, wherever the model was trained."""
    memory = {**model["memory"], "implementation": "auto"}
    try:
        return param_count(ModelConfig.from_dict({**model, "memory": memory, "dtype": "float32"}))
    except InputError:  # of another version
        return None
