"""How alike the representations of several models are, as heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hf_infinite_lr.plots.curve import literal, shortened
from hf_infinite_lr.plots.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_similarity(columns: Mapping[str, tuple[Sequence[str], Sequence[Sequence[float]]]]) -> Figure:
    """
    A heat map of linear CKA for each set of samples: model against model, from 0 (dark) to 1.

    Args:
        columns (`Mapping[str, tuple[Sequence[str], Sequence[Sequence[float]]]]`):
            Names of the models and the similarity of each pair, by name of the set; at least one set.

    Returns:
        `matplotlib.figure.Figure`: one panel for each set, side by side.
    """
    most = max(len(models) for models, _ in columns.values())
    side = max(2.6, 1.6 + 0.55 * most)
    longest = max(len(shortened(model, 16)) for models, _ in columns.values() for model in models)
    figure = new_figure(side * len(columns) + 1.0, side + 0.8 + 0.07 * longest)
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, (name, (models, rows)) in zip(panels, columns.items(), strict=True):
        axes.imshow(rows, aspect="auto", vmin=0, vmax=1, cmap="cividis")
        labels = [literal(shortened(model, 16)) for model in models]
        axes.set_xticks(range(len(models)), labels, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(models)), labels if axes is panels[0] else [], fontsize=8)
        axes.tick_params(length=0)
        axes.set_title(literal(shortened(name, 24)), fontsize=10)
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                ink = "black" if value > 0.5 else "white"
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    figure.suptitle("linear CKA", fontsize=11)
    return figure
