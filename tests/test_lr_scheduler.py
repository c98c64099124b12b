import copy
import io
import logging
import math
import pickle
from itertools import pairwise

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from hf_infinite_lr.arguments import resume_arguments
from hf_infinite_lr.construction import schedule_from_arguments
from hf_infinite_lr.lr_scheduler import (
    ScheduleLR,
    get_cosine_rewarm_schedule,
    get_infinite_schedule,
    get_rsqrt_rewarm_schedule,
)

LR = 1e-3


def make_optimizer(lr=LR, **kwargs):
    return torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=lr, **kwargs)


def make(num_training_steps=100, lr=LR, optimizer=None, **kwargs):
    return get_infinite_schedule(optimizer or make_optimizer(lr), 5, num_training_steps, **kwargs)


def make_cosine(num_training_steps=100, lr=LR, **kwargs):
    return get_cosine_rewarm_schedule(make_optimizer(lr), 5, num_training_steps, **kwargs)


def make_rsqrt(num_training_steps=100, lr=LR, **kwargs):
    return get_rsqrt_rewarm_schedule(make_optimizer(lr), 5, num_training_steps, **kwargs)


def saved_at(position, maker=make, **kwargs):
    """The state after `position` updates, through a file as Trainer writes and reads it."""
    scheduler = maker(**kwargs)
    scheduler.set_position(position)
    file = io.BytesIO()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def load(scheduler, state):
    scheduler.load_state_dict(state)
    return scheduler


def rate(scheduler):
    return scheduler.optimizer.param_groups[0]["lr"]


def spans(scheduler):
    """Name, first step and end of every phase."""
    schedule = scheduler.schedule
    return [
        (phase.name, start, None if phase.num_steps is None else start + phase.num_steps)
        for phase, start in zip(schedule.phases, schedule.boundaries, strict=False)
    ]


def changed(caplog, key):
    """The one line that logs a changed argument."""
    (message,) = [message for message in caplog.messages if f": {key} " in message]
    return message


def run(scheduler, num_steps):
    rates = []
    for _ in range(num_steps):
        rates.append(rate(scheduler))
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def test_steps_follow_the_schedule():
    scheduler = make()
    assert run(scheduler, 110) == [LR * scheduler.schedule(n) for n in range(110)]
    assert scheduler.get_last_lr() == [rate(scheduler)]
    assert rate(scheduler) == pytest.approx(0.1 * LR)


def test_groups_keep_their_ratios_and_absolute_rates_are_divided_once():
    head, body = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [head], "lr": 0.1}, {"params": [body]}], lr=0.01)
    scheduler = get_infinite_schedule(optimizer, 5, 100, constant_lr=0.005, min_lr=0.001)
    scheduler.set_position(60)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.005])
    scheduler.set_position(100)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.001])


def test_tensor_rates_are_written_in_place():
    optimizer = make_optimizer(torch.tensor(LR), foreach=False)
    tensor = optimizer.param_groups[0]["lr"]
    scheduler = make(optimizer=optimizer)
    scheduler.set_position(60)
    assert optimizer.param_groups[0]["lr"] is tensor
    assert tensor.item() == pytest.approx(0.75 * LR)
    assert saved_at(60)["base_lrs"] == [LR]


def test_set_position_mends_stale_rates():
    scheduler = make()
    scheduler.set_position(60)
    scheduler.optimizer.load_state_dict(make_optimizer(lr=7.0).state_dict())
    assert rate(scheduler) == 7.0
    scheduler.set_position(60)
    assert rate(scheduler) == pytest.approx(0.75 * LR)
    assert scheduler.phase.name == "constant"
    assert scheduler.rate_at(100) == pytest.approx(0.1 * LR)


def plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return value is None or type(value) in (int, float, str, bool)


def test_state_is_plain_python_and_enough():
    numpy = pytest.importorskip("numpy")
    state = saved_at(60, task_steps=(100, 50), min_lr=numpy.float32(1e-4), num_anneal_steps=numpy.int64(10))
    assert plain(state)
    assert state["version"] == 1
    assert pickle.loads(pickle.dumps(state)) == copy.deepcopy(state)


