import copy
import json
import math
from pathlib import Path

import evaluate
import pytest

import hf_infinite_lr
from hf_infinite_lr.metrics import DESCRIPTIONS, HEADLINE, TaskMatrix, summary

ABC = ("a", "b", "c")


def scores(matrix, baseline=(), tasks=ABC, columns=None):
    return TaskMatrix(tasks, columns or tasks, "accuracy", True, matrix, baseline)


def losses(matrix, baseline=(), tasks=ABC):
    return TaskMatrix(tasks, tasks, "eval_loss", False, matrix, baseline)


SCORES = scores([[0.8, 0.2, 0.1], [0.9, 0.7, 0.3], [0.6, 0.5, 0.9]], [0.1, 0.1, 0.1])
LOSSES = losses([[2.0, 5.0, 6.0], [3.0, 1.0, 4.0], [2.5, 2.0, 1.5]], [7.0, 8.0, 9.0])
# Only seen tasks were evaluated, and the untrained model was not.
SEEN = scores([[0.8, None, None], [0.9, 0.7, None], [0.6, 0.5, 0.9]])
# Old tasks got better: what was learned later helps them.
BETTER = losses([[2.0, 9.0], [1.0, 3.0]], [4.0, 8.0], tasks=("a", "b"))
ONE = scores([[0.8]], [0.3], tasks=("a",))
UNDER_WAY = scores([[0.8, 0.2, 0.1], [0.6, 0.5, 0.3]], [0.1, 0.1, 0.1])
# On this matrix the convention of Avalanche gives .1250 and that of Mammoth .1500: task a improves before it is lost.
TWO_LIBRARIES = scores([[0.80, 0.1, 0.1], [0.85, 0.75, 0.1], [0.70, 0.60, 0.9]])
# Task b has no value in the row after it was learned, and none is missing in the last row.
HOLE = scores([[0.8, None, None], [0.9, None, None], [0.6, 0.5, 0.9]])

TABLE = [
    # name, matrix, final, incremental, right after learning, forgetting (best), forgetting (right after), BWT, FWT
    ("scores", SCORES, 2.0 / 3, (0.8 + 0.8 + 2.0 / 3) / 3, 0.8, 0.25, 0.2, -0.2, (0.1 + 0.2) / 2),
    ("losses", LOSSES, 2.0, 2.0, 1.5, 0.75, 0.75, -0.75, (3.0 + 5.0) / 2),
    ("seen only", SEEN, 2.0 / 3, (0.8 + 0.8 + 2.0 / 3) / 3, 0.8, 0.25, 0.2, -0.2, None),
    ("negative forgetting", BETTER, 2.0, 2.0, 2.5, -1.0, -1.0, 1.0, -1.0),
    ("one task", ONE, 0.8, 0.8, 0.8, None, None, None, None),
    ("under way", UNDER_WAY, 0.55, 0.675, 0.65, 0.2, 0.2, -0.2, 0.1),
    ("two libraries", TWO_LIBRARIES, 2.2 / 3, (0.8 + 0.8 + 2.2 / 3) / 3, 2.45 / 3, 0.15, 0.125, -0.125, None),
    ("hole", HOLE, 2.0 / 3, None, None, None, None, None, None),
    ("no rows", scores([]), None, None, None, None, None, None, None),
]


@pytest.mark.parametrize(("matrix", "expected"), [(row[1], row[2:]) for row in TABLE], ids=[row[0] for row in TABLE])
def test_summary_is_the_hand_computed_one(matrix, expected):
    keys = (
        "final_average",
        "average_incremental",
        "average_right_after_learning",
        "forgetting_from_best_earlier",
        "forgetting_from_right_after_learning",
        "backward_transfer_gem",
        "forward_transfer_gem",
    )
    before = copy.deepcopy(matrix)
    assert summary(matrix) == {key: pytest.approx(value) for key, value in zip(keys, expected, strict=True)}
    assert matrix == before


def test_evaluate_loads_the_metrics_from_a_local_path(tmp_path):
    """Nulls and all: the same numbers as without `evaluate`."""
    metric = evaluate.load(str(Path(hf_infinite_lr.__file__).parent / "continual_metrics"), cache_dir=str(tmp_path))
    for matrix in (SCORES, LOSSES, SEEN, ONE):
        given = {"matrix": matrix.matrix, "baseline": matrix.baseline, "higher_is_better": matrix.higher_is_better}
        assert metric.compute(**given) == summary(matrix)
    assert all(key in metric.inputs_description for key in DESCRIPTIONS)
    with pytest.raises(ValueError, match=r"matrix=\[\] must have a row for each task learned so far"):
        metric.compute(matrix=[], higher_is_better=True)


