"""The plan of a run: how long each task is, where it branches, and which batches each step trains on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from .order import replay_before
from .task import RemovedData, Stream, Task, slug


@dataclass(frozen=True)
class TaskPlan:
    """Where one task lies in a run; all steps are optimizer steps.

    Args:
        name (`str`): As in [`Task`].
        index (`int`): Position in the stream, from 0.
        num_steps (`int`): Updates on the task's own data up to its release.
        num_anneal_steps (`int`): How many of them, at the end, are the branch.
        start_step (`int`): Global step of its first update.
        repeats (`bool`): Whether the trunk trains on the branch's batches too, after the rewind (`extra`).
        num_samples (`int`, *optional*): Size of the dataset; unknown for a streaming task, 0 for one whose data is no
            longer given.
        num_unused_samples (`int`): Samples that each pass leaves out, because passes are whole global batches; which
            ones changes from pass to pass.
        fingerprint (`str`): Identity of the data.
        branch_batch (`int`, *optional*): The batch with which the branch begins, where it does not go on after the
            trunk's last.
    """

    name: str
    index: int
    num_steps: int
    num_anneal_steps: int
    start_step: int
    repeats: bool
    num_samples: int | None
    num_unused_samples: int
    fingerprint: str
    branch_batch: int | None = None

    @property
    def directory(self) -> str:
        """The name of the task's directories under `trunk/` and `releases/`."""
        return f"{self.index + 1:02d}-{slug(self.name)}"

    @property
    def branch_step(self) -> int | None:
        """Global step at which the branch leaves the trunk; None without a branch."""
        return self.trunk_step if self.num_anneal_steps else None

    @property
    def trunk_step(self) -> int:
        """Global step at which the trunk is saved: where the branch leaves it, or the task ends."""
        return self.end_step - self.num_anneal_steps

    @property
    def end_step(self) -> int:
        """Global step at which the task ends: evaluation and release."""
        return self.start_step + self.num_steps

    @property
    def next_start_step(self) -> int:
        """Global step of the next task's first update."""
        return self.end_step + (self.num_anneal_steps if self.repeats else 0)


@dataclass(frozen=True)
class Segment:
    """Consecutive steps of one task on the trunk or on a branch.

    Args:
        task (`int`): Index of the task.
        start_step (`int`): Global step of the first update.
        num_steps (`int`): Number of updates.
        first_batch (`int`): The task's batch that the first update trains on.
        on_trunk (`bool`): Whether the trunk is trained, or a branch.
    """

    task: int
    start_step: int
    num_steps: int
    first_batch: int
    on_trunk: bool


