"""Training samples of a task that has ended, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Samples(NamedTuple):
    """What importance is computed on.

    Args:
        batches (`Iterable`): Batches of one sample on the model's device: this process's share.
        total (`int`): Samples of all processes together.
    """

    batches: Iterable[Mapping[str, Any]]
    total: int
