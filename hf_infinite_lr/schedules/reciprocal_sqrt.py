"""The repeated reciprocal square root with a linear end, of Roth et al. 2024 (arXiv 2408.14471)."""

from collections.abc import Iterator, Sequence
from itertools import chain

from hf_infinite_lr.schedules.phases import Phase, Schedule
from hf_infinite_lr.schedules.shapes import rsqrt


def rsqrt_rewarm(
    task_steps: Sequence[int],
    *,
    warmup_steps: Sequence[int],
    end_steps: Sequence[int],
    peak_ratios: Sequence[float],
    min_ratio: float,
) -> Schedule:
    """Build the repeated reciprocal square root: every task warms up from rate 0, decays, and ends linearly at 0.

    In a task of `S` steps with warm-up `W`, linear end `C`, peak `P` and floor `m`, at step `s` of the task:
    `P s / W`, then `m + sqrt(W / s) (P - m)`, which is multiplied by `(C - j - 1) / C` in the last `C` steps,
    `j = s - (S - C)` (Roth et al. 2024, arXiv 2408.14471). The task's last update has the rate 0.

    Args:
        task_steps (`Sequence[int]`):
            Steps of each task.
        warmup_steps (`Sequence[int]`):
            Steps of each task's warm-up, 1 or more.
        end_steps (`Sequence[int]`):
            Steps of each task's linear end, 0 for none.
        peak_ratios (`Sequence[float]`):
            Peak of each task relative to the learning rate.
        min_ratio (`float`):
            What the reciprocal square root falls to, relative to the learning rate.

    Returns:
        [`Schedule`]: of the global step.

    Raises:
        `ValueError`: for a task without a warm-up, and when the phases of a task are longer than the task.

    >>> schedule = rsqrt_rewarm([12], warmup_steps=[2], end_steps=[4], peak_ratios=[1.0], min_ratio=0.0)
    >>> [round(schedule(step), 3) for step in (0, 2, 4, 8, 11, 12)]
    [0.0, 1.0, 0.707, 0.375, 0.0, 0.0]
    """
    assert len(task_steps) == len(warmup_steps) == len(end_steps) == len(peak_ratios) > 0, "one of each for each task"
    for task, (length, num_warmup, num_end) in enumerate(zip(task_steps, warmup_steps, end_steps, strict=True)):
        _check_rsqrt_lengths(task, length, num_warmup, num_end)

    def task_phases(task: int) -> Iterator[Phase]:
        num_warmup, num_end, peak = warmup_steps[task], end_steps[task], peak_ratios[task]
        num_body = task_steps[task] - num_warmup - num_end
        body_end = rsqrt(1.0, peak, 0.0, num_body / num_warmup, min_ratio)
        yield Phase("warmup", task, num_warmup, 0.0, peak, "linear")
        if num_body:
            timescale = num_body / num_warmup
            yield Phase("rsqrt_decay", task, num_body, peak, body_end, "rsqrt", timescale, min_ratio)
        if num_end:
            timescale = (num_end - 1) / (num_warmup + num_body)
            yield linear_end(task, num_end, body_end, timescale, min_ratio)

    return Schedule(tuple(chain.from_iterable(map(task_phases, range(len(task_steps))))))


def linear_end(task: int, num_steps: int, before: float, timescale: float, floor: float) -> Phase:
    """Build the phase that takes a reciprocal square root to zero, where its last update is.

    Args:
        task (`int`):
            Index of the task.
        num_steps (`int`):
            Length of the phase.
        before (`float`):
            The reciprocal square root where the phase begins, relative to the learning rate.
        timescale (`float`):
            `num_steps - 1` over the steps of the task before the phase.
        floor (`float`):
            What the reciprocal square root falls to, relative to the learning rate.
    """
    first = (num_steps - 1) / num_steps
    return Phase("linear_end", task, num_steps, first * before, 0.0, "rsqrt_to_zero", timescale, first * floor)


def _check_rsqrt_lengths(task: int, length: int, num_warmup: int, num_end: int) -> None:
    name = "num_rewarm_steps" if task else "num_warmup_steps"
    if num_warmup < 1:
        raise ValueError(f"{name}={num_warmup} must be 1 or more: rsqrt_rewarm decays by the length of its warm-up.")
    if num_warmup + num_end > length:
        raise ValueError(
            f"The phases are longer than their task: {name} {num_warmup} + num_anneal_steps {num_end} ="
            f" {num_warmup + num_end}, but task {task + 1} has {length} steps."
        )
