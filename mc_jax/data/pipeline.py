"""The endless training stream, as a checkpointable Grain iterator."""

from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags


class TrainIterator(grain.DatasetIterator):
    """One host's batches of an endless stream of examples.

    Batch n of all hosts together is examples [n * batch_size, (n + 1) * batch_size) of the stream,
    host h holding the h-th part in order. So the global batches depend neither on the number of
    processes nor on that of workers, and the whole state is n: the same integer on every host, and
    valid for any number of either.
    """

    def __init__(
        self,
        examples: grain.MapDataset,
        batch_size: int,
        *,
        workers: int,
        process_index: int,
        process_count: int,
    ):
        super().__init__()
        host_batches = examples.batch(batch_size // process_count, drop_remainder=True)
        self._batches = host_batches[process_index::process_count]
        self._workers = workers
        self._next_batch = 0
        self._running: grain.DatasetIterator | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch."""
        if self._running is None:
            self._running = self._start()
        batch = next(self._running)
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns {"next_batch": n}, the number of batches taken."""
        return {"next_batch": self._next_batch}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        self.close()
        self._next_batch = int(state["next_batch"])

    def close(self) -> None:
        """Stops the threads or worker processes; a later `next` starts them again."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _start(self) -> grain.DatasetIterator:
        # Grain keeps 500 elements ready by default; an element here is a whole batch.
        options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
        dataset = self._batches[self._next_batch :].to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain reads its own flags when it starts workers
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=4)
            )
        return iter(dataset)


def shuffled_mixture(
    parts: Sequence[Sequence], weights: Sequence[float], seed: int
) -> grain.MapDataset:
    """Returns an endless stream in which every part has its share, reshuffled each epoch."""
    # Grain's shuffle uses seed + epoch: seeds that lie far apart keep the orders unrelated.
    seeds = np.random.SeedSequence(seed).generate_state(len(parts))
    streams = [
        grain.MapDataset.source(part).shuffle(seed=int(part_seed)).repeat()
        for part, part_seed in zip(parts, seeds, strict=True)
    ]
    return streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights)


def generated(examples: Sequence) -> grain.MapDataset:
    """Returns the stream of examples that are made from their index: no order, no epochs."""
    return grain.MapDataset.source(examples)
