"""The stability gap: how far a loss on old tasks rises after a task switch, and for how long."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

BACK_WITHIN = 0.01
"""A loss is back when it is at most this share above what it was at the end of the task before."""

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class StabilityGap:
    """
    The rise and fall of the loss on one old task while another is learned (Guo et al. 2024, arXiv 2406.14833).

    Args:
        task (`str`):
            The task that is learned.
        old_task (`str`):
            The earlier task that is evaluated.
        loss_before (`float`):
            Loss on the old task at the end of the task before `task`: of its release, where there is a branch.
        depth (`float`):
            The largest loss on the old task evaluated in `task`, minus `loss_before`. Negative if it only fell.
        length (`int`, *optional*):
            Steps from the start of `task` to the first evaluation that finds the loss back within 1 % of
            `loss_before`, after the first one that found it above; 0 if none did; `None` if it did not come back.
    """

    task: str
    old_task: str
    loss_before: float
    depth: float
    length: int | None


def stability_gaps(
    tasks: Sequence[tuple[str, int, int]], evaluations: Mapping[str, Points]
) -> list[dict[str, Any]] | None:
    """
    The gap of every task on every earlier one, as far as evaluations tell.

    Args:
        tasks (`Sequence[tuple[str, int, int]]`):
            Name, first and last global step of each task, in order; `(name, 0, 10)` are the updates 1 to 10.
        evaluations (`Mapping[str, Sequence[tuple[int, float]]]`):
            For each evaluated task the losses as `(global step, loss)`, in order.

    Returns:
        `list[dict]` of the fields of [`StabilityGap`]; `None` if no old task was evaluated inside a later one.

    Example:

    ```python
    >>> losses = [(10, 1.0), (12, 1.5), (14, 1.2), (16, 1.005), (20, 0.9)]
    >>> stability_gaps([("a", 0, 10), ("b", 10, 20)], {"a": losses})
    [{'task': 'b', 'old_task': 'a', 'loss_before': 1.0, 'depth': 0.5, 'length': 6}]

    ```
    """
    steps = sorted({step for points in evaluations.values() for step, _ in points})
    gaps = []
    for index, (task, start, end) in enumerate(tasks):
        first = bisect_right(steps, start)
        if index and first < len(steps) and steps[first] < end:
            gaps += [_gap(task, old, start, end, tasks[index - 1][2], evaluations) for old, *_ in tasks[:index]]
    return [asdict(gap) for gap in gaps if gap is not None] or None


def _gap(
    task: str, old: str, start: int, end: int, end_before: int, evaluations: Mapping[str, Points]
) -> StabilityGap | None:
    """The gap on one old task; `None` where it was not evaluated both at the start and inside of the task."""
    points = evaluations.get(old, ())
    inside = points[bisect_right(points, start, key=_step) : bisect_right(points, end, key=_step)]
    if not inside or inside[0][0] == end:
        return None
    at_start = points[bisect_left(points, end_before, key=_step)]
    if at_start[0] != end_before:
        return None
    before = at_start[1]
    return StabilityGap(task, old, before, max(loss for _, loss in inside) - before, _length(before, start, inside))


def _step(point: tuple[int, float]) -> int:
    return point[0]


def _length(before: float, start: int, inside: Points) -> int | None:
    above = [loss > before + BACK_WITHIN * abs(before) for _, loss in inside]
    if not any(above):
        return 0
    since = above.index(True)
    back = (step for (step, _), high in zip(inside[since:], above[since:], strict=True) if not high)
    return next((step - start for step in back), None)
