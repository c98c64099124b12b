"""The page of the studies, README.md beside this file, made of lm.json and mae.json alone.

    python recipes/studies/page.py

No number on it is typed, and no word of a verdict: a test makes the page again and finds it equal.
"""

from collections.abc import Iterator
from statistics import fmean

import new_seeds
import open_end
import records
from arm_tables import second_lines, table_lines
from arms import LABELS, NEW_SEEDS, SEARCH_SEED, SECOND, TABLES, grid
from claims import AVERAGE, CLAIMS, QUESTIONS, Comparison
from results import HERE, STUDIES, Results, measure, read_results
from verdicts import MARGINS
from wording import STUDY_TITLES, interval, number, short_unit


def question_lines(results: Results) -> Iterator[str]:
    """Every question with its answer in each table."""
    for question, comparisons in QUESTIONS.items():
        yield f"**{question}** Final average:"
        yield ""
        yield "| table | first | second | the first is better by | so the first is |"
        yield "|---|---|---|---|---|"
        for comparison in comparisons:
            difference = results.difference(comparison)
            if difference is not None:
                table, sides = comparison.first[0], (LABELS[comparison.first[1]], LABELS[comparison.second[1]])
                yield f"| `{table}` | {' | '.join(sides)} | {interval(difference)} | {difference.word()} |"
        yield ""


def claim_lines(results: Results) -> Iterator[str]:
    """The papers' claims with their verdicts, and every comparison behind them."""
    yield "| source | claim | verdict |"
    yield "|---|---|---|"
    for claim in CLAIMS:
        run = sum(results.outcome(comparison) is not None for comparison in claim.comparisons)
        why = claim.reason or f"{run} of {len(claim.comparisons)} comparisons run"
        yield f"| {claim.source} | {claim.text} | **{results.verdict(claim)}** ({why}) |"
    yield ""
    yield "The comparisons behind the verdicts; positive where the first arm is better:"
    yield ""
    yield "| claim | measure | first | second | difference | seeds | so the claim is |"
    yield "|---|---|---|---|---|---|---|"
    for claim in CLAIMS:
        for comparison in claim.comparisons:
            difference = results.difference(comparison)
            if difference is not None:
                kind = ", on par" if comparison.par else ""
                sides = [f"{LABELS[arm]} in `{table}`" for table, arm in (comparison.first, comparison.second)]
                cells = (
                    claim.text,
                    f"{comparison.measure}{kind}",
                    *sides,
                    interval(difference),
                    str(difference.seeds),
                )
                yield f"| {' | '.join(cells)} | {results.outcome(comparison)} |"
    yield ""


def search_lines(results: Results) -> Iterator[str]:
    """What each search chose, and whether that lies at the edge of its grid."""
    yield "| table | schedule | trials | chosen | final average in the search |"
    yield "|---|---|---|---|---|"
    for name, table in TABLES.items():
        own = [trial for trial in results.found[table.study]["search"] if trial["table"] == name]
        for schedule, setting in records.best(results.found[table.study], name).items():
            trials = [trial for trial in own if trial["schedule"] == schedule]
            rates = sorted({trial["learning_rate"] for trial in grid(table.study)[schedule]})
            edge = ", at the edge of the grid" if setting["learning_rate"] in (rates[0], rates[-1]) else ""
            words = ", ".join(f"`{key}` {value:g}" for key, value in setting.items())
            score = next(trial["score"] for trial in trials if trial["setting"] == setting)
            yield f"| `{name}` | `{schedule}` | {len(trials)} | {words}{edge} | {number(score)} |"
    yield ""


def cost_lines(results: Results) -> Iterator[str]:
    """What the runs took, and on which versions they ran."""
    for study in STUDIES:
        trials, runs = (results.found[study][kind] for kind in records.KINDS)
        every = [*trials, *runs]
        if every:
            hours = sum(record["cpu_seconds"] for record in every) / 3600
            versions = sorted({", ".join(f"{k} {v}" for k, v in record["versions"].items()) for record in every})
            commits = sorted({record["commit"][:9] for record in every})
            yield (
                f"- `{study}`: {len(trials)} trials and {len(runs)} runs, {hours:.2f} CPU hours on one core each; "
                f"{'; '.join(versions)}; commits {', '.join(commits)}."
            )
    yield ""


_SHORT = ("infinite", "cosine_rewarm", "cosine_half_peaks", "warmup_stable_decay", "joint_infinite")


def extract(results: Results) -> Iterator[str]:
    """The primary comparison of every table, as it also stands in the README of the project."""
    names = " | ".join(LABELS[arm] for arm in _SHORT)
    yield f"| final average | {names} | `infinite` is better than `cosine_rewarm` by | on new seeds |"
    yield "|---" * (len(_SHORT) + 3) + "|"
    for name, table in TABLES.items():
        difference = results.difference(_primary(name))
        if difference is None:
            continue
        runs = [list(results.runs(name, arm).values()) for arm in _SHORT]
        unit = short_unit(runs[0][0]["metric"])
        means = [number(fmean(measure(run, AVERAGE) for run in own)) if own else "" for own in runs]
        confirmed = results.confirmation(name)
        again = f"{interval(confirmed.again)}, {confirmed.again.word()}" if confirmed else ""
        yield f"| {table.title} ({unit}) | {' | '.join(means)} | {interval(difference)} | {again} |"
    yield ""


