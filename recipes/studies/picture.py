"""The picture of a study: every arm against `infinite`, with intervals."""

from arms import LABELS, TABLES
from claims import Comparison
from matplotlib.figure import Figure

from hf_infinite_lr.plots.palette import BLUE, GREY, VERMILION

_COLOURS = {"ahead": BLUE, "behind": VERMILION, "inconclusive": GREY}


def draw(results, study: str) -> Figure:
    """
    A panel for each table, a line for each arm.

    Args:
        results ([`~results.Results`]): All runs.
        study (`str`): `lm` or `mae`.
    """
    names = [name for name, table in TABLES.items() if table.study == study and results.runs(name, "infinite")]
    arms = [arm for arm in LABELS if arm != "infinite" and any(results.runs(name, arm) for name in names)]
    figure = Figure(figsize=(4.2 + 2.6 * len(names), 1.2 + 0.28 * len(arms)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, axes in zip(names, panels, strict=True):
        axes.axvline(0, color="#BBBBBB", linewidth=1)
        for height, arm in enumerate(reversed(arms)):
            difference = results.difference(Comparison((name, "infinite"), (name, arm)))
            if difference is not None:
                colour = _COLOURS[difference.word()]
                axes.errorbar(difference.mean, height, xerr=difference.half, fmt="o", color=colour, capsize=3)
        axes.set_title(name, fontsize=10)
        axes.grid(axis="y", color="#EEEEEE")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(arms)), [LABELS[arm].replace("`", "") for arm in reversed(arms)], fontsize=8)
    figure.supxlabel("infinite is better by (blue: ahead, red: behind, grey: the interval contains 0)", fontsize=9)
    return figure
