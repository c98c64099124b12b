"""Arguments of a continual run."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import SchedulerType, TrainingArguments

from hf_infinite_lr.arguments import (
    ANNEAL_BUDGETS,
    OWN_SCHEDULES,
    RELEASES,
    check_choice,
    check_rate,
    check_task_steps,
)
from hf_infinite_lr.merging import MergeSettings
from hf_infinite_lr.methods.chosen import RUN_MODES, read_methods
from hf_infinite_lr.methods.gdumb import FromScratch

REWINDS = ("full", "weights", "none")
EVALUATE_ON = ("all", "seen", "current", "none")
REPLAY_BUDGETS = ("within", "extra")


@dataclass
class ContinualArguments:
    """What a continual run adds to any `TrainingArguments`; a mixin without a base.

    Put it before the arguments of the host: `class MyConfig(ContinualArguments, SFTConfig)` keeps SFT's defaults.

    Args:
        task_steps (`list[int]`, *optional*):
            Length of every task in optimizer steps (one number), or of each (one number per task). Left out, a task
            has floor(epochs x floor(samples / global batch)) steps.
        anneal_budget (`str`, defaults to `"within"`):
            What happens to the data of a branch. `within`: the last share of each task's data reaches only its
            release, unless it is replayed later (Singh et al. 2025). `extra`: after the rewind the trunk trains on
            the same batches at the constant, at the cost of that share again.
        release (`str`, defaults to `"each"`):
            Which tasks end in an annealed, saved model: `each`, the `last` only, or `none`.
        rewind (`str`, defaults to `"full"`):
            What comes back from the trunk after a branch: `full` (weights, optimizer, gradient scaler, RNG),
            `weights` alone (the optimizer keeps the moments of the annealing, as in the published small-scale code
            of Singh et al. 2025), or `none` (the next task starts from the annealed model).
        reset_optimizer (`bool`, defaults to `False`):
            Start every later task with fresh optimizer states (Ibrahim et al. 2024).
        evaluate_on (`str`, defaults to `"all"`):
            Columns that are evaluated after each task and at `eval_steps`: of `all` tasks, those `seen` so far, the
            `current` one, or `none`. Evaluation-only columns come with all but `none`.
        replay_fraction (`float`, defaults to 0.0):
            Share of each global batch of later tasks that is drawn from earlier tasks, in [0, 1).
        replay_budget (`str`, defaults to `"within"`):
            Which steps replay takes. `within`: those of the task, whose number does not grow (compute-equivalent
            replay, Ibrahim et al. 2024). `extra`: a later task whose length is given in epochs gets 1 / (1 -
            replay_fraction) times the steps, rounded down, so that all of its own data is visited but for what a last,
            broken step would hold (with a fraction of 0.5 the experience replay of Singh et al. 2025); lengths in
            steps hold as they are.
        replay_buffer_size (`float`, *optional*):
            How much of each earlier task may be replayed: a number of samples, or below 1 a share of those that it
            has visited. Left out, all of a map-style task and 10,000 samples of a streaming one, which are kept on
            disk. The branch's samples are among them.
        replay_class_column (`str`, *optional*):
            A column of labels: buffers hold as many samples of each class as they can, and each class is drawn
            equally often.
        accept_changed_tasks (`bool`, defaults to `False`):
            Resume although tasks that the checkpoint has begun are changed, gone or in another order now, which is
            refused otherwise. Those tasks keep their order and steps; data given under their names is used as it is
            now; one that is not given is neither replayed nor evaluated; all other tasks follow. What is accepted is
            logged.
        methods (`dict`, *optional*):
            What fights forgetting beside the schedule and replay, by name with its keys, any number together: `mas`
            (keys `weight` .1, `alpha` .1, `num_samples` 256), `fisher` (EWC: `weight`, `alpha`, `num_samples`), `l2`
            (`weight`), `lwf` (`weight` .5). For class-incremental classification `slca`, `lae` or
            `nearest_class_mean`; for fine-tuning that keeps a backbone general `attention_preserving` (`weight`).
            `gdumb` (`buffer_size`, `label_column`) and `joint` say what the whole run trains on and stand alone.
            Without any, the stream is fine-tuned on. Example: `{"mas": {"weight": 0.5}, "lwf": {}}`; see
            [`~hf_infinite_lr.methods`].
        merge (`str` or `dict`, *optional*):
            Merge each task's model with the running average (`ema`) or with the model that the run began with
            (`first`); with keys, `{"method": "ema", "weight": 0.5, "next_start": false}`. The merged model is what is
            evaluated and released, and with `next_start` what the next task goes on from; see
            [`~hf_infinite_lr.merging.MergeSettings`].
        embedding_learning_rate (`float`, *optional*):
            Peak of the input and output embeddings, where it is not `learning_rate`; the schedule scales both alike.
        hub_license (`str`, *optional*):
            License that the metadata of the model cards names, such as `apache-2.0`.

    Raises:
        ValueError: one sentence naming field, value and rule.
    """

    task_steps: list[int] | None = field(
        default=None, metadata={"help": "Task lengths in optimizer steps: one number for all, or one for each task."}
    )
    anneal_budget: str = field(
        default="within", metadata={"help": "Data of a branch: within (release only) or extra (trunk repeats it)."}
    )
    release: str = field(default="each", metadata={"help": "Annealed models: of each task, the last, or none."})
    rewind: str = field(
        default="full", metadata={"help": "What the trunk gets back after a branch: full, weights, none."}
    )
    reset_optimizer: bool = field(default=False, metadata={"help": "Fresh optimizer states for every later task."})
    evaluate_on: str = field(
        default="all", metadata={"help": "Columns evaluated after each task: all, seen, current, none."}
    )
    replay_fraction: float = field(
        default=0.0, metadata={"help": "Share of each global batch drawn from earlier tasks, in [0, 1)."}
    )
    replay_budget: str = field(
        default="within", metadata={"help": "Steps of replay: within those of the task, or extra ones."}
    )
    replay_buffer_size: float | None = field(
        default=None, metadata={"help": "Samples kept of each earlier task, or below 1 a share of them."}
    )
    replay_class_column: str | None = field(
        default=None, metadata={"help": "Column of labels by which replay is balanced."}
    )
    accept_changed_tasks: bool = field(
        default=False, metadata={"help": "Resume although begun tasks are changed, gone or in another order."}
    )
    methods: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Methods by name with their keys, such as mas, lwf, slca; or gdumb, or joint."}
    )
    merge: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Merge each task's model: ema, first, or a mapping with weight and next_start."},
    )
    embedding_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the embeddings; learning_rate by default."}
    )
    hub_license: str | None = field(default=None, metadata={"help": "License named by the model cards."})

    def __post_init__(self) -> None:
        host: Any = self
        host.use_cpu = host.use_cpu or _hides_every_gpu()
        super().__post_init__()  # type: ignore[misc]  # of the host's arguments
        if isinstance(self.task_steps, int):
            self.task_steps = [self.task_steps]
        # transformers declares a float, so that parsers and YAML turn 500 steps into 500.0.
        if isinstance(host.warmup_steps, float) and host.warmup_steps.is_integer():
            host.warmup_steps = int(host.warmup_steps)
        if self.task_steps is not None:
            if not isinstance(self.task_steps, (list, tuple)):
                raise ValueError(f"task_steps={self.task_steps!r} must be a number of steps, or a list of them.")
            self.task_steps = check_task_steps(self.task_steps)
        for name, allowed in (
            ("anneal_budget", ANNEAL_BUDGETS),
            ("release", RELEASES),
            ("rewind", REWINDS),
            ("evaluate_on", EVALUATE_ON),
            ("replay_budget", REPLAY_BUDGETS),
        ):
            check_choice(name, getattr(self, name), allowed)
        if not isinstance(self.replay_fraction, (int, float)) or not 0 <= self.replay_fraction < 1:
            raise ValueError(f"replay_fraction={self.replay_fraction!r} must be a number of at least 0 and below 1.")
        _check_buffer_size(self.replay_buffer_size)
        if self.embedding_learning_rate is not None:
            self.embedding_learning_rate = check_rate("embedding_learning_rate", self.embedding_learning_rate)
        if self.anneal_budget == "extra" and self.rewind == "none":
            raise ValueError(
                "anneal_budget='extra' with rewind='none' has no trunk that could train on the branch's batches: "
                "choose anneal_budget='within' or another rewind."
            )
        if self.hub_license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.hub_license):
            raise ValueError(
                f"hub_license={self.hub_license!r} must be the id of a license on the Hub, in lower case, such as "
                "apache-2.0."
            )
        self.methods = {name: asdict(settings) for name, settings in read_methods(self.methods).items()}
        if mode := run_mode(self):
            _check_run_mode(self, mode)
        if self.merge is not None:
            self.merge = asdict(settings := MergeSettings.of(self.merge))
            _check_merge(self, settings)


def _check_buffer_size(size: Any) -> None:
    if size is None or (type(size) in (int, float) and (0 < size < 1 or (size >= 1 and float(size).is_integer()))):
        return
    raise ValueError(f"replay_buffer_size={size!r} must be a whole number of samples, or a share above 0 and below 1.")


@dataclass
class ContinualTrainingArguments(ContinualArguments, TrainingArguments):
    """`TrainingArguments` for a [`ContinualTrainer`].

    All arguments of [`ContinualArguments`] and of `transformers.TrainingArguments`. Defaults that differ from
    `TrainingArguments`: `lr_scheduler_type="infinite"`, `warmup_steps=0.05` (a share of the first task),
    `num_train_epochs=1.0` (passes over each task), `logging_nan_inf_filter=False` (a NaN loss is shown).

    Example:

    ```python
    >>> ContinualTrainingArguments("out", learning_rate=3e-4).lr_scheduler_type.value
    'infinite'

    ```
    """

    lr_scheduler_type: SchedulerType | str = field(default="infinite", metadata={"help": "Name of the schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps, or below 1 a share of the first task."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over each task."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN and infinite losses in logs."})


def _hides_every_gpu() -> bool:
    """Whether the launch asks for the CPU, as `gpu_ids: "-1,-1"` of an Accelerate configuration does.

    Accelerate passes its `use_cpu` on to a single process only; several, without a GPU in sight, would each train
    alone.
    """
    ids = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return all(number.strip() == "-1" for number in ids)


def schedule_name(args: Any) -> str:
    """The name of the schedule, whether the arguments hold it as text or as transformers' enum member."""
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))


