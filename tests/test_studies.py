"""The evidence: the page is what its JSON says, its words are what its intervals say, and a run repeats itself."""

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from unittest.mock import patch

import pytest
from scipy.stats import ttest_ind

from hf_infinite_lr.construction import schedule_from_arguments
from hf_infinite_lr.schedules import cosine_rewarm

STUDIES = Path(__file__).parent.parent / "recipes" / "studies"
sys.path.insert(0, str(STUDIES))

import arm_tables  # noqa: E402
import arms  # noqa: E402
import claims  # noqa: E402
import open_end  # noqa: E402
import page  # noqa: E402
import pins  # noqa: E402
import records  # noqa: E402
import results  # noqa: E402
import slices  # noqa: E402
import study  # noqa: E402
import trial  # noqa: E402
import verdicts  # noqa: E402

T_4 = 2.7764451  # Student's t, 97.5 %, of five seeds
FOUND = {"infinite": {"learning_rate": 8e-3, "constant_lr_ratio": 0.3}, "cosine_rewarm": {"learning_rate": 4e-3}}
INTERVAL = re.compile(r"([+-]\d\.\d{3}) \(([+-]\d\.\d{3}) to ([+-]\d\.\d{3})\)")
STUDIED = [name for name in results.STUDIES if (STUDIES / f"{name}.json").exists()]


def cells(text):
    """The rows of all tables of a page."""
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if "|" in line]


# ---- The page -----------------------------------------------------------------------------------------------------


def test_page_is_made_of_its_files():
    assert (STUDIES / "README.md").read_text(encoding="utf-8") == page.page(page.read_results())


