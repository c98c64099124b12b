"""`hf-infinite-lr show`: the learning rate of a run before it starts."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_infinite_lr.announcement import describe, format_rate
from hf_infinite_lr.arguments import (
    ANNEAL_BUDGETS,
    RELEASES,
    check_task_steps,
    plain_schedule,
    schedule_from_arguments,
)
from hf_infinite_lr.schedules import Schedule

OWN_NAMES = ("infinite", "cosine_rewarm")
_KWARGS = "--lr_scheduler_kwargs"
_LONGEST_TABLE = 60


@dataclass(frozen=True)
class Plan:
    """
    What a run would do with its learning rate.

    Args:
        name (`str`):
            Name of the schedule.
        learning_rate (`float`):
            The peak.
        schedule ([`Schedule`] or `None`):
            The schedule; `None` for transformers' own names.
        factor (`Callable[[int], float]`):
            The rate at a global step, relative to the peak.
        tasks (`Mapping[str, int]`):
            Names of the tasks and their steps.
        max_steps (`int`, *optional*):
            Where a plain run stops.
        summary (`str`, *optional*, defaults to none):
            The line that the run itself will print.
    """

    name: str
    learning_rate: float
    schedule: Schedule | None
    factor: Callable[[int], float]
    tasks: Mapping[str, int]
    max_steps: int | None = None
    summary: str = ""


def show(argv: Sequence[str]) -> int:
    """
    Print the curve, the phases and what is doubtful about them; draw the picture if asked to.

    Args:
        argv (`Sequence[str]`):
            The arguments after `show`.

    Returns:
        `int`: 0, or 1 with one sentence on stderr where a run would be refused.
    """
    kwargs, rest = _split_dotted(argv)
    options, unknown = _parser().parse_known_args(rest)
    if unknown and options.config is None:
        _parser().error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        plan = _plan_of_arguments(options, kwargs) if options.config is None else _plan_of_recipe(options.config, argv)
        _print_plan(plan, options.output)
    except (ValueError, OSError) as error:
        print(f"hf-infinite-lr show: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-infinite-lr show",
        description="Draw the learning rate of a run before it starts. Without --task_steps the run is one of plain "
        "Trainer; with it, one of ContinualTrainer.",
        epilog=f"Single keys: {_KWARGS}.num_anneal_steps 0.15",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="YAML", help="a recipe; every other option then overrides one of its keys")
    add("--output", type=Path, metavar="PNG", help="also write the picture")
    add("--lr_scheduler_type", default="infinite", metavar="NAME", help="default: infinite")
    add("--learning_rate", type=float, default=5e-5, metavar="RATE", help="the peak (default: 5e-5, as Trainer's)")
    add("--warmup_steps", type=_number, metavar="N", help="steps, or a share (default: 0; with --task_steps 0.05)")
    add("--max_steps", type=int, metavar="N", help="steps of the run")
    add(_KWARGS, type=_mapping, default={}, metavar="JSON", help="as for Trainer")
    add("--task_steps", nargs="+", metavar="N", help="steps of each task, as numbers or one JSON list")
    add("--anneal_budget", default="within", metavar="NAME", help=f"{' or '.join(ANNEAL_BUDGETS)} (default: within)")
    add("--release", default="each", metavar="NAME", help=f"which tasks anneal: {', '.join(RELEASES)} (default: each)")
    return parser


def _split_dotted(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Take `--lr_scheduler_kwargs.KEY VALUE` and `--lr_scheduler_kwargs.KEY=VALUE` out of the arguments."""
    kwargs: dict[str, Any] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith(f"{_KWARGS}."):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix(f"{_KWARGS}.").partition("=")
        kwargs[key] = _value(value if equals else next(words, ""))
    return kwargs, rest


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _mapping(text: str) -> dict[str, Any]:
    value = _value(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} must be a JSON object")
    return value


def _task_steps(words: Sequence[str]) -> list[Any]:
    values = [_value(word) for word in words]
    return values[0] if len(values) == 1 and isinstance(values[0], list) else values


def _plan_of_arguments(options: argparse.Namespace, dotted: Mapping[str, Any]) -> Plan:
    name, rate, kwargs = options.lr_scheduler_type, options.learning_rate, {**options.lr_scheduler_kwargs, **dotted}
    if options.task_steps is None:
        return _plain_plan(name, rate, options.warmup_steps or 0, options.max_steps, kwargs)
    warmup = 0.05 if options.warmup_steps is None else options.warmup_steps
    tasks = {f"task {index + 1}": steps for index, steps in enumerate(_task_steps(options.task_steps))}
    return _continual_plan(
        name, rate, warmup, tasks, kwargs, anneal_budget=options.anneal_budget, release=options.release
    )


