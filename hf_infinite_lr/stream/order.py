"""Which samples make up each global batch: pure functions of (seed, task, epoch, position)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np


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


@lru_cache(maxsize=64)
def _offset(key: tuple[int, ...]) -> np.uint64:
    return np.uint64(generator(*key).randint(0, 2**63, dtype=np.int64))


def scatter(positions: np.ndarray, *key: int) -> np.ndarray:
    """A 64-bit number for each position that looks random and depends on position and key alone.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014): with another key the numbers have nothing in common.

    Args:
        positions (`np.ndarray`): Whole numbers from 0, of any shape.
        *key (`int`): Which numbers.

    Returns:
        `np.ndarray`: uint64, of the same shape.
    """
    mixed = (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + _offset(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


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
