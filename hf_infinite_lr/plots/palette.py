"""Colours that stay apart for colour-blind readers: Okabe and Ito's eight, and cividis where eight are too few."""

from collections.abc import Sequence

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY, PALE = "#777777", "#F2F2F2"

PHASES = {
    "warmup": ORANGE,
    "cooldown_to_constant": GREEN,
    "constant": BLUE,
    "anneal": VERMILION,
    "cosine_decay": SKY,
    "rsqrt_decay": SKY,
    "linear_end": PURPLE,
}

PHASE_NAMES = {
    "warmup": "warm-up",
    "cooldown_to_constant": "cool-down to the constant",
    "constant": "constant (trunk)",
    "anneal": "annealing (branch)",
    "cosine_decay": "cosine decay",
    "rsqrt_decay": "reciprocal square root",
    "linear_end": "linear end",
}

_TASKS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)


def task_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: distinct hues for few, a ramp in order of learning for many."""
    if len(names) <= len(_TASKS):
        return dict(zip(names, _TASKS, strict=False))
    import matplotlib

    ramp = matplotlib.colormaps["cividis"]
    return {name: matplotlib.colors.to_hex(ramp(0.95 * index / (len(names) - 1))) for index, name in enumerate(names)}
