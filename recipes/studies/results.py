"""What the records of the studies say: numbers of runs, differences between arms, verdicts on claims."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import records
from arms import NEW_SEEDS, TABLES
from claims import AVERAGE, LEARNED, LOST, NOT_TESTABLE, Claim, Comparison
from verdicts import Agreement, Difference, verdict

from hf_infinite_lr.metrics import TaskMatrix, summary

HERE = Path(__file__).parent
STUDIES = ("lm", "mae")
MEASURES = {
    AVERAGE: "final_average",
    LEARNED: "average_right_after_learning",
    LOST: "forgetting_from_right_after_learning",
}
Records = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]


def measure(run: Mapping[str, Any], name: str) -> float | None:
    """A number of a run; None where it has none, as joint training has nothing that was lost."""
    keys = ("metric", "higher_is_better", "matrix", "baseline")
    matrix = TaskMatrix(run["tasks"], run["tasks"], **{key: run[key] for key in keys})
    return summary(matrix)[MEASURES[name]]


def _paired(
    first: Mapping[int, Mapping[str, Any]], second: Mapping[int, Mapping[str, Any]], name: str
) -> Difference | None:
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        return None
    values = [[measure(runs[seed], name) for seed in seeds] for runs in (first, second)]
    if None in values[0] + values[1]:
        return None
    return Difference.of(*values, higher_is_better=name != LOST and first[seeds[0]]["higher_is_better"])


class Results:
    """The runs of all studies.

    Args:
        found (`Mapping`): Study -> content of its JSON file.
    """

    def __init__(self, found: Records) -> None:
        self.found = found

    def done(self, table: str, arm: str) -> dict[int, Mapping[str, Any]]:
        """The runs of an arm so far, by seed."""
        return {seed: run for seed, run in self._all(table, arm).items() if seed < TABLES[table].seeds}

    def _all(self, table: str, arm: str) -> dict[int, Mapping[str, Any]]:
        own = self.found[TABLES[table].study]["runs"]
        return {run["seed"]: run for run in own if (run["table"], run["arm"]) == (table, arm)}

    def runs(self, table: str, arm: str) -> dict[int, Mapping[str, Any]]:
        """The runs of an arm by seed; none before all its seeds are done, so that every row has the same seeds."""
        found = self.done(table, arm)
        return found if len(found) >= TABLES[table].seeds else {}

    def difference(self, comparison: Comparison) -> Difference | None:
        """Over the seeds that both arms have; None for fewer than two."""
        return _paired(self.runs(*comparison.first), self.runs(*comparison.second), comparison.measure)

    def primary(self, table: str, seeds: Sequence[int]) -> Difference | None:
        """By how much `infinite` ends ahead of `cosine_rewarm` on these seeds; None before all of them are done."""
        found = [self._all(table, arm) for arm in ("infinite", "cosine_rewarm")]
        if any(not runs.keys() >= set(seeds) for runs in found):
            return None
        return _paired(*({seed: runs[seed] for seed in seeds} for runs in found), AVERAGE)

    def new_seeds(self, table: str) -> list[tuple[Sequence[int], Agreement]]:
        """Batches of seeds that the table does not use, each with how the primary comparison came out there."""
        first = self.primary(table, range(TABLES[table].seeds))
        batches = [(seeds, self.primary(table, seeds)) for seeds in NEW_SEEDS[TABLES[table].study]]
        return [(seeds, Agreement(first, again)) for seeds, again in batches if first and again]

    def confirmation(self, table: str) -> Agreement | None:
        """The same on the last of these batches, which was declared before it ran; None before all of it is done."""
        seeds = NEW_SEEDS[TABLES[table].study][-1]
        return next((found for batch, found in self.new_seeds(table) if batch == seeds), None)

    def on_second(self, metric: str) -> "Results":
        """The same runs by another outcome that their records hold."""
        return Results(
            {
                study: {kind: [{**one, **one[metric]} for one in found[kind] if metric in one] for kind in found}
                for study, found in self.found.items()
            }
        )

    def gain(self, table: str, arm: str) -> Difference:
        """Of the final average of an arm over that of its own untrained model, over its seeds."""
        runs = list(self.runs(table, arm).values())
        untrained = [fmean(run["baseline"]) for run in runs]
        trained = [fmean(run["matrix"][-1]) for run in runs]
        return Difference.of(trained, untrained, higher_is_better=runs[0]["higher_is_better"])

    def outcome(self, comparison: Comparison) -> str | None:
        """Whether a comparison supports its claim; None where it was not run."""
        difference = self.difference(comparison)
        if difference is None:
            return None
        metric = next(iter(self.runs(*comparison.first).values()))["metric"]
        margin = comparison.margin(metric)
        return difference.supports() if margin is None else difference.supports_par(margin)

    def verdict(self, claim: Claim) -> str:
        """The word for a claim."""
        if not claim.comparisons:
            return NOT_TESTABLE
        outcomes = [self.outcome(comparison) for comparison in claim.comparisons]
        return verdict([outcome for outcome in outcomes if outcome is not None])


def read_results(folder: Path = HERE) -> Results:
    """The records of all studies in a folder."""
    return Results({study: records.read(folder / f"{study}.json") for study in STUDIES})
