"""Replay: which samples of earlier tasks each batch holds, kept as row numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .buffer import StreamBuffer
from .labels import class_of_each
from .order import replay_before, scatter, scattered_below
from .plan import StreamPlan, has_source, own_before
from .reservoir import chosen

_REPLAY, _KEPT = 1, 2  # set the numbers of a draw apart from those that decide what is kept

STREAM_BUFFER_SIZE = 10_000
"""Samples of a streaming task that are kept when no buffer size is given."""


@dataclass(frozen=True)
class ReplaySettings:
    """What is replayed, and how much of it is kept.

    Args:
        fraction (`float`): Share of each global batch, in [0, 1).
        buffer_size (`int` or `float`, *optional*): Samples of each earlier task that are kept (of one that visits
            fewer, those), or below 1 a share of those it has visited. None: of a map-style task all, of a streaming
            one [`STREAM_BUFFER_SIZE`].
        class_column (`str`, *optional*): Column of labels by which buffers and draws are balanced.
    """

    fraction: float = 0.0
    buffer_size: int | float | None = None
    class_column: str | None = None

    def kept_of(self, visited: int, *, streaming: bool) -> int:
        """Samples that are kept of a task that has visited so many."""
        if self.buffer_size is None:
            return min(visited, STREAM_BUFFER_SIZE) if streaming else visited
        if self.buffer_size < 1:
            return max(1, int(self.buffer_size * visited + 1e-9))
        return min(visited, int(self.buffer_size))


def kept_key(seed: int, task: int) -> tuple[int, ...]:
    """Key of the numbers that decide which positions of a task are kept."""
    return seed, task, 0, _KEPT


def visited(plan: StreamPlan, task: int, settings: ReplaySettings) -> int:
    """Different samples that a task has visited at its end; of a streaming task all that it has read."""
    known = plan.tasks[task]
    own = own_before(plan, task, known.num_steps, settings.fraction)
    return own if known.num_samples is None else min(own, known.num_samples - known.num_unused_samples)


def check_buffers(plan: StreamPlan, settings: ReplaySettings) -> None:
    """Refuses a buffer that would hold more than a task has.

    Args:
        plan ([`StreamPlan`]): The tasks.
        settings ([`ReplaySettings`]): How much is kept of each.

    Raises:
        ValueError: naming size and task.
    """
    size = settings.buffer_size
    for task in plan.tasks[:-1]:
        samples = task.num_steps * plan.global_batch_size if task.num_samples is None else task.num_samples
        if size is not None and size > samples > 0:
            raise ValueError(
                f"replay_buffer_size={size} is more than the {samples} samples of task {task.name!r}: give a smaller "
                "number, or a share below 1."
            )


@dataclass(frozen=True)
class _Memory:
    """What may be replayed while a task is trained: all kept samples of the tasks before it, one after another.

    Args:
        ends (`np.ndarray`): For each earlier task, the kept samples up to its last.
        by_class (`np.ndarray`, *optional*): Their places, ordered by class.
        class_ends (`np.ndarray`, *optional*): For each class, the places in `by_class` up to its last.
    """

    ends: np.ndarray
    by_class: np.ndarray | None = None
    class_ends: np.ndarray | None = None

    def picks(self, count: int, *key: int) -> np.ndarray:
        """Places of samples, drawn with replacement; with classes, each class is equally likely."""
        numbers = np.arange(count)
        if self.by_class is None or self.class_ends is None:
            return scattered_below(self.ends[-1], numbers, *key)
        classes = scattered_below(len(self.class_ends), numbers, *key)
        starts = np.concatenate([[0], self.class_ends])[classes]
        within = scattered_below(self.class_ends[classes] - starts, numbers + count, *key)
        return self.by_class[starts + within]


class ReplayIndices:
    """Draws with replacement from what is kept of the samples that each earlier task has visited.

    Of a map-style task these are the samples of its first pass, of a streaming one those that it has read; with
    `anneal_budget="within"` the branch's samples are among them, as the trunk's own data never holds them. What is
    kept is chosen by a number that depends on (seed, task, position) alone, so it is the same for any world size and
    accumulation, and after any resume; and so is a draw, which depends on (seed, task, batch).

    Cost: 4 bytes for each kept sample of the earlier tasks (8 more with classes), and one pass over a task's order at
    its first draw; no time that grows with the number of tasks beyond a bisection. `recipes/benchmarks/methods.py`
    measures the time of a step.

    Args:
        plan ([`StreamPlan`]): Tasks and their lengths.
        settings ([`ReplaySettings`]): How much is replayed and kept.
        seed (`int`): The run's data seed.
        order (`Callable`): (task, epoch) -> the rows that a pass over a map-style task visits.
        datasets (`Sequence`): The tasks' datasets, of which the labels are read.

    Attributes:
        buffers (`dict[int, StreamBuffer]`): The samples that streaming tasks have kept.
    """

    def __init__(
        self,
        plan: StreamPlan,
        settings: ReplaySettings,
        seed: int,
        *,
        order: Callable[[int, int], np.ndarray],
        datasets: Sequence[Any] = (),
    ) -> None:
        self.plan, self.settings, self.seed = plan, settings, seed
        self.buffers: dict[int, StreamBuffer] = {}
        self._order, self._datasets = order, datasets
        self._rows: dict[int, np.ndarray] = {}
        self._labels: dict[int, np.ndarray] = {}
        self._memories: dict[int, _Memory] = {}

    def count(self, task: int, batch: int) -> int:
        """Replayed samples in a batch of a task; none where no earlier task has data."""
        if not has_source(self.plan, task):
            return 0
        fraction, size = self.settings.fraction, self.plan.global_batch_size
        return replay_before(batch + 1, fraction, size) - replay_before(batch, fraction, size)

    def own_before(self, task: int, batch: int) -> int:
        """The task's own samples in its batches before `batch`."""
        return own_before(self.plan, task, batch, self.settings.fraction)

    def draw(self, task: int, batch: int) -> list[tuple[int, Any]]:
        """The (task, row) pairs that a batch replays; of a streaming task (task, sample)."""
        count = self.count(task, batch)
        if not count:
            return []
        memory = self._memory_before(task)
        picks = memory.picks(count, self.seed, task, batch, _REPLAY)
        sources = np.searchsorted(memory.ends, picks, side="right")
        starts = np.concatenate([[0], memory.ends])
        pairs = zip(sources.tolist(), (picks - starts[sources]).tolist(), strict=True)
        return [(source, self._row(source, place)) for source, place in pairs]

    def _row(self, source: int, place: int) -> Any:
        row = int(self._rows_of(source)[place])
        return self.buffers[source].sample(row) if source in self.buffers else row

    def kept(self, task: int) -> int:
        """Samples of a task that may be replayed once it is over."""
        plan = self.plan.tasks[task]
        if plan.num_samples == 0:
            return 0
        return self.settings.kept_of(visited(self.plan, task, self.settings), streaming=plan.num_samples is None)

    def _memory_before(self, task: int) -> _Memory:
        if task not in self._memories:
            ends = np.cumsum([len(self._rows_of(earlier)) for earlier in range(task)])
            memory = _Memory(ends)
            if self.settings.class_column is not None:
                labels = np.concatenate([self._labels_of(one) for one in range(task) if len(self._rows_of(one))])
                _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
                memory = _Memory(ends, np.argsort(classes, kind="stable"), np.cumsum(counts))
            self._memories = {task: memory}  # a run never goes back to an earlier task
        return self._memories[task]

    def _rows_of(self, task: int) -> np.ndarray:
        """Rows that a map-style task keeps; of a streaming one the entries of its buffer."""
        if task not in self._rows:
            size = self.kept(task)
            if task in self.buffers:
                self._rows[task] = self.buffers[task].chosen(size)
            else:
                rows = self._order(task, 0)[: visited(self.plan, task, self.settings)]
                if size < len(rows):
                    numbers = scatter(np.arange(len(rows)), *kept_key(self.seed, task))
                    classes = None if self.settings.class_column is None else self._all_labels(task)[rows]
                    rows = rows[chosen(numbers, size, classes)]
                self._rows[task] = rows.copy()
        return self._rows[task]

    def _labels_of(self, task: int) -> np.ndarray:
        if task not in self._labels:
            rows, buffer = self._rows_of(task), self.buffers.get(task)
            self._labels[task] = self._all_labels(task)[rows] if buffer is None else buffer.labels(rows)
        return self._labels[task]

    def _all_labels(self, task: int) -> np.ndarray:
        assert self.settings.class_column is not None
        dataset = self._datasets[task]
        return class_of_each(getattr(dataset, "table", dataset), self.settings.class_column)
