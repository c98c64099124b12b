"""Class-incremental classification: which classes a loss compares, and which a prediction may name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.loss.loss_utils import fixed_cross_entropy

from hf_infinite_lr.config import run_mode
from hf_infinite_lr.methods.head import base_of
from hf_infinite_lr.stream.plan import StreamPlan
from hf_infinite_lr.stream.task_classes import TaskClasses, masked

from .host import Host

logger = logging.getLogger(__name__)


class IncrementalLoss:
    """The `loss_function` of a model whose classes come task by task: cross-entropy over the compared ones.

    It is a part of the model, so that everything that asks the model for its loss gets this one, and knows nothing of
    the trainer, so that a copy of the model is no copy of the run.
    """

    def __init__(self) -> None:
        self.compared: tuple[int, ...] | None = None

    def __call__(
        self, labels: torch.Tensor, logits: torch.Tensor, config: Any, num_items_in_batch: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        """As transformers calls it."""
        labels = labels.to(logits.device)
        return fixed_cross_entropy(masked(logits, labels, self.compared), labels, num_items_in_batch)


class ClassIncremental(Host):
    """Keeps the classes of other tasks out of losses and predictions, where `task_classes` are given.

    In training the classes of the present task are compared, or with replay (and with `methods.joint` or
    `methods.gdumb`) those of all tasks that the run may draw from; in evaluation those of all tasks begun so far.
    Nothing tells a prediction which task a sample is of.
    """

    args: Any
    plan: StreamPlan
    task_classes: TaskClasses | None
    _joined: list[str]
    _class_loss: IncrementalLoss

    def _compare_classes(self, given: Mapping[str, Iterable[int]] | TaskClasses | None) -> None:
        """At construction: checks the classes and gives the model its loss.

        Raises:
            ValueError: naming the task and the rule.
        """
        self._class_loss = IncrementalLoss()
        self.task_classes = given if given is None or isinstance(given, TaskClasses) else TaskClasses(dict(given))
        if self.task_classes is None:
            return
        model: Any = base_of(self._unwrapped())
        outputs: int = model.config.num_labels
        names = self._joined or [task.name for task in self.plan.tasks]
        for name in names:
            classes = self.task_classes.of_tasks([name])
            if not classes:
                raise ValueError(f"task_classes has no class of task {name!r}: it must name some for every task.")
            if classes[-1] >= outputs:
                raise ValueError(
                    f"task_classes of {name!r}: {classes[-1]} must be the number of one of the model's {outputs} "
                    "outputs, which count from 0."
                )
            if len(classes) == 1 and not self.args.replay_fraction and not self._joined:
                logger.warning(
                    "task %r has one class, so that its loss is 0: without replay no update learns it.", name
                )
        if self.args.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.args.label_smoothing_factor} cannot be used with task_classes: it "
                "would spread over the classes of other tasks."
            )
        self._give_loss()

    def _give_loss(self) -> None:
        """Gives the model its loss, also one that `model_init` has made since."""
        if self.task_classes is not None:
            model: Any = base_of(self._unwrapped())
            model.loss_function = self._class_loss

    def learned_tasks(self, step: int) -> list[str]:
        """Names of the tasks that the model of a global step has begun to learn."""
        if step == 0:
            return []
        return self._joined or [task.name for task in self.plan.tasks[: self.plan.task_at(step - 1).index + 1]]

    @contextmanager
    def _comparing(self, tasks: Iterable[str]) -> Iterator[None]:
        before = self._class_loss.compared
        if self.task_classes is not None:
            self._class_loss.compared = self.task_classes.of_tasks(tasks)
        try:
            yield
        finally:
            self._class_loss.compared = before

    def _trained_tasks(self) -> list[str]:
        """Tasks whose classes the next update's batch may hold."""
        if self.args.replay_fraction or run_mode(self.args):
            return self.learned_tasks(self.state.global_step + 1)
        return [self.plan.task_at(self.state.global_step).name]

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """The host's step."""
        with self._comparing(self._trained_tasks()):
            return super().training_step(model, inputs, num_items_in_batch)

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The host's step, its logits without the classes that no task has shown so far."""
        with self._comparing(self.learned_tasks(self.state.global_step)):
            loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
            if self.task_classes is not None and isinstance(logits, torch.Tensor):
                logits = masked(logits, labels, self._class_loss.compared)
            return loss, logits, labels
