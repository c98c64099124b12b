"""A learning rate over global steps, cut into named parts: what every picture of a schedule is drawn from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hf_infinite_lr.schedules import Schedule

BRANCH = "anneal"


@dataclass(frozen=True)
class Part:
    """
    One phase of a curve.

    Args:
        phase (`str`):
            Name of the phase.
        task (`int`):
            Index of its task.
        start (`int`):
            Its first global step.
        stop (`int`):
            The first global step after it.
        rate (`Callable[[int], float]`):
            The learning rate at a global step of `[start, stop]`; at `stop` the value that the phase arrives at.
    """

    phase: str
    task: int
    start: int
    stop: int
    rate: Callable[[int], float]

    def samples(self, count: int) -> list[tuple[int, float]]:
        """At most `count` + 1 points `(step, rate)` of the part, both ends among them."""
        length = self.stop - self.start
        count = max(1, min(count, length))
        steps = [self.start + length * index // count for index in range(count + 1)]
        return [(step, self.rate(step)) for step in steps]


@dataclass(frozen=True)
class Span:
    """A task on the axis of global steps: `[start, stop)`."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Curve:
    """
    A learning rate over the global steps of a whole run.

    Args:
        parts (`Sequence[Part]`):
            The phases in order.
        tasks (`Sequence[Span]`):
            The tasks in order.
        has_trunk (`bool`, *optional*, defaults to `True`):
            Whether a trunk waits while a branch anneals; not so where the next task begins with other weights.
    """

    parts: Sequence[Part]
    tasks: Sequence[Span]
    has_trunk: bool = True

    @property
    def num_steps(self) -> int:
        """Steps of the axis."""
        return max(part.stop for part in self.parts)

    @property
    def peak(self) -> float:
        """The highest rate of the picture."""
        count = max(8, 1000 // len(self.parts))
        return max(rate for part in self.parts for _, rate in part.samples(count))

    @property
    def branches(self) -> list[Part]:
        """The parts that anneal: side branches of the trunk."""
        return [part for part in self.parts if part.phase == BRANCH]


def curve_of_schedule(
    schedule: Schedule, learning_rate: float, task_names: Sequence[str] | None = None, *, has_trunk: bool = True
) -> Curve:
    """
    The curve of a schedule.

    Args:
        schedule ([`Schedule`]):
            The schedule. An open end is drawn a quarter as long as everything before it.
        learning_rate (`float`):
            The peak, by which the factors of the schedule are multiplied.
        task_names (`Sequence[str]`, *optional*, defaults to `"task 1"`, `"task 2"` and so on):
            Names of the tasks.
        has_trunk (`bool`, *optional*, defaults to `True`):
            As in [`Curve`].
    """
    parts = list(_parts(schedule, learning_rate))
    tasks = sorted({part.task for part in parts})
    names = task_names or [f"task {task + 1}" for task in tasks]
    spans = []
    for task in tasks:
        own = [part for part in parts if part.task == task]
        spans.append(Span(names[task], own[0].start, own[-1].stop))
    return Curve(tuple(parts), tuple(spans), has_trunk)


def _parts(schedule: Schedule, learning_rate: float) -> Iterator[Part]:
    start = 0
    for phase in schedule.phases:
        stop = start + (max(1, start // 4) if phase.num_steps is None else phase.num_steps)
        if stop > start:
            yield Part(phase.name, phase.task, start, stop, _absolute(phase, start, learning_rate))
        start = stop


def _absolute(phase: Callable[[int], float], start: int, learning_rate: float) -> Callable[[int], float]:
    return lambda step: learning_rate * phase(step - start)


def fitting_labels(tasks: Sequence[Span], num_steps: int, columns: int) -> list[str]:
    """
    The name of each task, cut to the width that the task has on an axis of `columns` characters.

    Where names have no room, every n-th task gets its number, so that a picture of 50 tasks stays readable.
    """
    widths = [int((task.stop - task.start) * columns / num_steps) - 1 for task in tasks]
    if tasks and max(widths) < 3:
        every = -(-5 * len(tasks) // columns)
        return [str(index + 1) if index % every == 0 else "" for index in range(len(tasks))]
    return [shortened(task.name, width) for task, width in zip(tasks, widths, strict=True)]


def literal(text: str) -> str:
    """A text that matplotlib shows as it is, and not as a formula between dollar signs."""
    return text.replace("$", r"\$")


def shortened(name: str, width: int) -> str:
    """The name, or what of it fits in `width` characters."""
    if len(name) <= width:
        return name
    return name[: width - 1] + "…" if width >= 2 else ""
