"""Mixtures inside a task: samples of several datasets by weights, drawn anew in every pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from .order import generator
from .reader import has_exact_state, is_streaming, iterator_at, unshared

_MIXTURE = 3
_DRAWS = 1024


def mixture(
    datasets: Sequence[Any], weights: Sequence[float], *, num_samples: int | None = None, seed: int = 0
) -> Mixture | MixedStream:
    """Mixes datasets, all map-style or all streaming.

    Args:
        datasets (`Sequence`): The parts; tables of `datasets` with the same columns, or streams.
        weights (`Sequence[float]`): Their shares of the samples, in any unit.
        num_samples (`int`, *optional*): Of tables: as in [`Mixture`].
        seed (`int`): Of streams: decides their order; tables follow the run's data seed.

    Raises:
        ValueError: naming what does not fit.

    Example:

    ```python
    >>> web, code = (Dataset.from_dict({"x": list(range(size))}) for size in (100, 10))
    >>> mixed = mixture([web, code], [0.8, 0.2])
    >>> len(mixed), mixed.counts
    (50, (40, 10))

    ```
    """
    shares = _shares(datasets, weights)
    kinds = {is_streaming(dataset) for dataset in datasets}
    if len(kinds) > 1:
        raise ValueError("mixture: some parts are streaming and some are not; make them all one or the other.")
    if kinds == {True}:
        if num_samples is not None:
            raise ValueError(f"mixture: num_samples={num_samples} does not go with streams, whose passes have no end.")
        return MixedStream(datasets, shares, seed=seed)
    return Mixture(datasets, shares, num_samples=num_samples)


def _shares(datasets: Sequence[Any], weights: Sequence[float]) -> list[float]:
    if not datasets or len(weights) != len(datasets):
        raise ValueError(f"mixture: {len(weights)} weights for {len(datasets)} datasets; give one for each.")
    for weight in weights:
        if type(weight) not in (int, float) or not 0 < weight < float("inf"):
            raise ValueError(f"mixture: weight={weight!r} must be a finite number above 0.")
    return [weight / sum(weights) for weight in weights]


class Mixture:
    """A map-style dataset whose every pass holds other samples of its parts, in the same shares.

    A pass takes from each part the samples that follow those of the pass before, in an order that is new for each
    round over the part: a part that is larger than its share is seen evenly over the passes, and one that is smaller
    is repeated (the domain's subset stays, the web's is resampled: Guo et al. 2024, strategy III). Which rows they
    are depends on (seed, task, pass) alone.

    Rows are those of the parts one after another; `len` is the length of a pass.

    Args:
        datasets (`Sequence[datasets.Dataset]`): With the same columns.
        weights (`Sequence[float]`): Shares that add up to 1.
        num_samples (`int`, *optional*): Samples of a pass. Left out, as many as no part has to repeat one for.
    """

    def __init__(self, datasets: Sequence[Any], weights: Sequence[float], *, num_samples: int | None = None) -> None:
        for dataset in datasets:
            if not isinstance(dataset, Dataset):
                raise ValueError(f"mixture: a part of type {type(dataset).__name__} must be a datasets.Dataset.")
            if dataset.features != datasets[0].features:
                raise ValueError(
                    f"mixture: the columns {dataset.features} of a part differ from those of the first, "
                    f"{datasets[0].features}."
                )
        self.sizes = tuple(len(dataset) for dataset in datasets)
        if num_samples is None:
            num_samples = int(min(size / weight for size, weight in zip(self.sizes, weights, strict=True)) + 1e-9)
        if type(num_samples) is not int or num_samples < 1 or 0 in self.sizes:
            raise ValueError(f"mixture: num_samples={num_samples!r} and all parts must have at least one sample.")
        self.counts = _apportioned(num_samples, weights)
        self.table = concatenate_datasets(list(datasets))

    @property
    def column_names(self) -> list[str]:
        """Columns of all parts."""
        return self.table.column_names

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, row: int) -> Any:
        return self.table[row]

    def __getitems__(self, rows: list[int]) -> list[Any]:
        return self.table.__getitems__(rows)

    def order(self, seed: int, task: int, epoch: int) -> np.ndarray:
        """The rows that a pass visits."""
        return _mixed_order((seed, task, epoch), self.sizes, self.counts)

    def first_pass(self, seed: int, task: int) -> Dataset:
        """The samples of the first pass as a table, for what takes a task's data as a whole."""
        return self.table.select(self.order(seed, task, 0))


