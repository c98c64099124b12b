"""The two schedules of Singh et al. 2025 as short sentences of phases. Factors are relative to the peak learning rate.

Sources: `infinite` is Singh et al. 2025, "Beyond Cosine Decay" (arXiv 2503.02844) and the authors' small-scale code
for several tasks; phases counted as lengths one after another as in Ibrahim et al. 2024 (arXiv 2403.08763).
`cosine_rewarm` is the repeated cosine that both compare with.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import chain

from hf_infinite_lr.schedules.phases import Phase, Schedule
from hf_infinite_lr.schedules.shapes import DEFAULT_TIMESCALE

COOLDOWN_TYPES = ("cosine", "inverse_sqrt", "linear")
ANNEAL_TYPES = ("exponential", "linear", "cosine", "1-sqrt")
ANNEAL_TYPES_TO_ZERO = ("linear", "cosine", "1-sqrt")


def resolve_share(name: str, value: int | float, length: int) -> int:
    """Return a number of steps from steps or from a share of a task.

    Args:
        name (`str`):
            Name of the field, for the error.
        value (`int` or `float`):
            Steps (an integer of 0 or more), or a share (a float in (0, 1)) of `length`; 0.0 is 0 steps.
        length (`int`):
            Steps of the task that a share refers to.

    Returns:
        `int`: the steps; a share gives `max(1, floor(share * length + 1e-9))`.

    Raises:
        `ValueError`: for anything else, among it a share of 1.0.

    >>> resolve_share("num_anneal_steps", 0.2, 1000)
    200
    """
    check_steps_or_share(name, value)
    if isinstance(value, int):
        return value
    return max(1, math.floor(value * length + 1e-9)) if value else 0


def check_steps_or_share(name: str, value: object) -> None:
    """Refuse what is neither steps (an integer of 0 or more) nor a share (a float in (0, 1), or 0.0)."""
    is_steps = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    is_share = isinstance(value, float) and 0.0 <= value < 1.0
    if not (is_steps or is_share):
        raise ValueError(
            f"{name}={value!r} must be a number of steps (an integer of 0 or more) or a share (a float above 0 and"
            " below 1)."
        )


def _phases(*phases: tuple[str, int, int | None, float, float, str, float | None]) -> Iterator[Phase]:
    """Make phases of tuples and leave out those without a step."""
    return (Phase(*phase) for phase in phases if phase[2] != 0)


def infinite(
    task_steps: Sequence[int],
    *,
    num_warmup_steps: int,
    num_cooldown_steps: int,
    anneal_steps: Sequence[int],
    constant_ratio: float,
    min_ratio: float,
    cooldown_type: str = "cosine",
    timescale: float = DEFAULT_TIMESCALE,
    anneal_type: str = "exponential",
    anneal_budget: str = "within",
    open_end: bool = False,
) -> Schedule:
    """Build the infinite schedule: warm up once, cool down to a constant once, anneal at the end of every task.

    Task 0 is warm-up `n / num_warmup_steps`, cool-down from 1 to `constant_ratio`, the constant, annealing from
    `constant_ratio` to `min_ratio`. Every later task is the constant and the annealing alone (Singh et al. 2025).

    Args:
        task_steps (`Sequence[int]`):
            Steps of each task, its annealing included.
        num_warmup_steps (`int`):
            Length of the warm-up, in task 0.
        num_cooldown_steps (`int`):
            Length of the cool-down to the constant, in task 0 behind the warm-up.
        anneal_steps (`Sequence[int]`):
            Length of the annealing at the end of each task, 0 for none.
        constant_ratio (`float`):
            The constant relative to the peak.
        min_ratio (`float`):
            Where annealing ends, relative to the peak.
        cooldown_type (`str`, *optional*, defaults to `"cosine"`):
            One of `COOLDOWN_TYPES`.
        timescale (`float`, *optional*, defaults to 10):
            Of the cool-down type `inverse_sqrt`.
        anneal_type (`str`, *optional*, defaults to `"exponential"`):
            One of `ANNEAL_TYPES`.
        anneal_budget (`str`, *optional*, defaults to `"within"`):
            With `extra`, every task but the last is followed by a constant phase as long as its annealing: the trunk
            trains on the annealed batches again.
        open_end (`bool`, *optional*, defaults to `False`):
            The constant of the last task has no end; that task has no annealing.

    Returns:
        [`Schedule`]: of the global step.

    Raises:
        `ValueError`: when the phases of a task are longer than the task.

    >>> schedule = infinite(
    ...     [100], num_warmup_steps=5, num_cooldown_steps=35, anneal_steps=[20], constant_ratio=0.75, min_ratio=0.1
    ... )
    >>> [(phase.name, phase.num_steps) for phase in schedule.phases]
    [('warmup', 5), ('cooldown_to_constant', 35), ('constant', 40), ('anneal', 20)]
    """
    _check_lengths(task_steps, num_warmup_steps, num_cooldown_steps, anneal_steps)
    c, m = constant_ratio, min_ratio
    opening = _phases(
        ("warmup", 0, num_warmup_steps, 0.0, 1.0, "linear", None),
        (
            "cooldown_to_constant",
            0,
            num_cooldown_steps,
            1.0,
            c,
            cooldown_type,
            timescale if cooldown_type == "inverse_sqrt" else None,
        ),
    )

    def task_phases(task: int) -> Iterator[Phase]:
        last = task == len(task_steps) - 1
        opened = num_warmup_steps + num_cooldown_steps if task == 0 else 0
        num_constant = None if open_end and last else task_steps[task] - opened - anneal_steps[task]
        num_repeated = anneal_steps[task] if anneal_budget == "extra" and not last else 0
        return _phases(
            ("constant", task, num_constant, c, c, "constant", None),
            ("anneal", task, anneal_steps[task], c, m, anneal_type, None),
            ("constant", task, num_repeated, c, c, "constant", None),
        )

    return Schedule((*opening, *chain.from_iterable(map(task_phases, range(len(task_steps))))))


def _check_lengths(task_steps: Sequence[int], num_warmup: int, num_cooldown: int, anneal_steps: Sequence[int]) -> None:
    assert len(task_steps) == len(anneal_steps) > 0, "one annealing length for each task"
    total = num_warmup + num_cooldown + anneal_steps[0]
    if total > task_steps[0]:
        raise ValueError(
            f"The phases are longer than their task: num_warmup_steps {num_warmup} + num_cooldown_steps"
            f" {num_cooldown} + num_anneal_steps {anneal_steps[0]} = {total}, but the first task has"
            f" {task_steps[0]} steps."
        )
    for task, (length, num_anneal) in enumerate(zip(task_steps, anneal_steps, strict=True)):
        if num_anneal > length:
            raise ValueError(
                f"The phases are longer than their task: num_anneal_steps {num_anneal}, but task {task + 1} has"
                f" {length} steps."
            )


def cosine_rewarm(
    task_steps: Sequence[int], *, warmup_steps: Sequence[int], peak_ratios: Sequence[float], min_ratio: float
) -> Schedule:
    """Build the repeated cosine: every task warms up from rate 0 to its peak and decays along a cosine.

    In a task of `T` steps with warm-up `W` and peak `P`: `P n / W`, then
    `m + (P - m) / 2 (1 + cos(pi (n - W) / (T - W)))`, with `n` counted in the task (the baseline of
    Singh et al. 2025; re-warming and re-decaying of Ibrahim et al. 2024). A later task that is shorter than its
    warm-up (`W > T`) cuts the warm-up off: the rate ends at `P T / W`.

    Args:
        task_steps (`Sequence[int]`):
            Steps of each task.
        warmup_steps (`Sequence[int]`):
            Steps of each task's warm-up.
        peak_ratios (`Sequence[float]`):
            Peak of each task relative to the learning rate.
        min_ratio (`float`):
            End of each cosine, relative to the learning rate.

    Returns:
        [`Schedule`]: of the global step.

    Raises:
        `ValueError`: when the warm-up of the first task is longer than the task.

    >>> schedule = cosine_rewarm([10, 10], warmup_steps=[2, 2], peak_ratios=[1.0, 0.5], min_ratio=0.1)
    >>> [round(schedule(step), 3) for step in (0, 2, 6, 10, 12, 20)]
    [0.0, 1.0, 0.55, 0.0, 0.5, 0.1]
    """
    assert len(task_steps) == len(warmup_steps) == len(peak_ratios) > 0, "one warm-up and one peak for each task"
    if warmup_steps[0] > task_steps[0]:
        raise ValueError(
            f"The phases are longer than their task: num_warmup_steps {warmup_steps[0]}, but the first task has"
            f" {task_steps[0]} steps."
        )

    def task_phases(task: int) -> Iterator[Phase]:
        length, num_warmup, peak = task_steps[task], warmup_steps[task], peak_ratios[task]
        reached = peak if num_warmup <= length else peak * length / num_warmup
        return _phases(
            ("warmup", task, min(num_warmup, length), 0.0, reached, "linear", None),
            ("cosine_decay", task, max(length - num_warmup, 0), peak, min_ratio, "cosine", None),
        )

    return Schedule(tuple(chain.from_iterable(map(task_phases, range(len(task_steps))))))
