"""Builders: streams of tasks out of datasets, map-style and streaming, with held-out parts that are disjoint."""

import json
import logging
from datetime import UTC, date, datetime
from itertools import chain, pairwise

import datasets
import numpy as np
import pytest

from hf_infinite_lr.stream import (
    random_subset,
    split_by_class,
    split_by_distance,
    split_by_domain,
    split_by_instance,
    split_by_time,
    task_table,
)
from hf_infinite_lr.stream.builders.dates import _moment
from hf_infinite_lr.stream.builders.distances import distant_parts, mean_distance, tree_distances
from hf_infinite_lr.stream.reader import StreamReader

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay"]
DAYS = ["2022-12-31", "2023-01-01", "2023-06-15", "2024-02-29", "2024-03-01"]


def table(size=600, first=0, names=True):
    """Ids, labels of ten classes, three domains and five dates in a mixed order."""
    draw = np.random.RandomState(7)
    label = datasets.ClassLabel(names=NAMES) if names else datasets.Value("int64")
    features = {"id": "int64", "domain": "string", "date": "string"}
    columns = {
        "id": list(range(first, first + size)),
        "label": [row % 10 for row in range(size)],
        "domain": [("photo", "sketch", "clip art")[place] for place in draw.choice(3, size, p=[0.6, 0.3, 0.1])],
        "date": [DAYS[place] for place in draw.randint(0, 5, size)],
    }
    kinds = {**{name: datasets.Value(kind) for name, kind in features.items()}, "label": label}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({name: kinds[name] for name in columns}))


def ids(dataset):
    return [row["id"] for row in dataset]


def shuffled(dataset):
    return dataset.to_iterable_dataset().shuffle(buffer_size=10)


DOMAINS = ["sketch", "photo", "clip art"]
KINDS = {
    "instance": lambda data, **more: split_by_instance(data, 4, **more),
    "class": lambda data, **more: split_by_class(data, 4, **more),
    "distant": lambda data, **more: split_by_distance(data, 5, tree=TREE, **more),
    "domain": lambda data, **more: split_by_domain(
        data, column="domain", domains=["sketch", "photo", "clip art"], **more
    ),
    "time": lambda data, **more: split_by_time(data, boundaries=["2023", "2024-03"], **more),
}
TREE = {name: ("a/b", "a/c", "d/e", "d/f", "g/h")[place % 5] for place, name in enumerate(NAMES)}
PARTS = {"instance": 4, "class": 4, "distant": 5, "domain": 3, "time": 3}


# ---- laws of all builders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_is_in_one_part_and_on_one_side(kind):
    tasks = KINDS[kind](table(), eval_fraction=0.1)
    assert len(tasks) == PARTS[kind]
    parts = [ids(dataset) for task in tasks for dataset in (task.dataset, task.eval_dataset)]
    assert sorted(chain(*parts)) == list(range(600))
    for task in tasks:
        whole = len(task.dataset) + len(task.eval_dataset)
        assert len(task.eval_dataset) == max(1, int(0.1 * whole + 1e-9))
    again = KINDS[kind](table(), eval_fraction=0.1)
    assert [ids(task.eval_dataset) for task in again] == [ids(task.eval_dataset) for task in tasks]
    other = KINDS[kind](table(), eval_fraction=0.1, seed=1)
    assert [ids(task.eval_dataset) for task in other] != [ids(task.eval_dataset) for task in tasks]


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_divided_without_a_copy(kind):
    data = table()
    for task in KINDS[kind](data):
        assert task.dataset.data.table.column("id").equals(data.data.table.column("id"))  # behind row numbers


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_divided_like_the_table(kind):
    data = table(names=True)
    streams = KINDS[kind](data.to_iterable_dataset(num_shards=3), num_eval_samples=5)
    assert [task.streaming for task in streams] == [True] * PARTS[kind]
    held, trained = (
        [ids(part) for part in parts] for parts in zip(*((t.eval_dataset, t.dataset) for t in streams), strict=True)
    )
    assert [len(part) for part in held] == [5] * PARTS[kind]
    assert sorted(chain(*held, *trained)) == list(range(600))
    whole = [sorted(one + other) for one, other in zip(held, trained, strict=True)]
    if kind != "instance":  # whose parts are drawn row by row, as their sizes cannot be known
        tables = KINDS[kind](data)
        assert whole == [sorted(ids(task.dataset) + ids(task.eval_dataset)) for task in tables]
        assert [task.name for task in streams] == [task.name for task in tables]
    else:
        assert all(120 < len(part) < 180 for part in whole)
    assert [ids(task.dataset) for task in streams] == trained  # a second pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_a_stream_goes_on_exactly(kind):
    def reader():
        part = KINDS[kind](table().to_iterable_dataset(num_shards=2), num_eval_samples=5)[1].dataset
        return StreamReader("s", part, 0, 0, block_size=16)

    whole = reader().take(0, 150)
    for position in (5, 40, 110):
        first = reader()
        done = first.take(0, position)
        later = reader()
        later.load_state(json.loads(json.dumps(first.state_at(position))))
        assert done + later.take(position, 150 - position) == whole


