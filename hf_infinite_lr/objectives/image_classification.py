"""`objective: image_classification`: the classes of images, which come task by task."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import EvalPrediction

from hf_infinite_lr.stream.task_classes import TaskClasses

from .image_batches import CLASS, HELD_OUT, LabelledBatches
from .image_objective import AugmentationArguments, ImageObjective
from .image_source import ImageSource
from .images import IMAGE, LABEL, class_names, refuse_unlabelled
from .lora import MERGED, AdapterArguments, FreshAdapter, save_merged, with_adapter
from .mae_model import build_processor
from .model_source import ModelSource
from .source import Splits
from .vit_model import build_vit, build_vit_config

logger = logging.getLogger(__name__)

# As deep as a ViT-B, so that adapters find their blocks.
_SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32, "patch_size": 16}


class ImageClassification(ImageObjective):
    """
    Class-incremental classification by a linear head on the class token of a vision transformer.

    Entries are keys of [`ImageSource`]; `split_into: {kind: class, num_tasks: 5}` makes the tasks of one dataset. The
    head has an output for every class of the stream from the start. In training the classes of the present task are
    compared, or with replay those of all tasks so far; in evaluation those of all tasks begun so far, and nothing
    tells a prediction which task an image is of. A column of a task that is still to come is scored over all classes.
    With `lora` the head is trained as a whole beside the adapter, and saved with it.

    `task_matrix.accuracy.json` holds the shares of right answers, `task_matrix.json` the cross-entropy.
    """

    keys = (AugmentationArguments, ModelSource, AdapterArguments)
    units = {"eval_loss": "nats per image", "accuracy": "share of the images"}  # noqa: RUF012  # as declared above
    arguments = {"label_names": [CLASS], "remove_unused_columns": False, "evaluate_on": "seen"}  # noqa: RUF012
    smoke = {"preprocessing_num_workers": None}  # noqa: RUF012

    def __init__(
        self,
        options: Mapping[type, Any],
        tasks: Sequence[Mapping[str, Any]],
        evaluate_also: Sequence[Mapping[str, Any]],
    ) -> None:
        super().__init__(options, tasks, evaluate_also)
        self.adapter = options[AdapterArguments]
        self.adapter.check_base(self.source.model_name_or_path)
        self._classes: dict[str, int] = {}
        self._of_tasks: dict[str, list[int]] = {}
        self._fresh: FreshAdapter | None = None
        for source in (*self._tasks.values(), *self._held_out.values()):
            if source.streaming:
                raise ValueError(
                    f"streaming=True of {source.name!r} cannot be used with objective='image_classification': its "
                    "head needs all classes before the first step."
                )

    def check(self, arguments: Any) -> None:
        """As for every objective with adapters."""
        self.adapter.check(arguments)

    @cached_property
    def config(self) -> Any:
        """The model's configuration; its head is known with the data."""
        return build_vit_config(self.source)

    @cached_property
    def collate(self) -> LabelledBatches:
        """Makes batches, of training and of held-out samples."""
        return LabelledBatches(self.images)

    def check_images(self, found: Splits, source: ImageSource) -> None:
        """Every image needs a class."""
        for part in (found.train, found.eval):
            if LABEL not in (part.column_names or ()):
                raise ValueError(
                    f"{source.name!r} has no column {source.label_column!r} (label_column), which "
                    "objective='image_classification' needs."
                )
            refuse_unlabelled(part, source)

    def load_held_out(self, name: str) -> Any:
        """Loads images that are only evaluated on; their classes must be those of tasks."""
        return self._load(self._held_out[name]).eval

    def train_samples(self, data: Any) -> Any:
        """Encoded images and the numbers of their classes."""
        names = class_names(data)
        self._train.append(sorted(set(names.tolist())))
        for name in self._train[-1]:
            self._classes.setdefault(name, len(self._classes))
        return self._numbered(data, names)

    def eval_samples(self, column: str, data: Any) -> Any:
        """The same of held-out images, marked as such."""
        parts, self._train = self._train, []
        if parts:
            self._of_tasks[column] = sorted({self._classes[name] for part in parts for name in part})
        names = class_names(data)
        for name in sorted(set(names.tolist()) - self._classes.keys()):
            raise ValueError(
                f"{column!r} is evaluated on class {name!r}, which no task up to it teaches; there are "
                f"{', '.join(list(self._classes)[:20])}."
            )
        return self._numbered(data, names).add_column(HELD_OUT, [True] * len(data))

    def _numbered(self, data: datasets.Dataset, names: np.ndarray) -> datasets.Dataset:
        return data.select_columns(IMAGE).add_column(CLASS, [self._classes[name] for name in names])

    def fingerprint(self, splits: Splits) -> str | None:
        """Of all images with their classes."""
        known = super().fingerprint(splits)
        key = f"{known} {' '.join(class_names(splits.train))}"
        return known and hashlib.sha256(key.encode()).hexdigest()[:16]

    def model(self) -> Any:
        """The classifier, with its adapter where there is one."""
        model = build_vit(self.source, self.config, list(self._classes))
        if self.adapter.lora is None:
            return model
        saved = dict.fromkeys(["classifier", *(self.adapter.lora.get("modules_to_save") or ())])
        lora, revision = {**self.adapter.lora, "modules_to_save": list(saved)}, self.source.model_revision
        adapted = with_adapter(model, lora, revision=revision, task_type=None)
        self._fresh = FreshAdapter(adapted) if self.adapter.adapter_per_task else None
        return adapted

    @property
    def uncounted(self) -> str:
        """The head's outputs, of which the data tells."""
        if self._classes:
            return ""
        return "The head is counted with 1 output, because how many classes there are is known with the data alone."

    def trainer_options(self) -> dict[str, Any]:
        """Collator, image processor, the classes of the tasks, and the accuracy."""
        names = {number: name for name, number in self._classes.items()}
        return {
            "data_collator": self.collate,
            "processing_class": self.processor,
            "compute_metrics": accuracy,
            "task_classes": TaskClasses(self._of_tasks, names),
            "begin_task": self._fresh and self._fresh.restore,
            "finish_release": self._finish_release if self.finishes_releases else None,
        }

    @classmethod
    def stand_in_model(cls, content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """A small new model, saved in the folder, for one that does not lie on this disk."""
        name = content.get("model_name_or_path")
        if name is None or Path(name).exists():
            return {}
        logger.info("--smoke: a small new ViT stands in for %s", name)
        source = ModelSource(model_type="vit", config_overrides=_SMALL)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = build_vit_config(source)
            build_vit(source, config, []).save_pretrained(folder / "model")
        build_processor(source, config, None, None).save_pretrained(folder / "model")
        return {"model_name_or_path": str(folder / "model"), "model_revision": None, "config_overrides": {}}

    def _finish_release(self, model: Any, directory: Path | None) -> dict[str, dict[str, float]]:
        if directory is not None:
            save_merged(model, directory / MERGED)
            self.processor.save_pretrained(directory / MERGED)
        return {}


def accuracy(predicted: EvalPrediction) -> dict[str, float]:
    """
    The share of samples whose highest score is that of their own class.

    Example:

    ```python
    >>> accuracy(EvalPrediction(np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([1, 0])))
    {'accuracy': 0.5}

    ```
    """
    return {"accuracy": float(np.mean(np.argmax(predicted.predictions, axis=-1) == predicted.label_ids))}
