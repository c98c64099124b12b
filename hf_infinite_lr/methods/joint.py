"""Joint training: all tasks at once, the upper bound of what a stream can teach."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, concatenate_datasets
from torch.utils.data import ConcatDataset

from hf_infinite_lr.stream import Stream, Task, mixture
from hf_infinite_lr.stream.mixture import Mixture

JOINT = "joint"


@dataclass(frozen=True)
class JointSettings:
    """`methods.joint` has no keys: write `methods: {joint: {}}`."""


def union(datasets: Sequence[Any]) -> Any:
    """One dataset of several map-style ones: of `datasets` where all are and have the same columns, else of torch."""
    if all(isinstance(dataset, Dataset) and dataset.features == datasets[0].features for dataset in datasets):
        return concatenate_datasets(list(datasets))
    return ConcatDataset(datasets)


def tables(tasks: Sequence[Task], seed: int) -> list[Any]:
    """The data of each task as rows that count the same: of a mixture its first pass, which has its shares."""
    parts = [task.dataset for task in tasks]
    return [data.first_pass(seed, place) if isinstance(data, Mixture) else data for place, data in enumerate(parts)]


def identity_of(tasks: Sequence[Task], *more: str) -> str:
    """A fingerprint of several tasks together, and of what else shapes their samples."""
    return hashlib.sha256(" ".join([*(task.identity() for task in tasks), *more]).encode()).hexdigest()[:16]


def joint_stream(stream: Stream, lengths: Sequence[int], seed: int) -> Stream:
    """One task of the union of all tasks, with as many steps as the stream has; its columns stay those of the stream.

    Every sample counts the same, whichever task it is of; of a task that is a mixture these are the samples of its
    first pass. A run of it has one schedule: the warm-up, the cool-down to the constant and the annealing are shares
    of the whole. Of streaming tasks the union is their mixture, each by its steps, drawn sample by sample.

    Cost: no bytes beyond fine-tuning, for the union is not copied, and no time for a step;
    `recipes/benchmarks/methods.py` measures it.

    Args:
        stream ([`Stream`]): The tasks, all map-style or all streaming.
        lengths (`Sequence[int]`): Their steps.
        seed (`int`): The run's data seed, by which streams are mixed and a mixture's first pass is drawn.

    Raises:
        ValueError: if some tasks are streaming and some are not.
    """
    streaming = [task.name for task in stream.tasks if task.streaming]
    if 0 < len(streaming) < len(stream.tasks):
        raise ValueError(
            f"methods.joint: task {streaming[0]!r} is streaming and others are not; make them all one or the other."
        )
    parts = tables(stream.tasks, seed)
    together = mixture(parts, lengths, seed=seed) if streaming else union(parts)
    task = Task(JOINT, together, num_steps=sum(lengths), fingerprint=identity_of(stream.tasks))
    return Stream((task,), stream.eval_datasets)
