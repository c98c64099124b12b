"""What a schedule does when the arguments differ from those of the checkpoint: continue, override or anneal.

Pure: a saved and a new [`ScheduleState`] go in, the state to go on with comes out.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_infinite_lr.announcement import format_rate, is_main_process
from hf_infinite_lr.arguments import RATE_KEYS
from hf_infinite_lr.schedules import (
    ANNEAL_TYPES_TO_ZERO,
    PHASE_ORDER,
    Phase,
    Schedule,
    check_steps_or_share,
    resolve_share,
    rsqrt,
)

logger = logging.getLogger(__name__)

STATE_VERSION = 1

_FLOOR = ("min_lr_ratio", "min_lr")
_CONSTANT = ("constant_lr_ratio", "constant_lr")
_KEYS_OF = {
    "warmup": ("warmup_steps",),
    "cooldown_to_constant": ("num_cooldown_steps", "cooldown_type", "timescale", *_CONSTANT),
    "constant": _CONSTANT,
    "anneal": ("num_anneal_steps", "anneal_type", *_FLOOR),
    "cosine_decay": _FLOOR,
    "rsqrt_decay": _FLOOR,
    "linear_end": ("num_anneal_steps",),
}
_KEYS_OF_THE_RUN = ("lr_scheduler_type", "task_steps", "num_training_steps", "anneal_budget", "release")


@dataclass(frozen=True)
class ScheduleState:
    """All that a checkpoint knows about a schedule.

    Args:
        name (`str`):
            Name of the schedule.
        arguments (`Mapping[str, Any]`):
            The arguments that the schedule was built from, as plain Python values.
        on_resume (`str`):
            The policy in force.
        schedule ([`~hf_infinite_lr.schedules.Schedule`]):
            The resulting phases.
        base_lrs (`tuple[float, ...]`):
            Peak rate of each parameter group.
        position (`int`):
            Updates done.
        asked_lrs (`tuple[float, ...]`, *optional*):
            Peaks that the run asked for, which differ from `base_lrs` where a resume has kept the checkpoint's. None
            in states that do not tell.
        num_training_steps (`int`, *optional*):
            Where the run stops, if that is known; a checkpoint does not hold it.
    """

    name: str
    arguments: Mapping[str, Any]
    on_resume: str
    schedule: Schedule
    base_lrs: tuple[float, ...]
    position: int
    asked_lrs: tuple[float, ...] | None = None
    num_training_steps: int | None = None

    @property
    def rate(self) -> float:
        """Rate of the first parameter group at the position."""
        return self.base_lrs[0] * self.schedule(self.position)

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values, which load under `torch.load(weights_only=True)`."""
        return {
            "version": STATE_VERSION,
            "name": self.name,
            "arguments": dict(self.arguments),
            "on_resume": self.on_resume,
            "schedule": self.schedule.to_dict(),
            "base_lrs": list(self.base_lrs),
            "asked_lrs": list(self.asked_lrs or self.base_lrs),
            "last_epoch": self.position,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ScheduleState":
        """Rebuild a state from [`~ScheduleState.to_dict`], or from another torch scheduler's state.

        Of another scheduler's state the position and the rates are known, but not the curve.

        Raises:
            `ValueError`: when the state was written by a newer version of this package.
        """
        if "version" not in values:
            base_lrs = tuple(float(rate) for rate in values["base_lrs"])
            factor = float(values["_last_lr"][0]) / base_lrs[0] if base_lrs[0] else 0.0
            hold = Schedule((Phase("constant", 0, None, factor, factor, "constant"),))
            return cls("another scheduler", {}, "continue", hold, base_lrs, int(values["last_epoch"]))
        if values["version"] > STATE_VERSION:
            raise ValueError(
                f"The scheduler state has version {values['version']}, but this hf_infinite_lr reads up to"
                f" {STATE_VERSION}; use the newer release that wrote it."
            )
        return cls(
            values["name"],
            values["arguments"],
            values["on_resume"],
            Schedule.from_dict(values["schedule"]),
            tuple(values["base_lrs"]),
            values["last_epoch"],
            tuple(values["asked_lrs"]) if "asked_lrs" in values else None,
        )


def resume(saved: ScheduleState, new: ScheduleState, *, rewinds: bool = False) -> ScheduleState:
    """Decide how to go on from a checkpoint.

    Equal arguments go on as saved. Else `continue` keeps the travelled phases, the current one and the rates of every
    kind of phase that the checkpoint has, and takes lengths and shapes of later phases from `new`, as well as the end
    of a constant under way; `override` takes all of `new`; `anneal` starts annealing at the saved position. The
    result carries the new arguments, so that the same policy does not act again.

    Args:
        saved ([`ScheduleState`]):
            From the checkpoint.
        new ([`ScheduleState`]):
            From the arguments of this run; its position is ignored.
        rewinds (`bool`, *optional*, defaults to `False`):
            The caller goes back to the trunk by itself, so that an annealed checkpoint need not be refused.

    Returns:
        [`ScheduleState`]: at the saved position.

    Raises:
        `ValueError`: when the policy cannot act; one sentence that says what can be done.
    """
    if len(saved.base_lrs) != len(new.base_lrs):
        raise ValueError(
            f"The checkpoint's scheduler has {len(saved.base_lrs)} parameter groups, but the optimizer has"
            f" {len(new.base_lrs)}; they must agree."
        )
    same = (saved.name, saved.arguments) == (new.name, new.arguments) and not _other_peaks(saved, new)
    if same and new.on_resume in ("continue", saved.on_resume):
        return saved
    policies = {"continue": _continue, "override": _override, "anneal": _anneal}
    resumed = policies[new.on_resume](saved, new, rewinds)
    _log_changes(saved, new, resumed)
    return resumed


def _other_peaks(saved: ScheduleState, new: ScheduleState) -> bool:
    return saved.asked_lrs is not None and saved.asked_lrs != new.asked_lrs


def _override(saved: ScheduleState, new: ScheduleState, rewinds: bool) -> ScheduleState:  # noqa: ARG001
    return replace(new, position=saved.position)


def _anneal(saved: ScheduleState, new: ScheduleState, rewinds: bool) -> ScheduleState:  # noqa: ARG001
    """Anneal from the saved position over `num_anneal_steps`; the travelled phases are kept for the record."""
    if new.name != "infinite":
        raise ValueError(f"on_resume='anneal' needs the infinite schedule; this run has {new.name}.")
    travelled = _cut(saved.schedule, saved.position)
    task = travelled[-1].task if travelled else 0
    start = saved.schedule(saved.position)
    anneal = annealing_phase(
        task, _num_anneal_steps(saved, new), start, new.arguments, peak=saved.base_lrs[0], step=saved.position
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


def _continue(saved: ScheduleState, new: ScheduleState, rewinds: bool) -> ScheduleState:
    if saved.name != new.name:
        raise ValueError(
            f"lr_scheduler_type={new.name!r}: the checkpoint was trained with {saved.name!r}, which on_resume=continue"
            " cannot go on with; pass on_resume=override to apply the new schedule from the next update."
        )
    if not rewinds:
        _refuse_annealed(saved, new)
    schedule = _keep_travelled(saved.schedule, _relative_to(saved.base_lrs[0], new), saved.position)
    return replace(new, schedule=schedule, base_lrs=saved.base_lrs, position=saved.position)


def _relative_to(peak: float, new: ScheduleState) -> Schedule:
    """Return the schedule of `new` with the levels that were given as absolute rates relative to another peak."""
    if peak in (0.0, new.base_lrs[0]):
        return new.schedule
    ratio = new.base_lrs[0] / peak
    constant = ratio if "constant_lr" in new.arguments else 1.0
    floor = ratio if "min_lr" in new.arguments else 1.0
    levels = {"constant": constant, "cooldown_to_constant": constant, "anneal": floor, "cosine_decay": floor}
    return Schedule(
        tuple(
            replace(
                phase,
                end=phase.end * levels.get(phase.name, 1.0),
                floor=None if phase.floor is None else phase.floor * floor,
            )
            for phase in new.schedule.phases
        )
    )


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


def _begun(schedule: Schedule, position: int) -> int | None:
    """Return the index of the phase in which the last update before `position` was made."""
    return None if position == 0 else schedule.at(position - 1).phase_index


def _ranks(schedule: Schedule) -> list[tuple[int, int]]:
    """Return a sort key for each phase: its task, and its place in a task's order of phases."""
    ranks: list[tuple[int, int]] = []
    for phase in schedule.phases:
        rank = (phase.task, PHASE_ORDER[phase.name])
        repeated = bool(ranks) and ranks[-1][0] == phase.task and ranks[-1][1] >= 3
        ranks.append((phase.task, 4) if repeated and phase.name == "constant" else rank)
    return ranks


def _keep_travelled(old: Schedule, new: Schedule, position: int) -> Schedule:
    """Join the phases of `old` up to the end of the current one with the later phases of `new` at `old`'s rates.

    A task begins and an annealing ends where `new` says, so that data boundaries stay boundaries of the curve; what
    lies between is filled with the last value. Warm-up and cool-down keep their lengths. A constant under way ends
    where `new` says, so that an annealing of a shorter run begins in time.
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
        whole = _reaches_peak(old, phase.task) and _reaches_peak(new, phase.task)
        phases.append(_at_old_rates(replace(phase, num_steps=num_steps), old, phases[-1] if phases else None, whole))
        cursor += num_steps or 0
    return Schedule(tuple(phases))


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


def _at_old_rates(phase: Phase, old: Schedule, previous: Phase | None, whole: bool) -> Phase:
    """Give a phase the rates that the checkpoint's schedule has for its kind; a kind that it lacks keeps its own.

    So does a warm-up that is cut off in one of the two schedules (not `whole`): where it ends says nothing of a peak.
    """
    same_kind = [other for other in old.phases if other.name == phase.name]
    same_task = [other for other in same_kind if other.task == phase.task]
    constants = [other.end for other in old.phases if other.name in ("constant", "cooldown_to_constant")]
    if phase.name == "anneal":
        start = constants[0] if constants else phase.start
        if previous is not None and previous.name != "anneal":
            start = previous.end
        end = same_kind[-1].end if same_kind else phase.end
        if end > start:
            raise ValueError(
                f"The floor of the annealing ({end:.3g} x learning_rate) must not be above the checkpoint's constant"
                f" ({start:.3g} x learning_rate), which on_resume=continue keeps."
            )
        if end == 0.0 and phase.shape not in ANNEAL_TYPES_TO_ZERO:
            raise ValueError(
                f"anneal_type={phase.shape!r} cannot reach the checkpoint's floor of 0, which on_resume=continue"
                f" keeps; {' or '.join(ANNEAL_TYPES_TO_ZERO)} can."
            )
        return replace(phase, start=start, end=end)
    if phase.name in ("constant", "cooldown_to_constant"):
        c = constants[0] if constants else phase.end
        return replace(phase, start=c if phase.name == "constant" else phase.start, end=c)
    if phase.name == "warmup":
        return replace(phase, end=same_task[0].end if same_task and whole else phase.end)
    if phase.name == "linear_end":
        return _linear_end_at_old_rates(phase, old, previous)
    start = same_task[0].start if same_task else phase.start
    if previous is not None and previous.task == phase.task:
        start = previous.end
    if phase.name == "rsqrt_decay":
        floor = same_kind[0].floor if same_kind else phase.floor
        assert floor is not None
        return replace(phase, start=start, end=rsqrt(1.0, start, 0.0, phase.timescale, floor), floor=floor)
    return replace(phase, start=start, end=same_kind[0].end if same_kind else phase.end)


def _linear_end_at_old_rates(phase: Phase, old: Schedule, previous: Phase | None) -> Phase:
    """Let a linear end go on from the phase before it, which its task has, over the checkpoint's floor."""
    assert previous is not None
    assert phase.num_steps is not None
    floors = [other.floor for other in old.phases if other.name == "rsqrt_decay" and other.floor is not None]
    first = (phase.num_steps - 1) / phase.num_steps
    return replace(phase, start=first * previous.end, floor=first * floors[0] if floors else phase.floor)


def _verdict(key: str, saved: ScheduleState, new: ScheduleState, resumed: ScheduleState) -> str:
    """Say whether a changed argument has been applied, judged by the phases that lie ahead; empty when it has."""
    if new.on_resume == "override" or key in _KEYS_OF_THE_RUN:
        return ""
    if key == "learning_rate":
        applied = [resumed.base_lrs == new.base_lrs]
    else:
        wanted = {(phase.task, phase.name): _level(phase) for phase in _relative_to(resumed.base_lrs[0], new).phases}
        applied = [
            key not in RATE_KEYS or math.isclose(_level(phase), wanted.get((phase.task, phase.name), _level(phase)))
            for phase in _ahead(key, new, resumed, saved.position)
        ]
    if not applied:
        return "not applied, because no phase that it shapes begins later; "
    if all(applied):
        return ""
    extent = "applied in part" if any(applied) else "not applied"
    return f"{extent}, because on_resume={new.on_resume} keeps the rates; "


def _ahead(key: str, new: ScheduleState, resumed: ScheduleState, position: int) -> list[Phase]:
    """Return the phases that an argument can still shape: a rate the current one too, all else those not begun."""
    schedule = resumed.schedule
    ends = (*schedule.boundaries[1:], math.inf)
    return [
        phase
        for phase, start, end in zip(schedule.phases, schedule.boundaries, ends, strict=False)
        if key in _keys_of(phase, new) and (end > position if key in RATE_KEYS else start >= position)
    ]


def _keys_of(phase: Phase, state: ScheduleState) -> tuple[str, ...]:
    if phase.name != "warmup" or phase.task == 0 or "num_rewarm_steps" not in state.arguments:
        return _KEYS_OF[phase.name]
    length = "warmup_steps" if state.arguments["num_rewarm_steps"] is None else "num_rewarm_steps"
    return (length, "num_rewarm_steps", "rewarm_lr_ratio")


def _level(phase: Phase) -> float:
    return phase.end if phase.floor is None else phase.floor


def _log_changes(saved: ScheduleState, new: ScheduleState, resumed: ScheduleState) -> None:
    if not is_main_process():
        return
    rates = f"rate at step {saved.position}: {format_rate(saved.rate)} -> {format_rate(resumed.rate)}"
    old_arguments = {"lr_scheduler_type": saved.name, **saved.arguments}
    new_arguments = {"lr_scheduler_type": new.name, **new.arguments}
    changed = [key for key in {**old_arguments, **new_arguments} if old_arguments.get(key) != new_arguments.get(key)]
    for key in changed:
        change = f"{key} {old_arguments.get(key)!r} -> {new_arguments.get(key)!r}"
        logger.warning(f"on_resume={new.on_resume}: {change} ({_verdict(key, saved, new, resumed)}{rates})")
    if "learning_rate" not in changed and _other_peaks(saved, new):
        pairs = dict.fromkeys(zip(saved.base_lrs, new.base_lrs, strict=True))
        peaks = ", ".join(f"{format_rate(old)} -> {format_rate(now)}" for old, now in pairs if old != now)
        verdict = "" if new.on_resume == "override" else "not applied, because the checkpoint's are kept; "
        logger.warning(f"on_resume={new.on_resume}: peaks of parameter groups {peaks} ({verdict}{rates})")
    elif not changed:
        logger.warning(f"on_resume={new.on_resume} takes effect ({rates})")
