"""The page of the studies, README.md beside this file, made of lm.json and mae.json alone.

    python recipes/studies/page.py

No number on it is typed, and no word of a verdict: a test makes the page again and finds it equal.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean

import open_end
import records
from arms import LABELS, NEW_SEEDS, SEARCH_SEED, SECOND, TABLES, grid
from claims import AVERAGE, CLAIMS, LEARNED, LOST, QUESTIONS, Comparison
from results import HERE, MEASURES, STUDIES, Results, measure, read_results
from verdicts import MARGINS, Difference

_STUDY_TITLES = {"lm": "Language models", "mae": "Masked autoencoders"}
_DECLARED = " and ".join(
    f"{batches[-1][0]} to {batches[-1][-1]} of {_STUDY_TITLES[study].lower()}" for study, batches in NEW_SEEDS.items()
)
_UNITS = {
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


def table_lines(results: Results, name: str) -> Iterator[str]:
    """A primary table: a row for each arm, and the references."""
    table = TABLES[name]
    runs = results.runs(name, "infinite")
    if not runs:
        return
    one = next(iter(runs.values()))
    yield f"### {table.title}"
    yield ""
    yield (
        f"`{name}`: {len(one['tasks'])} tasks ({', '.join(one['tasks'])}), {table.task_steps} updates each, "
        f"{len(runs)} seeds; {_UNITS[one['metric']]}. Differences are paired over seeds, with 95 % intervals."
    )
    yield ""
    yield (
        "| arm | final average | `infinite` is better by | so `infinite` is | right after learning | lost since | "
        "trunk before annealing | updates spent | on the path | at rate 0 | distinct samples |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    shown = [arm for arm in table.arms if results.runs(name, arm)]
    yield from (_row(results, name, arm) for arm in shown)
    untrained = fmean(fmean(run["baseline"]) for run in runs.values())
    yield f"| untrained | {number(untrained)} |" + " |" * 9
    if one["byte_unigram"]:
        yield f"| byte unigram | {number(fmean(one['byte_unigram'].values()))} |" + " |" * 9
    yield ""
    gains = {arm: results.gain(name, arm) for arm in shown}
    if doubtful := [arm for arm in shown if gains[arm].word() != "ahead"]:
        words = "; ".join(f"{LABELS[arm]} {interval(gains[arm])}, {gains[arm].word()}" for arm in doubtful)
        yield f"Not certainly better than its untrained model, {len(doubtful)} of {len(shown)} arms: {words}."
        yield ""


def _row(results: Results, table: str, arm: str) -> str:
    return "| " + " | ".join([*_outcome(results, table, arm), *_cost(results, table, arm)]) + " |"


def _outcome(results: Results, table: str, arm: str) -> list[str]:
    runs = list(results.runs(table, arm).values())
    values = {name: [measure(run, name) for run in runs] for name in MEASURES}
    means = {name: None if None in found else fmean(found) for name, found in values.items()}
    trunks = [run["trunk"] for run in runs]
    difference = None if arm == "infinite" else results.difference(Comparison((table, "infinite"), (table, arm)))
    return [
        LABELS[arm],
        number(means[AVERAGE]),
        interval(difference),
        difference.word() if difference else "",
        number(means[LEARNED]),
        number(means[LOST]),
        "" if None in trunks else number(fmean(fmean(trunk) for trunk in trunks)),
    ]


def _cost(results: Results, table: str, arm: str) -> list[str]:
    runs = list(results.runs(table, arm).values())
    return [
        *(str(runs[0]["updates"][key]) for key in ("spent", "on_path", "at_rate_0")),
        str(round(fmean(run["distinct_samples_on_path"] for run in runs))),
    ]


def second_lines(results: Results, name: str) -> Iterator[str]:
    """A table's finer outcome, for those that have one."""
    for metric in SECOND[TABLES[name].study]:
        second = results.on_second(metric)
        shown = [arm for arm in TABLES[name].arms if second.runs(name, arm)]
        if not shown:
            return
        yield f"The same runs by what they were trained on: {_UNITS[metric]}."
        yield ""
        yield (
            "| arm | final average | `infinite` is better by | so `infinite` is | right after learning | lost since | "
            "trunk before annealing |"
        )
        yield "|---|---|---|---|---|---|---|"
        yield from ("| " + " | ".join(_outcome(second, name, arm)) + " |" for arm in shown)
        untrained = fmean(fmean(run["baseline"]) for run in second.runs(name, shown[0]).values())
        yield f"| untrained | {number(untrained)} |" + " |" * 5
        yield ""


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
        unit = _UNITS[runs[0][0]["metric"]].split(",")[0]
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
                    f"- {table.title}, by the {_UNITS[metric].split(',')[0]}: `infinite` is better by "
                    f"{interval(finer)}, **{finer.word()}**."
                )
    yield ""


