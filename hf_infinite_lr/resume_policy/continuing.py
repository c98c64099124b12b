"""`continue`: the checkpoint's travelled phases and its rates, with lengths and shapes that the run asks for."""

from dataclasses import replace

from hf_infinite_lr.announcement import format_rate
from hf_infinite_lr.schedules import PHASE_ORDER, Phase, Schedule

from .old_rates import at_old_rates
from .state import ScheduleState


def continue_from(saved: ScheduleState, new: ScheduleState, *, rewinds: bool) -> ScheduleState:
    """Keep what is travelled and the checkpoint's rates; take lengths and shapes of what comes from `new`.

    Raises:
        `ValueError`: for another schedule, an annealed checkpoint unless the caller `rewinds`, or a floor that the
            checkpoint's rates do not admit.
    """
    if saved.name != new.name:
        raise ValueError(
            f"lr_scheduler_type={new.name!r}: the checkpoint was trained with {saved.name!r}, which on_resume=continue"
            " cannot go on with; pass on_resume=override to apply the new schedule from the next update."
        )
    if not rewinds:
        _refuse_annealed(saved, new)
    schedule = _keep_travelled(saved.schedule, new.schedule_relative_to(saved.base_lrs), saved.position)
    return replace(new, schedule=schedule, base_lrs=saved.base_lrs, position=saved.position)


def _refuse_annealed(saved: ScheduleState, new: ScheduleState) -> None:
    old = saved.schedule
    begun = _begun(old, saved.position)
    if begun is None or old.phases[begun].name != "anneal":
        return
    planned = begun + 1 < len(old.phases) and old.phases == new.schedule.phases[: len(old.phases)]
    if planned and saved.base_lrs == new.base_lrs:
        return
    branch = old.boundaries[begun]
    raise ValueError(
        f"checkpoint-{saved.position} is annealed (rate {format_rate(saved.rate)}); continue from checkpoint-{branch},"
        " or pass on_resume=override to jump back to the constant"
    )


def _keep_travelled(old: Schedule, new: Schedule, position: int) -> Schedule:
    """Join the phases of `old` up to the end of the current one with the later phases of `new` at `old`'s rates.

    A task begins and an annealing ends where `new` says, so that data boundaries stay boundaries of the curve; what
    lies between is filled with the last value. Warm-up and cool-down keep their lengths. A constant under way ends
    where `new` says, so that an annealing of a shorter run begins in time. A warm-up that is cut off in one of the
    two schedules keeps its own rates: where it ends says nothing of a peak.
    """
    begun = _begun(old, position)
    phases: list[Phase] = [] if begun is None else list(old.phases[: begun + 1])
    reached = (-1, 0) if begun is None else _ranks(old)[begun]
    if begun is not None and phases[-1].name == "constant":
        end = _end_of_constant(new, reached, position)
        phases[-1] = replace(phases[-1], num_steps=None if end is None else end - old.boundaries[begun])
    cursor = sum(phase.num_steps or 0 for phase in phases)
    for index, (phase, rank) in enumerate(zip(new.phases, _ranks(new), strict=True)):
        if rank <= reached:
            continue
        first_step = new.boundaries[index]
        opens_task = index > 0 and new.phases[index - 1].task != phase.task
        if phases and (opens_task or phase.name == "anneal") and first_step > cursor:
            _fill(phases, first_step - cursor)
            cursor = first_step
        num_steps = phase.num_steps
        if num_steps is not None and phase.name not in ("warmup", "cooldown_to_constant"):
            num_steps = first_step + num_steps - cursor
        if num_steps is not None and num_steps <= 0:
            continue
        later = replace(phase, num_steps=num_steps)
        if phase.name != "warmup" or (_reaches_peak(old, phase.task) and _reaches_peak(new, phase.task)):
            later = at_old_rates(later, old, phases[-1] if phases else None)
        phases.append(later)
        cursor += num_steps or 0
    return Schedule(tuple(phases))


def _begun(schedule: Schedule, position: int) -> int | None:
    """Return the index of the phase in which the last update before `position` was made."""
    return None if position == 0 else schedule.at(position - 1).phase_index


def _ranks(schedule: Schedule) -> list[tuple[int, int]]:
    """Return a sort key for each phase: its task, and its place in it, last for a constant that fills a task's end."""
    ranks: list[tuple[int, int]] = []
    for phase in schedule.phases:
        rank = (phase.task, PHASE_ORDER[phase.name])
        repeated = bool(ranks) and ranks[-1][0] == phase.task and ranks[-1][1] >= 3
        ranks.append((phase.task, 4) if repeated and phase.name == "constant" else rank)
    return ranks


def _end_of_constant(new: Schedule, reached: tuple[int, int], position: int) -> int | None:
    """Return where `new` ends a constant under way, not before the position; None without an end."""
    ranks = _ranks(new)
    if reached not in ranks:
        return position
    index = ranks.index(reached)
    return None if new.phases[index].num_steps is None else max(position, new.boundaries[index + 1])


def _fill(phases: list[Phase], num_steps: int) -> None:
    last = phases[-1]
    if last.name == "constant" and last.num_steps is not None:
        phases[-1] = replace(last, num_steps=last.num_steps + num_steps)
    else:
        phases.append(Phase("constant", last.task, num_steps, last.end, last.end, "constant"))


def _reaches_peak(schedule: Schedule, task: int) -> bool:
    """Whether the warm-up of a task is not cut off by the task's end."""
    return any(phase.task == task and phase.name != "warmup" for phase in schedule.phases)
