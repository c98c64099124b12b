"""Pictures of schedules and runs: as matplotlib figures, which touch no global state, and as text."""

from hf_infinite_lr.plots.comparison import draw_comparison
from hf_infinite_lr.plots.curve import Curve, Part, Span, curve_of_schedule
from hf_infinite_lr.plots.figure import write_png
from hf_infinite_lr.plots.heatmap import draw_task_matrix
from hf_infinite_lr.plots.losses import draw_losses
from hf_infinite_lr.plots.rates import draw_hero, draw_learning_rate
from hf_infinite_lr.plots.reconstruction import draw_reconstructions
from hf_infinite_lr.plots.similarity import draw_similarity
from hf_infinite_lr.plots.terminal import terminal_curve

__all__ = [
    "Curve",
    "Part",
    "Span",
    "curve_of_schedule",
    "draw_comparison",
    "draw_hero",
    "draw_learning_rate",
    "draw_losses",
    "draw_reconstructions",
    "draw_similarity",
    "draw_task_matrix",
    "terminal_curve",
    "write_png",
]
