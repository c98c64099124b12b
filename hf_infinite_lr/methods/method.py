"""What a training loop asks of a method that fights forgetting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from hf_infinite_lr.stream.task_classes import TaskClasses

from .samples import Samples
from .weights import Weights


@dataclass(frozen=True)
class Learner:
    """What is being trained, as a method sees it.

    Args:
        model (`nn.Module`): The model without the wrappers of data parallelism and compilation.
        weights ([`Weights`]): Its trainable parameters, as far as this process holds them.
        optimizer (`torch.optim.Optimizer`): Not wrapped.
        samples (`Callable`): `(count) ->` [`Samples`]: the first `count` training samples of the task that has just
            ended, or all where there are fewer.
        one_pass (`Callable`): `(size) ->` an iterable of batches of up to `size` samples on the model's device: one
            pass over the task that has just ended, all of it on every process.
    """

    model: nn.Module
    weights: Weights
    optimizer: torch.optim.Optimizer
    samples: Callable[[int], Samples]
    one_pass: Callable[[int], Iterable[Mapping[str, Any]]]


class Method(ABC):
    """Keeps what earlier tasks have taught. Any number of methods act together, and none of them knows the others.

    Whatever a method keeps is in its state, so that a run that was killed and resumed is bit for bit an undisturbed
    one. Before the first task has ended, all hooks but [`~Method.begin`] do nothing.
    """

    name: ClassVar[str]
    """The key of `methods`."""

    on_device: ClassVar[bool] = True
    """Whether what it keeps lies on the model's device, and not in the memory of the machine."""

    @abstractmethod
    def kept(self, model: nn.Module) -> Iterator[tuple[torch.Tensor, int]]:
        """What it holds from the end of the first task on.

        Args:
            model (`nn.Module`): As in [`Learner`]; its tensors need no memory.

        Yields:
            `tuple[torch.Tensor, int]`: a parameter or buffer, and the bytes that are kept for each of its elements.
        """

    inputs: ClassVar[Mapping[str, Any]] = {}
    """What the model is called with besides its batch while [`~Method.compares_outputs`]."""

    reads_samples: ClassVar[bool] = False
    """Whether [`~Method.end_task`] reads samples of the task."""

    follows_updates: ClassVar[bool] = False
    """Whether the state changes with every update, so that it comes back where the trunk does."""

    changes_release: ClassVar[bool] = False
    """Whether [`~Method.released`] changes weights."""

    def check(self, model: nn.Module, task_classes: TaskClasses | None) -> None:  # noqa: B027  # as a rule all will do
        """Refuses a model that it cannot work with, before any work.

        Args:
            model (`nn.Module`): As in [`Learner`].
            task_classes ([`~hf_infinite_lr.stream.task_classes.TaskClasses`], *optional*): Of a class-incremental run.

        Raises:
            ValueError: naming the method and the rule.
        """

    def rate_of(self, name: str) -> float:
        """The factor by which a parameter's learning rate differs from `learning_rate`."""
        return 1.0

    def freezes(self, name: str, task: int, done: float) -> bool:
        """Whether an update leaves a parameter as it is.

        Args:
            name (`str`): Of the parameter.
            task (`int`): Number of the present task, from 0.
            done (`float`): Share of the task's batches that lie behind, in [0, 1).
        """
        return False

    @property
    def compares_outputs(self) -> bool:
        """Whether [`~Method.extra_loss`] has something to say now."""
        return False

    def begin(self, learner: Learner) -> None:  # noqa: B027  # most methods have nothing to do here
        """Called once, before the first step of a run that starts afresh."""

    @abstractmethod
    def end_task(self, learner: Learner) -> None:
        """Called between two tasks, with the weights that the next task starts from, and before its first step."""

    def extra_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        output: torch.Tensor,
        num_items: torch.Tensor | int | None,
        outputs: Mapping[str, Any],
    ) -> torch.Tensor:
        """A term that is added to the loss of a micro-batch; its gradient flows.

        Args:
            model (`nn.Module`): As in [`Learner`].
            inputs (`Mapping`): What the model was called with.
            output (`torch.Tensor`): What [`~hf_infinite_lr.methods.output.observed`] saw of it.
            num_items (`int` or `torch.Tensor`, *optional*): Items of the whole batch, by which sums are divided.
            outputs (`Mapping`): All that the model has returned.
        """
        raise NotImplementedError

    def end_update(self, learner: Learner) -> None:  # noqa: B027  # few methods follow single updates
        """Called after every update, of the trunk and of branches."""

    @contextmanager
    def released(self, learner: Learner) -> Iterator[None]:
        """Around evaluation and release at a task's end: inside, the model is what is released.

        Randomness in it is that of the seed and the task alone.
        """
        yield

    def predict(self, model: nn.Module, inputs: Mapping[str, Any], logits: torch.Tensor) -> torch.Tensor:
        """Scores of classes in evaluation, whose softmax is the prediction; by default the model's own.

        Args:
            model (`nn.Module`): As in [`Learner`].
            inputs (`Mapping`): What the model was called with.
            logits (`torch.Tensor`): Shape (samples, classes); minus infinity for a class that is not compared.
        """
        return logits

    def add_to_release(self, model: nn.Module, directory: Path) -> None:  # noqa: B027  # most releases are the model
        """Writes beside a release what its predictions need besides the model; called on the writing process."""

    def pull(self, name: str, weight: torch.Tensor) -> torch.Tensor | None:
        """A gradient that depends on a weight alone, in single precision; added once for each update.

        Args:
            name (`str`): Of the parameter.
            weight (`torch.Tensor`): This process's part of it.
        """
        return None

    def value(self, weights: Weights) -> torch.Tensor | None:
        """The penalty whose gradient [`~Method.pull`] is, summed over the parts that this process holds."""
        return None

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """All that a resumed run needs to go on, by names of its own."""

    @abstractmethod
    def load(self, state: Mapping[str, torch.Tensor], learner: Learner) -> None:
        """Takes a state back; an empty one is that of a run before the end of its first task."""
