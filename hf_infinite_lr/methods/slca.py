"""SLCA: a slow backbone, and a classifier that is aligned on Gaussians of all classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from accelerate.utils import broadcast
from torch import nn
from torch.nn.functional import cross_entropy

from hf_infinite_lr.stream.task_classes import TaskClasses

from .head import HEAD, class_features, linear_head, needs_classes
from .method import Learner, Method

_RIDGE, _BATCH, _MOMENTUM, _DECAY = 1e-4, 256, 0.9, 5e-4


@dataclass(frozen=True)
class SLCASettings:
    """Keys of `methods.slca`, with the numbers of the published code.

    Args:
        backbone_rate (`float`, defaults to 0.01): Learning rate of the backbone relative to the head's, which is
            `learning_rate`.
        alignment_rate (`float`, defaults to 0.01): Learning rate of the alignment, which falls along a cosine.
        alignment_epochs (`int`, defaults to 5): Passes of the alignment, each over new draws.
        alignment_samples (`int`, defaults to 256): Draws of each class in a pass.
    """

    backbone_rate: float = 0.01
    alignment_rate: float = 0.01
    alignment_epochs: int = 5
    alignment_samples: int = 256


class Gaussian(NamedTuple):
    """The features of a class.

    Args:
        mean (`torch.Tensor`): Shape (width,), in double precision.
        factor (`torch.Tensor`): The lower Cholesky factor of covariance + 1e-4 I, shape (width, width).
    """

    mean: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> Gaussian:
        """Fits features of shape (samples, width); of a single sample the covariance counts as zero."""
        features = features.double()
        ridge = _RIDGE * torch.eye(features.shape[1], dtype=features.dtype)
        covariance = features.T.cov() if len(features) > 1 else torch.zeros_like(ridge)
        return cls(features.mean(dim=0), torch.linalg.cholesky(covariance + ridge))

    def draw(self, count: int) -> torch.Tensor:
        """Draws from torch's global generator: shape (count, width), in single precision."""
        noise = torch.randn(count, len(self.mean), dtype=self.mean.dtype)
        return (self.mean + noise @ self.factor.T).float()


class SlowLearner(Method):
    """
    Slow learner with classifier alignment (Zhang et al. 2023, arXiv 2303.05118), for a pre-trained backbone.

    The backbone learns at a hundredth of the head's rate. At the end of each task but the first the head is trained
    on draws from a Gaussian of every class so far, so that it learns all classes together; that head is evaluated and
    released. The next task goes on with the head as it was before, as in the published code. Gaussians are fitted
    once, to the features of one pass over a task's training samples when the next task begins: with the **trunk's**
    weights, for the reason that [`~hf_infinite_lr.methods.QuadraticPenalty`] gives; those of the task that ends are
    fitted with the weights that are released.

    Of the published code two refinements are left out: it draws around means that are shrunk by up to a tenth for
    older tasks, and can normalise logits while it aligns.

    Cost: for each class width x (width + 1) numbers in double precision (4.7 MB at width 768), in memory and in every
    checkpoint; no time for a step; at the end of a task a forward pass over its samples and the alignment of the head
    on the CPU, and another such pass when the next task begins.
    """

    name: ClassVar[str] = "slca"
    reads_samples: ClassVar[bool] = True
    changes_release: ClassVar[bool] = True
    on_device: ClassVar[bool] = False

    def __init__(self, settings: SLCASettings) -> None:
        self.settings = settings
        self.gaussians: dict[int, Gaussian] = {}

    def check(self, model: nn.Module, task_classes: TaskClasses | None) -> None:
        """As in [`Method`]."""
        needs_classes(self.name, task_classes)
        linear_head(model, self.name)

    def kept(self, model: nn.Module) -> Iterator[tuple[torch.Tensor, int]]:
        """Mean and factor of each class, for each of whose features the head has one weight."""
        weight = linear_head(model, self.name).weight
        yield weight, torch.float64.itemsize * (weight.shape[1] + 1)

    def rate_of(self, name: str) -> float:
        """Everything but the head is slow."""
        return 1.0 if name.startswith(f"{HEAD}.") else self.settings.backbone_rate

    @contextmanager
    def released(self, learner: Learner) -> Iterator[None]:
        """With the aligned head."""
        if not self.gaussians:
            yield
            return
        head = linear_head(learner.model, self.name)
        own = {name: part.detach().clone() for name, part in head.named_parameters()}
        self._set(head, aligned(head, {**self.gaussians, **self._fitted(learner)}, self.settings))
        yield
        self._set(head, own)

    def end_task(self, learner: Learner) -> None:
        """Keeps the Gaussians of the task's classes."""
        self.gaussians = {**self.gaussians, **self._fitted(learner)}

    def _fitted(self, learner: Learner) -> dict[int, Gaussian]:
        features = class_features(learner, linear_head(learner.model, self.name))
        return {number: Gaussian.of(part) for number, part in features.items()}

    def _set(self, head: nn.Linear, values: Mapping[str, torch.Tensor]) -> None:
        """Writes the first process's values, because sums over features may differ between devices."""
        with torch.no_grad():
            for name, part in head.named_parameters():
                part.copy_(broadcast(values[name].to(part.device)))

    def state(self) -> dict[str, torch.Tensor]:
        """Means and factors."""
        means = {f"mean.{number}": gaussian.mean for number, gaussian in self.gaussians.items()}
        return {**means, **{f"factor.{number}": gaussian.factor for number, gaussian in self.gaussians.items()}}

    def load(self, state: Mapping[str, torch.Tensor], learner: Learner) -> None:
        """As in [`Method`]."""
        numbers = sorted(int(name.removeprefix("mean.")) for name in state if name.startswith("mean."))
        self.gaussians = {number: Gaussian(state[f"mean.{number}"], state[f"factor.{number}"]) for number in numbers}


def aligned(head: nn.Linear, gaussians: Mapping[int, Gaussian], settings: SLCASettings) -> dict[str, torch.Tensor]:
    """
    The head, trained on draws of the given classes and compared among these: SGD with momentum .9 and weight decay
    5e-4, batches of 256, a rate that falls along a cosine from pass to pass. Rows of other classes stay as they are.

    Args:
        head (`nn.Linear`): Is not changed.
        gaussians (`Mapping[int, Gaussian]`): By numbers of outputs.
        settings ([`SLCASettings`]): Rate, passes and draws.

    Returns:
        `dict[str, torch.Tensor]`: `weight` and, where there is one, `bias`, in single precision on the CPU.
    """
    rows = sorted(gaussians)
    parts = {name: part.detach().float().cpu().clone() for name, part in head.named_parameters()}
    trained = {name: part[rows].requires_grad_() for name, part in parts.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=settings.alignment_rate, momentum=_MOMENTUM, weight_decay=_DECAY)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.alignment_epochs)
    targets = torch.arange(len(rows)).repeat_interleave(settings.alignment_samples)
    for _ in range(settings.alignment_epochs):
        drawn = torch.cat([gaussians[number].draw(settings.alignment_samples) for number in rows])
        for places in torch.randperm(len(drawn)).split(_BATCH):
            scores: Any = nn.functional.linear(drawn[places], trained["weight"], trained.get("bias"))
            cross_entropy(scores, targets[places]).backward()
            optimizer.step()
            optimizer.zero_grad()
        rates.step()
    with torch.no_grad():
        for name, part in parts.items():
            part[rows] = trained[name]
    return parts
