"""What is measured of a masked autoencoder before training and at every task's end, beside its loss."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import ViTMAEForPreTraining

from hf_infinite_lr.evaluation.features import FeatureCache, Features, extract, fingerprint_of
from hf_infinite_lr.evaluation.finetuning import finetuned_predictions
from hf_infinite_lr.evaluation.probes import CLASSIFIERS, FINETUNING, ProbeArguments, Probed, probe_scores
from hf_infinite_lr.evaluation.sharpness import sharpness
from hf_infinite_lr.evaluation.similarity import linear_cka
from hf_infinite_lr.evaluation.whole import is_cut, whole_state
from hf_infinite_lr.files import write_json
from hf_infinite_lr.plots import draw_reconstructions, write_png
from hf_infinite_lr.plots.reconstruction import reconstruction_file
from hf_infinite_lr.stream.task import slug

from .image_batches import ImageBatches
from .image_files import encoded
from .images import IMAGE, class_names
from .mae_model import encode, unmasked

UNTRAINED = "untrained"
"""The name of the model before training, beside the releases' directories."""


@dataclass(frozen=True)
class ImageColumn:
    """
    The images of a column, each with the seed of its mask.

    Args:
        held_out (`datasets.Dataset`): To score.
        train (`datasets.Dataset`, *optional*): To fit probes; None where there are none.
    """

    held_out: datasets.Dataset
    train: datasets.Dataset | None = None

    @cached_property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Classes of the training and of the held-out images."""
        assert self.train is not None
        return class_names(self.train), class_names(self.held_out)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """A hash of the images of each part."""
        parts = {"held_out": self.held_out, "train": self.train}
        return {name: _fingerprint(part) for name, part in parts.items() if part is not None}


class AutoencoderScores:
    """
    Probes, similarity of representations, sharpness and pictures of one model.

    Args:
        arguments ([`ProbeArguments`]): What is wanted.
        collate ([`ImageBatches`]): Makes batches.
        columns (`Mapping[str, ImageColumn]`): The columns of the task matrix.
    """

    def __init__(self, arguments: ProbeArguments, collate: ImageBatches, columns: Mapping[str, ImageColumn]) -> None:
        self.arguments, self.collate, self.columns = arguments, collate, columns

    def __call__(
        self, trainer: Any, release: str, columns: Sequence[str], learned: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        """
        Scores the model of a trainer as it is; where its weights are cut or in half precision, a plain copy of it.

        Args:
            trainer ([`ContinualTrainer`]): In the middle of its run.
            release (`str`): The directory of the release, or `untrained`.
            columns (`Sequence[str]`): Names of the columns to score; similarity and pictures are of all columns.
            learned (`Sequence[str]`): Names of the tasks seen so far.

        Returns:
            `dict`: column -> metric -> value.
        """
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        if is_cut(model) or model.dtype != torch.float32:
            model = _plain(model)
        was_training = model.training
        model.eval()
        measured = _Measured(self, trainer, model, release, columns)
        scores: dict[str, dict[str, float]] = {name: {} for name in columns}
        for found in (measured.probes(learned), measured.finetuning(), measured.sharpness()):
            for column in scores.keys() & found.keys():
                scores[column].update(found[column])
        if self.arguments.compare_releases:
            measured.compare()
        if self.arguments.num_pictures:
            measured.draw()
        model.train(was_training)
        return scores


def _plain(model: ViTMAEForPreTraining) -> ViTMAEForPreTraining:
    """The same weights, whole and in single precision: what one process does alone must not wait for others."""
    with model.device:
        copied = ViTMAEForPreTraining(model.config)
    copied.load_state_dict(whole_state(model))
    return copied


class _Measured:
    """One model at one time."""

    def __init__(
        self, wanted: AutoencoderScores, trainer: Any, model: ViTMAEForPreTraining, release: str, scored: Sequence[str]
    ) -> None:
        self.arguments, self.collate, self.columns = wanted.arguments, wanted.collate, wanted.columns
        self.trainer, self.model, self.release, self.scored = trainer, model, release, scored
        self.writes = bool(trainer.args.should_save)
        self.folder = Path(str(trainer.args.output_dir))
        self.cache = FeatureCache(self.folder / "features", writes=self.writes)

    @cached_property
    def _weights(self) -> str:
        return fingerprint_of(self.model)

    def _batches(self, images: datasets.Dataset) -> Iterator[dict[str, torch.Tensor]]:
        args = self.trainer.args
        loader: DataLoader = DataLoader(
            images,  # map-style by its methods
            batch_size=args.per_device_eval_batch_size,
            collate_fn=self.collate,
            num_workers=args.dataloader_num_workers,
        )
        for batch in loader:
            yield {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def features(self, column: str, part: str, images: datasets.Dataset) -> Features:
        """Of one part of a column, from the cache where this model has been there before."""
        key = f"{self._weights} {self.columns[column].fingerprints[part]} {self.collate}"
        with unmasked(self.model):
            return self.cache.get(
                self.release,
                f"{slug(column)}-{part}",
                hashlib.sha256(key.encode()).hexdigest()[:16],
                lambda: extract(lambda batch: encode(self.model, batch[IMAGE]), self._batches(images)),
            )

    def probes(self, learned: Sequence[str]) -> dict[str, dict[str, float]]:
        """Of classifiers on frozen features."""
        if not set(self.arguments.probes) - {FINETUNING}:
            return {}
        seen = any(name in CLASSIFIERS and CLASSIFIERS[name].seen for name in self.arguments.probes)
        probed = {}
        for name, column in self._labelled((*self.scored, *learned) if seen else self.scored):
            train_labels, test_labels = column.labels
            assert column.train is not None
            train = self.features(name, "train", column.train)
            test = self.features(name, "held_out", column.held_out)
            probed[name] = Probed(train, train_labels, test, test_labels)
        return probe_scores(self.arguments, probed, learned)

    def finetuning(self) -> dict[str, dict[str, float]]:
        """Of copies of the encoder that learn each column's classes."""
        if FINETUNING not in self.arguments.probes:
            return {}
        scores = {}
        for name, column in self._labelled(self.scored):
            train_labels, test_labels = column.labels
            assert column.train is not None
            train, test = (
                torch.cat([batch[IMAGE].cpu() for batch in self._batches(part)])
                for part in (column.train, column.held_out)
            )
            predicted = finetuned_predictions(
                _WholeImages(self.model),
                self.model.config.hidden_size,
                *(train, train_labels, test),
                num_epochs=self.arguments.finetuning_epochs,
            )
            scores[name] = {"finetuning_accuracy": float(np.mean(predicted == test_labels))}
        return scores

    def _labelled(self, names: Collection[str]) -> Iterator[tuple[str, ImageColumn]]:
        known = ((name, column) for name, column in self.columns.items() if name in names)
        return ((name, column) for name, column in known if column.train is not None)

    def sharpness(self) -> dict[str, dict[str, float]]:
        """The rise of each column's loss around the model."""
        if not self.arguments.sharpness_radius:
            return {}
        radius = self.arguments.sharpness_radius
        return {
            name: {"sharpness": sharpness(self.model, lambda c=column: self._loss(c.held_out), radius=radius)}  # type: ignore[misc]
            for name, column in self.columns.items()
            if name in self.scored
        }

    @torch.no_grad()
    def _loss(self, images: datasets.Dataset) -> float:
        total = 0.0
        for batch in self._batches(images):
            total += float(self.model(**batch).loss) * len(batch[IMAGE])
        return total / len(images)

    def compare(self) -> None:
        """Writes the linear CKA of all models so far on each column."""
        names = [UNTRAINED, *(task.directory for task in self.trainer.plan.tasks)]
        names = names[: names.index(self.release) + 1]
        similar = {}
        for name, column in self.columns.items():
            self.features(name, "held_out", column.held_out)
            found = {model: self.cache.known(model, f"{slug(name)}-held_out") for model in names}
            known = {model: features.pooled for model, features in found.items() if features is not None}
            rows = [[linear_cka(one, other) for other in known.values()] for one in known.values()]
            similar[name] = {"models": list(known), "linear_cka": rows}
        if self.writes:
            write_json(self.folder / "representations.json", similar)

    def draw(self) -> None:
        """Writes the picture of what the model makes of some masked images of each column."""
        if not self.writes:
            return
        rows = {name: self._reconstructed(column) for name, column in self.columns.items()}
        write_png(
            draw_reconstructions(rows, title=self.release), self.folder / "report" / reconstruction_file(self.release)
        )

    @torch.no_grad()
    def _reconstructed(self, column: ImageColumn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        number = min(self.arguments.num_pictures, len(column.held_out))
        batch = self.collate([column.held_out[row] for row in range(number)])
        pixels = batch[IMAGE].to(self.model.device)
        found = self.model(pixels, noise=batch["noise"].to(self.model.device))
        target, logits = self.model.patchify(pixels), found.logits
        if self.model.config.norm_pix_loss:
            logits = logits * (target.var(dim=-1, keepdim=True) + 1e-6).sqrt() + target.mean(dim=-1, keepdim=True)
        hidden = found.mask[..., None].bool()
        images = (target, torch.where(hidden, torch.zeros_like(target), target), torch.where(hidden, logits, target))
        original, masked, restored = (
            self.collate.pictures(self.model.unpatchify(image.float()).cpu()).permute(0, 2, 3, 1).numpy()
            for image in images
        )
        return original, masked, restored


class _WholeImages(nn.Module):
    """A copy of a model's encoder that sees every patch."""

    def __init__(self, model: ViTMAEForPreTraining) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.decoder = nn.Identity()  # type: ignore[assignment]  # what is not asked needs no weights
        self.model.config.mask_ratio = 0.0
        assert self.model.vit.embeddings.config is self.model.config

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Hidden states of whole images."""
        return encode(self.model, pixel_values)


def _fingerprint(images: datasets.Dataset) -> str:
    digest = hashlib.sha256()
    for row in images:
        digest.update(encoded(row[IMAGE]))
    return digest.hexdigest()[:16]
