"""Which output of a model the methods look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def is_masked_autoencoder(model: nn.Module) -> bool:
    """Whether a model is transformers' `ViTMAEForPreTraining`, also below an adapter."""
    return getattr(getattr(model, "config", None), "model_type", None) == "vit_mae"


@contextmanager
def observed(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects one output tensor from each forward pass inside the block.

    Of a masked autoencoder it is the encoder's output, (samples, visible tokens, features): the decoder is thrown
    away after pre-training. Of a language model it is the logits, (samples, positions, vocabulary).
    """
    encoder = is_masked_autoencoder(model)
    key = "last_hidden_state" if encoder else "logits"
    seen: list[torch.Tensor] = []
    place: Any = model.vit if encoder else model
    handle = place.register_forward_hook(lambda *call: seen.append(call[-1][key]))
    try:
        yield seen
    finally:
        handle.remove()


def with_mask(model: nn.Module, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Inputs that fix the random mask of a masked autoencoder, drawn as the model itself would draw it."""
    if not is_masked_autoencoder(model) or inputs.get("noise") is not None:
        return inputs
    pixels: torch.Tensor = inputs["pixel_values"]
    config: Any = model.config
    count = (pixels.shape[2] // config.patch_size) * (pixels.shape[3] // config.patch_size)
    noise = torch.rand(len(pixels), count, device=pixels.device)
    return {**inputs, "noise": noise}
