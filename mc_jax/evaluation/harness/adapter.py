"""A model of this package as lm-eval knows models."""

import queue
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from mc_jax.errors import InputError
from mc_jax.evaluation.generation import open_model
from mc_jax.evaluation.harness.lengths import REFUSE, Limit, max_new_tokens
from mc_jax.evaluation.harness.scoring import Item, Scorer
from mc_jax.evaluation.harness.subject import Subject, describe
from mc_jax.inference import Sampling, generate
from mc_jax.model import LanguageModel
from mc_jax.training.sharding import data_parallel
from mc_jax.typing import PyTree

# Generation arguments of a task that mean something here, beside the names for max_gen_toks.
_GENERATION = ("until", "do_sample", "temperature", "top_p", "top_k")
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class Drawing(NamedTuple):
    """How the text after a prompt is drawn, which requests of a batch have in common."""

    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]


@register_model("mc_jax")
class MCJaxLM(TemplateLM):
    """The checkpoint of a run, or a folder that `eval.py export` wrote.

    Requests are scored in batches that all devices share; prompts are completed by
    `mc_jax.inference.generate`, each device a batch of its own.
    """

    def __init__(
        self,
        workdir: str,
        step: int | None = None,
        best: bool = False,
        post_training_caching: float | None = None,
        tokenizer: str | None = None,
        max_length: int | None = None,
        too_long: str = REFUSE,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Load it.

        Args:
          workdir: of the run, or the export.
          step: of the checkpoint; None for the newest.
          best: the checkpoint with the lowest held-out loss instead.
          post_training_caching: see `eval.py --help`.
          tokenizer: where the tokenizer's file is now, as in `data.tokenizer`.
          max_length: longest context in tokens; the training length by default.
          too_long: "refuse" requests that are longer, or cut their contexts from the "left".
          batch_size: requests that are worked on together; 8, or as many as there are devices.
          max_batch_size: lm-eval's, for automatic batch sizes; not here.
          device: lm-eval's; JAX_PLATFORMS chooses here.

        Raises:
          InputError: no such checkpoint, or a setting that cannot be used.
        """
        super().__init__()
        if device is not None:
            raise InputError("device", device, "none: JAX_PLATFORMS in the environment chooses")
        if max_batch_size is not None:
            raise InputError("max_batch_size", max_batch_size, "none: batch_size is fixed")
        which = step if step is not None else "best" if best else "latest"
        size = check_batch(batch_size)
        subject = describe(Path(workdir), which, post_training_caching, tokenizer)
        limit = Limit(subject.trained_length if max_length is None else max_length, too_long)
        limit.check()
        params = open_model(Path(workdir), subject.step).params
        self._prepare(subject, params, limit, size)

    @classmethod
    def of(cls, subject: Subject, params: PyTree, limit: Limit, batch_size: int) -> "MCJaxLM":
        """The same of a model that is there already."""
        lm = cls.__new__(cls)
        TemplateLM.__init__(lm)
        lm._prepare(subject, params, limit, batch_size)
        return lm

    def _prepare(self, subject: Subject, params: PyTree, limit: Limit, batch_size: int) -> None:
        self.subject, self.limit = subject, limit
        self.scorer = Scorer(LanguageModel(subject.model), params, data_parallel(), batch_size)

    @property
    def eot_token_id(self) -> int:
        """Id between documents; texts are scored after it."""
        return self.subject.tokenizer.eos_id

    @property
    def max_length(self) -> int:
        """Tokens of the longest context."""
        return self.limit.max_length

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids of a text; no tokenizer of this package adds specials."""
        return self.subject.tokenizer.encode(string).tolist()

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether it is greedy."""
        items = []
        for _, context, continuation in requests:
            kept = self.limit.context(len(context), len(continuation) - 1)
            tokens = np.array(context[len(context) - kept :] + continuation, np.int32)
            items.append(Item(tokens, len(continuation)))
        found: list[Any] = [None] * len(items)
        with tqdm(total=len(items), desc="scoring", unit="request", disable=disable_tqdm) as bar:
            for number, score in self.scorer(items):
                found[number] = (score.loglikelihood, score.greedy)
                self.cache_hook.add_partial("loglikelihood", requests[number][0], found[number])
                bar.update()
        return found

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text, in lm-eval's windows of `max_length` tokens."""
        items, owners = [], []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            )
            for context, scored in map(make_disjoint_window, windows):
                items.append(Item(np.array([*context, *scored], np.int32), len(scored)))
                owners.append(number)
        totals, left = np.zeros(len(requests)), np.bincount(owners, minlength=len(requests))
        with tqdm(total=len(items), desc="scoring", unit="window", disable=disable_tqdm) as bar:
            for window, score in self.scorer(items):
                owner = owners[window]
                totals[owner] += score.loglikelihood
                left[owner] -= 1
                if not left[owner]:
                    total = float(totals[owner])
                    self.cache_hook.add_partial(
                        "loglikelihood_rolling", requests[owner].args, total
                    )
                bar.update()
        return totals.tolist()

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt, up to a stop string."""
        groups: dict[Drawing, list[int]] = defaultdict(list)
        prompts = []
        for number, (prompt, generation) in enumerate(request.args for request in requests):
            drawing = _drawing(generation)
            ids = self.subject.tokenizer.encode(prompt) if prompt else [self.prefix_token_id]
            kept = self.limit.context(len(ids), drawing.max_tokens)
            prompts.append(np.asarray(ids[len(ids) - kept :], np.int32))
            groups[drawing].append(number)
        batches = [
            (drawing, batch)
            for drawing, numbers in groups.items()
            for batch in _batches(numbers, prompts, self.scorer.batch_size)
        ]

        def complete(params: PyTree, number: int) -> list[str]:
            drawing, batch = batches[number]
            # Rows that are left over repeat the first: a program is for so many rows.
            rows = batch + batch[:1] * (self.scorer.batch_size - len(batch))
            completions = generate(
                self.subject.model,
                params,
                self.subject.tokenizer,
                [prompts[i] for i in rows],
                max_tokens=drawing.max_tokens,
                sampling=drawing.sampling,
                stop=drawing.stop,
                seed=number,
            )
            return [completion.text for completion in completions[: len(batch)]]

        texts = [""] * len(requests)
        with tqdm(total=len(texts), desc="generating", unit="request", disable=disable_tqdm) as bar:
            for number, found in _on_devices(complete, len(batches), self.scorer.params):
                for i, text in zip(batches[number][1], found, strict=True):
                    texts[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    bar.update()
        return texts


def check_batch(batch_size: int | str | None) -> int:
    """The batch size that an option says.

    Raises:
      InputError: no positive number, or one that does not divide over the devices.
    """
    devices = jax.device_count()
    if batch_size is None:
        return devices * -(-8 // devices)
    if not str(batch_size).isdecimal() or int(batch_size) < 1 or int(batch_size) % devices:
        allowed = f"a positive multiple of the {devices} devices" if devices > 1 else "1 or more"
        raise InputError("--batch_size", batch_size, allowed)
    return int(batch_size)


def _drawing(generation: dict[str, Any]) -> Drawing:
    """What a task's generation arguments say; greedy unless they ask for sampling."""
    for name in generation:
        if name not in _GENERATION + _LENGTHS:
            allowed = ", ".join(_GENERATION + _LENGTHS)
            raise InputError("generation_kwargs", f"{name}={generation[name]!r}", allowed)
    temperature = generation.get("temperature")
    sample = generation.get("do_sample")
    if sample is None:
        sample = bool(temperature)
    sampling = Sampling(temperature=0)
    if sample:
        sampling = Sampling(
            1.0 if temperature is None else float(temperature),
            int(generation.get("top_k") or 0),
            float(generation.get("top_p") or 1),
        )
    until = generation.get("until") or []
    stop = [until] if isinstance(until, str) else until
    return Drawing(max_new_tokens(generation), sampling, tuple(s for s in stop if s))