def test_page_has_its_pictures():
    named = re.findall(r"\]\((figures/[^)]+)\)", (STUDIES / "README.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(f"figures/{path.name}" for path in (STUDIES / "figures").glob("*.png"))
    assert len(named) == len(STUDIED)


def test_readme_of_the_project_says_what_the_page_says():
    found, readme = page.read_results(), (STUDIES.parents[1] / "README.md").read_text(encoding="utf-8")
    flat = " ".join(readme.split())
    assert "\n".join(page.extract(found)).strip() in readme
    ahead, forgetting = (next(c for c in claims.CLAIMS if words in c.text) for words in ("ends ahead", "forgets less"))
    assert f"claim that `infinite` ends ahead came out **{found.verdict(ahead)}**" in flat
    assert f"That it forgets less came out **{found.verdict(forgetting)}** as well" in flat
    whole = [(name, arm) for name, table in arms.TABLES.items() for arm in table.arms if found.runs(name, arm)]
    certain = [one for one in whole if one[0].startswith("mae") and found.gain(*one).word() == "ahead"]
    assert certain == [("mae-replay", "warmup_stable_decay")]
    assert "only `warmup_stable_decay` with replay is certain to end above its own untrained encoder" in flat
    assert [name for name, table in arms.TABLES.items() for arm in table.arms if (name, arm) not in whole] == []

    def word(table, arm, than="infinite", outcome=found):
        return outcome.difference(claims.Comparison((table, arm), (table, than))).word()

    controls = ("warmup_stable_decay", "infinite_extra", "infinite_no_rewind")
    for table, arm in product(("lm-no-replay", "lm-replay", "lm-ten"), controls):
        assert word(table, arm) == "ahead"
    for arm in controls[:2]:
        assert word("lm-long", arm) == "inconclusive"
    words = {table: word(table, "infinite", "cosine_rewarm") for table in arms.TABLES}
    assert {table: word for table, word in words.items() if word != "inconclusive"} == {"mae-ten": "behind"}
    assert "over a table of text it scores better right after learning each task on average" in flat
    for measure, expected in ((claims.LEARNED, "ahead"), (claims.LOST, "behind")):
        for table in arms.TABLES:
            both = claims.Comparison((table, "infinite"), (table, "cosine_rewarm"), measure=measure)
            assert found.difference(both).word() == expected or table.startswith("mae")


def test_readme_of_the_project_says_what_the_declared_seeds_have_shown():
    found = page.read_results()
    flat = " ".join((STUDIES.parents[1] / "README.md").read_text(encoding="utf-8").split())
    told = {name: found.confirmation(name).again for name in arms.TABLES}
    assert {name for name, each in told.items() if each.word() == "ahead"} == {"lm-no-replay", "lm-replay", "lm-long"}
    assert {each.word() for each in told.values()} == {"ahead", "inconclusive"}
    assert {name: each.seeds for name, each in told.items()} == {
        name: 10 if table.study == "lm" else 5 for name, table in arms.TABLES.items()
    }
    assert "ends ahead of the repeated cosine in three of five tables, on ten new seeds" in flat
    assert [round(told[name].mean, 2) for name in ("lm-no-replay", "lm-replay")] == [0.06, 0.06]
    assert "by 0.06 bits per byte after three tasks, with replay and without" in flat
    assert f"by {told['lm-long'].mean:.3f} when these are four times as long" in flat
    masked = found.on_second("eval_loss")
    words = {
        name: (found.first.word(), found.again.word(), found.word())
        for name in told
        if name.startswith("mae") and (found := masked.confirmation(name))
    }
    assert words == {
        "mae-no-replay": ("inconclusive", "inconclusive", "agree"),
        "mae-replay": ("ahead", "inconclusive", "agree"),
        "mae-ten": ("behind", "behind", "agree"),
    }
    assert (
        "it is a little behind in ten tasks on old and new seeds, and ahead with 5 % replay on the old ones, with"
        in flat
    )
    assert "which new seeds do not confirm" in flat


def test_short_form_is_the_paired_difference_of_the_files():
    text = (STUDIES / "README.md").read_text(encoding="utf-8")
    checked = 0
    for name, table in arms.TABLES.items():
        runs = json.loads((STUDIES / f"{table.study}.json").read_text())["runs"] if table.study in STUDIED else []
        averages = {
            arm: {
                run["seed"]: fmean(run["matrix"][-1])
                for run in runs
                if (run["table"], run["arm"]) == (name, arm) and run["seed"] < 5
            }
            for arm in ("infinite", "cosine_rewarm")
        }
        if len(averages["infinite"]) != 5:
            continue
        sign = 1 if table.study == "mae" else -1
        differences = [sign * (averages["infinite"][seed] - averages["cosine_rewarm"][seed]) for seed in range(5)]
        half = T_4 * stdev(differences) / 5**0.5
        numbers = [fmean(differences), fmean(differences) - half, fmean(differences) + half]
        line = next(line for line in text.splitlines() if line.startswith(f"| {table.title}"))
        assert [float(number) for number in INTERVAL.search(line).groups()] == pytest.approx(numbers, abs=6e-4)
        word = "ahead" if numbers[1] > 0 else "behind" if numbers[2] < 0 else "inconclusive"
        assert f"- {table.title}: `infinite` against `cosine_rewarm` is **{word}** over 5 seeds." in text
        checked += 1
    assert checked


def test_new_seeds_agree_as_the_page_says():
    text, found = (STUDIES / "README.md").read_text(encoding="utf-8"), page.read_results()
    told = {(row[0], row[1]): row[2:] for row in cells(text.split("## New seeds")[1].split("```")[0])[2:]}
    checked = Counter()
    for name, table in arms.TABLES.items():
        own = [run for run in found.found[table.study]["runs"] if run["table"] == name]
        for outcome in (None, *arms.SECOND[table.study]):
            values: dict[str, dict[int, float]] = {"infinite": {}, "cosine_rewarm": {}}
            for run in (run for run in own if run["arm"] in values):
                values[run["arm"]][run["seed"]] = fmean((run[outcome] if outcome else run)["matrix"][-1])
            one, other = values.values()
            sign = 1 if table.study == "mae" and outcome is None else -1
            gains = {seed: sign * (one[seed] - other[seed]) for seed in one.keys() & other.keys()}
            title = f"{table.title}, by the squared error of a masked pixel" if outcome else table.title
            first = [gains[seed] for seed in range(table.seeds)]
            for seeds in arms.NEW_SEEDS[table.study]:
                new = [gains[seed] for seed in seeds]
                row = told[title, f"{seeds[0]} to {seeds[-1]}"]
                assert float(INTERVAL.fullmatch(row[0])[1]) == pytest.approx(fmean(new), abs=6e-4)
                welch = ttest_ind(new, first, equal_var=False).confidence_interval(0.95)
                numbers = [float(part) for part in INTERVAL.fullmatch(row[2]).groups()]
                assert numbers[1:] == pytest.approx([welch.low, welch.high], abs=6e-4)
                assert row[3] == ("agree" if welch.low <= 0 <= welch.high else "disagree")
                checked[row[3]] += 1
            everything = INTERVAL.fullmatch(told[title, f"all {len(gains)}"][0])
            assert float(everything[1]) == pytest.approx(fmean(gains.values()), abs=6e-4)
    assert sum(checked.values()) == 5 * 2 + 3 * 2


def test_words_match_the_intervals_beside_them():
    text = (STUDIES / "README.md").read_text(encoding="utf-8")
    found = Counter()
    for row in cells(text):
        words = [cell for cell in row if cell in ("ahead", "behind", "inconclusive", "supported", "contradicted")]
        numbers = [INTERVAL.fullmatch(cell) for cell in row if INTERVAL.fullmatch(cell)]
        if not words or "on par" in "".join(row):
            continue
        low, high = float(numbers[0][2]), float(numbers[0][3])
        if 0 in (low, high):  # rounded to 0: the third decimal does not tell
            continue
        expected = {"ahead", "supported"} if low > 0 else {"behind", "contradicted"} if high < 0 else {"inconclusive"}
        assert words[0] in expected, row
        found[words[0]] += 1
    assert sum(found.values()) > 10


# ---- The files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIED)
def test_both_schedules_have_the_same_trials_and_the_arms_their_best(name):
    found = records.read(STUDIES / f"{name}.json")
    for table in {run["table"] for run in found["runs"]}:
        searched = arms.TABLES[table].searched or table
        trials = [trial for trial in found["search"] if trial["table"] == searched]
        assert Counter(trial["schedule"] for trial in trials) == {"infinite": 8, "cosine_rewarm": 8}
        assert {trial["seed"] for trial in trials} == {arms.SEARCH_SEED}
        expected = arms.arms(records.best(found, searched), arms.TABLES[table].task_steps)
        for run in found["runs"]:
            if run["table"] == table:
                assert run["changes"] == expected[run["arm"]]


@pytest.mark.parametrize("name", STUDIED)
def test_every_run_says_where_it_comes_from(name):
    runs = records.read(STUDIES / f"{name}.json")["runs"]
    for run in runs:
        assert re.fullmatch("[0-9a-f]{40}", run["commit"])
        assert {"hf_infinite_lr", "torch", "transformers"} <= run["versions"].keys()
        assert run["seed"] != arms.SEARCH_SEED
        assert run["updates"]["on_path"] <= run["updates"]["spent"]


@pytest.mark.parametrize("name", STUDIED)
def test_all_runs_of_a_table_come_from_the_same_data_and_the_pinned_versions(name):
    runs = records.read(STUDIES / f"{name}.json")["runs"]
    for table in {run["table"] for run in runs}:
        own = [run for run in runs if run["table"] == table and not run["arm"].startswith("joint")]
        assert len({tuple(run["data"]) for run in own}) == 1
    pinned = dict(line.split("==") for line in (STUDIES / "constraints.txt").read_text(encoding="utf-8").splitlines())
    for run in runs:
        versions = {package: version.partition("+")[0] for package, version in run["versions"].items()}
        assert {package: pinned.get(package, versions[package]) for package in versions} == versions
    assert {"# python", "torch", "transformers", "scikit-learn"} <= pinned.keys()


def test_other_versions_than_those_of_the_records_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "constraints.txt"
    monkeypatch.setattr(pins, "corpus_versions", lambda name: ("python==3.11.7", "torch==2.13.0+cpu", "zlib==1"))
    pins.hold(path)
    assert path.read_text(encoding="utf-8") == "# python==3.11.7\ntorch==2.13.0\nzlib==1\n"
    pins.hold(path)
    monkeypatch.setattr(pins, "corpus_versions", lambda name: ("python==3.11.8", "torch==2.13.0", "zlib==2"))
    with pytest.raises(SystemExit, match=r"made with python==3\.11\.7, zlib==1, and other versions"):
        pins.hold(path)


def test_rows_of_a_table_have_the_same_seeds_and_others_are_called_missing():
    found, text = page.read_results(), (STUDIES / "README.md").read_text(encoding="utf-8")
    for name, table in arms.TABLES.items():
        whole = [arm for arm in table.arms if len(found.done(name, arm)) >= table.seeds]
        assert len({frozenset(found.runs(name, arm)) for arm in whole}) <= 1
        assert (f"(`{name}`): **not" in text) == (len(whole) < len(table.arms))


# ---- Verdicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "higher", "word"),
    [
        ([1.0, 1.1, 1.2], [2.0, 2.1, 2.2001], False, "ahead"),
        ([1.0, 1.1, 1.2], [2.0, 2.1, 2.2001], True, "behind"),
        ([1.0, 2.0, 3.0], [2.0, 1.0, 3.0], False, "inconclusive"),
    ],
)
def test_word_of_a_difference(first, second, higher, word):
    assert verdicts.Difference.of(first, second, higher_is_better=higher).word() == word


@pytest.mark.parametrize(
    ("mean", "half", "outcome"),
    [
        (0.0, 0.01, "supported"),
        (0.015, 0.01, "inconclusive"),
        (0.04, 0.01, "contradicted"),
        (-0.04, 0.01, "contradicted"),
    ],
)
def test_being_on_par_needs_an_interval_within_the_margin(mean, half, outcome):
    assert verdicts.Difference(mean, half, 5).supports_par(0.02) == outcome


@pytest.mark.parametrize(
    ("outcomes", "word"),
    [
        ([], "not run"),
        (["supported", "supported"], "holds"),
        (["supported", "contradicted"], "holds in part"),
        (["supported", "inconclusive"], "holds in part"),
        (["contradicted", "inconclusive"], "contradicted"),
        (["inconclusive"], "inconclusive"),
    ],
)
def test_verdict_on_a_claim(outcomes, word):
    assert verdicts.verdict(outcomes) == word


def test_claims_compare_arms_that_their_tables_have():
    compared = [each for claim in claims.CLAIMS for each in claim.comparisons]
    compared += [each for comparisons in claims.QUESTIONS.values() for each in comparisons]
    for table, arm in (side for each in compared for side in (each.first, each.second)):
        assert arm in arms.TABLES[table].arms
    assert all(bool(claim.comparisons) != bool(claim.reason) for claim in claims.CLAIMS)


# ---- Arms and data ------------------------------------------------------------------------------------------------


def test_every_arm_has_a_name_and_the_two_grids_are_as_large():
    made = arms.arms({**FOUND, "cosine_rewarm": {"learning_rate": 4e-3, "min_lr_ratio": 0.1}}, 200)
    assert made.keys() == arms.LABELS.keys()
    assert made["constant_branches"]["learning_rate"] == pytest.approx(2.4e-3)
    assert made["cosine_peaks_at_constant"]["lr_scheduler_kwargs"]["rewarm_lr_ratio"] == pytest.approx(0.6)
    for name in results.STUDIES:
        assert len({len(settings) for settings in arms.grid(name).values()}) == 1


def test_rewarming_from_the_floor_changes_the_later_warm_ups_alone():
    plain = cosine_rewarm([10, 10], warmup_steps=[4, 4], peak_ratios=[1.0, 1.0], min_ratio=0.2)
    floored = trial.from_the_floor(plain)
    assert [floored(step) for step in range(10)] == [plain(step) for step in range(10)]
    assert [floored(step) for step in range(10, 14)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert [floored(step) for step in range(14, 21)] == [plain(step) for step in range(14, 21)]


@pytest.mark.parametrize("stream", ["three", "same"])
def test_search_and_report_share_no_text(stream, tmp_path):
    texts = {}
    for purpose in slices.PURPOSES:
        for entry in slices.entries("lm", stream, purpose, tmp_path, 100_000):
            for part in ("data_files", "eval_data_files"):
                rows = slices.Dataset.from_parquet(entry[part], cache_dir=str(tmp_path / "cache"))
                texts[entry["name"], purpose, part] = set(rows["text"][:])
    names = {name for name, _, _ in texts}
    for name in names:
        used = {purpose: texts[name, purpose, "data_files"] for purpose in slices.PURPOSES}
        assert not used["search"] & used["report"]
        for purpose in slices.PURPOSES:
            assert texts[name, purpose, "eval_data_files"]
            assert not texts[name, purpose, "eval_data_files"] & (used["search"] | used["report"])


def test_slices_of_ten_tasks_share_no_row():
    for name in results.STUDIES:
        parts = slices.STREAMS[name]["ten"]
        assert len({part.name for part in parts}) == 10
    rows = slices.Dataset.from_dict({"label": list(range(25)), "source": ["scipy/a"] * 25})
    picked = [label for part in slices.STREAMS["mae"]["ten"] for label in part.of(rows)["label"][:]]
    assert sorted(picked) == list(range(25))


def test_open_end_counts_as_the_plans_of_runs_do():
    lengths = [100] * 4
    for budget in ("within", "extra"):
        kwargs = {"num_anneal_steps": arms.ANNEALING}
        schedule = schedule_from_arguments(
            "infinite", task_steps=lengths, learning_rate=1.0, warmup_steps=5, kwargs=kwargs, anneal_budget=budget
        )
        served = [branch.end_step / 100 for branch in schedule.branch_points]
        assert open_end.updates()[f"`infinite`, `anneal_budget: {budget}`"][:2] == pytest.approx(served[2:])


# ---- The machinery ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_quick_form_repeats_itself_and_does_nothing_twice(tmp_path):
    words = ["lm", "--quick", "--jobs", "1", "--tables", "lm-no-replay", "--seeds", "0"]
    words += ["--folder", str(tmp_path), "--arms", "infinite", "cosine_rewarm", "cosine_from_floor", "joint_cosine"]
    study.main(words)
    first = records.read(tmp_path / "lm.json")
    assert len(first["search"]) == 4
    assert len(first["runs"]) == 4
    by_arm = {run["arm"]: run for run in first["runs"]}
    assert by_arm["infinite"]["updates"] == {"spent": 18, "on_path": 16, "at_rate_0": 1}
    assert by_arm["infinite"]["distinct_samples_on_path"] == 160
    assert by_arm["cosine_rewarm"]["updates"] == {"spent": 18, "on_path": 18, "at_rate_0": 3}
    assert by_arm["cosine_from_floor"]["updates"]["at_rate_0"] == 1
    assert by_arm["infinite"]["trunk"] != by_arm["infinite"]["matrix"][-1]
    assert page.page(results.Results({"lm": first, "mae": {"search": [], "runs": []}})).count("`lm-no-replay`") > 1

    undone = {"infinite", "joint_cosine"}
    kept = {"search": first["search"], "runs": [run for run in first["runs"] if run["arm"] not in undone]}
    records.write(tmp_path / "lm.json", kept)
    study.main(words)
    again = records.read(tmp_path / "lm.json")
    assert again["search"] == first["search"]
    assert len(again["runs"]) == 4
    for run in again["runs"]:
        before = by_arm[run["arm"]]
        assert {**run, "cpu_seconds": 0} == {**before, "cpu_seconds": 0}
        assert run["cpu_seconds"] == before["cpu_seconds"] or run["arm"] in undone


@pytest.mark.slow
def test_quick_form_of_the_masked_autoencoders(tmp_path):
    words = ["mae", "--quick", "--jobs", "1", "--tables", "mae-no-replay", "--seeds", "0", "--folder", str(tmp_path)]
    study.main([*words, "--arms", "infinite", "cosine_from_floor", "joint_cosine"])
    found = records.read(tmp_path / "mae.json")
    assert len(found["search"]) == 4
    by_arm = {run["arm"]: run for run in found["runs"]}
    assert by_arm["infinite"]["updates"] == {"spent": 18, "on_path": 16, "at_rate_0": 1}
    assert by_arm["infinite"]["distinct_samples_on_path"] == 16 * 16
    assert by_arm["cosine_from_floor"]["updates"]["at_rate_0"] == 1
    assert by_arm["cosine_from_floor"]["trunk"] is None
    assert by_arm["joint_cosine"]["tasks"] == ["digits", "glyphs", "photos"]
    for run in found["runs"]:
        assert run["metric"] == "linear_accuracy"
        assert run["arm"] == "joint_cosine" or [[cell is None for cell in row] for row in run["matrix"]] == [
            [column > row for column in range(3)] for row in range(3)
        ]
        assert all(0 < cell <= 1 for row in [run["baseline"], *run["matrix"]] for cell in row if cell is not None)
        finer = run["eval_loss"]
        assert (finer["metric"], finer["higher_is_better"]) == ("eval_loss", False)
        assert all(0 < cell < 10 for row in [finer["baseline"], *finer["matrix"]] for cell in row if cell is not None)
        assert finer["matrix"] != run["matrix"]
    assert len(by_arm["infinite"]["trunk"]) == 3
    trunk = by_arm["infinite"]["eval_loss"]["trunk"]
    assert len(trunk) == 3
    assert trunk != by_arm["infinite"]["eval_loss"]["matrix"][-1]
    quick = replace(arms.TABLES["mae-no-replay"], seeds=1)
    with patch.dict(arms.TABLES, {"mae-no-replay": quick}):
        lines = list(arm_tables.second_lines(results.Results({"mae": found}), "mae-no-replay"))
    averages = {arm: fmean(run["eval_loss"]["matrix"][-1]) for arm, run in by_arm.items()}
    for arm, average in averages.items():
        assert any(line.startswith(f"| {arms.LABELS[arm]} | {average:.3f} |") for line in lines)