def short_sentences(results: Results) -> Iterator[str]:
    """The word for the primary comparison of every table, by every outcome."""
    for name, table in TABLES.items():
        difference = results.difference(_primary(name))
        if difference is None:
            continue
        yield (
            f"- {table.title}: `infinite` against `cosine_rewarm` is **{difference.word()}** over "
            f"{difference.seeds} seeds."
        )
        for metric in SECOND[table.study]:
            finer = results.on_second(metric).difference(_primary(name))
            if finer is not None:
                yield (
                    f"- {table.title}, by the {short_unit(metric)}: `infinite` is better by "
                    f"{interval(finer)}, **{finer.word()}**."
                )
    yield ""


def _primary(name: str) -> Comparison:
    return Comparison((name, "infinite"), (name, "cosine_rewarm"))


def missing(results: Results) -> Iterator[str]:
    """Which tables have not been run, or not whole."""
    for name, table in TABLES.items():
        counts = [len(results.done(name, arm)) for arm in table.arms]
        if min(counts) < table.seeds:
            state = "not run" if not any(counts) else "not whole yet"
            yield (
                f"- {table.title} (`{name}`): **{state}**, {sum(counts)} of {table.seeds * len(counts)} runs; an arm "
                "stands here once all its seeds are done."
            )
    yield ""


def page(results: Results) -> str:
    """The whole page."""
    margins = " and ".join(f"{margin:g} {short_unit(metric)}" for metric, margin in MARGINS.items())
    lines = [
        "# The evidence: infinite against repeated cosine",
        "",
        "Does the infinite schedule keep what was learned and learn the new as well? Small models, real data from "
        "the disk, paired seeds. `page.py` makes this page of [lm.json](lm.json) and [mae.json](mae.json): nobody "
        "types a number or a verdict. Questions, arms, statistics and rules stood in [protocol.md](protocol.md) "
        "before the first reported run; what was changed later stands there under *Amendments*, with the reason.",
        "",
        "## In short",
        "",
        *extract(results),
        *short_sentences(results),
        *missing(results),
        new_seeds.sentence(results),
        "",
        "Positive differences mean that the first arm is better, whatever the metric. *Ahead* and *behind* mean that "
        "the 95 % interval excludes 0, *inconclusive* that it does not.",
        "",
        *(f"![{title}](figures/{study}.png)" for study, title in figures(results).items()),
        "",
        "## Questions",
        "",
        *question_lines(results),
        "## Tables",
        "",
        *(line for name in TABLES for line in (*table_lines(results, name), *second_lines(results, name))),
        "## New seeds",
        "",
        "By how much `infinite` is better than `cosine_rewarm`, on the seeds of the tables and on others, run last. "
        f"What seeds {new_seeds.DECLARED} decide stood in the protocol before they ran. *Agree* means that Welch's "
        "95 % interval of the difference from that on the table's own seeds contains 0.",
        "",
        *new_seeds.lines(results),
        "```bash",
        *(
            f"python recipes/studies/study.py {study} --arms infinite cosine_rewarm --seeds "
            + " ".join(str(seed) for batch in batches for seed in batch)
            for study, batches in NEW_SEEDS.items()
        ),
        "```",
        "",
        "## What the papers claim",
        "",
        f"On par means within {margins}.",
        "",
        *claim_lines(results),
        "## The open end",
        "",
        "Three tasks are known, a fourth arrives, and a decayed model is to be served after each. Updates spent, in "
        "lengths of one task; arithmetic, not measured:",
        "",
        *open_end.lines(),
        "What such models are worth after each task is the column *right after learning* of the tables.",
        "",
        "## Search",
        "",
        f"The same number of trials for both schedules, on seed {SEARCH_SEED} and on data that no table uses. "
        "Of the knob beside the rate two values were tried, so that either is an edge.",
        "",
        *search_lines(results),
        "## Cost, and how to repeat it",
        "",
        *cost_lines(results),
        "```bash",
        "pip install -e . -c recipes/studies/constraints.txt   # the data is text of these packages",
        *(f"python recipes/studies/study.py {study}   # delete {study}.json first" for study in figures(results)),
        "python recipes/studies/page.py",
        "```",
        "",
        "## Open",
        "",
        "25 and 50 % replay; MAS, LwF, GDumb; sensitivity to constant, cool-down and annealing length; the order of "
        "tasks; a size that counts, on a GPU. Intervals speak of seeds on fixed data, not of other data, and there is "
        "no correction for several comparisons.",
    ]
    return "\n".join(lines) + "\n"


def figures(results: Results) -> dict[str, str]:
    """The studies that have a picture, with its caption."""
    caption = "by how much infinite is better than each arm, with 95 % intervals"
    return {study: f"{STUDY_TITLES[study]}: {caption}" for study in STUDIES if results.found[study]["runs"]}


def main() -> None:
    from picture import draw

    from hf_infinite_lr.plots import write_png

    results = read_results()
    (HERE / "README.md").write_text(page(results), encoding="utf-8")
    for study in figures(results):
        write_png(draw(results, study), HERE / "figures" / f"{study}.png")


if __name__ == "__main__":
    main()
