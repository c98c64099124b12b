"""Which classes each task of a class-incremental stream teaches."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class TaskClasses:
    """The classes of each task, as numbers of a model's outputs; no class is in two tasks.

    Args:
        of (`Mapping[str, Sequence[int]]`): Task -> its classes.
        names (`Mapping[int, str]`, *optional*): Of the classes, for messages.

    Raises:
        ValueError: naming the task, the class and the rule.

    Example:

    ```python
    >>> TaskClasses({"a": [0, 1], "b": [2]}).of_tasks(["a"])
    (0, 1)

    ```
    """

    of: Mapping[str, Iterable[int]]
    names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A generator would be read empty by the check, and no class would be compared then.
        object.__setattr__(self, "of", {task: tuple(classes) for task, classes in self.of.items()})
        owners: dict[int, str] = {}
        for task, classes in self.of.items():
            for number in classes:
                if type(number) is not int or number < 0:
                    raise ValueError(f"task_classes of {task!r}: {number!r} must be the number of an output.")
                if number in owners:
                    raise ValueError(
                        f"class {self.names.get(number, str(number))!r} is in {owners[number]!r} and in {task!r}: in "
                        "class-incremental learning every class belongs to one task."
                    )
                owners[number] = task

    def of_tasks(self, tasks: Iterable[str]) -> tuple[int, ...]:
        """The classes of several tasks, in order."""
        return tuple(sorted(number for task in tasks for number in self.of.get(task, ())))


def masked(logits: torch.Tensor, labels: torch.Tensor | None, compared: Collection[int] | None) -> torch.Tensor:
    """Logits in single precision with minus infinity for the classes that are not compared.

    A sample whose own class is not among the compared ones (of a task that is still to come) keeps all classes, so
    that its loss stays finite.

    Args:
        logits (`torch.Tensor`): Shape (samples, classes).
        labels (`torch.Tensor`, *optional*): Shape (samples,); None where they are not known.
        compared (`Collection[int]`, *optional*): Numbers of classes; none compares all.

    Example:

    ```python
    >>> masked(torch.zeros(2, 3), torch.tensor([0, 2]), (0, 1)).tolist()
    [[0.0, 0.0, -inf], [0.0, 0.0, 0.0]]

    ```
    """
    logits = logits.float()
    if not compared:
        return logits
    left_out = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    left_out[list(compared)] = False
    if labels is not None:
        left_out = left_out[None] & ~left_out[labels][:, None]
    return logits.masked_fill(left_out, -torch.inf)
