"""End-to-end fine-tuning as a probe: a copy of the encoder learns the classes, the encoder itself stays as it is."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from .classifiers import warmup_cosine

_BATCH, _RATE, _DECAY, _WARMUP = 64, 5e-4, 0.05, 0.1


def finetuned_predictions(
    encoder: nn.Module,
    width: int,
    train: torch.Tensor,
    labels: np.ndarray,
    test: torch.Tensor,
    *,
    num_epochs: int,
    seed: int = 0,
) -> np.ndarray:
    """
    Trains encoder and head together and names the classes of the test images: AdamW at 5e-4 with weight decay 0.05,
    a tenth of the steps warm-up and a cosine, batch 64, a head on the class token that begins at zero.

    Args:
        encoder (`nn.Module`): Images -> hidden states of shape (batch, 1 + tokens, width); it is trained in place,
            so pass a copy.
        width (`int`): Of the hidden states.
        train (`torch.Tensor`): Images, shape (n, channels, size, size), normalised.
        labels (`np.ndarray`): Shape (n,).
        test (`torch.Tensor`): Images.
        num_epochs (`int`): Passes over `train`.
        seed (`int`, *optional*, defaults to 0): Of the order of the images.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    device = next(encoder.parameters()).device
    y = torch.from_numpy(targets)
    head = nn.Linear(width, len(classes)).to(device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    weights = [weight for weight in (*encoder.parameters(), *head.parameters()) if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=_DECAY)
    steps = num_epochs * math.ceil(len(train) / _BATCH)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, max(1, int(_WARMUP * steps)), steps)
    )
    generator = torch.Generator().manual_seed(seed)
    encoder.train()
    for _ in range(num_epochs):
        for rows in torch.randperm(len(train), generator=generator).split(_BATCH):
            scores = head(encoder(train[rows].to(device))[:, 0])
            cross_entropy(scores, y[rows].to(device)).backward()
            optimizer.step()
            optimizer.zero_grad()
            rates.step()
    encoder.eval()
    with torch.no_grad():
        found = [head(encoder(part.to(device))[:, 0]).argmax(dim=1).cpu() for part in test.split(_BATCH)]
    return np.asarray(classes[torch.cat(found).numpy()])
