"""What a run of a recipe takes under a launch file: steps, tokens or samples, memory of a process, and disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .launch import Launch
from .memory import Footprint, footprint, in_words
from .plan import Plan

if TYPE_CHECKING:
    from hf_infinite_lr.recipe import Recipe


def describe_needs(recipe: Recipe, launch: Launch, plan: Plan, path: Path) -> str:
    """
    Say what a run takes before it is queued.

    Args:
        recipe ([`Recipe`]):
            What to train.
        launch ([`Launch`]):
            Where.
        plan ([`Plan`]):
            The learning rate and the tasks.
        path (`Path`):
            The launch file.

    Returns:
        `str`: lines for the screen.
    """
    args, batch, steps = recipe.arguments, recipe.global_batch_size, num_steps(plan, recipe.arguments)
    nodes = f" on {launch.num_machines} machines" if launch.num_machines > 1 else ""
    many = f"{launch.num_processes} processes" if launch.num_processes > 1 else "1 process"
    held = footprint(recipe.objective.empty_model(), args, launch, merges=recipe.objective.adapter.merge_releases)
    tokens = recipe.objective.tokens_per_sample
    sizes = f"{batch:,} samples" + (f" = {batch * tokens:,} tokens" if tokens else "")
    rows = [
        ["launch", f"{path}: {launch.engine}, {many}{nodes}"],
        ["batch", f"{args.per_device_train_batch_size} x {args.gradient_accumulation_steps} accumulated x {many}"],
        ["a step", sizes],
        ["the run", f"{steps:,} steps, {_amount(steps * batch, tokens)}"],
        ["weights", _held(held.weights, launch.offloads_weights)],
        *([["small weights", f"{_held(held.small, False)}, kept whole beside the shards"]] if held.small else []),
        ["gradients", _held(held.gradients, launch.offloads_optimizer)],
        ["optimizer", _held(held.optimizer, launch.offloads_optimizer)],
        *([["methods", _held(held.methods, False)]] if held.methods else []),
        *([["methods", _held(held.methods_on_machine, True)]] if held.methods_on_machine else []),
        *_disk(held, args, plan, steps),
    ]
    notes = ["Bytes are those of one process; activations, communication buffers and workspace are not counted."]
    notes += [recipe.objective.uncounted] if recipe.objective.uncounted else []
    return "\n".join(f"{name:15}{text}" for name, text in rows) + "\n\n" + "\n".join(notes)


def num_steps(plan: Plan, args: Any) -> int:
    """All updates of a run, which `max_steps` may stop early; under `extra` the trunk repeats every branch but one."""
    total = sum(plan.tasks.values())
    if plan.schedule is not None and args.anneal_budget == "extra":
        total += sum(branch.end_step - branch.first_step for branch in plan.schedule.branch_points[:-1])
    return min(total, args.max_steps) if args.max_steps > 0 else total


def _amount(samples: int, tokens: int | None) -> str:
    return f"{samples:,} samples" + (f" = {samples * tokens:,} tokens" if tokens else "")


def _held(num_bytes: int, offloaded: bool) -> str:
    where = ", in the memory of the machine" if offloaded else ""
    return f"{in_words(num_bytes)} ({num_bytes:,} bytes{where})"


def _disk(held: Footprint, args: Any, plan: Plan, steps: int) -> list[list[str]]:
    """Rows on the most that lies on disk at a time; a trunk shares its files with the checkpoint of its step."""
    trunks = len(plan.tasks)
    releases = {"each": trunks, "last": 1, "none": 0}[args.release]
    kept, by_pass = _num_checkpoints(args, plan, steps)
    each_pass = ", and one more for each further pass over a task" if by_pass else ""
    checkpoint, release = in_words(held.checkpoint), in_words(held.release)
    starts = int(args.merge is not None and args.merge["method"] == "first")
    total = (trunks + kept) * held.checkpoint + (releases + starts) * held.release
    return [
        ["trunk/", f"{trunks} x {checkpoint}"],
        ["releases/", f"{releases} x {release}"],
        *([["start/", f"1 x {release}"]] if starts else []),
        ["checkpoint-N/", f"at most {kept} x {checkpoint}{each_pass}"],
        ["on disk", f"at most {in_words(total)}{', and those of further passes' if each_pass else ''}"],
    ]


def _num_checkpoints(args: Any, plan: Plan, steps: int) -> tuple[int, bool]:
    """Checkpoints that lie there at a time, the trunk's not counted, and whether further passes add to them."""
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "no":
        return 0, False
    count = len(plan.tasks)
    if strategy == "steps":
        first = next(iter(plan.tasks.values()))
        every = max(1, int(args.save_steps * first)) if args.save_steps < 1 else int(args.save_steps)
        count += math.ceil(steps / every)
    if not args.save_total_limit:
        return count, strategy == "epoch"
    # One more than the limit, because the new one is written before the oldest goes.
    return (args.save_total_limit + 1 if strategy == "epoch" else min(count, args.save_total_limit + 1)), False
