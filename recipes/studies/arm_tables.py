"""The tables of the page: a row for each arm, and what it cost."""

from collections.abc import Iterator
from statistics import fmean

from arms import LABELS, SECOND, TABLES
from claims import AVERAGE, LEARNED, LOST, Comparison
from results import MEASURES, Results, measure
from wording import UNITS, interval, number


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
        f"{len(runs)} seeds; {UNITS[one['metric']]}. Differences are paired over seeds, with 95 % intervals."
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
        yield f"The same runs by what they were trained on: {UNITS[metric]}."
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
