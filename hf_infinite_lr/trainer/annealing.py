"""Annealing after the fact: any trunk checkpoint becomes a release, and the trunk stays as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hf_infinite_lr.schedules import Phase, Schedule, resolve_share
from hf_infinite_lr.stream.plan import StreamPlan


def annealing_plan(plan: StreamPlan, step: int, num_anneal_steps: int | float) -> StreamPlan:
    """The plan of a run that goes on from a trunk checkpoint with nothing but a branch.

    The branch takes the batches that the task would have come to next, so that with the same length it is the branch
    that the run itself would have grown there.

    Args:
        plan ([`StreamPlan`]): Of the run that made the checkpoint.
        step (`int`): The checkpoint's global step, on the trunk.
        num_anneal_steps (`int` or `float`): Steps, or a share of the task.

    Raises:
        ValueError: for a checkpoint that lies on a branch or at its end, or before the first update.
    """
    if step < 1:
        raise ValueError("A checkpoint before the first update cannot be annealed.")
    segment = plan.segments[plan.segment_of(step - 1)]
    task = plan.tasks[segment.task]
    if not segment.on_trunk:
        raise ValueError(
            f"The checkpoint at step {step} lies on the branch of {task.name!r}: anneal trunk/{task.directory} "
            "instead."
        )
    batch = segment.first_batch + step - segment.start_step
    num_steps = resolve_share("num_anneal_steps", num_anneal_steps, task.num_steps)
    if num_steps < 1:
        raise ValueError(f"num_anneal_steps={num_anneal_steps!r} must be above 0.")
    branch = replace(
        task, start_step=step - batch, num_steps=batch + num_steps, num_anneal_steps=num_steps, repeats=False
    )
    return replace(plan, tasks=(*plan.tasks[: task.index], branch))


def annealing_schedule(plan: StreamPlan, schedule: Schedule, arguments: dict[str, Any], peak: float) -> Schedule:
    """The rates of [`annealing_plan`]: from the trunk's rate at the branch point down to the floor.

    Args:
        plan ([`StreamPlan`]): Of [`annealing_plan`].
        schedule ([`Schedule`]): Of the run that made the checkpoint.
        arguments (`dict`): Complete arguments of `infinite`: the annealing's type and floor.
        peak (`float`): The learning rate that factors refer to.
    """
    task = plan.tasks[-1]
    assert task.branch_step is not None
    constant = schedule(task.branch_step)
    floor = arguments["min_lr"] / peak if "min_lr" in arguments else arguments["min_lr_ratio"]
    before = Phase("constant", task.index, task.branch_step, constant, constant, "constant")
    anneal = Phase("anneal", task.index, task.num_anneal_steps, constant, floor, arguments["anneal_type"])
    return Schedule((before, anneal))


def release_name(run: StreamPlan, plan: StreamPlan) -> str:
    """The release's directory: the task's where the branch of `plan` is the run's own, else one that says which."""
    task = plan.tasks[-1]
    own = run.tasks[task.index]
    if (task.branch_step, task.num_anneal_steps) == (own.branch_step, own.num_anneal_steps):
        return own.directory
    return f"{own.directory}-from-{task.branch_step}-over-{task.num_anneal_steps}"
