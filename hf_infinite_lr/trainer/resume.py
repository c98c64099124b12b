"""Where a run goes on from: the newest whole checkpoint whose past is the past of this run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers.trainer import TRAINER_STATE_NAME

from hf_infinite_lr.arguments import OWN_SCHEDULES
from hf_infinite_lr.files import read_json
from hf_infinite_lr.manifest import MANIFEST, STATE
from hf_infinite_lr.schedules import Schedule
from hf_infinite_lr.stream.plan import StreamPlan, TaskPlan

from . import checkpoints
from .host import REPLICATED

logger = logging.getLogger(__name__)

_REPLAY = ("replay_fraction", "replay_budget", "replay_buffer_size", "replay_class_column")
_NEEDED = ("global_step", "num_steps", "settings", "tasks", "matrices", "compute", "references")
_END = ("status", "global_step", "num_steps", "times_back", "schedule", "tasks")
_PAST_OF_A_TASK = ("start_step", "branch_step", "end_step", "next_start_step")


def newest_whole(output_dir: Path, resume: str | bool | None) -> Path | None:
    """The whole checkpoint that `resume` names or leaves to choose, whatever it was trained on; None without one."""
    if not resume:
        return None
    paths = [path for _, path in checkpoints.candidates(output_dir)] if resume is True else [Path(resume)]
    return next((path for path in paths if checkpoints.fault_of(path) is None), None)


def find_checkpoint(
    output_dir: Path, resume: str | bool | None, plan: StreamPlan, *, accept_data: bool = False
) -> Path | None:
    """Chooses what to resume from; None starts afresh.

    Args:
        output_dir (`Path`): Of the run.
        resume (`str`, `bool`, *optional*): As `Trainer.train` takes it.
        plan ([`StreamPlan`]): What is to be trained now.
        accept_data (`bool`): Whether the data of begun tasks may have changed.

    Raises:
        ValueError: for a used directory without `resume`, a broken or unknown checkpoint that was named, and a
            checkpoint that was trained on other tasks.
    """
    if resume is None or resume is False:
        refuse_used(output_dir)
        return None
    if resume is True:
        return _newest(output_dir, plan, accept_data)
    path = Path(resume)
    if (fault := checkpoints.fault_of(path)) is not None:
        raise ValueError(f"resume_from_checkpoint={resume!r} is not a whole checkpoint: {fault}.")
    if (difference := _difference(path, plan, accept_data)) is not None:
        raise ValueError(f"resume_from_checkpoint={resume!r} cannot be continued: {difference.text}.")
    return path


def refuse_used(output_dir: Path) -> None:
    """Refuses a directory that a run has used, for a fresh start."""
    if checkpoints.is_used(output_dir):
        raise ValueError(
            f"output_dir={str(output_dir)!r} holds a run already: pass resume_from_checkpoint=True to go on with "
            "it, or name another directory."
        )


def _newest(output_dir: Path, plan: StreamPlan, accept_data: bool) -> Path | None:
    for _, path in checkpoints.candidates(output_dir):
        if (fault := checkpoints.fault_of(path)) is not None:
            logger.warning("%s is passed over: %s.", path, fault)
        elif (difference := _difference(path, plan, accept_data)) is None:
            logger.info("resuming from %s", path)
            return path
        elif difference.annealed_too_early:
            logger.info("%s is passed over: %s", path, difference.text)
        else:
            raise ValueError(
                f"The newest checkpoint of {str(output_dir)!r} cannot be continued with these tasks; {path.name}: "
                f"{difference.text}."
            )
    logger.info("%s holds no whole checkpoint: starting from the beginning", output_dir)
    return None


def read_state(path: Path) -> dict[str, Any]:
    """`continual_state.json` of a checkpoint.

    Raises:
        ValueError: if it lacks what resuming needs, or Trainer's own state belongs to another step.
    """
    state = read_json(path / STATE)
    lacking = [key for key in _NEEDED if not isinstance(state, dict) or key not in state]
    if lacking:
        raise ValueError(f"{path / STATE} lacks {', '.join(lacking)}.")
    own = read_json(path / TRAINER_STATE_NAME)
    step = own.get("global_step") if isinstance(own, dict) else None
    if step != state["global_step"]:
        raise ValueError(
            f"{path}: its {TRAINER_STATE_NAME} is of step {step}, its {STATE} of step {state['global_step']}."
        )
    return state


class _Difference(NamedTuple):
    """How a checkpoint's past differs from a plan.

    Args:
        text (`str`): In words.
        annealed_too_early (`bool`):
            The last task had a branch then and has none now, as when a task is appended under `release="last"`. The
            run then goes on from before that branch; for any other difference going back would lose what is trained.
    """

    text: str
    annealed_too_early: bool = False


def _difference(path: Path, plan: StreamPlan, accept_data: bool) -> _Difference | None:
    """How a checkpoint's past differs from the plan's; None when it is the same run up to there."""
    state = read_state(path)
    step, size = state["global_step"], state["settings"]["global_batch_size"]
    if size != plan.global_batch_size:
        return _Difference(
            f"it was trained with a global batch of {size} samples, not {plan.global_batch_size} "
            "(per_device_train_batch_size x gradient_accumulation_steps x processes)"
        )
    begun = [task for task in state["tasks"] if task["start_step"] < step]
    for index, old in enumerate(begun):
        if index >= len(plan.tasks):
            return _Difference(f"its task {old['name']!r} is no longer in the stream")
        difference = _task_difference(old, plan.tasks[index], step, accept_data)
        if difference is not None:
            return difference._replace(annealed_too_early=difference.annealed_too_early and old is begun[-1])
    return None


def _task_difference(old: Mapping[str, Any], new: TaskPlan, step: int, accept_data: bool) -> _Difference | None:
    if old["name"] != new.name:
        return _Difference(f"its task {new.index + 1} was {old['name']!r} and is {new.name!r} now")
    if old["fingerprint"] != new.fingerprint and not accept_data:
        change = f"{old['fingerprint']} -> {new.fingerprint}"
        return _Difference(f"the data of its task {new.name!r} has changed (fingerprint {change})")
    if old["end_step"] <= step and new.end_step != old["end_step"]:
        return _moved("end_step", old, new)
    for name in _PAST_OF_A_TASK:
        was, now = old[name], getattr(new, name)
        in_the_past = [value for value in (was, now) if value is not None and value < step]
        if was != now and in_the_past:
            return _moved(name, old, new)._replace(annealed_too_early=name == "branch_step" and now is None)
    return None


def _moved(name: str, old: Mapping[str, Any], new: TaskPlan) -> _Difference:
    return _Difference(f"{name} of its task {new.name!r} was {old[name]} and is {getattr(new, name)} now")


def check_data_settings(state: Mapping[str, Any], settings: Mapping[str, Any], plan: StreamPlan) -> None:
    """Refuses settings that would change which samples the rest of a begun task consists of.

    Args:
        state (`Mapping[str, Any]`): `continual_state.json` of the checkpoint.
        settings (`Mapping[str, Any]`): The same settings now.
        plan ([`StreamPlan`]): Of this run.

    Raises:
        ValueError: naming the setting, its old and its new value.
    """
    step, then = state["global_step"], state["settings"]
    between_tasks = step <= plan.tasks[0].end_step or step in {task.next_start_step for task in plan.tasks}
    changed = {
        name: then[name] for name in ("data_seed", *_REPLAY) if then.get(name, settings[name]) != settings[name]
    }
    for name, old in changed.items():
        if not (step == 0 if name == "data_seed" else between_tasks):
            raise ValueError(
                f"{name}={settings[name]!r} was {old!r} up to the checkpoint at step {step}: the rest of its "
                "task would consist of other samples."
            )
    streamed = [task.name for task in plan.tasks if task.num_samples is None and task.start_step < step]
    for name, old in changed.items():
        if streamed and settings["replay_fraction"] and (name != "replay_fraction" or not old):
            raise ValueError(
                f"{name}={settings[name]!r} was {old!r} up to the checkpoint at step {step}: what the streaming task "
                f"{streamed[0]!r} keeps for replay was decided while it was read."
            )


def check_engine(state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuses a checkpoint in shards that another number of processes or another engine has written.

    A checkpoint of `replicated` weights loads under any number of processes.

    Args:
        state (`Mapping[str, Any]`): `continual_state.json` of the checkpoint.
        settings (`Mapping[str, Any]`): The settings now.

    Raises:
        ValueError: naming engine and number of processes then and now.
    """
    then = state["settings"]
    was, now = ((part.get("engine", REPLICATED), part["world_size"]) for part in (then, settings))
    if was != now and {was[0], now[0]} != {REPLICATED}:
        raise ValueError(
            f"The checkpoint at step {state['global_step']} was written by {was[0]} on world_size={was[1]} and cannot "
            f"be loaded by {now[0]} on world_size={now[1]}, because shards are read by the engine and the number of "
            "processes that wrote them alone: resume as it was written."
        )


