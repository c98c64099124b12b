"""The primary comparison again, on seeds that were declared for it before they ran."""

from collections import Counter
from collections.abc import Iterator, Sequence

from arms import NEW_SEEDS, SECOND, TABLES
from results import Results
from verdicts import Difference
from wording import STUDY_TITLES, interval, short_unit

DECLARED = " and ".join(
    f"{batches[-1][0]} to {batches[-1][-1]} of {STUDY_TITLES[study].lower()}" for study, batches in NEW_SEEDS.items()
)


def sentence(results: Results) -> str:
    """How the primary comparison came out on the seeds that were declared for it."""
    parts, agreements = [], []
    for study, title in STUDY_TITLES.items():
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


def lines(results: Results) -> Iterator[str]:
    """The primary comparison again, on seeds that no table uses."""
    yield "| table | seeds | `infinite` is better by | so it is | minus that of the table's seeds | so they |"
    yield "|---|---|---|---|---|---|"
    for name, table in TABLES.items():
        yield from _rows(results, name, table.title)
        for metric in SECOND[table.study]:
            title = f"{table.title}, by the {short_unit(metric)}"
            yield from _rows(results.on_second(metric), name, title)
    yield ""


def _rows(results: Results, name: str, title: str) -> Iterator[str]:
    batches = results.new_seeds(name)
    if not batches:
        return
    own = range(TABLES[name].seeds)
    yield _row(title, own, batches[0][1].first)
    for seeds, agreement in batches:
        yield _row(title, seeds, agreement.again, f"{interval(agreement.change())} | {agreement.word()}")
    together = [*own, *(seed for seeds, _ in batches for seed in seeds)]
    yield _row(title, together, results.primary(name, together))


def _row(title: str, seeds: Sequence[int], found: Difference, change: str = " |") -> str:
    named = f"{seeds[0]} to {seeds[-1]}" if isinstance(seeds, range) else f"all {len(seeds)}"
    return f"| {title} | {named} | {interval(found)} | {found.word()} | {change} |"
