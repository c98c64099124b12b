"""The whole weights of a model of which each process holds a shard."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def is_cut(model: nn.Module) -> bool:
    """Whether torch's `fully_shard` (FSDP2) has cut the weights of a model."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, whole on every process; all processes take part.

    Args:
        model (`nn.Module`): Without its wrappers.
    """
    with torch.no_grad():
        return {
            name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            for name, tensor in model.state_dict().items()
        }
