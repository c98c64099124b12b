"""Phases with local time, and chains of phases that make a schedule of the global step."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

from hf_infinite_lr.schedules.shapes import SHAPES, SHAPES_THAT_ARRIVE

PHASE_ORDER = {
    "warmup": 0,
    "cooldown_to_constant": 1,
    "constant": 2,
    "anneal": 3,
    "cosine_decay": 3,
    "rsqrt_decay": 3,
    "linear_end": 4,
}
"""Every phase that there is, with its place within a task."""

REWARM_DECAYS = ("cosine_decay", "rsqrt_decay", "linear_end")
"""Phases behind a warm-up of the schedules that re-warm, which have no trunk."""


@dataclass(frozen=True)
class Phase:
    """A stretch of steps in which the rate follows one shape.

    Args:
        name (`str`):
            A key of `PHASE_ORDER`.
        task (`int`):
            Index of the task that the phase belongs to.
        num_steps (`int` or `None`):
            Length in optimizer steps, above zero; `None` for a phase without an end (only the last one, constant).
        start (`float`):
            Factor at local step 0, relative to the peak.
        end (`float`):
            Factor at local step `num_steps`, relative to the peak.
        shape (`str`):
            A key of [`~hf_infinite_lr.schedules.shapes.SHAPES`].
        timescale (`float`, *optional*):
            Of the shapes `inverse_sqrt`, `rsqrt` and `rsqrt_to_zero`.
        floor (`float`, *optional*):
            Of the shapes `rsqrt` and `rsqrt_to_zero`, relative to the peak.

    >>> Phase("warmup", 0, 4, 0.0, 1.0, "linear")(1)
    0.25
    """

    name: str
    task: int
    num_steps: int | None
    start: float
    end: float
    shape: str
    timescale: float | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
        assert self.name in PHASE_ORDER, self.name
        assert self.shape in SHAPES, self.shape
        assert self.num_steps is None or self.num_steps > 0, self
        assert self.num_steps is not None or self.shape == "constant", self

    def __call__(self, local_step: int) -> float:
        """Return the factor at a step counted from the phase's start; past its end, the end value."""
        if self.num_steps is None or local_step <= 0:
            return self.start
        span = self.num_steps - (self.shape in SHAPES_THAT_ARRIVE)
        if local_step >= span:
            return self.end
        floor = () if self.floor is None else (self.floor,)
        return SHAPES[self.shape](local_step / span, self.start, self.end, self.timescale, *floor)


class Place(NamedTuple):
    """Where a step lies in a schedule: index of the phase, the phase, and the phase's first step."""

    phase_index: int
    phase: Phase
    first_step: int


class BranchPoint(NamedTuple):
    """A task's annealing: the task's index, the first step of the annealing, the first step after it."""

    task: int
    first_step: int
    end_step: int


@dataclass(frozen=True)
class Schedule:
    """A chain of phases: a pure function of the global step.

    A phase covers the half-open interval from its first step to the next phase's first step. Past the end of the
    last phase its end value holds. Looking up a step costs O(log n) in the number of phases.

    Args:
        phases (`tuple[Phase, ...]`):
            At least one phase; only the last may be without an end.

    >>> schedule = Schedule((Phase("warmup", 0, 2, 0.0, 1.0, "linear"), Phase("constant", 0, 3, 1.0, 1.0, "constant")))
    >>> [schedule(step) for step in (0, 1, 2, 99)]
    [0.0, 0.5, 1.0, 1.0]
    """

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        assert self.phases, "a schedule has at least one phase"
        assert all(phase.num_steps is not None for phase in self.phases[:-1]), "only the last phase may be open"

    @cached_property
    def boundaries(self) -> tuple[int, ...]:
        """First step of every phase, and behind them the schedule's end if it has one."""
        return tuple(accumulate((phase.num_steps for phase in self.phases if phase.num_steps is not None), initial=0))

    @property
    def num_steps(self) -> int | None:
        """Steps of all phases together; `None` when the last phase has no end."""
        return None if self.phases[-1].num_steps is None else self.boundaries[-1]

    def at(self, step: int) -> Place:
        """Return the phase that `step` lies in; past the end, the last phase."""
        index = min(max(bisect_right(self.boundaries, step) - 1, 0), len(self.phases) - 1)
        return Place(index, self.phases[index], self.boundaries[index])

    def __call__(self, step: int) -> float:
        """Return the factor relative to the peak at a global step."""
        _, phase, first_step = self.at(step)
        return phase(step - first_step)

    @cached_property
    def branch_points(self) -> tuple[BranchPoint, ...]:
        """The annealing phase of every task that has one."""
        return tuple(
            BranchPoint(phase.task, start, start + (phase.num_steps or 0))
            for phase, start in zip(self.phases, self.boundaries, strict=False)
            if phase.name == "anneal"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values, as they are stored in checkpoints."""
        return {"phases": [asdict(phase) for phase in self.phases]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Schedule":
        """Rebuild a schedule from [`~Schedule.to_dict`]."""
        return cls(tuple(Phase(**phase) for phase in values["phases"]))
