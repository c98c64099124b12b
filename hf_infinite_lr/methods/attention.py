"""`attention_preserving`: fine-tuning that leaves a vision transformer's attention where pre-training has put it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from hf_infinite_lr.stream.task_classes import TaskClasses

from .head import adapter_model
from .method import Learner, Method

_LEAST = 1e-8  # of a probability whose logarithm is taken
_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout")  # after which transformers returns the maps


@dataclass(frozen=True)
class AttentionSettings:
    """Keys of `methods.attention_preserving`.

    Args:
        weight (`float`, defaults to 1.0): Of the penalty, beside a loss in nats.
    """

    weight: float = 1.0


class AttentionPreserving(Method):
    r"""
    Adds a multiple of $KL(A_0 \| A)$ to the loss: how far the attention maps A have moved from the pre-trained A_0.

    **Our construction, after the abstract of the GLAD paper** (Yoon et al. 2023, arXiv 2306.12026) and with its aim: a
    fine-tuning that is competitive on its task and whose backbone is still a good pre-trained model. That paper's
    equations are not known here, and nothing of them is claimed. The thought is that where a transformer looks is the
    general part of what it has learned, and what it reads there the part that a task may change: low-rank adapters on
    the attention's features (`lora: {target_modules: [v_proj, o_proj]}`) solve the task, and the penalty, a mean over
    layers, heads, queries and images in nats, holds the maps of all layers near those of the same images without the
    adapter. The backbone is then the one of `merge_releases: true`.

    The maps have to be computed openly, so it needs `attn_implementation: eager`. It acts from the first step, and its
    reference is always the pretrained model.

    Cost: for each micro-batch a forward pass without a graph, and the maps of both passes (layers x heads x tokens^2
    numbers for each image, four bytes each in single precision).
    """

    name: ClassVar[str] = "attention_preserving"
    inputs: ClassVar[Mapping[str, Any]] = {"output_attentions": True}

    def __init__(self, settings: AttentionSettings) -> None:
        self.settings = settings

    def check(self, model: nn.Module, task_classes: TaskClasses | None) -> None:
        """As in [`Method`]."""
        config: Any = adapter_model(model, self.name).get_base_model().config
        if config._attn_implementation != "eager":
            raise ValueError(
                f"methods.{self.name} needs attn_implementation='eager', because "
                f"{config._attn_implementation!r} does not return its attention maps."
            )
        for field in _DROPOUTS:
            if value := getattr(config, field, 0.0):
                raise ValueError(
                    f"methods.{self.name} cannot be used with {field}={value} of the model, because maps that are "
                    "dropped at random differ also where the weights are the same; set it to 0."
                )

    def kept(self, model: nn.Module) -> Iterator[tuple[torch.Tensor, int]]:
        """Nothing: without its adapter the model is its own reference."""
        return iter(())

    @property
    def compares_outputs(self) -> bool:
        """Always."""
        return True

    def end_task(self, learner: Learner) -> None:
        """Nothing: the reference stays the pretrained model."""

    def extra_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        output: torch.Tensor,
        num_items: torch.Tensor | int | None,
        outputs: Mapping[str, Any],
    ) -> torch.Tensor:
        """The weighted divergence of a micro-batch."""
        adapted = adapter_model(model, self.name)
        was_training = model.training
        model.eval()
        with torch.no_grad(), adapted.disable_adapter():
            before = model(**inputs)["attentions"]
        model.train(was_training)
        each = torch.stack([divergence(old, new) for old, new in zip(before, outputs["attentions"], strict=True)])
        total = each.mean(dim=0).sum() / (each.shape[1] if num_items is None else num_items)
        return self.settings.weight * total

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing."""
        return {}

    def load(self, state: Mapping[str, torch.Tensor], learner: Learner) -> None:
        """Nothing to take back."""


def divergence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """KL(before || after) of attention maps in nats, mean over heads and queries.

    Args:
        before (`torch.Tensor`): Probabilities, shape (images, heads, queries, keys).
        after (`torch.Tensor`): Of the same shape.

    Returns:
        `torch.Tensor`: Shape (images,).
    """
    old, new = (maps.float().clamp_min(_LEAST) for maps in (before, after))
    return (old * (old.log() - new.log())).sum(-1).mean(dim=(1, 2))
