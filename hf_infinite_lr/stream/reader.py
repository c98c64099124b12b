"""Reads a streaming task in seeded blocks, so that its order can be continued from a position."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from datasets import IterableDataset
from datasets.iterable_dataset import BufferShuffledExamplesIterable

from .order import generator

logger = logging.getLogger(__name__)

BLOCK_SIZE = 1000
"""Samples that are shuffled together: what a resumed stream reads again at most, and what it holds in memory."""


def is_streaming(dataset: Any) -> bool:
    """Whether a dataset can only be read in its own order (an iterable dataset of torch or `datasets`)."""
    return isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__getitem__")


@dataclass(frozen=True)
class BlockState:
    """Where a block begins.

    Args:
        position (`int`): Samples of the task before it.
        epoch (`int`): Pass over the dataset.
        block (`int`): Blocks of this pass before it.
        dataset (`str`, *optional*): The dataset's own state there, as JSON; None if it has none that can be kept.
    """

    position: int = 0
    epoch: int = 0
    block: int = 0
    dataset: str | None = None


class StreamReader:
    """Yields a streaming dataset's samples, shuffled within consecutive blocks; starts over at its end.

    The order depends on (seed, task, pass, block) and on the dataset's own order, never on the number of processes.
    Before each block the dataset's state is noted, so that a position is reached again by reading one block. A
    dataset without a state, or with a shuffle buffer of its own (whose content no state holds), is read again from
    its start instead, which gives the same samples at the cost of the reading.

    Samples are read in the training process of every rank (each rank reads the whole stream and keeps its share);
    `dataloader_num_workers` moves the collation to other processes, not the reading.

    Args:
        name (`str`): The task's name, for messages.
        dataset: An iterable dataset.
        seed (`int`): The run's data seed.
        task (`int`): Index of the task.
        block_size (`int`): Samples of a block.
    """

    def __init__(self, name: str, dataset: Any, seed: int, task: int, block_size: int = BLOCK_SIZE) -> None:
        self.name, self.dataset, self.seed, self.task = name, unshared(dataset), seed, task
        self.block_size = block_size
        self._has_state = has_exact_state(dataset)
        self._states: list[BlockState] = []
        self._start_at(BlockState())

    def anew(self) -> StreamReader:
        """A second reader of the same samples, at their start; neither moves the other."""
        dataset = unshared(self.dataset)
        if dataset is self.dataset:  # of a kind that is not known here
            dataset = copy.deepcopy(dataset)
        return StreamReader(self.name, dataset, self.seed, self.task, self.block_size)

    def take(self, start: int, count: int) -> list[Any]:
        """The samples at positions `start` to `start + count`, counted from the task's first."""
        if start != self._position:
            self._seek(start)
        samples: list[Any] = []
        while len(samples) < count:
            if self._offset == len(self._block):
                self._read_block()
            part = self._block[self._offset : self._offset + count - len(samples)]
            samples += part
            self._offset += len(part)
        self._position += count
        return samples

    def state_at(self, position: int) -> dict[str, Any]:
        """What [`~StreamReader.load_state`] needs to continue at `position`: plain values that JSON can hold."""
        return asdict(self._known(position) or BlockState())

    def load_state(self, state: dict[str, Any], earlier: dict[str, Any] | None = None) -> None:
        """
        Continues from a state of [`~StreamReader.state_at`].

        Args:
            state (`dict`): Of the position from which to go on.
            earlier (`dict`, *optional*): Of one to which the reader will have to go back.
        """
        self._states = [] if earlier is None else [BlockState(**earlier)]
        self._start_at(BlockState(**state))

    def forget_before(self, position: int) -> None:
        """Drops the states that only positions before `position` would need."""
        while len(self._states) > 1 and self._states[1].position <= position:
            del self._states[0]

    def _known(self, position: int) -> BlockState | None:
        return next((state for state in reversed(self._states) if state.position <= position), None)

    def _seek(self, start: int) -> None:
        known = self._known(start)
        if start < self._position:
            state = known or BlockState()
            self._states = [earlier for earlier in self._states if earlier.position < state.position]
            self._start_at(state)
        while self._position < start:
            self.take(self._position, min(start - self._position, self.block_size))

    def _start_at(self, state: BlockState) -> None:
        self._next = state
        self._position = state.position
        self._block: list[Any] = []
        self._offset = 0
        # Opened with the first block: a dataset that has a state loaded and is not read would begin there later on.
        self._iterator: Iterator[Any] | None = None

    def _opened(self, state: BlockState) -> Iterator[Any]:
        kept = None if state.dataset is None else json.loads(state.dataset)
        iterator = iterator_at(self.dataset, state.epoch, kept)
        if state.dataset is None and state.block:
            self._read_again(iterator, state.block * self.block_size, state.epoch)
        return iterator

    def _read_again(self, iterator: Iterator[Any], count: int, epoch: int) -> None:
        logger.warning(
            "Task %r: its dataset has no state that can be kept, so its first %d samples of pass %d are read again.",
            self.name,
            count,
            epoch,
        )
        for _ in islice(iterator, count):
            pass

    def _read_block(self) -> None:
        state = self._next
        if self._iterator is None:
            self._iterator = self._opened(state)
        block = list(islice(self._iterator, self.block_size))
        if not block:
            self._next_pass()
            return
        self._states.append(state)
        order = generator(self.seed, self.task, state.epoch, state.block).permutation(len(block))
        self._block, self._offset = [block[place] for place in order], 0
        self._next = BlockState(state.position + len(block), state.epoch, state.block + 1, self._dataset_state())

    def _next_pass(self) -> None:
        if self._next.block == 0:
            raise ValueError(f"Task {self.name!r}: its streaming dataset has no samples.")
        self._next, self._iterator = BlockState(self._next.position, self._next.epoch + 1), None

    def _dataset_state(self) -> str | None:
        try:
            return json.dumps(self.dataset.state_dict()) if self._has_state else None
        except TypeError:  # the state holds more than plain values
            return None


