"""Where the data sets of tasks are: a local folder, the hub's cache, or the hub itself."""

import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mc_jax.errors import InputError

# Seconds after which the hub counts as out of reach.
TIMEOUT = 5


class Source(NamedTuple):
    """A data set as a task names it.

    Attributes:
      path: its name on the hub, such as "EleutherAI/lambada_openai".
      name: of the config, or None.
    """

    path: str
    name: str | None

    def __str__(self) -> str:
        return f"{self.path} ({self.name})" if self.name else self.path


def local(source: Source, data_dir: Path | None) -> Source | None:
    """Where a data set is in `data_dir`, as `datasets.load_dataset` takes it, or None.

    That is FOLDER/OWNER__NAME/CONFIG or FOLDER/OWNER__NAME with files named after the splits, or
    FOLDER/OWNER__NAME with what `hf download` makes of the hub's repository.
    """
    if data_dir is None:
        return None
    folder = data_dir / source.path.replace("/", "__")
    if source.name and (folder / source.name).is_dir():
        return Source(str(folder / source.name), None)
    if (folder / "README.md").is_file():  # of a repository: which files are of which config
        return Source(str(folder), source.name)
    files = folder.is_dir() and any(path.is_file() for path in folder.iterdir())
    return Source(str(folder), None) if files else None


def find(sources: Iterable[Source], data_dir: Path | None) -> dict[Source, Source]:
    """Where each data set is.

    Args:
      sources: what the tasks name.
      data_dir: the local folder, if there is one.

    Returns:
      For each source what `datasets.load_dataset` takes. Where the hub cannot be reached, it is
      not asked again in this process.

    Raises:
      InputError: data sets that are nowhere, all in one message.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise InputError("--data_dir", str(data_dir), "a folder that exists")
    found, elsewhere = {}, []
    for source in dict.fromkeys(sources):
        if here := local(source, data_dir):
            found[source] = here
        else:
            elsewhere.append(source)
    if elsewhere and not _reachable():
        missing = [source for source in elsewhere if not _cached(source)]
        if missing:
            folders = " ".join(dict.fromkeys(s.path.replace("/", "__") for s in missing))
            raise InputError(
                "--data_dir",
                f"{data_dir or 'none'}, no network, and no copy of {', '.join(map(str, missing))}",
                f"a folder that holds {folders} (docs/harness.md); or a network",
            )
    return found | {source: source for source in elsewhere}


def _reachable() -> bool:
    """Whether the hub answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _cached(source: Source) -> bool:
    """Whether the data set is in the cache, without asking the hub from now on."""
    import datasets
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        datasets.load_dataset_builder(source.path, source.name)
    except (OSError, ValueError):
        return False
    return True