def _plan_of_recipe(config: Path, argv: Sequence[str]) -> Plan:
    """The plan of a recipe and its overrides: all arguments but `--config` and `--output`."""
    from hf_infinite_lr.recipe import load_recipe

    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config")
    own.add_argument("--output")
    recipe = load_recipe(config, own.parse_known_args(argv)[1])
    arguments: Any = recipe.arguments
    return _continual_plan(
        str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)),
        arguments.learning_rate,
        arguments.warmup_steps,
        recipe.task_lengths(),
        arguments.lr_scheduler_kwargs or {},
        anneal_budget=arguments.anneal_budget,
        release=arguments.release,
    )


def _plain_plan(name: str, rate: float, warmup: int | float, max_steps: int | None, kwargs: Mapping[str, Any]) -> Plan:
    """A run of plain Trainer, where a share of warm-up is one of the whole run, rounded up as Trainer does."""
    if isinstance(warmup, float) and max_steps is not None:
        warmup = math.ceil(max_steps * warmup) if warmup < 1 else int(warmup)
    if name not in OWN_NAMES:
        return _foreign_plan(name, rate, warmup, {"the run": max_steps}, kwargs)
    schedule, _ = plain_schedule(
        name, learning_rate=rate, num_warmup_steps=warmup, num_training_steps=max_steps, kwargs=kwargs
    )
    _check_on_resume(name, schedule, kwargs)
    tasks = dict.fromkeys((f"task {phase.task + 1}" for phase in schedule.phases), 0)
    for phase in schedule.phases:
        tasks[f"task {phase.task + 1}"] += phase.num_steps or 0
    return Plan(name, rate, schedule, schedule, tasks, max_steps, describe(name, schedule, rate, max_steps))


def _continual_plan(
    name: str,
    rate: float,
    warmup: int | float,
    tasks: Mapping[str, int],
    kwargs: Mapping[str, Any],
    *,
    anneal_budget: str,
    release: str,
) -> Plan:
    if name not in OWN_NAMES:
        return _foreign_plan(name, rate, warmup, tasks, kwargs)
    schedule = schedule_from_arguments(
        name,
        task_steps=list(tasks.values()),
        learning_rate=rate,
        warmup_steps=warmup,
        kwargs={key: value for key, value in kwargs.items() if key != "on_resume"},
        anneal_budget=anneal_budget,
        release=release,
    )
    _check_on_resume(name, schedule, kwargs)
    return Plan(name, rate, schedule, schedule, tasks)


def _foreign_plan(
    name: str, rate: float, warmup: int | float, tasks: Mapping[str, int | None], kwargs: Mapping[str, Any]
) -> Plan:
    """One curve over the whole run, as transformers makes it."""
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import get_scheduler

    lengths = {task: steps for task, steps in tasks.items() if steps is not None}
    total = sum(check_task_steps(list(lengths.values()))) if lengths else 0
    if total < 1:
        raise ValueError(f"max_steps={total or None}: {name} needs the steps of the run, 1 or more.")
    if isinstance(warmup, float):
        warmup = math.ceil(total * warmup)
    try:
        scheduler = get_scheduler(
            name, _optimizer(rate), warmup, total, scheduler_specific_kwargs=dict(kwargs) or None
        )
    except TypeError as error:
        # An unknown or a missing key of lr_scheduler_kwargs comes as the call's own error.
        raise ValueError(str(error)) from error
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(f"lr_scheduler_type={name!r} follows the evaluations of a run: there is no curve before it.")
    return Plan(name, rate, None, scheduler.lr_lambdas[0], lengths)


def _optimizer(rate: float) -> Any:
    import torch

    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def _check_on_resume(name: str, schedule: Schedule, kwargs: Mapping[str, Any]) -> None:
    """Refuse a resume policy as the run's own scheduler does."""
    if kwargs.get("on_resume") is not None:
        from hf_infinite_lr.lr_scheduler import ScheduleLR

        ScheduleLR(_optimizer(1.0), schedule, name=name, arguments={}, on_resume=kwargs["on_resume"])


def _print_plan(plan: Plan, output: Path | None) -> None:
    # Matplotlib takes a moment to import, and `--help` should not wait for it.
    from hf_infinite_lr.plots import (
        Curve,
        Part,
        Span,
        curve_of_schedule,
        draw_learning_rate,
        terminal_curve,
        write_png,
    )

    if plan.schedule is None:
        spans, start = [], 0
        for name, steps in plan.tasks.items():
            spans.append(Span(name, start, start + steps))
            start += steps
        curve = Curve([Part(plan.name, 0, 0, start, lambda step: plan.learning_rate * plan.factor(step))], spans)
    else:
        curve = curve_of_schedule(plan.schedule, plan.learning_rate, list(plan.tasks))
    if output is not None:
        write_png(draw_learning_rate(curve, title=f"{plan.name}, peak {format_rate(plan.learning_rate)}"), output)
    blocks = [terminal_curve(curve, encoding=sys.stdout.encoding), _table(plan)]
    encoding = sys.stdout.encoding or "ascii"
    blocks += [plan.summary.replace("–", "-").encode(encoding, "replace").decode(encoding)] if plan.summary else []
    print("\n\n".join(blocks))
    if output is not None:
        print(f"\nWritten: {output}")
    for doubt in doubts(plan):
        print(f"warning: {doubt}", file=sys.stderr)


