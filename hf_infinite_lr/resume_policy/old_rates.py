"""The rates that `continue` keeps: the checkpoint's, given phase by phase to the schedule of the run.

There is one rule for each kind of phase. It is told the phase, whose length and shape are settled, the checkpoint's
schedule and the phase before; where that schedule has no such phase, the phase keeps its own rates.
"""

from collections.abc import Callable
from dataclasses import replace

from hf_infinite_lr.schedules import ANNEAL_TYPES_TO_ZERO, Phase, Schedule, rsqrt

_Rule = Callable[[Phase, Schedule, Phase | None], Phase]


def at_old_rates(phase: Phase, old: Schedule, previous: Phase | None) -> Phase:
    """Give a phase the rates that the checkpoint's schedule has for its kind.

    Args:
        phase ([`~hf_infinite_lr.schedules.Phase`]):
            A later phase of the run.
        old ([`~hf_infinite_lr.schedules.Schedule`]):
            The checkpoint's.
        previous ([`~hf_infinite_lr.schedules.Phase`], *optional*):
            The phase that it follows, at its final rates.

    Raises:
        `ValueError`: for an annealing that cannot reach the checkpoint's floor.
    """
    return _RULES[phase.name](phase, old, previous)


def _warmup(phase: Phase, old: Schedule, previous: Phase | None) -> Phase:  # noqa: ARG001
    """To the peak that its task has."""
    return replace(phase, end=next((other.end for other in _same_task(phase, old)), phase.end))


def _cooldown_to_constant(phase: Phase, old: Schedule, previous: Phase | None) -> Phase:  # noqa: ARG001
    return replace(phase, end=_constant_of(old, phase.end))


def _constant(phase: Phase, old: Schedule, previous: Phase | None) -> Phase:  # noqa: ARG001
    level = _constant_of(old, phase.end)
    return replace(phase, start=level, end=level)


def _anneal(phase: Phase, old: Schedule, previous: Phase | None) -> Phase:
    """From where the phase before ends, behind an annealing from the trunk, to the floor of the last annealing."""
    start = _constant_of(old, phase.start) if previous is None or previous.name == "anneal" else previous.end
    end = next((other.end for other in reversed(_same_kind(phase, old))), phase.end)
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


def _cosine_decay(phase: Phase, old: Schedule, previous: Phase | None) -> Phase:
    end = next((other.end for other in _same_kind(phase, old)), phase.end)
    return replace(phase, start=_start_of_decay(phase, old, previous), end=end)


def _rsqrt_decay(phase: Phase, old: Schedule, previous: Phase | None) -> Phase:
    """Where it ends follows from its start and its floor."""
    start = _start_of_decay(phase, old, previous)
    floor = next((other.floor for other in _same_kind(phase, old)), phase.floor)
    assert floor is not None
    return replace(phase, start=start, end=rsqrt(1.0, start, 0.0, phase.timescale, floor), floor=floor)


def _linear_end(phase: Phase, old: Schedule, previous: Phase | None) -> Phase:
    """From the phase before, which its task has, over the floor of the decay."""
    assert previous is not None
    assert phase.num_steps is not None
    floors = [other.floor for other in old.phases if other.name == "rsqrt_decay" and other.floor is not None]
    first = (phase.num_steps - 1) / phase.num_steps
    return replace(phase, start=first * previous.end, floor=first * floors[0] if floors else phase.floor)


_RULES: dict[str, _Rule] = {
    "warmup": _warmup,
    "cooldown_to_constant": _cooldown_to_constant,
    "constant": _constant,
    "anneal": _anneal,
    "cosine_decay": _cosine_decay,
    "rsqrt_decay": _rsqrt_decay,
    "linear_end": _linear_end,
}


def _same_kind(phase: Phase, old: Schedule) -> list[Phase]:
    return [other for other in old.phases if other.name == phase.name]


def _same_task(phase: Phase, old: Schedule) -> list[Phase]:
    return [other for other in _same_kind(phase, old) if other.task == phase.task]


def _constant_of(old: Schedule, own: float) -> float:
    """The level of the checkpoint's trunk, and the phase's own if it has none."""
    return next((other.end for other in old.phases if other.name in ("constant", "cooldown_to_constant")), own)


def _start_of_decay(phase: Phase, old: Schedule, previous: Phase | None) -> float:
    """Where a decay starts: at the end of its task's warm-up, or without one where that of its task started."""
    if previous is not None and previous.task == phase.task:
        return previous.end
    return next((other.start for other in _same_task(phase, old)), phase.start)
