"""`objective: mae`: images for a masked autoencoder, and what its features are worth."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import datasets
import numpy as np
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_infinite_lr.evaluation.probes import ProbeArguments
from hf_infinite_lr.stream.pictures import png
from hf_infinite_lr.stream.reader import is_streaming

from .causal_lm import ModelSource
from .image_batches import NOISE, ImageBatches
from .image_source import ImageSource
from .images import IMAGE, LABEL, ImageSplits, first_of, load_images, refuse_unlabelled
from .keys import from_mapping, typed
from .mae_model import build_config, build_mae, build_processor, num_patches
from .mae_scores import AutoencoderScores, ImageColumn
from .objective import Objective, Splits


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


class MaskedAutoencoding(Objective):
    """Restores masked patches of images (He et al. 2022, arXiv 2111.06377); entries are keys of [`ImageSource`]."""

    keys = (AugmentationArguments, ModelSource, ProbeArguments)
    units = {"eval_loss": "squared error of a masked pixel"}  # noqa: RUF012  # as declared by the base class
    arguments = {"label_names": [IMAGE]}  # noqa: RUF012
    smoke = {"finetuning_epochs": 1, "preprocessing_num_workers": None}  # noqa: RUF012

    def __init__(
        self,
        options: Mapping[type, Any],
        tasks: Sequence[Mapping[str, Any]],
        evaluate_also: Sequence[Mapping[str, Any]],
    ) -> None:
        self.augmentation: AugmentationArguments = options[AugmentationArguments]
        self.source: ModelSource = options[ModelSource]
        self.probes: ProbeArguments = options[ProbeArguments]
        self._tasks = {entry["name"]: _source(entry, "tasks", self.lengths) for entry in tasks}
        self._held_out = {entry["name"]: _source(entry, "evaluate_also", ()) for entry in evaluate_also}
        self._train: list[Any] = []  # of the column whose held-out part comes next
        self._columns: dict[str, ImageColumn] = {}
        for source in (*self._tasks.values(), *self._held_out.values()):
            if self.probes.probes and source.streaming and self.probes.probe_samples is None:
                raise ValueError(
                    f"probes={list(self.probes.probes)} of the streaming task {source.name!r} need probe_samples."
                )

    def check(self, arguments: Any) -> None:
        """Refuses weights that are cut before the position embeddings can be written into them."""
        if is_deepspeed_zero3_enabled():
            raise ValueError(
                "objective='mae' cannot be used with DeepSpeed ZeRO-3, which cuts the weights while the model is "
                "made; use ZeRO-2 (recipes/launch/deepspeed-zero2.yaml) or FSDP2."
            )

    @cached_property
    def config(self) -> Any:
        """The model's configuration."""
        return build_config(self.source)

    @cached_property
    def processor(self) -> ViTImageProcessorPil:
        """What every release carries, so that its inputs can be made again."""
        options = self.augmentation
        return build_processor(self.source, self.config, options.image_mean, options.image_std)

    @cached_property
    def collate(self) -> ImageBatches:
        """Makes batches, of training and of held-out samples."""
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

    def is_streaming(self, name: str) -> bool:
        """Whether a task's images are read while training."""
        return self._tasks[name].streaming

    def load(self, name: str, columns: Sequence[str] = ()) -> Splits:
        """Loads a task's images."""
        found = self._load(self._tasks[name], columns)
        return Splits(found.train, found.eval, found.fingerprint)

    def load_held_out(self, name: str) -> Any:
        """Loads images that are only evaluated on."""
        found = self._load(self._held_out[name])
        self._train.append(found.train)
        return found.eval

    def _load(self, source: ImageSource, columns: Sequence[str] = ()) -> ImageSplits:
        # What the model cannot take is refused before any data is read.
        _ = self.collate
        with source.naming_faults():
            found = load_images(source, columns, num_proc=self.augmentation.preprocessing_num_workers)
        if self.probes.probes and LABEL not in found.eval.column_names:
            raise ValueError(
                f"probes={list(self.probes.probes)} need classes, but {source.name!r} has no column "
                f"{source.label_column!r} (label_column)."
            )
        if self.probes.probes:
            refuse_unlabelled(found.eval, source)
        return found

    def train_samples(self, data: Any) -> Any:
        """Encoded images; the collator decodes them in the loader's workers."""
        self._train.append(data)
        return data.select_columns(IMAGE)

    def eval_samples(self, column: str, data: Any) -> Any:
        """Encoded images, each with the seed of its mask."""
        parts, self._train = self._train, []
        train = self._probe_images(column, parts) if self.probes.probes else None
        held_out = _with_seeds(data)
        self._columns[column] = ImageColumn(held_out, train)
        return held_out.select_columns([IMAGE, NOISE])

    def _probe_images(self, column: str, parts: Sequence[Any]) -> datasets.Dataset:
        number = self.probes.probe_samples
        known = [first_of(part, number, column) if is_streaming(part) else part for part in parts]
        train = datasets.concatenate_datasets([part.select_columns([IMAGE, LABEL]) for part in known])
        if number is not None and number < len(train):
            train = train.select(np.sort(np.random.RandomState(0).permutation(len(train))[:number]))
        return _with_seeds(train)

    def fingerprint(self, splits: Splits) -> str | None:
        """Of all images, as samples of this recipe; None for a stream."""
        if splits.fingerprint is None:
            return None
        return hashlib.sha256(f"{splits.fingerprint} {self.collate}".encode()).hexdigest()[:16]

    def model(self) -> PreTrainedModel:
        """The masked autoencoder."""
        return build_mae(self.source, self.config)

    def trainer_options(self) -> dict[str, Any]:
        """Collator, image processor, and what is measured at task ends."""
        return {
            "data_collator": self.collate,
            "processing_class": self.processor,
            "score_model": AutoencoderScores(self.probes, self.collate, self._columns),
        }

    @classmethod
    def stand_in(cls, entry: Mapping[str, Any], columns: Mapping[str, Sequence[Any]], folder: Path) -> dict[str, Any]:
        """Images of noise in two classes, as a parquet file with the columns that the entry names."""
        source = _source(entry, "tasks", cls.lengths)
        number = len(next(iter(columns.values()), range(8)))
        random = np.random.RandomState(0)
        images = [{"bytes": png(random.randint(0, 256, (40, 48, 3), np.uint8)), "path": None} for _ in range(number)]
        table: dict[str, Any] = {source.image_column: images, source.label_column: [n // 2 % 2 for n in range(number)]}
        for column, values in (source.where or {}).items():
            among = values if isinstance(values, (list, tuple)) else [values]
            table[column] = [among[n % len(among)] for n in range(number)]
        table |= columns
        rows = datasets.Dataset.from_dict(table).cast_column(source.image_column, datasets.Image())
        file = str(folder / f"{source.name}.parquet")
        rows.to_parquet(file)
        hub = ("dataset_name", "dataset_config_name", "split", "revision", "eval_split")
        kept = {key: value for key, value in entry.items() if key not in hub}
        held_out = {"eval_data_files": file} if source.eval_split or source.eval_data_files else {}
        fewer = {"num_eval_samples": 2} if source.num_eval_samples else {}
        return {**kept, "data_files": file, **held_out, **fewer}


def _with_seeds(images: datasets.Dataset) -> datasets.Dataset:
    return images.add_column(NOISE, np.arange(len(images)))


def _source(entry: Mapping[str, Any], key: str, other_keys: Sequence[str]) -> ImageSource:
    hints = get_type_hints(ImageSource)
    try:
        values = {name: typed(ImageSource, name, value) if name in hints else value for name, value in entry.items()}
        return from_mapping(ImageSource, values, other_keys=other_keys)
    except ValueError as error:
        raise ValueError(f"{key}: {entry.get('name')!r}: {error}") from error
