"""How much each weight matters to what has been learned: a mean over samples, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .output import observed
from .samples import Samples
from .weights import Weights


def output_norm(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The squared L2 norm of the output of one sample, mean over its tokens (of which a length must not depend).

    The output is the encoder's for a masked autoencoder, as in the published code of Singh et al. 2025. For a
    language model it is the logits and not the last hidden state, because that one leaves an RMS normalisation, which
    gives nearly the same norm to every input, so that the gradient would say little about the layers below.
    """
    with observed(model) as seen:
        model(**inputs)
    return seen[0].float().square().sum(-1).mean()


def sample_loss(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The training loss of one sample with its own labels: minus its log-likelihood, mean over its items."""
    loss: torch.Tensor = model(**inputs)["loss"]
    return loss.float()


Gradient = Callable[[torch.Tensor], torch.Tensor]
IMPORTANCES: dict[str, tuple[Callable[[nn.Module, Mapping[str, Any]], torch.Tensor], Gradient]] = {
    "mas": (output_norm, torch.abs),
    "fisher": (sample_loss, torch.square),
}
"""What is differentiated for each sample, and what its gradient counts for."""


def importance(kind: str, model: nn.Module, weights: Weights, samples: Samples) -> dict[str, torch.Tensor]:
    r"""
    The importance of each weight, in single precision and of the shape that this process holds.

    With the value $v(x)$ of [`output_norm`] for `mas` and of [`sample_loss`] for `fisher`:

    - `mas`: $\Omega = \frac1N \sum_x |\partial v(x) / \partial\theta|$ (Aljundi et al. 2018, arXiv 1711.09601);
    - `fisher`: $\Omega = \frac1N \sum_x (\partial v(x) / \partial\theta)^2$, the diagonal of the empirical Fisher
      information (Kirkpatrick et al. 2017, arXiv 1612.00796).

    Gradients are those of single samples, so that the result does not depend on a batch size or on the number of
    processes. The model is put into evaluation mode, and left there.

    Args:
        kind (`str`): `mas` or `fisher`.
        model (`nn.Module`): The model.
        weights ([`Weights`]): Its parameters.
        samples ([`Samples`]): What to compute it on.
    """
    value, counted = IMPORTANCES[kind]
    model.eval()
    sums = {name: torch.zeros_like(part, dtype=torch.float32) for name, part in weights.parts()}
    for inputs in samples.batches:
        for name, gradient in weights.gradients(value(model, inputs)):
            sums[name] += counted(gradient.float())
    weights.add_over_processes(sums)
    return {name: part / samples.total for name, part in sums.items()}
