"""One run for the terminal."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_infinite_lr.metrics import HEADLINE, TaskMatrix, summary
from hf_infinite_lr.report.run import Run, read_run
from hf_infinite_lr.report.table import aligned, number

_WIDTH = 110

SHORT = {
    "final_average": "final average over tasks",
    "average_incremental": "average incremental",
    "average_right_after_learning": "average right after learning",
    "forgetting_from_best_earlier": "forgetting, from the best earlier value",
    "forgetting_from_right_after_learning": "forgetting, from right after learning",
    "backward_transfer_gem": "backward transfer (GEM)",
    "forward_transfer_gem": "forward transfer (GEM)",
}
"""A name for a reader for each key of a summary."""


def render_screen(run: Run | str | os.PathLike[str]) -> str:
    """
    The readable end of a run: its task matrix with reference rows, four numbers, and where everything lies.

    Args:
        run ([`Run`], `str` or `os.PathLike`):
            The run or its `output_dir`.

    Returns:
        `str`: lines of text; a matrix that is too wide for a terminal is turned to one line for each column.

    Raises:
        ValueError: no run lies there, or its files are not whole.
    """
    if not isinstance(run, Run):
        run = read_run(run)
    matrix = run.shown_matrix
    blocks = [status_line(run, str(run.path))]
    if matrix is None:
        blocks.append("Nothing was evaluated: there is no task matrix.")
    else:
        blocks.append(f"{metric_line(run, matrix)}; row = after training a task, column = evaluated on")
        table = aligned(matrix_rows(run, matrix))
        if max(map(len, table.splitlines())) > _WIDTH:
            table = aligned(_turned_rows(run, matrix))
        blocks.append(table)
        blocks.append(aligned(_headline_rows(summary(matrix))))
    if gaps := run.state.get("stability_gap"):
        blocks.append(_gap_line(max(gaps, key=lambda gap: gap["depth"])))
    places = _places(run)
    if places:
        blocks.append("\n".join(places))
    return "\n\n".join(blocks)


def status_line(run: Run, name: str) -> str:
    """What the run is, in one sentence that begins with a name for it."""
    schedule, learned = run.state["schedule"], sum(bool(task.get("release")) for task in run.tasks)
    rate = f" at learning rate {schedule['learning_rate']:g}" if "learning_rate" in schedule else ""
    total = run.state.get("num_steps")
    steps = f"step {run.state['global_step']}" + (f" of {total}" if total else "")
    word = "finished" if run.state["status"] == "finished" else "not finished"
    return f"{name}: {schedule['name']}{rate}, {word}, {steps}, {learned} of {len(run.tasks)} tasks released."


def metric_line(run: Run, matrix: TaskMatrix) -> str:
    """A metric with its unit and direction."""
    unit = run.unit(matrix.metric)
    unit = f" in {unit}" if unit and unit.replace(" ", "_") != matrix.metric else ""
    return f"{matrix.metric}{unit} ({'higher' if matrix.higher_is_better else 'lower'} is better)"


def matrix_rows(run: Run, matrix: TaskMatrix) -> list[list[str]]:
    """The matrix as rows of cells, evaluation-only columns last, the untrained model first, reference rows last."""
    columns = [*matrix.tasks, *matrix.evaluation_only]
    head = ["", *matrix.tasks, *(f"({column})" for column in matrix.evaluation_only)]
    lines: list[tuple[str, Mapping[str, float | None]]] = []
    if any(value is not None for value in matrix.baseline):
        lines.append(("untrained", dict(zip(matrix.columns, matrix.baseline, strict=True))))
    for task, row in zip(matrix.tasks, matrix.matrix, strict=False):
        lines.append((f"after {task}", dict(zip(matrix.columns, row, strict=True))))
    lines += run.references(matrix).items()
    return [head, *([name, *(number(values.get(column)) for column in columns)] for name, values in lines)]


def _turned_rows(run: Run, matrix: TaskMatrix) -> list[list[str]]:
    last = f"after {matrix.tasks[len(matrix.matrix) - 1]}" if matrix.matrix else "untrained"
    wanted = ["", "untrained", last, *run.references(matrix)]
    rows = [row for row in matrix_rows(run, matrix) if row[0] in wanted]
    return [["evaluated on", *(row[0] for row in rows[1:])], *map(list, list(zip(*rows, strict=True))[1:])]


def _headline_rows(numbers: Mapping[str, float | None]) -> list[list[str]]:
    senses = {"forgetting": "positive = worse", "transfer": "positive = better"}
    rows = []
    for key in HEADLINE:
        sense = next((text for word, text in senses.items() if word in key), "")
        rows.append([f"{SHORT[key]}{f' ({sense})' if sense else ''}", number(numbers[key])])
    return rows


def _gap_line(gap: Mapping[str, Any]) -> str:
    back = "not back by its end" if gap["length"] is None else f"back within 1 % after {gap['length']} steps"
    where = f"in the loss on {gap['old_task']} while learning {gap['task']}"
    return f"largest stability gap: {gap['depth']:+.3f} {where}, {back}"


def _places(run: Run) -> list[str]:
    rows: list[tuple[str, Path]] = []
    for task in run.tasks:
        for kind in ("trunk", "release"):
            if task.get(kind):
                rows.append((f"{kind} of {task['name']}", run.path / task[kind]))
    if (run.path / "report").is_dir():
        rows.append(("report and pictures", run.path / "report"))
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name:<{width}}  {path}" for name, path in rows]
