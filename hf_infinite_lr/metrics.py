"""What a continual run has learned and forgotten: numbers on a task matrix, each with its convention in its name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from statistics import fmean
from typing import Any

SCHEMA_VERSION = 1

Cell = float | None
Row = tuple[Cell, ...]

DESCRIPTIONS: dict[str, str] = {
    "final_average": "mean over the tasks seen so far of the last row of the matrix",
    "average_incremental": "mean over the rows of the mean over the tasks seen by that row",
    "average_right_after_learning": "mean over the tasks of the value in the row right after learning the task",
    "forgetting_from_best_earlier": (
        "mean over all tasks but the last of how much worse the last row is than the best earlier row since the task "
        "was learned; positive = worse (Chaudhry et al. 2018, arXiv 1801.10112)"
    ),
    "forgetting_from_right_after_learning": (
        "mean over all tasks but the last of how much worse the last row is than the row right after learning the "
        "task; positive = worse (the convention of Avalanche)"
    ),
    "backward_transfer_gem": (
        "mean over all tasks but the last of how much better the last row is than the row right after learning the "
        "task; positive = better (GEM, Lopez-Paz and Ranzato 2017, arXiv 1706.08840, section 2)"
    ),
    "forward_transfer_gem": (
        "mean over all tasks but the first of how much better the row before learning the task is than the untrained "
        "model; positive = better (GEM, Lopez-Paz and Ranzato 2017, arXiv 1706.08840, section 2)"
    ),
}
"""One line for each key of [`summary`]: the convention and its source."""

HEADLINE = ("final_average", "forgetting_from_best_earlier", "backward_transfer_gem", "forward_transfer_gem")
"""The four keys of [`summary`] that a screen or a model card shows."""


@dataclass(frozen=True)
class TaskMatrix:
    """
    The value of one metric on every column after training every task.

    `matrix[i][j]` belongs to the model that has learned tasks 0 to i, evaluated on column j; `None` = not evaluated.
    The matrix of a run under way has fewer rows than tasks.

    Args:
        tasks (`Sequence[str]`):
            Names of the tasks, in the order of training.
        columns (`Sequence[str]`):
            Names of what is evaluated: every task, and evaluation-only columns, which no summary counts.
        metric (`str`):
            Name of the metric, such as `"eval_loss"`. The cells have its unit.
        higher_is_better (`bool`):
            `True` for scores, `False` for losses.
        matrix (`Sequence[Sequence[float | None]]`, *optional*, defaults to no rows):
            One row for each task learned so far, one cell for each column.
        baseline (`Sequence[float | None]`, *optional*, defaults to nothing evaluated):
            The untrained model on each column.

    Raises:
        ValueError: names without order or repeated, a task without a column, or rows that do not fit.

    Example:

    ```python
    >>> matrix = TaskMatrix(["a", "b"], ["a", "b"], metric="accuracy", higher_is_better=True)
    >>> matrix = matrix.with_row({"a": 0.9, "b": 0.1}).with_row({"a": 0.7, "b": 0.8})
    >>> matrix.diagonal
    (0.9, 0.8)

    ```
    """

    tasks: Sequence[str]
    columns: Sequence[str]
    metric: str
    higher_is_better: bool
    matrix: Sequence[Sequence[Cell]] = ()
    baseline: Sequence[Cell] = ()

    def __post_init__(self) -> None:
        tasks, columns = _names("tasks", self.tasks), _names("columns", self.columns)
        for task in tasks:
            if task not in columns:
                raise ValueError(f"columns is {list(columns)}: it must hold every task, and {task!r} is missing.")
        if not isinstance(self.metric, str) or not self.metric:
            raise ValueError(f"metric is {self.metric!r}: it must be a name.")
        if not isinstance(self.higher_is_better, bool):
            raise ValueError(f"higher_is_better is {self.higher_is_better!r}: it must be true or false.")
        if len(self.matrix) > len(tasks):
            raise ValueError(
                f"matrix has {len(self.matrix)} rows: it may have at most one for each of {len(tasks)} tasks."
            )
        rows = tuple(_row(f"matrix[{index}]", row, len(columns)) for index, row in enumerate(self.matrix))
        baseline = self.baseline or (None,) * len(columns)
        object.__setattr__(self, "tasks", tasks)
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "matrix", rows)
        object.__setattr__(self, "baseline", _row("baseline", baseline, len(columns)))

    @property
    def diagonal(self) -> Row:
        """The value of each learned task right after learning it."""
        return tuple(row[self.columns.index(task)] for task, row in zip(self.tasks, self.matrix, strict=False))

    @property
    def evaluation_only(self) -> tuple[str, ...]:
        """The columns that are no task."""
        return tuple(column for column in self.columns if column not in self.tasks)

    def with_row(self, values: Mapping[str, Cell]) -> "TaskMatrix":
        """
        The matrix with one more row.

        Args:
            values (`Mapping[str, float | None]`):
                The value on each column after the next task; a column that is missing was not evaluated.

        Raises:
            ValueError: a name that is no column, or a row for more tasks than there are.
        """
        return replace(self, matrix=(*self.matrix, self._cells(values)))

    def to_dict(self) -> dict[str, Any]:
        """The content of `task_matrix.json`: plain Python values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tasks": list(self.tasks),
            "columns": list(self.columns),
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "matrix": [list(row) for row in self.matrix],
            "baseline": list(self.baseline),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TaskMatrix":
        """
        The matrix in the content of a `task_matrix.json`.

        Raises:
            ValueError: another schema version, a missing key, or values that are no task matrix.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"task matrix is of type {type(data).__name__}: it must be a mapping.")
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {data.get('schema_version')!r}: only {SCHEMA_VERSION} can be read.")
        required = ("tasks", "columns", "metric", "higher_is_better", "matrix")
        missing = [key for key in required if key not in data]
        if missing:
            raise ValueError(f"task matrix has the keys {sorted(data)}: {', '.join(missing)} must be among them.")
        if not _is_list(data["matrix"]):
            raise ValueError(f"matrix is {data['matrix']!r}: it must be a list of rows.")
        return cls(**{key: data[key] for key in required}, baseline=data.get("baseline") or ())

    def _cells(self, values: Mapping[str, Cell]) -> Row:
        for name in values:
            if name not in self.columns:
                raise ValueError(f"values has {name!r}: it must name one of the columns {list(self.columns)}.")
        return tuple(values.get(column) for column in self.columns)


def summary(matrix: TaskMatrix) -> dict[str, float | None]:
    """
    The numbers of continual learning on one task matrix, for scores and for losses alike.

    With R the matrix restricted to the T tasks learned so far, s = 1 for scores and s = -1 for losses:

    - `final_average` = mean_j R[T,j]
    - `average_incremental` = mean_i mean_(j <= i) R[i,j]
    - `average_right_after_learning` = mean_j R[j,j]
    - `forgetting_from_best_earlier` = mean_(j < T) max_(j <= i < T) s (R[i,j] - R[T,j])
    - `forgetting_from_right_after_learning` = mean_(j < T) s (R[j,j] - R[T,j])
    - `backward_transfer_gem` = mean_(j < T) s (R[T,j] - R[j,j])
    - `forward_transfer_gem` = mean_(1 < j <= T) s (R[j-1,j] - baseline[j])

    Averages are in the metric's own direction. Positive forgetting always means worse, positive transfer always means
    better. Conventions and sources stand in `DESCRIPTIONS`. Values before a task was learned count in forward transfer
    alone, so forgetting does not depend on whether unseen tasks were evaluated.

    Args:
        matrix ([`TaskMatrix`]):
            The task matrix; evaluation-only columns do not count.

    Returns:
        `dict[str, float | None]`: `None` where a cell that is needed was not evaluated, or where there are too few
        tasks.

    Example:

    ```python
    >>> losses = TaskMatrix(["a", "b"], ["a", "b"], "eval_loss", False, [[1.0, 4.0], [1.5, 2.0]], [5.0, 5.0])
    >>> numbers = summary(losses)
    >>> numbers["forgetting_from_right_after_learning"], numbers["forward_transfer_gem"]
    (0.5, 1.0)

    ```
    """
    places = [matrix.columns.index(task) for task in matrix.tasks[: len(matrix.matrix)]]
    cells = [[row[place] for place in places] for row in matrix.matrix]
    baseline = [matrix.baseline[place] for place in places]
    last, earlier = cells[-1] if cells else [], range(len(cells) - 1)
    sign = 1.0 if matrix.higher_is_better else -1.0
    forgetting = _mean(_gain(cells[task][task], last[task], sign) for task in earlier)
    return {
        "final_average": _mean(last),
        "average_incremental": _mean(_mean(row[: index + 1]) for index, row in enumerate(cells)),
        "average_right_after_learning": _mean(matrix.diagonal),
        "forgetting_from_best_earlier": _mean(
            _largest([_gain(row[task], last[task], sign) for row in cells[task:-1]]) for task in earlier
        ),
        "forgetting_from_right_after_learning": forgetting,
        "backward_transfer_gem": None if forgetting is None else 0.0 - forgetting,
        "forward_transfer_gem": _mean(_gain(cells[task][task + 1], baseline[task + 1], sign) for task in earlier),
    }


def _mean(values: Iterable[Cell]) -> Cell:
    known = list(values)
    numbers = [value for value in known if value is not None]
    return fmean(numbers) if numbers and len(numbers) == len(known) else None


def _gain(value: Cell, reference: Cell, sign: float) -> Cell:
    return None if value is None or reference is None else sign * (value - reference)


def _largest(values: Sequence[Cell]) -> Cell:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return None
    return nan if any(map(isnan, numbers)) else max(numbers)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _names(field: str, value: Sequence[str]) -> tuple[str, ...]:
    if not _is_list(value) or not value or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"{field} is {value!r}: it must be a list of one name or more.")
    if len(set(value)) < len(value):
        raise ValueError(f"{field} is {list(value)}: each name may stand there once.")
    return tuple(value)


def _row(field: str, row: Sequence[Cell], length: int) -> Row:
    if not _is_list(row) or len(row) != length:
        raise ValueError(f"{field} is {row!r}: it must have one cell for each of {length} columns.")
    for cell in row:
        if cell is not None and (isinstance(cell, bool) or not isinstance(cell, (int, float))):
            raise ValueError(f"{field} holds {cell!r}: each cell must be a number, or null where not evaluated.")
    return tuple(None if cell is None else float(cell) for cell in row)
