"""The comparisons on pictures: the page is what its files say, and its words are what its intervals say."""

import re
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest
from datasets import Dataset, Image

from hf_infinite_lr.stream.pictures import load_pictures

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "recipes" / "vit-pictures"
sys.path.append(str(PICTURES))

import learners  # noqa: E402
import paired  # noqa: E402
import preserving  # noqa: E402
import results_page  # noqa: E402

T_97_5 = {2: 12.7062047, 3: 4.3026527, 4: 3.1824463, 5: 2.7764451}  # Student's t, by seeds
COMPARISONS = {"learners": learners.LEARNERS, "preserving": preserving.PRESERVING}
ROW = re.compile(r"\| (.+) \| ([+-]\d\.\d{3}) \(([+-]\d\.\d{3}) to ([+-]\d\.\d{3})\) \| (\d) \| \*\*(\w+)\*\* \|")


@pytest.fixture(scope="module")
def page():
    return (PICTURES / "README.md").read_text(encoding="utf-8")


def test_page_is_made_of_its_files(page):
    assert page == results_page.page()


def test_readme_of_the_project_says_what_the_page_says():
    assert f"({results_page.verdicts()})" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("comparison", COMPARISONS.values(), ids=COMPARISONS)
def test_verdicts_follow_from_the_files(comparison, page):
    rows = {text: (*map(float, numbers), int(seeds), word) for text, *numbers, seeds, word in ROW.findall(page)}
    whole = results_page.whole_runs(comparison)
    runs = {(run["arm"], run["seed"]): run for run in whole}
    assert ("Not whole yet" in page) == (not all(map(results_page.whole_runs, COMPARISONS.values())))
    for claim in comparison.claims if whole else ():
        mean, low, high, seeds, word = rows[claim.text]
        differences = [
            runs[claim.first, seed][claim.measure] - runs[claim.second, seed][claim.measure]
            for seed in sorted({run["seed"] for run in whole})
        ]
        half = T_97_5[seeds] * stdev(differences) / seeds**0.5
        found = fmean(differences), fmean(differences) - half, fmean(differences) + half
        assert (mean, low, high) == pytest.approx(found, abs=6e-4)
        low, high = found[1] + claim.margin, found[2] + claim.margin
        assert word == ("holds" if low > 0 else "contradicted" if high < 0 else "inconclusive"), claim.text
        assert seeds == len({run["seed"] for run in whole})


@pytest.mark.parametrize("comparison", COMPARISONS.values(), ids=COMPARISONS)
def test_each_arm_has_as_many_trials_and_runs_at_its_best(comparison):
    searched = {arm: rates for arm, rates in comparison.rates.items() if rates and not isinstance(rates, str)}
    assert len({len(rates) for rates in searched.values()}) == 1
    trials, runs = comparison.records("search"), comparison.records("report")
    for arm, rates in searched.items():
        own = {trial["learning_rate"]: trial[comparison.score] for trial in trials if trial["arm"] == arm}
        assert sorted(own) == sorted(rates)
        assert comparison.best(arm) == max(own, key=own.__getitem__)
    assert {trial["seed"] for trial in trials} == {paired.SEARCH_SEED}
    assert all(run["learning_rate"] == comparison.best(run["arm"]) for run in runs)
    for record in (*trials, *runs):
        assert re.fullmatch("[0-9a-f]{40}", record["commit"])
        assert {"transformers", "torch", "peft"} < record["versions"].keys()


@pytest.mark.parametrize(
    ("first", "margin", "word"),
    [
        ([0.5, 0.6, 0.71], 0.0, "holds"),
        ([0.3, 0.4, 0.51], 0.0, "contradicted"),
        ([0.3, 0.6, 0.5], 0.0, "inconclusive"),
        ([0.389, 0.490, 0.591], 0.0, "contradicted"),
        ([0.389, 0.490, 0.591], 0.02, "holds"),
        ([0.35, 0.45, 0.551], 0.02, "contradicted"),
    ],
)
def test_words_of_a_claim(first, margin, word):
    values = {"ours": first, "other": [0.4, 0.5, 0.6]}
    runs = [
        {"arm": arm, "seed": seed, "score": value} for arm, own in values.items() for seed, value in enumerate(own)
    ]
    assert paired.Claim("better", "ours", "other", "score", margin).verdict(runs[::-1]) == word


def test_the_search_sees_nothing_that_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(paired, "OUT", tmp_path)
    found = paired.entry("digits", "search")
    files = [Dataset.from_parquet(found[key], cache_dir=str(tmp_path)) for key in ("data_files", "eval_data_files")]
    parts = [*files, load_pictures("digits").eval]
    train, scored, reported = (set(map(bytes_of, part.cast_column("image", Image(decode=False)))) for part in parts)
    assert (len(train), len(scored)) == (1134, 378)
    assert not train & scored
    assert not (train | scored) & reported
    assert paired.entry("digits", "report") == {"name": "digits", "builtin": "digits"}


def bytes_of(row):
    return row["image"]["bytes"]
