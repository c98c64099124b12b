"""Images from the built-in domains, the Hub or local files, in a training and a held-out part."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from hf_infinite_lr.stream.labels import class_of_each
from hf_infinite_lr.stream.pictures import load_pictures
from hf_infinite_lr.stream.reader import is_streaming

from .image_files import fault_of, inspect_image
from .image_source import ImageSource
from .source import Splits

logger = logging.getLogger(__name__)

IMAGE, LABEL = "pixel_values", "label"
"""Columns of loaded images: encoded images under the name of the model's input, and labels where there are some."""


def load_images(source: ImageSource, columns: Sequence[str] = (), *, num_proc: int | None = None) -> Splits:
    """
    Loads the images of a task and holds some of them out.

    Every image of a map-style source is read once to see that it can be, and `datasets` keeps the outcome.

    Args:
        source ([`ImageSource`]): Where they come from.
        columns (`Sequence[str]`): Further columns to keep.
        num_proc (`int`, *optional*): Processes that read.

    Returns:
        [`Splits`]: A training part (a stream if asked for) and a held-out part.

    Raises:
        `ValueError`: If files or columns are missing, an image cannot be read, or a part has no images.
    """
    if source.builtin is not None:
        pictures = load_pictures(source.builtin)
        train, held_out = (_columns(part, source, columns) for part in (pictures.train, pictures.eval))
        return Splits(train, held_out, pictures.fingerprint)
    if source.streaming:
        return _load_stream(source, columns)
    images, places = _read(_rows(source, columns), source, num_proc)
    if source.names_eval_part:
        train, (own, _) = images, _read(_rows(source, columns, held_out=True), source, num_proc)
        held_out = own.select(range(min(len(own), source.num_eval_samples or len(own))))
    else:
        mask = source.held_out(places)
        train, held_out = (images.select(np.flatnonzero(part)) for part in (~mask, mask))
        places = places[~mask]
    return Splits(train, held_out, hashlib.sha256(np.sort(places).tobytes()).hexdigest()[:16])


def _load_stream(source: ImageSource, columns: Sequence[str]) -> Splits:
    train = _rows(source, columns)
    if source.names_eval_part:
        held_out = _rows(source, columns, held_out=True)
    else:
        held_out, train = train, train.skip(source.num_eval_samples)
    if source.skip_unreadable:
        train, held_out = (part.filter(_is_readable, input_columns=IMAGE) for part in (train, held_out))
    return Splits(train, first_of(held_out, source.num_eval_samples, source.name))


def first_of(images: Any, number: int | None, name: str) -> datasets.Dataset:
    """
    The first images of a stream, or all of them, in memory; of a map-style dataset its first rows.

    Raises:
        `ValueError`: If there is none.
    """
    if not is_streaming(images):
        return images.select(range(min(len(images), number or len(images))))
    rows = list(images if number is None else images.take(number))
    if not rows:
        raise ValueError(f"Task {name!r} has no images.")
    return datasets.Dataset.from_list(rows, features=images.features)


def _read(rows: datasets.Dataset, source: ImageSource, num_proc: int | None) -> tuple[datasets.Dataset, np.ndarray]:
    """Reads every image once, of which those that cannot be read are refused or left out; with hashes of the bytes."""
    seen = rows.map(
        inspect_image,
        input_columns=IMAGE,
        remove_columns=rows.column_names,
        num_proc=num_proc,
        desc="Reading every image once",
    )
    faults = np.asarray(seen["fault"][:])
    broken = np.flatnonzero(faults != "")
    if len(broken) and not source.skip_unreadable:
        raise ValueError(
            f"Task {source.name!r}: {len(broken)} of {len(rows)} images cannot be read, the first of them "
            f"{faults[broken[0]]}; mend or remove them, or set skip_unreadable: true."
        )
    if len(broken):
        logger.warning(
            "Task %r: %d of %d images cannot be read and are left out, the first of them %s.",
            *(source.name, len(broken), len(rows), faults[broken[0]]),
        )
    whole = np.flatnonzero(faults == "")
    if not len(whole):
        raise ValueError(f"Task {source.name!r} has no images ({len(rows)} were read).")
    modes, counts = np.unique(np.asarray(seen["mode"][:])[whole], return_counts=True)
    others = {mode: int(count) for mode, count in zip(modes.tolist(), counts, strict=True) if mode != "RGB"}
    if others:
        found = ", ".join(f"{count} {mode}" for mode, count in others.items())
        logger.warning("Task %r: of %d images %s; they are converted.", source.name, len(whole), found)
    return rows.select(whole), np.asarray(seen["place"][:])[whole]


