"""Class-incremental streams: every task brings classes of its own, grouped at random or in the order of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from datasets import ClassLabel, Dataset

from hf_infinite_lr.stream.labels import label_names
from hf_infinite_lr.stream.order import generator
from hf_infinite_lr.stream.task import Task

from .division import Division, check_column, check_num_tasks, column_values, divide

_CLASSES = 5


def split_by_class(
    dataset: Any,
    num_tasks: int,
    *,
    column: str = "label",
    classes: Sequence[Any] | None = None,
    seed: int | None = 0,
    name: str = "task",
    **division: Unpack[Division],
) -> list[Task]:
    """Gives each task as many classes as any other, or one fewer.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): What is divided.
        num_tasks (`int`): Number of tasks.
        column (`str`): Column of the labels.
        classes (`Sequence`, *optional*): The labels, of a `ClassLabel` also their names; a stream needs them unless
            its column is one.
        seed (`int`, *optional*): Decides the groups; None groups in the order of labels, as Split CIFAR-10 does.
        name (`str`): Names the tasks, as in `task-1`.
        **division: As in [`~hf_infinite_lr.stream.builders.division.Division`].

    Raises:
        ValueError: naming the field, its value and the rule.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> data = Dataset.from_dict({"label": [0, 1, 2, 3] * 30})
    >>> [task.holds for task in split_by_class(data, 2, seed=None)]
    ['classes 0, 1', 'classes 2, 3']

    ```
    """
    found = classes_of(dataset, column, classes)
    check_num_tasks(num_tasks, len(found), f"classes of column {column!r}")
    order = np.arange(len(found)) if seed is None else generator(seed, _CLASSES).permutation(len(found))
    groups = [[found[place] for place in np.sort(part)] for part in np.array_split(order, num_tasks)]
    rule = ClassGroups.of(dataset, column, groups, name)
    return divide(dataset, rule, seed=seed or 0, **division)


@dataclass(frozen=True)
class ClassGroups:
    """The rule by which a label decides.

    Args:
        column (`str`): Column of the labels.
        names (`tuple[str, ...]`): Of the parts.
        holds (`tuple[str, ...]`): Their classes in words.
        part_of (`dict`): Label -> number of its part.
    """

    column: str
    names: tuple[str, ...]
    holds: tuple[str, ...]
    part_of: dict[Any, int]

    @classmethod
    def of(cls, dataset: Any, column: str, groups: Sequence[Sequence[Any]], name: str) -> ClassGroups:
        """Makes the rule of the groups of classes."""
        words = label_names(dataset, column)
        holds = [
            f"{'classes' if len(group) > 1 else 'class'} {', '.join(str(words.get(label, label)) for label in group)}"
            for group in groups
        ]
        names = [f"{name}-{number}" for number in range(1, len(groups) + 1)]
        part_of = {label: number for number, group in enumerate(groups) for label in group}
        return cls(column, tuple(names), tuple(holds), part_of)

    def parts_of(self, values: Sequence[Any]) -> np.ndarray:
        """The number of each label's group."""
        return np.fromiter((self.part_of.get(value, -1) for value in values), int, len(values))


def classes_of(dataset: Any, column: str, classes: Sequence[Any] | None = None) -> list[Any]:
    """The labels of a dataset in order: those given, those that its table has, or those that its features name."""
    check_column(dataset, column)
    if classes is not None:
        numbers = {name: number for number, name in label_names(dataset, column).items()}
        found = [numbers.get(label, label) for label in classes] if isinstance(classes, (list, tuple)) else None
        if found is None or len(set(found)) != len(found):
            raise ValueError(f"classes={classes!r} must be a list of different labels.")
        return found
    if isinstance(dataset, Dataset):
        values = set(column_values(dataset, column))
        if None in values or (isinstance((dataset.features or {}).get(column), ClassLabel) and -1 in values):
            raise ValueError(f"column={column!r} has samples without a label.")
        return sorted(values)
    names = label_names(dataset, column)
    if not names:
        raise ValueError(f"classes are not known before a streaming dataset is read: list those of column {column!r}.")
    return list(names)
