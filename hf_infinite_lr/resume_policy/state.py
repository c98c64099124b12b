"""The state of a schedule, as a checkpoint keeps it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_infinite_lr.schedules import Phase, Schedule

STATE_VERSION = 1


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

    def asks_other_peaks_than(self, saved: "ScheduleState") -> bool:
        """Whether the run asks for other peaks than the one that wrote the checkpoint did, as far as it tells."""
        return saved.asked_lrs is not None and saved.asked_lrs != self.asked_lrs

    def peak_under(self, base_lrs: Sequence[float]) -> float:
        """Return the peak of the run, to which absolute rates refer, as a checkpoint with these group peaks had it.

        A group may have any multiple of it, and 0 as well: that of a group with a rate, then and now, says how far
        the peak has moved.
        """
        own = self.asked_lrs or self.base_lrs
        then, now = next(((old, new) for old, new in zip(base_lrs, own, strict=True) if old and new), (1.0, 1.0))
        return then * (float(self.arguments["learning_rate"]) / now)

    def schedule_relative_to(self, base_lrs: Sequence[float]) -> Schedule:
        """Return the schedule with the levels that were given as absolute rates relative to other group peaks."""
        absolute = {"constant_lr", "min_lr"} & self.arguments.keys()
        if not absolute or tuple(base_lrs) == self.base_lrs:
            return self.schedule
        ratio = float(self.arguments["learning_rate"]) / self.peak_under(base_lrs)
        constant = ratio if "constant_lr" in absolute else 1.0
        floor = ratio if "min_lr" in absolute else 1.0
        levels = {"constant": constant, "cooldown_to_constant": constant, "anneal": floor, "cosine_decay": floor}
        return Schedule(
            tuple(
                replace(
                    phase,
                    end=phase.end * levels.get(phase.name, 1.0),
                    floor=None if phase.floor is None else phase.floor * floor,
                )
                for phase in self.schedule.phases
            )
        )

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
            rates = zip(values["_last_lr"], base_lrs, strict=True)
            factor = next((float(rate) / base_lr for rate, base_lr in rates if base_lr), 0.0)
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
