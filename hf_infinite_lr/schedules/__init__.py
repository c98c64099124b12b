"""The mathematics of the schedules: curves, phases, chains of phases. Standard library only."""

from hf_infinite_lr.schedules.library import (
    ANNEAL_TYPES,
    ANNEAL_TYPES_TO_ZERO,
    COOLDOWN_TYPES,
    check_steps_or_share,
    cosine_rewarm,
    infinite,
    resolve_share,
)
from hf_infinite_lr.schedules.phases import BranchPoint, Phase, Place, Schedule
from hf_infinite_lr.schedules.shapes import DEFAULT_TIMESCALE, SHAPES

__all__ = [
    "ANNEAL_TYPES",
    "ANNEAL_TYPES_TO_ZERO",
    "COOLDOWN_TYPES",
    "DEFAULT_TIMESCALE",
    "SHAPES",
    "BranchPoint",
    "Phase",
    "Place",
    "Schedule",
    "check_steps_or_share",
    "cosine_rewarm",
    "infinite",
    "resolve_share",
]