def test_what_goes_by_place_stays_the_same_in_every_pass():
    """`datasets` turns the shards of a stream round from the second pass on, also without `shuffle`."""
    data = table().to_iterable_dataset(num_shards=4)
    chosen = [task.dataset for task in split_by_instance(data, 3, eval_dataset=table(60, first=1000))]
    for part in (*chosen, random_subset(data, 0.25)):
        size = len(ids(part))
        served = [row["id"] for row in StreamReader("s", part, 0, 0, block_size=16).take(0, 3 * size)]
        assert set(served[:size]) == set(served[size : 2 * size]) == set(served[2 * size :])


@pytest.mark.parametrize("kind", KINDS)
def test_given_held_out_data_is_divided_by_the_same_rule(kind):
    data, held = table(), table(200, first=1000)
    tasks = KINDS[kind](data, eval_dataset=held)
    assert sorted(chain(*(ids(task.dataset) for task in tasks))) == list(range(600))
    assert sorted(chain(*(ids(task.eval_dataset) for task in tasks))) == list(range(1000, 1200))
    for task in tasks:
        for column in {"class": ["label"], "distant": ["label"], "domain": ["domain"]}.get(kind, []):
            assert set(task.eval_dataset[column]) == set(task.dataset[column])


@pytest.mark.parametrize("kind", KINDS)
def test_balanced_parts_have_one_size(kind):
    tasks = KINDS[kind](table(), balanced=True)
    assert len({len(task.dataset) for task in tasks}) == 1
    assert len({len(task.eval_dataset) for task in tasks}) == 1


def test_what_went_where_is_logged_as_a_table(caplog):
    with caplog.at_level(logging.INFO):
        tasks = split_by_class(table(), 5, seed=None, name="cifar")
    assert task_table(tasks) in caplog.text
    assert task_table(tasks).splitlines()[:2] == [
        "task     train  held out  holds",
        "cifar-1    114         6  classes ant, bee",
    ]
    stream = split_by_domain(table().to_iterable_dataset(), column="domain", domains=["photo"], num_eval_samples=2)
    assert task_table(stream).splitlines()[1] == "task-photo  stream         2  domain photo"


# ---- each builder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "num_tasks"), [(600, 4), (601, 4), (7, 3)])
def test_random_parts_have_equal_sizes(size, num_tasks):
    tasks = split_by_instance(table(size), num_tasks, num_eval_samples=1)
    sizes = [len(task.dataset) for task in tasks]
    assert sum(sizes) == size - num_tasks
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("seed", "in_order"), [(None, True), (0, False), (3, False)])
def test_classes_are_shared_out_evenly(seed, in_order):
    tasks = split_by_class(table(), 4, seed=seed)
    groups = [sorted(set(task.dataset["label"])) for task in tasks]
    assert [len(group) for group in groups] == [3, 3, 2, 2]
    assert sorted(chain(*groups)) == list(range(10))
    assert (list(chain(*groups)) == list(range(10))) == in_order
    assert tasks[0].holds == "classes " + ", ".join(NAMES[label] for label in groups[0])


