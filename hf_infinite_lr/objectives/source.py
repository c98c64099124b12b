"""Where a task's rows come from, whatever they hold: built-in data, the Hub or local files, in two parts."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

import datasets
import numpy as np
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError

from hf_infinite_lr.keys import from_mapping, typed

DEFAULT_EVAL_FRACTION = 0.05
"""Share of the rows that is held out when nothing else is said."""

_SOURCES = ("builtin", "dataset_name", "data_files")
_OF_A_DATASET = ("dataset_config_name", "split", "revision", "eval_split")
_HELD_OUT = ("eval_data_files", "eval_fraction", "num_eval_samples")


@dataclass(frozen=True)
class Splits:
    """
    Data of one task as it was found, not yet prepared for the model; both parts have the same columns.

    Args:
        train (`datasets.Dataset` or `datasets.IterableDataset`): To train on.
        eval (`datasets.Dataset`): Held out.
        fingerprint (`str`, *optional*): A hash of the content, where the source knows all of it.
    """

    train: datasets.Dataset | datasets.IterableDataset
    eval: datasets.Dataset
    fingerprint: str | None = None


@dataclass(frozen=True)
class DataSource:
    """
    Where a task's rows come from: the keys that an entry of `tasks` or `evaluate_also` has for every objective.

    Exactly one of `builtin`, `dataset_name` and `data_files` is given. The held-out part is `eval_split`,
    `eval_data_files`, or rows taken out of the training data: the share `eval_fraction` of them, chosen by a hash of
    their content, so that more data never moves a row to the other side and equal rows stay together; or
    `num_eval_samples` of them (of a stream the first ones).

    Args:
        name (`str`, *optional*): Name of the task, for messages.
        builtin (`str`, *optional*): Data that lies on the disk with the dependencies.
        dataset_name (`str`, *optional*): A dataset of the Hub or of a folder.
        dataset_config_name (`str`, *optional*): Its configuration.
        split (`str`, *optional*, defaults to `"train"`): Its split to train on.
        revision (`str`, *optional*): Its branch, tag or commit.
        data_files (`str` or `list[str]`, *optional*): Files or globs of one kind.
        streaming (`bool`, *optional*, defaults to `False`): Read while training instead of before.
        eval_split (`str`, *optional*): Split of `dataset_name` that is held out.
        eval_data_files (`str` or `list[str]`, *optional*): Files that are held out.
        eval_fraction (`float`, *optional*): Share of the rows to hold out; 0.05 if nothing else is given.
        num_eval_samples (`int`, *optional*):
            Rows to hold out instead of a share; with `eval_split` or `eval_data_files` the first so many of them.

    Raises:
        `ValueError`: If keys contradict each other, or a stream does not say what is held out.
    """

    name: str = "data"
    builtin: str | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | Sequence[str] | None = None
    streaming: bool = False
    eval_split: str | None = None
    eval_data_files: str | Sequence[str] | None = None
    eval_fraction: float | None = None
    num_eval_samples: int | None = None

    rows: ClassVar[str] = "rows"
    """What the rows are called in messages."""

    hint_of_rows: ClassVar[str] = ""
    """What a message of too few rows says of how to have more."""

    only_of_builtin: ClassVar[tuple[str, ...]] = ()
    """Keys of a subclass that go with `builtin` alone."""

    never_of_builtin: ClassVar[tuple[str, ...]] = ()
    """Keys of a subclass that do not go with `builtin`."""

    @classmethod
    def of(cls, entry: Mapping[str, Any], key: str, other_keys: Sequence[str]) -> Self:
        """
        The source that an entry of a recipe names.

        Args:
            entry (`Mapping`): Keys and values of the YAML.
            key (`str`): `tasks` or `evaluate_also`, for messages.
            other_keys (`Sequence[str]`): Keys of an entry that somebody else reads.

        Raises:
            `ValueError`: naming the entry.
        """
        hints = get_type_hints(cls)
        try:
            values = {name: typed(cls, name, value) if name in hints else value for name, value in entry.items()}
            return from_mapping(cls, values, other_keys=other_keys)
        except ValueError as error:
            raise ValueError(f"{key}: {entry.get('name')!r}: {error}") from error

    def on_local_file(self, entry: Mapping[str, Any], file: str, num_eval_samples: int) -> dict[str, Any]:
        """
        The entry of a recipe with a local file in place of its dataset of the Hub, for `--smoke`.

        Args:
            entry (`Mapping`): What this source was made of.
            file (`str`): Holds few rows of the same columns.
            num_eval_samples (`int`): How many of them are held out where the entry holds out a number.
        """
        kept = {key: value for key, value in entry.items() if key not in ("dataset_name", *_OF_A_DATASET)}
        held_out = {"eval_data_files": file} if self.names_eval_part else {}
        fewer = {"num_eval_samples": num_eval_samples} if self.num_eval_samples else {}
        return {**kept, "data_files": file, **held_out, **fewer}

    def __post_init__(self) -> None:
        given = [key for key in _SOURCES if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(
                f"Task {self.name!r} must give exactly one of builtin, dataset_name and data_files, not {found}."
            )
        for key in self._foreign_to(given[0]):
            if getattr(self, key) != getattr(type(self), key):
                raise ValueError(
                    f"{key} of task {self.name!r} is {getattr(self, key)!r} but does not go with {given[0]}."
                )
        for key in ("data_files", "eval_data_files"):
            files = getattr(self, key)
            names = [files] if files is None or isinstance(files, str) else files
            if not isinstance(names, Sequence) or not all(name is None or isinstance(name, str) for name in names):
                raise ValueError(f"{key} of task {self.name!r} is {files!r} but must be a path, or a list of paths.")
        self._check_held_out()

    def _foreign_to(self, kind: str) -> tuple[str, ...]:
        if kind == "builtin":
            return (*_OF_A_DATASET, "streaming", *self.never_of_builtin, *_HELD_OUT)
        return self.only_of_builtin if kind == "dataset_name" else (*self.only_of_builtin, *_OF_A_DATASET)

    def _check_held_out(self) -> None:
        parts = [key for key in ("eval_split", "eval_data_files", "eval_fraction") if getattr(self, key) is not None]
        if self.eval_fraction is not None and self.num_eval_samples is not None:
            parts.append("num_eval_samples")
        if len(parts) > 1:
            raise ValueError(f"Task {self.name!r} gives {' and '.join(parts)}, of which only one can hold.")
        if self.eval_fraction is not None and not 0 < self.eval_fraction < 1:
            raise ValueError(
                f"eval_fraction of task {self.name!r} is {self.eval_fraction!r} but must be between 0 and 1."
            )
        number = self.num_eval_samples
        if number is not None and (type(number) is not int or number < 1):
            raise ValueError(
                f"num_eval_samples of task {self.name!r} is {number!r} but must be a positive whole number."
            )
        if self.streaming and self.eval_fraction is not None:
            raise ValueError(
                f"eval_fraction of task {self.name!r} needs all {self.rows}: with streaming give num_eval_samples."
            )
        if self.streaming and not self.names_eval_part and number is None:
            raise ValueError(
                f"Task {self.name!r} streams and must name its held-out part by eval_split, eval_data_files or "
                "num_eval_samples."
            )

    @property
    def names_eval_part(self) -> bool:
        """Whether the held-out part is a part of its own instead of rows taken out of the training data."""
        return self.eval_split is not None or self.eval_data_files is not None

    def read(self, read_files: Callable[[Sequence[str]], Any], *, held_out: bool = False) -> Any:
        """
        One part as `datasets` gives it.

        Args:
            read_files (`Callable`): Makes a dataset of the paths of local files.
            held_out (`bool`): The part that an `eval_` key names, instead of the one to train on.

        Raises:
            `ValueError`: If a pattern matches no file.
        """
        files = self.eval_data_files if held_out and self.eval_data_files is not None else self.data_files
        if files is not None:
            patterns = [files] if isinstance(files, str) else files
            return read_files([path for pattern in patterns for path in self._expand(pattern)])
        return datasets.load_dataset(
            self.dataset_name,
            self.dataset_config_name,
            split=self.eval_split if held_out and self.eval_split else self.split,
            revision=self.revision,
            streaming=self.streaming,
        )

    def _expand(self, pattern: str) -> list[str]:
        if "://" in pattern:
            return [pattern]
        paths = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
        if not paths:
            hint = (
                f": a folder is given by a pattern, {pattern.rstrip('/') + '/*'!r}" if Path(pattern).is_dir() else ""
            )
            raise ValueError(f"data_files {pattern!r} of task {self.name!r} matches no file{hint}.")
        return paths

    def held_out(self, places: np.ndarray) -> np.ndarray:
        """
        Which rows are held out: those of a place below the share, or the `num_eval_samples` lowest places.

        Args:
            places (`np.ndarray`): Shape (rows,): what [`place`] says of each row's content.

        Returns:
            `np.ndarray`: A mask of shape (rows,) with at least one row.

        Raises:
            `ValueError`: If nothing would be left to train on.
        """
        fraction = self.eval_fraction if self.eval_fraction is not None else DEFAULT_EVAL_FRACTION
        number = self.num_eval_samples
        limit = max(fraction, places.min()) if number is None else np.sort(places)[min(number, len(places)) - 1]
        mask: np.ndarray = places <= limit
        if mask.all():
            raise ValueError(
                f"Task {self.name!r} has too few different {self.rows} ({len(places)}) to hold some out: name "
                f"eval_data_files or eval_split{self.hint_of_rows}."
            )
        return mask

    @contextmanager
    def naming_faults(self) -> Iterator[None]:
        """Says of content that `datasets` cannot read, in one sentence, whose it is."""
        try:
            yield
        except (DatasetGenerationError, pa.ArrowInvalid, UnicodeDecodeError) as error:
            cause = " ".join(str(error.__cause__ or error).split()).rstrip(".")
            raise ValueError(
                f"{(self.data_files or self.dataset_name)!r} of task {self.name!r} cannot be read: {cause}."
            ) from error


def place(content: bytes) -> float:
    """
    A number in [0, 1) that follows from a row's content alone.

    Example:

    ```python
    >>> 0 <= place(b"a text") < 1
    True

    ```
    """
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") / 2**64
