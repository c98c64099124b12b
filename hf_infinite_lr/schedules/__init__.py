"""The mathematics of the schedules: curves, phases, chains of phases. Standard library only."""

from hf_infinite_lr.schedules.falling_peaks import autoregressive_cosine_peaks, autoregressive_rsqrt_peaks
from hf_infinite_lr.schedules.library import (
    ANNEAL_TYPES,
    ANNEAL_TYPES_TO_ZERO,
    COOLDOWN_TYPES,
    check_steps_or_share,
    cosine_rewarm,
    infinite,
    resolve_share,
)
from hf_infinite_lr.schedules.phases import PHASE_ORDER, REWARM_DECAYS, BranchPoint, Phase, Place, Schedule
from hf_infinite_lr.schedules.reciprocal_sqrt import rsqrt_rewarm
from hf_infinite_lr.schedules.shapes import DEFAULT_TIMESCALE, SHAPES, rsqrt

__all__ = [
    "ANNEAL_TYPES",
    "ANNEAL_TYPES_TO_ZERO",
    "COOLDOWN_TYPES",
    "DEFAULT_TIMESCALE",
    "PHASE_ORDER",
    "REWARM_DECAYS",
    "SHAPES",
    "BranchPoint",
    "Phase",
    "Place",
    "Schedule",
    "autoregressive_cosine_peaks",
    "autoregressive_rsqrt_peaks",
    "check_steps_or_share",
    "cosine_rewarm",
    "infinite",
    "resolve_share",
    "rsqrt",
    "rsqrt_rewarm",
]
