"""Checked arguments and known task lengths become a schedule here, whoever asks for it."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_infinite_lr.arguments import (
    ABSOLUTE_KEYS,
    ANNEAL_BUDGETS,
    AUTOREGRESSIVE,
    OWN_SCHEDULES,
    RELEASES,
    check_choice,
    check_rate,
    check_task_steps,
    complete_arguments,
    plain_value,
)
from hf_infinite_lr.schedules import (
    ANNEAL_TYPES_TO_ZERO,
    Schedule,
    autoregressive_cosine_peaks,
    autoregressive_rsqrt_peaks,
    check_steps_or_share,
    cosine_rewarm,
    infinite,
    resolve_share,
    rsqrt_rewarm,
)


def _factor(arguments: Mapping[str, Any], ratio: str, learning_rate: float) -> tuple[str, float]:
    """Return the key in force and its value relative to the peak; an absolute rate is divided here, once."""
    if ratio in arguments:
        return f"{ratio}={arguments[ratio]!r}", float(arguments[ratio])
    absolute = ABSOLUTE_KEYS[ratio]
    return f"{absolute}={arguments[absolute]!r}", float(arguments[absolute]) / learning_rate


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
            `infinite`, `cosine_rewarm` or `rsqrt_rewarm`.
        task_steps (`Sequence[int]`):
            Optimizer steps of each task.
        learning_rate (`float`):
            The peak, by which absolute rates are divided.
        warmup_steps (`int` or `float`):
            Steps, or a share of the first task; where tasks re-warm, a share of each task.
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
    check_choice("lr_scheduler_type", name, OWN_SCHEDULES)
    check_choice("anneal_budget", anneal_budget, ANNEAL_BUDGETS)
    check_choice("release", release, RELEASES)
    peak = check_rate("learning_rate", learning_rate)
    lengths = check_task_steps(task_steps)
    arguments = complete_arguments(name, kwargs)
    warmup = plain_value(warmup_steps)
    check_steps_or_share("warmup_steps", warmup)
    if name == "cosine_rewarm":
        return _cosine_rewarm(lengths, peak, warmup, arguments)
    share = arguments["num_anneal_steps"]
    anneal_steps = [resolve_share("num_anneal_steps", share, length) for length in lengths]
    if name == "rsqrt_rewarm":
        return _rsqrt_rewarm(lengths, peak, warmup, arguments, anneal_steps)
    if release != "each":
        anneal_steps = [0] * len(lengths) if release == "none" else [0] * (len(lengths) - 1) + anneal_steps[-1:]
    return _infinite(lengths, peak, warmup, arguments, anneal_steps, anneal_budget)


def _infinite(
    lengths: Sequence[int],
    peak: float,
    warmup: int | float,
    arguments: Mapping[str, Any],
    anneal_steps: Sequence[int],
    anneal_budget: str = "within",
    open_end: bool = False,
) -> Schedule:
    num_cooldown = resolve_share("num_cooldown_steps", arguments["num_cooldown_steps"], lengths[0])
    c, m = _infinite_levels(peak, arguments, num_cooldown, anneals=any(anneal_steps))
    return infinite(
        lengths,
        num_warmup_steps=resolve_share("warmup_steps", warmup, lengths[0]),
        num_cooldown_steps=num_cooldown,
        anneal_steps=anneal_steps,
        constant_ratio=c,
        min_ratio=m,
        cooldown_type=arguments["cooldown_type"],
        timescale=float(arguments["timescale"]),
        anneal_type=arguments["anneal_type"],
        anneal_budget=anneal_budget,
        open_end=open_end,
    )


def _infinite_levels(
    peak: float, arguments: Mapping[str, Any], num_cooldown: int, *, anneals: bool
) -> tuple[float, float]:
    """Return the constant and the floor relative to the peak, when the phases between them can be built."""
    constant_text, c = _factor(arguments, "constant_lr_ratio", peak)
    floor_text, m = _factor(arguments, "min_lr_ratio", peak)
    if c > 1.0:
        raise ValueError(f"{constant_text} must not be above the peak (learning_rate={peak!r}).")
    if num_cooldown == 0 and c != 1.0:
        raise ValueError(
            f"num_cooldown_steps=0 requires a constant_lr_ratio of 1, but the constant is {constant_text}."
        )
    if m > c:
        raise ValueError(f"{floor_text} must not be above the constant ({constant_text}).")
    anneal_type = arguments["anneal_type"]
    if m == 0.0 and anneals and anneal_type not in ANNEAL_TYPES_TO_ZERO:
        raise ValueError(
            f"{floor_text} cannot be reached by anneal_type={anneal_type!r}; the types that can are"
            f" {', '.join(ANNEAL_TYPES_TO_ZERO)}."
        )
    return c, m


def _cosine_rewarm(lengths: Sequence[int], peak: float, warmup: int | float, arguments: Mapping[str, Any]) -> Schedule:
    warmup_steps = _warmup_steps(lengths, warmup, arguments)
    floor_text, m = _factor(arguments, "min_lr_ratio", peak)
    peaks = _given_peaks(lengths, arguments["rewarm_lr_ratio"])
    if peaks is None:
        peaks = autoregressive_cosine_peaks(lengths, warmup_steps, m)
    _check_floor(floor_text, m, peaks)
    return cosine_rewarm(lengths, warmup_steps=warmup_steps, peak_ratios=peaks, min_ratio=m)


def _rsqrt_rewarm(
    lengths: Sequence[int],
    peak: float,
    warmup: int | float,
    arguments: Mapping[str, Any],
    end_steps: Sequence[int],
) -> Schedule:
    warmup_steps = _warmup_steps(lengths, warmup, arguments)
    floor_text, m = _factor(arguments, "min_lr_ratio", peak)
    peaks = _given_peaks(lengths, arguments["rewarm_lr_ratio"])
    if peaks is None:
        peaks = autoregressive_rsqrt_peaks(lengths, [max(1, steps) for steps in warmup_steps], m)
    _check_floor(floor_text, m, peaks)
    return rsqrt_rewarm(lengths, warmup_steps=warmup_steps, end_steps=end_steps, peak_ratios=peaks, min_ratio=m)


def _warmup_steps(lengths: Sequence[int], warmup: int | float, arguments: Mapping[str, Any]) -> list[int]:
    rewarm = arguments["num_rewarm_steps"]
    return [
        resolve_share("warmup_steps", warmup, length)
        if task == 0 or rewarm is None
        else resolve_share("num_rewarm_steps", rewarm, length)
        for task, length in enumerate(lengths)
    ]


def _given_peaks(lengths: Sequence[int], ratios: str | float | list[float]) -> list[float] | None:
    """Return the peak of each task relative to the learning rate; `None` where a rule gives them."""
    if ratios == AUTOREGRESSIVE:
        return None
    if isinstance(ratios, list) and len(ratios) != len(lengths) - 1:
        raise ValueError(
            f"rewarm_lr_ratio={ratios!r} must hold one ratio for each task after the first: {len(lengths) - 1}."
        )
    return [1.0, *(map(float, ratios) if isinstance(ratios, list) else [float(ratios)] * (len(lengths) - 1))]


def _check_floor(floor_text: str, m: float, peaks: Sequence[float]) -> None:
    for task, ratio in enumerate(peaks):
        if m > ratio:
            raise ValueError(
                f"{floor_text} must not be above the peak of task {task + 1} ({ratio!r} x learning_rate)."
            )


def open_schedule(name: str, peak: float, arguments: Mapping[str, Any]) -> Schedule:
    """Build a schedule without an end: only lengths in steps are known, and nothing anneals.

    Args:
        name (`str`):
            `infinite`; a schedule that re-warms cannot be open.
        peak (`float`):
            The peak, by which absolute rates are divided.
        arguments (`Mapping[str, Any]`):
            From [`~hf_infinite_lr.arguments.complete_arguments`], and `warmup_steps`.

    Returns:
        [`~hf_infinite_lr.schedules.Schedule`]: warm-up, cool-down and the constant.

    Raises:
        `ValueError`: for a share, for annealing, and for another name.
    """
    if name != "infinite":
        raise ValueError(f"num_training_steps=None: {name} needs num_training_steps or task_steps.")
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