def _table(plan: Plan) -> str:
    from hf_infinite_lr.report.table import aligned

    rows = [["phase", "task", "steps", "from", "to", "rate at from", "rate at to", ""]]
    names = list(plan.tasks)
    if plan.schedule is None:
        total = sum(plan.tasks.values())
        rates = [format_rate(plan.learning_rate * plan.factor(step)) for step in (0, total)]
        return aligned(
            [*rows, [plan.name, "all" if len(names) > 1 else names[0], str(total), "0", str(total), *rates, ""]]
        )
    for phase, start in zip(plan.schedule.phases, plan.schedule.boundaries, strict=False):
        steps, stop = ("open", "open") if phase.num_steps is None else (phase.num_steps, start + phase.num_steps)
        rates = [format_rate(plan.learning_rate * factor) for factor in (phase.start, phase.end)]
        note = f"branches off the trunk at {start}" if phase.name == "anneal" else ""
        rows.append([phase.name, names[phase.task], str(steps), str(start), str(stop), *rates, note])
    lines = aligned(rows).splitlines()
    if len(lines) > _LONGEST_TABLE:
        half = _LONGEST_TABLE // 2
        lines[half:-half] = [f"... {len(lines) - 2 * half} more phases ..."]
    return "\n".join(lines)


def doubts(plan: Plan) -> list[str]:
    """
    What a run would accept and a careful user would look at again, one sentence each.

    Args:
        plan ([`Plan`]):
            The plan of a run.

    Example:

    ```python
    >>> from hf_infinite_lr.schedules import cosine_rewarm
    >>> schedule = cosine_rewarm([100, 10], warmup_steps=[5, 8], peak_ratios=[1.0, 1.0], min_ratio=0.1)
    >>> doubts(Plan("cosine_rewarm", 1e-3, schedule, schedule, {"web": 100, "code": 10}))
    ['The re-warm-up takes more than half of its task (task code: 8 of 10 steps).']

    ```
    """
    return list(_doubts(plan)) if plan.schedule is not None else []


def _doubts(plan: Plan) -> Iterator[str]:
    assert plan.schedule is not None
    names, lengths = list(plan.tasks), list(plan.tasks.values())
    steps: dict[str, dict[int, int]] = {}
    flat = set()
    for phase in plan.schedule.phases:
        found = steps.setdefault(phase.name, {})
        found[phase.task] = found.get(phase.task, 0) + (phase.num_steps or lengths[phase.task] or 1)
        if phase.name == "anneal" and phase.start == phase.end:
            flat.add(phase.task)
    anneal, constant, decay = (steps.get(name, {}) for name in ("anneal", "constant", "cosine_decay"))
    rewarm = {task: count for task, count in steps.get("warmup", {}).items() if task}
    found_at = [
        (
            "The annealing is under 1 % of its task",
            {task: count for task, count in anneal.items() if count < 0.01 * lengths[task]},
        ),
        (
            "The annealing ends at the rate where it begins, so a release is no better than the trunk",
            {task: anneal[task] for task in sorted(flat)},
        ),
        (
            "The annealing takes more than half of its task",
            {task: count for task, count in anneal.items() if count > 0.5 * lengths[task]},
        ),
        (
            "The annealing leaves no step at the constant, so the trunk hardly learns from the task",
            {task: count for task, count in anneal.items() if task not in constant},
        ),
        (
            "The task is no longer than its re-warm-up, so it ends at the peak",
            {task: count for task, count in rewarm.items() if task not in decay},
        ),
        (
            "The re-warm-up takes more than half of its task",
            {task: count for task, count in rewarm.items() if task in decay and count > 0.5 * lengths[task]},
        ),
    ]
    for sentence, tasks in found_at:
        if tasks:
            first, count = next(iter(tasks.items()))
            others = f"; and {len(tasks) - 1} more" if len(tasks) > 1 else ""
            name = names[first].removeprefix("task ")
            yield f"{sentence} (task {name}: {count} of {lengths[first]} steps{others})."
    end = plan.schedule.num_steps
    if plan.max_steps is not None and end is not None and plan.max_steps != end:
        yield f"The run stops at step {plan.max_steps}, but the schedule ends at step {end}."
