"""A quadratic penalty towards earlier weights: MAS, EWC and plain L2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from .importance import importance
from .method import Learner, Method
from .weights import Weights


@dataclass(frozen=True)
class L2Settings:
    """Keys of `methods.l2`.

    Args:
        weight (`float`): λ.
    """

    weight: float


@dataclass(frozen=True)
class FisherSettings:
    """Keys of `methods.fisher`.

    Args:
        weight (`float`): λ. It has no default, because squared gradients have the scale of the model and the loss.
        alpha (`float`, defaults to 0.1): Share of the importance that earlier tasks keep.
        num_samples (`int`, defaults to 256): Samples of each task on which importance is computed.
    """

    weight: float
    alpha: float = 0.1
    num_samples: int = 256


@dataclass(frozen=True)
class MASSettings(FisherSettings):
    """Keys of `methods.mas`: those of [`FisherSettings`], with λ and α of Singh et al. 2025 (code).

    Args:
        weight (`float`, defaults to 0.1): λ.
    """

    weight: float = 0.1


class QuadraticPenalty(Method):
    r"""
    Adds $\lambda \sum_i \Omega_i (\theta_i - \theta^*_i)^2$ to what is minimised.

    $\theta^*$ are the weights with which the next task starts, and importance is computed on them, before its first
    step: the **trunk's** weights, not the annealed ones of the release. The trunk goes on from there; annealed weights
    would pull it to a point where it never was. (With `rewind: none` the next task starts from the annealed weights,
    so there it is those.) The branch of a task has the penalty of the tasks before, like its trunk.

    After each task $\Omega \leftarrow \alpha \Omega + (1 - \alpha) \Omega_{new}$, and $\theta^*$ moves on, so memory
    and time do not grow with the number of tasks. That is a moving average, also for `fisher`: the online EWC of
    Schwarz et al. 2018 (arXiv 1805.06370) adds the whole new importance to a share of the old. The first task's
    importance is taken as it is. For `l2`, $\Omega = 1$.

    Its gradient $2 \lambda \Omega (\theta - \theta^*)$ is added in place once for each update, before clipping, to
    what backward has left: there is no graph, and neither accumulation nor the number of processes matters. The
    logged `loss` is that of the data alone; the value of the penalty is logged beside it.

    Cost: for `mas` and `fisher` 8 bytes per trainable parameter in single precision (4 for the importance, and the
    weight's own size for the reference), for `l2` 4; for each update two passes over the parameters; between tasks
    one forward and backward pass for each of `num_samples` samples. `recipes/benchmarks/methods.py`
    measures it.

    Args:
        name (`str`): `mas`, `fisher` or `l2`.
        settings: [`MASSettings`], [`FisherSettings`] or [`L2Settings`].
    """

    name: ClassVar[str]

    def __init__(self, name: str, settings: FisherSettings | L2Settings) -> None:
        self.name = name  # type: ignore[misc]  # one class under three names
        self.settings = settings
        self.reads_samples = isinstance(settings, FisherSettings)  # type: ignore[misc]  # not so for l2
        self.reference: dict[str, torch.Tensor] = {}
        self.omega: dict[str, torch.Tensor] = {}

    def kept(self, model: nn.Module) -> Iterator[tuple[torch.Tensor, int]]:
        """The reference in the weight's own type, and for `mas` and `fisher` the importance in single precision."""
        omega = torch.float32.itemsize if isinstance(self.settings, FisherSettings) else 0
        return ((weight, weight.element_size() + omega) for weight in model.parameters() if weight.requires_grad)

    def end_task(self, learner: Learner) -> None:
        """Moves the reference to the present weights and mixes their importance into the old one."""
        settings = self.settings
        if isinstance(settings, FisherSettings):
            samples = learner.samples(settings.num_samples)
            for name, part in importance(self.name, learner.model, learner.weights, samples).items():
                old = self.omega.get(name)
                self.omega[name] = (
                    part if old is None else old.mul_(settings.alpha).add_(part, alpha=1 - settings.alpha)
                )
        self.reference = {name: part.clone() for name, part in learner.weights.parts()}

    def pull(self, name: str, weight: torch.Tensor) -> torch.Tensor | None:
        r"""$2 \lambda \Omega (\theta - \theta^*)$."""
        if name not in self.reference:
            return None
        distance = weight.float() - self.reference[name].float()
        if name in self.omega:
            distance *= self.omega[name]
        return distance.mul_(2 * self.settings.weight)

    def value(self, weights: Weights) -> torch.Tensor | None:
        r"""$\lambda \sum_i \Omega_i (\theta_i - \theta^*_i)^2$."""
        if not self.reference:
            return None
        pulls = [(weight, self.pull(name, weight), self.reference[name]) for name, weight in weights.parts()]
        terms = [
            ((weight.float() - there.float()) * pull).sum() / 2 for weight, pull, there in pulls if pull is not None
        ]
        return torch.stack(terms).sum()

    def state(self) -> dict[str, torch.Tensor]:
        """Reference and importance."""
        kept = {f"reference.{name}": part for name, part in self.reference.items()}
        return {**kept, **{f"omega.{name}": part for name, part in self.omega.items()}}

    def load(self, state: Mapping[str, torch.Tensor], learner: Learner) -> None:
        """As in [`Method`]."""
        places = dict(learner.weights.parts())
        self.reference, self.omega = (
            {
                name: state[f"{kind}.{name}"].to(part.device)
                for name, part in places.items()
                if f"{kind}.{name}" in state
            }
            for kind in ("reference", "omega")
        )
