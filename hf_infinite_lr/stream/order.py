"""Which samples make up each global batch: pure functions of (seed, task, epoch, position)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_ALL = 2**64 - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Sample(NamedTuple):
    """The address of one sample of a batch.

    Args:
        task (`int`): The task whose dataset holds it (an earlier one for a replayed sample).
        row: Row of that dataset; for a streaming task the sample itself, already read.
        during (`int`): The task that is being trained.
        position (`int`): Place of the sample in that task, counted in samples over its batches.
    """

    task: int
    row: object
    during: int
    position: int


def generator(*key: int) -> np.random.RandomState:
    """A generator whose numbers depend on the key alone, and which numpy has frozen for good."""
    return np.random.RandomState(np.array(key, dtype=np.uint64).view(np.uint32))


def scatter(positions: np.ndarray, *key: int) -> np.ndarray:
    """A 64-bit number for each position that looks random and depends on position and key alone.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014) over key and position: with another key the numbers have
    nothing in common. For a few numbers of a new key it is ten times as fast as seeding a [`generator`].

    Args:
        positions (`np.ndarray`): Whole numbers from 0, of shape (n,).
        *key (`int`): Which numbers.

    Returns:
        `np.ndarray`: uint64, of the same shape.
    """
    start = 0
    for part in key:
        start = _finalised(start + part + _GOLDEN)
    mixed = positions.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(start)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(_FIRST)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_SECOND)
    return mixed ^ (mixed >> np.uint64(31))


def _finalised(number: int) -> int:
    number &= _ALL
    number = (number ^ (number >> 30)) * _FIRST & _ALL
    number = (number ^ (number >> 27)) * _SECOND & _ALL
    return number ^ (number >> 31)


def scattered_below(ends: int | np.ndarray, positions: np.ndarray, *key: int) -> np.ndarray:
    """Whole numbers from 0 that are below `ends`, of [`scatter`]."""
    return ((scatter(positions, *key) >> np.uint64(11)) * 2.0**-53 * ends).astype(np.int64)


@lru_cache(maxsize=2)
def epoch_order(seed: int, task: int, epoch: int, num_samples: int) -> np.ndarray:
    """The order in which one pass visits a map-style task: a permutation, 4 bytes a sample below 2^31 samples."""
    dtype = np.int32 if num_samples < 2**31 else np.int64
    order = np.arange(num_samples, dtype=dtype)
    generator(seed, task, epoch).shuffle(order)
    return order


def rows_at(order: Callable[[int], np.ndarray], usable: int, start: int, stop: int) -> np.ndarray:
    """Rows of a task's samples `start` to `stop`, counted over all passes.

    Args:
        order (`Callable`): epoch -> the rows that a pass visits.
        usable (`int`): Samples of a pass that are served: whole global batches.
        start (`int`): First sample.
        stop (`int`): Behind the last one.
    """
    parts = [np.empty(0, np.int32)]
    while start < stop:
        epoch, offset = divmod(start, usable)
        count = min(stop - start, usable - offset)
        parts.append(order(epoch)[offset : offset + count])
        start += count
    return np.concatenate(parts)


def replay_before(batch: int, fraction: float, global_batch_size: int) -> int:
    """Replayed samples in a task's batches before `batch`: floor(batch x fraction x G).

    Batch b holds `replay_before(b + 1) - replay_before(b)` of them, so their share is exact over any stretch and
    the number of steps does not grow (compute-equivalent replay, Ibrahim et al. 2024, section 5).
    """
    return int(batch * fraction * global_batch_size + 1e-9)
