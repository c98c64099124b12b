"""A mean over repetitions and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    r"""
    The mean and half of its confidence interval of 95 %, $t_{n-1} s / \sqrt n$.

    Student's t, which holds for few repetitions.

    Args:
        values (`Sequence[float]`): At least two repetitions.

    Raises:
        `ValueError`: For fewer than two values.

    Example:

    ```python
    >>> mean, half = mean_and_half_width([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half, 3)
    (2.0, 2.484)

    ```
    """
    from scipy.stats import t as student  # takes half a second to import

    if len(values) < 2:
        raise ValueError(f"An interval needs at least two values, not {len(values)}.")
    quantile = float(student.ppf(0.975, len(values) - 1))
    return fmean(values), quantile * stdev(values) / math.sqrt(len(values))
