"""The lines in which a resumed run says what its changed arguments do, and which of them do nothing."""

import logging
import math

from hf_infinite_lr.announcement import format_rate, is_main_process
from hf_infinite_lr.arguments import RATE_KEYS
from hf_infinite_lr.resume_policy import ScheduleState
from hf_infinite_lr.schedules import Phase

logger = logging.getLogger(__name__)

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


def announce_changes(saved: ScheduleState, new: ScheduleState, resumed: ScheduleState) -> None:
    """Log each argument that differs from the checkpoint's, and whether the policy has applied it.

    Args:
        saved ([`~hf_infinite_lr.resume_policy.ScheduleState`]):
            From the checkpoint.
        new ([`~hf_infinite_lr.resume_policy.ScheduleState`]):
            From the arguments of this run.
        resumed ([`~hf_infinite_lr.resume_policy.ScheduleState`]):
            What [`~hf_infinite_lr.resume_policy.resume`] has made of the two.
    """
    if not is_main_process():
        return
    rates = f"rate at step {saved.position}: {format_rate(saved.rate)} -> {format_rate(resumed.rate)}"
    old_arguments = {"lr_scheduler_type": saved.name, **saved.arguments}
    new_arguments = {"lr_scheduler_type": new.name, **new.arguments}
    changed = [key for key in {**old_arguments, **new_arguments} if old_arguments.get(key) != new_arguments.get(key)]
    for key in changed:
        change = f"{key} {old_arguments.get(key)!r} -> {new_arguments.get(key)!r}"
        logger.warning(f"on_resume={new.on_resume}: {change} ({_verdict(key, saved, new, resumed)}{rates})")
    if "learning_rate" not in changed and new.asks_other_peaks_than(saved):
        pairs = dict.fromkeys(zip(saved.base_lrs, new.base_lrs, strict=True))
        peaks = ", ".join(f"{format_rate(old)} -> {format_rate(now)}" for old, now in pairs if old != now)
        verdict = "" if new.on_resume == "override" else "not applied, because the checkpoint's are kept; "
        logger.warning(f"on_resume={new.on_resume}: peaks of parameter groups {peaks} ({verdict}{rates})")
    elif not changed:
        logger.warning(f"on_resume={new.on_resume} takes effect ({rates})")


def _verdict(key: str, saved: ScheduleState, new: ScheduleState, resumed: ScheduleState) -> str:
    """Say whether a changed argument has been applied, judged by the phases that lie ahead; empty when it has."""
    if new.on_resume == "override" or key in _KEYS_OF_THE_RUN:
        return ""
    if key == "learning_rate":
        applied = [resumed.base_lrs == new.base_lrs]
    else:
        wanted = {
            (phase.task, phase.name): _level(phase) for phase in new.schedule_relative_to(resumed.base_lrs).phases
        }
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