def test_resume_is_the_undisturbed_run():
    undisturbed = run(make(task_steps=[60, 40]), 100)
    for position in (0, 3, 5, 30, 48, 50, 60, 75, 99):
        resumed = load(make(task_steps=[60, 40]), saved_at(position, task_steps=[60, 40]))
        assert run(resumed, 100 - position) == undisturbed[position:]


def test_first_update_after_loading_has_no_stale_rate():
    old = make()
    old.set_position(60)
    new = make(lr=2 * LR, on_resume="override")
    new.optimizer.load_state_dict(old.optimizer.state_dict())
    assert rate(new) == pytest.approx(0.75 * LR)
    load(new, old.state_dict())
    assert rate(new) == pytest.approx(0.75 * 2 * LR)
    assert new.optimizer.param_groups[0]["initial_lr"] == 2 * LR


class TestContinue:
    def test_rates_stay_and_are_logged_as_not_applied(self, caplog):
        with caplog.at_level(logging.WARNING, "hf_infinite_lr"):
            scheduler = load(make(lr=2 * LR, constant_lr_ratio=0.5, min_lr_ratio=0.2), saved_at(60))
        assert run(scheduler, 41) == [make().rate_at(n) for n in range(60, 101)]
        for change in ("learning_rate 0.001 -> 0.002", "constant_lr_ratio 0.75 -> 0.5", "min_lr_ratio 0.1 -> 0.2"):
            (message,) = [message for message in caplog.messages if change in message]
            assert "not applied" in message
            assert "rate at step 60: 7.5e-4 -> 7.5e-4" in message

    def test_longer_run_from_the_branch_point(self, caplog):
        with caplog.at_level(logging.WARNING, "hf_infinite_lr"):
            scheduler = load(make(200), saved_at(80))
        assert spans(scheduler) == [
            ("warmup", 0, 5),
            ("cooldown_to_constant", 5, 40),
            ("constant", 40, 160),
            ("anneal", 160, 200),
        ]
        assert any("num_training_steps 100 -> 200" in message for message in caplog.messages)

    def test_current_phase_runs_to_its_end(self):
        # In the cool-down of 100 steps' plan: it ends at 40, though the new plan's would end at 75.
        scheduler = load(make(200), saved_at(20))
        assert spans(scheduler)[1:] == [("cooldown_to_constant", 5, 40), ("constant", 40, 160), ("anneal", 160, 200)]
        assert run(scheduler, 20) == [make().rate_at(n) for n in range(20, 40)]

    def test_lengths_and_shapes_of_later_phases_change(self):
        scheduler = load(make(num_anneal_steps=10, anneal_type="1-sqrt"), saved_at(20))
        assert spans(scheduler)[2:] == [("constant", 40, 90), ("anneal", 90, 100)]
        assert scheduler.rate_at(95) == make(num_anneal_steps=10, anneal_type="1-sqrt").rate_at(95)
        scheduler = load(make(num_cooldown_steps=20, cooldown_type="linear"), saved_at(3))
        assert spans(scheduler)[:3] == [("warmup", 0, 5), ("cooldown_to_constant", 5, 25), ("constant", 25, 80)]

    def test_a_constant_under_way_gives_way_to_an_annealing_that_begins_earlier(self):
        scheduler = load(make(num_anneal_steps=50), saved_at(60))
        assert spans(scheduler)[2:] == [("constant", 40, 60), ("anneal", 60, 100)]
        scheduler = load(make(num_anneal_steps=30), saved_at(60))
        assert spans(scheduler)[2:] == [("constant", 40, 70), ("anneal", 70, 100)]

    def test_a_shortened_run_still_anneals_and_says_so(self, caplog):
        with caplog.at_level(logging.INFO, "hf_infinite_lr"):
            scheduler = load(make(65), saved_at(60))
        assert spans(scheduler)[2:] == [("constant", 40, 60), ("anneal", 60, 65)]
        assert caplog.messages[-1] == (
            "resumed at step 60: infinite: warm-up 0–5 (to 1.0e-3), cool-down to the constant 5–40 (to 7.5e-4),"
            " constant to 60, annealing to 65 (to 1.0e-4). To continue on new data later, use checkpoint-60, not"
            " checkpoint-65."
        )

    def test_an_annealed_task_may_follow_another(self):
        state = saved_at(65, task_steps=[60, 40], num_training_steps=None, num_anneal_steps=10)
        scheduler = load(make(None, task_steps=[60, 40, 10, 10], num_anneal_steps=10, lr=2 * LR), state)
        assert [scheduler.rate_at(n) for n in (99, 100, 110)] == pytest.approx(
            [0.75 * LR * (0.1 / 0.75) ** 0.9, 0.75 * LR, 0.75 * LR]
        )

    def test_annealing_for_the_first_time_takes_the_new_floor(self):
        scheduler = load(make(min_lr_ratio=0.3), saved_at(60, num_anneal_steps=0))
        assert spans(scheduler)[2:] == [("constant", 40, 80), ("anneal", 80, 100)]
        scheduler = load(make(200, min_lr_ratio=0.3), saved_at(60, num_anneal_steps=0))
        assert spans(scheduler)[2:] == [("constant", 40, 160), ("anneal", 160, 200)]
        assert scheduler.rate_at(200) == pytest.approx(0.3 * LR)

    def test_a_new_absolute_floor_is_not_scaled_with_the_kept_peak(self, caplog):
        with caplog.at_level(logging.WARNING, "hf_infinite_lr"):
            scheduler = load(make(lr=LR / 3, min_lr=1e-5), saved_at(60, num_anneal_steps=0))
        assert scheduler.rate_at(100) == pytest.approx(1e-5)
        assert "not applied" in changed(caplog, "learning_rate")
        assert "applied" not in changed(caplog, "min_lr")

    def test_a_floor_above_the_kept_constant_is_refused(self):
        with pytest.raises(
            ValueError, match=r"floor of the annealing .0.9 x .* above the checkpoint's constant .0.75"
        ):
            load(make(lr=3 * LR, min_lr=9e-4), saved_at(60, num_anneal_steps=0))

    def test_open_end_gets_an_end(self):
        state = saved_at(500, num_training_steps=None, num_cooldown_steps=35, num_anneal_steps=0)
        scheduler = load(make(1000, num_cooldown_steps=35, num_anneal_steps=100), state)
        assert spans(scheduler)[2:] == [("constant", 40, 900), ("anneal", 900, 1000)]

    @pytest.mark.parametrize("position", [81, 99, 100, 140])
    def test_annealed_checkpoint_is_refused(self, position):
        shown = {81: "6.781e-4", 99: "1.106e-4", 100: "1.0e-4", 140: "1.0e-4"}[position]
        with pytest.raises(ValueError) as refusal:  # noqa: PT011
            load(make(200), saved_at(position))
        assert str(refusal.value) == (
            f"checkpoint-{position} is annealed (rate {shown}); continue from checkpoint-80,"
            " or pass on_resume=override to jump back to the constant"
        )

    def test_appended_tasks(self):
        appended = load(make(task_steps=[100, 50, 50]), saved_at(90, task_steps=[100, 50]))
        assert appended.schedule == make(task_steps=[100, 50, 50]).schedule
        with pytest.raises(ValueError, match=r"checkpoint-150 is annealed .*; continue from checkpoint-140"):
            load(make(task_steps=[100, 50, 50]), saved_at(150, task_steps=[100, 50]))

    def test_a_trainer_that_rewinds_is_not_refused(self):
        def rewinding(task_steps):
            given = {"task_steps": task_steps, "learning_rate": LR, "warmup_steps": 5, "kwargs": {}}
            schedule = schedule_from_arguments("infinite", **given)
            arguments = resume_arguments("infinite", **given)
            return ScheduleLR(make_optimizer(), schedule, name="infinite", arguments=arguments, rewinds=True)

        old, new = rewinding([100]), rewinding([100, 50])
        old.set_position(100)
        load(new, old.state_dict())
        assert new.schedule == rewinding([100, 50]).schedule
        assert rate(new) == pytest.approx(0.75 * LR)

    def test_changed_name_is_refused(self):
        with pytest.raises(ValueError, match=r"'cosine_rewarm': .* trained with 'infinite'.* on_resume=override"):
            load(make_cosine(), saved_at(60))

    def test_repeated_cosine(self):
        state = saved_at(30, make_cosine, num_tasks=2)
        scheduler = load(make_cosine(200, num_tasks=2, rewarm_lr_ratio=0.5, lr=2 * LR), state)
        assert spans(scheduler) == [
            ("warmup", 0, 5),
            ("cosine_decay", 5, 50),
            ("constant", 50, 100),
            ("warmup", 100, 105),
            ("cosine_decay", 105, 200),
        ]
        assert scheduler.rate_at(75) == pytest.approx(0.1 * LR)
        assert scheduler.rate_at(105) == pytest.approx(LR)
        assert run(scheduler, 20) == [make_cosine(num_tasks=2).rate_at(n) for n in range(30, 50)]

    def test_repeated_reciprocal_square_root(self):
        given = {"num_tasks": 2, "num_anneal_steps": 10}
        state = saved_at(30, make_rsqrt, **given)
        scheduler = load(make_rsqrt(200, rewarm_lr_ratio=0.5, min_lr_ratio=0.3, lr=2 * LR, **given), state)
        assert spans(scheduler) == [
            ("warmup", 0, 5),
            ("rsqrt_decay", 5, 40),
            ("linear_end", 40, 100),
            ("warmup", 100, 105),
            ("rsqrt_decay", 105, 190),
            ("linear_end", 190, 200),
        ]
        old = make_rsqrt(**given)
        assert run(scheduler, 10) == [old.rate_at(n) for n in range(30, 40)]
        ends = [scheduler.rate_at(n) for n in range(40, 101)]
        assert ends[0] == pytest.approx(old.rate_at(40) * (59 / 60) / (9 / 10))
        assert ends[:-2] == sorted(ends[:-2], reverse=True)
        assert ends[-2:] == [0.0, 0.0]
        late = [0.1 * LR + math.sqrt(5 / (n - 100)) * 0.9 * LR for n in range(105, 190)]
        assert [scheduler.rate_at(n) for n in range(105, 190)] == pytest.approx(late)
        assert scheduler.rate_at(190) == pytest.approx(0.9 * (0.1 * LR + math.sqrt(5 / 90) * 0.9 * LR))

    @pytest.mark.parametrize("maker", [make_cosine, make_rsqrt])
    def test_appended_tasks_that_re_warm(self, maker):
        old, new = ({"task_steps": steps, "rewarm_lr_ratio": "autoregressive"} for steps in ([60, 40], [60, 40, 30]))
        for position in (3, 30, 50, 60, 80, 99, 100):
            resumed = load(maker(None, **new), saved_at(position, maker, num_training_steps=None, **old))
            assert run(resumed, 130 - position) == [maker(None, **new).rate_at(n) for n in range(position, 130)]

    @pytest.mark.parametrize(("old", "new"), [(10, 40), (40, 10)])
    @pytest.mark.parametrize("position", [20, 35])
    def test_a_warm_up_that_only_one_of_the_two_cuts_off(self, old, new, position):
        kwargs = {"num_rewarm_steps": 20, "num_training_steps": None}
        state = saved_at(position, make_cosine, task_steps=[30, old], **kwargs)
        scheduler = load(make_cosine(task_steps=[30, new], **kwargs), state)
        steps = [scheduler.rate_at(n) for n in range(30, 30 + new + 1)]
        assert steps[0] == 0.0
        assert all(abs(after - before) < 0.08 * LR for before, after in pairwise(steps))
        if position < 30:
            assert steps == [make_cosine(task_steps=[30, new], **kwargs).rate_at(n) for n in range(30, 31 + new)]


