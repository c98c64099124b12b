"""Which samples a buffer of a given size keeps, of all that a task has visited or of those read so far."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np


def chosen(numbers: np.ndarray, size: int, classes: np.ndarray | None = None) -> np.ndarray:
    """The places of the samples that are kept: a uniform choice, or one that is balanced over classes.

    Uniform: the `size` smallest numbers. Balanced: every class gives its smallest numbers in turn until the buffer is
    full, so that no class has two samples more than another that could have given more.

    Args:
        numbers (`np.ndarray`): A random number for each sample, of [`~hf_infinite_lr.stream.order.scatter`].
        size (`int`): Samples to keep; all, when there are fewer.
        classes (`np.ndarray`, *optional*): Label of each sample.

    Returns:
        `np.ndarray`: Places in ascending order.

    Example:

    ```python
    >>> numbers = np.array([5, 1, 4, 2, 3], np.uint64)
    >>> chosen(numbers, 3), chosen(numbers, 3, np.array([0, 1, 0, 1, 1]))
    (array([1, 3, 4]), array([1, 2, 3]))

    ```
    """
    if size >= len(numbers):
        return np.arange(len(numbers))
    if classes is None:
        return np.sort(np.argpartition(numbers, size - 1)[:size])
    order = np.lexsort((numbers, classes))
    ordered = classes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    turns = np.empty(len(numbers), np.int64)
    turns[order] = np.arange(len(numbers)) - np.repeat(starts, np.diff([*starts, len(numbers)]))
    return np.sort(np.lexsort((numbers, turns))[:size])


class Reservoir:
    """Says of samples that come one after another which ones [`chosen`] may still keep at the end.

    Whatever the number of samples to come, those let in hold all that is kept; about size x (1 + ln(samples / size))
    are let in.

    Args:
        size (`int`): Samples to keep.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._counts: dict[Any, int] = {}
        self._smallest: dict[Any, list[int]] = {}  # negated, the largest first

    def let_in(self, numbers: np.ndarray, classes: Sequence[Any] | None = None) -> list[int]:
        """The places of a batch that are let in.

        Args:
            numbers (`np.ndarray`): As in [`chosen`].
            classes (`Sequence`, *optional*): Label of each sample; in all batches or in none.
        """
        most = self._most_of_a_class() if classes is not None else self.size
        labels = [None] * len(numbers) if classes is None else classes
        pairs = enumerate(zip(numbers.tolist(), labels, strict=True))
        return [place for place, (number, label) in pairs if self._enters(number, label, most)]

    def _enters(self, number: int, label: Any, most: int) -> bool:
        smallest = self._smallest.setdefault(label, [])
        while len(smallest) > most:
            heapq.heappop(smallest)
        if len(smallest) == most and number >= -smallest[0]:
            return False
        heapq.heappush(smallest, -number)
        self._counts[label] = self._counts.get(label, 0) + 1
        return True

    def _most_of_a_class(self) -> int:
        """An upper bound of the samples of one class that a balanced buffer holds now; it never grows."""
        counts = np.sort(np.fromiter(self._counts.values(), np.int64, len(self._counts)))
        if counts.sum() <= self.size:
            return self.size
        # The level up to which all classes fit; classes below it give what they have.
        before = np.concatenate([[0], np.cumsum(counts)[:-1]])
        levels = (self.size - before) // (len(counts) - np.arange(len(counts)))
        full = int(np.argmax(levels < counts))
        return int(levels[full]) + 1