def check_trunk(output_dir: Path, plan: StreamPlan, step: int) -> None:
    """Refuses to go on without a trunk checkpoint to which a branch under way, or just ended, must go back."""
    for end_step, task in plan.rewind_points.items():
        if task.branch_step is None or not task.branch_step <= step <= end_step:
            continue
        trunk = output_dir / "trunk" / task.directory
        if (fault := checkpoints.fault_of(trunk)) is not None:
            raise ValueError(
                f"{str(trunk)!r}, the trunk to which the run must go back after the branch of {task.name!r}, cannot "
                f"be used: {fault}."
            )


def check_curve(state: Mapping[str, Any], name: str, num_steps: int) -> None:
    """Refuses to go on from a checkpoint under a curve, not ours, that was not the checkpoint's."""
    then = state["schedule"]["name"]
    if then != name:
        raise ValueError(
            f"lr_scheduler_type={name!r} is one curve over the whole run and cannot go on from a checkpoint of "
            f"{then!r}; only {', '.join(OWN_SCHEDULES)} can take over."
        )
    if state["num_steps"] != num_steps:
        raise ValueError(
            f"lr_scheduler_type={name!r} is one curve over the whole run: its past would change with the run's "
            f"length ({state['num_steps']} -> {num_steps} steps)."
        )


