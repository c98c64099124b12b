"""Tasks and the stream that they form."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .in_order import InOrder
from .mixture import Mixture
from .reader import is_streaming


def slug(name: str) -> str:
    """The form of a task's name that directories and tags carry.

    Example:

    ```python
    >>> slug("Web, 2024/05")
    'web-2024-05'

    ```
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class RemovedData:
    """Stands for the data of a task that is trained and no longer given: a stream without samples."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


@dataclass(frozen=True)
class Task:
    """One dataset of a stream, with its own length.

    Args:
        name (`str`):
            Names the task in logs, matrices and directories. Unique in the stream, also after slugging.
        dataset:
            Training data: map-style, or streaming (an iterable dataset of `datasets` or torch).
        eval_dataset (*optional*):
            Held-out data of this task, scored after every task.
        num_steps (`int`, *optional*):
            Length in optimizer steps. A streaming task needs it, because its length is not known.
        num_epochs (`float`, *optional*):
            Length in passes over the dataset. Not together with `num_steps`.
        fingerprint (`str`, *optional*):
            What identifies the data when a run is resumed. Left out, it is made of the length, the column names
            and some fixed rows (of a streaming dataset: of the column names and the name of the task).
        holds (`str`, *optional*):
            What the data is, in words, for tables: classes, a domain, dates.

    Example:

    ```python
    >>> Task("web", [{"input_ids": [1, 2]}] * 8, num_epochs=2).name
    'web'

    ```
    """

    name: str
    dataset: Any
    eval_dataset: Any = None
    num_steps: int | None = None
    num_epochs: float | None = None
    fingerprint: str | None = None
    holds: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not slug(self.name):
            raise ValueError(f"Task.name={self.name!r} must contain at least one letter or digit.")
        if self.num_steps is not None and self.num_epochs is not None:
            raise ValueError(
                f"Task {self.name!r} has both num_steps={self.num_steps} and num_epochs={self.num_epochs}: give one."
            )
        if self.num_steps is not None and (type(self.num_steps) is not int or self.num_steps < 1):
            raise ValueError(f"Task {self.name!r}: num_steps={self.num_steps!r} must be a whole number above 0.")
        if self.num_epochs is not None and (
            type(self.num_epochs) not in (int, float) or not 0 < self.num_epochs < float("inf")
        ):
            raise ValueError(f"Task {self.name!r}: num_epochs={self.num_epochs!r} must be a finite number above 0.")

    @property
    def streaming(self) -> bool:
        """Whether the training data can only be read in its own order."""
        return is_streaming(self.dataset)

    def identity(self) -> str:
        """The task's fingerprint: the given one, or a hash of length, columns and up to 16 evenly spaced rows."""
        if self.fingerprint is not None:
            return self.fingerprint
        columns = getattr(self.dataset, "column_names", None)
        parts: dict[str, Any] = {"columns": sorted(columns) if columns else None}
        if self.streaming:
            parts["name"] = self.name
        else:
            table = self.dataset
            if isinstance(table, Mixture):
                parts["mixture"] = [table.sizes, table.counts]
                table = table.table
            if isinstance(table, InOrder):
                parts["in_order"] = True
            size = len(table)
            parts["length"] = size
            parts["rows"] = [_row_hash(table[int(row)]) for row in np.linspace(0, size - 1, min(size, 16))]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _row_hash(row: Any) -> str:
    digest = hashlib.sha256()
    _feed(digest, row)
    return digest.hexdigest()[:16]


