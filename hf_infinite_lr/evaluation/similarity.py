"""How alike two representations of the same samples are."""

from __future__ import annotations

import numpy as np


def linear_cka(one: np.ndarray, other: np.ndarray) -> float:
    r"""
    Linear centred kernel alignment of two representations (Kornblith et al. 2019, arXiv 1905.00414, equation 6).

    $\|Y^T X\|_F^2 / (\|X^T X\|_F \|Y^T Y\|_F)$ of centred columns: 1 for equal representations, also after a rotation
    or a scaling; near 0 for unrelated ones, as long as the samples are many more than the dimensions.

    Args:
        one (`np.ndarray`): Shape (samples, width).
        other (`np.ndarray`): Shape (samples, other width), the same samples in the same order.

    Raises:
        `ValueError`: If the numbers of samples differ, or a representation does not vary.

    Example:

    ```python
    >>> x = np.eye(4)
    >>> round(linear_cka(x, 3 * x[:, ::-1]), 6)
    1.0

    ```
    """
    if len(one) != len(other):
        raise ValueError(f"linear_cka compares the same samples, not {len(one)} and {len(other)}.")
    x, y = (np.asarray(values, np.float64) - np.mean(values, axis=0, dtype=np.float64) for values in (one, other))
    own = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    if own == 0:
        raise ValueError("linear_cka is not defined for a representation that is the same for all samples.")
    return float(np.linalg.norm(y.T @ x) ** 2 / own)
