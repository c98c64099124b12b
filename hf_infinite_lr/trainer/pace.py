"""How fast samples pass, and how much of the time is waiting for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from .flow import Stopwatch


class Pace:
    """Samples per second and the share of the training time that is spent waiting for data, between two logs.

    Time of evaluations and saves does not count. Without loader workers, fetching and collating are waiting too.

    Args:
        training ([`Stopwatch`]): Runs while steps are made.
    """

    def __init__(self, training: Stopwatch) -> None:
        self._training = training
        self._waited = 0.0
        self._last: tuple[int, float] | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waited for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def since_last(self, num_samples: int) -> dict[str, float]:
        """
        `samples_per_second` and `data_wait_share` since the last call; nothing at the first one.

        Args:
            num_samples (`int`): Samples of the run so far.
        """
        now, waited = self._training.elapsed, self._waited
        last, self._last, self._waited = self._last, (num_samples, now), 0.0
        if last is None or now <= last[1]:
            return {}
        seconds = now - last[1]
        return {"samples_per_second": (num_samples - last[0]) / seconds, "data_wait_share": min(1.0, waited / seconds)}
