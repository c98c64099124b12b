"""The files of one run, read and checked."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_infinite_lr.files import read_json
from hf_infinite_lr.manifest import STATE
from hf_infinite_lr.metrics import TaskMatrix
from hf_infinite_lr.plots import Curve, Part, Span
from hf_infinite_lr.schedules import DEFAULT_TIMESCALE, Phase

MATRIX_FILE = "task_matrix.json"
TRAINER_FILE = "trainer_state.json"
REPRESENTATIONS_FILE = "representations.json"

_REQUIRED = ("schedule", "tasks", "global_step", "status")
_REQUIRED_OF_TASK = ("name", "start_step", "end_step")
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Run:
    """
    A run as its `output_dir` tells it; a run under way tells what there is so far.

    Args:
        path (`Path`):
            The `output_dir`.
        state (`Mapping[str, Any]`):
            The content of `continual_state.json`.
        matrices (`Sequence[TaskMatrix]`):
            The task matrices, the primary metric's first; none where nothing was evaluated.
        log_history (`Sequence[Mapping[str, Any]]`):
            The log entries of Trainer.
        representations (`Mapping[str, Any]`, *optional*, defaults to none):
            The content of `representations.json`: how alike the releases are on each column.
    """

    path: Path
    state: Mapping[str, Any]
    matrices: Sequence[TaskMatrix]
    log_history: Sequence[Mapping[str, Any]]
    representations: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> Sequence[Mapping[str, Any]]:
        """What `continual_state.json` says of each task."""
        tasks: Sequence[Mapping[str, Any]] = self.state["tasks"]
        return tasks

    @property
    def shown_matrix(self) -> TaskMatrix | None:
        """The matrix that a screen shows: of the metric that has reference values, else the primary one."""
        compared = {reference.get("metric") for reference in self.state.get("references", {}).values()}
        for matrix in self.matrices:
            if matrix.metric in compared:
                return matrix
        return self.matrices[0] if self.matrices else None

    def unit(self, metric: str) -> str:
        """The unit of a metric, empty if unknown."""
        return self.state.get("units", {}).get(metric) or ""

    def references(self, matrix: TaskMatrix) -> dict[str, Mapping[str, float | None]]:
        """Reference rows of a matrix: the values of each by column."""
        rows = self.state.get("references", {}).items()
        known = {
            name.replace("_", " "): row["values"]
            for name, row in rows
            if row.get("metric", matrix.metric) == matrix.metric
        }
        learned = dict(zip(matrix.tasks, matrix.diagonal, strict=False))
        return {"right after learning": learned, **known} if learned else known

    def spans(self) -> list[Span]:
        """The tasks on the axis of global steps, up to the next task's first step."""
        stops = [task["start_step"] for task in self.tasks[1:]]
        stops += [task.get("next_start_step") or task["end_step"] for task in self.tasks[-1:]]
        return [Span(task["name"], task["start_step"], stop) for task, stop in zip(self.tasks, stops, strict=True)]

    def curve(self) -> Curve | None:
        """The learning rate: of the stored phases, else as it was logged; `None` where neither is there."""
        schedule = self.state["schedule"]
        timescale = schedule.get("arguments", {}).get("timescale", DEFAULT_TIMESCALE)
        parts = []
        for phase in schedule.get("phases") or ():
            start = phase["start_step"]
            stop = phase["end_step"] or max(self.state["global_step"], start + 1)
            values = (phase["start_rate"], phase["end_rate"])
            shape = Phase(
                phase["name"],
                phase["task"],
                stop - start,
                *values,
                phase["shape"],
                phase.get("timescale", timescale),
                phase.get("floor_rate"),
            )
            parts.append(Part(phase["name"], phase["task"], start, stop, _shifted(shape, start)))
        if not parts:
            logged = [
                (entry["step"], entry["learning_rate"]) for entry in self.log_history if "learning_rate" in entry
            ]
            if len(logged) > 1:
                parts.append(Part(schedule["name"], 0, logged[0][0], logged[-1][0], _interpolated(logged)))
        settings = self.state.get("settings") or {}
        has_trunk = settings.get("rewind") != "none" and "gdumb" not in (settings.get("methods") or {})
        return Curve(parts, self.spans(), has_trunk) if parts else None

    def training_losses(self) -> list[tuple[int, float]]:
        """The logged training losses as `(step, loss)`."""
        return [(entry["step"], entry["loss"]) for entry in self.log_history if "loss" in entry]

    def evaluations(self, matrix: TaskMatrix) -> dict[str, list[tuple[int, float]]]:
        """For each column the values of a metric as `(step, value)`: from the matrix, and logged in between."""
        ends = [0, *(task["end_step"] for task in self.tasks)]
        own_rows = matrix.matrix[len(matrix.tasks) - len(self.tasks) :]  # joint training has one task for all rows
        points = {}
        for place, column in enumerate(matrix.columns):
            rows = (matrix.baseline, *own_rows)
            found = {step: row[place] for step, row in zip(ends, rows, strict=False)}
            key = f"eval_{column}_{matrix.metric.removeprefix('eval_')}"
            found |= {entry["step"]: entry[key] for entry in self.log_history if key in entry}
            points[column] = [(step, value) for step, value in sorted(found.items()) if value is not None]
        return points

    def spent(self, kind: str) -> Mapping[str, int]:
        """`spent` and `on_path` of `updates`, `samples` or `tokens` at the newest task's end; empty before it."""
        counts = [task[kind] for task in self.tasks if self.has_ended(task) and task.get(kind)]
        return counts[-1] if counts else {}

    def has_ended(self, task: Mapping[str, Any]) -> bool:
        """Whether a task's last step is done; the file also holds what is planned for the others."""
        return bool(task["end_step"] <= self.state["global_step"])


