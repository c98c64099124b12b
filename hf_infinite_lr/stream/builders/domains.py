"""Domain-incremental streams: one task for each domain, such as the styles of DomainNet or the sources of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from hf_infinite_lr.stream.labels import label_names
from hf_infinite_lr.stream.task import Task

from .classes import classes_of
from .division import Division, divide


def split_by_domain(
    dataset: Any,
    *,
    column: str | None = None,
    domains: Sequence[Any] | None = None,
    seed: int = 0,
    name: str = "task",
    **division: Unpack[Division],
) -> list[Task]:
    """Makes a task of each domain.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or `dict`): One dataset with a column of domains, or
            domain -> dataset.
        column (`str`, *optional*): The column; not with a dict.
        domains (`Sequence`, *optional*): Which domains, in which order; a stream needs them unless its column is a
            `ClassLabel`. Left out, all of them, sorted (of a dict, in its order).
        seed (`int`): Decides what is held out.
        name (`str`): Names the tasks, as in `task-1`.
        **division: As in [`~hf_infinite_lr.stream.builders.division.Division`].

    Raises:
        ValueError: naming the field, its value and the rule.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> data = Dataset.from_dict({"style": ["photo", "sketch"] * 40})
    >>> [task.name for task in split_by_domain(data, column="style")]
    ['task-photo', 'task-sketch']

    ```
    """
    if isinstance(dataset, Mapping):
        return _one_each(dataset, column, domains, seed, name, division)
    if column is None:
        raise ValueError("column is missing: name the column of domains, or give a dict of domain -> dataset.")
    found = classes_of(dataset, column, domains)
    known = label_names(dataset, column)
    words = [str(known.get(domain, domain)) for domain in found]
    rule = _Domains(column, tuple(f"{name}-{word}" for word in words), tuple(words), tuple(found))
    return divide(dataset, rule, seed=seed, **division)


def _one_each(
    datasets: Mapping[str, Any],
    column: str | None,
    domains: Sequence[Any] | None,
    seed: int,
    name: str,
    division: Division,
) -> list[Task]:
    if column is not None or division.get("eval_dataset") is not None or division.get("balanced"):
        raise ValueError("column, eval_dataset and balanced do not go with a dict of domain -> dataset.")
    names = list(datasets) if domains is None else list(domains)
    for domain in names:
        if domain not in datasets:
            raise ValueError(f"domains: {domain!r} is none of {', '.join(datasets)}.")
    tasks = []
    for domain in names:
        whole = _Domains(None, (f"{name}-{domain}",), (str(domain),), ())
        tasks += divide(datasets[domain], whole, seed=seed, **division)
    return tasks


@dataclass(frozen=True)
class _Domains:
    column: str | None
    names: tuple[str, ...]
    words: tuple[str, ...]
    domains: tuple[Any, ...]

    @property
    def holds(self) -> Sequence[str]:
        return [f"domain {word}" for word in self.words]

    def parts_of(self, values: Sequence[Any]) -> np.ndarray:
        if self.column is None:
            return np.zeros(len(values), int)
        numbers = {domain: number for number, domain in enumerate(self.domains)}
        return np.fromiter((numbers.get(value, -1) for value in values), int, len(values))
