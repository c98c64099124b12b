"""LAE: an adapter that learns, its slow average, and predictions of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from hf_infinite_lr.stream.task_classes import TaskClasses

from .head import adapter_model, needs_classes
from .method import Learner, Method

OFFLINE = "offline"
"""Where a release keeps the averaged adapter, below the adapter's own files."""

_HEAD = ".modules_to_save."


@dataclass(frozen=True)
class LAESettings:
    """Keys of `methods.lae`, with the numbers of the published code.

    Args:
        decay (`float`, defaults to 0.9999): Of the moving average, for each update.
        frozen_share (`float`, defaults to 0.6): Share of each later task's updates that train the head alone: three
            epochs of five.
    """

    decay: float = 0.9999
    frozen_share: float = 0.6


class AdapterEnsemble(Method):
    """
    Learning, accumulation, ensemble (Gao et al. 2023, arXiv 2303.10070), for an adapter on a pre-trained backbone.

    The recipe's `lora` is the **online** adapter; the paper's is `{r: 5, target_modules: [k_proj, v_proj],
    layers_to_transform: [0, 1, 2, 3, 4]}`; its scale is learned from 1 on in the published code, and here it stays at
    1 with `lora_alpha: 5`. Where the second task begins, a copy of it becomes the **offline** one, which from then on
    is its moving average. A prediction is the element-wise maximum of the softmaxes with either adapter, over the
    classes seen so far; both share one head. In every later task the online adapter is frozen at first.

    Like every state of a run, the average of a branch goes with the branch: the next task goes on with the trunk's.
    A release holds the online adapter, and the offline one in `offline/`.

    Cost: one copy of the adapter; for an update one pass over it; in evaluation a second forward pass.
    """

    name: ClassVar[str] = "lae"
    follows_updates: ClassVar[bool] = True

    def __init__(self, settings: LAESettings) -> None:
        self.settings = settings
        self.offline: dict[str, torch.Tensor] = {}

    def check(self, model: nn.Module, task_classes: TaskClasses | None) -> None:
        """As in [`Method`]."""
        needs_classes(self.name, task_classes)
        adapter_model(model, self.name)

    def kept(self, model: nn.Module) -> Iterator[tuple[torch.Tensor, int]]:
        """The offline adapter."""
        trained = ((name, part) for name, part in model.named_parameters() if part.requires_grad)
        return ((part, part.element_size()) for name, part in trained if _HEAD not in name)

    def freezes(self, name: str, task: int, done: float) -> bool:
        """The adapter, in the first part of every later task."""
        return task > 0 and done < self.settings.frozen_share and _HEAD not in name

    def end_task(self, learner: Learner) -> None:
        """After the first task the offline adapter is a copy of the online one."""
        if not self.offline:
            self.offline = {name: part.clone() for name, part in self._online(learner)}

    def _online(self, learner: Learner) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, part) for name, part in learner.weights.parts() if _HEAD not in name)

    def end_update(self, learner: Learner) -> None:
        """Moves the average."""
        if self.offline:
            for name, part in self._online(learner):
                self.offline[name].mul_(self.settings.decay).add_(part, alpha=1 - self.settings.decay)

    def predict(self, model: nn.Module, inputs: Mapping[str, Any], logits: torch.Tensor) -> torch.Tensor:
        """The logarithm of the larger probability of each class."""
        if not self.offline:
            return logits
        with torch.no_grad(), self._offline_in(model):
            other = model(**inputs)["logits"].float().masked_fill(logits.isneginf(), -torch.inf)
        return torch.maximum(logits.log_softmax(-1), other.log_softmax(-1))

    @contextmanager
    def _offline_in(self, model: nn.Module) -> Iterator[None]:
        places = dict(model.named_parameters())
        online = {name: places[name].data for name in self.offline}
        for name, part in self.offline.items():
            places[name].data = part
        try:
            yield
        finally:
            for name, part in online.items():
                places[name].data = part

    def add_to_release(self, model: nn.Module, directory: Path) -> None:
        """Saves the offline adapter as PEFT saves one."""
        if self.offline:
            with self._offline_in(model):
                adapter_model(model, self.name).save_pretrained(str(directory / OFFLINE))
            (directory / OFFLINE / "README.md").unlink()  # PEFT's card, which names where the base model lay

    def state(self) -> dict[str, torch.Tensor]:
        """The offline adapter."""
        return dict(self.offline)

    def load(self, state: Mapping[str, torch.Tensor], learner: Learner) -> None:
        """As in [`Method`]."""
        devices = {name: part.device for name, part in learner.weights.parts()}
        self.offline = {name: part.to(devices[name]) for name, part in state.items()}