def run_mode(args: Any) -> str | None:
    """The method that says what the whole run trains on, `joint` or `gdumb`; None for the stream as it is."""
    return next((name for name in args.methods if name in RUN_MODES), None)


def _check_run_mode(args: Any, mode: str) -> None:
    if args.replay_fraction:
        raise ValueError(
            f"replay_fraction={args.replay_fraction} cannot be used with methods.{mode}: no task is earlier."
        )
    if mode == FromScratch.name:
        if args.anneal_budget != "within":
            raise ValueError(
                f"anneal_budget={args.anneal_budget!r} cannot be used with methods.gdumb: it has no trunk."
            )
        if schedule_name(args) not in OWN_SCHEDULES:
            raise ValueError(
                f"lr_scheduler_type={schedule_name(args)!r} cannot be used with methods.gdumb: one curve over the run "
                f"would leave the later trainings its end; use {' or '.join(OWN_SCHEDULES)}."
            )


def _check_merge(args: Any, settings: MergeSettings) -> None:
    if mode := run_mode(args):
        raise ValueError(f"merge.method={settings.method!r} cannot be used with methods.{mode}, which has no stream.")
    if args.release != "each":
        raise ValueError(
            f"merge.method={settings.method!r} with release={args.release!r} has nothing to merge with; use "
            "release='each'."
        )
    if settings.next_start and args.rewind != "none" and schedule_name(args) == "infinite":
        raise ValueError(
            f"merge.next_start=True with rewind={args.rewind!r}: the next task would start from the trunk; use "
            "rewind='none', or a schedule that re-warms."
        )
