"""`lr_scheduler_kwargs` become a schedule here, and every bad argument is refused here in one sentence."""

import difflib
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from hf_infinite_lr.schedules import (
    ANNEAL_TYPES,
    ANNEAL_TYPES_TO_ZERO,
    COOLDOWN_TYPES,
    DEFAULT_TIMESCALE,
    Schedule,
    check_steps_or_share,
    cosine_rewarm,
    infinite,
    resolve_share,
)

ON_RESUME = ("continue", "override", "anneal")
ANNEAL_BUDGETS = ("within", "extra")
RELEASES = ("each", "last", "none")
RATE_KEYS = ("learning_rate", "constant_lr_ratio", "constant_lr", "min_lr_ratio", "min_lr", "rewarm_lr_ratio")

_DEFAULTS: dict[str, dict[str, Any]] = {
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
}
_ABSOLUTE = {"constant_lr_ratio": "constant_lr", "min_lr_ratio": "min_lr"}
_LENGTHS = {"infinite": ("task_steps",), "cosine_rewarm": ("task_steps", "num_tasks")}
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
}


def allowed_keys(name: str) -> tuple[str, ...]:
    """Return the keys of `lr_scheduler_kwargs` that a schedule knows.

    >>> allowed_keys("cosine_rewarm")
    ('num_rewarm_steps', 'rewarm_lr_ratio', 'min_lr_ratio', 'min_lr', 'task_steps', 'num_tasks', 'on_resume')
    """
    own = [key for ratio in _DEFAULTS[name] for key in (ratio, _ABSOLUTE.get(ratio)) if key is not None]
    return (*own, *_LENGTHS[name], "on_resume")


