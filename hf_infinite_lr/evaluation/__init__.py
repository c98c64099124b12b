"""What a model is worth beyond the loss on its stream: probes, similarity, sharpness, zero-shot benchmarks."""

from .classifiers import few_shot_accuracy, linear_probe, nearest_class_mean, nearest_neighbours
from .interval import mean_and_half_width
from .probes import PROBES, ProbeArguments
from .sharpness import perturbed, sharpness
from .similarity import linear_cka

__all__ = [
    "PROBES",
    "ProbeArguments",
    "few_shot_accuracy",
    "linear_cka",
    "linear_probe",
    "mean_and_half_width",
    "nearest_class_mean",
    "nearest_neighbours",
    "perturbed",
    "sharpness",
]