def test_every_number_has_its_convention_and_four_are_shown():
    assert list(DESCRIPTIONS) == list(summary(SCORES))
    assert len(HEADLINE) == 4
    assert set(HEADLINE) < set(DESCRIPTIONS)


def test_a_loss_is_a_negated_score():
    negated = losses([[-cell for cell in row] for row in SCORES.matrix], [-cell for cell in SCORES.baseline])
    for key, value in summary(SCORES).items():
        sign = 1 if "forgetting" in key or "transfer" in key else -1
        assert summary(negated)[key] == pytest.approx(sign * value), key


def test_evaluation_only_columns_and_the_order_of_columns_do_not_count():
    columns = ("general", "c", "a", "b")
    rows = [[50.0, row[2], row[0], row[1]] for row in SCORES.matrix]
    matrix = scores(rows, [50.0, 0.1, 0.1, 0.1], columns=columns)
    assert matrix.evaluation_only == ("general",)
    assert matrix.diagonal == SCORES.diagonal == (0.8, 0.7, 0.9)
    assert summary(matrix) == summary(SCORES)


def test_with_row_leaves_the_matrix_and_the_values_unchanged():
    values = {"b": 2, "a": None}
    longer = scores([[0.8, 0.2, 0.1]]).with_row(values)
    assert longer.matrix == ((0.8, 0.2, 0.1), (None, 2.0, None))
    assert values == {"b": 2, "a": None}


def test_json_round_trip():
    data = SEEN.to_dict()
    assert data == {
        "schema_version": 1,
        "tasks": ["a", "b", "c"],
        "columns": ["a", "b", "c"],
        "metric": "accuracy",
        "higher_is_better": True,
        "matrix": [[0.8, None, None], [0.9, 0.7, None], [0.6, 0.5, 0.9]],
        "baseline": [None, None, None],
    }
    assert TaskMatrix.from_dict(json.loads(json.dumps(data))) == SEEN
    data["matrix"][0][0] = 9.0
    assert SEEN.matrix[0][0] == 0.8


def test_a_diverged_loss_is_not_a_missing_one():
    diverged = losses([[2.0, 5.0], [3.0, 1.0]], tasks=("a", "b")).to_dict() | {"matrix": [[math.nan, 5.0], [3.0, 1.0]]}
    numbers = summary(TaskMatrix.from_dict(diverged))
    assert math.isnan(numbers["forgetting_from_best_earlier"])
    assert numbers["final_average"] == 2.0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema_version": 2}, "schema_version is 2: only 1 can be read."),
        ({"tasks": []}, "tasks is []: it must be a list of one name or more."),
        ({"tasks": ["a", "a"]}, "tasks is ['a', 'a']: each name may stand there once."),
        ({"columns": ["a", "b"]}, "columns is ['a', 'b']: it must hold every task, and 'c' is missing."),
        ({"metric": ""}, "metric is '': it must be a name."),
        ({"higher_is_better": 1}, "higher_is_better is 1: it must be true or false."),
        ({"matrix": [[1, 2]]}, "matrix[0] is [1, 2]: it must have one cell for each of 3 columns."),
        ({"matrix": [[1, 2, "3"]]}, "matrix[0] holds '3': each cell must be a number, or null where not evaluated."),
        ({"matrix": [[1, 2, 3]] * 4}, "matrix has 4 rows: it may have at most one for each of 3 tasks."),
        ({"matrix": "no"}, "matrix is 'no': it must be a list of rows."),
        ({"baseline": [1]}, "baseline is [1]: it must have one cell for each of 3 columns."),
    ],
)
def test_bad_files_are_refused_in_one_sentence(change, sentence):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole sentence is compared
        TaskMatrix.from_dict(SEEN.to_dict() | change)
    assert str(caught.value) == sentence


def test_missing_keys_and_unknown_columns_are_named():
    data = SEEN.to_dict()
    del data["metric"]
    with pytest.raises(ValueError, match="metric must be among them"):
        TaskMatrix.from_dict(data)
    with pytest.raises(ValueError, match="must be a mapping"):
        TaskMatrix.from_dict([1])
    with pytest.raises(ValueError, match="values has 'd': it must name one of the columns"):
        scores([]).with_row({"d": 1.0})
    with pytest.raises(ValueError, match="at most one for each of 3 tasks"):
        SCORES.with_row({"a": 1.0})
