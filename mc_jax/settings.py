"""A group of settings: a frozen dataclass that reads itself from a config and checks its types."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self, get_args, get_origin

from mc_jax.errors import InputError

_NAMES: dict[Any, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "True | False",
    tuple[str, ...]: "a tuple of strings",
    tuple[int, ...]: "a tuple of integers",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Checks the type of every field and reads itself from a mapping."""

    GROUP: ClassVar[str]  # where the fields stand in the experiment's config

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _has_type(value, field.type):
                kind = _NAMES.get(field.type, "a group of keys")
                raise InputError(self._path(field.name), value, kind)

    @classmethod
    def _path(cls, name: str) -> str:
        """Dotted name of a field, as in the experiment's config."""
        return f"{cls.GROUP}.{name}"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping such as `config.model.to_dict()`; what is missing has its default.

        Raises:
          InputError: a key that does not exist, or a value that is not allowed.
        """
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        arguments = {}
        for name, value in values.items():
            if name not in fields:
                raise InputError(cls._path(name), value, "only the keys " + ", ".join(fields))
            kind = fields[name]
            if isinstance(kind, type) and issubclass(kind, Settings) and isinstance(value, Mapping):
                value = kind.from_dict(value)
            arguments[name] = tuple(value) if isinstance(value, list) else value
        return cls(**arguments)

    def _check_choice(self, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise InputError(self._path(name), value, " | ".join(allowed))

    def _check_at_least(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value < least:
                raise InputError(self._path(name), value, f"an integer >= {least}")


def _has_type(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        entry = get_args(kind)[0]
        return isinstance(value, tuple) and all(_has_type(x, entry) for x in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
