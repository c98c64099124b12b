"""What changed arguments of the schedule do to a resumed ContinualTrainer."""

import logging

import pytest

HELD_OUT = {"eval_dataset": {}, "evaluate_on": "none"}
KWARGS = {"num_cooldown_steps": 2, "num_anneal_steps": 2}


def test_a_changed_floor_is_not_applied_before_the_first_branch(tiny, tmp_path, caplog):
    whole = tiny.run(tmp_path / "whole", tiny.data("ab"), **HELD_OUT)
    tiny.run(tmp_path / "parts", tiny.data("ab"), stop_at=5, save_steps=1, **HELD_OUT)
    changed = {"save_steps": 1, "lr_scheduler_kwargs": {**KWARGS, "min_lr_ratio": 0.5}, **HELD_OUT}
    with caplog.at_level(logging.WARNING):
        tiny.run(tmp_path / "parts", tiny.data("ab"), resume=True, stop_at=6, **changed)
        assert "min_lr_ratio 0.1 -> 0.5 (not applied, because on_resume=continue keeps the rates" in caplog.text
        caplog.clear()
        resumed = tiny.run(tmp_path / "parts", tiny.data("ab"), resume=True, **changed)
        assert "min_lr_ratio" not in caplog.text
    assert resumed.watch.rates == {step: whole.watch.rates[step] for step in range(6, 14)}


def test_what_is_changed_is_logged_where_the_past_agrees(tiny, tmp_path, caplog):
    tiny.run(tmp_path, tiny.data("ab"), stop_at=5, **HELD_OUT)
    with caplog.at_level(logging.WARNING):
        resumed = tiny.run(
            tmp_path,
            tiny.data("abc"),
            resume=True,
            stop_at=9,
            lr_scheduler_kwargs={**KWARGS, "anneal_type": "linear"},
            **HELD_OUT,
        )
    assert "task_steps [8, 6] -> [8, 6, 7] (rate at" in caplog.text
    assert "anneal_type 'exponential' -> 'linear' (rate at" in caplog.text
    assert resumed.watch.rates[7] == pytest.approx(tiny.PEAK * (0.75 + 0.1) / 2)


def test_lengths_change_where_rates_are_kept(tiny, tmp_path):
    tiny.run(
        tmp_path,
        tiny.data("ab"),
        stop_at=5,
        save_steps=1,
        lr_scheduler_kwargs={**KWARGS, "num_anneal_steps": 1},
        **HELD_OUT,
    )
    changed = {"lr_scheduler_kwargs": KWARGS, "learning_rate": 2 * tiny.PEAK, **HELD_OUT}
    resumed = tiny.run(tmp_path, tiny.data("ab"), resume=True, stop_at=9, **changed)
    floor = 0.75 * (0.1 / 0.75) ** 0.5
    assert [resumed.watch.rates[step] for step in (5, 6, 7, 8)] == pytest.approx(
        [tiny.PEAK * factor for factor in (0.75, 0.75, floor, 0.75)]
    )


def test_the_peak_of_an_appended_task_is_applied(tiny, tmp_path, caplog):
    def settings(*peaks):
        kwargs = {"rewarm_lr_ratio": list(peaks)}
        return {"lr_scheduler_type": "cosine_rewarm", "lr_scheduler_kwargs": kwargs, **HELD_OUT}

    tiny.run(tmp_path / "grown", tiny.data("ab"), **settings(0.5))
    with caplog.at_level(logging.WARNING):
        grown = tiny.run(tmp_path / "grown", tiny.data("abc"), resume=True, **settings(0.5, 0.25))
    assert grown.lr_scheduler.schedule == tiny.trainer(tmp_path / "whole", **settings(0.5, 0.25)).schedule
    assert "rewarm_lr_ratio [0.5] -> [0.5, 0.25] (rate at" in caplog.text


def test_annealing_at_the_resumed_step_is_refused_at_construction(tiny, tmp_path):
    message = (
        r"on_resume='anneal' cannot be used with ContinualTrainer.* `hf-infinite-lr anneal` or trainer.anneal\(\)"
    )
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, lr_scheduler_kwargs={**KWARGS, "on_resume": "anneal"}, **HELD_OUT)
