"""Going on although tasks that a checkpoint has begun are changed, gone or in another order now."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_infinite_lr.stream.plan import StreamPlan
from hf_infinite_lr.stream.task import RemovedData, Stream, Task

logger = logging.getLogger(__name__)


def accept_changed_tasks(
    state: Mapping[str, Any], stream: Stream, plan: StreamPlan, methods: Sequence[str] = ()
) -> Stream | None:
    """The stream of a run that goes on from a checkpoint with other tasks than those that it has begun.

    The past stays as it was. The tasks that the checkpoint has begun keep their names, their order and their steps;
    the data that is given under such a name now serves the rest of the task and replay. A begun task that is no longer
    given stays in the record: it is neither replayed nor evaluated. All other given tasks follow, in their order.

    Args:
        state (`Mapping[str, Any]`): `continual_state.json` of the checkpoint.
        stream ([`Stream`]): As given now.
        plan ([`StreamPlan`]): Of `stream`.
        methods (`Sequence[str]`): Names of the run's methods that read a task's samples when the next one begins.

    Returns:
        [`Stream`]: with a length for each task; None if nothing that was begun has changed.

    Raises:
        ValueError: if a task is under way at the checkpoint and not given, so that its rest has no data; or if a
            method has yet to read it.
    """
    step = state["global_step"]
    begun = [task for task in state["tasks"] if task["start_step"] < step]
    if _identities(begun) == [(task.name, task.fingerprint) for task in plan.tasks[: len(begun)]]:
        return None
    given = {
        task.name: replace(task, num_steps=length.num_steps, num_epochs=None) for task, length in _pairs(stream, plan)
    }
    fingerprints = {task.name: task.fingerprint for task in plan.tasks}
    past = [_begun(old, given.pop(old["name"], None), fingerprints, step, methods) for old in begun]
    if [task["name"] for task in begun] != [task.name for task in plan.tasks[: len(begun)]]:
        names = ", ".join(task.name for task in (*past, *given.values()))
        logger.warning("accept_changed_tasks: the tasks are, in the order of training, %s.", names)
    return replace(stream, tasks=(*past, *given.values()))


def with_data_of(name: str, state: Mapping[str, Any], stream: Stream) -> Stream:
    """The past of a checkpoint as a stream whose last task, the one under way, has the data of a given task.

    Args:
        name (`str`): Of the task in `stream`.
        state (`Mapping[str, Any]`): `continual_state.json` of the checkpoint.
        stream ([`Stream`]): Holds the data.

    Raises:
        ValueError: if there is no such task, or the checkpoint lies before the first update.
    """
    data = next((task.dataset for task in stream.tasks if task.name == name), None)
    if data is None:
        raise ValueError(f"task={name!r} must be one of {', '.join(task.name for task in stream.tasks)}.")
    begun = [task for task in state["tasks"] if task["start_step"] < state["global_step"]]
    if not begun:
        raise ValueError("A checkpoint before the first update cannot be annealed.")
    *past, last = (
        Task(task["name"], RemovedData(), num_steps=task["num_steps"], fingerprint=task["fingerprint"])
        for task in begun
    )
    return Stream((*past, replace(last, dataset=data)), {})


def _identities(begun: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(task["name"], task["fingerprint"]) for task in begun]


def _pairs(stream: Stream, plan: StreamPlan) -> Any:
    return zip(stream.tasks, plan.tasks, strict=True)


def _begun(
    old: Mapping[str, Any], given: Task | None, fingerprints: Mapping[str, str], step: int, methods: Sequence[str]
) -> Task:
    name, num_steps = old["name"], old["num_steps"]
    if given is None:
        if step < old["next_start_step"]:
            raise ValueError(
                f"accept_changed_tasks: task {name!r} is under way at step {step} and must be given, because its rest "
                f"up to step {old['next_start_step']} would have no data."
            )
        if step == old["next_start_step"] and methods:
            raise ValueError(
                f"accept_changed_tasks: task {name!r} must be given until the task after it has begun, because "
                f"methods.{methods[0]} looks at its samples then."
            )
        logger.warning("accept_changed_tasks: %r is no longer given; it is neither replayed nor evaluated.", name)
        return Task(name, RemovedData(), num_steps=num_steps, fingerprint=old["fingerprint"])
    if old["fingerprint"] != fingerprints[name]:
        change = f"fingerprint {old['fingerprint']} -> {fingerprints[name]}"
        logger.warning("accept_changed_tasks: the data of %r has changed (%s) and is used as it is now.", name, change)
    if given.num_steps != num_steps:
        logger.warning("accept_changed_tasks: %r keeps its %d steps, not %d.", name, num_steps, given.num_steps)
    return replace(given, num_steps=num_steps)
