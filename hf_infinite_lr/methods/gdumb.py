"""GDumb: a balanced buffer, and a model that is trained from scratch on it after each task."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Subset

from hf_infinite_lr.stream import Stream
from hf_infinite_lr.stream.labels import class_of_each
from hf_infinite_lr.stream.order import generator

from .joint import identity_of, tables, union
from .method import Learner, Method
from .weights import all_tensors, copy_tensors

_BUFFER = 2  # a key of its own beside replay's (1); the order of a task's third pass has it too, over other samples


@dataclass(frozen=True)
class GDumbSettings:
    """Keys of `methods.gdumb`.

    Args:
        buffer_size (`int`): Samples that are kept of all tasks together.
        label_column (`str`, *optional*): Balances the buffer over the classes in this column; without it, it is
            balanced over the tasks.
    """

    buffer_size: int
    label_column: str | None = None


def balanced(counts: Sequence[int], size: int) -> list[int]:
    """How many samples of each class a buffer holds: as equal as `counts` allow, the first ones get what remains.

    Example:

    ```python
    >>> balanced([10, 2, 10], 12)
    [5, 2, 5]
    >>> balanced([10, 10, 10], 11)
    [4, 4, 3]

    ```
    """
    taken = [0] * len(counts)
    while (left := size - sum(taken)) > 0 and (
        open_classes := [place for place, count in enumerate(counts) if count > taken[place]]
    ):
        each = max(1, left // len(open_classes))
        for place in open_classes[:left]:
            taken[place] = min(counts[place], taken[place] + each)
    return taken


def buffers(groups: Sequence[Sequence[Hashable]], size: int, seed: int) -> list[list[tuple[int, int]]]:
    """The buffer after each task, as sorted (task, row) pairs.

    Of each class those samples are kept that come first in one seeded order of all samples. Quotas only shrink, so a
    buffer holds nothing but what the buffer before it and the new task hold.

    Args:
        groups (`Sequence[Sequence]`): For each task, the class of each of its rows.
        size (`int`): Samples of a buffer.
        seed (`int`): The run's data seed.
    """
    found: dict[Hashable, list[tuple[float, int, int]]] = {}
    made = []
    for task, classes in enumerate(groups):
        keys = generator(seed, task, _BUFFER).random_sample(len(classes))
        for row, (key, name) in enumerate(zip(keys.tolist(), classes, strict=True)):
            found.setdefault(name, []).append((key, task, row))
        found = {name: sorted(members) for name, members in found.items()}
        quotas = balanced([len(members) for members in found.values()], size)
        found = {name: members[:quota] for (name, members), quota in zip(found.items(), quotas, strict=True)}
        made.append(sorted((task, row) for members in found.values() for _, task, row in members))
    return made


def gdumb_stream(stream: Stream, lengths: Sequence[int], settings: GDumbSettings, seed: int) -> Stream:
    """The same tasks with the same steps, each on the buffer after it.

    Args:
        stream ([`Stream`]): The tasks, map-style.
        lengths (`Sequence[int]`): Their steps.
        settings ([`GDumbSettings`]): Size and balance of the buffer.
        seed (`int`): The run's data seed.

    Raises:
        ValueError: naming field, value and rule.
    """
    if streaming := [task.name for task in stream.tasks if task.streaming]:
        raise ValueError(
            f"methods.gdumb: task {streaming[0]!r} is streaming, but buffers are drawn from all samples before the "
            "first step; make it map-style."
        )
    parts = tables(stream.tasks, seed)
    groups = [
        _classes(task.name, data, place, settings.label_column)
        for place, (task, data) in enumerate(zip(stream.tasks, parts, strict=True))
    ]
    samples, classes = sum(map(len, groups)), len({name for members in groups for name in members})
    field = f"methods.gdumb.buffer_size={settings.buffer_size}"
    if settings.buffer_size > samples:
        raise ValueError(f"{field} must not be above the {samples} samples of all tasks.")
    if settings.buffer_size < classes:
        kind = "tasks" if settings.label_column is None else f"classes of {settings.label_column!r}"
        raise ValueError(f"{field} must be at least the number of {kind}, {classes}.")
    kept = buffers(groups, settings.buffer_size, seed)
    tasks = tuple(
        replace(
            task,
            dataset=_picked(parts, rows),
            num_steps=steps,
            num_epochs=None,
            fingerprint=identity_of(stream.tasks[: place + 1], repr(settings)),
        )
        for place, (task, steps, rows) in enumerate(zip(stream.tasks, lengths, kept, strict=True))
    )
    return replace(stream, tasks=tasks)


def _classes(task: str, data: Any, place: int, label_column: str | None) -> Sequence[Hashable]:
    if label_column is None:
        return [place] * len(data)
    columns = data.column_names if isinstance(data, Dataset) else []
    if label_column not in columns:
        raise ValueError(
            f"methods.gdumb.label_column={label_column!r} must be a column of every task; {task!r} has "
            f"{', '.join(columns) or 'no columns'}."
        )
    names: list[Hashable] = class_of_each(data, label_column).tolist()
    return names


def _picked(datasets: Sequence[Any], pairs: Sequence[tuple[int, int]]) -> Any:
    rows: dict[int, list[int]] = {}
    for task, row in pairs:
        rows.setdefault(task, []).append(row)
    parts = [(datasets[task], chosen) for task, chosen in rows.items()]
    return union([data.select(own) if isinstance(data, Dataset) else Subset(data, own) for data, own in parts])


class FromScratch(Method):
    """GDumb's training (Prabhu et al. 2020): each buffer is learned by the untrained model, with a fresh optimizer.

    The run's tasks keep their names, steps and columns; the learning rate runs through its whole schedule for each.
    GDumb needs nothing of an earlier model, so it shows what the buffer alone is worth.

    Cost: one copy of the initial weights on the CPU (4 bytes per parameter in single precision), and in every
    checkpoint; no time for a step, as `recipes/benchmarks/methods.py` measures it. The buffer is row numbers.

    Streaming tasks are refused: a buffer that is balanced over classes is known when all samples are.
    """

    name: ClassVar[str] = "gdumb"
    on_device: ClassVar[bool] = False

    def __init__(self, settings: GDumbSettings) -> None:
        self.settings = settings
        self.initial: dict[str, torch.Tensor] = {}

    def kept(self, model: nn.Module) -> Iterator[tuple[torch.Tensor, int]]:
        """The initial weights: all of the model."""
        return ((part, part.element_size()) for part in all_tensors(model).values())

    def begin(self, learner: Learner) -> None:
        """Keeps the weights with which the run starts."""
        self.initial = {name: part.cpu().clone() for name, part in all_tensors(learner.model).items()}

    def end_task(self, learner: Learner) -> None:
        """Puts them back, and forgets the optimizer's state."""
        copy_tensors(self.initial, learner.model)
        learner.optimizer.state.clear()

    def state(self) -> dict[str, torch.Tensor]:
        """The initial weights."""
        return dict(self.initial)

    def load(self, state: Mapping[str, torch.Tensor], learner: Learner) -> None:
        """As in [`Method`]."""
        self.initial = dict(state)
