"""Frozen dataclasses from mappings of a YAML; an unknown key is answered with the nearest known one."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from types import UnionType
from typing import Any, ClassVar, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Source = TypeVar("Source", bound=_Dataclass)


def from_mapping(kind: type[Source], entry: Mapping[str, Any], *, other_keys: Iterable[str] = ()) -> Source:
    """
    Makes a dataclass from a mapping.

    Args:
        kind (`type`): The dataclass; its fields are the keys that are read.
        entry (`Mapping[str, Any]`): Keys and values of the YAML.
        other_keys (`Iterable[str]`, *optional*): Keys that somebody else reads and that are passed over here.

    Returns:
        An instance of `kind`.

    Raises:
        `ValueError`: If the entry is no mapping or has a key that nobody reads.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"{entry!r} must be a mapping of keys to values.")
    known = [field.name for field in fields(kind)]
    others = set(other_keys)
    for key in entry:
        if key not in known and key not in others:
            raise ValueError(f"{key!r} is an unknown key{nearest(str(key), [*known, *others])}.")
    return kind(**{key: value for key, value in entry.items() if key in known})


def nearest(word: str, words: Iterable[str]) -> str:
    """
    The end of an error message that suggests the word meant, or nothing when none is close.

    Example:

    ```python
    >>> nearest("hiden_size", ["hidden_size", "vocab_size"])
    "; did you mean 'hidden_size'?"

    ```
    """
    close = difflib.get_close_matches(word, sorted(words), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def typed(kind: type, key: str, value: Any) -> Any:
    """
    The value as the field's type, where YAML writes it otherwise (1 for 1.0, 1e9 for a whole number).

    Args:
        kind (`type`): A dataclass.
        key (`str`): One of its fields.
        value: As the YAML has it.

    Raises:
        `ValueError`: If the value is of another type.
    """
    if key == "lr_scheduler_kwargs" and not (value is None or isinstance(value, Mapping)):
        raise ValueError(f"{key}={value!r} must be a mapping of names to values.")
    hint = get_type_hints(kind)[key]
    allowed = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = {int, float, bool, str}
    if not set(allowed) <= {*plain, type(None)} or any(type(value) is option for option in allowed):
        return value
    if type(value) is int and float in allowed:
        return float(value)
    if type(value) is float and value.is_integer() and int in allowed:
        return int(value)
    if key == "resume_from_checkpoint" and isinstance(value, bool):
        return value
    names = " or ".join(option.__name__ for option in allowed if option is not type(None))
    raise ValueError(f"{key}={value!r} must be of type {names}.")