def _primary(name: str) -> Comparison:
    return Comparison((name, "infinite"), (name, "cosine_rewarm"))


def new_seed_sentence(results: Results) -> str:
    """How the primary comparison came out on the seeds that were declared for it."""
    parts, agreements = [], []
    for study, title in _STUDY_TITLES.items():
        tables = [name for name, table in TABLES.items() if table.study == study]
        found = [one for name in tables if (one := results.confirmation(name))]
        counts = Counter(one.again.word() for one in found)
        words = ", ".join(f"{word} in {counts[word]}" for word in ("ahead", "inconclusive", "behind") if counts[word])
        parts.append(f"{words} of {len(found)} tables of {title.lower()}")
        agreements += [one.word() for one in found]
    return (
        f"On [new seeds](#new-seeds), declared before they ran, `infinite` is {'; '.join(parts)}. Of these "
        f"{len(agreements)} differences {agreements.count('agree')} agree with those above; one in twenty would "
        "differ by chance."
    )


def new_seed_lines(results: Results) -> Iterator[str]:
    """The primary comparison again, on seeds that no table uses."""
    yield "| table | seeds | `infinite` is better by | so it is | minus that of the table's seeds | so they |"
    yield "|---|---|---|---|---|---|"
    for name, table in TABLES.items():
        yield from _new_seed_rows(results, name, table.title)
        for metric in SECOND[table.study]:
            title = f"{table.title}, by the {_UNITS[metric].split(',')[0]}"
            yield from _new_seed_rows(results.on_second(metric), name, title)
    yield ""


def _new_seed_rows(results: Results, name: str, title: str) -> Iterator[str]:
    batches = results.new_seeds(name)
    if not batches:
        return
    own = range(TABLES[name].seeds)
    yield _seeds_row(title, own, batches[0][1].first)
    for seeds, agreement in batches:
        yield _seeds_row(title, seeds, agreement.again, f"{interval(agreement.change())} | {agreement.word()}")
    together = [*own, *(seed for seeds, _ in batches for seed in seeds)]
    yield _seeds_row(title, together, results.primary(name, together))


def _seeds_row(title: str, seeds: Sequence[int], found: Difference, change: str = " |") -> str:
    named = f"{seeds[0]} to {seeds[-1]}" if isinstance(seeds, range) else f"all {len(seeds)}"
    return f"| {title} | {named} | {interval(found)} | {found.word()} | {change} |"


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
    margins = " and ".join(f"{margin:g} {_UNITS[metric].split(',')[0]}" for metric, margin in MARGINS.items())
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
        new_seed_sentence(results),
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
        f"What seeds {_DECLARED} decide stood in the protocol before they ran. *Agree* means that Welch's 95 % "
        "interval of the difference from that on the table's own seeds contains 0.",
        "",
        *new_seed_lines(results),
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
    return {study: f"{_STUDY_TITLES[study]}: {caption}" for study in STUDIES if results.found[study]["runs"]}


def main() -> None:
    from picture import draw

    from hf_infinite_lr.plots import write_png

    results = read_results()
    (HERE / "README.md").write_text(page(results), encoding="utf-8")
    for study in figures(results):
        write_png(draw(results, study), HERE / "figures" / f"{study}.png")


if __name__ == "__main__":
    main()
