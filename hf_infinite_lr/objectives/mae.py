"""`objective: mae`: images for a masked autoencoder, and what its features are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from hf_infinite_lr.evaluation.probes import ProbeArguments
from hf_infinite_lr.stream.reader import is_streaming

from .image_batches import NOISE, ImageBatches
from .image_objective import AugmentationArguments, ImageObjective
from .image_source import ImageSource
from .images import IMAGE, LABEL, first_of, refuse_unlabelled
from .mae_model import build_config, build_mae
from .mae_scores import AutoencoderScores, ImageColumn
from .model_source import ModelSource
from .source import Splits


class MaskedAutoencoding(ImageObjective):
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
        super().__init__(options, tasks, evaluate_also)
        self.probes: ProbeArguments = options[ProbeArguments]
        self._columns: dict[str, ImageColumn] = {}
        for source in (*self._tasks.values(), *self._held_out.values()):
            if self.probes.probes and source.streaming and self.probes.probe_samples is None:
                raise ValueError(
                    f"probes={list(self.probes.probes)} of the streaming task {source.name!r} need probe_samples."
                )

    def check(self, arguments: Any) -> None:
        """As for every stage of ZeRO that may be in force."""
        self.check_zero(3 if is_deepspeed_zero3_enabled() else None)

    def check_zero(self, stage: int | None) -> None:
        """Refuses weights that are cut before the position embeddings can be written into them."""
        if stage == 3:
            raise ValueError(
                "objective='mae' cannot be used with DeepSpeed ZeRO-3, which cuts the weights while the model is "
                "made; use ZeRO-2 (recipes/launch/deepspeed-zero2.yaml) or FSDP2."
            )

    @cached_property
    def config(self) -> Any:
        """The model's configuration."""
        return build_config(self.source)

    @property
    def collate(self) -> ImageBatches:
        """Makes batches, of training and of held-out samples."""
        return self.images

    def check_images(self, found: Splits, source: ImageSource) -> None:
        """Probes need a class for every image."""
        if self.probes.probes and LABEL not in found.eval.column_names:
            raise ValueError(
                f"probes={list(self.probes.probes)} need classes, but {source.name!r} has no column "
                f"{source.label_column!r} (label_column)."
            )
        if self.probes.probes:
            refuse_unlabelled(found.eval, source)

    def train_samples(self, data: Any) -> Any:
        """Encoded images, which the collator decodes in the loader's workers, and the labels that balance buffers."""
        self._train.append(data)
        labelled = LABEL in (data.column_names or ())
        return data.select_columns([IMAGE, LABEL] if labelled else IMAGE)

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


def _with_seeds(images: datasets.Dataset) -> datasets.Dataset:
    return images.add_column(NOISE, np.arange(len(images)))
