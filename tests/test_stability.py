"""The stability gap: closed forms, and what a run writes of it."""

import json

import pytest

from hf_infinite_lr.stability import stability_gaps

TASKS = [("a", 0, 10), ("b", 10, 20), ("c", 20, 30)]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(10, 1.0), (12, 1.5), (14, 1.2), (16, 1.01), (20, 1.4)], (0.5, 6)),
        ([(10, 1.0), (12, 1.005), (14, 1.2), (20, 1.0)], (0.2, 10)),
        ([(10, 1.0), (12, 1.2), (20, 1.1)], (0.2, None)),
        ([(10, 1.0), (15, 0.8), (20, 0.9)], (-0.1, 0)),
        ([(5, 9.0), (10, 2.0), (12, 2.03), (20, 1.0)], (0.03, 10)),
        ([(10, 1.0), (12, 1.5)], (0.5, None)),
    ],
)
def test_closed_forms(points, expected):
    (gap,) = stability_gaps(TASKS[:2], {"a": points})
    assert (gap["task"], gap["old_task"]) == ("b", "a")
    assert gap["loss_before"] == dict(points)[10]
    assert gap["depth"] == pytest.approx(expected[0])
    assert gap["length"] == expected[1]


@pytest.mark.parametrize(
    "evaluations",
    [
        {},
        {"a": [(10, 1.0), (20, 2.0), (30, 3.0)]},  # at the ends of tasks alone
        {"a": [(12, 1.0), (14, 2.0)]},  # not at the start
        {"b": [(10, 1.0), (12, 2.0), (20, 2.0)]},  # not an old task
        {"a": [(2, 1.0), (4, 2.0), (10, 1.0)]},
    ],
)
def test_nothing_is_measured_without_periodic_evaluations(evaluations):
    assert stability_gaps(TASKS[:2], evaluations) is None


def test_every_old_task_of_every_task():
    losses = [(10, 1.0), (15, 2.0), (20, 1.5), (25, 1.75), (30, 1.5)]
    gaps = stability_gaps(TASKS, {"a": losses, "b": losses[2:]})
    assert [(gap["task"], gap["old_task"], gap["depth"], gap["length"]) for gap in gaps] == [
        ("b", "a", 1.0, None),
        ("c", "a", 0.25, 10),
        ("c", "b", 0.25, 10),
    ]


def test_a_run_writes_what_its_evaluations_say_also_over_a_resume(tiny, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 2}
    whole = tiny.run(tmp_path / "whole", tiny.data("ab"), **settings)
    tiny.run(tmp_path / "parts", tiny.data("ab"), stop_at=11, **settings)
    tiny.run(tmp_path / "parts", tiny.data("ab"), resume=True, **settings)
    gaps = [
        json.loads((tmp_path / run / "continual_state.json").read_text())["stability_gap"]
        for run in ("whole", "parts")
    ]
    assert gaps[0] == gaps[1]
    seen = {entry["step"]: entry["eval_a_loss"] for entry in whole.state.log_history if "eval_a_loss" in entry}
    (gap,) = gaps[0]
    assert list(seen) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert gap["loss_before"] == seen[8]
    assert gap["depth"] == max(seen[step] for step in (10, 12, 14)) - seen[8]


def test_a_run_without_periodic_evaluations_writes_null(tiny, tmp_path):
    tiny.run(tmp_path, tiny.data("ab"))
    assert json.loads((tmp_path / "continual_state.json").read_text())["stability_gap"] is None
