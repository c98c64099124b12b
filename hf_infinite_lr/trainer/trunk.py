"""Trunk and branches: what is saved where, and how the trunk comes back after a branch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_infinite_lr.files import write_json
from hf_infinite_lr.hub import BASE, CARD
from hf_infinite_lr.manifest import STATE
from hf_infinite_lr.methods.head import base_of
from hf_infinite_lr.schedules import Schedule
from hf_infinite_lr.stream.loading import StreamBatches
from hf_infinite_lr.stream.plan import StreamPlan, TaskPlan

from . import checkpoints
from .disk import saving
from .engines import Engines
from .flow import Stopwatch
from .host import continual_arguments, portable_arguments, without_bars
from .publishing import Publishing
from .record import schedule_state
from .resume import check_branches

logger = logging.getLogger(__name__)


class TrunkAndBranches(Engines, Publishing):
    """Saves checkpoints, trunks and releases whole or not at all, and restores from them."""

    plan: StreamPlan
    schedule: Schedule | None
    lr_scheduler: Any
    optimizer: Any
    _add_to_release: Callable[[Path], None]
    _finished: Callable[[Path | None], Mapping[str, Mapping[str, float]]]
    _batches: StreamBatches
    _step_seconds: Stopwatch
    _host_output_dir: str | None = None
    _resumed_from: Path | None = None
    _release_name: str = ""

    @property
    def _buffers(self) -> Path:
        """Where the samples lie that streaming tasks keep for replay; an annealing reads those of its checkpoint."""
        root = self._resumed_from if self._annealing and self._resumed_from else self._output_dir
        return root / checkpoints.BUFFERS

    # ---- Saving ------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves through the host, aside; then the whole directory is named `checkpoint-N`, `trunk/...`, or both."""
        if self._annealing:
            return
        self._check_loss(self._tr_loss.item())
        step = self.state.global_step
        trunk_task = self.plan.trunk_points.get(step)
        self.record.train_seconds += self._step_seconds.stop()
        with (
            saving(f"checkpoint-{step}", self._output_dir),
            checkpoints.incoming(self._output_dir, self.accelerator) as aside,
        ):
            self._host_output_dir = str(aside)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._host_output_dir = None
            saved = aside / f"checkpoint-{step}"
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._complete(saved, step)
                if trunk_task is not None:
                    checkpoints.link_tree(saved, aside / "trunk")
                    checkpoints.move_into_place(aside / "trunk", self._output_dir / "trunk" / trunk_task.directory)
                    self._publish_trunk(trunk_task.directory)
                # Without a strategy a save that is no trunk's was asked for by a callback, as after SIGTERM.
                if self.args.save_strategy != "no" or trunk_task is None:
                    checkpoints.move_into_place(saved, self._output_dir / saved.name)
                    checkpoints.rotate(self._output_dir, self.args.save_total_limit)
            self.accelerator.wait_for_everyone()
        self._batches.forget_before(step)
        self._write_record()
        self._step_seconds.start()

    def _check_loss(self, loss: float) -> None:
        """Stops before a broken model is saved over a good one; asked at logs and saves, which wait anyway."""
        if math.isfinite(loss):
            return
        step = self.state.global_step
        saved = [path for _, path in checkpoints.candidates(self._output_dir)]
        raise FloatingPointError(
            f"The loss is {loss} at step {step} (task {self.plan.task_at(step - 1).name!r}, learning rate "
            f"{self._get_learning_rate():.3g}); the last checkpoint is {saved[0] if saved else 'none'}."
        )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As in the host, for early stopping; no checkpoint is called the best, which it would seek where it saves."""
        is_best = super()._determine_best_metric(metrics, trial)
        self.state.best_global_step = None
        return is_best

    def _get_output_dir(self, trial: Any) -> str:
        return self._host_output_dir or super()._get_output_dir(trial)

    def _complete(self, directory: Path, step: int) -> None:
        finished = step >= self.plan.num_steps
        self.record.log_history = self.state.log_history
        write_json(directory / STATE, self.record.state(step, finished=finished))
        write_json(directory / checkpoints.STREAM_STATE, self._batches.state_at(step))
        self._batches.flush_buffers()
        if self._buffers.exists():
            checkpoints.link_tree(self._buffers, directory / checkpoints.BUFFERS)
        checkpoints.write_manifest(directory)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As the host saves, with `training_args.bin` readable by a process without this package."""
        output_dir = self.args.output_dir if output_dir is None else output_dir
        own = self.args
        self.args = portable_arguments(own)
        try:
            with without_bars():
                super()._save(output_dir, state_dict)
        finally:
            self.args = own
        if own.should_save:
            write_json(Path(output_dir) / "continual_arguments.json", continual_arguments(own))

    def _release(self, name: str, task: TaskPlan) -> None:
        """Saves the model as the release of a task, with its benchmarks' scores and its card."""
        # An annealing after the fact may run beside the job that makes the trunk, and must not write in its place.
        aside_name = f"{checkpoints.INCOMING}-{name}" if self._annealing else checkpoints.INCOMING
        with (
            saving(f"releases/{name}", self._output_dir),
            checkpoints.incoming(self._output_dir, self.accelerator, aside_name) as aside,
        ):
            self._save_whole(str(aside / name))
            self.accelerator.wait_for_everyone()
            self.record.add_benchmarks(task, self._finished(aside / name))
            if self.args.should_save:
                self._add_to_release(aside / name)
                (aside / name / CARD).unlink(missing_ok=True)  # PEFT's own card, which ours replaces after the list
                base = base_of(self._unwrapped())
                if base is not self._unwrapped() and isinstance(base, PreTrainedModel):
                    (aside / name / BASE).mkdir()
                    base.config.to_json_file(aside / name / BASE / "config.json")  # its classes stand nowhere else
                checkpoints.write_manifest(aside / name)
                self._describe_release(aside / name)
                checkpoints.move_into_place(aside / name, self._output_dir / "releases" / name)
            self.accelerator.wait_for_everyone()

    def _write_record(self) -> None:
        if self.args.should_save and not self._annealing:
            step = self.state.global_step
            self.record.log_history = self.state.log_history
            with saving("continual_state.json", self._output_dir):
                self.record.write(self._output_dir, step, finished=step >= self.plan.num_steps)

    # ---- Restoring ---------------------------------------------------------------------------------------------

    def _rewind(self, trunk: Path, step: int) -> None:
        # This run has hashed the trunk when it was saved, or when the run was resumed on the branch.
        fault = checkpoints.asked_of_main(self.accelerator, lambda: checkpoints.fault_of(trunk, trust_unchanged=True))
        if fault is not None:
            raise ValueError(f"{trunk} is not whole, so the trunk cannot come back at step {step}: {fault}.")
        self._restore(trunk, optimizer=self.args.rewind == "full")
        if self.args.rewind == "full":
            self._load_scaler(str(trunk))
            self._load_rng_state(str(trunk))
        if self.schedule is not None:
            self.lr_scheduler.set_position(step)
        logger.info("step %d: back on the trunk of %s (rewind=%s)", step, trunk.name, self.args.rewind)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._load_optimizer(Path(checkpoint))
            self._resume_schedule(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def _resume_schedule(self, state: dict[str, Any]) -> None:
        """The resume policy decides; only an annealing after the fact goes on by position alone."""
        if self.schedule is None:
            self.lr_scheduler.load_state_dict(state)
            # torch's schedulers leave the groups as they are, and the optimizer was restored without its rates.
            for group, rate in zip(self._raw_optimizer().param_groups, self.lr_scheduler.get_last_lr(), strict=True):
                group["lr"] = rate
        elif self._annealing:
            self.lr_scheduler.base_lrs = list(state["base_lrs"])
            self.lr_scheduler.set_position(self.state.global_step)
        else:
            planned = self.schedule, list(self.lr_scheduler.base_lrs)
            self.lr_scheduler.load_state_dict(state)
            if (self.lr_scheduler.schedule, self.lr_scheduler.base_lrs) != planned:
                check_branches(self.lr_scheduler.schedule, self.plan)
                self.schedule = self.lr_scheduler.schedule
                self.record.schedule = schedule_state(self.args, self.schedule, float(self.lr_scheduler.base_lrs[0]))
