"""`hf-infinite-lr show`: the learning rate of a run before it starts."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_infinite_lr.announcement import format_rate
from hf_infinite_lr.arguments import ANNEAL_BUDGETS, RELEASES
from hf_infinite_lr.cli.doubts import doubts
from hf_infinite_lr.cli.plan import Plan, continual_plan, plain_plan, recipe_plan
from hf_infinite_lr.plots import Curve, Part, Span, curve_of_schedule, draw_learning_rate, terminal_curve, write_png

if TYPE_CHECKING:
    from hf_infinite_lr.cli.launch import Launch
    from hf_infinite_lr.recipe import Recipe

_KWARGS = "--lr_scheduler_kwargs"
_LONGEST_TABLE = 60
_OF_A_STREAM = {"anneal_budget": "within", "release": "each"}


def show(argv: Sequence[str]) -> int:
    """
    Print the curve, the phases and what is doubtful about them; draw the picture if asked to.

    Args:
        argv (`Sequence[str]`):
            The arguments after `show`.

    Returns:
        `int`: 0, or 1 with one sentence on stderr where a run would be refused.
    """
    kwargs: dict[str, Any] = {}
    overrides: list[str] = []
    of_recipe = any(word == "--config" or word.startswith("--config=") for word in argv)
    if not of_recipe or "--help" in argv or "-h" in argv:
        kwargs, rest = _split_dotted(argv)
        options = _parser().parse_args(rest)
    else:
        options, overrides = _own_parser().parse_known_args(argv)
    if options.launch is not None and options.config is None:
        _parser().error("--launch goes with --config")
    if options.launch is None and (options.num_processes or options.num_machines):
        _parser().error("--num_processes and --num_machines go with --launch")
    try:
        if options.config is None:
            _print_plan(_plan_of_arguments(options, kwargs), options.output)
        else:
            _show_recipe(options, overrides)
    except (ValueError, OSError) as error:
        print(f"hf-infinite-lr show: {error}", file=sys.stderr)
        return 1
    return 0


def _own_parser() -> argparse.ArgumentParser:
    """The options that are no keys of a recipe."""
    parser = argparse.ArgumentParser(prog="hf-infinite-lr show", add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("--config", type=Path, metavar="YAML", help="a recipe; any --key value beside these overrides one of its keys")
    add("--launch", type=Path, metavar="YAML", help="with --config: a launch file; say what the run takes there")
    add("--num_processes", type=int, metavar="N", help="with --launch: as for accelerate launch, over all machines")
    add("--num_machines", type=int, metavar="N", help="with --launch: as for accelerate launch")
    add("--output", type=Path, metavar="PNG", help="also write the picture")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-infinite-lr show",
        description="Draw the learning rate of a run before it starts: with --config of a recipe's run; else of plain "
        "Trainer, or with --task_steps of ContinualTrainer.",
        epilog=f"Single keys: {_KWARGS}.num_anneal_steps 0.15",
        parents=[_own_parser()],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--lr_scheduler_type", default="infinite", metavar="NAME", help="default: infinite")
    add("--learning_rate", type=float, default=5e-5, metavar="RATE", help="the peak (default: 5e-5, as Trainer's)")
    add("--warmup_steps", type=_number, metavar="N", help="steps, or a share (default: 0; with --task_steps 0.05)")
    add("--max_steps", type=int, metavar="N", help="steps of the run")
    add(_KWARGS, type=_mapping, default={}, metavar="JSON", help="as for Trainer")
    add("--task_steps", nargs="+", metavar="N", help="steps of each task, as numbers or one JSON list")
    add("--anneal_budget", metavar="NAME", help=f"with --task_steps: {' or '.join(ANNEAL_BUDGETS)} (default: within)")
    add("--release", metavar="NAME", help=f"with --task_steps: {', '.join(RELEASES)} of the tasks (default: each)")
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
    given = {key: value for key in _OF_A_STREAM if (value := getattr(options, key)) is not None}
    if options.task_steps is None:
        if given:
            raise ValueError(f"--{next(iter(given))} goes with --task_steps.")
        return plain_plan(name, rate, options.warmup_steps or 0, options.max_steps, kwargs)
    if options.max_steps is not None:
        raise ValueError("--max_steps goes without --task_steps, which say how long the run is.")
    warmup = 0.05 if options.warmup_steps is None else options.warmup_steps
    tasks = {f"task {index + 1}": steps for index, steps in enumerate(_task_steps(options.task_steps))}
    return continual_plan(name, rate, warmup, tasks, kwargs, **{**_OF_A_STREAM, **given})


def _show_recipe(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Show a recipe with its overrides; beside a launch file if given."""
    from hf_infinite_lr.recipe import load_recipe

    launch = None
    if options.launch is not None:
        from hf_infinite_lr.cli.launch import read_launch

        launch = read_launch(options.launch, options.num_processes, options.num_machines)
    recipe = load_recipe(options.config, [*overrides, *_beside_no_gpu(launch)])
    recipe.num_processes = None if launch is None else launch.num_processes
    recipe.check()
    plan = recipe_plan(recipe.arguments, recipe.task_lengths())
    _print_plan(plan, options.output)
    if launch is not None:
        _print_needs(recipe, launch, plan, options.launch)


def _beside_no_gpu(launch: "Launch | None") -> list[str]:
    """What keeps this machine's GPUs, or that it has none, out of what is said of another one's."""
    from torch import cuda

    return ["--use_cpu", "true"] if launch is not None or not cuda.is_available() else []


def _print_needs(recipe: "Recipe", launch: "Launch", plan: Plan, path: Path) -> None:
    from hf_infinite_lr.cli.launch import check_launch
    from hf_infinite_lr.cli.needs import describe_needs

    found = list(check_launch(launch, recipe))
    print(f"\n{describe_needs(recipe, launch, plan, path)}")
    for doubt in found:
        print(f"warning: {doubt}", file=sys.stderr)


def _print_plan(plan: Plan, output: Path | None) -> None:
    if plan.schedule is None:
        spans, start = [], 0
        for name, steps in plan.tasks.items():
            spans.append(Span(name, start, start + steps))
            start += steps
        curve = Curve([Part(plan.name, 0, 0, start, lambda step: plan.learning_rate * plan.factor(step))], spans)
    else:
        curve = curve_of_schedule(plan.schedule, plan.learning_rate, list(plan.tasks), has_trunk=plan.has_trunk)
    if output is not None:
        write_png(draw_learning_rate(curve, title=f"{plan.name}, peak {format_rate(plan.learning_rate)}"), output)
    blocks = [terminal_curve(curve, encoding=sys.stdout.encoding), _table(plan)]
    encoding = sys.stdout.encoding or "ascii"
    blocks += [plan.summary.replace("–", "-").encode(encoding, "replace").decode(encoding)] if plan.summary else []
    print("\n\n".join(blocks))
    if output is not None:
        print(f"\nWritten: {output}")
    if plan.schedule is not None:
        for doubt in doubts(plan.schedule, plan.tasks, plan.max_steps):
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
        note = f"branches off the trunk at {start}" if phase.name == "anneal" and plan.has_trunk else ""
        rows.append([phase.name, names[phase.task], str(steps), str(start), str(stop), *rates, note])
    lines = aligned(rows).splitlines()
    if len(lines) > _LONGEST_TABLE:
        half = _LONGEST_TABLE // 2
        lines[half:-half] = [f"... {len(lines) - 2 * half} more phases ..."]
    return "\n".join(lines)
