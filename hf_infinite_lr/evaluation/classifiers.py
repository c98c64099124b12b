"""Classifiers on frozen features: each takes training features and labels, and names the classes of test features.

scikit-learn is imported where it is used: it takes a second, which a recipe without probes need not wait for.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from .interval import mean_and_half_width

NEIGHBOURS = 20
DRAWS = 10
_EPOCHS, _WARMUP, _BATCH, _RATE = 100, 0.05, 128, 5e-4
# On few samples 100 epochs at this rate do not bring a head to its end: it travels 0.75 in 3,000 updates.
_LEAST_UPDATES, _SPREAD = 3000, 4.0


def linear_probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """
    A linear head by the protocol of Singh et al. 2025 (arXiv 2503.02844, code): 100 epochs, batch 128, rate 5e-4 with
    5 epochs of warm-up and a cosine.

    That code's optimizer and input scaling are not known here: AdamW without decay, and features that are centred and
    brought to one common standard deviation of 4 by the training part, so that their scale decides nothing. On few
    samples there are more epochs, at least 3,000 updates in all.

    Args:
        train (`np.ndarray`): Shape (n, width).
        labels (`np.ndarray`): Shape (n,), of any type that can be sorted.
        test (`np.ndarray`): Shape (m, width).
        seed (`int`, *optional*, defaults to 0): Of the order of the samples; the head begins at zero.

    Returns:
        `np.ndarray`: Shape (m,), of the labels' type.
    """
    middle = train.mean(axis=0)
    scale = _SPREAD / max(float((train - middle).std()), 1e-12)
    classes, targets = np.unique(labels, return_inverse=True)
    x = torch.from_numpy(((train - middle) * scale).astype(np.float32))
    y = torch.from_numpy(targets)
    head = nn.Linear(x.shape[1], len(classes))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    fit_head(head, x, y, seed=seed)
    with torch.no_grad():
        scores = head(torch.from_numpy(((test - middle) * scale).astype(np.float32)))
    return np.asarray(classes[scores.argmax(dim=1).numpy()])


def fit_head(head: nn.Module, x: torch.Tensor, y: torch.Tensor, *, seed: int) -> None:
    """Trains a head on features by the linear probe's protocol."""
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(x) / _BATCH)
    num_epochs = max(_EPOCHS, math.ceil(_LEAST_UPDATES / steps))
    num_steps = num_epochs * steps
    optimizer = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, int(_WARMUP * num_steps), num_steps)
    )
    for _ in range(num_epochs):
        for rows in torch.randperm(len(x), generator=generator).split(_BATCH):
            cross_entropy(head(x[rows]), y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            rates.step()


def warmup_cosine(step: int, num_warmup_steps: int, num_steps: int) -> float:
    """The factor of the rate: a linear rise, then a half cosine to zero."""
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)))


def nearest_neighbours(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The majority among the 20 nearest training features by cosine similarity (fewer where there are fewer)."""
    from sklearn.neighbors import KNeighborsClassifier

    found = KNeighborsClassifier(min(NEIGHBOURS, len(train)), metric="cosine").fit(train, labels)
    return np.asarray(found.predict(test))


def nearest_class_mean(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The nearest class mean of L2-normalised features by Euclidean distance (arXiv 2210.04428)."""
    from sklearn.neighbors import NearestCentroid
    from sklearn.preprocessing import normalize

    if len(classes := np.unique(labels)) == 1:  # scikit-learn wants two
        return np.repeat(classes, len(test))
    with warnings.catch_warnings():
        # It warns of features that do not vary within the classes, which matter to its shrinkage alone.
        warnings.simplefilter("ignore", UserWarning)
        found = NearestCentroid().fit(normalize(train), labels)
    return np.asarray(found.predict(normalize(test)))


def few_shot_accuracy(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    truth: np.ndarray,
    *,
    per_class: int,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Accuracy of a logistic regression that sees a few samples of each class, over several draws of these.

    Where there is one class, that is its answer.

    Args:
        train (`np.ndarray`): Shape (n, width), from which each draw takes `per_class` samples a class.
        labels (`np.ndarray`): Shape (n,).
        test (`np.ndarray`): Shape (m, width).
        truth (`np.ndarray`): Shape (m,), the labels of `test`.
        per_class (`int`): Samples of each class; a class with fewer gives all of its own.
        draws (`int`, *optional*, defaults to 10): How many.
        seed (`int`, *optional*, defaults to 0): Of the draws.

    Returns:
        `tuple[float, float]`: The mean, and half of its 95 % interval.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if len(classes := np.unique(labels)) == 1:  # scikit-learn wants two
        return float(np.mean(truth == classes[0])), 0.0
    random = np.random.RandomState(seed)
    rows = [np.flatnonzero(labels == label) for label in classes]
    accuracies = []
    for _ in range(draws):
        drawn = np.concatenate([random.permutation(own)[:per_class] for own in rows])
        scaler = StandardScaler().fit(train[drawn])
        found = LogisticRegression(max_iter=1000).fit(scaler.transform(train[drawn]), labels[drawn])
        accuracies.append(float(np.mean(found.predict(scaler.transform(test)) == truth)))
    return mean_and_half_width(accuracies)
