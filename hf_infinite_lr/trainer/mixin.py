"""`ContinualMixin`: a Trainer that learns a stream of tasks on one trunk, with an annealed branch per task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ProgressCallback

from hf_infinite_lr.arguments import curve_arguments, resume_arguments
from hf_infinite_lr.config import run_mode, schedule_name
from hf_infinite_lr.files import write_json
from hf_infinite_lr.lr_scheduler import ScheduleLR
from hf_infinite_lr.methods.joint import JOINT
from hf_infinite_lr.report import write_report
from hf_infinite_lr.run_plan import arrange, plan_run
from hf_infinite_lr.schedules import PHASE_ORDER
from hf_infinite_lr.stream.task import Stream
from hf_infinite_lr.stream.task_classes import TaskClasses
from hf_infinite_lr.unsupported import refuse_unsupported

from .annealing import AnnealingAfterwards
from .columns import ColumnEvaluation, ScoreModel, check_evaluation
from .disk import saving
from .engine_rules import check_beginning, check_finishing, zero_stage
from .flow import Stopwatch, StreamFlow, StreamProgress
from .forgetting import ForgettingMethods
from .host import bounded_length, check_arguments, check_host, continual_arguments, engine_name, one_pass
from .pace import Pace
from .rates import OwnRates
from .record import RunRecord, schedule_state
from .serving import ServedStream
from .start import RunStart
from .task_end import TaskEnds
from .trunk import TrunkAndBranches

logger = logging.getLogger(__name__)

PHASES = tuple(PHASE_ORDER)
"""Phase names; their places are the numbers in logs (`phase_index`)."""

_DESCRIBED = 20


class ContinualMixin(
    RunStart,  # before the next, which anneals by the host's own `train`
    AnnealingAfterwards,
    TaskEnds,
    TrunkAndBranches,
    ColumnEvaluation,
    ForgettingMethods,
    OwnRates,
    ServedStream,
):
    """Makes a Trainer learn a stream of tasks. Put it before the host: `class C(ContinualMixin, SFTTrainer)`.

    The trunk is one Trainer run over the stream. At a task's branch point it is saved to `trunk/`, the remaining steps
    of the task anneal, the annealed model is evaluated and saved to `releases/`, and the next task goes on from the
    trunk (Singh et al. 2025, section 3). `cosine_rewarm` and `rsqrt_rewarm` re-warm at each task and have no branch: a
    release is the model at the task's end. Any other schedule is one curve over the whole run.

    Args:
        model: As in `Trainer`.
        args ([`ContinualTrainingArguments`]): Or the host's arguments with [`ContinualArguments`] mixed in.
        train_dataset: A list of datasets, a dict name -> dataset, or a list of [`Task`]s; map-style or streaming.
        eval_dataset (*optional*): A dict name -> dataset, or a list with one dataset for each task. Names that are no
            task become evaluation-only columns.
        score_column (`Callable`, *optional*): `(column, metrics) -> further metrics` of an evaluated column, such as
            bits per byte from the loss. `metrics` carries no prefix.
        begin_task (`Callable`, *optional*): Called before the first update of every later task, after the trunk has
            come back, and may write weights; so not with FSDP or DeepSpeed, which train other tensors.
        finish_release (`Callable`, *optional*): `(model, directory) -> benchmark -> metric -> value`, called on every
            process for every release, whose files lie in `directory` and may be added to (None on processes that do
            not write), and before training without a directory (not with `evaluate_on="none"`).
        score_model (`Callable`, *optional*): `(trainer, release, columns, learned) -> {column: {metric: value}}`:
            further scores of the model before training and at each task's end, such as probes (none with
            `evaluate_on="none"`). `release` is the directory of the release (`untrained` before training), `columns`
            are those that were evaluated just now, to which the answer belongs, and `learned` names the tasks so far.
        task_classes (`Mapping[str, Iterable[int]]`, *optional*): For class-incremental classification by a model with
            one output for every class: each task's, as numbers of outputs ([`~.trainer.classes.ClassIncremental`]).
        **kwargs: As in the host.

    Raises:
        ValueError: before any work, naming the field, its value and the rule.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        score_column: Callable[[str, dict[str, float]], Mapping[str, float]] | None = None,
        begin_task: Callable[[], None] | None = None,
        finish_release: Callable[[Any, Path | None], Mapping[str, Mapping[str, float]]] | None = None,
        score_model: ScoreModel | None = None,
        task_classes: Mapping[str, Iterable[int]] | TaskClasses | None = None,
        **kwargs: Any,
    ) -> None:
        check_host(type(self), ContinualMixin)
        check_arguments(args)
        refuse_unsupported(args)
        args.logging_nan_inf_filter = False  # some hosts leave it on; it would hide the loss that ends a broken run
        stream = Stream.of(train_dataset, eval_dataset)
        check_evaluation(stream, args.evaluate_on)
        with bounded_length(args):
            super().__init__(
                model=model,
                args=args,
                train_dataset=stream.tasks[0].dataset,
                eval_dataset=stream.eval_datasets or None,
                **kwargs,
            )
        self.score_column, self.begin_task, self.finish_release = score_column, begin_task, finish_release
        self._check_constructed()
        self._plan_run(args, stream)
        self._check_publication()
        self._check_best_metric()
        self.score_model = score_model
        self.references: dict[str, Any] = {}
        self.units: dict[str, str] = {}
        self.tokens_per_sample: int | None = None
        self.record = self._new_record()
        self._resumed_from: Path | None = None
        self.has_begun = self._has_trained = False
        self._scores: dict[str, dict[str, float]] = {}
        self._start_clocks()
        self._compare_classes(task_classes)
        self._make_methods()
        self._check_given_optimizer()
        self._follow_stream()

    # ---- What a subclass may say -------------------------------------------------------------------------------

    def prepare_task_dataset(self, dataset: Any, name: str) -> Any:
        """Prepares the dataset of a later task as the host's constructor has prepared the first one's.

        Args:
            dataset: The task's training data as given.
            name (`str`): The task's name.
        """
        return dataset

    # ---- Construction ------------------------------------------------------------------------------------------

    def _check_constructed(self) -> None:
        if self.lr_scheduler is not None:
            raise ValueError("optimizers: a scheduler object cannot be used; name the schedule by lr_scheduler_type.")
        if self.finish_release:
            check_finishing(fsdp=self.is_fsdp_enabled, zero_stage=zero_stage(self))
        if self.begin_task:
            check_beginning(fsdp=self.is_fsdp_enabled, zero_stage=zero_stage(self))
        self._check_engine()
        self._check_merging()

    def _plan_run(self, args: Any, stream: Stream) -> None:
        """From the tasks as given to the stream that is trained on, its schedule and its plan."""
        prepared = [self.train_dataset, *(self.prepare_task_dataset(t.dataset, t.name) for t in stream.tasks[1:])]
        given, batch_size = stream.with_datasets(prepared), self.get_total_train_batch_size(args)
        self.stream = arrange(args, given, batch_size)
        self.columns = tuple(stream.eval_datasets)
        self._joined = [task.name for task in stream.tasks] if run_mode(args) == JOINT else []
        self.schedule, self.plan = plan_run(args, self.stream, batch_size)

    def _start_clocks(self) -> None:
        self._step_seconds, self._evaluation_seconds = Stopwatch(), Stopwatch()
        self._pace = Pace(self._step_seconds)

    def _new_record(self) -> RunRecord:
        args = self.args
        scored = tuple(self._joined or (task.name for task in self.plan.tasks))
        return RunRecord(
            plan=self.plan,
            scored_tasks=scored,
            columns=tuple(dict.fromkeys([*scored, *self.columns])),
            schedule=schedule_state(args, self.schedule),
            settings={
                **continual_arguments(args),
                "global_batch_size": self.plan.global_batch_size,
                "world_size": args.world_size,
                "engine": engine_name(self.accelerator),
                "seed": args.seed,
                "data_seed": self._data_seed,
                "max_steps": args.max_steps,
            },
            references=self.references,
            units=self.units,
            tokens_per_sample=self.tokens_per_sample,
        )

    def _follow_stream(self) -> None:
        if any(type(callback) is ProgressCallback for callback in self.callback_handler.callbacks):
            self.remove_callback(ProgressCallback)
            self.add_callback(StreamProgress(self))
        self.add_callback(StreamFlow(self))

    # ---- The loop, as Trainer sees it --------------------------------------------------------------------------

    def set_initial_training_values(self, args: Any, dataloader: DataLoader) -> tuple:
        """Trainer sees one epoch over the stream; `max_steps` stops it early and moves no boundary."""
        seen = one_pass(args, self.plan.num_steps)
        if self._annealing:
            seen.max_steps = -1
        return super().set_initial_training_values(seen, dataloader)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Our schedules follow the stream's tasks; any other name is one curve over the whole stream."""
        self._take_back_scheduler()
        if self.schedule is None:
            return super().create_scheduler(self.plan.num_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = ScheduleLR(
                self.optimizer if optimizer is None else optimizer,
                self.schedule,
                name=schedule_name(self.args),
                on_resume=self._on_resume,
                arguments=resume_arguments(
                    schedule_name(self.args),
                    task_steps=[task.num_steps for task in self.plan.tasks],
                    learning_rate=self.args.learning_rate,
                    warmup_steps=self.args.warmup_steps,
                    kwargs=curve_arguments(self.args.lr_scheduler_kwargs),
                    anneal_budget=self.args.anneal_budget,
                    release=self.args.release,
                ),
                rewinds=True,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _begin_stream(self) -> None:
        self.has_begun = True
        if self._resumed_from is None and self.args.should_log:
            for task in self.plan.tasks[:_DESCRIBED]:
                logger.info(self.plan.describe(task))
            if len(self.plan.tasks) > _DESCRIBED:
                logger.info("... and %d more tasks", len(self.plan.tasks) - _DESCRIBED)
        self._give_loss()
        if self._resumed_from is None and self.args.evaluate_on != "none":
            self._evaluate_columns(self.columns)
            self._score_release("untrained", ())
            self.record.set_baseline(self._scores)
            self.record.add_benchmarks(None, self._finished(None))
        self._begin_methods(self._resumed_from)
        self._begin_merging()
        self._write_record()
        self._queue_missed()
        self._step_seconds.start()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`; the time that passes here is waited for data."""
        with self._pace.waiting():
            return super().get_batch_samples(*args, **kwargs)

    def _begin_step(self, step: int) -> None:
        """Before the update at `step`: the trunk comes back when a branch has ended there."""
        task = self.plan.rewind_points.get(step)
        if task is not None:
            self._rewind(self._output_dir / "trunk" / task.directory, step)
            self._rewind_methods(self._output_dir / "trunk" / task.directory)
        begun = self.plan.task_at(step)
        if step and begun.start_step == step and not self._annealing:
            self._between_tasks(self.plan.tasks[begun.index - 1])
            if self.args.reset_optimizer:
                self._reset_optimizer()
            if self.begin_task:
                self.begin_task()

    def _end_step(self, step: int) -> None:
        """After the update that made `step` updates: the schedule's position, also when fp16 skipped the update."""
        self._has_trained = True
        if self.schedule is not None:
            self.lr_scheduler.set_position(step)
        self._end_update()
        self.state.epoch = self.plan.epochs_at(step)

    def _end_stream(self) -> None:
        self.record.train_seconds += self._step_seconds.stop()
        if self.state.global_step == self.plan.num_steps and not self._annealing:
            self._become_release(self._output_dir / "releases" / self.plan.tasks[-1].directory)
        self._end_merging()
        self._write_end()

    def _write_end(self) -> None:
        self._write_record()
        if self.args.should_save and not self._annealing:
            with saving("the report", self._output_dir):
                write_json(self._output_dir / TRAINER_STATE_NAME, asdict(self.state))
                if self.record.matrices:
                    write_report(self._output_dir)

    def where(self, step: int) -> dict[str, Any]:
        """Task and phase of the update at a global step, by name and by number."""
        task = self.plan.task_at(step)
        found: dict[str, Any] = {"task": task.name, "task_index": task.index}
        if self.schedule is not None:
            phase = self.schedule.at(step).phase.name
            found.update(phase=phase, phase_index=PHASES.index(phase))
        else:
            found.update(phase=schedule_name(self.args), phase_index=-1)
        return found

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds task, phase and tokens to what is logged in training; a loss that is no number ends the run here."""
        if self.is_in_train and self.state.global_step:
            logs.update(self.where(self.state.global_step - 1))
            if self.tokens_per_sample:
                tokens = self.tokens_per_sample * self.plan.global_batch_size
                logs["tokens_spent"] = tokens * self.state.global_step
                logs["tokens_on_path"] = tokens * self.plan.path_steps_at(self.state.global_step)
        if "loss" in logs:
            logs.update(self._pace.since_last(self.state.global_step * self.plan.global_batch_size))
        super().log(logs, *args, **kwargs)
        if "loss" in logs:
            self._check_loss(logs["loss"])
