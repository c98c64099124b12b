"""Curves between two values over the progress of a phase: the only place that knows `cos`, `sqrt` and powers.

Every shape maps a progress `u` in [0, 1] to a value that is `start` at `u = 0` and `end` at `u = 1`.
"""

import math
from collections.abc import Callable

DEFAULT_TIMESCALE = 10.0


Shape = Callable[..., float]
"""A curve: `shape(u, start, end, timescale)` for a progress `u` in [0, 1]; some take a `floor` behind these."""


def constant(u: float, start: float, end: float, timescale: float | None = None) -> float:  # noqa: ARG001
    """Stay at `start`."""
    return start


def linear(u: float, start: float, end: float, timescale: float | None = None) -> float:  # noqa: ARG001
    """Go along `start + (end - start) u`.

    >>> linear(0.25, 0.0, 1.0)
    0.25
    """
    return start + (end - start) * u


def cosine(u: float, start: float, end: float, timescale: float | None = None) -> float:  # noqa: ARG001
    """Go along `end + (start - end) / 2 (1 + cos(pi u))`: half a cosine wave.

    >>> round(cosine(0.5, 1.0, 0.5), 12)
    0.75
    """
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * u))


def inverse_sqrt(u: float, start: float, end: float, timescale: float | None = None) -> float:
    """Go along `start + (end - start) h(u) / h(1)` with `h(u) = 1 / sqrt(1 + timescale u) - 1`.

    The normalisation by `h(1)` makes the curve end at `end` whatever the timescale (Singh et al. 2025,
    arXiv 2503.02844, the cool-down to the constant).

    >>> inverse_sqrt(1.0, 1.0, 0.5)
    0.5
    """
    scale = DEFAULT_TIMESCALE if timescale is None else timescale

    def h(progress: float) -> float:
        return 1.0 / math.sqrt(1.0 + scale * progress) - 1.0

    return start + (end - start) * (h(u) / h(1.0))


def exponential(u: float, start: float, end: float, timescale: float | None = None) -> float:  # noqa: ARG001
    """Go along `start (end / start)^u`; both values must be above zero.

    >>> round(exponential(0.5, 1.0, 0.01), 12)
    0.1
    """
    return start * math.pow(end / start, u)


def one_minus_sqrt(u: float, start: float, end: float, timescale: float | None = None) -> float:  # noqa: ARG001
    """Go along `end + (start - end) (1 - sqrt(u))`.

    >>> one_minus_sqrt(0.25, 1.0, 0.0)
    0.5
    """
    return end + (start - end) * (1.0 - math.sqrt(u))


def rsqrt(u: float, start: float, end: float, timescale: float | None, floor: float) -> float:  # noqa: ARG001
    """Go along `floor + (start - floor) / sqrt(1 + timescale u)`.

    In a body of N steps behind a warm-up of W steps, `timescale = N / W` makes it
    `floor + sqrt(W / s) (start - floor)` at step s = W + N u of the task (Roth et al. 2024, arXiv 2408.14471). Where
    it ends follows from the rest, so that `end` must be that.

    >>> rsqrt(0.5, 1.0, 0.55, 6.0, 0.1)
    0.55
    """
    return floor + (start - floor) / math.sqrt(1.0 + (timescale or 0.0) * u)


def rsqrt_to_zero(u: float, start: float, end: float, timescale: float | None, floor: float) -> float:
    """Go along [`rsqrt`], multiplied by a line from 1 to 0.

    >>> rsqrt_to_zero(0.5, 1.0, 0.0, 6.0, 0.1)
    0.275
    """
    return (1.0 - u) * rsqrt(u, start, end, timescale, floor)


SHAPES: dict[str, Shape] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "inverse_sqrt": inverse_sqrt,
    "exponential": exponential,
    "1-sqrt": one_minus_sqrt,
    "rsqrt": rsqrt,
    "rsqrt_to_zero": rsqrt_to_zero,
}
"""Name -> shape. Those that `lr_scheduler_kwargs` can name have the same names there."""

SHAPES_THAT_ARRIVE = ("rsqrt_to_zero",)
"""Shapes that are at their end with the last step of a phase, where the others are there with the next step."""
