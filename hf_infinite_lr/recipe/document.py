"""The YAML of a recipe as a mapping: its scalars, and what the command line overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

_BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float"))


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of its version 1.2: `3e-4` is a number, and `no` is a word (as in `save_strategy: no`)."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # the name and form that PyYAML looks up
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _INT)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As in YAML, where a key stands once: the last of two would silently win."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise ValueError(f"{key.value!r} stands twice, again in line {key.start_mark.line + 1}")
            seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_INT, re.compile(r"^([-+]?\d[\d_]*|0x[0-9a-fA-F]+|0o[0-7]+)$"), list("-+0123456789"))
_Loader.add_constructor(_INT, lambda _, node: _whole_number(node.value))
_Loader.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _whole_number(text: str) -> int:
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text.replace("_", ""))


def parse_value(text: str) -> Any:
    """A value of the command line, read as YAML.

    Example:

    ```python
    >>> parse_value("3e-4"), parse_value("true"), parse_value("no"), parse_value("{a: 1}")
    (0.0003, True, 'no', {'a': 1})

    ```
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError:
        return text


def read_document(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads the mapping of a YAML file and applies what the command line says.

    Args:
        path (`str` or `Path`): A YAML file.
        overrides (`Sequence[str]`): `--key value`, `--key=value`; `--a.b value` sets one entry of a mapping, and a
            mapping given for a mapping is merged into it.

    Raises:
        ValueError: one sentence naming the key, its value and the rule.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        content = yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of keys to values, not a {type(content).__name__}.")
    for key, value in _pairs(overrides):
        _override(content, key.split("."), value)
    return content


def _pairs(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    pairs = []
    words = iter(overrides)
    for word in words:
        if not word.startswith("--"):
            raise ValueError(f"{word!r} must be the name of a key, as in --learning_rate 3e-4.")
        key, equals, text = word.removeprefix("--").partition("=")
        value = text if equals else next(words, None)
        if value is None:
            raise ValueError(f"--{key} needs a value.")
        pairs.append((key, parse_value(value)))
    return pairs


def _override(content: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    first, *rest = keys
    old = content.get(first)
    if rest:
        if old is None:
            old = content[first] = {}
        if not isinstance(old, dict):
            raise ValueError(f"--{'.'.join(keys)}: {first} is {old!r}, no mapping.")
        _override(old, rest, value)
    elif isinstance(old, dict) and isinstance(value, dict):
        content[first] = {**old, **value}
    else:
        content[first] = value
