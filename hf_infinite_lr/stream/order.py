"""Which samples make up each global batch: pure functions of (seed, task, epoch, position)."""

from __future__ import annotations

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


@lru_cache(maxsize=2)
def epoch_order(seed: int, task: int, epoch: int, num_samples: int) -> np.ndarray:
    """The order in which one pass visits a map-style task: a permutation, 4 bytes a sample below 2^31 samples."""
    dtype = np.int32 if num_samples < 2**31 else np.int64
    order = np.arange(num_samples, dtype=dtype)
    generator(seed, task, epoch).shuffle(order)
    return order


def rows_at(seed: int, task: int, num_samples: int, global_batch_size: int, start: int, stop: int) -> np.ndarray:
    """Rows of a task's samples `start` to `stop`, counted over all passes; a pass is whole global batches."""
    usable = num_samples - num_samples % global_batch_size
    parts = [np.empty(0, np.int32)]
    while start < stop:
        epoch, offset = divmod(start, usable)
        count = min(stop - start, usable - offset)
        parts.append(epoch_order(seed, task, epoch, num_samples)[offset : offset + count])
        start += count
    return np.concatenate(parts)


def replay_before(batch: int, fraction: float, global_batch_size: int) -> int:
    """Replayed samples in a task's batches before `batch`: floor(batch x fraction x G).

    Batch b holds `replay_before(b + 1) - replay_before(b)` of them, so their share is exact over any stretch and
    the number of steps does not grow (compute-equivalent replay, Ibrahim et al. 2024, section 5).
    """
    return int(batch * fraction * global_batch_size + 1e-9)
