"""The schedule of a run that knows its length and `lr_scheduler_kwargs` alone: plain Trainer, or a bare loop."""

import math
from collections.abc import Mapping
from typing import Any

from hf_infinite_lr.arguments import (
    LENGTH_KEYS,
    check_keys,
    check_rate,
    check_task_steps,
    complete_arguments,
    plain_value,
)
from hf_infinite_lr.construction import open_schedule, schedule_from_arguments
from hf_infinite_lr.schedules import Schedule


def plain_task_steps(kwargs: Mapping[str, Any], num_training_steps: int | None) -> list[int] | None:
    """Return the task lengths of a run that knows only its length and `lr_scheduler_kwargs`.

    Args:
        kwargs (`Mapping[str, Any]`):
            The `lr_scheduler_kwargs`; `task_steps` as a number means that every task has that length, and the run
            may stop inside the last one; `num_tasks` cuts the run into equal tasks, the remainder goes to the first.
        num_training_steps (`int` or `None`):
            Steps of the run, if known.

    Returns:
        `list[int]` or `None`: lengths of the tasks; `None` when no length is known.

    Raises:
        `ValueError`: for both keys together, a number without a known run, and lengths that are no positive integers.

    >>> plain_task_steps({"task_steps": 10}, 25)
    [10, 10, 10]
    >>> plain_task_steps({"num_tasks": 3}, 25)
    [9, 8, 8]
    """
    task_steps, num_tasks = plain_value(kwargs.get("task_steps")), plain_value(kwargs.get("num_tasks"))
    if num_training_steps is not None and num_training_steps < 1:
        raise ValueError(f"num_training_steps={num_training_steps!r} must be 1 or more.")
    if task_steps is not None and num_tasks is not None:
        raise ValueError(
            f"task_steps={task_steps!r} and num_tasks={num_tasks!r} are given together; give one of them."
        )
    if task_steps is None and num_tasks is None:
        return None if num_training_steps is None else [num_training_steps]
    if isinstance(task_steps, list):
        return check_task_steps(task_steps)
    key, value = ("num_tasks", num_tasks) if task_steps is None else ("task_steps", task_steps)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key}={value!r} must be an integer of 1 or more.")
    if num_training_steps is None:
        raise ValueError(f"{key}={value!r} needs num_training_steps; or give task_steps as a list.")
    if key == "task_steps":
        return [value] * math.ceil(num_training_steps / value)
    length, remainder = divmod(num_training_steps, value)
    if length == 0:
        raise ValueError(f"num_tasks={value!r} must not be above num_training_steps={num_training_steps}.")
    return [length + remainder] + [length] * (value - 1)


def plain_schedule(
    name: str,
    *,
    learning_rate: float,
    num_warmup_steps: int | float,
    num_training_steps: int | None,
    kwargs: Mapping[str, Any],
) -> tuple[Schedule, dict[str, Any]]:
    """Build a schedule for a run that knows no tasks beyond what `lr_scheduler_kwargs` say.

    Args:
        name (`str`):
            `infinite`, `cosine_rewarm` or `rsqrt_rewarm`.
        learning_rate (`float`):
            The peak.
        num_warmup_steps (`int` or `float`):
            Steps, or a share of the first task.
        num_training_steps (`int` or `None`):
            Steps of the run; `None` for an open end.
        kwargs (`Mapping[str, Any]`):
            The `lr_scheduler_kwargs`.

    Returns:
        `tuple[Schedule, dict[str, Any]]`: the schedule, and the arguments as the resume policy compares them.

    Raises:
        `ValueError`: one sentence naming field, value and rule.
    """
    check_keys(name, kwargs)
    peak = check_rate("learning_rate", learning_rate)
    lengths = plain_task_steps(kwargs, num_training_steps)
    shape = {key: value for key, value in kwargs.items() if key not in (*LENGTH_KEYS[name], "on_resume")}
    arguments = {"learning_rate": peak, "warmup_steps": plain_value(num_warmup_steps)}
    if kwargs.get("task_steps") is None and kwargs.get("num_tasks") is None:
        arguments["num_training_steps"] = num_training_steps
    else:
        arguments["task_steps"] = lengths
    arguments.update(complete_arguments(name, shape))
    if lengths is None:
        return open_schedule(name, peak, arguments), arguments
    schedule = schedule_from_arguments(
        name, task_steps=lengths, learning_rate=peak, warmup_steps=num_warmup_steps, kwargs=shape
    )
    return schedule, arguments
