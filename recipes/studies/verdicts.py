"""What paired differences say, in words that follow from their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

from hf_infinite_lr.evaluation import mean_and_half_width

MARGINS = {"bits_per_byte": 0.02, "linear_accuracy": 0.01}
"""Within which two arms are on par."""


@dataclass(frozen=True)
class Difference:
    """
    By how much the first of two arms is better, over seeds.

    Args:
        mean (`float`): Positive where the first is better, whatever the metric's direction.
        half (`float`): Half of the 95 % interval.
        seeds (`int`): Pairs.
    """

    mean: float
    half: float
    seeds: int

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float], *, higher_is_better: bool) -> "Difference":
        """Of values that are paired by seed."""
        sign = 1 if higher_is_better else -1
        differences = [sign * (one - other) for one, other in zip(first, second, strict=True)]
        return cls(*mean_and_half_width(differences), len(differences))

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half

    def word(self) -> str:
        """`ahead`, `behind`, or `inconclusive` where the interval contains 0."""
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else "inconclusive"

    def supports(self) -> str:
        """Of the claim that the first is better."""
        return {"ahead": "supported", "behind": "contradicted"}.get(self.word(), "inconclusive")

    def supports_par(self, margin: float) -> str:
        """Of the claim that neither is better by more than the margin."""
        if -margin < self.low and self.high < margin:
            return "supported"
        return "contradicted" if self.low > margin or self.high < -margin else "inconclusive"


@dataclass(frozen=True)
class Agreement:
    """
    Two differences of the same arms, over seeds of which none is in both.

    Args:
        first (`Difference`): Of the table.
        again (`Difference`): Of new seeds.
    """

    first: Difference
    again: Difference

    def change(self) -> Difference:
        """The second minus the first, with Welch's 95 % interval; its seeds are all of both."""
        both = (self.first, self.again)
        parts = [(one.half / student.ppf(0.975, one.seeds - 1)) ** 2 for one in both]
        freedom = sum(parts) ** 2 / sum(part**2 / (one.seeds - 1) for part, one in zip(parts, both, strict=True))
        half = float(student.ppf(0.975, freedom)) * sum(parts) ** 0.5
        return Difference(self.again.mean - self.first.mean, half, self.first.seeds + self.again.seeds)

    def word(self) -> str:
        """`agree` where the interval contains 0."""
        return "agree" if self.change().word() == "inconclusive" else "disagree"


def verdict(outcomes: Sequence[str]) -> str:
    """The word for a claim, from the outcomes of its comparisons."""
    if not outcomes:
        return "not run"
    if "supported" in outcomes:
        return "holds" if set(outcomes) == {"supported"} else "holds in part"
    return "contradicted" if "contradicted" in outcomes else "inconclusive"