def has_ended(output_dir: Path, plan: StreamPlan, end: Mapping[str, Any]) -> bool:
    """Whether a run of that plan has done all its work, with or without a checkpoint (`save_strategy="no"`).

    Args:
        output_dir (`Path`): Of the run.
        plan ([`StreamPlan`]): What is to be trained now.
        end (`Mapping[str, Any]`): `continual_state.json` as this run would leave it.
    """
    own, last = output_dir / STATE, output_dir / "releases" / plan.tasks[-1].directory
    # What is written last says that everything else was done, the queue of publications among it.
    if not (own.exists() and (last / MANIFEST).exists() and has_written_end(output_dir, plan.num_steps)):
        return False
    found, planned = read_json(own), json.loads(json.dumps({key: end[key] for key in _END}))
    return all(found.get(key) == planned[key] for key in _END)


def has_written_end(output_dir: Path, step: int) -> bool:
    """Whether a run has written what it writes last, at that step."""
    own = output_dir / TRAINER_STATE_NAME
    return own.exists() and read_json(own).get("global_step") == step


def check_branches(schedule: Schedule, plan: StreamPlan) -> None:
    """Refuses a schedule, kept from a checkpoint by the resume policy, that branches elsewhere than the plan."""
    kept = [tuple(branch) for branch in schedule.branch_points]
    planned = [(task.index, task.branch_step, task.end_step) for task in plan.tasks if task.branch_step is not None]
    if kept != planned:
        raise ValueError(
            f"lr_scheduler_kwargs: the schedule that the checkpoint keeps branches at {kept}, the tasks of this run "
            f"at {planned} (task, first step, end); keep the arguments, or pass on_resume='override'."
        )
