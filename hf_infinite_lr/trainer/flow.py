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
        if plan.ends_pass(step):
            control.should_log |= args.logging_strategy == "epoch"
            control.should_evaluate |= args.eval_strategy == "epoch" and args.eval_delay <= (state.epoch or 0)
            control.should_save |= args.save_strategy == "epoch"
        if step in plan.ends:
            control.should_log = control.should_evaluate = True
            control.should_save |= args.save_strategy != "no"

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Trainer's one epoch ends with its last step; a pass or task that ends there was evaluated and saved by that.
        if state.global_step in self.trainer.plan.ends or self.trainer.plan.ends_pass(state.global_step):
            control.should_evaluate = control.should_save = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._end_stream()


class StreamProgress(ProgressCallback):
    """Trainer's progress bar with the task and the phase in front, and one short line for each log."""

    def __init__(self, trainer: ContinualMixin) -> None:
        super().__init__()
        self.trainer = trainer
        self._label = ""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None:
            where = self.trainer.where(state.global_step - 1)
            label = f"{where['task']} ({where['task_index'] + 1}/{len(self.trainer.plan.tasks)}) {where['phase']}"
            if label != self._label:
                self.training_bar.set_description(label, refresh=False)
                self._label = label
        super().on_step_end(args, state, control, **kwargs)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None and (line := self._line(state, logs)):
            self.training_bar.write(line)

    def _line(self, state: TrainerState, logs: dict[str, Any]) -> str:
        if "loss" in logs:
            where = self.trainer.where(state.global_step - 1)
            return (
                f"step {state.global_step:>7}  {where['task']}  {where['phase']}  loss {logs['loss']:.4f}  "
                f"learning rate {logs['learning_rate']:.3g}"
            )
        evaluated = [column for column in self.trainer.columns if f"eval_{column}_loss" in logs]
        return "".join(
            f"step {state.global_step:>7}  evaluated on {column}: loss {logs[f'eval_{column}_loss']:.4f}"
            for column in evaluated
        )


class Stopwatch:
    """Adds up the seconds between `start` and `stop`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds counted so far, those of a running watch included."""
        return self.seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

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