def read_run(path: str | os.PathLike[str]) -> Run:
    """
    Read the `output_dir` of a run of `ContinualTrainer` or `hf-infinite-lr train`.

    Args:
        path (`str` or `os.PathLike`):
            The folder.

    Raises:
        ValueError: no such run, or a file that is missing, cut off or of another version.
    """
    folder = Path(path)
    if not (folder / STATE).is_file():
        raise ValueError(f"{folder} has no {STATE}: it must be the output_dir of a continual run.")
    state = _mapping_of(folder / STATE)
    if state.get("schema_version") != _SCHEMA_VERSION:
        raise ValueError(
            f"{folder / STATE} has schema_version {state.get('schema_version')!r}: only {_SCHEMA_VERSION} can be read."
        )
    missing = [key for key in _REQUIRED if key not in state]
    if missing:
        raise ValueError(f"{folder / STATE} lacks {', '.join(missing)}: it is not whole.")
    for task in state["tasks"]:
        lacking = [key for key in _REQUIRED_OF_TASK if key not in task]
        if lacking:
            raise ValueError(f"{folder / STATE} has a task without {', '.join(lacking)}: it is not whole.")
    others = sorted(set(folder.glob("task_matrix.*.json")))
    primary = [folder / MATRIX_FILE] if (folder / MATRIX_FILE).exists() else []
    matrices = known_matrices(map(_read_matrix, [*primary, *others]))
    similar = folder / REPRESENTATIONS_FILE
    return Run(folder, state, matrices, _read_history(folder), _mapping_of(similar) if similar.is_file() else {})


def known_matrices(matrices: Iterable[TaskMatrix]) -> tuple[TaskMatrix, ...]:
    """The matrices in which anything was evaluated."""
    return tuple(matrix for matrix in matrices if _is_known(matrix))


def _mapping_of(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}: it must hold a mapping.")
    return content


def _read_matrix(file: Path) -> TaskMatrix:
    content = _mapping_of(file)
    try:
        return TaskMatrix.from_dict(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _is_known(matrix: TaskMatrix) -> bool:
    return any(cell is not None for row in (matrix.baseline, *matrix.matrix) for cell in row)


def _read_history(folder: Path) -> Sequence[Mapping[str, Any]]:
    """The log of the run; while it goes on, of its newest checkpoint."""
    files = [folder / TRAINER_FILE, *_newest_first(folder.glob(f"checkpoint-*/{TRAINER_FILE}"))]
    for file in files:
        if file.is_file():
            history: Sequence[Mapping[str, Any]] = _mapping_of(file).get("log_history", [])
            return history
    return []


def _newest_first(files: Iterable[Path]) -> list[Path]:
    numbered = [file for file in files if file.parent.name.removeprefix("checkpoint-").isdigit()]
    return sorted(numbered, key=lambda file: -int(file.parent.name.removeprefix("checkpoint-")))


def _shifted(phase: Phase, start: int) -> Callable[[int], float]:
    return lambda step: phase(step - start)


def _interpolated(points: Sequence[tuple[int, float]]) -> Callable[[int], float]:
    """Straight lines between logged rates."""
    steps = [step for step, _ in points]

    def rate(step: int) -> float:
        index = min(max(bisect_right(steps, step), 1), len(points) - 1)
        (first, before), (last, after) = points[index - 1], points[index]
        return before + (after - before) * (step - first) / max(1, last - first)

    return rate
