"""The probes of a recipe: which there are, and what each makes of the features of a release."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .classifiers import few_shot_accuracy, linear_probe, nearest_class_mean, nearest_neighbours
from .features import Features

FINETUNING = "finetuning"
FEW_SHOT = "few_shot"


@dataclass(frozen=True)
class Probe:
    """
    A classifier on frozen features.

    Args:
        predict (`Callable`): Training features and labels, test features -> predicted labels.
        pooling (`str`, *optional*, defaults to `"cls"`): The class token, or the mean over the `pooled` others.
        seen (`bool`, *optional*, defaults to `False`):
            Whether one classifier learns the classes of all tasks seen so far, and only these are scored. Else each
            column has a classifier of its own, seen or not.
    """

    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    pooling: str = "cls"
    seen: bool = False


CLASSIFIERS: dict[str, Probe] = {
    "linear": Probe(linear_probe),
    "linear_pooled": Probe(linear_probe, pooling="pooled"),
    "linear_seen": Probe(linear_probe, seen=True),
    "knn": Probe(nearest_neighbours),
    "knn_seen": Probe(nearest_neighbours, seen=True),
    "nearest_class_mean": Probe(nearest_class_mean),
    "nearest_class_mean_seen": Probe(nearest_class_mean, seen=True),
}

PROBES = (*CLASSIFIERS, FEW_SHOT, FINETUNING)
"""What `probes` can name. `linear_seen` is the paper's protocol (Singh et al. 2025): all classes seen so far, CLS."""


@dataclass(frozen=True)
class ProbeArguments:
    """
    What is measured before training and at every task's end; the fields are keys of a recipe.

    Args:
        probes (`list[str]`): Of [`PROBES`]; each fills `task_matrix.<name>_accuracy.json`.
        probe_samples (`int`, *optional*): Most training images of a column that probes learn from; all by default.
        few_shot_per_class (`int`, defaults to 5): Training images of each class in `few_shot`.
        finetuning_epochs (`int`, defaults to 10): Of `finetuning`.
        compare_releases (`bool`, defaults to `False`):
            Linear CKA between all releases on each column's held-out part, in `representations.json`.
        sharpness_radius (`float`, defaults to 0):
            Above 0: the rise of the loss under random perturbations of this relative size, in
            `task_matrix.sharpness.json`.
        num_pictures (`int`, defaults to 6): Held-out images of each column in the picture of a release; 0 for none.
    """

    probes: Sequence[str] = field(default_factory=list)
    probe_samples: int | None = None
    few_shot_per_class: int = 5
    finetuning_epochs: int = 10
    compare_releases: bool = False
    sharpness_radius: float = 0.0
    num_pictures: int = 6

    def __post_init__(self) -> None:
        if isinstance(self.probes, str) or not isinstance(self.probes, Sequence):
            raise ValueError(f"probes={self.probes!r} must be a list of names.")
        for name in self.probes:
            if name not in PROBES:
                close = difflib.get_close_matches(str(name), PROBES, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(PROBES)}."
                raise ValueError(f"probes: {name!r} is no probe; {hint}")
        for key, least in (("probe_samples", 2), ("few_shot_per_class", 1), ("finetuning_epochs", 1)):
            value = getattr(self, key)
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(f"{key}={value!r} must be a whole number of {least} or more.")
        if self.num_pictures < 0 or self.sharpness_radius < 0:
            raise ValueError(
                f"num_pictures={self.num_pictures} and sharpness_radius={self.sharpness_radius} must not be negative."
            )


@dataclass(frozen=True)
class Probed:
    """
    One column as probes see it.

    Args:
        train ([`Features`]): To learn from.
        train_labels (`np.ndarray`): Names of classes.
        test ([`Features`]): Held out.
        test_labels (`np.ndarray`): Names of classes.
    """

    train: Features
    train_labels: np.ndarray
    test: Features
    test_labels: np.ndarray


def probe_scores(
    arguments: ProbeArguments, columns: Mapping[str, Probed], learned: Sequence[str]
) -> dict[str, dict[str, float]]:
    """
    Accuracies of all probes on features.

    Args:
        arguments ([`ProbeArguments`]): Which probes.
        columns (`Mapping[str, Probed]`): Features and labels by column.
        learned (`Sequence[str]`): The tasks seen so far.

    Returns:
        `dict`: column -> metric -> value.
    """
    scores: dict[str, dict[str, float]] = {name: {} for name in columns}
    for name in arguments.probes:
        if name == FEW_SHOT:
            for column, probed in columns.items():
                mean, half = few_shot_accuracy(
                    *(probed.train.cls, probed.train_labels, probed.test.cls, probed.test_labels),
                    per_class=arguments.few_shot_per_class,
                )
                scores[column].update(few_shot_accuracy=mean, few_shot_half_width=half)
        elif name in CLASSIFIERS:
            for column, value in _accuracies(CLASSIFIERS[name], columns, learned).items():
                scores[column][f"{name}_accuracy"] = value
    return scores


def _accuracies(probe: Probe, columns: Mapping[str, Probed], learned: Sequence[str]) -> dict[str, float]:
    seen = [name for name in learned if name in columns]
    groups = [seen] if probe.seen else [[name] for name in columns]
    found = {}
    for group in filter(None, groups):
        train = np.concatenate([getattr(columns[name].train, probe.pooling) for name in group])
        labels = np.concatenate([columns[name].train_labels for name in group])
        test = np.concatenate([getattr(columns[name].test, probe.pooling) for name in group])
        predicted = probe.predict(train, labels, test)
        ends = np.cumsum([len(columns[name].test_labels) for name in group])
        for name, part in zip(group, np.split(predicted, ends[:-1]), strict=True):
            found[name] = float(np.mean(part == columns[name].test_labels))
    return found
