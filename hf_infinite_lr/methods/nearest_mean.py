"""The nearest class mean on a frozen model: the baseline of continual learning with a pre-trained backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize

from hf_infinite_lr.stream.task_classes import TaskClasses

from .head import class_features, features_of, linear_head, needs_classes
from .method import Learner, Method

MEANS = "class_means.safetensors"
"""Where a release keeps the means, by numbers of classes."""

_UNKNOWN = -5.0  # below every score: squared distances of unit vectors reach 4


@dataclass(frozen=True)
class NearestMeanSettings:
    """`methods.nearest_class_mean` has no keys: write `methods: {nearest_class_mean: {}}`."""


class NearestClassMean(Method):
    """
    Trains nothing: an image is of the class whose mean L2-normalised feature is nearest (arXiv 2210.04428).

    The feature is what the model gives to its linear head, of a `ViTForImageClassification` the class token. Means are
    taken over one pass of each task's training samples, and after the last task they are those that the probe
    `nearest_class_mean_seen` finds. Scores are minus the squared distance; each release holds the means beside the
    model, whose own head nobody has trained.

    As no update changes anything, the fewest steps that the schedule takes will do: `task_steps: [4]`.

    Cost: a forward pass over each task's samples at its end, and another one when the next task begins; in evaluation
    a second forward pass.
    """

    name: ClassVar[str] = "nearest_class_mean"
    reads_samples: ClassVar[bool] = True
    on_device: ClassVar[bool] = False

    def __init__(self, settings: NearestMeanSettings) -> None:
        self.means: dict[int, torch.Tensor] = {}

    def check(self, model: nn.Module, task_classes: TaskClasses | None) -> None:
        """As in [`Method`]."""
        needs_classes(self.name, task_classes)
        linear_head(model, self.name)

    def kept(self, model: nn.Module) -> Iterator[tuple[torch.Tensor, int]]:
        """A mean of each class, for each of whose features the head has one weight."""
        yield linear_head(model, self.name).weight, torch.float32.itemsize

    def freezes(self, name: str, task: int, done: float) -> bool:
        """Everything."""
        return True

    @contextmanager
    def released(self, learner: Learner) -> Iterator[None]:
        """With the means of the task that ends here."""
        before = self.means
        self.means = {**before, **self._means_of(learner)}
        yield
        self.means = before

    def end_task(self, learner: Learner) -> None:
        """Keeps the means of the task."""
        self.means = {**self.means, **self._means_of(learner)}

    def _means_of(self, learner: Learner) -> dict[int, torch.Tensor]:
        features = class_features(learner, linear_head(learner.model, self.name))
        return {number: normalize(part).mean(dim=0) for number, part in features.items()}

    def predict(self, model: nn.Module, inputs: Mapping[str, Any], logits: torch.Tensor) -> torch.Tensor:
        """Minus the squared distances to the means; a class without a mean comes last."""
        scores = torch.full_like(logits, _UNKNOWN)
        if self.means:
            with torch.no_grad(), features_of(linear_head(model, self.name)) as seen:
                model(**inputs)
            known = sorted(self.means)
            means = torch.stack([self.means[number] for number in known]).to(logits.device)
            scores[:, known] = -torch.cdist(normalize(seen[0].float()), means).square()
        return scores.masked_fill(logits.isneginf(), -torch.inf)

    def add_to_release(self, model: nn.Module, directory: Path) -> None:
        """Writes the means."""
        save_file(self.state(), directory / MEANS)

    def state(self) -> dict[str, torch.Tensor]:
        """The means by numbers of classes."""
        return {str(number): mean for number, mean in self.means.items()}

    def load(self, state: Mapping[str, torch.Tensor], learner: Learner) -> None:
        """As in [`Method`]."""
        self.means = {int(number): mean for number, mean in state.items()}
