"""What a run would do with its learning rate, for any schedule: the plan that `show` prints."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_infinite_lr.announcement import describe
from hf_infinite_lr.arguments import OWN_SCHEDULES, check_task_steps, curve_arguments
from hf_infinite_lr.construction import schedule_from_arguments
from hf_infinite_lr.plain_run import plain_schedule
from hf_infinite_lr.schedules import Schedule


@dataclass(frozen=True)
class Plan:
    """
    What a run would do with its learning rate.

    Args:
        name (`str`):
            Name of the schedule.
        learning_rate (`float`):
            The peak.
        schedule ([`Schedule`] or `None`):
            The schedule; `None` for transformers' own names.
        factor (`Callable[[int], float]`):
            The rate at a global step, relative to the peak.
        tasks (`Mapping[str, int]`):
            Names of the tasks and their steps.
        max_steps (`int`, *optional*):
            Where a plain run stops.
        summary (`str`, *optional*, defaults to none):
            The line that the run itself will print.
        has_trunk (`bool`, *optional*, defaults to `True`):
            Whether annealing leaves a trunk that the next task goes on from; GDumb begins each task anew, and under
            `rewind: none` the annealed model goes on.
    """

    name: str
    learning_rate: float
    schedule: Schedule | None
    factor: Callable[[int], float]
    tasks: Mapping[str, int]
    max_steps: int | None = None
    summary: str = ""
    has_trunk: bool = True


def plain_plan(name: str, rate: float, warmup: int | float, max_steps: int | None, kwargs: Mapping[str, Any]) -> Plan:
    """Plan a run of plain Trainer, where a share of warm-up is one of the whole run, rounded up as Trainer does.

    Args:
        name (`str`):
            Name of the schedule, also one of transformers.
        rate (`float`):
            The peak.
        warmup (`int` or `float`):
            Steps, or a share of the run.
        max_steps (`int` or `None`):
            Steps of the run.
        kwargs (`Mapping[str, Any]`):
            The `lr_scheduler_kwargs`.

    Returns:
        [`Plan`]: with the line that the run itself prints.

    Raises:
        `ValueError`: the sentence with which the run would be refused.
    """
    if isinstance(warmup, float) and max_steps is not None:
        warmup = math.ceil(max_steps * warmup) if warmup < 1 else int(warmup)
    if name not in OWN_SCHEDULES:
        return _foreign_plan(name, rate, warmup, {"the run": max_steps}, kwargs)
    schedule, _ = plain_schedule(
        name, learning_rate=rate, num_warmup_steps=warmup, num_training_steps=max_steps, kwargs=kwargs
    )
    _check_on_resume(name, schedule, kwargs)
    tasks = dict.fromkeys((f"task {phase.task + 1}" for phase in schedule.phases), 0)
    for phase in schedule.phases:
        tasks[f"task {phase.task + 1}"] += phase.num_steps or 0
    return Plan(name, rate, schedule, schedule, tasks, max_steps, describe(name, schedule, rate, max_steps))


def continual_plan(
    name: str,
    rate: float,
    warmup: int | float,
    tasks: Mapping[str, int],
    kwargs: Mapping[str, Any],
    *,
    anneal_budget: str,
    release: str,
) -> Plan:
    """Plan a run of ContinualTrainer, where shares refer to tasks.

    Args:
        name (`str`):
            Name of the schedule, also one of transformers, which makes one curve over the whole run.
        rate (`float`):
            The peak.
        warmup (`int` or `float`):
            Steps, or a share.
        tasks (`Mapping[str, int]`):
            Names of the tasks and their steps.
        kwargs (`Mapping[str, Any]`):
            The `lr_scheduler_kwargs`.
        anneal_budget (`str`):
            `within` or `extra`.
        release (`str`):
            `each`, `last` or `none`.

    Returns:
        [`Plan`]: of the whole stream.

    Raises:
        `ValueError`: the sentence with which the run would be refused.
    """
    if name not in OWN_SCHEDULES:
        return _foreign_plan(name, rate, warmup, tasks, kwargs)
    schedule = schedule_from_arguments(
        name,
        task_steps=list(tasks.values()),
        learning_rate=rate,
        warmup_steps=warmup,
        kwargs=curve_arguments(kwargs),
        anneal_budget=anneal_budget,
        release=release,
    )
    _check_on_resume(name, schedule, kwargs)
    return Plan(name, rate, schedule, schedule, tasks)


def recipe_plan(args: Any, tasks: Mapping[str, int]) -> Plan:
    """Plan the run of a recipe, whose methods have a say in its curve.

    Args:
        args ([`ContinualTrainingArguments`]):
            Its arguments.
        tasks (`Mapping[str, int]`):
            Names of the tasks and their steps.

    Returns:
        [`Plan`]: of the whole stream.

    Raises:
        `ValueError`: the sentence with which the run would be refused.
    """
    from hf_infinite_lr.config import run_mode, schedule_name
    from hf_infinite_lr.methods.gdumb import FromScratch
    from hf_infinite_lr.run_plan import schedule_of

    name, kwargs = schedule_name(args), args.lr_scheduler_kwargs or {}
    if name not in OWN_SCHEDULES:
        return _foreign_plan(name, args.learning_rate, args.warmup_steps, tasks, kwargs)
    schedule = schedule_of(args, list(tasks.values()))
    has_trunk = args.rewind != "none" and run_mode(args) != FromScratch.name
    _check_on_resume(name, schedule, kwargs)
    return Plan(name, args.learning_rate, schedule, schedule, tasks, has_trunk=has_trunk)


def _foreign_plan(
    name: str, rate: float, warmup: int | float, tasks: Mapping[str, int | None], kwargs: Mapping[str, Any]
) -> Plan:
    """One curve over the whole run, as transformers makes it."""
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import get_scheduler

    lengths = {task: steps for task, steps in tasks.items() if steps is not None}
    total = sum(check_task_steps(list(lengths.values()))) if lengths else 0
    if total < 1:
        raise ValueError(f"max_steps={total or None}: {name} needs the steps of the run, 1 or more.")
    if isinstance(warmup, float):
        warmup = math.ceil(total * warmup)
    try:
        scheduler = get_scheduler(
            name, _optimizer(rate), warmup, total, scheduler_specific_kwargs=dict(kwargs) or None
        )
    except TypeError as error:
        # An unknown or a missing key of lr_scheduler_kwargs comes as the call's own error.
        raise ValueError(str(error)) from error
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(f"lr_scheduler_type={name!r} follows the evaluations of a run: there is no curve before it.")
    return Plan(name, rate, None, scheduler.lr_lambdas[0], lengths)


def _optimizer(rate: float) -> Any:
    import torch

    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def _check_on_resume(name: str, schedule: Schedule, kwargs: Mapping[str, Any]) -> None:
    """Refuse a resume policy as the run's own scheduler does."""
    if kwargs.get("on_resume") is not None:
        from hf_infinite_lr.lr_scheduler import ScheduleLR

        ScheduleLR(_optimizer(1.0), schedule, name=name, arguments={}, on_resume=kwargs["on_resume"])
