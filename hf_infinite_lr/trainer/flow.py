"""The callbacks that lead a Trainer along a stream: boundaries, rewinds, and a progress bar that names them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

if TYPE_CHECKING:
    from .mixin import ContinualMixin


class StreamFlow(TrainerCallback):
    """Rewinds before a task's first step, and asks for log, evaluation and save at branch points and task ends.

    It only sets Trainer's flags; the work is done where Trainer does it, so that logs, evaluations and saves keep
    their order and their callbacks.
    """

    def __init__(self, trainer: ContinualMixin) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._begin_stream()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._begin_step(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step, plan = state.global_step, self.trainer.plan
        self.trainer._end_step(step)
        if step in plan.trunk_points:
            control.should_save = True
        if step in plan.ends:
            control.should_log = control.should_evaluate = True
            control.should_save |= args.save_strategy != "no"

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._end_stream()


class StreamProgress(ProgressCallback):
    """Trainer's progress bar, with the task and the phase of the schedule in front."""

    def __init__(self, trainer: ContinualMixin) -> None:
        super().__init__()
        self.trainer = trainer
        self._shown = ""
        self._shown_at = 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            where = self.trainer.where(state.global_step - 1)
            label = f"{where['task']} ({where['task_index'] + 1}/{len(self.trainer.plan.tasks)}) {where['phase']}"
            if label != self._shown:
                self.training_bar.set_description(label, refresh=False)
                self._shown = label
        super().on_step_end(args, state, control, **kwargs)


class Stopwatch:
    """Adds up the seconds between `start` and `stop`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Begins to count; a running watch goes on."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> float:
        """Stops and returns the seconds since `start`; 0 if it was not running."""
        passed = 0.0 if self._since is None else time.perf_counter() - self._since
        self._since = None
        self.seconds += passed
        return passed
