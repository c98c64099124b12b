"""What a run leaves about itself: the task matrices and `continual_state.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers.utils import is_peft_available

from hf_infinite_lr.config import schedule_name
from hf_infinite_lr.files import write_json
from hf_infinite_lr.manifest import STATE
from hf_infinite_lr.metrics import TaskMatrix
from hf_infinite_lr.schedules import Schedule
from hf_infinite_lr.stability import stability_gaps
from hf_infinite_lr.stream.plan import StreamPlan, TaskPlan

PRIMARY_METRIC = "eval_loss"
_LOWER_IS_BETTER = re.compile(
    r"(loss|perplexity|errors?|entropy|mse|mae|nll|sharpness|half_width)([_.:/-]rate)?$"
    r"|(^|[_/ .:-])(wer|cer|mer|ppl|fid|ece|bpb|bpc|brier|brier_score|distance|bits_per_\w+)$"
)
_RECORDED_PACKAGES = ("hf_infinite_lr", "transformers", "accelerate", "datasets", "torch")


@cache  # reading metadata takes longer than the rest of a record, which is written often
def _versions() -> Mapping[str, str]:
    packages = [*_RECORDED_PACKAGES, *(["peft"] if is_peft_available() else [])]
    return {package: version(package) for package in packages}


def metric_key(name: str) -> str:
    """The name under which a metric is kept: `eval_loss` for the loss, others as the evaluation calls them."""
    return PRIMARY_METRIC if name == "loss" else name


def higher_is_worse(metric: str) -> bool:
    """Whether a metric measures a fault, by the end of its name.

    >>> [higher_is_worse(name) for name in ("word_error_rate", "eval_ppl", "top1error", "answer", "error_recall")]
    [True, True, True, False, False]
    """
    return _LOWER_IS_BETTER.search(metric.lower()) is not None


@dataclass
class RunRecord:
    """The growing record of a run: pure data, written by the main process only.

    Args:
        plan ([`StreamPlan`]): Tasks and steps.
        scored_tasks (`tuple[str, ...]`): The rows of the matrices: the tasks, or of joint training those in its union.
        columns (`tuple[str, ...]`): What is evaluated.
        schedule (`dict`): Name, arguments and phases with their rates.
        settings (`dict`): What shaped the run.
        references (`dict`): Reference rows from outside the run, as in `{"byte_unigram": {"metric", "values"}}`.
        units (`dict`): Units of metrics by name.
        log_history (`list[dict]`): What Trainer has logged, also before a resume.
        tokens_per_sample (`int`, *optional*): Where samples are blocks of tokens, which are then counted too.
        annealed_on (`str`, *optional*): Of an annealing after the fact: whose data it took instead of the task's.
        times_back (`int`): How often the run has gone back to a checkpoint that was not its newest.
    """

    plan: StreamPlan
    scored_tasks: tuple[str, ...]
    columns: tuple[str, ...]
    schedule: dict[str, Any]
    settings: dict[str, Any]
    references: dict[str, Any] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    log_history: list[dict[str, Any]] = field(default_factory=list)
    matrices: dict[str, TaskMatrix] = field(default_factory=dict)
    tokens_per_sample: int | None = None
    benchmarks: list[dict[str, Any]] = field(default_factory=list)
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    times_back: int = 0
    annealed_on: str | None = None

    def set_baseline(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Notes the untrained model's scores: column -> metric -> value."""
        for metric, values in self._by_metric(scores).items():
            self.matrices[metric] = self._empty(metric, values)

    def add_row(self, task: TaskPlan, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Notes the scores after training a task: column -> metric -> value; what is missing stays null."""
        rows = self._by_metric(scores)
        for metric in {PRIMARY_METRIC, *rows, *self.matrices}:
            matrix = self.matrices.get(metric) or self._empty(metric, {})
            while len(matrix.matrix) < self._row_of(task):
                matrix = matrix.with_row({})
            self.matrices[metric] = matrix.with_row(rows.get(metric, {}))

    def has_row(self, task: TaskPlan) -> bool:
        """Whether the scores after training a task are known."""
        matrix = self.matrices.get(PRIMARY_METRIC)
        return matrix is not None and len(matrix.matrix) > self._row_of(task)

    def is_released(self, task: TaskPlan) -> bool:
        """Whether the run leaves a release of a task (`release`: of each, the last or none)."""
        release = self.settings["release"]
        return release == "each" or (release == "last" and task is self.plan.tasks[-1])

    def add_benchmarks(self, task: TaskPlan | None, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Notes a release's scores (None: of the model before training): benchmark -> metric -> value."""
        if scores:
            self.benchmarks.append({"task": task and task.name, "scores": scores})

    def _row_of(self, task: TaskPlan) -> int:
        """The task's own row; joint training, which has none, fills the last one."""
        return self.scored_tasks.index(task.name) if task.name in self.scored_tasks else len(self.scored_tasks) - 1

    def _empty(self, metric: str, baseline: Mapping[str, float]) -> TaskMatrix:
        return TaskMatrix(
            tasks=self.scored_tasks,
            columns=self.columns,
            metric=metric,
            higher_is_better=not higher_is_worse(metric),
            baseline=[baseline.get(column) for column in self.columns],
        )

    def _by_metric(self, scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        rows: dict[str, dict[str, float]] = {}
        for column, metrics in scores.items():
            for name, value in metrics.items():
                rows.setdefault(metric_key(name), {})[column] = value
        return rows

    def state(self, global_step: int, *, finished: bool) -> dict[str, Any]:
        """The content of `continual_state.json` at a global step; its paths are relative to `output_dir`."""
        done = self.train_seconds and global_step / self.train_seconds
        return {
            "schema_version": 1,
            "versions": dict(_versions()),
            "status": "finished" if finished else "running",
            "global_step": global_step,
            "num_steps": self.plan.num_steps,
            "times_back": self.times_back,
            "annealed_on": self.annealed_on,
            "schedule": self.schedule,
            "settings": self.settings,
            "tasks": [self._task_state(task, global_step) for task in self.plan.tasks],
            "evaluate_also": [name for name in self.columns if name not in self.scored_tasks],
            "compute": {
                "train_seconds": self.train_seconds,
                "evaluation_seconds": self.evaluation_seconds,
                "train_steps_per_second": done,
            },
            "stability_gap": self._stability_gap(global_step),
            "references": self.references,
            "units": self.units,
            "benchmarks": self.benchmarks,
            "matrices": {metric: matrix.to_dict() for metric, matrix in self.matrices.items()},
        }

    def _stability_gap(self, global_step: int) -> list[dict[str, Any]] | None:
        columns = {f"eval_{task.name}_loss": task.name for task in self.plan.tasks}
        evaluations: dict[str, list[tuple[int, float]]] = {}
        for entry in self.log_history:
            for key in columns.keys() & entry.keys():
                evaluations.setdefault(columns[key], []).append((entry["step"], entry[key]))
        begun = [task for task in self.plan.tasks if task.start_step < global_step]
        return stability_gaps([(task.name, task.start_step, task.end_step) for task in begun], evaluations)

    def _task_state(self, task: TaskPlan, global_step: int) -> dict[str, Any]:
        size = self.plan.global_batch_size
        released = self.is_released(task) and global_step >= task.end_step
        spent, on_path = task.end_step, self.plan.path_steps(task)
        sizes = {"updates": 1, "samples": size}
        if self.tokens_per_sample:
            sizes["tokens"] = size * self.tokens_per_sample
        return {
            "name": task.name,
            "directory": task.directory,
            "fingerprint": task.fingerprint,
            "num_steps": task.num_steps,
            "num_anneal_steps": task.num_anneal_steps,
            "start_step": task.start_step,
            "branch_step": task.branch_step,
            "end_step": task.end_step,
            "next_start_step": task.next_start_step,
            "num_samples": task.num_samples,
            "num_unused_samples": task.num_unused_samples,
            "trunk": f"trunk/{task.directory}" if global_step >= task.trunk_step else None,
            "release": f"releases/{task.directory}" if released else None,
            **{kind: {"spent": spent * each, "on_path": on_path * each} for kind, each in sizes.items()},
        }

    def resume_from(self, state: Mapping[str, Any], ends: int | None = None) -> None:
        """Takes over what a checkpoint's state knows: rows and times up to its step.

        Tasks and columns may have grown since; cells of columns that were unknown then stay null.

        Args:
            state (`Mapping`): `continual_state.json` of the checkpoint.
            ends (`int`, *optional*): How many tasks' ends count, where not all that it knows.
        """
        self.train_seconds = state["compute"]["train_seconds"]
        self.evaluation_seconds = state["compute"]["evaluation_seconds"]
        self.references = {**state["references"], **self.references}
        counted = {None, *(task["name"] for task in state["tasks"][:ends])}
        self.benchmarks = [each for each in state.get("benchmarks", ()) if each["task"] in counted]
        for metric, content in state["matrices"].items():
            old = TaskMatrix.from_dict(content)
            matrix = self._empty(metric, dict(zip(old.columns, old.baseline, strict=True)))  # type: ignore[arg-type]
            for row in old.matrix[:ends]:
                known = dict(zip(old.columns, row, strict=True))
                matrix = matrix.with_row({name: known[name] for name in self.columns if name in known})
            self.matrices[metric] = matrix

    def write(self, output_dir: Path, global_step: int, *, finished: bool) -> None:
        """Writes `continual_state.json` and one file per task matrix."""
        write_json(output_dir / STATE, self.state(global_step, finished=finished))
        for metric, matrix in self.matrices.items():
            name = "task_matrix.json" if metric == PRIMARY_METRIC else f"task_matrix.{metric.replace('/', '-')}.json"
            write_json(output_dir / name, matrix.to_dict())


def schedule_state(args: Any, schedule: Schedule | None, peak: float | None = None) -> dict[str, Any]:
    """The schedule as it stands in `continual_state.json`: name, arguments, and phases with steps and rates.

    `peak` is the rate in force where it is not `learning_rate`, because a resume has kept the checkpoint's.
    """
    rate = args.learning_rate if peak is None else peak
    state = {
        "name": schedule_name(args),
        "learning_rate": rate,
        "arguments": dict(args.lr_scheduler_kwargs or {}),
        "warmup_steps": args.warmup_steps,
    }
    if schedule is None:
        return {**state, "phases": []}
    ends = [*schedule.boundaries[1:], None]
    phases = [
        {
            "name": phase.name,
            "task": phase.task,
            "start_step": start,
            "end_step": end,
            "start_rate": phase.start * rate,
            "end_rate": phase.end * rate,
            "shape": phase.shape,
            "timescale": phase.timescale,
            "floor_rate": None if phase.floor is None else phase.floor * rate,
        }
        for phase, start, end in zip(schedule.phases, schedule.boundaries, ends, strict=False)
    ]
    return {**state, "phases": phases}