def _feed(digest: Any, value: Any) -> None:
    """Feeds a sample's content, whatever its container, to a hash; the same content gives the same hash."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            digest.update(repr(key).encode())
            _feed(digest, value[key])
    elif isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        _feed(digest, (value.float() if value.dtype == torch.bfloat16 else value).numpy())
    elif isinstance(value, np.ndarray):
        digest.update(str(value.dtype).encode() + str(value.shape).encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for part in value:
            _feed(digest, part)
    elif hasattr(value, "tobytes"):
        digest.update(value.tobytes())
    else:
        digest.update(repr(value).encode())


@dataclass(frozen=True)
class Stream:
    """The tasks of a run in their order, and what is evaluated beside them.

    Args:
        tasks (`tuple[Task, ...]`):
            At least one; names unique after slugging.
        evaluate_also (`dict[str, dataset]`):
            Evaluation-only columns: general text, tasks that are never trained on.
    """

    tasks: tuple[Task, ...]
    evaluate_also: dict[str, Any]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for name in [*(task.name for task in self.tasks), *self.evaluate_also]:
            if (other := seen.get(slug(name))) is not None:
                raise ValueError(
                    f"Task names {other!r} and {name!r} are the same ({slug(name)!r}) in directories and tags: "
                    "every task and evaluation set needs a name of its own."
                )
            seen[slug(name)] = name
        for task in self.tasks:
            if not task.streaming and len(task.dataset) == 0:
                raise ValueError(f"Task {task.name!r}: its dataset is empty; a task needs at least one global batch.")

    @classmethod
    def of(cls, train_dataset: Any, eval_dataset: Any = None) -> Stream:
        """Makes a stream of what `ContinualTrainer` was given.

        Args:
            train_dataset:
                A list of [`Task`]s, a dict name -> dataset, or a list of datasets (named `task-1`, `task-2`, ...).
            eval_dataset (*optional*):
                A dict name -> dataset, or for a list of datasets a list of the same length. Names that are no task
                become evaluation-only columns.
        """
        tasks = _tasks_of(train_dataset)
        if isinstance(eval_dataset, (list, tuple)):
            if len(eval_dataset) != len(tasks):
                raise ValueError(
                    f"eval_dataset is a list of {len(eval_dataset)} datasets for {len(tasks)} tasks: give one for "
                    "each task, or a dict name -> dataset."
                )
            eval_dataset = dict(zip((task.name for task in tasks), eval_dataset, strict=True))
        elif eval_dataset is not None and not isinstance(eval_dataset, Mapping):
            raise ValueError(
                f"eval_dataset of type {type(eval_dataset).__name__} must be a dict name -> dataset (or a list with "
                "one dataset for each task), so that every task has held-out data of its own."
            )
        given = dict(eval_dataset or {})
        if isinstance(train_dataset, Stream):
            given = {**train_dataset.evaluate_also, **given}
        for task in tasks:
            if task.eval_dataset is not None and given.get(task.name, task.eval_dataset) is not task.eval_dataset:
                raise ValueError(
                    f"Task {task.name!r} has an eval_dataset of its own, and eval_dataset={{{task.name!r}: ...}} "
                    "names another: give one of them."
                )
        tasks = tuple(
            replace(task, eval_dataset=given.pop(task.name)) if task.name in given else task for task in tasks
        )
        return cls(tasks, given)

    @property
    def eval_datasets(self) -> dict[str, Any]:
        """All columns of a task matrix: the tasks' held-out data in order, then the evaluation-only ones."""
        own = {task.name: task.eval_dataset for task in self.tasks if task.eval_dataset is not None}
        return {**own, **self.evaluate_also}

    def with_datasets(self, datasets: Iterable[Any]) -> Stream:
        """The same stream over other (prepared) training datasets, in the same order."""
        tasks = tuple(replace(task, dataset=data) for task, data in zip(self.tasks, datasets, strict=True))
        return replace(self, tasks=tasks)


def _tasks_of(train_dataset: Any) -> tuple[Task, ...]:
    if isinstance(train_dataset, Stream):
        return train_dataset.tasks
    if isinstance(train_dataset, Mapping):
        tasks = tuple(Task(name, dataset) for name, dataset in train_dataset.items())
    elif isinstance(train_dataset, Sequence):
        tasks = tuple(
            item if isinstance(item, Task) else Task(f"task-{position}", item)
            for position, item in enumerate(train_dataset, start=1)
        )
    else:
        raise ValueError(
            f"train_dataset of type {type(train_dataset).__name__} must be a list of datasets, a dict name -> dataset "
            "or a list of Task; for one dataset write [dataset]."
        )
    if not tasks:
        raise ValueError("train_dataset is empty: a stream needs at least one task.")
    return tasks
