"""Tasks that are visited in the order of their rows: curricula."""

from __future__ import annotations

from typing import Any

import numpy as np

from .reader import is_streaming


class InOrder:
    """A map-style dataset whose every pass visits its rows from the first to the last, instead of shuffled.

    What does not fill a last global batch is left out at the end of each pass.

    Args:
        dataset: Map-style, sorted as it is to be learned.

    Raises:
        ValueError: for a stream.

    Example:

    ```python
    >>> from hf_infinite_lr.stream import Task
    >>> Task("easy-first", InOrder([{"input_ids": [1]}, {"input_ids": [2]}])).dataset.order(0, 0, 1)
    array([0, 1])

    ```
    """

    def __init__(self, dataset: Any) -> None:
        if is_streaming(dataset):
            raise ValueError(
                f"InOrder: a dataset of type {type(dataset).__name__} is streaming, which is shuffled in blocks; make "
                "it map-style."
            )
        self.table = dataset

    @property
    def column_names(self) -> list[str] | None:
        """Columns of the dataset, where they are known."""
        return getattr(self.table, "column_names", None)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> Any:
        return self.table[row]

    def __getitems__(self, rows: list[int]) -> list[Any]:
        if not hasattr(self.table, "__getitems__"):
            return [self.table[row] for row in rows]
        found: list[Any] = self.table.__getitems__(rows)
        return found

    def order(self, seed: int, task: int, epoch: int) -> np.ndarray:
        """The rows that a pass visits."""
        return np.arange(len(self.table))
