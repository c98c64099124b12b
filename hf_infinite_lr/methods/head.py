"""The parts of a classifier that methods look at: its linear head, the features that it reads, its adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.utils import is_peft_available

from hf_infinite_lr.stream.task_classes import TaskClasses

from .method import Learner

if TYPE_CHECKING:
    from peft import PeftModel

HEAD = "classifier"
"""The name that transformers gives to the head of a model for classification."""

_BATCH = 64  # images at once, where nothing is trained


def base_of(model: nn.Module) -> nn.Module:
    """The model of transformers below an adapter; any other model as it is."""
    if is_peft_available():
        from peft import PeftModel

        if isinstance(model, PeftModel):
            return model.get_base_model()
    return model


def adapter_model(model: nn.Module, method: str) -> PeftModel:
    """The model, which must have an adapter of PEFT.

    Raises:
        ValueError: if it has none.
    """
    if is_peft_available():
        from peft import PeftModel

        if isinstance(model, PeftModel):
            return model
    raise ValueError(f"methods.{method} needs an adapter: give lora, such as lora: {{r: 5}}.")


def linear_head(model: nn.Module, method: str) -> nn.Linear:
    """The head of a model without an adapter.

    Args:
        model (`nn.Module`): Without the wrappers of data parallelism.
        method (`str`): Who asks, for the message.

    Raises:
        ValueError: if the model has no linear head of this name.
    """
    head: Any = dict(model.named_children()).get(HEAD)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"methods.{method} needs a model whose {HEAD!r} is a linear layer, such as ViTForImageClassification; "
            f"{type(model).__name__} has none."
        )
    return head


@contextmanager
def features_of(head: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects what each forward pass inside the block gives to the head: shape (samples, width)."""
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda *call: seen.append(call[1][0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def class_features(learner: Learner, head: nn.Module) -> dict[int, torch.Tensor]:
    """The features of one pass over the training samples of the task that has just ended, by class, on the CPU.

    Args:
        learner ([`Learner`]): Its model is put into evaluation mode, and left there.
        head (`nn.Module`): Of the model.

    Returns:
        `dict[int, torch.Tensor]`: Shape (samples of the class, width), in single precision.
    """
    found: dict[int, list[torch.Tensor]] = {}
    learner.model.eval()
    with torch.no_grad(), features_of(head) as seen:
        for batch in learner.one_pass(_BATCH):
            learner.model(**batch)
            features = seen.pop().float().cpu()
            for number in batch["labels"].unique().tolist():
                found.setdefault(number, []).append(features[(batch["labels"] == number).cpu()])
    return {number: torch.cat(found[number]) for number in sorted(found)}


def needs_classes(method: str, task_classes: TaskClasses | None) -> None:
    """Refuses a run that does not say which classes its tasks have."""
    if task_classes is None:
        raise ValueError(
            f"methods.{method} is for class-incremental classification: use objective: image_classification, or give "
            "task_classes to the trainer."
        )
