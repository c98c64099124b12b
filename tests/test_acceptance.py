"""`accept_changed_tasks`: a run goes on although the tasks of its past are changed, gone or in another order."""

import json
import logging
import shutil

import pytest

from hf_infinite_lr.stream import Task

SETTINGS = {"evaluate_on": "none", "eval_dataset": {}}


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    return tiny.run(tmp_path_factory.mktemp("whole"), **SETTINGS)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    tiny.run(out, tiny.data("ab"), **SETTINGS)
    return out


def go_on(tiny, tmp_path, trained, tasks, **changes):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    return tiny.run(out, tasks, resume=True, accept_changed_tasks=True, **{**SETTINGS, **changes})


def test_a_task_whose_past_is_gone_is_learned_as_in_the_whole_run(tiny, tmp_path, trained, whole, caplog):
    """The rest of a run is the same, whether the data of what is trained is still given or not."""
    with caplog.at_level(logging.WARNING):
        rest = go_on(tiny, tmp_path, trained, tiny.data("c"))
    assert tiny.same_model(rest, whole)
    assert rest.watch.rates == {step: whole.watch.rates[step] for step in rest.watch.rates}
    assert rest.data_collator.ids == whole.data_collator.ids[-len(rest.data_collator.ids) :]
    assert caplog.text.count("is no longer given; it is neither replayed nor evaluated") == 2
    assert "the tasks are, in the order of training, a, b, c" in caplog.text
    states = [json.loads((run._output_dir / "continual_state.json").read_text()) for run in (rest, whole)]
    for mine, other in zip(states[0]["tasks"], states[1]["tasks"], strict=True):
        unknown = {"num_samples", "num_unused_samples"} if mine["name"] != "c" else set()
        assert {key: mine[key] for key in mine.keys() - unknown} == {key: other[key] for key in mine.keys() - unknown}


def test_another_order_changes_nothing_that_is_trained(tiny, tmp_path, trained, whole):
    rest = go_on(tiny, tmp_path, trained, tiny.data("cba"))
    assert [task.name for task in rest.plan.tasks] == ["a", "b", "c"]
    assert tiny.same_model(rest, whole)


def test_data_that_has_changed_is_used_as_it_is_now(tiny, tmp_path, caplog):
    settings = {"save_steps": 10, **SETTINGS}
    tiny.run(tmp_path, tiny.data("ab"), stop_at=11, **settings)
    changed = {**tiny.data("a"), "b": tiny.rows(80, 5, 70_000), "c": tiny.data("c")["c"]}
    with caplog.at_level(logging.WARNING):
        rest = tiny.run(tmp_path, changed, resume=True, accept_changed_tasks=True, **settings)
    assert rest.state.global_step == 21
    assert "the data of 'b' has changed (fingerprint" in caplog.text
    assert "'b' keeps its 6 steps, not 10" in caplog.text
    seen = [row for batch in rest.data_collator.ids for row in batch]
    assert all(70_000 <= row < 70_080 for row in seen[: 4 * tiny.BATCH])
    assert all(row // 1000 == ord("c") for row in seen[4 * tiny.BATCH :])
    with pytest.raises(ValueError, match=r"data of its task 'b' has changed"):
        tiny.trainer(tmp_path, tiny.data("abc"), **settings).train(True)


def test_what_is_gone_is_not_replayed(tiny, tmp_path, trained):
    rest = go_on(tiny, tmp_path, trained, tiny.data("bc"), replay_fraction=0.5)
    sources = {row // 1000 for batch in rest.data_collator.ids for row in batch}
    assert sources == {ord("b"), ord("c")}


def test_the_matrix_keeps_the_rows_of_what_is_gone(tiny, tmp_path):
    tiny.run(tmp_path, tiny.data("ab"))
    before = json.loads((tmp_path / "task_matrix.json").read_text())
    held_out = {"c": tiny.rows(8, 7, 9_000_000), "general": tiny.rows(8, 9, 9_000_000)}
    tiny.run(tmp_path, tiny.data("c"), resume=True, accept_changed_tasks=True, eval_dataset=held_out)
    after = json.loads((tmp_path / "task_matrix.json").read_text())
    assert after["columns"] == ["a", "b", "c", "general"]
    assert [row[:2] for row in after["matrix"][:2]] == [row[:2] for row in before["matrix"]]
    assert after["matrix"][2][:2] == [None, None]
    assert None not in after["matrix"][2][2:]


@pytest.mark.parametrize(("budget", "stop_at", "end"), [("within", 11, 14), ("extra", 17, 18)])
def test_a_task_under_way_must_be_given(tiny, tmp_path, budget, stop_at, end):
    """Under `extra` that is so up to the end of the trunk's repeat."""
    settings = {"anneal_budget": budget, "save_steps": stop_at - 1, **SETTINGS}
    tiny.run(tmp_path, stop_at=stop_at, **settings)
    again = tiny.trainer(tmp_path, tiny.data("ac"), accept_changed_tasks=True, **settings)
    with pytest.raises(
        ValueError, match=rf"task 'b' is under way at step {stop_at - 1} .* up to step {end} would have no"
    ):
        again.train(True)


def test_without_a_change_the_option_does_nothing(tiny, tmp_path, trained, whole):
    lengths = [Task(name, data) for name, data in tiny.data().items()]
    assert tiny.same_model(go_on(tiny, tmp_path, trained, lengths), whole)


def test_a_task_that_a_method_has_yet_to_read_must_be_given(tiny, tmp_path):
    settings = {"methods": {"mas": {"num_samples": 4}}, **SETTINGS}
    tiny.run(tmp_path, tiny.data("ab"), **settings)
    with pytest.raises(ValueError, match=r"task 'b' must be given until the task after it has begun.*methods\.mas"):
        tiny.trainer(tmp_path, tiny.data("ac"), accept_changed_tasks=True, **settings).train(True)


def test_methods_that_read_no_samples_need_no_data_that_is_gone(tiny, tmp_path):
    settings = {"methods": {"lwf": {}, "l2": {"weight": 0.1}}, **SETTINGS}
    tiny.run(tmp_path, tiny.data("ab"), **settings)
    rest = tiny.run(tmp_path, tiny.data("c"), resume=True, accept_changed_tasks=True, **settings)
    assert rest.state.global_step == 21
