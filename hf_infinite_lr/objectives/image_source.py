"""Where images come from: the keys of an entry of `tasks` or `evaluate_also`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SOURCES = ("builtin", "dataset_name", "data_files")


@dataclass(frozen=True)
class ImageSource:
    """
    Where a task's images come from: keys of an entry of `tasks` or `evaluate_also` in the YAML.

    Exactly one of `builtin`, `dataset_name` and `data_files` is given. The held-out part is `eval_split`,
    `eval_data_files`, or images taken out of the training data: the share `eval_fraction` of them, chosen by a hash of
    their bytes, so that more data never moves an image to the other side and equal files stay together; or
    `num_eval_samples` of them (of a stream the first ones). Of an entry of `evaluate_also` the held-out part is
    evaluated, and the other one only fits probes.

    Args:
        name (`str`, *optional*): Name of the task, for messages.
        builtin (`str`, *optional*): A domain of [`load_pictures`].
        dataset_name (`str`, *optional*): A dataset of the Hub or of a folder.
        dataset_config_name (`str`, *optional*): Its configuration.
        split (`str`, *optional*, defaults to `"train"`): Its split to train on.
        revision (`str`, *optional*): Its branch, tag or commit.
        data_files (`str` or `list[str]`, *optional*):
            Files or globs: parquet, or else image files, whose folders name the labels (as `imagefolder` reads them).
        streaming (`bool`, *optional*, defaults to `False`): Read while training instead of before.
        image_column (`str`, *optional*, defaults to `"image"`): Where the image stands.
        label_column (`str`, *optional*, defaults to `"label"`): Where the class stands, which only probes need.
        where (`Mapping[str, Any]`, *optional*):
            Column -> value or list of values: only these rows, such as `{label: [cat, dog]}`.
        skip_unreadable (`bool`, *optional*, defaults to `False`): Leave out images that cannot be read.
        eval_split (`str`, *optional*): Split of `dataset_name` that is held out.
        eval_data_files (`str` or `list[str]`, *optional*): Files that are held out.
        eval_fraction (`float`, *optional*): Share of the images to hold out; 0.05 if nothing else is given.
        num_eval_samples (`int`, *optional*):
            Images to hold out instead of a share; with `eval_split` or `eval_data_files` the first so many of them.

    Example:

    ```python
    >>> ImageSource(name="birds", data_files="birds/**/*.jpg", eval_fraction=0.1).label_column
    'label'

    ```
    """

    name: str = "images"
    builtin: str | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | Sequence[str] | None = None
    streaming: bool = False
    image_column: str = "image"
    label_column: str = "label"
    where: Mapping[str, Any] | None = None
    skip_unreadable: bool = False
    eval_split: str | None = None
    eval_data_files: str | Sequence[str] | None = None
    eval_fraction: float | None = None
    num_eval_samples: int | None = None

    def __post_init__(self) -> None:
        given = [key for key in _SOURCES if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"Task {self.name!r} must give exactly one of {', '.join(_SOURCES)}, not {found}.")
        for key in _FOREIGN[given[0]]:
            if getattr(self, key) != getattr(type(self), key):
                raise ValueError(
                    f"{key} of task {self.name!r} is {getattr(self, key)!r} but does not go with {given[0]}."
                )
        if self.where is not None and not isinstance(self.where, Mapping):
            raise ValueError(f"where of task {self.name!r} is {self.where!r} but must map columns to values.")
        self._check_held_out()

    def _check_held_out(self) -> None:
        parts = [key for key in ("eval_split", "eval_data_files", "eval_fraction") if getattr(self, key) is not None]
        if self.eval_fraction is not None and self.num_eval_samples is not None:
            parts.append("num_eval_samples")
        if len(parts) > 1:
            raise ValueError(f"Task {self.name!r} gives {' and '.join(parts)}, of which only one can hold.")
        if self.eval_fraction is not None and not 0 < self.eval_fraction < 1:
            raise ValueError(
                f"eval_fraction of task {self.name!r} is {self.eval_fraction!r} but must be between 0 and 1."
            )
        number = self.num_eval_samples
        if number is not None and (type(number) is not int or number < 1):
            raise ValueError(
                f"num_eval_samples of task {self.name!r} is {number!r} but must be a positive whole number."
            )
        if self.streaming and not self.names_eval_part and number is None:
            raise ValueError(
                f"Task {self.name!r} streams and must name its held-out part by eval_split, eval_data_files or "
                "num_eval_samples."
            )

    @property
    def names_eval_part(self) -> bool:
        """Whether the held-out part is a part of its own instead of images taken out of the training data."""
        return self.eval_split is not None or self.eval_data_files is not None


_OF_A_DATASET = ("dataset_config_name", "split", "revision", "eval_split")
_FOREIGN = {
    "builtin": (
        *_OF_A_DATASET,
        *("streaming", "image_column", "label_column", "skip_unreadable"),
        *("eval_data_files", "eval_fraction", "num_eval_samples"),
    ),
    "dataset_name": (),
    "data_files": _OF_A_DATASET,
}
