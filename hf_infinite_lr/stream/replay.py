"""Replay: samples of earlier tasks, kept as row numbers."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from .order import epoch_order, generator, replay_before
from .plan import StreamPlan, TaskPlan

_REPLAY = 1  # sets the draws of replay apart from the orders of epochs, which are keyed by three numbers


class ReplayIndices:
    """Draws uniformly, with replacement, from the samples that the first pass over each earlier task has visited.

    A draw depends on (seed, task, batch) alone, so it is the same for any world size, accumulation and after any
    resume. Cost: 4 bytes for each visited sample of the earlier tasks, and one pass over a task's order at its first
    draw; no time that grows with the number of tasks beyond a bisection.

    Args:
        plan ([`StreamPlan`]): Tasks and their lengths.
        fraction (`float`): Share of each global batch, in [0, 1).
        seed (`int`): The run's data seed.
    """

    def __init__(self, plan: StreamPlan, fraction: float, seed: int) -> None:
        self.plan, self.fraction, self.seed = plan, fraction, seed
        self._rows: dict[int, np.ndarray] = {}

    def count(self, task: int, batch: int) -> int:
        """Replayed samples in a batch of a task; none in the first task."""
        if task == 0:
            return 0
        size = self.plan.global_batch_size
        return replay_before(batch + 1, self.fraction, size) - replay_before(batch, self.fraction, size)

    def own_before(self, task: int, batch: int) -> int:
        """The task's own samples in its batches before `batch`."""
        size = self.plan.global_batch_size
        return batch * size - (replay_before(batch, self.fraction, size) if task else 0)

    def draw(self, task: int, batch: int) -> list[tuple[int, int]]:
        """The (task, row) pairs that a batch replays."""
        count = self.count(task, batch)
        if not count:
            return []
        picks = generator(self.seed, task, batch, _REPLAY).randint(0, self._ends[task - 1], size=count)
        sources = np.searchsorted(self._ends, picks, side="right")
        return [
            (
                int(source),
                int(self._rows_of(self.plan.tasks[source])[pick - (self._ends[source - 1] if source else 0)]),
            )
            for source, pick in zip(sources, picks, strict=True)
        ]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([self._visited(task) for task in self.plan.tasks])

    def _visited(self, task: TaskPlan) -> int:
        if task.num_samples is None:
            return 0
        return min(self.own_before(task.index, task.num_steps), task.num_samples - task.num_unused_samples)

    def _rows_of(self, task: TaskPlan) -> np.ndarray:
        if task.index not in self._rows:
            assert task.num_samples is not None
            order = epoch_order(self.seed, task.index, 0, task.num_samples)
            self._rows[task.index] = order[: self._visited(task)].copy()
        return self._rows[task.index]
