"""Distant class-incremental streams: classes grouped so that the tasks are far apart (Hu et al. 2022)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from datasets import Dataset, IterableDataset

from hf_infinite_lr.stream.labels import label_names
from hf_infinite_lr.stream.order import generator
from hf_infinite_lr.stream.task import Task

from .classes import ClassGroups, classes_of
from .division import Division, check_num_tasks, column_values, divide

logger = logging.getLogger(__name__)

NUM_RANDOM_SPLITS = 1000
"""Random splits with which a distant one is compared."""

REQUIRED_SHARE = 0.95
"""Share of the random splits above whose mean distance that of a distant split must lie."""

_STARTS = 8
_DISTANT = 6


def split_by_distance(
    dataset: Any,
    num_tasks: int,
    *,
    column: str = "label",
    tree: Mapping[Any, str] | None = None,
    distances: Any = None,
    features: Any = None,
    classes: Sequence[Any] | None = None,
    seed: int = 0,
    name: str = "task",
    **division: Unpack[Division],
) -> list[Task]:
    """Groups classes so that the mean distance between classes of different tasks is as large as found.

    Exactly one of `tree`, `distances` and `features` says how far two classes are from each other. Local search from
    several random starts swaps classes between groups as long as a swap helps. The result is compared with 1,000
    random splits of the same sizes: it lies above 95 % of them, or a warning says that it cannot (few classes have few
    splits); distances that tell no splits apart are refused.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): What is divided.
        num_tasks (`int`): Number of tasks, with as many classes each as any other, or one fewer.
        column (`str`): Column of the labels.
        tree (`dict`, *optional*): Label -> path from the root, such as `{"cat": "animal/mammal"}`; the distance is
            the number of edges between two leaves. Labels of a `ClassLabel` stand by their names.
        distances (*optional*): Matrix of shape (classes, classes), in the order of `classes`; its diagonal does not
            matter.
        features (*optional*): A feature vector for each sample, an array of shape (samples, width) or the name of a
            column; the distance is that of the class means (Euclidean). Not for a stream.
        classes (`Sequence`, *optional*): As in [`split_by_class`].
        seed (`int`): Decides the starts of the search, and what is held out.
        name (`str`): Names the tasks, as in `task-1`.
        **division: As in [`~hf_infinite_lr.stream.builders.division.Division`].

    Raises:
        ValueError: naming the field, its value and the rule.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> data = Dataset.from_dict({"label": ["cat", "car", "dog", "bus"] * 30})
    >>> tree = {"cat": "animal", "dog": "animal", "car": "vehicle", "bus": "vehicle"}
    >>> sorted(task.holds for task in split_by_distance(data, 2, tree=tree))
    ['classes bus, car', 'classes cat, dog']

    ```
    """
    given = {"tree": tree, "distances": distances, "features": features}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise ValueError(f"Give exactly one of tree, distances and features, not {' and '.join(names) or 'none'}.")
    found = classes_of(dataset, column, classes)
    check_num_tasks(num_tasks, len(found), f"classes of column {column!r}")
    if tree is not None:
        words = label_names(dataset, column)
        matrix = tree_distances(tree, [words.get(label, label) for label in found])
    elif distances is not None:
        matrix = _checked(distances, len(found))
    else:
        if isinstance(dataset, IterableDataset):
            raise ValueError("features need all samples, which a streaming dataset does not hold: give distances.")
        matrix = _mean_distances(dataset, column, features, found)
    parts = distant_parts(matrix, num_tasks, seed=seed)
    groups = [[found[place] for place in part] for part in parts]
    rule = ClassGroups.of(dataset, column, groups, name)
    return divide(dataset, rule, seed=seed, **division)


def distant_parts(matrix: np.ndarray, num_tasks: int, *, seed: int = 0) -> list[list[int]]:
    """The places of the classes of each group.

    Args:
        matrix (`np.ndarray`): Distances, of shape (classes, classes).
        num_tasks (`int`): Number of groups.
        seed (`int`): Of the search.

    Raises:
        ValueError: if all splits are equally far apart.
    """
    size = len(matrix)
    labels = np.empty(size, int)
    for number, part in enumerate(np.array_split(np.arange(size), num_tasks)):
        labels[part] = number
    draw = generator(seed, _DISTANT)
    starts = [draw.permutation(labels) for _ in range(_STARTS)]
    best = max(
        (_improved(matrix, start, num_tasks) for start in starts), key=lambda split: mean_distance(matrix, split)
    )
    reached = mean_distance(matrix, best)
    random = (draw.permutation(labels) for _ in range(NUM_RANDOM_SPLITS))
    share = np.mean([mean_distance(matrix, split) < reached - 1e-12 for split in random])
    if num_tasks > 1 and not share:
        raise ValueError(f"The distances of these {size} classes tell no splits apart: all are equally distant.")
    if num_tasks > 1 and share <= REQUIRED_SHARE:
        logger.warning(
            "The most distant split of %d classes lies above %.1f %% of %d random splits: so few differ from it.",
            size,
            100 * share,
            NUM_RANDOM_SPLITS,
        )
    return [np.flatnonzero(best == number).tolist() for number in range(num_tasks)]


def mean_distance(matrix: np.ndarray, split: np.ndarray) -> float:
    """Mean distance between two classes of different parts.

    Args:
        matrix (`np.ndarray`): Distances, of shape (classes, classes).
        split (`np.ndarray`): Number of each class's part.
    """
    apart = split[:, None] != split[None, :]
    return float(matrix[apart].mean()) if apart.any() else 0.0


def _improved(matrix: np.ndarray, split: np.ndarray, num_tasks: int) -> np.ndarray:
    """Swaps two classes of different parts, the best pair first, until no swap brings the parts further apart."""
    split = split.copy()
    scale = float(np.abs(matrix).max()) or 1.0
    while True:
        members = np.eye(num_tasks)[split]
        to_part = matrix @ members  # summed distance of each class to each part
        own = to_part[np.arange(len(split)), split]
        gain = own[:, None] + own[None, :] - to_part[:, split] - to_part[:, split].T + 2 * matrix
        gain[split[:, None] == split[None, :]] = -np.inf
        one, other = np.unravel_index(np.argmax(gain), gain.shape)
        if gain[one, other] <= 1e-9 * scale:
            return split
        split[one], split[other] = split[other], split[one]


def tree_distances(tree: Mapping[Any, str], classes: Sequence[Any]) -> np.ndarray:
    """Edges between leaves of a tree.

    Args:
        tree (`dict`): Class -> path from the root, its parts separated by slashes.
        classes (`Sequence`): The classes, in order.

    Example:

    ```python
    >>> tree_distances({"cat": "animal/mammal", "dog": "animal/mammal", "car": "thing"}, ["cat", "dog", "car"])
    array([[0., 2., 5.],
           [2., 0., 5.],
           [5., 5., 0.]])

    ```
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"tree={tree!r} must be a mapping of labels to paths.")
    missing = [str(label) for label in classes if label not in tree]
    if missing:
        raise ValueError(f"tree says nothing of {len(missing)} classes, of {missing[0]!r} first.")
    paths = [[*str(tree[label]).split("/"), label] for label in classes]
    return np.array([[_edges(one, other) for other in paths] for one in paths], float)


def _edges(one: Sequence[Any], other: Sequence[Any]) -> int:
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    return len(one) + len(other) - 2 * shared


def _checked(distances: Any, size: int) -> np.ndarray:
    matrix = np.array(distances, float)
    if matrix.shape != (size, size) or not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T):
        raise ValueError(
            f"distances of shape {matrix.shape} must be a symmetric matrix of finite numbers, {size} by {size}, one "
            "row for each class."
        )
    np.fill_diagonal(matrix, 0)  # the search counts a class's distance to its own part
    return matrix


def _mean_distances(dataset: Dataset, column: str, features: Any, classes: Sequence[Any]) -> np.ndarray:
    if isinstance(features, str):
        if features not in dataset.column_names:
            raise ValueError(f"features={features!r} is missing: the dataset has {', '.join(dataset.column_names)}.")
        features = column_values(dataset, features)
    vectors = np.asarray(features, float)
    if vectors.ndim != 2 or len(vectors) != len(dataset) or not np.isfinite(vectors).all():
        raise ValueError(
            f"features of shape {vectors.shape} must be one vector of finite numbers for each of the {len(dataset)} "
            "samples."
        )
    numbers = {label: number for number, label in enumerate(classes)}
    labels = np.array([numbers.get(label, -1) for label in column_values(dataset, column)])
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    if not counts.all():
        raise ValueError(
            f"classes: {classes[int(np.argmin(counts))]!r} has no samples, so that features say nothing of it."
        )
    sums = np.zeros((len(classes), vectors.shape[1]))
    np.add.at(sums, labels[labels >= 0], vectors[labels >= 0])
    means = sums / counts[:, None]
    return np.linalg.norm(means[:, None] - means[None, :], axis=-1)
