"""Peaks that fall from task to task: the meta-schedules of Roth et al. 2024 (arXiv 2408.14471).

Their formulas are for tasks of one length; here each task's own steps and warm-up stand in its formula, so that a task
that is appended changes no peak before it.
"""

from collections.abc import Sequence

from hf_infinite_lr.schedules.shapes import cosine, rsqrt


def autoregressive_cosine_peaks(
    task_steps: Sequence[int], warmup_steps: Sequence[int], min_ratio: float
) -> list[float]:
    """Return peaks that fall from task to task along one long cosine.

    Task `k` has `m + (1 - m) / 2 (1 + cos(pi (k (S - W) + 1) / ((k + 1) (S - W))))`, with its own steps `S` and
    warm-up `W` (Roth et al. 2024, arXiv 2408.14471); task 0 has 1.

    Args:
        task_steps (`Sequence[int]`):
            Steps of each task.
        warmup_steps (`Sequence[int]`):
            Steps of each task's warm-up.
        min_ratio (`float`):
            The floor, relative to the learning rate.

    Raises:
        `ValueError`: for a later task that is no longer than its warm-up.

    >>> [round(peak, 3) for peak in autoregressive_cosine_peaks([100, 100, 100], [10, 10, 10], 0.0)]
    [1.0, 0.491, 0.245]
    """
    peaks = [1.0]
    for k, (length, num_warmup) in enumerate(zip(task_steps[1:], warmup_steps[1:], strict=True), start=1):
        if length <= num_warmup:
            raise ValueError(
                f"rewarm_lr_ratio='autoregressive' needs tasks that are longer than their warm-up, but task {k + 1}"
                f" has {length} steps and num_rewarm_steps {num_warmup}."
            )
        decay = length - num_warmup
        peaks.append(cosine((k * decay + 1) / ((k + 1) * decay), 1.0, min_ratio))
    return peaks


def autoregressive_rsqrt_peaks(
    task_steps: Sequence[int], warmup_steps: Sequence[int], min_ratio: float
) -> list[float]:
    """Return peaks that fall from task to task along one long reciprocal square root.

    Task `k` has `m + sqrt((k + 1) W / (k S + W)) (1 - m)`, with its own steps `S` and warm-up `W` (Roth et al. 2024,
    arXiv 2408.14471).

    Args:
        task_steps (`Sequence[int]`):
            Steps of each task.
        warmup_steps (`Sequence[int]`):
            Steps of each task's warm-up, 1 or more.
        min_ratio (`float`):
            The floor, relative to the learning rate.

    >>> [round(peak, 3) for peak in autoregressive_rsqrt_peaks([100, 100, 100], [10, 10, 10], 0.0)]
    [1.0, 0.426, 0.378]
    """
    return [
        rsqrt(1.0, 1.0, min_ratio, k * (length - num_warmup) / ((k + 1) * num_warmup), min_ratio)
        for k, (length, num_warmup) in enumerate(zip(task_steps, warmup_steps, strict=True))
    ]
