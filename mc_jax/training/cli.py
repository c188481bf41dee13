"""Command lines: an experiment file, changes of single settings, and errors of one line."""

import argparse
import difflib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from mc_jax.errors import InputError

BAD_INPUT = 2
INTERRUPTED = 130  # by Ctrl-C, as in every shell


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError where argparse would print its usage and exit."""

    def __init__(self, description: str):
        """Describe the program with the text that --help prints."""
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """See the class."""
        raise InputError("arguments", message, "what --help lists")


def add_checkpoint_options(parser: Parser) -> None:
    """Add --workdir, and --step or --best."""
    parser.add_argument("--workdir", metavar="FOLDER", required=True, help="the run's folder")
    checkpoint = parser.add_mutually_exclusive_group()
    checkpoint.add_argument("--step", type=int, metavar="N", help="a step that is kept")
    checkpoint.add_argument("--best", action="store_true", help="the lowest held-out loss")


def add_caching_option(parser: Parser) -> None:
    """Add --post_training_caching."""
    parser.add_argument(
        "--post_training_caching",
        type=float,
        metavar="DECAY",
        help="keep the states of a model trained without caching, one every training length; "
        "weights fall by DECAY with each segment back (0.5, say; 1 for equal weights)",
    )


def which_checkpoint(options: argparse.Namespace) -> str | int:
    """What those options say, as `mc_jax.training.load` takes it."""
    return "best" if options.best else "latest" if options.step is None else options.step


def run(main: Callable[[], int]) -> NoReturn:
    """Call `main` and leave with its exit code; an InputError becomes one line and exit code 2."""
    program = Path(sys.argv[0]).name
    try:
        sys.exit(main())
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def read_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Load an experiment and change single settings.

    Args:
      path: a Python file with `get_config()`; "file.py:text" calls `get_config("text")`.
      overrides: arguments such as "--config.model.dim=64".

    Returns:
      The config, locked.

    Raises:
      InputError: no such file or setting, or a value that is not of the setting's type.
    """
    config = call_in_file("--config", path, "get_config", ConfigDict).lock()
    for argument in overrides:
        if argument.startswith("-"):
            _check_key(config, argument.split("=")[0])
    values = flags.FlagValues()
    command = ["config", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=command)
    try:
        unused = values(command)[1:]
    except flags.Error as error:
        raise InputError("arguments", str(error), "values of the settings' types") from None
    if unused:
        raise InputError("arguments", " ".join(unused), "--name=value, as --help lists")
    return config


def call_in_file(option: str, path: str, name: str, kind: type) -> Any:
    """Call a function of a Python file.

    Args:
      option: of the command line, that named the file.
      path: the file; "file.py:text" calls the function with the text.
      name: of the function.
      kind: of what it returns.

    Raises:
      InputError: no such file or function, one that cannot be run, or a result of another kind.
    """
    file, _, argument = path.partition(":")
    spec = importlib.util.spec_from_file_location("experiment", file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        near = ", ".join(sorted(str(other) for other in Path(file).parent.glob("*.py"))) or "none"
        raise InputError(option, path, f"a Python file; its folder has {near}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise InputError(option, path, f"a Python file that can be run ({error})") from None
    function = getattr(module, name, None)
    if function is None:
        raise InputError(option, path, f"a Python file that defines {name}()")
    if argument and not inspect.signature(function).parameters:
        raise InputError(option, path, f"no ':TEXT' here: this {name}() takes no argument")
    found = function(*([argument] if argument else []))
    if not isinstance(found, kind):
        raise InputError(option, path, f"a {name}() that returns a {kind.__name__}")
    return found


def default_folder(path: str) -> str:
    """Name of a folder for what "file.py" or "file.py:text" describes."""
    file, _, argument = path.partition(":")
    return "-".join([Path(file).stem, *re.findall(r"[\w.]+", argument)])


def _check_key(config: ConfigDict, flag: str) -> None:
    """Check that `flag`, such as "--config.a.b", names a setting."""
    first, *keys = flag.lstrip("-").split(".")
    if first != "config" or not keys:
        raise InputError("arguments", flag, "--config.NAME=VALUE, and what --help lists")
    node = config
    for key in keys:
        names = list(node) if isinstance(node, ConfigDict) else []
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"{close[0]!r} is close; the names here are " if close else "the names here are "
            raise InputError(flag, key, hint + (", ".join(names) or "none"))
        node = node[key]
