"""Encoded images as batches: decoded, cropped, flipped, normalised, with their masks or their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .image_files import decode
from .images import IMAGE

NOISE = "noise"
"""Input of the model that says which patches are masked; in a held-out dataset the seed of a sample's mask."""

CLASS, HELD_OUT = "labels", "held_out"
"""Columns of samples with classes: the number of the class, and a mark of those that are held out."""

_ASPECTS = (3 / 4, 4 / 3)  # of random crops, as in the published MAE code's torchvision defaults
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class ImageBatches:
    """
    A collator of encoded images; it runs wherever the loader's workers do.

    A training batch is augmented and masked at random, by torch's global generator (which
    [`~hf_infinite_lr.stream.loading.StreamDataset`] seeds by position). A batch of samples that carry a seed in
    `noise` is held out: the largest centred square, and a mask that depends on that seed alone, so that a difference
    between two models is no difference between masks.

    Decoding and cropping are one step of Pillow, which reads the crop alone and filters it without aliasing; all else
    works on the whole batch.

    Args:
        image_size (`int`): Height and width of the model's images, in pixels.
        num_patches (`int`): Patches of an image.
        mean (`Sequence[float]`): Of each channel, for values in [0, 1].
        std (`Sequence[float]`): Of each channel.
        smallest_crop (`float`, *optional*, defaults to 1.0):
            Least share of the image's area in a random crop; 1 takes the largest centred square.
        flip (`bool`, *optional*, defaults to `False`): Mirror half of the images.
    """

    image_size: int
    num_patches: int
    mean: Sequence[float]
    std: Sequence[float]
    smallest_crop: float = 1.0
    flip: bool = False

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Encoded images -> `pixel_values` (batch, channels, size, size) and `noise` (batch, patches)."""
        if NOISE in samples[0]:
            noise = [self._noise_of(int(sample[NOISE])) for sample in samples]
            return {IMAGE: self.pixels(samples, held_out=True), NOISE: torch.stack(noise)}
        pixels = self.pixels(samples, held_out=False)
        return {IMAGE: pixels, NOISE: torch.rand(len(samples), self.num_patches)}

    def pixels(self, samples: Sequence[Mapping[str, Any]], *, held_out: bool) -> torch.Tensor:
        """The images alone, of shape (batch, channels, size, size); held out they are not augmented."""
        images = [decode(sample[IMAGE], _MODES[len(self.mean)]) for sample in samples]
        crop = self.smallest_crop < 1 and not held_out
        boxes = _random_boxes(images, self.smallest_crop) if crop else [_square(image) for image in images]
        pixels = self._normalised([self._resized(image, box) for image, box in zip(images, boxes, strict=True)])
        if self.flip and not held_out:
            mirrored = torch.rand(len(samples), 1, 1, 1) < 0.5
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        return pixels

    def _noise_of(self, seed: int) -> torch.Tensor:
        return torch.rand(self.num_patches, generator=torch.Generator().manual_seed(seed))

    def _resized(self, image: Image.Image, box: tuple[float, float, float, float]) -> np.ndarray:
        size = (self.image_size, self.image_size)
        if image.size != size or box != (0, 0, *size):
            image = image.resize(size, Image.Resampling.BICUBIC, box=box)
        return np.asarray(image)

    def _normalised(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        batch = torch.from_numpy(np.stack(images))
        batch = batch[:, None] if batch.dim() == 3 else batch.permute(0, 3, 1, 2)
        shape = (1, len(self.mean), 1, 1)
        mean, std = torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)
        return ((batch.float() / 255 - mean) / std).contiguous()

    def pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        """The inverse of the normalisation: values in [0, 1] of shape (batch, channels, size, size)."""
        shape = (1, len(self.mean), 1, 1)
        return (pixels * torch.tensor(self.std).view(shape) + torch.tensor(self.mean).view(shape)).clamp(0, 1)


@dataclass(frozen=True)
class LabelledBatches:
    """
    A collator of encoded images with their classes: augmented in training, and as they are in samples that carry
    `held_out`.

    Args:
        images ([`ImageBatches`]): Makes the images.
    """

    images: ImageBatches

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Encoded images and numbers of classes -> `pixel_values` and `labels` (batch)."""
        pixels = self.images.pixels(samples, held_out=HELD_OUT in samples[0])
        return {IMAGE: pixels, CLASS: torch.tensor([int(sample[CLASS]) for sample in samples])}


def _square(image: Image.Image) -> tuple[float, float, float, float]:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return left, top, left + side, top + side


def _random_boxes(images: Sequence[Image.Image], smallest: float) -> list[tuple[float, float, float, float]]:
    """A box for each image: area uniform in [smallest, 1] of the image's, aspect log-uniform, place uniform.

    A side that would be too long is cut to the image's.
    """
    width, height = (torch.tensor([float(image.size[side]) for image in images]) for side in (0, 1))
    area, aspect, left, top = torch.rand(4, len(images))
    area = (smallest + (1 - smallest) * area) * width * height
    low, high = np.log(_ASPECTS)
    aspect = torch.exp(low + (high - low) * aspect)
    own_width, own_height = (area * aspect).sqrt().minimum(width), (area / aspect).sqrt().minimum(height)
    left, top = left * (width - own_width), top * (height - own_height)
    boxes = torch.stack([left, top, (left + own_width).minimum(width), (top + own_height).minimum(height)], dim=1)
    return [tuple(box) for box in boxes.tolist()]