def _is_readable(image: Mapping[str, Any]) -> bool:
    return fault_of(image) is None


def _rows(source: ImageSource, columns: Sequence[str], *, held_out: bool = False) -> Any:
    """One part with the columns `pixel_values`, `label` and further ones."""
    rows = source.read(lambda paths: _from_files(source, paths), held_out=held_out)
    return _columns(rows, source, columns)


def _from_files(source: ImageSource, paths: Sequence[str]) -> Any:
    kinds = {"parquet" if path.endswith(".parquet") else "imagefolder" for path in paths}
    if len(kinds) > 1:
        raise ValueError(f"data_files of task {source.name!r} mixes parquet and image files: give one kind.")
    return datasets.load_dataset(kinds.pop(), data_files=paths, split="train", streaming=source.streaming)


def _columns(rows: Any, source: ImageSource, columns: Sequence[str]) -> Any:
    if rows.column_names is None:
        rows = rows._resolve_features()  # of its first rows
    names = list(rows.column_names)
    if source.image_column not in names:
        raise ValueError(
            f"image_column of task {source.name!r} is {source.image_column!r}, but there is only {', '.join(names)}."
        )
    feature = (rows.features or {}).get(source.image_column)
    if not (feature is None or isinstance(feature, datasets.Image) or _is_encoded(feature)):
        raise ValueError(f"image_column {source.image_column!r} of task {source.name!r} holds {feature}, no images.")
    for column, values in (source.where or {}).items():
        rows = _only(rows, column, values if isinstance(values, (list, tuple)) else [values], source)
    wanted = {source.image_column: IMAGE}
    if source.label_column in names:
        wanted[source.label_column] = LABEL
    for column in columns:
        if column not in (*names, *wanted.values()):
            raise ValueError(
                f"column {column!r} of task {source.name!r} is missing: there is only {', '.join(names)}."
            )
        if column != LABEL and wanted.setdefault(column, column) != column:
            raise ValueError(
                f"column {column!r} of task {source.name!r} is its {wanted[column]} here: write {wanted[column]!r}."
            )
    rows = rows.cast_column(source.image_column, datasets.Image(decode=False)).select_columns(list(wanted))
    return rows.rename_columns({old: new for old, new in wanted.items() if old != new})


def _is_encoded(feature: Any) -> bool:
    """Images as bytes: in a column of its own, or as `datasets` stores them (bytes and path)."""
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, Mapping) and "bytes" in feature


def _only(rows: Any, column: str, values: Sequence[Any], source: ImageSource) -> Any:
    names = list(rows.column_names)
    if column not in names:
        raise ValueError(f"where of task {source.name!r} names {column!r}, but there is only {', '.join(names)}.")
    feature = (rows.features or {}).get(column)
    if isinstance(feature, datasets.ClassLabel):
        for value in values:
            if value not in feature.names and value not in range(feature.num_classes):
                raise ValueError(
                    f"where.{column} of task {source.name!r} has {value!r}, which is no class; there are "
                    f"{', '.join(feature.names[:20])}."
                )
        values = [feature.str2int(value) if isinstance(value, str) else value for value in values]
    allowed = list(values)
    kept = rows.filter(_Among(allowed), input_columns=column)
    if not is_streaming(kept) and not len(kept):
        raise ValueError(f"where of task {source.name!r}: no row has {column} among {allowed}.")
    return kept


@dataclass(frozen=True)
class _Among:
    """A predicate that `datasets` can hash and send to its workers."""

    values: list[Any]

    def __call__(self, value: Any) -> bool:
        return value in self.values


def refuse_unlabelled(images: datasets.Dataset, source: ImageSource) -> None:
    """Refuses images without a class, which some test sets of the Hub mark by -1."""
    labels = images.with_format("arrow")[LABEL][:].to_pylist()
    missing = sum(label is None or label == -1 for label in labels)
    if missing:
        raise ValueError(
            f"{source.name!r}: {missing} of {len(labels)} images have no class in {source.label_column!r} "
            "(label_column)."
        )


def class_names(images: datasets.Dataset) -> np.ndarray:
    """
    The class of every image as text, so that the same class has the same name in every task.

    Raises:
        `KeyError`: If the images have no labels.
    """
    names: np.ndarray = class_of_each(images, LABEL).astype(str)
    return names
