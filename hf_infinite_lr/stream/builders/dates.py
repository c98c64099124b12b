"""Time-incremental streams: tasks that follow one another in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any, Self, Unpack

import numpy as np
from datasets import IterableDataset

from hf_infinite_lr.stream.task import Task

from .division import Division, check_column, check_num_tasks, column_values, divide

PERIODS = {"year": "Y", "month": "M", "day": "D"}
"""Calendar parts and numpy's letters for them."""


def split_by_time(
    dataset: Any,
    *,
    column: str = "date",
    num_tasks: int | None = None,
    period: str | None = None,
    boundaries: Sequence[Any] | None = None,
    seed: int = 0,
    name: str = "task",
    **division: Unpack[Division],
) -> list[Task]:
    """Divides a dataset by date, earliest first.

    Exactly one of `num_tasks`, `period` and `boundaries` says how; a stream takes `boundaries`, because its dates are
    not known before it is read. Dates are dates, timestamps, ISO text such as `2024-05-31T12:00:00Z`, `2024-05` or
    `2024`, or years.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): What is divided.
        column (`str`): Column of the dates.
        num_tasks (`int`, *optional*): Parts of equal size; samples of one date may come to lie in two of them, and
            those of `eval_dataset` lie in the same proportion.
        period (`str`, *optional*): Calendar parts: one task for each `year`, `month` or `day` that occurs.
        boundaries (`Sequence`, *optional*): Where each task but the first begins, in ascending order.
        seed (`int`): Decides what is held out.
        name (`str`): Names the tasks, as in `task-1`.
        **division: As in [`~hf_infinite_lr.stream.builders.division.Division`].

    Raises:
        ValueError: naming the field, its value and the rule.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> data = Dataset.from_dict({"date": ["2023-03-01", "2024-07-09"] * 40})
    >>> [(task.name, task.holds) for task in split_by_time(data, period="year")]
    [('task-2023', '2023-03-01 to 2023-03-01'), ('task-2024', '2024-07-09 to 2024-07-09')]

    ```
    """
    check_column(dataset, column)
    given = {"num_tasks": num_tasks, "period": period, "boundaries": boundaries}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise ValueError(f"Give exactly one of num_tasks, period and boundaries, not {' and '.join(names) or 'none'}.")
    prefix = name
    if isinstance(dataset, IterableDataset):
        if boundaries is None:
            raise ValueError(f"{names[0]} needs all dates, which a streaming dataset does not tell: give boundaries.")
        rule = _ByDate.of(column, _ascending(boundaries), prefix)
        return divide(dataset, rule, seed=seed, **division)
    moments = _moments(column_values(dataset, column), column)
    if num_tasks is not None:
        check_num_tasks(num_tasks, len(moments))
        numbers = np.empty(len(moments), int)
        order = np.argsort(moments, kind="stable")
        parts = np.array_split(order, num_tasks)
        for number, rows in enumerate(parts):
            numbers[rows] = number
        rule = _ByRank.of(column, np.array([moments[rows[0]] for rows in parts[1:]], moments.dtype), prefix)
        rule = replace(rule, moments=moments[order], cuts=np.cumsum([len(rows) for rows in parts[:-1]]))
    elif period is not None:
        if period not in PERIODS:
            raise ValueError(f"period={period!r} must be one of {', '.join(PERIODS)}.")
        found = np.unique(moments.astype(f"datetime64[{PERIODS[period]}]"))
        rule = _ByDate.of(column, found[1:].astype(moments.dtype), prefix, [f"{prefix}-{part}" for part in found])
        numbers = rule.parts_at(moments)
    else:
        rule = _ByDate.of(column, _ascending(boundaries or ()), prefix)
        numbers = rule.parts_at(moments)
    return divide(dataset, rule.with_ranges(moments, numbers), seed=seed, numbers=numbers, **division)


@dataclass(frozen=True)
class _ByDate:
    column: str
    starts: np.ndarray
    names: tuple[str, ...]
    holds: tuple[str, ...]

    @classmethod
    def of(cls, column: str, starts: np.ndarray, prefix: str, names: Sequence[str] | None = None) -> Self:
        days = [str(start.astype("datetime64[D]")) for start in starts]
        first, last = ["the first", *(f"from {day}" for day in days)], [*(f"before {day}" for day in days), "the last"]
        holds = [f"{begin} to {end}" for begin, end in zip(first, last, strict=True)]
        return cls(column, starts, tuple(names or (f"{prefix}-{n}" for n in range(1, len(starts) + 2))), tuple(holds))

    def with_ranges(self, moments: np.ndarray, numbers: np.ndarray) -> Self:
        """With the dates that each part really holds."""
        holds = []
        for number in range(len(self.names)):
            part = moments[numbers == number].astype("datetime64[D]")
            holds.append(f"{part.min()} to {part.max()}" if len(part) else self.holds[number])
        return replace(self, holds=tuple(holds))

    def parts_at(self, moments: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, moments, side="right")

    def parts_of(self, values: Sequence[Any]) -> np.ndarray:
        return self.parts_at(_moments(values, self.column))


@dataclass(frozen=True)
class _ByRank(_ByDate):
    """Parts of equal size, which a date that many samples share may cross.

    Others of that date are dealt out over the ranks of those that were cut.

    Args:
        moments (`np.ndarray`): Those that were cut, in order.
        cuts (`np.ndarray`): The rank at which each part but the first begins.
    """

    moments: np.ndarray = field(default_factory=lambda: np.empty(0, "datetime64[us]"))
    cuts: np.ndarray = field(default_factory=lambda: np.empty(0, int))

    def parts_at(self, moments: np.ndarray) -> np.ndarray:
        found, places, counts = np.unique(moments, return_inverse=True, return_counts=True)
        first, last = (np.searchsorted(self.moments, found, side=side) for side in ("left", "right"))
        turn = np.empty(len(moments))  # of each among those of its date
        order = np.argsort(places, kind="stable")
        turn[order] = np.arange(len(moments)) - np.repeat(np.cumsum(counts) - counts, counts)
        ranks = first[places] + (turn + 0.5) * (last - first)[places] / counts[places]
        return np.searchsorted(self.cuts, ranks, side="left")


def _ascending(boundaries: Sequence[Any]) -> np.ndarray:
    starts = _moments(boundaries, "boundaries")
    if not len(starts) or (np.diff(starts) <= np.timedelta64(0)).any():
        raise ValueError(f"boundaries={list(boundaries)!r} must be dates in ascending order.")
    return starts


def _moments(values: Sequence[Any], column: str) -> np.ndarray:
    """Dates as microseconds in UTC."""
    return np.array([_moment(value, column) for value in values], "datetime64[us]")


def _moment(value: Any, column: str) -> datetime:
    try:
        if isinstance(value, datetime):
            moment = value
        elif isinstance(value, date):
            moment = datetime(value.year, value.month, value.day)
        elif isinstance(value, str):
            moment = datetime.fromisoformat(value + {4: "-01-01", 7: "-01"}.get(len(value), ""))
        elif isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            moment = datetime(int(value), 1, 1)
        else:
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{column} holds {value!r}, which is no date (such as 2024-05-31).") from error
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
