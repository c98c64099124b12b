"""Joint training: all tasks at once, the upper bound of what a stream can teach."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, concatenate_datasets
from torch.utils.data import ConcatDataset

from hf_infinite_lr.stream import Stream, Task

JOINT = "joint"


@dataclass(frozen=True)
class JointSettings:
    """`methods.joint` has no keys: write `methods: {joint: {}}`."""


def union(datasets: Sequence[Any]) -> Any:
    """One dataset of several map-style ones: of `datasets` where all are, else of torch."""
    if all(isinstance(dataset, Dataset) for dataset in datasets):
        return concatenate_datasets(list(datasets))
    return ConcatDataset(datasets)


def identity_of(tasks: Sequence[Task], *more: str) -> str:
    """A fingerprint of several tasks together, and of what else shapes their samples."""
    return hashlib.sha256(" ".join([*(task.identity() for task in tasks), *more]).encode()).hexdigest()[:16]


def joint_stream(stream: Stream, lengths: Sequence[int]) -> Stream:
    """One task of the union of all tasks, with as many steps as the stream has; its columns stay those of the stream.

    Every sample counts the same, whichever task it is of. A run of it has one schedule: the warm-up, the cool-down to
    the constant and the annealing are shares of the whole.

    Cost: none beyond fine-tuning; the union is not copied.

    Args:
        stream ([`Stream`]): The tasks, map-style.
        lengths (`Sequence[int]`): Their steps.
    """
    together = union([task.dataset for task in stream.tasks])
    task = Task(JOINT, together, num_steps=sum(lengths), fingerprint=identity_of(stream.tasks))
    return Stream((task,), stream.eval_datasets)
