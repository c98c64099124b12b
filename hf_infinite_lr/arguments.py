"""The keys of `lr_scheduler_kwargs`, their defaults, and the sentences that refuse a bad value."""

import difflib
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from hf_infinite_lr.schedules import ANNEAL_TYPES, COOLDOWN_TYPES, DEFAULT_TIMESCALE, check_steps_or_share

ON_RESUME = ("continue", "override", "anneal")
ANNEAL_BUDGETS = ("within", "extra")
RELEASES = ("each", "last", "none")
RATE_KEYS = ("learning_rate", "constant_lr_ratio", "constant_lr", "min_lr_ratio", "min_lr", "rewarm_lr_ratio")

DEFAULTS: dict[str, dict[str, Any]] = {
    "infinite": {
        "num_cooldown_steps": 0.35,
        "cooldown_type": "cosine",
        "timescale": DEFAULT_TIMESCALE,
        "constant_lr_ratio": 0.75,
        "num_anneal_steps": 0.2,
        "anneal_type": "exponential",
        "min_lr_ratio": 0.1,
    },
    "cosine_rewarm": {"num_rewarm_steps": None, "rewarm_lr_ratio": 1.0, "min_lr_ratio": 0.1},
    "rsqrt_rewarm": {
        "num_rewarm_steps": None,
        "rewarm_lr_ratio": 1.0,
        "num_anneal_steps": 0.2,
        "min_lr_ratio": 0.1,
    },
}
OWN_SCHEDULES = tuple(DEFAULTS)
AUTOREGRESSIVE = "autoregressive"
"""The `rewarm_lr_ratio` by which peaks fall from task to task."""
ABSOLUTE_KEYS = {"constant_lr_ratio": "constant_lr", "min_lr_ratio": "min_lr"}
LENGTH_KEYS = {
    "infinite": ("task_steps",),
    "cosine_rewarm": ("task_steps", "num_tasks"),
    "rsqrt_rewarm": ("task_steps", "num_tasks"),
}
_CONSTANT_FILLS = "no key of its own: the constant takes the steps that num_cooldown_steps and num_anneal_steps leave"
_WARMUP = "warmup_steps of the training arguments (below 1 it is a share)"
_FOREIGN: dict[str, dict[str, str]] = {
    "infinite": {
        "num_decay_steps": "num_anneal_steps",
        "decay_type": "anneal_type",
        "num_stable_steps": _CONSTANT_FILLS,
        "constant_iters_perc": _CONSTANT_FILLS,
        "cooldown_iters_perc": "num_cooldown_steps",
        "min_lr_rate": "min_lr_ratio",
        "warmup_ratio": _WARMUP,
        "warmup_steps": _WARMUP,
        "num_tasks": "task_steps",
    },
    "cosine_rewarm": {
        "num_cycles": "num_tasks",
        "min_lr_rate": "min_lr_ratio",
        "warmup_ratio": _WARMUP,
        "warmup_steps": _WARMUP,
    },
    "rsqrt_rewarm": {
        "num_cooldown_steps": "num_anneal_steps",
        "num_decay_steps": "num_anneal_steps",
        "min_lr_rate": "min_lr_ratio",
        "warmup_ratio": _WARMUP,
        "warmup_steps": _WARMUP,
    },
}


def allowed_keys(name: str) -> tuple[str, ...]:
    """Return the keys of `lr_scheduler_kwargs` that a schedule knows.

    >>> allowed_keys("cosine_rewarm")
    ('num_rewarm_steps', 'rewarm_lr_ratio', 'min_lr_ratio', 'min_lr', 'task_steps', 'num_tasks', 'on_resume')
    """
    own = [key for ratio in DEFAULTS[name] for key in (ratio, ABSOLUTE_KEYS.get(ratio)) if key is not None]
    return (*own, *LENGTH_KEYS[name], "on_resume")