class TestVerdict:
    """What the log says of a changed argument is what has become of it."""

    @pytest.mark.parametrize(
        ("old", "new", "position", "key", "verdict"),
        [
            (
                {},
                {"min_lr_ratio": 0.0, "anneal_type": "linear"},
                60,
                "min_lr_ratio",
                "not applied, because on_resume=",
            ),
            (
                {"num_anneal_steps": 0},
                {"min_lr_ratio": 0.0, "anneal_type": "linear"},
                60,
                "min_lr_ratio",
                None,
            ),
            ({}, {"num_training_steps": 200}, 60, "num_training_steps", None),
            ({}, {"num_cooldown_steps": 20}, 20, "num_cooldown_steps", "not applied, because no phase"),
            ({}, {"num_cooldown_steps": 20}, 5, "num_cooldown_steps", None),
            ({}, {"cooldown_type": "linear"}, 60, "cooldown_type", "not applied, because no phase"),
            ({}, {"anneal_type": "linear"}, 60, "anneal_type", None),
            ({}, {"lr": 2 * LR, "on_resume": "anneal"}, 60, "learning_rate", "not applied, because on_resume=anneal"),
            ({}, {"min_lr_ratio": 0.2, "on_resume": "anneal"}, 60, "min_lr_ratio", None),
            (
                {},
                {"constant_lr_ratio": 0.5, "on_resume": "anneal"},
                60,
                "constant_lr_ratio",
                "not applied, because no",
            ),
            ({}, {"constant_lr_ratio": 0.5, "on_resume": "override"}, 60, "constant_lr_ratio", None),
        ],
    )
    def test_infinite(self, caplog, old, new, position, key, verdict):
        self.check(caplog, make, old, new, position, key, verdict)

    @pytest.mark.parametrize(
        ("old", "new", "position", "key", "verdict"),
        [
            ([0.5], [0.5, 0.25], 70, "rewarm_lr_ratio", None),
            ([0.5], [0.4, 0.25], 30, "rewarm_lr_ratio", "applied in part, because"),
            ([0.5], [0.4], 30, "rewarm_lr_ratio", "not applied, because on_resume"),
            ([0.5], [0.4], 70, "rewarm_lr_ratio", "not applied, because no phase"),
        ],
    )
    def test_peaks_of_later_tasks(self, caplog, old, new, position, key, verdict):
        old, new = (
            {"task_steps": [50] * (len(peaks) + 1), "num_training_steps": None, "rewarm_lr_ratio": peaks}
            for peaks in (old, new)
        )
        self.check(caplog, make_cosine, old, new, position, key, verdict)

    @pytest.mark.parametrize(
        ("rewarm", "position", "verdict"), [(None, 30, None), (3, 30, "not applied"), (None, 60, "not applied")]
    )
    def test_a_warm_up_that_lies_behind(self, caplog, rewarm, position, verdict):
        given = {"num_warmup_steps": 5, "num_tasks": 2, "num_rewarm_steps": rewarm}
        scheduler = get_cosine_rewarm_schedule(make_optimizer(), num_training_steps=100, **given)
        scheduler.set_position(position)
        new = get_cosine_rewarm_schedule(make_optimizer(), num_training_steps=100, **{**given, "num_warmup_steps": 10})
        load(new, scheduler.state_dict())
        self.judge(changed(caplog, "warmup_steps"), verdict)

    def check(self, caplog, maker, old, new, position, key, verdict):
        with caplog.at_level(logging.WARNING, "hf_infinite_lr"):
            load(maker(**new), saved_at(position, maker, **old))
        self.judge(changed(caplog, key), verdict)

    def judge(self, message, verdict):
        if verdict is None:
            assert "applied" not in message
        else:
            assert f"({verdict}" in message


