"""Figures: an empty one to draw on, and a drawn one as a PNG file.

Matplotlib is imported inside the functions that draw, here and in all of this folder: it takes most of a second, and
a trainer, whose report can hold pictures, is imported far more often than one is drawn.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hf_infinite_lr.files import aside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that belongs to no window and no pyplot state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write_png(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """
    Write a figure, through a temporary file beside its target: whole or not at all.

    Args:
        figure (`matplotlib.figure.Figure`):
            The figure; it is drawn by Agg whatever backend the process uses.
        path (`str` or `os.PathLike`):
            Where to write; missing folders are made.

    Returns:
        `Path`: where it lies.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    target = Path(path)
    with aside(target) as file:
        FigureCanvasAgg(figure)
        # Without the version of matplotlib, equal pictures are equal files.
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return target