def check_keys(name: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse unknown keys with the nearest known one, and other systems' names with ours.

    Args:
        name (`str`):
            `infinite` or `cosine_rewarm`.
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


def check_learning_rate(learning_rate: object) -> float:
    """Return the peak as a float.

    Raises:
        `ValueError`: when it is not a finite number above zero.
    """
    return _positive("learning_rate", plain_value(learning_rate))


def complete_arguments(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keys that shape the curve and fill in the defaults.

    Args:
        name (`str`):
            `infinite` or `cosine_rewarm`.
        kwargs (`Mapping[str, Any]`):
            The `lr_scheduler_kwargs` without `task_steps`, `num_tasks` and `on_resume`; `None` is the default.

    Returns:
        `dict[str, Any]`: plain Python values, one for every key; of a ratio and its absolute form only one.

    Raises:
        `ValueError`: for unknown keys, a ratio and its absolute form together, and values out of their range.
    """
    check_keys(name, kwargs)
    given = {key: plain_value(value) for key, value in kwargs.items() if value is not None}
    for key in (*_LENGTHS[name], "on_resume"):
        if key in given:
            raise ValueError(f"{key}={given[key]!r} does not belong here; it is an argument of its own.")
    complete = dict(_DEFAULTS[name])
    for ratio, absolute in _ABSOLUTE.items():
        if ratio in given and absolute in given:
            raise ValueError(
                f"{ratio}={given[ratio]!r} and {absolute}={given[absolute]!r} are given together; give one of them."
            )
        if absolute in given:
            complete.pop(ratio, None)
    complete.update(given)
    if name == "infinite":
        _check_infinite(complete)
    else:
        _check_cosine_rewarm(complete)
    return complete


def _check_infinite(arguments: dict[str, Any]) -> None:
    check_steps_or_share("num_cooldown_steps", arguments["num_cooldown_steps"])
    check_steps_or_share("num_anneal_steps", arguments["num_anneal_steps"])
    _choice("cooldown_type", arguments["cooldown_type"], COOLDOWN_TYPES)
    _choice("anneal_type", arguments["anneal_type"], ANNEAL_TYPES)
    _positive("timescale", arguments["timescale"])
    for key in ("constant_lr_ratio", "constant_lr"):
        if key in arguments:
            _positive(key, arguments[key])
    _check_floor_number(arguments)


def _check_cosine_rewarm(arguments: dict[str, Any]) -> None:
    if arguments["num_rewarm_steps"] is not None:
        check_steps_or_share("num_rewarm_steps", arguments["num_rewarm_steps"])
    ratios = arguments["rewarm_lr_ratio"]
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


def _choice(field: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{field}={value!r} must be one of {', '.join(choices)}.")


def _factor(arguments: Mapping[str, Any], ratio: str, learning_rate: float) -> tuple[str, float]:
    """Return the key in force and its value relative to the peak; an absolute rate is divided here, once."""
    if ratio in arguments:
        return f"{ratio}={arguments[ratio]!r}", float(arguments[ratio])
    absolute = _ABSOLUTE[ratio]
    return f"{absolute}={arguments[absolute]!r}", float(arguments[absolute]) / learning_rate


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


def schedule_from_arguments(
    name: str,
    *,
    task_steps: Sequence[int],
    learning_rate: float,
    warmup_steps: int | float,
    kwargs: Mapping[str, Any],
    anneal_budget: str = "within",
    release: str = "each",
) -> Schedule:
    """Turn `lr_scheduler_kwargs` and known task lengths into a schedule.

    Args:
        name (`str`):
            `infinite` or `cosine_rewarm`.
        task_steps (`Sequence[int]`):
            Optimizer steps of each task.
        learning_rate (`float`):
            The peak, by which absolute rates are divided.
        warmup_steps (`int` or `float`):
            Steps, or a share of the first task; for `cosine_rewarm` a share of each task.
        kwargs (`Mapping[str, Any]`):
            The `lr_scheduler_kwargs` without `task_steps`, `num_tasks` and `on_resume`.
        anneal_budget (`str`, *optional*, defaults to `"within"`):
            `within` or `extra`, see [`~hf_infinite_lr.schedules.infinite`].
        release (`str`, *optional*, defaults to `"each"`):
            Which tasks anneal: `each`, `last` or `none`.

    Returns:
        [`~hf_infinite_lr.schedules.Schedule`]: of the global step, relative to the peak.

    Raises:
        `ValueError`: one sentence naming field, value and rule.

    >>> schedule = schedule_from_arguments(
    ...     "infinite", task_steps=[100, 100], learning_rate=1e-3, warmup_steps=0.05, kwargs={"constant_lr": 5e-4}
    ... )
    >>> schedule.branch_points
    (BranchPoint(task=0, first_step=80, end_step=100), BranchPoint(task=1, first_step=180, end_step=200))
    """
    _choice("lr_scheduler_type", name, tuple(_DEFAULTS))
    _choice("anneal_budget", anneal_budget, ANNEAL_BUDGETS)
    _choice("release", release, RELEASES)
    peak = check_learning_rate(learning_rate)
    lengths = check_task_steps(task_steps)
    arguments = complete_arguments(name, kwargs)
    warmup = plain_value(warmup_steps)
    check_steps_or_share("warmup_steps", warmup)
    if name == "cosine_rewarm":
        return _cosine_rewarm(lengths, peak, warmup, arguments)
    share = arguments["num_anneal_steps"]
    anneal_steps = [resolve_share("num_anneal_steps", share, length) for length in lengths]
    if release != "each":
        anneal_steps = [0] * len(lengths) if release == "none" else [0] * (len(lengths) - 1) + anneal_steps[-1:]
    return _infinite(lengths, peak, warmup, arguments, anneal_steps, anneal_budget)


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
    """Return what [`schedule_from_arguments`] was given, complete and plain, for the resume policy to compare.

    Args:
        name (`str`):
            As for [`schedule_from_arguments`], and so are all others.
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
        "learning_rate": check_learning_rate(learning_rate),
        "warmup_steps": plain_value(warmup_steps),
        "task_steps": check_task_steps(task_steps),
        "anneal_budget": anneal_budget,
        "release": release,
        **complete_arguments(name, kwargs),
    }


def _infinite(
    lengths: Sequence[int],
    peak: float,
    warmup: int | float,
    arguments: Mapping[str, Any],
    anneal_steps: Sequence[int],
    anneal_budget: str = "within",
    open_end: bool = False,
) -> Schedule:
    constant_text, c = _factor(arguments, "constant_lr_ratio", peak)
    floor_text, m = _factor(arguments, "min_lr_ratio", peak)
    num_cooldown = resolve_share("num_cooldown_steps", arguments["num_cooldown_steps"], lengths[0])
    if c > 1.0:
        raise ValueError(f"{constant_text} must not be above the peak (learning_rate={peak!r}).")
    if num_cooldown == 0 and c != 1.0:
        raise ValueError(
            f"num_cooldown_steps=0 requires a constant_lr_ratio of 1, but the constant is {constant_text}."
        )
    if m > c:
        raise ValueError(f"{floor_text} must not be above the constant ({constant_text}).")
    anneal_type = arguments["anneal_type"]
    if m == 0.0 and anneal_type not in ANNEAL_TYPES_TO_ZERO and any(anneal_steps):
        raise ValueError(
            f"{floor_text} cannot be reached by anneal_type={anneal_type!r}; the types that can are"
            f" {', '.join(ANNEAL_TYPES_TO_ZERO)}."
        )
    return infinite(
        lengths,
        num_warmup_steps=resolve_share("warmup_steps", warmup, lengths[0]),
        num_cooldown_steps=num_cooldown,
        anneal_steps=anneal_steps,
        constant_ratio=c,
        min_ratio=m,
        cooldown_type=arguments["cooldown_type"],
        timescale=float(arguments["timescale"]),
        anneal_type=anneal_type,
        anneal_budget=anneal_budget,
        open_end=open_end,
    )


def _cosine_rewarm(lengths: Sequence[int], peak: float, warmup: int | float, arguments: Mapping[str, Any]) -> Schedule:
    rewarm = arguments["num_rewarm_steps"]
    warmup_steps = [
        resolve_share("warmup_steps", warmup, length)
        if task == 0 or rewarm is None
        else resolve_share("num_rewarm_steps", rewarm, length)
        for task, length in enumerate(lengths)
    ]
    ratios = arguments["rewarm_lr_ratio"]
    if isinstance(ratios, list) and len(ratios) != len(lengths) - 1:
        raise ValueError(
            f"rewarm_lr_ratio={ratios!r} must hold one ratio for each task after the first: {len(lengths) - 1}."
        )
    peaks = [1.0, *(map(float, ratios) if isinstance(ratios, list) else [float(ratios)] * (len(lengths) - 1))]
    floor_text, m = _factor(arguments, "min_lr_ratio", peak)
    for task, ratio in enumerate(peaks):
        if m > ratio:
            raise ValueError(
                f"{floor_text} must not be above the peak of task {task + 1} ({ratio!r} x learning_rate)."
            )
    return cosine_rewarm(lengths, warmup_steps=warmup_steps, peak_ratios=peaks, min_ratio=m)


def plain_task_steps(kwargs: Mapping[str, Any], num_training_steps: int | None) -> list[int] | None:
    """Return the task lengths of a run that knows only its length and `lr_scheduler_kwargs`.

    Args:
        kwargs (`Mapping[str, Any]`):
            The `lr_scheduler_kwargs`; `task_steps` as a number means that every task has that length, and the run
            may stop inside the last one; `num_tasks` cuts the run into equal tasks, the remainder goes to the first.
        num_training_steps (`int` or `None`):
            Steps of the run, if known.

    Returns:
        `list[int]` or `None`: lengths of the tasks; `None` when no length is known.

    Raises:
        `ValueError`: for both keys together, a number without a known run, and lengths that are no positive integers.

    >>> plain_task_steps({"task_steps": 10}, 25)
    [10, 10, 10]
    >>> plain_task_steps({"num_tasks": 3}, 25)
    [9, 8, 8]
    """
    task_steps, num_tasks = plain_value(kwargs.get("task_steps")), plain_value(kwargs.get("num_tasks"))
    if num_training_steps is not None and num_training_steps < 1:
        raise ValueError(f"num_training_steps={num_training_steps!r} must be 1 or more.")
    if task_steps is not None and num_tasks is not None:
        raise ValueError(
            f"task_steps={task_steps!r} and num_tasks={num_tasks!r} are given together; give one of them."
        )
    if task_steps is None and num_tasks is None:
        return None if num_training_steps is None else [num_training_steps]
    if isinstance(task_steps, list):
        return check_task_steps(task_steps)
    key, value = ("num_tasks", num_tasks) if task_steps is None else ("task_steps", task_steps)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key}={value!r} must be an integer of 1 or more.")
    if num_training_steps is None:
        raise ValueError(f"{key}={value!r} needs num_training_steps; or give task_steps as a list.")
    if key == "task_steps":
        return [value] * math.ceil(num_training_steps / value)
    length, remainder = divmod(num_training_steps, value)
    if length == 0:
        raise ValueError(f"num_tasks={value!r} must not be above num_training_steps={num_training_steps}.")
    return [length + remainder] + [length] * (value - 1)


