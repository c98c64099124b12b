"""What a DataLoader needs to serve a stream: a batch sampler over the plan and a dataset that fetches and collates."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, Dataset

from .buffer import StreamBuffer
from .in_order import InOrder
from .labels import label_names
from .mixture import Mixture
from .order import Sample, epoch_order, rows_at
from .plan import Segment, StreamPlan
from .reader import StreamReader
from .replay import ReplayIndices, ReplaySettings, kept_key
from .task import Stream


class StreamBatches(BatchSampler):
    """Yields the run's micro-batches, of all processes in turn, as lists of [`Sample`] addresses.

    Global step s consists of `global_batch_size / batch_size` consecutive micro-batches, so which samples a step
    trains on does not depend on how many processes and accumulation steps share it.

    Args:
        stream ([`Stream`]): The tasks.
        plan ([`StreamPlan`]): Their lengths and branches.
        batch_size (`int`): Samples of one micro-batch on one process.
        seed (`int`): Of all orders.
        replay ([`ReplaySettings`], *optional*): What each global batch holds of earlier tasks.
        buffers (`Path`, *optional*): Where the samples that streaming tasks keep for replay lie, or will.
        writes (`bool`): Whether this process writes there.
    """

    def __init__(
        self,
        stream: Stream,
        plan: StreamPlan,
        batch_size: int,
        *,
        seed: int,
        replay: ReplaySettings | None = None,
        buffers: Path | None = None,
        writes: bool = True,
    ) -> None:
        self.plan, self.batch_size, self.drop_last, self.seed = plan, batch_size, True, seed
        self.first_step = 0
        self._datasets = [task.dataset for task in stream.tasks]
        self.readers = {
            index: StreamReader(task.name, task.dataset, seed, index)
            for index, task in enumerate(stream.tasks)
            if task.streaming
        }
        settings = replay or ReplaySettings()
        self.replay = ReplayIndices(plan, settings, seed, order=self._order, datasets=self._datasets)
        if buffers is not None and settings.fraction:
            self._keep_samples(buffers, writes)

    def _keep_samples(self, directory: Path, writes: bool) -> None:
        """Lets the streaming tasks of the plan keep samples, also the last one, after which another may come."""
        for task in self.plan.tasks:
            if task.index in self.readers and self.replay.kept(task.index):
                dataset, column = self._datasets[task.index], self.replay.settings.class_column
                self.replay.buffers[task.index] = StreamBuffer(
                    task.name,
                    directory / task.directory,
                    self.replay.kept(task.index),
                    kept_key(self.seed, task.index),
                    class_column=column,
                    class_names=None if column is None else label_names(dataset, column),
                    writes=writes,
                )

    def _order(self, task: int, epoch: int) -> np.ndarray:
        """The rows that a pass over a map-style task visits."""
        dataset = self._datasets[task]
        if isinstance(dataset, (Mixture, InOrder)):
            return dataset.order(self.seed, task, epoch)
        num_samples = self.plan.tasks[task].num_samples
        assert num_samples is not None
        return epoch_order(self.seed, task, epoch, num_samples)

    def __len__(self) -> int:
        return self.plan.num_steps * (self.plan.global_batch_size // self.batch_size)

    def __iter__(self) -> Iterator[list[Any]]:
        # A resumed Trainer counts off the batches before `first_step` and throws them away: they need no content.
        passed = self.first_step * (self.plan.global_batch_size // self.batch_size)
        yield from repeat([None] * self.batch_size, passed)
        for segment in self.plan.segments:
            done = max(self.first_step - segment.start_step, 0)
            for batch in range(segment.first_batch + done, segment.first_batch + segment.num_steps):
                samples = self.global_batch(segment.task, batch)
                for start in range(0, len(samples), self.batch_size):
                    yield samples[start : start + self.batch_size]

    def global_batch(self, task: int, batch: int) -> list[Sample]:
        """The addresses of all samples of one optimizer step, replayed ones spread evenly among the task's own."""
        size = self.plan.global_batch_size
        rows: list[tuple[int, Any]] = [(task, row) for row in self._own_rows(task, batch)]
        for number, replayed in enumerate(drawn := self.replay.draw(task, batch)):
            rows.insert(number * size // len(drawn), replayed)
        return [Sample(source, row, task, batch * size + place) for place, (source, row) in enumerate(rows)]

    def _own_rows(self, task: int, batch: int) -> Sequence[Any]:
        start, stop = self.replay.own_before(task, batch), self.replay.own_before(task, batch + 1)
        if task not in self.readers:
            return self._rows(task, start, stop)
        samples = self.readers[task].take(start, stop - start)
        if task in self.replay.buffers:
            self.replay.buffers[task].offer(start, samples)
        return samples

    def _rows(self, task: int, start: int, stop: int) -> Sequence[int]:
        plan = self.plan.tasks[task]
        assert plan.num_samples is not None
        usable = plan.num_samples - plan.num_unused_samples
        return rows_at(partial(self._order, task), usable, start, stop).tolist()

    def first_samples(self, task: int, count: int | None = None) -> list[Sample]:
        """The addresses of a task's own first samples, at most `count`; the reader that trains is not moved.

        Args:
            task (`int`): Its index.
            count (`int`, *optional*): By default one pass over a map-style task, and of a stream what it has read.
        """
        if count is None:
            plan = self.plan.tasks[task]
            count = self._samples_of(task) if plan.num_samples is None else plan.num_samples - plan.num_unused_samples
        stop = min(count, self._samples_of(task))
        rows = self.readers[task].anew().take(0, stop) if task in self.readers else self._rows(task, 0, stop)
        return [Sample(task, row, task, place) for place, row in enumerate(rows)]

    def state_at(self, step: int) -> dict[str, Any]:
        """State of the streaming task that the update at a global step reads; empty for a map-style one."""
        segment, reader, position = self._reading(step)
        if reader is None:
            return {}
        state = {"task": segment.task, "reader": reader.state_at(position)}
        if self.plan.tasks[segment.task].repeats and not segment.on_trunk:
            branch = self.replay.own_before(segment.task, segment.first_batch)
            state["branch"] = reader.state_at(branch)  # from which the trunk will read again
        return state

    def start_at(self, step: int, state: dict[str, Any]) -> None:
        """Begins at a global step, with the state of [`~StreamBatches.state_at`] there."""
        self.first_step = step
        if state and state["task"] in self.readers:  # the task may have become map-style
            self.readers[state["task"]].load_state(state["reader"], state.get("branch"))
        segment, _, position = self._reading(step)
        for task, buffer in self.replay.buffers.items():
            if task <= segment.task:
                buffer.load(position if task == segment.task else self._samples_of(task))

    def _samples_of(self, task: int) -> int:
        """The samples that a task reads of its own data."""
        return self.replay.own_before(task, self.plan.tasks[task].num_steps)

    def flush_buffers(self) -> None:
        """Writes down what streaming tasks have kept so far."""
        for buffer in self.replay.buffers.values():
            buffer.flush()

    def forget_before(self, step: int) -> None:
        """Lets a streaming task's reader drop what only earlier steps would need."""
        segment, reader, position = self._reading(step)
        if reader is not None:
            # The trunk may still have to repeat the branch's batches, from its first one.
            branch = self.replay.own_before(segment.task, segment.first_batch)
            reader.forget_before(position if segment.on_trunk else branch)

    def _reading(self, step: int) -> tuple[Segment, StreamReader | None, int]:
        segment = self.plan.segments[self.plan.segment_of(step)]
        batch = segment.first_batch + step - segment.start_step
        return segment, self.readers.get(segment.task), self.replay.own_before(segment.task, batch)


class StreamDataset(Dataset):
    """Fetches and collates a micro-batch under an RNG of its own.

    The global RNGs of Python, numpy and torch (CPU) are seeded from (seed, task, position) for the fetch and put
    back afterwards: what a dataset's transform or a collator draws does not depend on how far a loader runs ahead,
    on its workers, or on where a run was resumed.

    Args:
        datasets (`Sequence`): The tasks' datasets; None for streaming tasks, whose samples travel in the address.
        collate (`Callable`): A list of samples -> a batch.
        seed (`int`): The run's data seed.
    """

    def __init__(self, datasets: Sequence[Any], collate: Callable[[list[Any]], Any], seed: int) -> None:
        self.datasets, self.collate, self.seed = datasets, collate, seed

    def __getitems__(self, samples: list[Sample]) -> Any:
        first = samples[0]
        with seeded_rng(self.seed, first.during, first.position):
            return self.collate(self._fetch(samples))

    def _fetch(self, samples: list[Sample]) -> list[Any]:
        fetched: list[Any] = [None] * len(samples)
        for task in {sample.task for sample in samples}:
            places = [place for place, sample in enumerate(samples) if sample.task == task]
            rows = [samples[place].row for place in places]
            for place, item in zip(places, _items(self.datasets[task], rows), strict=True):
                fetched[place] = item
        return fetched


def _items(dataset: Any, rows: list[Any]) -> Sequence[Any]:
    if dataset is None:
        return rows
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(rows)
    return [dataset[row] for row in rows]


@contextmanager
def kept_rng() -> Iterator[None]:
    """Leaves the global RNGs of Python, numpy and torch (all devices) as they were."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def seeded_rng(*key: int) -> Iterator[None]:
    """Seeds the global RNGs of Python, numpy and torch (CPU) from a key, and puts them back afterwards."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = np.random.SeedSequence(key).generate_state(2, np.uint64).tolist()
    try:
        random.seed(seeds[0])
        np.random.seed(seeds[1] & 0xFFFFFFFF)
        torch.default_generator.manual_seed(seeds[0])
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
