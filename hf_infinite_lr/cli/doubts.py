"""What is legal about a schedule and yet doubtful: what a careful user would look at again."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hf_infinite_lr.schedules import REWARM_DECAYS, Schedule


@dataclass(frozen=True)
class TaskSteps:
    """How a task spends its steps.

    Args:
        name (`str`):
            Name of the task.
        length (`int`):
            Steps of the task.
        anneal (`int`):
            Steps of annealing.
        constant (`int`):
            Steps at the constant.
        rewarm (`int`):
            Steps of warm-up, if the task is a later one.
        decay (`int`):
            Steps of the decay behind a warm-up, where tasks re-warm.
        flat (`bool`):
            Annealing ends at the rate where it begins.
    """

    name: str
    length: int
    anneal: int
    constant: int
    rewarm: int
    decay: int
    flat: bool


class _Doubt(NamedTuple):
    sentence: str
    steps: Callable[[TaskSteps], int]
    holds: Callable[[TaskSteps], bool]


_DOUBTS = (
    _Doubt(
        "The annealing is under 1 % of its task",
        lambda task: task.anneal,
        lambda task: 0 < task.anneal < 0.01 * task.length,
    ),
    _Doubt(
        "The annealing ends at the rate where it begins, so a release is no better than the trunk",
        lambda task: task.anneal,
        lambda task: task.flat,
    ),
    _Doubt(
        "The annealing takes more than half of its task",
        lambda task: task.anneal,
        lambda task: task.anneal > 0.5 * task.length,
    ),
    _Doubt(
        "The annealing leaves no step at the constant, so the trunk hardly learns from the task",
        lambda task: task.anneal,
        lambda task: task.anneal > 0 and not task.constant,
    ),
    _Doubt(
        "The task is no longer than its re-warm-up, so its rate only rises and never decays",
        lambda task: task.rewarm,
        lambda task: 0 < task.length <= task.rewarm,
    ),
    _Doubt(
        "The re-warm-up takes more than half of its task",
        lambda task: task.rewarm,
        lambda task: task.decay > 0 and task.rewarm > 0.5 * task.length,
    ),
)


def doubts(schedule: Schedule, tasks: Mapping[str, int], max_steps: int | None = None) -> list[str]:
    """Return what a run would accept and a careful user would look at again, one sentence each.

    Args:
        schedule ([`~hf_infinite_lr.schedules.Schedule`]):
            The schedule of the run.
        tasks (`Mapping[str, int]`):
            Names of the tasks and their steps.
        max_steps (`int`, *optional*):
            Where a plain run stops.

    Returns:
        `list[str]`: empty when nothing is doubtful.

    >>> from hf_infinite_lr.schedules import cosine_rewarm
    >>> schedule = cosine_rewarm([100, 10], warmup_steps=[5, 8], peak_ratios=[1.0, 1.0], min_ratio=0.1)
    >>> doubts(schedule, {"web": 100, "code": 10})
    ['The re-warm-up takes more than half of its task (task code: 8 of 10 steps).']
    """
    found = [sentence for doubt in _DOUBTS for sentence in _ask(doubt, _task_steps(schedule, tasks))]
    end = schedule.num_steps
    if max_steps is not None and end is not None and max_steps != end:
        found.append(f"The run stops at step {max_steps}, but the schedule ends at step {end}.")
    return found


def _ask(doubt: _Doubt, tasks: list[TaskSteps]) -> Iterator[str]:
    found = [task for task in tasks if doubt.holds(task)]
    if found:
        others = f"; and {len(found) - 1} more" if len(found) > 1 else ""
        name = found[0].name.removeprefix("task ")
        yield f"{doubt.sentence} (task {name}: {doubt.steps(found[0])} of {found[0].length} steps{others})."


def _task_steps(schedule: Schedule, tasks: Mapping[str, int]) -> list[TaskSteps]:
    steps: dict[tuple[int, str], int] = {}
    flat = set()
    lengths = list(tasks.values())
    for phase in schedule.phases:
        key = (phase.task, phase.name)
        steps[key] = steps.get(key, 0) + (phase.num_steps or lengths[phase.task] or 1)
        if phase.name == "anneal" and phase.start == phase.end:
            flat.add(phase.task)
    return [
        TaskSteps(
            name,
            length,
            anneal=steps.get((task, "anneal"), 0),
            constant=steps.get((task, "constant"), 0),
            rewarm=steps.get((task, "warmup"), 0) if task else 0,
            decay=sum(steps.get((task, decay), 0) for decay in REWARM_DECAYS),
            flat=task in flat,
        )
        for task, (name, length) in enumerate(tasks.items())
    ]
