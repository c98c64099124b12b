"""The page of the comparisons, README.md beside this file, made of learners.json and preserving.json alone.

    python recipes/vit-pictures/results_page.py

No number on it is typed, and no word of a verdict: a test makes the page again and finds it equal.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from statistics import fmean

from learners import LEARNERS, METRICS
from paired import HERE, SEARCH_SEED, Comparison, Record
from preserving import OTHERS, PRESERVING, WAYS

from hf_infinite_lr.evaluation import mean_and_half_width

from wording import interval, number  # isort: skip  # of recipes/studies, whose folder paired.py has added

_LEARNERS = {**METRICS, "average_right_after_learning": "right after learning each"}
_PRESERVING = {
    "letters": "letters (its task)",
    **{f"{name}_{way}": f"{name}, {words}" for way, words in WAYS.items() for name in OTHERS},
    **{f"others_{way}": f"mean of both, {words}" for way, words in WAYS.items()},
}


def whole_runs(comparison: Comparison) -> list[Record]:
    """The runs of the seeds that every arm has, so that every row has the same seeds; none for a single seed."""
    runs = comparison.records("report")
    seeds = set.intersection(*({run["seed"] for run in runs if run["arm"] == arm} for arm in comparison.rates))
    return [run for run in runs if run["seed"] in seeds] if len(seeds) > 1 else []


def table_lines(comparison: Comparison, columns: Mapping[str, str]) -> Iterator[str]:
    """Means over the seeds with 95 % intervals, a row for each arm."""
    runs = whole_runs(comparison)
    if not runs:
        kept = len(comparison.records("report"))
        yield (
            f"**Not whole yet**: {kept} runs are kept; the table stands here once two seeds have every arm. The same "
            "command does what is missing."
        )
        yield ""
        return
    yield f"| arm | {' | '.join(columns.values())} | CPU seconds |"
    yield "|---" * (len(columns) + 2) + "|"
    for arm in comparison.rates:
        own = [run for run in runs if run["arm"] == arm]
        cells = []
        for name in columns:
            values = [run[name] for run in own if name in run]
            cells.append("" if not values else "{:.3f} ± {:.3f}".format(*mean_and_half_width(values)))
        yield f"| `{arm}` | {' | '.join(cells)} | {fmean(run['cpu_seconds'] for run in own):.0f} |"
    yield ""


def claim_lines(comparison: Comparison) -> Iterator[str]:
    """Every claim with its difference and verdict."""
    runs = whole_runs(comparison)
    if not runs:
        return
    yield "| claim | difference | seeds | verdict |"
    yield "|---|---|---|---|"
    for claim in comparison.claims:
        difference = claim.difference(runs)
        yield f"| {claim.text} | {interval(difference)} | {difference.seeds} | **{claim.verdict(runs)}** |"
    yield ""


def search_lines(comparison: Comparison) -> Iterator[str]:
    """All trials, and what they chose."""
    for arm, rates in comparison.rates.items():
        if isinstance(rates, str) and comparison.best(arm) is not None:
            yield f"| `{arm}` | none: the rate of `{rates}` | {comparison.best(arm):g} |"
        elif rates and comparison.best(arm) is not None:
            own = [trial for trial in comparison.records("search") if trial["arm"] == arm]
            scores = ", ".join(f"{trial['learning_rate']:g}: {number(trial[comparison.score])}" for trial in own)
            chosen = comparison.best(arm)
            edge = " (at the edge of the grid)" if chosen in (rates[0], rates[-1]) else ""
            yield f"| `{arm}` | {scores} | {chosen:g}{edge} |"


def verdicts() -> str:
    """The verdicts as they also stand in the README of the project, on the learners after the last task."""
    learners, preserving = whole_runs(LEARNERS), whole_runs(PRESERVING)
    by_verdict = defaultdict(list)
    for claim in LEARNERS.claims:
        if claim.measure == "final_average":
            by_verdict[claim.verdict(learners)].append(f"`{claim.first}` above `{claim.second}`")
    for claim in PRESERVING.claims:
        if claim.second == "finetuning":
            by_verdict[claim.verdict(preserving)].append(f"`{claim.first}` {claim.text}")
    open_ones = len(by_verdict.pop("inconclusive", ()))
    settled = [f"{verdict}: {', '.join(claims)}" for verdict, claims in by_verdict.items()]
    return "; ".join([*settled, f"inconclusive: the other {open_ones} of the main claims"])


def cost_lines() -> Iterator[str]:
    """What the runs took, and on which versions they ran."""
    for comparison in (LEARNERS, PRESERVING):
        every = [*comparison.records("search"), *comparison.records("report")]
        if not every:
            continue
        hours = sum(record["cpu_seconds"] for record in every) / 3600
        versions = sorted({", ".join(f"{k} {v}" for k, v in record["versions"].items()) for record in every})
        commits = sorted({record["commit"][:9] for record in every})
        yield (
            f"- `{comparison.path.name}`: {len(every)} trials and runs, {hours:.2f} CPU hours on one core, without "
            f"pre-training; {'; '.join(versions)}; commits {', '.join(commits)}."
        )


def page() -> str:
    """The whole page."""
    lines = [
        "# Classes task by task, and fine-tuning that preserves",
        "",
        "Small vision transformers on built-in pictures, paired over seeds. `results_page.py` makes this page of "
        "[learners.json](learners.json) and [preserving.json](preserving.json): nobody types a number or a verdict. "
        "What is compared, and by which rules, stands at the top of [learners.py](learners.py) and "
        "[preserving.py](preserving.py), and stood there before the first run. Numbers are accuracies with 95 % "
        "intervals over seeds.",
        "",
        "## Digits, two classes at a time",
        "",
        *table_lines(LEARNERS, _LEARNERS),
        *claim_lines(LEARNERS),
        "## Fine-tuning on letters",
        "",
        "`attention_preserving` is a construction of this project after the abstract of the GLAD paper, whose "
        "equations are not known here; that abstract claims the first of these and the two on a better start.",
        "",
        *table_lines(PRESERVING, _PRESERVING),
        *claim_lines(PRESERVING),
        "## Search",
        "",
        f"Learning rates, on seed {SEARCH_SEED} and on held-out parts of the training data; scores of each trial.",
        "",
        "| arm | learning rate: score | chosen |",
        "|---|---|---|",
        *search_lines(LEARNERS),
        *search_lines(PRESERVING),
        "",
        "## Cost, and how to repeat it",
        "",
        *cost_lines(),
        "",
        "```bash",
        "python recipes/vit-pictures/learners.py     # delete learners.json first",
        "python recipes/vit-pictures/preserving.py   # delete preserving.json first",
        "python recipes/vit-pictures/results_page.py",
        "```",
        "",
        "## How far this carries",
        "",
        "A backbone of four blocks that was pre-trained for some minutes, on the unlabelled training part of the same "
        "digits among others; few updates; small grids of rates. Intervals speak of seeds (backbone, classes of a "
        "task, order) and not of other data, and there is no correction for several comparisons. "
        "[vit-split-cifar100](../vit-split-cifar100/infinite.yaml) has the published backbone and stream; it needs a "
        "GPU and a download, and has not been run here.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the page."""
    (HERE / "README.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
