"""How the page writes numbers, intervals, units and the names of studies."""

from verdicts import Difference

STUDY_TITLES = {"lm": "Language models", "mae": "Masked autoencoders"}
UNITS = {
    "bits_per_byte": "bits per byte, lower is better",
    "linear_accuracy": "accuracy, higher is better",
    "eval_loss": "squared error of a masked pixel, lower is better",
}


def number(value: float | None) -> str:
    """Three decimals, or nothing."""
    return "" if value is None else f"{value:.3f}"


def interval(difference: Difference | None) -> str:
    """Mean difference and its 95 % interval."""
    if difference is None:
        return ""
    return f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def short_unit(metric: str) -> str:
    """The unit alone, without what is better."""
    return UNITS[metric].split(",")[0]
