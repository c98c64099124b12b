"""The linear head of a classifier, and the features that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.utils import is_peft_available

HEAD = "classifier"
"""The name that transformers gives to the head of a model for classification."""


def base_of(model: nn.Module) -> nn.Module:
    """The model of transformers below an adapter; any other model as it is."""
    if is_peft_available():
        from peft import PeftModel

        if isinstance(model, PeftModel):
            return model.get_base_model()
    return model


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
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()