@lru_cache(maxsize=2)
def _mixed_order(key: tuple[int, int, int], sizes: tuple[int, ...], counts: tuple[int, ...]) -> np.ndarray:
    seed, task, epoch = key
    starts = np.concatenate([[0], np.cumsum(sizes)])
    parts = []
    for part, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        first, last = epoch * count // size, ((epoch + 1) * count - 1) // size
        rounds = [generator(seed, task, number, part, _MIXTURE).permutation(size) for number in range(first, last + 1)]
        begin = epoch * count - first * size
        parts.append(starts[part] + np.concatenate([np.empty(0, np.int64), *rounds])[begin : begin + count])
    rows = np.concatenate(parts).astype(np.int32 if starts[-1] < 2**31 else np.int64)
    generator(seed, task, epoch).shuffle(rows)
    return rows


def _apportioned(total: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers that add up to `total`, each less than 1 from its share; the largest remainders are rounded up."""
    exact = total * np.asarray(shares)
    counts = np.floor(exact + 1e-9).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return tuple(counts.tolist())


class MixedStream(torch.utils.data.IterableDataset):
    """An endless stream that draws each sample from one of its parts, by weights; a part that ends starts over.

    Args:
        datasets (`Sequence`): Streams with a state of their own (`state_dict`), which a shuffle buffer has not.
        weights (`Sequence[float]`): Shares that add up to 1.
        seed (`int`): Decides which part gives which sample.
    """

    def __init__(self, datasets: Sequence[Any], weights: Sequence[float], *, seed: int = 0) -> None:
        for dataset in datasets:
            if not has_exact_state(dataset):
                raise ValueError(
                    f"mixture: a stream of type {type(dataset).__name__} has no state from which to go on (a shuffle "
                    "buffer has none); streams are shuffled by the trainer."
                )
        self.datasets, self.ends, self.seed = tuple(map(unshared, datasets)), np.cumsum(weights), seed
        self.load_state_dict(None)

    def unshared(self) -> MixedStream:
        """The same stream at its start, with a position of its own."""
        own = copy.copy(self)
        own.datasets = tuple(map(unshared, self.datasets))
        own.load_state_dict(None)
        return own

    @property
    def column_names(self) -> list[str] | None:
        """Columns of the first part, where they are known."""
        return getattr(self.datasets[0], "column_names", None)

    def state_dict(self) -> dict[str, Any]:
        """Position after the sample that was yielded last."""
        for part in self._advanced:
            self._parts[part] = self.datasets[part].state_dict()
        return {"position": self._position, "passes": list(self._passes), "parts": list(self._parts)}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Lets the next iteration begin where a state was taken, or at the start."""
        nothing = [None] * len(self.datasets)
        self._position: int = state["position"] if state else 0
        self._passes: list[int] = list(state["passes"]) if state else [0] * len(self.datasets)
        self._parts: list[Any] = list(state["parts"]) if state else nothing
        self._advanced: set[int] = set()  # the parts that this iteration has read from

    def __iter__(self) -> Iterator[Any]:
        if self._advanced:  # a new iteration without a state starts over
            self.load_state_dict(None)
        opened = zip(self.datasets, self._passes, self._parts, strict=True)
        iterators = [iterator_at(dataset, passes, state) for dataset, passes, state in opened]
        while True:
            part = self._part_at(self._position)
            try:
                sample = next(iterators[part])
            except StopIteration:
                self._passes[part] += 1
                iterators[part] = iterator_at(self.datasets[part], self._passes[part], None)
                sample = next(iterators[part], None)
                if sample is None:
                    raise ValueError(f"mixture: part {part + 1} has no samples.") from None
            self._position += 1
            self._advanced.add(part)
            yield sample

    def _part_at(self, position: int) -> int:
        block, place = divmod(position, _DRAWS)
        return int(_draws(self.seed, block, tuple(self.ends.tolist()))[place])


@lru_cache(maxsize=4)
def _draws(seed: int, block: int, ends: tuple[float, ...]) -> np.ndarray:
    drawn = generator(seed, block, _MIXTURE).random_sample(_DRAWS) * ends[-1]
    return np.searchsorted(ends, drawn, side="right")