def clustered(num_groups, size, seed, width=4, noise=1.0):
    """Feature vectors of classes around centres of groups; classes of a group are not neighbours in their order."""
    draw = np.random.RandomState(seed)
    centres = 6 * draw.randn(num_groups, width)
    return np.stack([centres[label % num_groups] + noise * draw.randn(width) for label in range(size)])


@pytest.mark.parametrize(("num_tasks", "size", "noise"), [(5, 20, 1.0), (4, 30, 3.0), (10, 100, 6.0), (3, 20, 1000.0)])
def test_a_distant_split_lies_above_95_percent_of_1000_random_splits(num_tasks, size, noise):
    """With random splits of the test's own; also where there are no clusters at all (the last case)."""
    features = clustered(num_tasks, size, seed=num_tasks, noise=noise)
    matrix = np.linalg.norm(features[:, None] - features[None, :], axis=-1)
    parts = distant_parts(matrix, num_tasks)
    split = np.empty(size, int)
    for number, part in enumerate(parts):
        split[part] = number
    draw = np.random.RandomState(99)
    random = [mean_distance(matrix, draw.permutation(split)) for _ in range(1000)]
    assert np.mean(np.array(random) < mean_distance(matrix, split)) > 0.95
    sizes = [len(part) for part in parts]
    assert sum(sizes) == size
    assert max(sizes) - min(sizes) <= 1


def test_the_search_finds_the_best_of_all_splits_where_they_can_be_counted():
    from itertools import permutations

    for seed in range(5):
        points = np.random.RandomState(seed).randn(8, 2)
        matrix = np.linalg.norm(points[:, None] - points[None, :], axis=-1)
        found = np.empty(8, int)
        for number, part in enumerate(distant_parts(matrix, 2)):
            found[part] = number
        best = max(mean_distance(matrix, np.array(split)) for split in set(permutations([0] * 4 + [1] * 4)))
        assert mean_distance(matrix, found) == pytest.approx(best)


def test_class_means_a_matrix_and_a_tree_find_the_same_groups():
    centres = clustered(5, 10, seed=1)
    vectors = np.stack([centres[label] for label in table()["label"]]) + 0.1 * np.random.RandomState(0).randn(600, 4)
    matrix = np.linalg.norm(centres[:, None] - centres[None, :], axis=-1)
    column = table().add_column("vector", vectors.tolist())
    made = [
        split_by_distance(table(), 5, features=vectors),
        split_by_distance(column, 5, features="vector"),
        split_by_distance(table(), 5, distances=matrix.tolist()),
        split_by_distance(table(), 5, tree={name: f"group {place % 5}" for place, name in enumerate(NAMES)}),
    ]
    groups = [sorted(task.holds for task in tasks) for tasks in made]
    assert groups[0] == groups[1] == groups[2] == groups[3]
    assert "classes ant, fox" in groups[0]


def test_few_classes_have_too_few_splits_for_the_bar(caplog):
    distant_parts(np.array([[0, 1, 9, 9], [1, 0, 9, 9], [9, 9, 0, 1], [9, 9, 1, 0.0]]), 2)
    assert "lies above 6" in caplog.text
    with pytest.raises(ValueError, match="of these 6 classes tell no splits apart"):
        distant_parts(np.ones((6, 6)) - np.eye(6), 3)


def test_edges_of_a_tree():
    tree = {"x": "r/s/t", "y": "r/s/t", "z": "r/u", "w": "v"}
    assert tree_distances(tree, list("xyzw")).tolist() == [[0, 2, 5, 6], [2, 0, 5, 6], [5, 5, 0, 5], [6, 6, 5, 0]]