@dataclass(frozen=True)
class StreamPlan:
    """The whole run. Appending a task changes nothing that comes before it.

    Args:
        tasks (`tuple[TaskPlan, ...]`): In order.
        global_batch_size (`int`): Samples of one optimizer step over all processes and accumulated batches.
        rewinds (`bool`): Whether the trunk's weights come back after a branch (not with `rewind="none"`).
        restarts (`bool`): Whether every task starts from the first weights again (GDumb).
        replay_fraction (`float`): Share of a later task's batches that earlier tasks fill.
    """

    tasks: tuple[TaskPlan, ...]
    global_batch_size: int
    rewinds: bool = True
    restarts: bool = False
    replay_fraction: float = 0.0

    @property
    def num_steps(self) -> int:
        """All updates of the run. Under `extra` the trunk's last repeat is left to the task that may follow."""
        return self.tasks[-1].end_step

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The run as runs of consecutive batches, ordered by global step."""
        return tuple(segment for task in self.tasks for segment in self._segments_of(task))

    def _segments_of(self, task: TaskPlan) -> Iterator[Segment]:
        trunk_steps = task.num_steps - task.num_anneal_steps
        if trunk_steps:
            yield Segment(task.index, task.start_step, trunk_steps, 0, True)
        if task.num_anneal_steps:
            branch_step = task.start_step + trunk_steps
            first_batch = trunk_steps if task.branch_batch is None else task.branch_batch
            yield Segment(task.index, branch_step, task.num_anneal_steps, first_batch, not self.rewinds)
        if task.repeats and task is not self.tasks[-1]:
            yield Segment(task.index, task.end_step, task.num_anneal_steps, trunk_steps, True)

    @cached_property
    def _segment_starts(self) -> list[int]:
        return [segment.start_step for segment in self.segments]

    def segment_of(self, step: int) -> int:
        """Index of the segment that holds the update at a global step (the last one past the end)."""
        return bisect_right(self._segment_starts, step) - 1

    def task_at(self, step: int) -> TaskPlan:
        """The task that the update at a global step trains."""
        return self.tasks[self.segments[self.segment_of(step)].task]

    @cached_property
    def ends(self) -> dict[int, TaskPlan]:
        """Global steps at which a task ends."""
        return {task.end_step: task for task in self.tasks}

    @cached_property
    def trunk_points(self) -> dict[int, TaskPlan]:
        """Global steps at which the trunk is saved: each task's branch point, or its end without a branch."""
        return {task.trunk_step: task for task in self.tasks}

    @cached_property
    def rewind_points(self) -> dict[int, TaskPlan]:
        """Global steps before whose update the trunk of the named task is restored."""
        if not self.rewinds:
            return {}
        return {task.end_step: task for task in self.tasks[:-1] if task.num_anneal_steps}

    def path_steps(self, task: TaskPlan) -> int:
        """Updates in the history of a task's released weights.

        Example: two tasks of 10 steps with a branch of 2. The second release has 8 + 10 = 18 updates behind it,
        of 20 that the run has spent.
        """
        return self.path_steps_at(task.end_step)

    def path_steps_at(self, step: int) -> int:
        """Updates in the history of the weights after `step` updates (1 or more) of the run."""
        if self.restarts:
            return step - self.task_at(step - 1).start_step
        index = self.segment_of(step - 1)
        return self._trunk_steps_before[index] + step - self.segments[index].start_step

    @cached_property
    def _trunk_steps_before(self) -> list[int]:
        steps = (segment.num_steps if segment.on_trunk else 0 for segment in self.segments)
        return list(accumulate(steps, initial=0))

    def describe(self, task: TaskPlan) -> str:
        """One line on a task: its steps, whom its own samples reach, and what a pass leaves out."""
        line = f"{task.name}: steps {task.start_step}–{task.end_step}"
        if task.branch_step is not None:
            line += f", annealing from {task.branch_step}"
            trunk_steps = task.num_steps - task.num_anneal_steps
            samples = self._own_before(task, task.num_steps) - self._own_before(task, trunk_steps)
            reached = (
                "are trained on by the trunk afterwards"
                if task.repeats
                else "reach this task's release only, unless replayed"
            )
            line += f"; the {samples} samples of the branch {reached}" if self.rewinds else ""
        if task.num_unused_samples:
            line += (
                f"; each pass leaves out {task.num_unused_samples} of {task.num_samples} samples (not a whole batch)"
            )
        return line

    def epochs_at(self, step: int) -> float:
        """Passes over tasks completed after `step` updates; a streaming task counts as one pass.

        A pass is one over a task's own samples, however many others are replayed among them. A repeat on the trunk
        counts like the pass that it repeats, so that the number only grows.
        """
        index = self.segment_of(step)
        segment = self.segments[index]
        return self._epochs_before[index] + self._passes(segment, min(step - segment.start_step, segment.num_steps))

    @cached_property
    def _epochs_before(self) -> list[float]:
        passes = (self._passes(segment, segment.num_steps) for segment in self.segments)
        return list(accumulate(passes, initial=0.0))

    def _passes(self, segment: Segment, num_steps: int) -> float:
        """Passes over its task's samples that the first updates of a segment make."""
        task = self.tasks[segment.task]
        if not task.num_samples:
            return num_steps / task.num_steps
        first, stop = segment.first_batch, segment.first_batch + num_steps
        return (self._own_before(task, stop) - self._own_before(task, first)) / self._usable(task)

    def ends_pass(self, step: int) -> bool:
        """Whether the update that made `step` updates took the last sample of a pass over its task."""
        segment = self.segments[self.segment_of(step - 1)]
        task, batches = self.tasks[segment.task], segment.first_batch + step - segment.start_step
        if not task.num_samples:
            return batches % task.num_steps == 0
        before, after = (self._own_before(task, number) // self._usable(task) for number in (batches - 1, batches))
        return after > before

    def _usable(self, task: TaskPlan) -> int:
        """Samples of a pass over a map-style task."""
        assert task.num_samples is not None
        return task.num_samples - task.num_unused_samples

    def _own_before(self, task: TaskPlan, batch: int) -> int:
        return own_before(self, task.index, batch, self.replay_fraction)


def own_before(plan: StreamPlan, task: int, batch: int, replay_fraction: float) -> int:
    """A task's own samples in its batches before `batch`.

    Args:
        plan ([`StreamPlan`]): The tasks.
        task (`int`): Its index.
        batch (`int`): Counted in the task.
        replay_fraction (`float`): Share of each batch that earlier tasks fill.
    """
    size = plan.global_batch_size
    return batch * size - (replay_before(batch, replay_fraction, size) if has_source(plan, task) else 0)


def has_source(plan: StreamPlan, task: int) -> bool:
    """Whether there is an earlier task whose data is given."""
    return any(plan.tasks[earlier].num_samples != 0 for earlier in range(task))


def task_lengths(
    stream: Stream,
    global_batch_size: int,
    *,
    task_steps: int | Sequence[int] | None = None,
    num_train_epochs: float = 1.0,
    added_replay: float = 0.0,
) -> tuple[int, ...]:
    """Optimizer steps of every task.

    A task has floor(epochs x floor(n / G)) steps, n = its samples, G = the global batch. Precedence: the task's own
    `num_steps` or `num_epochs`, then `task_steps`, then `num_train_epochs`. With added replay of share r a later task
    of a length in epochs has floor(steps / (1 - r)), of which the share 1 - r visits its own samples.

    Args:
        stream ([`Stream`]): The tasks.
        global_batch_size (`int`): G, in samples.
        task_steps (`int` or `Sequence[int]`, *optional*): Steps of every task, or one number for each.
        num_train_epochs (`float`): Passes over each task.
        added_replay (`float`): r, in [0, 1).

    Raises:
        ValueError: for a task without a length, or one shorter than a global batch.
    """
    if isinstance(task_steps, Sequence) and len(task_steps) != len(stream.tasks):
        raise ValueError(
            f"task_steps={list(task_steps)} has {len(task_steps)} entries for {len(stream.tasks)} tasks: give one "
            "number for all, or one for each."
        )
    given = task_steps if isinstance(task_steps, Sequence) else [task_steps] * len(stream.tasks)
    return tuple(
        _length(task, global_batch_size, steps, num_train_epochs, added_replay if index else 0.0)
        for index, (task, steps) in enumerate(zip(stream.tasks, given, strict=True))
    )


def _length(
    task: Task, global_batch_size: int, task_steps: int | None, num_train_epochs: float, added_replay: float
) -> int:
    if not task.streaming and len(task.dataset) < global_batch_size:
        raise ValueError(
            f"Task {task.name!r} has {len(task.dataset)} samples, less than one global batch of {global_batch_size}."
        )
    if task.num_steps is not None:
        return task.num_steps
    if task.num_epochs is None and task_steps is not None:
        return task_steps
    if task.streaming:
        raise ValueError(
            f"Task {task.name!r} is a streaming dataset without a length: give it num_steps=... (or set task_steps)."
        )
    epochs = num_train_epochs if task.num_epochs is None else task.num_epochs
    steps = int(epochs * (len(task.dataset) // global_batch_size) + 1e-9)
    if steps < 1:
        raise ValueError(
            f"Task {task.name!r}: {epochs} epochs of {len(task.dataset)} samples are less than one global batch of "
            f"{global_batch_size}."
        )
    return int(steps / (1 - added_replay) + 1e-9)


def _num_samples(task: Task) -> int | None:
    if isinstance(task.dataset, RemovedData):
        return 0
    return None if task.streaming else len(task.dataset)


def plan_stream(
    stream: Stream,
    lengths: Sequence[int],
    anneal_steps: Sequence[int],
    global_batch_size: int,
    *,
    fingerprints: Sequence[str],
    anneal_budget: str = "within",
    rewinds: bool = True,
    restarts: bool = False,
    replay_fraction: float = 0.0,
) -> StreamPlan:
    """Lays the tasks one after another.

    Args:
        stream ([`Stream`]): The tasks.
        lengths (`Sequence[int]`): Steps of each, of [`task_lengths`].
        anneal_steps (`Sequence[int]`): How many of them are its branch; 0 = no branch.
        global_batch_size (`int`): In samples.
        fingerprints (`Sequence[str]`): Identity of each task's data.
        anneal_budget (`str`): `within`, or `extra` for a trunk that repeats the branch's batches.
        rewinds (`bool`): Whether the trunk comes back after a branch.
        restarts (`bool`): Whether every task starts from the first weights again.
        replay_fraction (`float`): As in [`StreamPlan`].
    """
    plans: list[TaskPlan] = []
    start = 0
    for index, task in enumerate(stream.tasks):
        num_samples = _num_samples(task)
        plan = TaskPlan(
            name=task.name,
            index=index,
            num_steps=lengths[index],
            num_anneal_steps=anneal_steps[index],
            start_step=start,
            repeats=anneal_budget == "extra" and anneal_steps[index] > 0,
            num_samples=num_samples,
            num_unused_samples=0 if num_samples is None else num_samples % global_batch_size,
            fingerprint=fingerprints[index],
        )
        if plan.num_anneal_steps >= plan.num_steps:
            raise ValueError(
                f"num_anneal_steps: task {task.name!r} would anneal for {plan.num_anneal_steps} of its "
                f"{plan.num_steps} steps; the trunk needs at least one."
            )
        plans.append(plan)
        start = plan.next_start_step
    return StreamPlan(tuple(plans), global_batch_size, rewinds, restarts, replay_fraction)
