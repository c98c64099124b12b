"""The file that meets torch's scheduler class: state, position and parameter groups.

It stands on `LRScheduler` itself, because `LambdaLR` saves either nothing or every attribute of its callables, and
`SequentialLR` restores the wrong phase when lengths change between a save and a resume.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hf_infinite_lr.announcement import announce_resumed
from hf_infinite_lr.arguments import ON_RESUME, plain_value
from hf_infinite_lr.plain_run import plain_schedule
from hf_infinite_lr.resume_announcement import announce_changes
from hf_infinite_lr.resume_policy import ScheduleState, resume
from hf_infinite_lr.schedules import Phase, Schedule

__all__ = [
    "ScheduleLR",
    "get_cosine_rewarm_schedule",
    "get_infinite_schedule",
    "get_rsqrt_rewarm_schedule",
    "peak_rate",
]


class ScheduleLR(LRScheduler):
    """Follows a [`~hf_infinite_lr.schedules.Schedule`] as a torch scheduler.

    The rate of a parameter group at step n is its own peak times `schedule(n)`, so that groups with different rates
    keep their ratios. The state is plain Python and loads under `torch.load(weights_only=True)`. Load the optimizer's
    state first and the scheduler's after it, as Trainer and Accelerate do: loading writes the rates into the groups.

    Args:
        optimizer (`torch.optim.Optimizer`):
            Its groups' rates at construction are the peaks.
        schedule ([`~hf_infinite_lr.schedules.Schedule`]):
            Factors relative to the peak.
        name (`str`):
            Name of the schedule, stored in the state.
        arguments (`Mapping[str, Any]`):
            What the schedule was built from; the resume policy compares it with the checkpoint's.
        on_resume (`str`, *optional*, defaults to `"continue"`):
            `continue`, `override` or `anneal`, see [`~hf_infinite_lr.resume_policy.resume`].
        rewinds (`bool`, *optional*, defaults to `False`):
            The caller goes back to the trunk by itself after an annealing; an annealed checkpoint is not refused.
        num_training_steps (`int`, *optional*):
            Where the run stops, if that is known.

    Raises:
        `ValueError`: for an unknown policy, and from `load_state_dict` when the policy refuses the checkpoint.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    >>> scheduler = get_infinite_schedule(optimizer, num_warmup_steps=5, num_training_steps=100)
    >>> scheduler.set_position(60)
    >>> scheduler.phase.name, optimizer.param_groups[0]["lr"]
    ('constant', 0.375)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        name: str,
        arguments: Mapping[str, Any],
        on_resume: str = "continue",
        rewinds: bool = False,
        num_training_steps: int | None = None,
    ) -> None:
        if on_resume not in ON_RESUME:
            raise ValueError(f"on_resume={on_resume!r} must be one of {', '.join(ON_RESUME)}.")
        self.schedule = schedule
        self.name = name
        self.arguments = {key: plain_value(value) for key, value in arguments.items()}
        self.on_resume = on_resume
        self.rewinds = rewinds
        self.num_training_steps = num_training_steps
        super().__init__(optimizer)
        self.asked_lrs = tuple(float(base_lr) for base_lr in self.base_lrs)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of each parameter group at the position."""
        factor = self.schedule(self.last_epoch)
        return [float(base_lr) * factor for base_lr in self.base_lrs]

    def rate_at(self, step: int) -> float:
        """Return the rate of the first parameter group at a step."""
        return float(self.base_lrs[0]) * self.schedule(step)

    @property
    def phase(self) -> Phase:
        """The phase that the position lies in."""
        return self.schedule.at(self.last_epoch).phase

    def set_position(self, step: int) -> None:
        """Go to a step and write its rates into the parameter groups, whatever stands there now.

        Args:
            step (`int`):
                Updates done. The resume policy is not asked.
        """
        self.last_epoch = step
        self._last_lr = self.get_lr()
        for group, base_lr, rate in zip(self.optimizer.param_groups, self.base_lrs, self._last_lr, strict=True):
            group["initial_lr"] = base_lr
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _state(self) -> ScheduleState:
        return ScheduleState(
            self.name,
            self.arguments,
            self.on_resume,
            self.schedule,
            tuple(float(base_lr) for base_lr in self.base_lrs),
            self.last_epoch,
            self.asked_lrs,
            self.num_training_steps,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the versioned state as plain Python values: phases, peaks, position, arguments and policy."""
        return {**self._state().to_dict(), "_last_lr": [float(rate) for rate in self._last_lr]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, as the resume policy says, and write the rates into the parameter groups.

        Says what the schedule will do where that is not what this scheduler was made for.

        Args:
            state_dict (`dict[str, Any]`):
                From [`~ScheduleLR.state_dict`], or from another torch scheduler (with `override` or `anneal`).
        """
        saved, made = ScheduleState.from_dict(state_dict), self._state()
        resumed = resume(saved, made, rewinds=self.rewinds)
        if resumed is not saved:
            announce_changes(saved, made, resumed)
        self.name = resumed.name
        self.arguments = dict(resumed.arguments)
        self.on_resume = resumed.on_resume
        self.schedule = resumed.schedule
        self.base_lrs = list(resumed.base_lrs)
        self.asked_lrs = resumed.asked_lrs or self.asked_lrs
        self._step_count = resumed.position + 1
        self.set_position(resumed.position)
        if not self.rewinds and (resumed.schedule, resumed.base_lrs) != (made.schedule, made.base_lrs):
            announce_resumed(
                resumed.name, resumed.schedule, resumed.base_lrs[0], self.num_training_steps, resumed.position
            )


def peak_rate(optimizer: Optimizer) -> float:
    """Return the rate that the optimizer was made with, by which absolute rates are divided."""
    try:
        return float(optimizer.defaults["lr"])
    except (AttributeError, KeyError):  # DeepSpeed's optimizers are no torch optimizers and may lack `defaults`
        group = optimizer.param_groups[0]
        return float(group.get("initial_lr", group["lr"]))


def _plain_scheduler(
    name: str,
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int | None,
    kwargs: dict[str, Any],
) -> ScheduleLR:
    given = {key: value for key, value in kwargs.items() if value is not None}
    schedule, arguments = plain_schedule(
        name,
        learning_rate=peak_rate(optimizer),
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        kwargs=given,
    )
    on_resume = given.get("on_resume", "continue")
    return ScheduleLR(
        optimizer,
        schedule,
        name=name,
        arguments=arguments,
        on_resume=on_resume,
        num_training_steps=num_training_steps,
    )


def get_infinite_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int | None = None,
    *,
    num_cooldown_steps: int | float | None = None,
    cooldown_type: str | None = None,
    timescale: float | None = None,
    constant_lr_ratio: float | None = None,
    constant_lr: float | None = None,
    num_anneal_steps: int | float | None = None,
    anneal_type: str | None = None,
    min_lr_ratio: float | None = None,
    min_lr: float | None = None,
    task_steps: int | Sequence[int] | None = None,
    on_resume: str | None = None,
    **unknown: Any,
) -> ScheduleLR:
    """Make the infinite schedule for an optimizer.

    Warm-up to the optimizer's rate, cool-down to a constant once, the constant for as long as data comes, annealing
    at the end of each task (Singh et al. 2025, arXiv 2503.02844). The defaults of the cool-down, the constant, the
    annealing and the floor stand in the later scripts of the authors' small-scale code; which setting made their
    published table is not known. In an Accelerate loop do not prepare the scheduler: a prepared one ticks once for
    every process.

    Args:
        optimizer (`torch.optim.Optimizer`):
            Its default rate is the peak.
        num_warmup_steps (`int` or `float`):
            Steps, or a share of the first task. At step n of the warm-up the factor is `n / num_warmup_steps`.
        num_training_steps (`int`, *optional*):
            Steps of the run, which is one task unless `task_steps` is given. Without both the run has no end: then
            give `num_cooldown_steps` in steps and `num_anneal_steps=0`.
        num_cooldown_steps (`int` or `float`, *optional*, defaults to 0.35):
            Length of the cool-down to the constant: steps, or a share of the first task. 0 requires a constant
            ratio of 1.
        cooldown_type (`str`, *optional*, defaults to `"cosine"`):
            `cosine`, `inverse_sqrt` or `linear`.
        timescale (`float`, *optional*, defaults to 10):
            Of `inverse_sqrt`.
        constant_lr_ratio (`float`, *optional*, defaults to 0.75):
            The constant relative to the peak.
        constant_lr (`float`, *optional*):
            The constant as a rate, instead of the ratio.
        num_anneal_steps (`int` or `float`, *optional*, defaults to 0.2):
            Steps, or a share of each task, at the task's end; 0 = never.
        anneal_type (`str`, *optional*, defaults to `"exponential"`):
            `exponential`, `linear`, `cosine` or `1-sqrt`.
        min_lr_ratio (`float`, *optional*, defaults to 0.1):
            Where annealing ends, relative to the peak.
        min_lr (`float`, *optional*):
            Where annealing ends as a rate, instead of the ratio.
        task_steps (`int` or `Sequence[int]`, *optional*):
            Length of every task, or a list of lengths, in steps.
        on_resume (`str`, *optional*, defaults to `"continue"`):
            What changed arguments do to a resumed run: `continue`, `override` or `anneal`.
        **unknown (`Any`):
            Refused, with the name to use.

    Returns:
        [`ScheduleLR`]: to be stepped once after every optimizer step.

    Raises:
        `ValueError`: one sentence naming field, value and rule.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> scheduler = get_infinite_schedule(optimizer, 5, num_cooldown_steps=35, num_anneal_steps=0)
    >>> scheduler.rate_at(10**9)
    0.75
    """
    kwargs = {
        "num_cooldown_steps": num_cooldown_steps,
        "cooldown_type": cooldown_type,
        "timescale": timescale,
        "constant_lr_ratio": constant_lr_ratio,
        "constant_lr": constant_lr,
        "num_anneal_steps": num_anneal_steps,
        "anneal_type": anneal_type,
        "min_lr_ratio": min_lr_ratio,
        "min_lr": min_lr,
        "task_steps": task_steps,
        "on_resume": on_resume,
        **unknown,
    }
    return _plain_scheduler("infinite", optimizer, num_warmup_steps, num_training_steps, kwargs)


def get_cosine_rewarm_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int | None = None,
    *,
    task_steps: int | Sequence[int] | None = None,
    num_tasks: int | None = None,
    num_rewarm_steps: int | float | None = None,
    rewarm_lr_ratio: float | Sequence[float] | str | None = None,
    min_lr_ratio: float | None = None,
    min_lr: float | None = None,
    on_resume: str | None = None,
    **unknown: Any,
) -> ScheduleLR:
    """Make the repeated cosine for an optimizer: every task warms up from rate 0 and decays along a cosine.

    The rival of the infinite schedule in Singh et al. 2025 (arXiv 2503.02844).

    Args:
        optimizer (`torch.optim.Optimizer`):
            Its default rate is the peak of the first task.
        num_warmup_steps (`int` or `float`):
            Warm-up of the first task: steps, or a share of the task.
        num_training_steps (`int`, *optional*):
            Steps of the run; not needed when `task_steps` is a list.
        task_steps (`int` or `Sequence[int]`, *optional*):
            Length of every task, or a list of lengths, in steps.
        num_tasks (`int`, *optional*):
            Number of equal tasks, instead of their lengths; the remainder goes to the first.
        num_rewarm_steps (`int` or `float`, *optional*):
            Warm-up of each later task: steps, or a share of the task. As the first task's if not given. A later
            task that is shorter than its warm-up ends on the way up.
        rewarm_lr_ratio (`float`, `Sequence[float]` or `str`, *optional*, defaults to 1.0):
            Peak of every later task relative to the optimizer's rate; a list has one for each later task, and
            `autoregressive` lowers them from task to task along one long cosine (Roth et al. 2024, arXiv
            2408.14471).
        min_lr_ratio (`float`, *optional*, defaults to 0.1):
            End of each cosine relative to the optimizer's rate.
        min_lr (`float`, *optional*):
            End of each cosine as a rate, instead of the ratio.
        on_resume (`str`, *optional*, defaults to `"continue"`):
            What changed arguments do to a resumed run: `continue` or `override`.
        **unknown (`Any`):
            Refused, with the name to use.

    Returns:
        [`ScheduleLR`]: to be stepped once after every optimizer step.

    Raises:
        `ValueError`: one sentence naming field, value and rule.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> scheduler = get_cosine_rewarm_schedule(optimizer, 2, 20, num_tasks=2)
    >>> [round(scheduler.rate_at(step), 3) for step in (2, 10, 12, 99)]
    [1.0, 0.0, 1.0, 0.1]
    """
    kwargs = {
        "task_steps": task_steps,
        "num_tasks": num_tasks,
        "num_rewarm_steps": num_rewarm_steps,
        "rewarm_lr_ratio": rewarm_lr_ratio,
        "min_lr_ratio": min_lr_ratio,
        "min_lr": min_lr,
        "on_resume": on_resume,
        **unknown,
    }
    return _plain_scheduler("cosine_rewarm", optimizer, num_warmup_steps, num_training_steps, kwargs)


def get_rsqrt_rewarm_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int | None = None,
    *,
    task_steps: int | Sequence[int] | None = None,
    num_tasks: int | None = None,
    num_rewarm_steps: int | float | None = None,
    rewarm_lr_ratio: float | Sequence[float] | str | None = None,
    num_anneal_steps: int | float | None = None,
    min_lr_ratio: float | None = None,
    min_lr: float | None = None,
    on_resume: str | None = None,
    **unknown: Any,
) -> ScheduleLR:
    """Make the repeated reciprocal square root for an optimizer.

    Every task warms up from rate 0, decays with the reciprocal square root of its steps and ends linearly at 0, where
    its last update is (Roth et al. 2024, arXiv 2408.14471; see [`~hf_infinite_lr.schedules.rsqrt_rewarm`]).

    Args:
        optimizer (`torch.optim.Optimizer`):
            Its default rate is the peak of the first task.
        num_warmup_steps (`int` or `float`):
            Warm-up of the first task, 1 step or more: steps, or a share of the task.
        num_training_steps (`int`, *optional*):
            Steps of the run; not needed when `task_steps` is a list.
        task_steps (`int` or `Sequence[int]`, *optional*):
            Length of every task, or a list of lengths, in steps.
        num_tasks (`int`, *optional*):
            Number of equal tasks, instead of their lengths; the remainder goes to the first.
        num_rewarm_steps (`int` or `float`, *optional*):
            Warm-up of each later task: steps, or a share of the task. As the first task's if not given.
        rewarm_lr_ratio (`float`, `Sequence[float]` or `str`, *optional*, defaults to 1.0):
            Peak of every later task relative to the optimizer's rate; a list has one for each later task, and
            `autoregressive` lowers them from task to task along one long reciprocal square root (as there).
        num_anneal_steps (`int` or `float`, *optional*, defaults to 0.2):
            Length of the linear end: steps, or a share of each task; 0 for none. No branch leaves the trunk there.
        min_lr_ratio (`float`, *optional*, defaults to 0.1):
            What the reciprocal square root falls to, relative to the optimizer's rate.
        min_lr (`float`, *optional*):
            The same as a rate, instead of the ratio.
        on_resume (`str`, *optional*, defaults to `"continue"`):
            What changed arguments do to a resumed run: `continue` or `override`.
        **unknown (`Any`):
            Refused, with the name to use.

    Returns:
        [`ScheduleLR`]: to be stepped once after every optimizer step.

    Raises:
        `ValueError`: one sentence naming field, value and rule.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> scheduler = get_rsqrt_rewarm_schedule(optimizer, 2, 24, num_tasks=2, num_anneal_steps=4, min_lr=0.0)
    >>> [round(scheduler.rate_at(step), 3) for step in (2, 8, 11, 14, 99)]
    [1.0, 0.375, 0.0, 1.0, 0.0]
    """
    kwargs = {
        "task_steps": task_steps,
        "num_tasks": num_tasks,
        "num_rewarm_steps": num_rewarm_steps,
        "rewarm_lr_ratio": rewarm_lr_ratio,
        "num_anneal_steps": num_anneal_steps,
        "min_lr_ratio": min_lr_ratio,
        "min_lr": min_lr,
        "on_resume": on_resume,
        **unknown,
    }
    return _plain_scheduler("rsqrt_rewarm", optimizer, num_warmup_steps, num_training_steps, kwargs)
