"""Learning without forgetting: the model keeps saying what it said at the end of the task before."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from hf_infinite_lr.stream.task_classes import TaskClasses

from .head import base_of
from .method import Learner, Method
from .output import is_masked_autoencoder, observed
from .weights import all_tensors, copy_tensors

_NEXT_TOKEN = ("ForCausalLM", "ForConditionalGeneration")  # loss types of transformers


@dataclass(frozen=True)
class LwFSettings:
    """Keys of `methods.lwf`.

    Args:
        weight (`float`, defaults to 0.5): α. Singh et al. 2025 (code) tried .25, .5 and .75.
    """

    weight: float = 0.5


class LearningWithoutForgetting(Method):
    r"""
    Adds α times a distance between the outputs of the model and of its copy from the end of the task before.

    - Masked autoencoders: $1 - \cos(f_{old}, f)$ of the encoder's tokens, over the **feature axis**, mean over tokens
      and samples, with **the same random mask** for both models. (The published code of Singh et al. 2025 gives the
      two models unrelated masks and takes the cosine over the batch axis; here it is done as the paper means it.)
    - Language models: $KL(p_{old} \| p)$ of the next token, in nats per predicted token like the loss, so that α
      weighs like with like (Li and Hoiem 2016, arXiv 1606.09282, without their temperature).

    The copy is frozen, without dropout, and made of the weights with which the next task starts: the **trunk's**, for
    the reason that [`QuadraticPenalty`] gives. The logged `loss` has the term in it; the term is logged beside it.

    Cost: one more copy of the weights (4 bytes per parameter in single precision, frozen ones included), and for each
    micro-batch one more forward pass without a graph, about a third of a training step.
    `recipes/benchmarks/methods.py` measures it.

    Args:
        settings ([`LwFSettings`]): Its keys.
    """

    name: ClassVar[str] = "lwf"

    def __init__(self, settings: LwFSettings) -> None:
        self.settings = settings
        self.teacher: nn.Module | None = None

    def check(self, model: nn.Module, task_classes: TaskClasses | None) -> None:
        """Its distances are those of masked autoencoders and of language models."""
        if task_classes is not None:
            raise ValueError("methods.lwf cannot be used for classification: it distils encoders and language models.")
        base: Any = base_of(model)
        loss = getattr(base, "loss_type", None) or _NEXT_TOKEN[0]  # transformers' own default
        in_two = getattr(getattr(base, "config", None), "is_encoder_decoder", False)
        if not is_masked_autoencoder(model) and (loss not in _NEXT_TOKEN or in_two):
            raise ValueError(
                f"methods.lwf cannot be used with a {type(base).__name__}: it knows the distance between masked "
                "autoencoders, and between decoders that predict the next token."
            )

    @property
    def compares_outputs(self) -> bool:
        """As soon as there is a task before."""
        return self.teacher is not None

    def kept(self, model: nn.Module) -> Iterator[tuple[torch.Tensor, int]]:
        """The teacher: all of the model."""
        return ((part, part.element_size()) for part in all_tensors(model).values())

    def end_task(self, learner: Learner) -> None:
        """The model becomes the teacher of the next task."""
        if self.teacher is None:
            self._copy(learner.model)
        else:
            copy_tensors(all_tensors(learner.model), self.teacher)

    def _copy(self, model: nn.Module) -> nn.Module:
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()
        return self.teacher

    def extra_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        output: torch.Tensor,
        num_items: torch.Tensor | int | None,
        outputs: Mapping[str, Any],
    ) -> torch.Tensor:
        """α times the distance."""
        assert self.teacher is not None
        with torch.no_grad(), observed(self.teacher) as seen:
            self.teacher(**inputs)
        if is_masked_autoencoder(model):
            distance = (1 - functional.cosine_similarity(seen[0].float(), output.float(), dim=-1)).mean()
        else:
            distance = divergence(seen[0], output, inputs.get("labels"), num_items)
        return self.settings.weight * distance

    def state(self) -> dict[str, torch.Tensor]:
        """The teacher's weights."""
        return {} if self.teacher is None else all_tensors(self.teacher)

    def load(self, state: Mapping[str, torch.Tensor], learner: Learner) -> None:
        """As in [`Method`]."""
        self.teacher = None
        if state:
            copy_tensors(state, self._copy(learner.model))


def divergence(
    teacher: torch.Tensor,
    student: torch.Tensor,
    labels: torch.Tensor | None = None,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """KL(teacher || student) of the next token in nats per predicted token.

    Args:
        teacher (`torch.Tensor`): Logits, (samples, positions, vocabulary).
        student (`torch.Tensor`): Logits of the same shape.
        labels (`torch.Tensor`, *optional*): (samples, positions); what is predicted at -100 does not count.
        num_items (`int` or `torch.Tensor`, *optional*): Predicted tokens of the whole batch, by which the sum is
            divided as the loss is; by default those of this micro-batch.
    """
    old, new = (logits[:, :-1].float().log_softmax(-1) for logits in (teacher, student))
    each = functional.kl_div(new, old, log_target=True, reduction="none").sum(-1)
    counted = torch.ones_like(each) if labels is None else (labels[:, 1:] != -100).to(each.dtype)
    return (each * counted).sum() / (counted.sum() if num_items is None else num_items)