class TestOverride:
    def test_new_arguments_rule_from_the_next_update(self, caplog):
        new = {"lr": 2 * LR, "constant_lr_ratio": 0.5, "on_resume": "override"}
        with caplog.at_level(logging.WARNING, "hf_infinite_lr"):
            scheduler = load(make(200, **new), saved_at(60))
        assert run(scheduler, 140) == [make(200, **new).rate_at(n) for n in range(60, 200)]
        assert any(
            "learning_rate 0.001 -> 0.002" in message and "rate at step 60: 7.5e-4 -> 1.109e-3" in message
            for message in caplog.messages
        )

    def test_an_annealed_checkpoint_jumps_back_to_the_constant(self):
        scheduler = load(make(200, on_resume="override"), saved_at(100))
        assert rate(scheduler) == pytest.approx(0.75 * LR)

    def test_state_of_another_scheduler(self):
        optimizer = make_optimizer()
        cosine = get_cosine_schedule_with_warmup(optimizer, 5, 100)
        for _ in range(50):
            optimizer.step()
            cosine.step()
        with pytest.raises(ValueError, match="trained with 'another scheduler'"):
            load(make(200), cosine.state_dict())
        scheduler = load(make(200, on_resume="override"), cosine.state_dict())
        assert (scheduler.last_epoch, rate(scheduler)) == (50, make(200).rate_at(50))
        scheduler = load(make(200, on_resume="anneal", num_anneal_steps=10), cosine.state_dict())
        assert rate(scheduler) == pytest.approx(cosine.get_last_lr()[0])
        assert scheduler.rate_at(60) == pytest.approx(0.1 * LR)

    def test_another_scheduler_whose_first_group_stands_still(self):
        def groups():
            return [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": peak} for peak in (0.0, LR)]

        linear = torch.optim.lr_scheduler.LinearLR(torch.optim.AdamW(groups()), 0.5, 0.5)
        scheduler = make(optimizer=torch.optim.AdamW(groups(), lr=LR), on_resume="anneal", num_anneal_steps=10)
        assert load(scheduler, linear.state_dict()).get_last_lr() == [0.0, 0.5 * LR]

    def test_an_absolute_floor_follows_a_peak_that_is_not_applied(self):
        def grouped(lr, **kwargs):
            groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": peak} for peak in (0.0, lr)]
            return make(optimizer=torch.optim.AdamW(groups, lr=lr), **kwargs)

        state = saved_at(60, lambda: grouped(LR, num_anneal_steps=0))
        scheduler = load(grouped(2 * LR, num_anneal_steps=10, min_lr=5e-5), state)
        scheduler.set_position(100)
        assert scheduler.get_last_lr() == pytest.approx([0.0, 5e-5])


class TestAnneal:
    def test_starts_here_and_then_holds(self):
        scheduler = load(make(on_resume="anneal", num_anneal_steps=10, anneal_type="linear"), saved_at(60))
        rates = run(scheduler, 40)
        assert rates[:11] == pytest.approx([LR * (0.75 - 0.065 * n) for n in range(11)])
        assert set(rates[10:]) == {0.1 * LR}

    def test_share_is_of_the_remaining_steps(self):
        scheduler = load(make(on_resume="anneal", num_anneal_steps=0.5), saved_at(60))
        assert spans(scheduler)[-1] == ("anneal", 60, 80)

    def test_the_remaining_steps_are_the_runs_and_not_the_last_tasks(self):
        given = {"num_training_steps": 250, "task_steps": 100}
        scheduler = load(make(on_resume="anneal", num_anneal_steps=0.5, **given), saved_at(210, **given))
        assert spans(scheduler)[-1] == ("anneal", 210, 230)

    def test_absolute_floor_and_unchanged_peak(self):
        new = {"on_resume": "anneal", "num_anneal_steps": 10, "min_lr": 5e-5, "lr": 2 * LR}
        scheduler = load(make(**new), saved_at(60))
        assert rate(scheduler) == pytest.approx(0.75 * LR)
        assert scheduler.rate_at(70) == pytest.approx(5e-5)

    @pytest.mark.parametrize("peaks", [(0.1 * LR, LR), (0.0, LR), (0.0, 0.0)])
    @pytest.mark.parametrize("factor", [1, 2])
    def test_an_absolute_floor_is_of_the_peak_and_not_of_the_first_group(self, peaks, factor):
        def grouped(lr, rates, **kwargs):
            groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
            return make(optimizer=torch.optim.AdamW(groups, lr=lr), **kwargs)

        state = saved_at(60, lambda: grouped(LR, peaks))
        new = {"on_resume": "anneal", "num_anneal_steps": 10, "min_lr": 5e-5}
        scheduler = load(grouped(factor * LR, [factor * peak for peak in peaks], **new), state)
        scheduler.set_position(70)
        assert scheduler.get_last_lr() == pytest.approx([5e-5 * peak / LR for peak in peaks])

    @pytest.mark.parametrize(
        ("new", "sentence"),
        [
            ({"num_anneal_steps": 0}, "num_anneal_steps=0 must be above 0"),
            ({"num_training_steps": 60}, "num_anneal_steps=0.2 is a share of the remaining steps, but none remain"),
            (
                {"min_lr_ratio": 0.7, "position": 99},
                "floor of the annealing .7.0e-4. must not be above the rate at step 99",
            ),
        ],
    )
    def test_what_cannot_anneal(self, new, sentence):
        position = new.pop("position", 60)
        with pytest.raises(ValueError, match=sentence):
            load(make(on_resume="anneal", **new), saved_at(position))


@pytest.mark.parametrize("policy", ["continue", "override", "anneal"])
def test_a_policy_acts_once(policy, caplog):
    def new():
        return make(200, lr=2 * LR, num_anneal_steps=40, on_resume=policy)

    first = load(new(), saved_at(60))
    rates = run(first, 10)
    state = first.state_dict()
    caplog.clear()
    again = load(new(), state)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert again.schedule == first.schedule
    assert run(again, 50) == run(first, 50)
    assert len(rates) == 10


@pytest.mark.parametrize("cut", [3, 20, 45, 70])
def test_a_re_warmed_state_through_the_other_policies(cut):
    given = {"num_tasks": 2, "num_anneal_steps": 10}
    new = make_rsqrt(min_lr_ratio=0.2, on_resume="override", **given)
    assert run(load(new, saved_at(cut, make_rsqrt, **given)), 5) == [new.rate_at(n) for n in range(cut, cut + 5)]
    with pytest.raises(ValueError, match="on_resume='anneal' needs the infinite schedule; this run has rsqrt_rewarm"):
        load(make_rsqrt(on_resume="anneal", **given), saved_at(cut, make_rsqrt, **given))
    annealed = load(make(on_resume="anneal", min_lr_ratio=0.0, anneal_type="linear"), saved_at(cut, make_rsqrt))
    assert rate(annealed) == pytest.approx(make_rsqrt().rate_at(cut))
    assert annealed.rate_at(cut - 1) > 0


def test_moving_the_position_never_asks_the_policy():
    scheduler = make(on_resume="anneal")
    for step in (80, 100, 80):
        scheduler.set_position(step)
    assert scheduler.schedule == make().schedule
    assert rate(scheduler) == pytest.approx(0.75 * LR)


def test_states_that_do_not_fit():
    with pytest.raises(ValueError, match="version 2, but this hf_infinite_lr reads up to 1"):
        load(make(), {**saved_at(60), "version": 2})
    two_groups = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(2)], lr=LR)
    with pytest.raises(ValueError, match="1 parameter groups, but the optimizer has 2"):
        load(make(optimizer=two_groups), saved_at(60))


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"num_training_steps": None}, "num_cooldown_steps=0.35 is a share of a length that is not known; give num_"),
        ({"num_training_steps": None, "num_cooldown_steps": 10}, "num_anneal_steps=0.2 needs a known end"),
        ({"num_training_steps": None, "task_steps": 10}, "task_steps=10 needs num_training_steps"),
        ({"num_training_steps": 0}, "num_training_steps=0 must be 1 or more"),
        ({"task_steps": 0}, "task_steps=0 must be an integer of 1 or more"),
        ({"num_tasks": 2}, "num_tasks=2 is not a name of the infinite schedule; here it is task_steps"),
        ({"on_resume": "restart"}, "on_resume='restart' must be one of continue, override, anneal"),
        ({"lr": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"decay_type": "linear"}, "here it is anneal_type"),
        ({"timescale": 5}, "timescale=5 is of cooldown_type='inverse_sqrt' and would change nothing with 'cosine'"),
        ({"num_training_steps": 8, "num_cooldown_steps": 2, "num_anneal_steps": 2}, "= 9, but the first task has 8"),
    ],
)
def test_bad_arguments_of_the_plain_functions(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"task_steps": [50, 50], "num_tasks": 2}, "task_steps=.* and num_tasks=2 are given together"),
        ({"num_tasks": 101}, "num_tasks=101 must not be above num_training_steps=100"),
        ({"num_training_steps": None}, "cosine_rewarm needs num_training_steps or task_steps"),
        ({"num_training_steps": None, "maker": make_rsqrt}, "rsqrt_rewarm needs num_training_steps or task_steps"),
        ({"on_resume": "restart", "maker": make_rsqrt}, "on_resume='restart' must be one of continue, override"),
    ],
)
def test_bad_arguments_of_the_repeated_cosine(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        kwargs.pop("maker", make_cosine)(**kwargs)


def test_warmup_share_without_length_names_its_key():
    with pytest.raises(ValueError, match=r"num_warmup_steps=0.1 is a share of a length that is not known"):
        get_infinite_schedule(make_optimizer(), 0.1, num_cooldown_steps=5, num_anneal_steps=0)


def test_the_end_of_the_run_moves_no_boundary():
    short, long = make(110, task_steps=50), make(150, task_steps=50)
    assert short.schedule == long.schedule
    assert spans(short)[-2:] == [("constant", 100, 140), ("anneal", 140, 150)]
