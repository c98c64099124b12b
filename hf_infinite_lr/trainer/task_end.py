"""What happens where a task ends: evaluation, release and matrix row, in this order."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from hf_infinite_lr.stream.plan import TaskPlan

from .merged import MergedReleases
from .record import RunRecord


class TaskEnds(MergedReleases):
    """Trainer evaluates at a task's end because the flow asks for it; the rest is done here behind it."""

    record: RunRecord
    _release_name: str
    _scores: dict[str, dict[str, float]]
    _release: Any
    _released: Any
    learned_tasks: Any
    _score_release: Any
    _publish_release: Any
    _write_record: Any

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        """At a task's end the evaluation is followed by the release and the matrix row.

        Trainer may evaluate there again, on resuming or at the end of its one epoch; a task ends once.
        """
        task = self.plan.ends.get(self.state.global_step)
        if task is not None and self.record.has_row(task):
            task = None
        with self._merged(task), nullcontext() if task is None else self._released(task):
            return self._evaluated(task, trial, ignore_keys_for_eval, skip_scheduler)

    def _evaluated(self, task: TaskPlan | None, *given: Any) -> dict[str, float]:
        self._scores = {}
        metrics = super()._evaluate(*given)
        # Where no column is evaluated, no event clears the flag, and the end of the run would evaluate again.
        self.control.should_evaluate = False
        if task is not None:
            self._score_release(task.directory, tuple(self.learned_tasks(task.end_step)))
            self.record.add_row(task, self._scores)
            if releases := self._annealing or self.record.is_released(task):
                self._release(self._release_name if self._annealing else task.directory, task)
            self._write_record()
            if releases:
                self._publish_release(self._release_name if self._annealing else task.directory)
        return metrics
