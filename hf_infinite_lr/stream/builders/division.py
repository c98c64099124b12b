"""Tasks out of one dataset: a rule says which part a sample belongs to, and every part holds some samples out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import numpy as np
from datasets import Dataset, IterableDataset

from hf_infinite_lr.stream.order import scatter
from hf_infinite_lr.stream.reader import in_fixed_order
from hf_infinite_lr.stream.task import Task

from .table import task_table

logger = logging.getLogger(__name__)

DEFAULT_EVAL_FRACTION = 0.05
"""Share of each part that is held out when nothing else is said."""

_HELD_OUT, _BALANCED = 1, 2  # keys of the numbers by which samples are chosen


class Rule(Protocol):
    """Which part a sample belongs to.

    Args:
        column (`str`, *optional*): What decides; None for the sample's row.
        names (`Sequence[str]`): Of the parts, which become the tasks' names.
        holds (`Sequence[str]`): What each part holds, in words.
    """

    @property
    def column(self) -> str | None: ...  # noqa: D102
    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def holds(self) -> Sequence[str]: ...  # noqa: D102

    def parts_of(self, values: Sequence[Any]) -> np.ndarray:
        """The number of each value's part; -1 for one that belongs to none."""
        ...


class Division(TypedDict, total=False):
    """What every builder takes besides the way to divide.

    Args:
        eval_dataset (`datasets.Dataset`, *optional*): Held-out data, divided by the same rule.
        eval_fraction (`float`, *optional*): Share of each part that is held out instead; 0.05 if nothing is given.
        num_eval_samples (`int`, *optional*): Or so many samples of each part; of a stream its first ones.
        balanced (`bool`, defaults to `False`): Cut every part at random to the size of the smallest.
    """

    eval_dataset: Any
    eval_fraction: float | None
    num_eval_samples: int | None
    balanced: bool


def divide(
    dataset: Any,
    rule: Rule,
    *,
    seed: int = 0,
    numbers: np.ndarray | None = None,
    eval_dataset: Any = None,
    eval_fraction: float | None = None,
    num_eval_samples: int | None = None,
    balanced: bool = False,
) -> list[Task]:
    """Makes a task of each part of a dataset.

    A table of `datasets` is divided by row numbers, without a copy; a stream by a predicate, so that each task reads
    the whole stream and keeps its part. Held-out samples are chosen by a number of their row, never trained on, and
    the same for the same seed. What went where is logged as a table.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): Training data.
        rule ([`Rule`]): Which part a sample belongs to.
        seed (`int`): Decides what is held out and what `balanced` cuts.
        numbers (`np.ndarray`, *optional*): Part of each row of a table where the rule alone does not say it.
        eval_dataset, eval_fraction, num_eval_samples, balanced: As in [`Division`].

    Raises:
        ValueError: naming the field, its value and the rule.
    """
    check_column(dataset, rule.column)
    _check_held_out(dataset, eval_dataset, eval_fraction, num_eval_samples)
    if isinstance(dataset, IterableDataset):
        if balanced:
            raise ValueError("balanced=True needs the sizes of all parts, which a streaming dataset does not tell.")
        tasks = _streams(dataset, rule, eval_dataset, num_eval_samples)
    else:
        if numbers is None:
            numbers = rule.parts_of(column_values(dataset, rule.column))
        rows = [np.flatnonzero(numbers == part) for part in range(len(rule.names))]
        _refuse_empty(rule, rows, "samples")
        if balanced:
            least = min(len(part) for part in rows)
            rows = [_random(part, least, seed, _BALANCED)[0] for part in rows]
        tasks = _tables(dataset, rule, rows, seed, eval_dataset, eval_fraction, num_eval_samples)
    logger.info("%s", task_table(tasks))
    return tasks


def _tables(
    dataset: Dataset,
    rule: Rule,
    rows: Sequence[np.ndarray],
    seed: int,
    eval_dataset: Any,
    eval_fraction: float | None,
    num_eval_samples: int | None,
) -> list[Task]:
    if eval_dataset is not None:
        pairs = [(dataset.select(part), held) for part, held in zip(rows, _by_rule(eval_dataset, rule), strict=True)]
    else:
        pairs = []
        for part, name in zip(rows, rule.names, strict=True):
            share = DEFAULT_EVAL_FRACTION if eval_fraction is None else eval_fraction
            number = num_eval_samples or max(1, int(share * len(part) + 1e-9))
            if number >= len(part):
                raise ValueError(f"Task {name!r} has {len(part)} samples, too few to hold {number} of them out.")
            held, rest = _random(part, number, seed, _HELD_OUT)
            pairs.append((dataset.select(rest), dataset.select(held)))
    described = zip(rule.names, pairs, rule.holds, strict=True)
    return [Task(name, train, held, holds=holds) for name, (train, held), holds in described]


