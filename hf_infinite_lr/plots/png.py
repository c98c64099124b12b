"""Writing a figure as a PNG file, whole or not at all."""

import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_infinite_lr.files import aside

DPI = 120


def write_png(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """
    Write a figure, through a temporary file beside its target.

    Args:
        figure (`matplotlib.figure.Figure`):
            The figure; it is drawn by Agg whatever backend the process uses.
        path (`str` or `os.PathLike`):
            Where to write; missing folders are made.

    Returns:
        `Path`: where it lies.
    """
    target = Path(path)
    with aside(target) as file:
        FigureCanvasAgg(figure)
        # Without the version of matplotlib, equal pictures are equal files.
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return target
