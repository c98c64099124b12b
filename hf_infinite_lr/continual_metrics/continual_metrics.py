"""The numbers of [`hf_infinite_lr.metrics`] as a module of `evaluate`, loaded from this folder without a network.

`evaluate` loads a folder whose name is that of its script, copies the script, and imports it from there.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from hf_infinite_lr.metrics import DESCRIPTIONS, TaskMatrix, summary

_INPUTS = """
Args:
    matrix (`list[list[float]]`): Row i = after training task i, column j = evaluated on task j; None = not evaluated.
    higher_is_better (`bool`): True for scores, False for losses.
    baseline (`list[float]`, *optional*): The untrained model on each task, which forward transfer needs.

Returns:
    `dict[str, float | None]`: """


class ContinualMetrics(evaluate.Metric):
    """Average, forgetting and transfer of a task matrix.

    Example:

    ```python
    >>> from pathlib import Path
    >>> import hf_infinite_lr
    >>> folder = Path(hf_infinite_lr.__file__).parent / "continual_metrics"
    >>> metric = evaluate.load(str(folder), keep_in_memory=True)
    >>> numbers = metric.compute(matrix=[[1.0, 4.0], [1.5, 2.0]], higher_is_better=False, baseline=[5.0, 5.0])
    >>> numbers["forgetting_from_right_after_learning"], numbers["forward_transfer_gem"]
    (0.5, 1.0)

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Numbers of continual learning on a task matrix; every key names its convention.",
            citation="Sources stand with each key in hf_infinite_lr.metrics.DESCRIPTIONS.",
            inputs_description=_INPUTS + "\n".join(f"{key}: {text}" for key, text in DESCRIPTIONS.items()),
            features=datasets.Features({"matrix": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(
        self,
        matrix: Sequence[Sequence[float | None]],
        higher_is_better: bool,
        baseline: Sequence[float | None] = (),
        **kwargs: Any,
    ) -> dict[str, float | None]:
        if not matrix or not matrix[0]:
            raise ValueError(
                f"matrix={matrix!r} must have a row for each task learned so far, and a column for each task."
            )
        tasks = [f"task-{number}" for number in range(1, len(matrix[0]) + 1)]
        return summary(TaskMatrix(tasks, tasks, "metric", higher_is_better, matrix, baseline))