def test_one_dataset_for_each_domain():
    parts = {"photo": table(100), "sketch": table(50, first=500)}
    tasks = split_by_domain(parts, eval_fraction=0.1, name="net")
    assert [(task.name, len(task.dataset), len(task.eval_dataset)) for task in tasks] == [
        ("net-photo", 90, 10),
        ("net-sketch", 45, 5),
    ]
    assert [task.name for task in split_by_domain(parts, domains=["sketch"])] == ["task-sketch"]


def test_times_follow_one_another():
    data = table()
    for tasks in (split_by_time(data, num_tasks=7), split_by_time(data, period="month"), KINDS["time"](data)):
        days = [sorted({*task.dataset["date"], *task.eval_dataset["date"]}) for task in tasks]
        assert all(earlier[-1] <= later[0] for earlier, later in pairwise(days))
    equal = split_by_time(data, num_tasks=7, num_eval_samples=1)
    assert {len(task.dataset) for task in equal} == {84, 85}
    years = split_by_time(data, period="year", name="news")
    assert [(task.name, task.holds) for task in years] == [
        ("news-2022", "2022-12-31 to 2022-12-31"),
        ("news-2023", "2023-01-01 to 2023-06-15"),
        ("news-2024", "2024-02-29 to 2024-03-01"),
    ]
    assert [task.name for task in split_by_time(data, period="month")][-1] == "task-2024-03"


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2024-05-31", datetime(2024, 5, 31)),
        ("2024-05", datetime(2024, 5, 1)),
        ("2024", datetime(2024, 1, 1)),
        ("2024-05-31T12:00:00Z", datetime(2024, 5, 31, 12)),
        ("2024-05-31T12:00:00+02:00", datetime(2024, 5, 31, 10)),
        (2024, datetime(2024, 1, 1)),
        (date(2024, 5, 31), datetime(2024, 5, 31)),
        (datetime(2024, 5, 31, 1, 2, 3, 4, tzinfo=UTC), datetime(2024, 5, 31, 1, 2, 3, 4)),
    ],
)
def test_dates_in_many_forms(value, moment):
    assert _moment(value, "date") == moment


def test_timestamps_of_a_table():
    data = datasets.Dataset.from_dict({"at": [datetime(2020 + row % 3, 1, 1) for row in range(90)]})
    assert [task.name for task in split_by_time(data, column="at", period="year")] == [
        "task-2020",
        "task-2021",
        "task-2022",
    ]


def test_a_subset_stays_and_grows_without_losing():
    data = table()
    small, large = random_subset(data, 50), random_subset(data, 0.5)
    assert len(small) == 50
    assert len(large) == 300
    assert set(ids(small)) < set(ids(large))
    assert ids(random_subset(data, 50)) == ids(small) != ids(random_subset(data, 50, seed=1))
    stream = ids(random_subset(data.to_iterable_dataset(), 0.5))
    assert 240 < len(stream) < 360
    assert len(set(stream) & set(ids(large))) > 0.9 * min(len(stream), 300)


def test_samples_of_one_date_are_dealt_out_alike():
    years = [2020] * 60 + [2021] * 40
    data, held = (datasets.Dataset.from_dict({"year": years[::step]}) for step in (1, 5))
    one, two = split_by_time(data, column="year", num_tasks=2, eval_dataset=held)
    assert [one.dataset["year"].count(year) for year in (2020, 2021)] == [50, 0]
    assert [two.dataset["year"].count(year) for year in (2020, 2021)] == [10, 40]
    assert [part.eval_dataset["year"][:].count(2020) for part in (one, two)] == [10, 2]
    assert [part.eval_dataset["year"][:].count(2021) for part in (one, two)] == [0, 8]
    early = datasets.Dataset.from_dict({"year": [1999, 2020, 2021, 2044]})
    parts = split_by_time(data, column="year", num_tasks=2, eval_dataset=early)
    assert [part.eval_dataset["year"][:] for part in parts] == [[1999, 2020], [2021, 2044]]
    days = [part.eval_dataset["date"][:] for part in split_by_time(table(), num_tasks=4, eval_dataset=table(100))]
    assert all(max(earlier) <= min(later) for earlier, later in pairwise(days))


