"""A task matrix as a heat map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hf_infinite_lr.metrics import TaskMatrix
from hf_infinite_lr.plots.curve import literal, shortened
from hf_infinite_lr.plots.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

_GAP = 0.25
"""Room between the tasks and what is set apart from them, in cells."""


def draw_task_matrix(matrix: TaskMatrix, *, title: str = "") -> Figure:
    """
    A task matrix: row = after training a task, column = evaluated on, dark = worse, hatched = not evaluated.

    The untrained model's row and the evaluation-only columns are set apart; the frame marks the values right after
    learning.

    Args:
        matrix ([`TaskMatrix`]):
            What to draw.
        title (`str`, *optional*, defaults to the metric and its direction):
            Title of the picture.

    Returns:
        `matplotlib.figure.Figure`: a figure that grows with the matrix.
    """
    import matplotlib
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    columns = [*matrix.tasks, *matrix.evaluation_only]
    places = [matrix.columns.index(column) for column in columns]
    rows = [
        ("untrained", matrix.baseline),
        *((f"after {t}", r) for t, r in zip(matrix.tasks, matrix.matrix, strict=False)),
    ]
    labels = [literal(shortened(column, 16)) for column in columns]
    names = [literal(shortened(name, 32)) for name, _ in rows]
    many = len(columns) > 16
    cell = (0.46, 0.3) if many else (max(0.75, 0.085 * max(map(len, labels)) + 0.1), 0.45)
    room = 0.09 * max(map(len, names)) + 0.3
    width = max(5.2, room + 1.3 + cell[0] * (len(columns) + _GAP))
    figure = new_figure(width, 1.25 + cell[1] * (len(rows) + _GAP) + many * 0.8)
    axes = figure.add_subplot()
    known = [v for _, row in rows for v in row if v is not None and math.isfinite(v)]
    scale = Normalize(min(known, default=0.0), max(known, default=1.0))
    colours = matplotlib.colormaps["cividis" if matrix.higher_is_better else "cividis_r"]
    lefts = [index + _GAP * (index >= len(matrix.tasks)) for index in range(len(columns))]
    tops = [index + _GAP * (index > 0) for index in range(len(rows))]
    for top, (_, row) in zip(tops, rows, strict=True):
        for left, place in zip(lefts, places, strict=True):
            _draw_cell(axes, left, top, row[place], scale, colours, 6.5 if many else 9)
    for index in range(len(matrix.matrix)):
        frame = Rectangle((lefts[index], tops[index + 1]), 1, 1, fill=False, edgecolor="#D55E00", linewidth=1.8)
        axes.add_patch(frame)
    axes.set_xticks(
        [left + 0.5 for left in lefts], labels, rotation=60 if many else 0, ha="right" if many else "center"
    )
    axes.set_yticks([top + 0.5 for top in tops], names)
    axes.tick_params(length=0, labelsize=8 if many else 9)
    axes.set_xlim(0, lefts[-1] + 1)
    axes.set_ylim(tops[-1] + 1, 0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("evaluated on (orange frame: right after learning; hatched: not evaluated)", fontsize=8)
    direction = "higher" if matrix.higher_is_better else "lower"
    axes.set_title(literal(title or f"{matrix.metric} ({direction} is better)"), fontsize=11)
    return figure


def _draw_cell(
    axes: Axes, left: float, top: float, value: float | None, scale: Normalize, colours: Colormap, fontsize: float
) -> None:
    from matplotlib.patches import Rectangle

    if value is None:
        axes.add_patch(Rectangle((left, top), 1, 1, facecolor="white", edgecolor="#AAAAAA", hatch="///", linewidth=0))
        return
    colour = colours(scale(value)) if math.isfinite(value) else (1.0, 1.0, 1.0, 1.0)
    axes.add_patch(Rectangle((left, top), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
    ink = "black" if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5 else "white"
    text = axes.text(left + 0.5, top + 0.5, f"{value:.3g}", ha="center", va="center", fontsize=fontsize, color=ink)
    # Thousands of cells lie inside the axes anyway; measuring them for the layout takes seconds.
    text.set_in_layout(False)
