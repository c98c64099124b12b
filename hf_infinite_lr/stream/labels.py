"""Labels of samples by which parts, buffers and draws are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

_NUMBERS = "number of the class"  # for a moment: a table that lost its only column would have no rows


def label_names(dataset: Any, column: str) -> dict[Any, str]:
    """Label -> name, of a column that is a `ClassLabel`; else empty."""
    feature = (getattr(dataset, "features", None) or {}).get(column)
    return dict(enumerate(feature.names)) if isinstance(feature, ClassLabel) else {}


def class_of_each(dataset: Any, column: str) -> np.ndarray:
    """
    The class of every sample, by name where the column is a `ClassLabel`: number 3 is another class in every dataset.

    Args:
        dataset (`datasets.Dataset`): A table with the column.
        column (`str`): Of the labels.

    Example:

    ```python
    >>> from datasets import ClassLabel, Dataset
    >>> animals = Dataset.from_dict({"label": [1, 0]}).cast_column("label", ClassLabel(names=["ant", "bee"]))
    >>> class_of_each(animals, "label").tolist()
    ['bee', 'ant']

    ```
    """
    labels = np.asarray(dataset.with_format("numpy")[column][:])
    names = label_names(dataset, column)
    return np.asarray([names.get(label, str(label)) for label in labels.tolist()]) if names else labels


def with_common_labels(datasets: Sequence[Any]) -> list[Any]:
    """
    Tables whose classes are named by text where their `ClassLabel` columns differ, so that one can follow another.

    Streams are left as they are, for their samples are never put into one table; tables that differ are copied.

    Args:
        datasets (`Sequence`): Parts of a mixture.

    Example:

    ```python
    >>> from datasets import ClassLabel, Dataset
    >>> one, other = (Dataset.from_dict({"label": [0]}).cast_column("label", ClassLabel(names=[n])) for n in "ab")
    >>> [part["label"][:] for part in with_common_labels([one, other])]
    [['a'], ['b']]

    ```
    """
    tables = [data for data in datasets if isinstance(data, Dataset)]
    kinds: dict[str, list[Any]] = {}
    for data in tables:
        for column, feature in data.features.items():
            kinds.setdefault(column, []).append(feature)
    differing = [column for column, found in kinds.items() if any(feature != found[0] for feature in found)]
    return [_named(data, differing) if isinstance(data, Dataset) else data for data in datasets]


def _named(data: Dataset, columns: Sequence[str]) -> Dataset:
    for column in columns:
        if label_names(data, column):
            names = class_of_each(data, column).tolist()
            data = data.rename_column(column, _NUMBERS).add_column(column, names).remove_columns(_NUMBERS)
    return data
