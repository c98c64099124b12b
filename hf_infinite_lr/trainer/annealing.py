"""Annealing after the fact: any trunk checkpoint becomes a release, and the trunk stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hf_infinite_lr.arguments import complete_arguments, curve_arguments
from hf_infinite_lr.config import schedule_name
from hf_infinite_lr.files import read_json
from hf_infinite_lr.manifest import STATE
from hf_infinite_lr.resume_policy import ScheduleState, annealing_phase
from hf_infinite_lr.run_plan import plan_run
from hf_infinite_lr.schedules import Phase, Schedule, resolve_share
from hf_infinite_lr.stream.plan import StreamPlan
from hf_infinite_lr.stream.task import Stream, slug

from . import checkpoints
from .acceptance import with_data_of
from .forgetting import check_methods
from .host import Host
from .record import RunRecord
from .resume import check_data_settings, check_engine, find_checkpoint


class AnnealingAfterwards(Host):
    """Grows a branch from a checkpoint of the trunk, long after the run has passed it."""

    args: Any
    stream: Stream
    plan: StreamPlan
    schedule: Schedule | None
    record: RunRecord
    _annealing: bool
    _release_name: str
    _resumed_from: Path | None
    _output_dir: Path
    _new_record: Callable[[], RunRecord]
    _start_clocks: Callable[[], None]
    _local_checkpoint: Callable[[Any], Any]

    def anneal(self, checkpoint: str | Path, num_anneal_steps: int | float, *, task: str | None = None) -> Path:
        """Makes a release of a trunk checkpoint of this run, whenever it was saved; the trunk stays as it is.

        The branch trains on the batches that the task would have come to next. With the same length it is, bit for
        bit, the branch that the run itself grows there. It may run while another process goes on with the trunk.

        Args:
            checkpoint (`str` or `Path`): `trunk/...`, a `checkpoint-N` that lies on the trunk, or a trunk on the Hub.
            num_anneal_steps (`int` or `float`): Length of the branch: steps, or a share of the task.
            task (`str`, *optional*): Name of a task of this trainer on whose data the branch trains instead, from its
                first batch. The data of the checkpoint's own tasks is then not needed, and not replayed.

        Returns:
            `Path`: The release: `releases/<task>` of `output_dir` where it is the run's own branch, else a name that
            says from which step, over how many and on which data it annealed.

        Raises:
            ValueError: for a broken checkpoint, one of another run, or one that is annealed already.
            RuntimeError: if a callback has stopped it before its end.
        """
        if self.schedule is None or schedule_name(self.args) != "infinite":
            raise ValueError(f"lr_scheduler_type={schedule_name(self.args)!r} has no trunk: only infinite can anneal.")
        checkpoint = self._local_checkpoint(checkpoint)
        run = self.stream, self.plan, self.schedule, self.record
        try:
            self._branch_off(Path(checkpoint), num_anneal_steps, task)
            super().train(str(checkpoint))
            if self.state.global_step < self.plan.num_steps:
                raise RuntimeError(
                    f"The annealing was stopped at step {self.state.global_step} of {self.plan.num_steps}, before "
                    f"its release {self._release_name}."
                )
        finally:
            self.stream, self.plan, self.schedule, self.record = run
            self._annealing = False
        return self._output_dir / "releases" / self._release_name

    def _branch_off(self, path: Path, num_anneal_steps: int | float, task: str | None) -> None:
        """Makes the run one that has nothing before it but a branch from a checkpoint."""
        if task is not None:
            self._take_data_of(task, path)
        find_checkpoint(self._output_dir, str(path), self.plan, accept_data=task is not None)
        state = read_json(path / STATE)
        if task is None:
            check_data_settings(state, self.record.settings, self.plan)
        check_engine(state, self.record.settings)
        check_methods(state, self.args.methods, self.plan)
        planned = self.plan
        self.plan = annealing_plan(planned, state["global_step"], num_anneal_steps, from_first_batch=task is not None)
        trunk = ScheduleState.from_dict(torch.load(path / "scheduler.pt", weights_only=True))
        arguments = complete_arguments("infinite", curve_arguments(self.args.lr_scheduler_kwargs))
        self.schedule = annealing_schedule(self.plan, trunk.schedule, arguments, trunk.peak_under(trunk.base_lrs))
        self._release_name = release_name(planned, self.plan, task)
        self.record = self._new_record()
        self.record.resume_from(state, ends=len(self.plan.tasks) - 1)
        self.record.settings["embedding_learning_rate"] = state["settings"].get("embedding_learning_rate")
        self.record.annealed_on = task
        self._start_clocks()
        self._resumed_from, self._annealing = path, True

    def _take_data_of(self, task: str, path: Path) -> None:
        if (fault := checkpoints.fault_of(path)) is not None:
            raise ValueError(f"{path} is not a whole checkpoint: {fault}.")
        self._follow(with_data_of(task, read_json(path / STATE), self.stream))

    def _follow(self, stream: Stream) -> None:
        """Plans the run anew, over a stream of which each task has its own number of steps."""
        args = copy.copy(self.args)
        args.task_steps = None
        self.stream = stream
        self.schedule, self.plan = plan_run(args, stream, self.plan.global_batch_size)


def annealing_plan(
    plan: StreamPlan, step: int, num_anneal_steps: int | float, *, from_first_batch: bool = False
) -> StreamPlan:
    """The plan of a run that goes on from a trunk checkpoint with nothing but a branch.

    The branch takes the batches that the task would have come to next, so that with the same length it is the branch
    that the run itself would have grown there.

    Args:
        plan ([`StreamPlan`]): Of the run that made the checkpoint.
        step (`int`): The checkpoint's global step, on the trunk.
        num_anneal_steps (`int` or `float`): Steps, or a share of the task.
        from_first_batch (`bool`): Whether the branch takes the task's data from its start, which is other data then.

    Raises:
        ValueError: for a checkpoint that lies on a branch or at its end, or before the first update.
    """
    if step < 1:
        raise ValueError("A checkpoint before the first update cannot be annealed.")
    segment = plan.segments[plan.segment_of(step - 1)]
    task = plan.tasks[segment.task]
    if not segment.on_trunk:
        raise ValueError(
            f"The checkpoint at step {step} lies on the branch of {task.name!r}: anneal trunk/{task.directory} "
            "instead."
        )
    batch = segment.first_batch + step - segment.start_step
    num_steps = resolve_share("num_anneal_steps", num_anneal_steps, task.num_steps)
    if num_steps < 1:
        raise ValueError(f"num_anneal_steps={num_anneal_steps!r} must be above 0.")
    branch = replace(
        task,
        start_step=step - batch,
        num_steps=batch + num_steps,
        num_anneal_steps=num_steps,
        repeats=False,
        branch_batch=0 if from_first_batch else None,
    )
    return replace(plan, tasks=(*plan.tasks[: task.index], branch))


def annealing_schedule(plan: StreamPlan, schedule: Schedule, arguments: dict[str, Any], peak: float) -> Schedule:
    """The rates of [`annealing_plan`]: from the trunk's rate at the branch point down to the floor.

    Args:
        plan ([`StreamPlan`]): Of [`annealing_plan`].
        schedule ([`Schedule`]): Of the run that made the checkpoint.
        arguments (`dict`): Complete arguments of `infinite`: the annealing's type and floor.
        peak (`float`): The learning rate that factors refer to.

    Raises:
        ValueError: for a floor above the trunk's rate, or one that the annealing's type cannot reach.
    """
    task = plan.tasks[-1]
    assert task.branch_step is not None
    rate, phase = schedule(task.branch_step), schedule.at(task.branch_step).phase.name
    name = phase if phase in ("warmup", "cooldown_to_constant") else "constant"
    before = Phase(name, task.index, task.branch_step, rate, rate, "constant")
    anneal = annealing_phase(task.index, task.num_anneal_steps, rate, arguments, peak=peak, step=task.branch_step)
    return Schedule((before, anneal))


def release_name(run: StreamPlan, plan: StreamPlan, data: str | None = None) -> str:
    """The release's directory: the task's where the branch of `plan` is the run's own, else one that says which.

    Args:
        run ([`StreamPlan`]): Of the run that made the checkpoint.
        plan ([`StreamPlan`]): Of [`annealing_plan`].
        data (`str`, *optional*): Name of the task on whose data the branch trains, if it is not its own.
    """
    task = plan.tasks[-1]
    own = run.tasks[task.index]
    if data is not None:
        return f"{own.directory}-from-{task.branch_step}-over-{task.num_anneal_steps}-on-{slug(data)}"
    if (task.branch_step, task.num_anneal_steps) == (own.branch_step, own.num_anneal_steps):
        return own.directory
    return f"{own.directory}-from-{task.branch_step}-over-{task.num_anneal_steps}"
