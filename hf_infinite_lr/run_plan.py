"""From arguments and a stream to steps: what a continual run trains on, how long each task is, and its schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hf_infinite_lr.arguments import OWN_SCHEDULES, curve_arguments
from hf_infinite_lr.config import ContinualArguments, run_mode, schedule_name
from hf_infinite_lr.construction import schedule_from_arguments
from hf_infinite_lr.methods.gdumb import FromScratch, GDumbSettings, gdumb_stream
from hf_infinite_lr.methods.joint import JOINT, joint_stream
from hf_infinite_lr.schedules import Schedule
from hf_infinite_lr.stream.loading import seeded_rng
from hf_infinite_lr.stream.plan import StreamPlan, plan_stream, task_lengths
from hf_infinite_lr.stream.replay import ReplaySettings, check_buffers
from hf_infinite_lr.stream.task import Stream


def arrange(args: Any, stream: Stream, global_batch_size: int) -> Stream:
    """The stream that a run trains on: as given, or what its run mode makes of it.

    Args:
        args: As in [`plan_run`].
        stream ([`Stream`]): The tasks as given, prepared for training.
        global_batch_size (`int`): Samples of one optimizer step.

    Raises:
        ValueError: one sentence naming field, value and rule.
    """
    if (mode := run_mode(args)) is None:
        return stream
    lengths = run_lengths(args, stream, global_batch_size)
    seed = args.seed if args.data_seed is None else args.data_seed
    with seeded_rng(0):
        if mode == JOINT:
            return joint_stream(stream, lengths, seed)
        return gdumb_stream(stream, lengths, GDumbSettings(**args.methods[mode]), seed)


def plan_run(args: Any, stream: Stream, global_batch_size: int) -> tuple[Schedule | None, StreamPlan]:
    """Turns arguments and a stream into steps: the schedule, and the plan whose branches fit it.

    Args:
        args: `TrainingArguments` with [`ContinualArguments`].
        stream ([`Stream`]): The tasks of [`arrange`].
        global_batch_size (`int`): Samples of one optimizer step.

    Returns:
        The schedule (None for a name that is not ours: one curve over the whole run) and the [`StreamPlan`].

    Raises:
        ValueError: one sentence naming field, value and rule.
    """
    _check_replay_labels(args, stream)
    # A run mode has given every task its length.
    mode = run_mode(args)
    lengths = task_lengths(stream, global_batch_size) if mode else run_lengths(args, stream, global_batch_size)
    schedule = None
    anneal_steps = [0] * len(lengths)
    if schedule_name(args) in OWN_SCHEDULES:
        schedule = schedule_of(args, lengths)
        for branch in schedule.branch_points:
            anneal_steps[branch.task] = branch.end_step - branch.first_step
    with seeded_rng(0):
        fingerprints = [task.identity() for task in stream.tasks]
    plan = plan_stream(
        stream,
        lengths,
        anneal_steps,
        global_batch_size,
        fingerprints=fingerprints,
        anneal_budget=args.anneal_budget,
        rewinds=args.rewind != "none" and run_mode(args) is None,
        restarts=mode == FromScratch.name,
        replay_fraction=args.replay_fraction,
    )
    if args.replay_fraction:
        check_buffers(plan, replay_settings(args))
    return schedule, plan


def schedule_of(args: Any, lengths: Sequence[int]) -> Schedule:
    """The schedule of a run, one of ours.

    Args:
        args: As in [`plan_run`].
        lengths (`Sequence[int]`): Steps of each task.

    Raises:
        ValueError: one sentence naming field, value and rule.
    """
    if (args.lr_scheduler_kwargs or {}).get("on_resume") == "anneal":
        raise ValueError(
            "on_resume='anneal' cannot be used with ContinualTrainer, which anneals on branches: make a release of a "
            "trunk by `hf-infinite-lr anneal` or trainer.anneal()."
        )
    make = partial(
        schedule_from_arguments,
        schedule_name(args),
        learning_rate=args.learning_rate,
        warmup_steps=args.warmup_steps,
        kwargs=curve_arguments(args.lr_scheduler_kwargs),
        anneal_budget=args.anneal_budget,
    )
    if run_mode(args) != FromScratch.name:
        return make(task_steps=lengths, release=args.release)
    released = ["each" if args.release == "each" else "none"] * (len(lengths) - 1)
    released.append("none" if args.release == "none" else "each")
    each = [make(task_steps=[steps], release=release) for steps, release in zip(lengths, released, strict=True)]
    return Schedule(tuple(replace(phase, task=task) for task, one in enumerate(each) for phase in one.phases))


def replay_settings(args: ContinualArguments) -> ReplaySettings:
    """What the arguments say of replay."""
    size = args.replay_buffer_size
    return ReplaySettings(
        args.replay_fraction, size if size is None or size < 1 else int(size), args.replay_class_column
    )


def _check_replay_labels(args: Any, stream: Stream) -> None:
    """Refuses class-balanced replay of tasks that have no labels."""
    column = args.replay_class_column
    if column is None:
        return
    last = stream.tasks[-1]
    for task in stream.tasks:
        if task is last and not task.streaming:
            continue  # nothing is kept of it but row numbers
        columns = getattr(task.dataset, "column_names", None)
        if columns is None and task.streaming:
            continue  # known with its first sample
        if columns is None or column not in columns:
            raise ValueError(
                f"replay_class_column={column!r}: task {task.name!r} has no such column "
                f"({', '.join(columns or ()) or 'no columns'}); class-balanced replay needs its labels."
            )


def run_lengths(args: Any, stream: Stream, global_batch_size: int) -> tuple[int, ...]:
    """Optimizer steps of every task, as [`~hf_infinite_lr.stream.plan.task_lengths`] counts them.

    Args:
        args: `TrainingArguments` with [`ContinualArguments`].
        stream ([`Stream`]): The tasks.
        global_batch_size (`int`): Samples of one optimizer step.
    """
    return task_lengths(
        stream,
        global_batch_size,
        task_steps=_task_steps_of(args),
        num_train_epochs=args.num_train_epochs,
        added_replay=args.replay_fraction if args.replay_budget == "extra" else 0.0,
    )


def _task_steps_of(args: ContinualArguments) -> int | Sequence[int] | None:
    """`task_steps` as [`~hf_infinite_lr.stream.plan.task_lengths`] takes it: a single number holds for every task."""
    if args.task_steps is not None and len(args.task_steps) == 1:
        return args.task_steps[0]
    return args.task_steps