def test_the_diagonal_of_a_matrix_does_not_matter():
    draw = np.random.RandomState(0).random_sample((10, 10))
    apart = (draw + draw.T) / 2
    np.fill_diagonal(apart, 0)
    near = apart + np.diag(np.full(10, 50.0))
    found, again = (split_by_distance(table(), 5, distances=matrix) for matrix in (apart, near))
    assert [task.holds for task in found] == [task.holds for task in again]


def test_features_of_some_of_the_classes():
    data = table().filter(lambda row: row["label"] < 6)
    features = np.eye(6)[np.array(data["label"][:]) % 3 * 2]
    tasks = split_by_distance(data, 2, features=features, classes=[0, 1, 3, 4])
    assert sorted(task.holds for task in tasks) == ["classes ant, dog", "classes bee, elk"]


@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_the_format_of_a_dataset_does_not_matter(form):
    data = table()
    formatted = data.with_format(form)
    assert [task.holds for task in split_by_class(formatted, 5)] == [task.holds for task in split_by_class(data, 5)]
    stamps = datasets.Dataset.from_dict({"date": [datetime(2023 + row % 2, 1, 1) for row in range(60)]})
    tasks = split_by_time(stamps.with_format(form if form == "numpy" else None), period="year")
    assert [task.name for task in tasks] == ["task-2023", "task-2024"]


