"""What is compared: the arms, the tables that they stand in, and the grids of the searches."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

WARMUP, ANNEALING, FLOOR = 0.05, 0.2, 0.1  # shares of a task, and of the peak: the package's defaults
FROM_THE_FLOOR = "rewarm_from_the_floor"
"""A key of an arm that no recipe knows: later warm-ups begin at the floor instead of rate 0."""


@dataclass(frozen=True)
class Table:
    """A table of results: one stream at one share of replay.

    Args:
        study (`str`): `lm` or `mae`.
        stream (`str`): Of [`~slices.STREAMS`].
        replay (`float`): `replay_fraction`.
        task_steps (`int`): Updates of each task.
        title (`str`): What it shows.
        seeds (`int`): How many are run, from 0 on.
        searched (`str`, *optional*): The table whose search it takes; None for a search of its own.
        only (`tuple[str, ...]`, *optional*): The arms it has; None for all that a primary table must have.
        more (`tuple[str, ...]`): Further arms.
    """

    study: str
    stream: str
    replay: float
    task_steps: int
    title: str
    seeds: int = 5
    searched: str | None = None
    only: tuple[str, ...] | None = None
    more: tuple[str, ...] = ()

    @property
    def arms(self) -> list[str]:
        """Its rows, in order."""
        return [name for name in LABELS if name in (self.only or PRIMARY) or name in self.more]


METRICS = {"lm": "bits_per_byte", "mae": "linear_accuracy"}
SECOND = {"lm": (), "mae": ("eval_loss",)}
"""A finer outcome beside the primary one: the squared error of masked pixels, which is what is trained."""
SEARCH_SEED = 1000
NEW_SEEDS = {"lm": (range(5, 10), range(10, 20)), "mae": (range(5, 10),)}
"""On which the primary comparison was run again when the tables were known; the last ones were declared before."""

_RATES = {"lm": (2e-3, 4e-3, 8e-3, 1.6e-2), "mae": (2.5e-4, 5e-4, 1e-3, 2e-3)}
_OWN_KNOB = {"infinite": ("constant_lr_ratio", (0.3, 0.75)), "cosine_rewarm": ("min_lr_ratio", (0.1, 0.01))}


def grid(study: str) -> dict[str, list[dict[str, float]]]:
    """The trials of each searched schedule: as many for one as for the other."""
    return {
        schedule: [{"learning_rate": rate, knob: value} for rate, value in product(_RATES[study], values)]
        for schedule, (knob, values) in _OWN_KNOB.items()
    }


def overrides(schedule: str, setting: Mapping[str, float]) -> dict[str, Any]:
    """What a setting of the grid changes in the recipe."""
    kwargs = {key: value for key, value in setting.items() if key != "learning_rate"}
    return {
        "lr_scheduler_type": schedule,
        "learning_rate": setting["learning_rate"],
        "lr_scheduler_kwargs": kwargs,
    }


def arms(found: Mapping[str, Mapping[str, float]], task_steps: int) -> dict[str, dict[str, Any]]:
    """
    Every row of a primary table, as what it changes in the recipe. Controls inherit the searched setting of the
    schedule that they vary; the constant, and the decay of `warmup_stable_decay`, are those of `infinite`.

    Args:
        found (`Mapping`): The setting that the search chose for each schedule.
        task_steps (`int`): Updates of each task.
    """
    infinite, cosine = (overrides(schedule, found[schedule]) for schedule in ("infinite", "cosine_rewarm"))
    peak, constant = infinite["learning_rate"], infinite["learning_rate"] * found["infinite"]["constant_lr_ratio"]
    floor = {"min_lr_ratio": FLOOR * peak / constant}
    kwargs = cosine["lr_scheduler_kwargs"]
    lower = {**kwargs, "rewarm_lr_ratio": constant / cosine["learning_rate"]}
    flat = {"num_cooldown_steps": 0, "constant_lr_ratio": 1, **floor}
    decay = {"num_decay_steps": int(ANNEALING * task_steps), **floor}
    return {
        "infinite": infinite,
        "cosine_rewarm": cosine,
        "cosine_peaks_at_constant": {**cosine, "lr_scheduler_kwargs": lower},
        "cosine_half_peaks": {**cosine, "lr_scheduler_kwargs": {**kwargs, "rewarm_lr_ratio": 0.5}},
        "cosine_no_warmup": {**cosine, "lr_scheduler_kwargs": {**kwargs, "num_rewarm_steps": 0}},
        "cosine_2_warmup": {**cosine, "lr_scheduler_kwargs": {**kwargs, "num_rewarm_steps": 0.02}},
        "cosine_from_floor": {**cosine, FROM_THE_FLOOR: True},
        "constant_branches": {**infinite, "learning_rate": constant, "lr_scheduler_kwargs": flat},
        "warmup_stable_decay": {
            "lr_scheduler_type": "warmup_stable_decay",
            "learning_rate": constant,
            "lr_scheduler_kwargs": decay,
            "warmup_steps": int(WARMUP * task_steps),
        },
        "infinite_no_rewind": {**infinite, "rewind": "none"},
        "infinite_weights_rewind": {**infinite, "rewind": "weights"},
        "infinite_reset": {**infinite, "reset_optimizer": True},
        "cosine_reset": {**cosine, "reset_optimizer": True},
        "infinite_extra": {**infinite, "anneal_budget": "extra"},
        "joint_infinite": {**infinite, "methods": {"joint": {}}, "replay_fraction": 0.0},
        "joint_cosine": {**cosine, "methods": {"joint": {}}, "replay_fraction": 0.0},
    }


LABELS = {
    "infinite": "`infinite`",
    "cosine_rewarm": "`cosine_rewarm`",
    "cosine_peaks_at_constant": "`cosine_rewarm`, later peaks at the constant of `infinite`",
    "cosine_half_peaks": "`cosine_rewarm`, later peaks halved",
    "cosine_from_floor": "`cosine_rewarm`, re-warmed from the floor instead of 0",
    "constant_branches": "constant after warm-up, same branches",
    "warmup_stable_decay": "`warmup_stable_decay` over the whole run",
    "infinite_no_rewind": "`infinite`, `rewind: none`",
    "infinite_weights_rewind": "`infinite`, `rewind: weights`",
    "infinite_reset": "`infinite`, optimizer reset at each task",
    "cosine_reset": "`cosine_rewarm`, optimizer reset at each task",
    "infinite_extra": "`infinite`, `anneal_budget: extra` (more updates)",
    "cosine_no_warmup": "`cosine_rewarm`, later tasks without warm-up",
    "cosine_2_warmup": "`cosine_rewarm`, later warm-ups of 2 %",
    "joint_infinite": "joint training under `infinite`",
    "joint_cosine": "joint training under one cosine",
}
"""How the page names each arm."""

PRIMARY = tuple(name for name in LABELS if name not in ("cosine_no_warmup", "cosine_2_warmup"))
"""The arms that every primary table has."""

TABLES = {
    "lm-no-replay": Table(
        "lm",
        "three",
        0.0,
        160,
        "Language models, three tasks, no replay",
        more=("cosine_no_warmup", "cosine_2_warmup"),
    ),
    "lm-replay": Table(
        *("lm", "three", 0.05, 160, "Language models, three tasks, 5 % replay"),
        searched="lm-no-replay",
    ),
    "lm-ten": Table("lm", "ten", 0.0, 48, "Language models, ten tasks at the same total, no replay"),
    "lm-weak": Table(
        *("lm", "same", 0.0, 160, "Language models, three tasks of one distribution, no replay"),
        searched="lm-no-replay",
        only=("infinite", "cosine_rewarm", "cosine_half_peaks", "joint_infinite", "joint_cosine"),
    ),
    "lm-long": Table(
        *("lm", "three", 0.0, 640, "Language models, three tasks four times as long, no replay"),
        seeds=3,
        searched="lm-no-replay",
        only=(
            *("infinite", "cosine_rewarm", "cosine_half_peaks", "constant_branches", "warmup_stable_decay"),
            *("infinite_extra", "joint_infinite", "joint_cosine"),
        ),
    ),
    "mae-no-replay": Table("mae", "three", 0.0, 400, "Masked autoencoders, three tasks, no replay"),
    "mae-replay": Table(
        *("mae", "three", 0.05, 400, "Masked autoencoders, three tasks, 5 % replay"),
        searched="mae-no-replay",
    ),
    "mae-ten": Table("mae", "ten", 0.0, 120, "Masked autoencoders, ten tasks at the same total, no replay"),
}
