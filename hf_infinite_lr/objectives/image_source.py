"""Where images come from: the keys of an entry of `tasks` or `evaluate_also`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .source import DataSource


@dataclass(frozen=True)
class ImageSource(DataSource):
    """
    Where a task's images come from: the keys of [`DataSource`], of which `builtin` is a domain of [`load_pictures`]
    and `data_files` are parquet, or else image files, whose folders name the labels (as `imagefolder` reads them); and
    these. Of an entry of `evaluate_also` the held-out part is evaluated, and the other one only fits probes.

    Args:
        image_column (`str`, *optional*, defaults to `"image"`): Where the image stands.
        label_column (`str`, *optional*, defaults to `"label"`): Where the class stands, which only probes need.
        where (`Mapping[str, Any]`, *optional*):
            Column -> value or list of values: only these rows, such as `{label: [cat, dog]}`.
        skip_unreadable (`bool`, *optional*, defaults to `False`): Leave out images that cannot be read.

    Example:

    ```python
    >>> ImageSource(name="birds", data_files="birds/**/*.jpg", eval_fraction=0.1).label_column
    'label'

    ```
    """

    image_column: str = "image"
    label_column: str = "label"
    where: Mapping[str, Any] | None = None
    skip_unreadable: bool = False

    rows: ClassVar[str] = "images"
    never_of_builtin: ClassVar[tuple[str, ...]] = ("image_column", "label_column", "skip_unreadable")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where is not None and not isinstance(self.where, Mapping):
            raise ValueError(f"where of task {self.name!r} is {self.where!r} but must map columns to values.")
