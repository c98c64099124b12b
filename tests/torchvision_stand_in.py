"""What transformers' run_mae.py asks of torchvision, which is no dependency here, on Pillow's images.

A test writes this file beside the script as `torchvision/transforms/__init__.py`. There, and not on PYTHONPATH: `run`
imports transformers before the script's folder joins the path, so transformers itself keeps to what is installed.
"""

import numpy as np
import torch
from PIL import Image


class Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


def Lambda(function):  # noqa: N802
    return function


def ToTensor():  # noqa: N802
    return lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def Normalize(mean, std):  # noqa: N802
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return lambda pixels: (pixels - mean) / std


def RandomHorizontalFlip():  # noqa: N802
    return lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1) < 0.5 else image


def RandomResizedCrop(size, scale, interpolation):  # noqa: N802
    def crop(image):
        side = int(min(image.size) * torch.empty(1).uniform_(*scale).sqrt())
        left, top = (int(torch.randint(0, edge - side + 1, (1,))) for edge in image.size)
        return image.resize(size[::-1], interpolation, (left, top, left + side, top + side))

    return crop
