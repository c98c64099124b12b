"""Curves between two values over the progress of a phase: the only place that knows `cos`, `sqrt` and powers.

Every shape maps a progress `u` in [0, 1] to a value that is `start` at `u = 0` and `end` at `u = 1`.
"""

import math
from typing import Protocol

DEFAULT_TIMESCALE = 10.0


class Shape(Protocol):
    """A curve: `shape(u, start, end, timescale)` for a progress `u` in [0, 1]."""

    def __call__(self, u: float, start: float, end: float, timescale: float | None) -> float:
        """Return the value of the curve at progress `u`."""


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


SHAPES: dict[str, Shape] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "inverse_sqrt": inverse_sqrt,
    "exponential": exponential,
    "1-sqrt": one_minus_sqrt,
}
"""Name -> shape. The names are those of `lr_scheduler_kwargs`."""
