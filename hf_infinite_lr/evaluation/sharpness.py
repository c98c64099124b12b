"""How quickly the loss rises around a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean

import torch
from torch import nn

DRAWS = 3


@contextmanager
def perturbed(model: nn.Module, radius: float, seed: int) -> Iterator[None]:
    r"""
    Moves every trained tensor $w$ by $r \|w\| g / \|g\|$ with a Gaussian $g$; on leaving, the weights are back, bit
    for bit.

    Args:
        model (`nn.Module`): Changed in place. Its parameters must be whole on this process.
        radius (`float`): r, relative to the norm of each tensor.
        seed (`int`): Of g.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = [(weight, weight.detach().clone()) for weight in model.parameters() if weight.requires_grad]
    try:
        with torch.no_grad():
            for weight, own in kept:
                step = torch.randn(weight.shape, generator=generator).to(weight)
                weight.add_(step * (radius * own.norm() / step.norm()))
        yield
    finally:
        with torch.no_grad():
            for weight, own in kept:
                weight.copy_(own)


def sharpness(
    model: nn.Module, loss: Callable[[], float], *, radius: float, draws: int = DRAWS, seed: int = 0
) -> float:
    """
    The mean rise of the loss under random perturbations of a given relative size.

    Args:
        model (`nn.Module`): The model that `loss` asks.
        loss (`Callable[[], float]`): The loss on fixed data, with fixed masks.
        radius (`float`): As in [`perturbed`].
        draws (`int`, *optional*, defaults to 3): Perturbations.
        seed (`int`, *optional*, defaults to 0): Of the first one.
    """
    losses = []
    for draw in range(draws):
        with perturbed(model, radius, seed + draw):
            losses.append(loss())
    return fmean(losses) - loss()
