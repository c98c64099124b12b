"""How a run starts: afresh, from a checkpoint, or not at all because nothing of it is left to do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from hf_infinite_lr.config import schedule_name
from hf_infinite_lr.files import read_json
from hf_infinite_lr.manifest import STATE
from hf_infinite_lr.methods import Method
from hf_infinite_lr.schedules import Schedule
from hf_infinite_lr.stream.loading import StreamBatches
from hf_infinite_lr.stream.plan import StreamPlan
from hf_infinite_lr.stream.task import Stream

from . import checkpoints
from .acceptance import accept_changed_tasks
from .forgetting import check_methods
from .host import Host
from .record import RunRecord
from .resume import (
    check_curve,
    check_data_settings,
    check_engine,
    check_trunk,
    find_checkpoint,
    has_ended,
    has_written_end,
    newest_whole,
)

logger = logging.getLogger(__name__)

_STEP_KINDS = ("logging", "eval", "save")


class RunStart(Host):
    """`train`: where the run goes on from, and whether it may."""

    args: Any
    stream: Stream
    plan: StreamPlan
    schedule: Schedule | None
    record: RunRecord
    _batches: StreamBatches
    _methods: list[Method]
    _has_trained: bool
    _resumed_from: Path | None
    _output_dir: Path
    _newest_release: str | None
    _check_merged: Callable[[int], None]
    _finish_current_push: Any
    _follow: Callable[[Stream], None]
    _load_released: Any
    _local_checkpoint: Callable[[Any], Any]
    _new_record: Callable[[], RunRecord]
    _start_clocks: Callable[[], None]
    _write_end: Callable[[], None]

    @property
    def _on_resume(self) -> str:
        policy: str | None = (self.args.lr_scheduler_kwargs or {}).get("on_resume")
        return policy or "continue"

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains the stream, from its start or from a checkpoint.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                `True` goes on from the newest whole checkpoint of `output_dir`, and starts afresh when there is none;
                a path names the checkpoint, `user/model@task-01-web-trunk` a trunk on the Hub. Left out, a directory
                that a run has used is refused.
            *args, **kwargs: As in `Trainer.train`.

        Returns:
            `TrainOutput`: As of `Trainer.train`; where nothing is left to do the last step, loss 0 and no metrics.

        Raises:
            ValueError: before the first step, for a used `output_dir`, a broken checkpoint, or one of another run.
            FloatingPointError: for a loss that is no number, at the next log or save.
            SaveError: when the disk takes no more.
        """
        resume_from_checkpoint = self._local_checkpoint(resume_from_checkpoint)
        if self.args.should_save:
            checkpoints.sweep(self._output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.accept_changed_tasks:
            self._accept_changed_tasks(resume_from_checkpoint)
        changed = self.args.accept_changed_tasks
        self._resumed_from = checkpoints.asked_of_main(
            self.accelerator,
            lambda: find_checkpoint(self._output_dir, resume_from_checkpoint, self.plan, accept_data=changed),
        )
        if self._resumed_from is None and self._has_trained and self.model_init is None:
            raise ValueError(
                f"{self._output_dir} holds no whole checkpoint, and this trainer's model has been trained already: "
                "make a new trainer to start from the beginning."
            )
        self._start_clocks()
        self.record = self._new_record()
        if self.args.should_save:
            checkpoints.put_back_buffers(self._resumed_from, self._output_dir)
        self.accelerator.wait_for_everyone()
        if self._resumed_from is None:
            return super().train(None, *args, **kwargs)
        state = read_json(self._resumed_from / STATE)
        self.record.resume_from(state)
        self.record.times_back = self._times_back(self._resumed_from)
        if self._on_resume != "override":  # the checkpoint's rates are kept
            self.record.settings["embedding_learning_rate"] = state["settings"].get("embedding_learning_rate")
        check_data_settings(state, self.record.settings, self.plan)
        check_engine(state, self.record.settings)
        check_methods(state, self.args.methods, self.plan)
        checkpoints.asked_of_main(
            self.accelerator, lambda: check_trunk(self._output_dir, self.plan, state["global_step"])
        )
        self._check_merged(state["global_step"])
        if self.schedule is None:
            check_curve(state, schedule_name(self.args), self.plan.num_steps)
        last_step = min(self.args.max_steps, self.plan.num_steps) if self.args.max_steps > 0 else self.plan.num_steps
        done = state["global_step"]
        if resume_from_checkpoint is True and self._has_ended():
            done = self.plan.num_steps
        if done >= last_step:
            return self._already_finished(self._resumed_from, done)
        return super().train(str(self._resumed_from), *args, **kwargs)

    def _times_back(self, checkpoint: Path) -> int:
        return checkpoints.asked_of_main(
            self.accelerator, lambda: checkpoints.times_back_from(self._output_dir, checkpoint)
        )

    def _has_ended(self) -> bool:
        end = self.record.state(self.plan.num_steps, finished=True)
        return checkpoints.asked_of_main(self.accelerator, lambda: has_ended(self._output_dir, self.plan, end))

    def _accept_changed_tasks(self, resume: str | bool | None) -> None:
        checkpoint = checkpoints.asked_of_main(self.accelerator, lambda: newest_whole(self._output_dir, resume))
        if checkpoint is None:
            return
        reading = [method.name for method in self._methods if method.reads_samples]
        stream = accept_changed_tasks(read_json(checkpoint / STATE), self.stream, self.plan, reading)
        if stream is not None:
            self._follow(stream)

    def _already_finished(self, checkpoint: Path, global_step: int) -> TrainOutput:
        done = f"stopped at max_steps={self.args.max_steps}" if global_step < self.plan.num_steps else "is finished"
        logger.info("%s: the run %s (%d steps) and no task is new.", self._output_dir, done, global_step)
        ended = has_written_end(self._output_dir, global_step)
        where = self._output_dir if ended else checkpoint
        self.state = TrainerState.load_from_json(str(where / TRAINER_STATE_NAME))
        if not ended:  # a kill after the last save has left the end undone
            self._write_end()
        last = self._output_dir / "releases" / self.plan.tasks[-1].directory
        released = global_step == self.plan.num_steps and last.exists()
        self._load_released(last if released else checkpoint)
        self._newest_release = last.name if released else None
        self._finish_current_push()
        return TrainOutput(global_step, 0.0, {})

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        first_task = self.plan.tasks[0].num_steps
        done = super()._init_training_state(max_steps, *args, **kwargs)
        for kind in _STEP_KINDS:
            name = f"{kind}_steps"
            steps = getattr(self.args, name)
            if steps is None:
                continue
            steps = max(1, int(steps * first_task + 1e-9)) if steps < 1 else int(steps)
            if self._resumed_from is not None and getattr(self.state, name) != steps:
                logger.warning("%s: %s -> %s", name, getattr(self.state, name), steps)
            setattr(self.state, name, steps)
        if self._resumed_from is not None:
            stream_state = read_json(self._resumed_from / checkpoints.STREAM_STATE)
            self._batches.start_at(self.state.global_step, stream_state)
        return done
