"""The learning rate as a figure: a trunk and its branches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_infinite_lr.announcement import format_rate
from hf_infinite_lr.plots.curve import Curve, Span, curve_of_schedule, fitting_labels, literal
from hf_infinite_lr.plots.figure import new_figure
from hf_infinite_lr.plots.palette import PALE, PHASE_NAMES, PHASES, PURPLE
from hf_infinite_lr.schedules import cosine_rewarm, infinite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SAMPLES = 200
_MANY = 20
"""With more tasks than this, a mark on every branch would hide the curve."""


def draw_learning_rate(curve: Curve, *, title: str = "") -> Figure:
    """
    The learning rate over global steps.

    Phases are coloured, each branch drops from the trunk, which goes on above it as a dotted line (where there is
    one), and tasks are bands with their names.

    Args:
        curve ([`Curve`]):
            What to draw.
        title (`str`, *optional*, defaults to none):
            Title of the picture.

    Returns:
        `matplotlib.figure.Figure`: a figure that belongs to no window and no pyplot state.

    Example:

    ```python
    >>> from hf_infinite_lr.plots import Curve, Part, Span
    >>> flat = Curve([Part("constant", 0, 0, 100, lambda step: 1e-3)], [Span("web", 0, 100)])
    >>> [line.get_label() for line in draw_learning_rate(flat).axes[0].lines]
    ['constant (trunk)']

    ```
    """
    from matplotlib.ticker import EngFormatter

    figure = new_figure(9.6, 4.2)
    axes = figure.add_subplot()
    draw_tasks(axes, curve.tasks, curve.num_steps)
    _draw_curve(axes, curve)
    axes.set_xlim(0, curve.num_steps)
    axes.set_xlabel("global step")
    axes.set_ylabel("learning rate")
    axes.yaxis.set_major_formatter(lambda rate, _: format_rate(rate))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    if title:
        figure.suptitle(literal(title), fontsize=11)
    return figure


def draw_tasks(axes: Axes, tasks: Sequence[Span], num_steps: int, *, columns: int = 92) -> None:
    """Draw the tasks as bands behind an axis of global steps, with their names above it in `columns` characters."""
    labels = fitting_labels(tasks, num_steps, columns) if columns else [""] * len(tasks)
    for index, (task, label) in enumerate(zip(tasks, labels, strict=True)):
        if index % 2 == 0:
            axes.axvspan(task.start, task.stop, color=PALE, linewidth=0, zorder=0)
        if index and len(tasks) <= 2 * _MANY:
            axes.axvline(task.start, color="#BBBBBB", linewidth=0.8, zorder=1, label="_boundary")
        axes.annotate(
            literal(label),
            ((task.start + task.stop) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color="#333333",
        )
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    for phase in dict.fromkeys(part.phase for part in curve.parts):
        steps: list[float] = []
        rates: list[float] = []
        for part in curve.parts:
            if part.phase == phase:
                points = part.samples(_SAMPLES)
                steps += [*(step for step, _ in points), math.nan]
                rates += [*(rate for _, rate in points), math.nan]
        label = PHASE_NAMES.get(phase, phase)
        axes.plot(steps, rates, color=PHASES.get(phase, PURPLE), linewidth=2.2, label=label, zorder=4)
    _draw_branches(axes, curve)
    axes.set_ylim(0, 1.08 * curve.peak)


def _draw_branches(axes: Axes, curve: Curve) -> None:
    if not curve.branches:
        return
    steps: list[float] = []
    rates: list[float] = []
    for branch in curve.branches:
        rate = branch.rate(branch.start)
        steps += [branch.start, branch.stop, math.nan]
        rates += [rate, rate, math.nan]
    if curve.has_trunk:
        axes.plot(steps, rates, color=PHASES["constant"], linewidth=1.4, linestyle=":", label="trunk waits", zorder=3)
    if len(curve.branches) > _MANY:
        return
    begins = [(branch.start, branch.rate(branch.start)) for branch in curve.branches]
    ends = [(branch.stop, branch.rate(branch.stop)) for branch in curve.branches]
    mark: dict[str, Any] = {"linestyle": "none", "clip_on": False, "zorder": 5, "markersize": 6}
    if curve.has_trunk:
        axes.plot(*zip(*begins, strict=True), marker="o", color=PHASES["constant"], label="trunk checkpoint", **mark)
    axes.plot(*zip(*ends, strict=True), marker="s", color=PHASES["anneal"], label="release", **mark)


def draw_hero() -> Figure:
    """The picture of the README: a trunk with three branches, above the same three tasks by repeated cosine decay."""
    lengths, names = [1000, 1000, 1000], ["dataset A", "dataset B", "dataset C"]
    trunk = infinite(
        lengths,
        num_warmup_steps=60,
        num_cooldown_steps=400,
        anneal_steps=[220, 220, 220],
        constant_ratio=0.6,
        min_ratio=0.05,
        cooldown_type="cosine",
        timescale=10,
        anneal_type="exponential",
    )
    rival = cosine_rewarm(lengths, warmup_steps=[60, 60, 60], peak_ratios=[1.0, 1.0, 1.0], min_ratio=0.05)
    figure = new_figure(9.6, 4.9)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, schedule, text in (
        (upper, trunk, "infinite: the trunk stays constant and never starts over; each release is a side branch"),
        (lower, rival, "repeated cosine: every new dataset begins by re-warming a decayed model"),
    ):
        curve = curve_of_schedule(schedule, 1.0, names)
        draw_tasks(axes, curve.tasks if axes is upper else (), curve.num_steps)
        _draw_curve(axes, curve)
        axes.set_yticks([])
        axes.set_xticks([])
        axes.set_ylim(0, 1.1)
        axes.set_xlim(0, 1.07 * curve.num_steps)
        axes.set_ylabel("learning rate", fontsize=9)
        axes.set_title(text, fontsize=10, loc="left", pad=19 if axes is upper else 5)
    for axes in (upper, lower):
        for start in (1000, 2000, 3000):
            axes.axvline(start, color="#BBBBBB", linewidth=0.8, zorder=1)
    constant = trunk(700)
    upper.annotate(
        "", (3200, constant), xytext=(3000, constant), arrowprops={"arrowstyle": "->", "color": PHASES["constant"]}
    )
    upper.text(3100, constant + 0.06, "goes on", fontsize=9, ha="center", color=PHASES["constant"])
    lower.set_xlabel("step")
    handles = {
        label: line for axes in (upper, lower) for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