def check_keys(name: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse unknown keys with the nearest known one, and other systems' names with ours.

    Args:
        name (`str`):
            `infinite`, `cosine_rewarm` or `rsqrt_rewarm`.
        kwargs (`Mapping[str, Any]`):
            The `lr_scheduler_kwargs`.

    Raises:
        `ValueError`: naming the key, its value and the key to use.
    """
    known = allowed_keys(name)
    for key, value in kwargs.items():
        if key in known:
            continue
        if key in _FOREIGN[name]:
            raise ValueError(
                f"{key}={value!r} is not a name of the {name} schedule; here it is {_FOREIGN[name][key]}."
            )
        nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"the keys are {', '.join(known)}."
        raise ValueError(f"{key}={value!r} is not a key of lr_scheduler_kwargs for {name}; {hint}")


def plain_value(value: Any) -> Any:
    """Return the plain Python form of a number (also numpy's) or of a sequence, so that checkpoints load anywhere."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Sequence):
        return [plain_value(item) for item in value]
    return value


def check_rate(field: str, rate: object) -> float:
    """Return a peak, such as `learning_rate`, as a float.

    Raises:
        `ValueError`: when it is not a finite number above zero.
    """
    return _positive(field, plain_value(rate))


def curve_arguments(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The `lr_scheduler_kwargs` that shape the curve: all but `on_resume`, which is the scheduler's."""
    return {key: value for key, value in (kwargs or {}).items() if key != "on_resume"}


def complete_arguments(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keys that shape the curve and fill in the defaults.

    Args:
        name (`str`):
            `infinite`, `cosine_rewarm` or `rsqrt_rewarm`.
        kwargs (`Mapping[str, Any]`):
            The `lr_scheduler_kwargs` without `task_steps`, `num_tasks` and `on_resume`; `None` is the default.

    Returns:
        `dict[str, Any]`: plain Python values, one for every key; of a ratio and its absolute form only one.

    Raises:
        `ValueError`: for unknown keys, a ratio and its absolute form together, and values out of their range.
    """
    check_keys(name, kwargs)
    given = {key: plain_value(value) for key, value in kwargs.items() if value is not None}
    for key in (*LENGTH_KEYS[name], "on_resume"):
        if key in given:
            raise ValueError(f"{key}={given[key]!r} does not belong here; it is an argument of its own.")
    complete = dict(DEFAULTS[name])
    for ratio, absolute in ABSOLUTE_KEYS.items():
        if ratio in given and absolute in given:
            raise ValueError(
                f"{ratio}={given[ratio]!r} and {absolute}={given[absolute]!r} are given together; give one of them."
            )
        if absolute in given:
            complete.pop(ratio, None)
    complete.update(given)
    if name == "infinite":
        _check_infinite(complete)
        if "timescale" in given and complete["cooldown_type"] != "inverse_sqrt":
            raise ValueError(
                f"timescale={given['timescale']!r} is of cooldown_type='inverse_sqrt' and would change nothing with"
                f" {complete['cooldown_type']!r}; leave it out."
            )
    else:
        _check_rewarm(complete)
    return complete


def _check_infinite(arguments: dict[str, Any]) -> None:
    check_steps_or_share("num_cooldown_steps", arguments["num_cooldown_steps"])
    check_steps_or_share("num_anneal_steps", arguments["num_anneal_steps"])
    check_choice("cooldown_type", arguments["cooldown_type"], COOLDOWN_TYPES)
    check_choice("anneal_type", arguments["anneal_type"], ANNEAL_TYPES)
    _positive("timescale", arguments["timescale"])
    for key in ("constant_lr_ratio", "constant_lr"):
        if key in arguments:
            _positive(key, arguments[key])
    _check_floor_number(arguments)


def _check_rewarm(arguments: dict[str, Any]) -> None:
    for key in ("num_rewarm_steps", "num_anneal_steps"):
        if arguments.get(key) is not None:
            check_steps_or_share(key, arguments[key])
    ratios = arguments["rewarm_lr_ratio"]
    if isinstance(ratios, str):
        check_choice("rewarm_lr_ratio", ratios, ("a number", "a list of numbers", AUTOREGRESSIVE))
    else:
        for ratio in ratios if isinstance(ratios, list) else [ratios]:
            _positive("rewarm_lr_ratio", ratio)
    _check_floor_number(arguments)


def _check_floor_number(arguments: dict[str, Any]) -> None:
    for key in ("min_lr_ratio", "min_lr"):
        if key in arguments:
            _number(key, arguments[key])
            if arguments[key] < 0:
                raise ValueError(f"{key}={arguments[key]!r} must not be negative.")


def _number(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{field}={value!r} must be a finite number.")
    return float(value)


def _positive(field: str, value: object) -> float:
    if _number(field, value) <= 0:
        raise ValueError(f"{field}={value!r} must be above 0.")
    return _number(field, value)


def check_choice(field: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices, naming them."""
    if value not in choices:
        raise ValueError(f"{field}={value!r} must be one of {', '.join(choices)}.")


def check_task_steps(task_steps: Sequence[int]) -> list[int]:
    """Return the task lengths as a list of integers.

    Raises:
        `ValueError`: when there is none, or one is not an integer of 1 or more.
    """
    lengths = plain_value(list(task_steps))
    if not lengths:
        raise ValueError("task_steps=[] must hold at least one task length.")
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"task_steps={length!r} must be an integer of 1 or more (optimizer steps of a task).")
    return list(lengths)


def resume_arguments(
    name: str,
    *,
    task_steps: Sequence[int],
    learning_rate: float,
    warmup_steps: int | float,
    kwargs: Mapping[str, Any],
    anneal_budget: str = "within",
    release: str = "each",
) -> dict[str, Any]:
    """Return what a schedule was built from, complete and plain, for the resume policy to compare.

    Args:
        name (`str`):
            As for [`~hf_infinite_lr.construction.schedule_from_arguments`], and so are all others.
        task_steps (`Sequence[int]`):
            Optimizer steps of each task.
        learning_rate (`float`):
            The peak.
        warmup_steps (`int` or `float`):
            Steps, or a share.
        kwargs (`Mapping[str, Any]`):
            The `lr_scheduler_kwargs` without `task_steps`, `num_tasks` and `on_resume`.
        anneal_budget (`str`, *optional*, defaults to `"within"`):
            `within` or `extra`.
        release (`str`, *optional*, defaults to `"each"`):
            `each`, `last` or `none`.

    Returns:
        `dict[str, Any]`: the `arguments` of [`~hf_infinite_lr.lr_scheduler.ScheduleLR`].

    >>> arguments = resume_arguments("infinite", task_steps=[9], learning_rate=0.1, warmup_steps=2, kwargs={})
    >>> arguments["task_steps"], arguments["num_anneal_steps"]
    ([9], 0.2)
    """
    return {
        "learning_rate": check_rate("learning_rate", learning_rate),
        "warmup_steps": plain_value(warmup_steps),
        "task_steps": check_task_steps(task_steps),
        "anneal_budget": anneal_budget,
        "release": release,
        **complete_arguments(name, kwargs),
    }
