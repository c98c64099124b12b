"""`anneal`: a branch that begins at the checkpoint."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hf_infinite_lr.announcement import format_rate
from hf_infinite_lr.schedules import ANNEAL_TYPES_TO_ZERO, Phase, Schedule, check_steps_or_share, resolve_share

from .state import ScheduleState


def anneal_from(saved: ScheduleState, new: ScheduleState) -> ScheduleState:
    """Anneal from the saved position over `num_anneal_steps`; the travelled phases are kept for the record.

    Raises:
        `ValueError`: for another schedule, a length without an end to share in, or a floor that cannot be reached.
    """
    if new.name != "infinite":
        raise ValueError(f"on_resume='anneal' needs the infinite schedule; this run has {new.name}.")
    travelled = _cut(saved.schedule, saved.position)
    task = travelled[-1].task if travelled else 0
    start = saved.schedule(saved.position)
    anneal = annealing_phase(
        task,
        _num_anneal_steps(saved, new),
        start,
        new.arguments,
        peak=new.peak_under(saved.base_lrs),
        step=saved.position,
    )
    return replace(new, schedule=Schedule((*travelled, anneal)), base_lrs=saved.base_lrs, position=saved.position)


def annealing_phase(
    task: int, num_steps: int, start: float, arguments: Mapping[str, Any], *, peak: float, step: int
) -> Phase:
    """The annealing of a branch that begins at a checkpoint.

    Args:
        task (`int`):
            Index of the task.
        num_steps (`int`):
            Its length.
        start (`float`):
            The checkpoint's factor.
        arguments (`Mapping[str, Any]`):
            Complete arguments of `infinite`: the annealing's type and floor.
        peak (`float`):
            The learning rate that factors refer to.
        step (`int`):
            The checkpoint's step, for the refusal.

    Raises:
        `ValueError`: for a floor above the checkpoint's rate, or one that the type cannot reach.
    """
    floor = arguments["min_lr"] / peak if "min_lr" in arguments else arguments["min_lr_ratio"]
    if start < floor:
        raise ValueError(
            f"The floor of the annealing ({format_rate(floor * peak)}) must not be above the rate at step {step}"
            f" ({format_rate(start * peak)})."
        )
    shape = arguments["anneal_type"]
    if floor <= 0.0 and shape not in ANNEAL_TYPES_TO_ZERO:
        raise ValueError(
            f"A floor of 0 cannot be reached by anneal_type={shape!r}; {' or '.join(ANNEAL_TYPES_TO_ZERO)} can."
        )
    return Phase("anneal", task, num_steps, start, floor, shape)


def _num_anneal_steps(saved: ScheduleState, new: ScheduleState) -> int:
    value = new.arguments["num_anneal_steps"]
    check_steps_or_share("num_anneal_steps", value)
    end = new.num_training_steps or new.schedule.num_steps
    if isinstance(value, float) and value and (end is None or end <= saved.position):
        raise ValueError(
            f"num_anneal_steps={value!r} is a share of the remaining steps, but none remain known at step"
            f" {saved.position}; give num_anneal_steps in steps."
        )
    num_steps = resolve_share("num_anneal_steps", value, (end or 0) - saved.position)
    if num_steps == 0:
        raise ValueError(f"num_anneal_steps={value!r} must be above 0 with on_resume='anneal'.")
    return num_steps


def _cut(schedule: Schedule, position: int) -> tuple[Phase, ...]:
    """Return phases with the schedule's values before `position`, exactly `position` steps long.

    The last one may be a part of a phase; as its values lie behind, it is kept as a constant at its last value.
    """
    if position == 0:
        return ()
    index, phase, first_step = schedule.at(position)
    done = position - first_step
    if done == 0:
        return schedule.phases[:index]
    if phase.num_steps is not None and done >= phase.num_steps:
        hold = done - phase.num_steps
        rest = (Phase("constant", phase.task, hold, phase.end, phase.end, "constant"),) if hold else ()
        return (*schedule.phases[: index + 1], *rest)
    value = phase(done)
    return (
        *schedule.phases[:index],
        replace(phase, num_steps=done, start=value, end=value, shape="constant", timescale=None, floor=None),
    )
