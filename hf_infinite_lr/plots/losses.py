"""The loss of every task over the steps of a run, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from hf_infinite_lr.plots.curve import Span, literal
from hf_infinite_lr.plots.figure import new_figure
from hf_infinite_lr.plots.palette import GREY, task_colours
from hf_infinite_lr.plots.rates import draw_tasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]
_LEGEND = 12


def draw_losses(
    training: Points,
    evaluations: Mapping[str, Points],
    tasks: Sequence[Span],
    *,
    evaluation_label: str = "eval loss",
) -> Figure:
    """
    Training loss, and what each column scores, over global steps.

    Args:
        training (`Sequence[tuple[int, float]]`):
            Logged training losses as `(step, loss)`.
        evaluations (`Mapping[str, Sequence[tuple[int, float]]]`):
            For each column the values `(step, value)`; columns that are no task are drawn dashed.
        tasks (`Sequence[Span]`):
            The tasks on the axis of steps.
        evaluation_label (`str`, *optional*, defaults to `"eval loss"`):
            Name and unit of the values.

    Returns:
        `matplotlib.figure.Figure`: one panel for the evaluations, and one for the training loss below it.
    """
    from matplotlib.ticker import EngFormatter

    last = max([*(span.stop for span in tasks), *(step for step, _ in training), 1])
    figure = new_figure(9.6, 6.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    draw_tasks(upper, tasks, last, columns=72)
    draw_tasks(lower, tasks, last, columns=0)
    names = [span.name for span in tasks]
    colours = task_colours(names)
    marker = "o" if len(evaluations) <= _LEGEND else ""
    for column, points in evaluations.items():
        if points:
            style = "-" if column in colours else "--"
            mark: dict[str, Any] = {"marker": marker, "markersize": 3.5, "color": colours.get(column, "#555555")}
            upper.plot(*zip(*points, strict=True), style, label=literal(column), clip_on=False, **mark)
    if training:
        lower.plot(*zip(*training, strict=True), color=GREY, linewidth=1.2)
    upper.set_ylabel(literal(fill(evaluation_label, 34)))
    lower.set_ylabel("training loss")
    lower.set_xlabel("global step")
    lower.set_xlim(0, last)
    lower.xaxis.set_major_formatter(EngFormatter(sep=""))
    _draw_key(figure, len(evaluations), names, list(colours.values()))
    return figure


def _draw_key(figure: Figure, num_columns: int, names: Sequence[str], colours: Sequence[str]) -> None:
    upper = figure.axes[0]
    if num_columns <= _LEGEND:
        if num_columns:
            upper.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
        return
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    mapping = ScalarMappable(Normalize(0.5, len(names) + 0.5), ListedColormap(list(colours)))
    bar = figure.colorbar(mapping, ax=upper, label="task", pad=0.01)
    bar.locator = MaxNLocator(8, integer=True)
    bar.update_ticks()