def _streams(dataset: IterableDataset, rule: Rule, eval_dataset: Any, num_eval_samples: int | None) -> list[Task]:
    given = _by_rule(eval_dataset, rule) if eval_dataset is not None else [None] * len(rule.names)
    if rule.column is None:
        dataset = in_fixed_order(dataset, "a random part")
    elif num_eval_samples is not None:
        dataset = in_fixed_order(dataset, f"num_eval_samples={num_eval_samples}")
    tasks = []
    for number, (name, held, holds) in enumerate(zip(rule.names, given, rule.holds, strict=True)):
        part = dataset.filter(
            _belongs,
            with_indices=rule.column is None,
            input_columns=[] if rule.column is None else [rule.column],
            fn_kwargs={"rule": rule, "number": number},
        )
        if held is None:
            first = list(part.take(num_eval_samples))
            if not first:
                raise ValueError(f"Task {name!r} ({holds}) has no samples.")
            held, part = Dataset.from_list(first, features=dataset.features), part.skip(num_eval_samples)
        tasks.append(Task(name, part, held, holds=holds))
    return tasks


def _belongs(value: Any, *, rule: Rule, number: int) -> bool:
    return bool(rule.parts_of([value])[0] == number)


def _by_rule(dataset: Any, rule: Rule) -> list[Dataset]:
    check_column(dataset, rule.column)
    if not isinstance(dataset, Dataset):
        raise ValueError(f"eval_dataset of type {type(dataset).__name__} must be a datasets.Dataset.")
    numbers = rule.parts_of(column_values(dataset, rule.column))
    rows = [np.flatnonzero(numbers == part) for part in range(len(rule.names))]
    _refuse_empty(
        rule, rows, "held-out samples; hold out more rows, or name held-out data that has some for every task"
    )
    return [dataset.select(part) for part in rows]


def _random(rows: np.ndarray, count: int, *key: int) -> tuple[np.ndarray, np.ndarray]:
    """So many rows, chosen by a number of each, and the others; both in ascending order."""
    order = np.argsort(scatter(rows, *key), kind="stable")
    return np.sort(rows[order[:count]]), np.sort(rows[order[count:]])


def column_values(dataset: Dataset, column: str | None) -> Any:
    """A column's values as they are stored, whatever format the dataset hands out; or the numbers of the rows."""
    return np.arange(len(dataset)) if column is None else dataset.with_format(None)[column][:]


def check_column(dataset: Any, column: str | None) -> None:
    """Refuses what is no dataset of `datasets`, and a column that it does not have."""
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise ValueError(
            f"A dataset of type {type(dataset).__name__} must be a Dataset or IterableDataset of datasets."
        )
    if column is None or dataset.column_names is None:
        return
    if column not in dataset.column_names:
        raise ValueError(f"column={column!r} is missing: the dataset has {', '.join(dataset.column_names)}.")


def check_num_tasks(num_tasks: Any, available: int | None = None, of: str = "samples") -> None:
    """Refuses a number of tasks that is none, or more than there are samples or classes."""
    if type(num_tasks) is not int or num_tasks < 1:
        raise ValueError(f"num_tasks={num_tasks!r} must be a whole number above 0.")
    if available is not None and available < num_tasks:
        raise ValueError(f"num_tasks={num_tasks} is more than the {available} {of} that there are.")


def _refuse_empty(rule: Rule, rows: Sequence[np.ndarray], what: str) -> None:
    for name, holds, part in zip(rule.names, rule.holds, rows, strict=True):
        if not len(part):
            raise ValueError(f"Task {name!r} ({holds}) has no {what}.")


def _check_held_out(dataset: Any, eval_dataset: Any, fraction: float | None, number: int | None) -> None:
    given = {"eval_dataset": eval_dataset, "eval_fraction": fraction, "num_eval_samples": number}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} say what is held out, of which only one can hold.")
    if fraction is not None and (type(fraction) is not float or not 0 < fraction < 1):
        raise ValueError(f"eval_fraction={fraction!r} must be above 0 and below 1.")
    if number is not None and (type(number) is not int or number < 1):
        raise ValueError(f"num_eval_samples={number!r} must be a whole number above 0.")
    if isinstance(dataset, IterableDataset) and eval_dataset is None and number is None:
        raise ValueError("A streaming dataset holds out its first samples: give num_eval_samples, or eval_dataset.")
