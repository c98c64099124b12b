"""What every objective over images shares: where they come from, how they are augmented, and their stand-ins."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import ViTImageProcessorPil

from hf_infinite_lr.stream.pictures import png

from .image_batches import ImageBatches
from .image_source import ImageSource
from .images import LABEL, load_images
from .mae_model import build_processor, num_patches
from .model_source import ModelSource
from .objective import Objective
from .source import Splits


@dataclass(frozen=True)
class AugmentationArguments:
    """
    How images become samples; the fields are keys of a recipe.

    Args:
        smallest_crop (`float`, defaults to 1.0):
            Least share of an image's area in its random crop; 1 takes the largest centred square (0.2 in He et al.
            2022).
        horizontal_flip (`bool`, defaults to `False`): Mirror half of the training images.
        image_mean (`list[float]`, *optional*): Of each channel, in [0, 1]; the pretrained model's, or else 0.5.
        image_std (`list[float]`, *optional*): Of each channel; the pretrained model's, or else 0.5.
        preprocessing_num_workers (`int`, *optional*): Processes that read every image once at the start.
    """

    smallest_crop: float = 1.0
    horizontal_flip: bool = False
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    preprocessing_num_workers: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.smallest_crop <= 1:
            raise ValueError(f"smallest_crop={self.smallest_crop!r} must be above 0 and at most 1.")


class ImageObjective(Objective):
    """An objective whose entries are keys of [`ImageSource`], over a vision transformer."""

    def __init__(
        self,
        options: Mapping[type, Any],
        tasks: Sequence[Mapping[str, Any]],
        evaluate_also: Sequence[Mapping[str, Any]],
    ) -> None:
        self.augmentation: AugmentationArguments = options[AugmentationArguments]
        self.source: ModelSource = options[ModelSource]
        self._tasks = {entry["name"]: ImageSource.of(entry, "tasks", self.lengths) for entry in tasks}
        self._held_out = {entry["name"]: ImageSource.of(entry, "evaluate_also", ()) for entry in evaluate_also}
        self._train: list[Any] = []  # of the column whose held-out part comes next

    @property
    @abstractmethod
    def config(self) -> Any:
        """The model's configuration."""

    @cached_property
    def processor(self) -> ViTImageProcessorPil:
        """What every release carries, so that its inputs can be made again."""
        options = self.augmentation
        return build_processor(self.source, self.config, options.image_mean, options.image_std)

    @cached_property
    def images(self) -> ImageBatches:
        """Makes batches of images, of training and of held-out samples."""
        mean, std = tuple(self.processor.image_mean), tuple(self.processor.image_std)
        for key, values in (("image_mean", mean), ("image_std", std)):
            if len(values) != self.config.num_channels:
                raise ValueError(f"{key}={list(values)} must have one value for each of {self.config.num_channels}.")
        return ImageBatches(
            image_size=self.config.image_size,
            num_patches=num_patches(self.config),
            mean=mean,
            std=std,
            smallest_crop=self.augmentation.smallest_crop,
            flip=self.augmentation.horizontal_flip,
        )

    @property
    @abstractmethod
    def collate(self) -> Any:
        """Makes batches of samples."""

    def is_streaming(self, name: str) -> bool:
        """Whether a task's images are read while training."""
        return self._tasks[name].streaming

    def load(self, name: str, columns: Sequence[str] = ()) -> Splits:
        """Loads a task's images."""
        return self._load(self._tasks[name], columns)

    def load_held_out(self, name: str) -> Any:
        """Loads images that are only evaluated on."""
        found = self._load(self._held_out[name])
        self._train.append(found.train)
        return found.eval

    def _load(self, source: ImageSource, columns: Sequence[str] = ()) -> Splits:
        # What the model cannot take is refused before any data is read.
        _ = self.collate
        with source.naming_faults():
            found = load_images(source, columns, num_proc=self.augmentation.preprocessing_num_workers)
        self.check_images(found, source)
        return found

    def check_images(self, found: Splits, source: ImageSource) -> None:  # as a rule all will do
        """Refuses images that this objective cannot use."""

    def fingerprint(self, splits: Splits) -> str | None:
        """Of all images, as samples of this recipe; None for a stream."""
        if splits.fingerprint is None:
            return None
        return hashlib.sha256(f"{splits.fingerprint} {self.collate}".encode()).hexdigest()[:16]

    @classmethod
    def stand_in(cls, entry: Mapping[str, Any], columns: Mapping[str, Sequence[Any]], folder: Path) -> dict[str, Any]:
        """Images of noise in two classes, as a parquet file with the columns that the entry names."""
        source = ImageSource.of(entry, "tasks", cls.lengths)
        number = len(next(iter(columns.values()), range(8)))
        random = np.random.RandomState(0)
        images = [{"bytes": png(random.randint(0, 256, (40, 48, 3), np.uint8)), "path": None} for _ in range(number)]
        table: dict[str, Any] = {source.image_column: images, source.label_column: [n // 2 % 2 for n in range(number)]}
        for column, values in (source.where or {}).items():
            among = values if isinstance(values, (list, tuple)) else [values]
            table[column] = [among[n % len(among)] for n in range(number)]
        table |= {source.label_column if name == LABEL else name: values for name, values in columns.items()}
        rows = datasets.Dataset.from_dict(table).cast_column(source.image_column, datasets.Image())
        file = str(folder / f"{source.name}.parquet")
        rows.to_parquet(file)
        return source.on_local_file(entry, file, num_eval_samples=2)
