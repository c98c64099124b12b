"""What a masked autoencoder makes of masked images, as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from hf_infinite_lr.plots.curve import literal, shortened
from hf_infinite_lr.plots.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = ("original", "masked", "reconstructed")
_PREFIX = "reconstructions."


def reconstruction_file(release: str) -> str:
    """The name of the picture of a release, below `report/`."""
    return f"{_PREFIX}{release}.png"


def release_of(file: str) -> str | None:
    """The release whose picture a file of `report/` is; None for another file.

    >>> release_of(reconstruction_file("01-digits"))
    '01-digits'
    """
    return file.removeprefix(_PREFIX).removesuffix(".png") if file.startswith(_PREFIX) else None


def draw_reconstructions(
    columns: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], *, title: str = ""
) -> Figure:
    """
    A panel for each column of the task matrix: its images, what the model sees of them, and what it makes of that.

    Args:
        columns (`Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]`):
            Original, masked and reconstructed images, each of shape (images, height, width, channels) in [0, 1]. A
            reconstruction shows the visible patches as they are.
        title (`str`, *optional*, defaults to none):
            Title of the picture.

    Returns:
        `matplotlib.figure.Figure`: the panels below each other.
    """
    most = max(len(original) for original, _, _ in columns.values())
    figure = new_figure(2.2 + 0.8 * most, 0.5 + 2.7 * len(columns))
    panels = figure.subplots(len(columns), 1, squeeze=False)[:, 0]
    for axes, (name, kinds) in zip(panels, columns.items(), strict=True):
        height = kinds[0].shape[1]
        picture = np.concatenate([np.concatenate(list(images), axis=1) for images in kinds])
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_yticks([height * (place + 0.5) for place in range(len(kinds))], _KINDS)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(literal(shortened(name, 40)), fontsize=10)
    if title:
        figure.suptitle(literal(title), fontsize=11)
    return figure
