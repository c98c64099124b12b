"""Several runs side by side, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_infinite_lr.metrics import TaskMatrix
from hf_infinite_lr.plots.curve import literal, shortened
from hf_infinite_lr.plots.figure import new_figure
from hf_infinite_lr.plots.palette import task_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = "osD^vP"


def draw_comparison(matrices: Mapping[str, TaskMatrix]) -> Figure:
    """
    What each run scores at its end (filled) and scored right after learning (hollow), a line for each column.

    Args:
        matrices (`Mapping[str, TaskMatrix]`):
            The matrix of one metric for each run; at least one.

    Returns:
        `matplotlib.figure.Figure`: one panel, in the metric's unit.
    """
    columns = list(dict.fromkeys(column for matrix in matrices.values() for column in matrix.columns))
    heights = [len(columns) - 1 - index for index in range(len(columns))]
    figure = new_figure(8.4, 1.6 + 0.45 * len(columns) + 0.2 * len(matrices))
    axes = figure.add_subplot()
    colours = task_colours(list(matrices))
    for number, (name, matrix) in enumerate(matrices.items()):
        offset = 0.3 * ((len(matrices) - 1) / 2 - number) / max(1, len(matrices) - 1)
        mark: dict[str, Any] = {
            "marker": _MARKS[number % len(_MARKS)],
            "linestyle": "none",
            "color": colours[name],
            "markersize": 7,
        }
        last, learned = final_values(matrix), dict(zip(matrix.tasks, matrix.diagonal, strict=False))
        kinds = ((last, "full", literal(shortened(name, 60))), (learned, "none", "_right after learning"))
        for values, fill, label in kinds:
            points = [
                (values[c], y + offset) for c, y in zip(columns, heights, strict=True) if values.get(c) is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), fillstyle=fill, label=label, zorder=3, **mark)
    axes.set_yticks(heights, [literal(shortened(column, 24)) for column in columns])
    axes.set_ylim(-0.6, len(columns) - 0.4)
    axes.grid(axis="y", color="#DDDDDD")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    first: Sequence[TaskMatrix] = list(matrices.values())
    direction = "higher" if first[0].higher_is_better else "lower"
    label = f"{first[0].metric} ({direction} is better; filled: at the end, hollow: right after learning)"
    axes.set_xlabel(literal(label))
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    return figure


def final_values(matrix: TaskMatrix) -> dict[str, float | None]:
    """The last row by column; empty before the first task was learned."""
    return dict(zip(matrix.columns, matrix.matrix[-1], strict=True)) if matrix.matrix else {}