def unshared(dataset: Any) -> Any:
    """A stream whose position no other moves: those that `skip`, `take` or `filter` make of one stream share its.

    Only what has a position is copied: functions and files of the stream may be large, or not to be copied at all.
    A stream of another kind is returned as it is, unless it does this itself, by a method `unshared`; such a one also
    goes back to its start by `load_state_dict(None)`.
    """
    if not isinstance(dataset, IterableDataset):
        return dataset.unshared() if hasattr(dataset, "unshared") else dataset
    own = copy.copy(dataset)
    own._epoch = copy.deepcopy(dataset._epoch)
    own._ex_iterable = _unshared(dataset._ex_iterable)
    return own


def _unshared(part: Any) -> Any:
    own = copy.copy(part)
    if hasattr(part, "ex_iterable"):
        own.ex_iterable = _unshared(part.ex_iterable)
    if hasattr(part, "ex_iterables"):
        own.ex_iterables = [_unshared(each) for each in part.ex_iterables]
    return own


def iterator_at(dataset: Any, epoch: int, state: dict[str, Any] | None) -> Iterator[Any]:
    """Iterates a streaming dataset from a state of its own, or else from the start of a pass."""
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)
    if state is not None or isinstance(dataset, IterableDataset) or hasattr(dataset, "unshared"):
        dataset.load_state_dict(state)
    return iter(dataset)


def has_exact_state(dataset: Any) -> bool:
    """Whether a dataset's state tells all: not so when a `datasets` shuffle buffer holds samples beside it."""
    return hasattr(dataset, "state_dict") and not any(
        isinstance(part, BufferShuffledExamplesIterable) for part in _chain(dataset)
    )


def in_fixed_order(dataset: IterableDataset, what: str) -> IterableDataset:
    """A stream whose every pass has the order of its first, for what is decided by the place of a sample.

    `datasets` reads the shards of a stream in another order from the second pass on, unless it skips samples.

    Args:
        dataset (`datasets.IterableDataset`): Of which samples are chosen by their places.
        what (`str`): Says what the places decide, for messages.

    Raises:
        ValueError: for a stream that is drawn at random, which no pass repeats.
    """
    if any(hasattr(part, "shift_rngs") for part in _chain(dataset)):
        raise ValueError(
            f"{what} goes by the places of samples, which a stream that is shuffled or drawn at random changes in "
            "every pass: give it as it is stored; streams are shuffled by the trainer."
        )
    return dataset.skip(0)


def _chain(stream: Any) -> Iterator[Any]:
    """A stream and all that it is made of."""
    yield stream
    below = [getattr(stream, name) for name in ("_ex_iterable", "ex_iterable", "documents") if hasattr(stream, name)]
    for part in [*below, *getattr(stream, "ex_iterables", ())]:
        yield from _chain(part)