def _batches(numbers: list[int], prompts: Sequence[np.ndarray], size: int) -> Iterator[list[int]]:
    """Numbers in batches of prompts of like lengths, the longest first."""
    order = sorted(numbers, key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _on_devices(
    function: Callable[[PyTree, int], list[str]], count: int, params: PyTree
) -> Iterator[tuple[int, list[str]]]:
    """Call `function(params, number)` for each number, on whichever device is free.

    Args:
      function: called from several threads.
      count: of numbers.
      params: on every device.

    Yields:
      Numbers and what the function returned, in order.
    """
    shards = jax.tree.map(lambda x: [shard.data for shard in x.addressable_shards], params)
    here = [
        jax.tree.map(lambda x, i=i: x[i], shards, is_leaf=lambda x: isinstance(x, list))
        for i in range(jax.local_device_count())
    ]
    if len(here) == 1:
        yield from ((number, function(here[0], number)) for number in range(count))
        return
    free: queue.SimpleQueue[PyTree] = queue.SimpleQueue()
    for on_device in here:
        free.put(on_device)

    def run(number: int) -> list[str]:
        on_device = free.get()
        try:
            return function(on_device, number)
        finally:
            free.put(on_device)

    with ThreadPoolExecutor(len(here)) as pool:
        yield from enumerate(pool.map(run, range(count)))
