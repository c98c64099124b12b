"""Instance-incremental streams: random parts of one dataset (Hu et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from datasets import IterableDataset

from hf_infinite_lr.stream.order import generator, scatter, scattered_below
from hf_infinite_lr.stream.reader import in_fixed_order
from hf_infinite_lr.stream.task import Task

from .division import Division, check_column, check_num_tasks, divide

_PARTS, _SUBSET = 3, 4


def split_by_instance(
    dataset: Any, num_tasks: int, *, seed: int = 0, name: str = "task", **division: Unpack[Division]
) -> list[Task]:
    """Divides a dataset into random parts of equal size; of a stream each sample's part is drawn by its place in it.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): What is divided.
        num_tasks (`int`): Number of parts.
        seed (`int`): Decides the parts and what is held out.
        name (`str`): Names the tasks, as in `task-1`.
        **division: As in [`~hf_infinite_lr.stream.builders.division.Division`].

    Raises:
        ValueError: naming the field, its value and the rule.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> tasks = split_by_instance(Dataset.from_dict({"x": list(range(100))}), 4, eval_fraction=0.2)
    >>> [(task.name, len(task.dataset), len(task.eval_dataset)) for task in tasks][:2]
    [('task-1', 20, 5), ('task-2', 20, 5)]

    ```
    """
    check_column(dataset, None)
    streaming = isinstance(dataset, IterableDataset)
    check_num_tasks(num_tasks, None if streaming else len(dataset))
    names = [f"{name}-{number}" for number in range(1, num_tasks + 1)]
    rule = _Hashed(tuple(names), seed) if streaming else _Shuffled(tuple(names), seed)
    return divide(dataset, rule, seed=seed, **division)


@dataclass(frozen=True)
class _RandomParts:
    names: tuple[str, ...]
    seed: int
    column: None = None

    @property
    def holds(self) -> Sequence[str]:
        return [f"random part {number} of {len(self.names)}" for number in range(1, len(self.names) + 1)]


class _Shuffled(_RandomParts):
    """All rows of a table, shuffled and cut into parts whose sizes differ by one at most."""

    def parts_of(self, values: Sequence[Any]) -> np.ndarray:
        numbers = np.empty(len(values), int)
        for number, rows in enumerate(
            np.array_split(generator(self.seed, _PARTS).permutation(len(values)), len(self.names))
        ):
            numbers[rows] = number
        return numbers


class _Hashed(_RandomParts):
    """Rows as they come: a number of the row alone decides."""

    def parts_of(self, values: Sequence[Any]) -> np.ndarray:
        return scattered_below(len(self.names), np.asarray(values), self.seed, _PARTS)


def random_subset(dataset: Any, size: int | float, *, seed: int = 0) -> Any:
    """A random subset that stays the same in every epoch (Guo et al. 2024, strategy I: 4 epochs on a subset).

    A larger size of the same seed holds all of a smaller one.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): Of which a subset is taken.
        size (`int` or `float`): Samples, or below 1 a share; of a stream a share.
        seed (`int`): Which subset.

    Raises:
        ValueError: for a size that is none, or more than there is; for a stream that is shuffled.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> random_subset(Dataset.from_dict({"x": list(range(10))}), 0.3)["x"][:]
    [0, 7, 8]

    ```
    """
    check_column(dataset, None)
    share = type(size) is float and 0 < size < 1
    if not share and (type(size) is not int or size < 1):
        raise ValueError(f"subset={size!r} must be a whole number of samples, or a share above 0 and below 1.")
    if isinstance(dataset, IterableDataset):
        if not share:
            raise ValueError(f"subset={size} needs the number of all samples: of a streaming dataset give a share.")
        choice = {"share": size, "seed": seed}
        stored = in_fixed_order(dataset, f"subset={size}")
        return stored.filter(_in_subset, with_indices=True, input_columns=[], fn_kwargs=choice)
    number = max(1, int(size * len(dataset) + 1e-9)) if share else int(size)
    if number > len(dataset):
        raise ValueError(f"subset={size} is more than the {len(dataset)} samples that there are.")
    return dataset.select(np.sort(np.argsort(scatter(np.arange(len(dataset)), seed, _SUBSET))[:number]))


def _in_subset(row: int, *, share: float, seed: int) -> bool:
    return bool(scatter(np.array([row]), seed, _SUBSET)[0] < share * 2**64)
