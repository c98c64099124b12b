"""Releases that are merged with what came before: along the run, in place of each task's own model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import is_peft_available

from hf_infinite_lr.merging import MergeSettings
from hf_infinite_lr.merging_adapters import fault_of_adapter
from hf_infinite_lr.stream.plan import StreamPlan, TaskPlan

from . import checkpoints
from .disk import saving
from .engine_rules import check_engine_of_merging
from .host import Host
from .restore import blend_weights, restore_weights

START = "start"
"""Folder of the model that a run began with, kept for `merge: first`."""


class MergedReleases(Host):
    """Lets a task be evaluated and released as the mean of its model and another, by `args.merge`.

    The task's own model waits on disk meanwhile, so that no second model is in memory, and comes back unless the next
    task is to start from the mean. What it is merged with lies in `output_dir`: the release before, or the start.
    """

    args: Any
    plan: StreamPlan
    _annealing: bool
    _resumed_from: Path | None
    _output_dir: Path
    _save_whole: Any

    @property
    def _merging(self) -> MergeSettings | None:
        return None if self.args.merge is None else MergeSettings(**self.args.merge)

    def _check_merging(self) -> None:
        if self._merging is None:
            return
        check_engine_of_merging(self.args.merge, fsdp=self.is_fsdp_enabled, deepspeed=self.is_deepspeed_enabled)
        method = f"merge.method={self._merging.method!r}"
        if is_peft_available():
            from peft import PeftModel

            model = self._unwrapped()
            if isinstance(model, PeftModel) and (fault := fault_of_adapter(model)):
                raise ValueError(f"{method} cannot be used with an adapter {fault}, which PEFT does not merge.")

    def _begin_merging(self) -> None:
        """Before the first step of a fresh run: keeps the model that it begins with."""
        if self._merging is None or self._merging.method != "first" or self._resumed_from is not None:
            return
        aside_name = f"{checkpoints.INCOMING}-{START}"
        with (
            saving(START, self._output_dir),
            checkpoints.incoming(self._output_dir, self.accelerator, aside_name) as aside,
        ):
            self._save_whole(str(aside / START))
            if self.args.should_save:
                checkpoints.write_manifest(aside / START)
                checkpoints.move_into_place(aside / START, self._output_dir / START)
            self.accelerator.wait_for_everyone()

    def _merged_with(self, task: TaskPlan | None) -> Path | None:
        if self._merging is None or task is None:
            return None
        if self._merging.method == "first":
            return self._output_dir / START
        return self._output_dir / "releases" / self.plan.tasks[task.index - 1].directory if task.index else None

    def _check_merged(self, step: int) -> None:
        """Refuses to go on from a step where what the present task will be merged with is not there."""
        other = self._merged_with(self.plan.task_at(min(step, self.plan.num_steps - 1)))
        if other is None:
            return
        fault = checkpoints.asked_of_main(self.accelerator, lambda: checkpoints.fault_of(other))
        if fault is not None:
            raise ValueError(
                f"merge.method={self.args.merge['method']!r} needs {str(other)!r}, which is not whole: {fault}."
            )

    @contextmanager
    def _merged(self, task: TaskPlan | None) -> Iterator[None]:
        """At a task's end, lets the model be the merged one."""
        other, settings = self._merged_with(task), self._merging
        if other is None or settings is None:
            yield
            return
        self._check_merged(self.state.global_step - 1)
        name = f"{checkpoints.INCOMING}-own"
        with checkpoints.incoming(self._output_dir, self.accelerator, name) as aside:
            if not settings.next_start:
                with saving("the task's own model", self._output_dir):
                    self._save_whole(str(aside / "own"))
            self.accelerator.wait_for_everyone()
            blend_weights(self._unwrapped(), other, settings.weight)
            yield
            if not settings.next_start:
                restore_weights(self._unwrapped(), aside / "own")
            self.accelerator.wait_for_everyone()

    def _end_merging(self) -> None:
        """After the last step: the model is the last release."""
        task = self.plan.ends.get(self.state.global_step)
        if self._merging is None or self._merging.next_start or task is None or self._annealing:
            return
        restore_weights(self._unwrapped(), self._output_dir / "releases" / task.directory)