def plain_schedule(
    name: str,
    *,
    learning_rate: float,
    num_warmup_steps: int | float,
    num_training_steps: int | None,
    kwargs: Mapping[str, Any],
) -> tuple[Schedule, dict[str, Any]]:
    """Build a schedule for a run that knows no tasks beyond what `lr_scheduler_kwargs` say.

    Args:
        name (`str`):
            `infinite` or `cosine_rewarm`.
        learning_rate (`float`):
            The peak.
        num_warmup_steps (`int` or `float`):
            Steps, or a share of the first task.
        num_training_steps (`int` or `None`):
            Steps of the run; `None` for an open end.
        kwargs (`Mapping[str, Any]`):
            The `lr_scheduler_kwargs`.

    Returns:
        `tuple[Schedule, dict[str, Any]]`: the schedule, and the arguments as the resume policy compares them.

    Raises:
        `ValueError`: one sentence naming field, value and rule.
    """
    check_keys(name, kwargs)
    peak = check_learning_rate(learning_rate)
    lengths = plain_task_steps(kwargs, num_training_steps)
    shape = {key: value for key, value in kwargs.items() if key not in (*_LENGTHS[name], "on_resume")}
    arguments = {"learning_rate": peak, "warmup_steps": plain_value(num_warmup_steps)}
    if kwargs.get("task_steps") is None and kwargs.get("num_tasks") is None:
        arguments["num_training_steps"] = num_training_steps
    else:
        arguments["task_steps"] = lengths
    arguments.update(complete_arguments(name, shape))
    if lengths is None:
        return _open_schedule(name, peak, arguments), arguments
    schedule = schedule_from_arguments(
        name, task_steps=lengths, learning_rate=peak, warmup_steps=num_warmup_steps, kwargs=shape
    )
    return schedule, arguments


def _open_schedule(name: str, peak: float, arguments: Mapping[str, Any]) -> Schedule:
    """Build a schedule without an end: only lengths in steps are known, and nothing anneals."""
    if name == "cosine_rewarm":
        raise ValueError("num_training_steps=None: cosine_rewarm needs num_training_steps or task_steps.")
    warmup, cooldown, anneal = (arguments[key] for key in ("warmup_steps", "num_cooldown_steps", "num_anneal_steps"))
    check_steps_or_share("warmup_steps", warmup)
    for key, value in (("num_warmup_steps", warmup), ("num_cooldown_steps", cooldown)):
        if isinstance(value, float) and value:
            raise ValueError(
                f"{key}={value!r} is a share of a length that is not known; give {key} in steps, or give"
                " num_training_steps."
            )
    if anneal:
        raise ValueError(
            f"num_anneal_steps={anneal!r} needs a known end; give num_training_steps or task_steps in steps, or"
            " num_anneal_steps=0 to never anneal."
        )
    return _infinite([int(warmup) + int(cooldown)], peak, warmup, arguments, [0], open_end=True)
