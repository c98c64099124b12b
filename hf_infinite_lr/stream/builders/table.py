"""What went where: a table of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_infinite_lr.stream.reader import is_streaming
from hf_infinite_lr.stream.task import Task


def task_table(tasks: Sequence[Task]) -> str:
    """Names, sizes and contents of tasks, one line each.

    Example:

    ```python
    >>> print(task_table([Task("cats", [0] * 90, [0] * 10, holds="class cat")]))
    task  train  held out  holds
    cats     90        10  class cat

    ```
    """
    rows = [("task", "train", "held out", "holds")]
    rows += [(task.name, _size(task.dataset), _size(task.eval_dataset), task.holds or "") for task in tasks]
    name, train, held_out, _ = (max(len(cell) for cell in column) for column in zip(*rows, strict=True))
    lines = [f"{a:<{name}}  {b:>{train}}  {c:>{held_out}}  {d}".rstrip() for a, b, c, d in rows]
    return "\n".join(lines)


def _size(dataset: Any) -> str:
    if dataset is None:
        return "–"
    return "stream" if is_streaming(dataset) else str(len(dataset))
