"""Files that are there whole or not at all, and their hashes."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Of libyaml where PyYAML was built with it: ten times as fast, so that it holds up no thread beside it."""


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """
    Lets a reader see a file's old content or the new, never half of it.

    Args:
        target (`Path`): The file; missing folders are made.

    Yields:
        `Path`: Where to write it; it is moved to `target` at the end, or removed after an exception.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield path
        os.replace(path, target)
    finally:
        path.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Writes a file of text, whole or not at all."""
    with aside(target) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(target, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """
    Reads a JSON file.

    Raises:
        `ValueError`: naming a file that is broken.
        `OSError`: for one that cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error


def safe_yaml(text: str) -> Any:
    """
    Reads plain data of YAML.

    Raises:
        `yaml.YAMLError`: for what is none.
    """
    return yaml.load(text, _YAML)  # a SafeLoader


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