def test_classes_and_domains_by_their_names():
    by_name, by_number = (split_by_class(table(), 2, classes=classes) for classes in (["dog", "ant"], [3, 0]))
    assert [task.holds for task in by_name] == [task.holds for task in by_number]
    tasks = split_by_domain(table(), column="label", domains=["dog", "ant"])
    assert [(task.name, set(task.dataset["label"])) for task in tasks] == [("task-dog", {3}), ("task-ant", {0})]


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: split_by_class(t, 11), r"num_tasks=11 is more than the 10 classes of column 'label'"),
        (lambda t: split_by_class(t, 0), r"num_tasks=0 must be a whole number above 0"),
        (lambda t: split_by_class(t, 2.0), r"num_tasks=2\.0 must be"),
        (lambda t: split_by_class(t, 2, column="lable"), r"column='lable' is missing: the dataset has id, label, "),
        (lambda t: split_by_class(t, 2, classes=[1, 1]), r"classes=\[1, 1\] must be a list of different labels"),
        (lambda t: split_by_class(t, 2, classes=["dog", 3]), r"classes=\['dog', 3\] must be a list of different"),
        (lambda t: split_by_class(t, 2, classes=3), r"classes=3 must be a list of different labels"),
        (lambda t: split_by_class(t, 2, classes=[1, 77]), r"Task 'task-1' \(class 77\) hases|\(class 77\)"),
        (lambda t: split_by_instance(t, 601), r"num_tasks=601 is more than the 600 samples"),
        (lambda t: split_by_instance(t, 600), r"Task 'task-1' has 1 samples, too few to hold 1 of them out"),
        (lambda t: split_by_instance([1, 2], 2), r"A dataset of type list must be a Dataset or IterableDataset"),
        (lambda t: split_by_instance(t, 2, eval_fraction=1.0), r"eval_fraction=1\.0 must be above 0 and below 1"),
        (lambda t: split_by_instance(t, 2, num_eval_samples=0), r"num_eval_samples=0 must be"),
        (
            lambda t: split_by_instance(t, 2, num_eval_samples=3, eval_fraction=0.5),
            r"eval_fraction and num_eval_samples say what is held out",
        ),
        (lambda t: split_by_class(t, 2, eval_dataset=t.select([0])), r"has no held-out samples; hold out more rows"),
        (lambda t: split_by_domain(t), r"column is missing: name the column of domains"),
        (lambda t: split_by_domain(t, column="style"), r"column='style' is missing"),
        (lambda t: split_by_domain({"a": t}, column="domain"), r"column, eval_dataset and balanced do not go with"),
        (lambda t: split_by_domain({"a": t}, domains=["b"]), r"domains: 'b' is none of a"),
        (lambda t: split_by_time(t), r"exactly one of num_tasks, period and boundaries, not none"),
        (lambda t: split_by_time(t, period="week"), r"period='week' must be one of year, month, day"),
        (lambda t: split_by_time(t, column="when", period="year"), r"column='when' is missing"),
        (lambda t: split_by_time(t, column="domain", period="year"), r"domain holds '.*', which is no date"),
        (lambda t: split_by_time(t, boundaries=["2024", "2023"]), r"boundaries=\['2024', '2023'\] must be dates"),
        (lambda t: split_by_time(t, boundaries=["2030"]), r"Task 'task-2' \(from 2030-01-01 to the last\) has"),
        (lambda t: split_by_distance(t, 5), r"exactly one of tree, distances and features, not none"),
        (lambda t: split_by_distance(t, 5, tree={"ant": "x"}), r"tree says nothing of 9 classes, of 'bee' first"),
        (lambda t: split_by_distance(t, 5, distances=[[0, 1], [1, 0]]), r"distances of shape \(2, 2\) .* 10 by 10"),
        (lambda t: split_by_distance(t, 5, features="v"), r"features='v' is missing"),
        (
            lambda t: split_by_distance(t, 2, features=np.ones((600, 2)), classes=[1, 2, 77]),
            r"classes: 77 has no samples, so that features say nothing of it",
        ),
        (lambda t: split_by_distance(t, 5, features=np.ones((3, 2))), r"features of shape \(3, 2\) must be one"),
        (lambda t: split_by_distance(t, 11, tree=TREE), r"num_tasks=11 is more than the 10 classes"),
        (lambda t: random_subset(t, 601), r"subset=601 is more than the 600 samples"),
        (lambda t: random_subset(t, 1.5), r"subset=1\.5 must be a whole number of samples, or a share"),
        (lambda t: random_subset(t.to_iterable_dataset(), 5), r"subset=5 needs the number of all samples"),
        (lambda t: random_subset(shuffled(t), 0.5), r"subset=0\.5 goes by the places of samples, which a stream that"),
        (
            lambda t: split_by_instance(shuffled(t), 2, eval_dataset=t.select(range(9))),
            r"a random part goes by the places of samples",
        ),
        (
            lambda t: split_by_domain(shuffled(t), column="domain", domains=["photo"], num_eval_samples=2),
            r"num_eval_samples=2 goes by the places of samples",
        ),
        (lambda t: split_by_class(t.to_iterable_dataset(), 2), r"A streaming dataset holds out its first samples"),
        (
            lambda t: split_by_domain(t.to_iterable_dataset(), column="domain", num_eval_samples=1),
            r"classes are not known before a streaming dataset is read",
        ),
        (
            lambda t: split_by_distance(t.to_iterable_dataset(), 5, features="id", num_eval_samples=1),
            r"features need all samples, which a streaming dataset does not hold",
        ),
        (
            lambda t: split_by_time(t.to_iterable_dataset(), period="year", num_eval_samples=1),
            r"period needs all dates, which a streaming dataset does not tell: give boundaries",
        ),
        (
            lambda t: split_by_instance(t.to_iterable_dataset(), 2, num_eval_samples=1, balanced=True),
            r"balanced=True needs the sizes of all parts",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(table())
    assert "\n" not in str(caught.value)


def test_samples_without_a_label_are_refused():
    data = datasets.Dataset.from_dict({"label": [0, 1, None] * 20})
    with pytest.raises(ValueError, match="column='label' has samples without a label"):
        split_by_class(data, 2)
