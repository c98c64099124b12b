import math
from itertools import pairwise

import pytest
import torch
from transformers.optimization import get_linear_schedule_with_warmup, get_wsd_schedule

from hf_infinite_lr.construction import schedule_from_arguments
from hf_infinite_lr.schedules import Phase, Schedule, cosine_rewarm, infinite, resolve_share

PEAK, CONSTANT, FLOOR = 3e-4, 1.65e-4, 3e-5


def authors_first_task(n, num_warmup, cooldown_end, anneal_start, total, cooldown_type, timescale=10):
    """The formulas of arXiv 2503.02844 for the first task; all but the first argument are end points."""
    if n <= num_warmup:
        return PEAK * n / num_warmup
    if n <= cooldown_end:
        u = (n - num_warmup) / (cooldown_end - num_warmup)
        if cooldown_type == "linear":
            return PEAK - (PEAK - CONSTANT) * u
        if cooldown_type == "cosine":
            return CONSTANT + (PEAK - CONSTANT) / 2 * (1 + math.cos(math.pi * u))
        h = [1 / math.sqrt(1 + timescale * x) - 1 for x in (u, 1.0)]
        return PEAK + (CONSTANT - PEAK) * h[0] / h[1]
    return authors_later_task(n, anneal_start, total)


def authors_later_task(n, anneal_start, total):
    if n <= anneal_start:
        return CONSTANT
    return CONSTANT * (FLOOR / CONSTANT) ** ((n - anneal_start) / (total - anneal_start))


def rates(schedule, steps):
    return [PEAK * schedule(step) for step in steps]


def demo(task_steps, **changes):
    given = {
        "num_warmup_steps": 50,
        "num_cooldown_steps": 350,
        "anneal_steps": [length // 5 for length in task_steps],
        "constant_ratio": CONSTANT / PEAK,
        "min_ratio": FLOOR / PEAK,
    }
    return infinite(task_steps, **{**given, **changes})


@pytest.mark.parametrize("cooldown_type", ["cosine", "linear", "inverse_sqrt"])
@pytest.mark.parametrize("total", [1000, 997])
def test_values_are_those_of_the_authors_formulas_at_every_step(cooldown_type, total):
    num_anneal = total // 5
    schedule = demo([total, total, 500], anneal_steps=[num_anneal, num_anneal, 100], cooldown_type=cooldown_type)
    first = [authors_first_task(n, 50, 400, total - num_anneal, total, cooldown_type) for n in range(total)]
    later = [authors_later_task(n, total - num_anneal, total) for n in range(total)]
    last = [authors_later_task(n, 400, 500) for n in range(501)]
    assert rates(schedule, range(2 * total + 501)) == pytest.approx(first + later + last, rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(50, 1.5e-4), (3100, 2.325e-4), (6100, 1.65e-4), (8600, 1.65e-4), (9300, 7.0356e-5), (10000, 3e-5)],
)
def test_values_with_phases_as_lengths(step, rate):
    # The check numbers of the GPT-NeoX fork of arXiv 2403.08763, printed with five digits.
    schedule = demo([10000], num_warmup_steps=100, num_cooldown_steps=6000, anneal_steps=[1400])
    assert PEAK * schedule(step) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize(
    ("anneal_type", "closed_form"),
    [
        ("exponential", lambda p: CONSTANT * (FLOOR / CONSTANT) ** p),
        ("linear", lambda p: CONSTANT + (FLOOR - CONSTANT) * p),
        ("cosine", lambda p: FLOOR + (CONSTANT - FLOOR) / 2 * (1 + math.cos(math.pi * p))),
        ("1-sqrt", lambda p: FLOOR + (CONSTANT - FLOOR) * (1 - math.sqrt(p))),
    ],
)
def test_annealing_types(anneal_type, closed_form):
    schedule = demo([1000], anneal_type=anneal_type)
    expected = [closed_form(i / 200) for i in range(201)]
    assert rates(schedule, range(800, 1001)) == pytest.approx(expected, rel=1e-9)
    assert schedule(10**9) == pytest.approx(FLOOR / PEAK, rel=1e-12)


@pytest.mark.parametrize("anneal_type", ["linear", "cosine", "1-sqrt"])
def test_zero_floor_is_reached_exactly(anneal_type):
    schedule = demo([1000], anneal_type=anneal_type, min_ratio=0.0)
    assert schedule(999) > 0.0
    assert schedule(1000) == schedule(5000) == 0.0


def test_repeated_cosine_is_the_authors_baseline():
    total, num_warmup = 400, 20
    schedule = cosine_rewarm([total] * 3, warmup_steps=[num_warmup] * 3, peak_ratios=[1.0, 1.0, 0.5], min_ratio=0.1)

    def rate(n, peak):
        if n < num_warmup:
            return peak * n / num_warmup
        u = (n - num_warmup) / (total - num_warmup)
        return 0.1 + (peak - 0.1) / 2 * (1 + math.cos(math.pi * u))

    expected = [rate(n, peak) for peak in (1.0, 1.0, 0.5) for n in range(total)] + [0.1, 0.1]
    assert [schedule(n) for n in range(3 * total + 2)] == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize("num_rewarm", [4, 5, 20])
def test_a_later_task_cuts_its_warm_up_off(num_rewarm):
    task_steps, warmup_steps = [8, 4, 4], [2, num_rewarm, 2]
    schedule = cosine_rewarm(task_steps, warmup_steps=warmup_steps, peak_ratios=[1.0, 0.8, 1.0], min_ratio=0.1)
    whole = cosine_rewarm([8, 40], warmup_steps=[2, num_rewarm], peak_ratios=[1.0, 0.8], min_ratio=0.1)
    assert [schedule(n) for n in range(12)] == pytest.approx([whole(n) for n in range(12)], rel=1e-12)
    assert [(phase.name, phase.num_steps) for phase in schedule.phases if phase.task == 1] == [("warmup", 4)]
    assert schedule.phases[2].end == pytest.approx(0.8 * 4 / num_rewarm, rel=1e-12)
    assert (schedule.num_steps, schedule(12), schedule(14)) == (16, 0.0, 1.0)


def test_a_run_that_ends_inside_a_warm_up_holds_the_rate():
    schedule = cosine_rewarm([8, 4], warmup_steps=[2, 16], peak_ratios=[1.0, 1.0], min_ratio=0.1)
    assert schedule(12) == schedule(10**9) == 0.25


@pytest.mark.parametrize("budget", ["within", "extra"])
def test_appending_a_task_changes_nothing_before(budget):
    lengths = [1000, 300, 500]
    for count in (1, 2):
        short, long = (demo(lengths[:n], anneal_budget=budget) for n in (count, count + 1))
        assert [short(n) for n in range(short.num_steps)] == [long(n) for n in range(short.num_steps)]


def test_extra_budget_repeats_the_annealed_steps_on_the_constant():
    schedule = demo([1000, 300, 500], anneal_budget="extra")
    assert schedule.num_steps == 1000 + 200 + 300 + 60 + 500
    assert schedule.branch_points == ((0, 800, 1000), (1, 1440, 1500), (2, 1960, 2060))
    assert {schedule(step) for step in range(1000, 1200)} == {CONSTANT / PEAK}


def test_values_do_not_depend_on_the_horizon_before_the_annealing():
    short, long = demo([1000]), demo([5000], anneal_steps=[1000])
    assert [short(n) for n in range(801)] == [long(n) for n in range(801)]


def test_curve_is_continuous_inside_a_task():
    for cooldown_type in ("cosine", "linear", "inverse_sqrt"):
        schedule = demo([1000], cooldown_type=cooldown_type, anneal_type="linear")
        steps = [abs(b - a) for a, b in pairwise(schedule(n) for n in range(1001))]
        assert max(steps) < 0.021  # the warm-up itself moves by 0.02 a step


def test_places_and_boundaries():
    schedule = demo([1000, 300])
    assert schedule.boundaries == (0, 50, 400, 800, 1000, 1240, 1300)
    names = {step: schedule.at(step).phase.name for step in (0, 49, 50, 400, 799, 800, 1000, 1299, 1300, 9999)}
    assert names == {
        0: "warmup",
        49: "warmup",
        50: "cooldown_to_constant",
        400: "constant",
        799: "constant",
        800: "anneal",
        1000: "constant",
        1299: "anneal",
        1300: "anneal",
        9999: "anneal",
    }
    assert schedule.at(1100) == (4, schedule.phases[4], 1000)


def test_round_trip_through_plain_values():
    schedule = demo([1000, 300], cooldown_type="inverse_sqrt", timescale=3.0)
    assert Schedule.from_dict(schedule.to_dict()) == schedule


def test_open_constant_has_no_end():
    schedule = demo([400], anneal_steps=[0], open_end=True)
    assert schedule.num_steps is None
    assert schedule.phases[-1] == Phase("constant", 0, None, CONSTANT / PEAK, CONSTANT / PEAK, "constant")
    assert schedule(10**9) == CONSTANT / PEAK


def test_twin_of_warmup_stable_decay():
    # With a floor above zero transformers lifts the warm-up too, so that the twins agree at the floor of zero.
    schedule = demo(
        [1000], num_cooldown_steps=0, constant_ratio=1.0, min_ratio=0.0, anneal_steps=[200], anneal_type="linear"
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    twin = get_wsd_schedule(optimizer, 50, num_decay_steps=200, num_training_steps=1000, decay_type="linear")
    factor = twin.lr_lambdas[0]
    assert [schedule(n) for n in range(1001)] == pytest.approx([factor(n) for n in range(1001)], rel=1e-12)


def test_warmup_is_transformers():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = get_linear_schedule_with_warmup(optimizer, 50, 1000).lr_lambdas[0]
    assert [demo([1000])(n) for n in range(51)] == [factor(n) for n in range(51)]


def test_a_step_of_a_thousand_tasks_looks_at_a_few_phases():
    looked_at = []

    class Counted(tuple):
        def __getitem__(self, place):
            looked_at.append(place)
            return super().__getitem__(place)

    schedule = demo([1000] * 1000)
    rate = schedule(765_432)
    vars(schedule)["boundaries"] = Counted(schedule.boundaries)
    assert schedule(765_432) == rate
    assert 1 < len(looked_at) < 16 < 1000 < len(schedule.phases)


@pytest.mark.parametrize(
    ("value", "length", "steps"),
    [(0, 100, 0), (7, 100, 7), (0.0, 100, 0), (0.2, 100, 20), (0.29, 100, 29), (0.001, 100, 1), (0.35, 7, 2)],
)
def test_shares(value, length, steps):
    assert resolve_share("num_anneal_steps", value, length) == steps


@pytest.mark.parametrize("value", [1.0, -0.1, -1, True, 20.0, math.nan, "0.2", None])
def test_what_is_no_share(value):
    with pytest.raises(ValueError, match=r"^num_anneal_steps=.* must be a number of steps .* or a share"):
        resolve_share("num_anneal_steps", value, 100)


def build(name="infinite", task_steps=(100, 100), learning_rate=1e-3, warmup_steps=0.05, **kwargs):
    return schedule_from_arguments(
        name, task_steps=task_steps, learning_rate=learning_rate, warmup_steps=warmup_steps, kwargs=kwargs
    )


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"num_anneal_step": 3}, "num_anneal_step=3 is not a key .* did you mean num_anneal_steps?"),
        ({"colour": 3}, "colour=3 is not a key .* the keys are num_cooldown_steps, "),
        ({"num_decay_steps": 3}, "num_decay_steps=3 is not a name .* here it is num_anneal_steps"),
        ({"decay_type": "linear"}, "decay_type='linear' .* here it is anneal_type"),
        ({"num_stable_steps": 3}, "num_stable_steps=3 .* the constant takes the steps that"),
        ({"warmup_ratio": 0.1}, "warmup_ratio=0.1 .* here it is warmup_steps"),
        ({"cooldown_iters_perc": 0.1}, "cooldown_iters_perc=0.1 .* here it is num_cooldown_steps"),
        ({"constant_iters_perc": 0.1}, "constant_iters_perc=0.1 .* num_cooldown_steps and num_anneal_steps leave"),
        ({"min_lr_rate": 0.1}, "min_lr_rate=0.1 .* here it is min_lr_ratio"),
        ({"min_lr": 1e-5, "min_lr_ratio": 0.1}, "min_lr_ratio=0.1 and min_lr=1e-05 are given together"),
        ({"constant_lr": 1e-5, "constant_lr_ratio": 0.1}, "constant_lr_ratio=0.1 and constant_lr=1e-05 are given"),
        ({"min_lr": -1e-5}, "min_lr=-1e-05 must not be negative"),
        ({"constant_lr": -1e-5}, "constant_lr=-1e-05 must be above 0"),
        ({"constant_lr_ratio": 0}, "constant_lr_ratio=0 must be above 0"),
        ({"constant_lr": 2e-3}, "constant_lr=0.002 must not be above the peak"),
        ({"constant_lr_ratio": math.nan}, "constant_lr_ratio=nan must be a finite number"),
        ({"num_anneal_steps": 1.0}, "num_anneal_steps=1.0 must be a number of steps"),
        ({"num_cooldown_steps": -5}, "num_cooldown_steps=-5 must be a number of steps"),
        (
            {"num_cooldown_steps": 80},
            "num_warmup_steps 5 .* num_cooldown_steps 80 .* 20 = 105, but the first task has",
        ),
        (
            {"num_cooldown_steps": 10, "num_anneal_steps": 90},
            r"5 \+ num_cooldown_steps 10 \+ num_anneal_steps 90 = 105",
        ),
        ({"min_lr_ratio": 0.8}, "min_lr_ratio=0.8 must not be above the constant"),
        ({"num_cooldown_steps": 0}, "num_cooldown_steps=0 requires a constant_lr_ratio of 1"),
        ({"min_lr": 0}, "min_lr=0 cannot be reached by anneal_type='exponential'; .* linear, cosine, 1-sqrt"),
        ({"anneal_type": "sqrt"}, "anneal_type='sqrt' must be one of exponential, linear, cosine, 1-sqrt"),
        ({"cooldown_type": "wsd"}, "cooldown_type='wsd' must be one of cosine, inverse_sqrt, linear"),
        ({"timescale": 0}, "timescale=0 must be above 0"),
        ({"task_steps": 5}, "task_steps=5 does not belong here"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"task_steps_": 5}, "did you mean task_steps?"),
        ({"name": "cosine_rewarm", "rewarm_lr_ratio": [0.5, 0.5]}, r"rewarm_lr_ratio=\[0.5, 0.5\] .* first: 1"),
        ({"name": "cosine_rewarm", "rewarm_lr_ratio": 0.0}, "rewarm_lr_ratio=0.0 must be above 0"),
        ({"name": "cosine_rewarm", "rewarm_lr_ratio": 0.05}, "min_lr_ratio=0.1 must not be above the peak of task 2"),
        (
            {"name": "cosine_rewarm", "warmup_steps": 101},
            "num_warmup_steps 101, but the first task has 100 steps",
        ),
        ({"name": "cosine_rewarm", "min_lr_rate": 0.1}, "min_lr_rate=0.1 .* here it is min_lr_ratio"),
        ({"name": "cosine_rewarm", "num_anneal_steps": 0.1}, "num_anneal_steps=0.1 is not a key"),
        ({"name": "cosine"}, "lr_scheduler_type='cosine' must be one of infinite, cosine_rewarm"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(kwargs, sentence):
    if kwargs == {"task_steps": 5}:
        with pytest.raises(ValueError, match=sentence):
            schedule_from_arguments(
                "infinite", task_steps=[100], learning_rate=1e-3, warmup_steps=0, kwargs={"task_steps": 5}
            )
        return
    with pytest.raises(ValueError, match=sentence) as refusal:
        build(**kwargs)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("task_steps", [[], [100, 0], [100, 2.5], [True]])
def test_bad_task_lengths(task_steps):
    with pytest.raises(ValueError, match=r"^task_steps="):
        build(task_steps=task_steps)


def test_shares_refer_to_tasks():
    schedule = build(task_steps=(1000, 200), warmup_steps=0.05)
    assert [(phase.name, phase.num_steps) for phase in schedule.phases] == [
        ("warmup", 50),
        ("cooldown_to_constant", 350),
        ("constant", 400),
        ("anneal", 200),
        ("constant", 160),
        ("anneal", 40),
    ]
    cosine = build("cosine_rewarm", task_steps=(1000, 200), warmup_steps=0.05)
    assert [phase.num_steps for phase in cosine.phases] == [50, 950, 10, 190]
    cosine = build(
        "cosine_rewarm", task_steps=(1000, 200), warmup_steps=0.05, num_rewarm_steps=3, rewarm_lr_ratio=[0.5]
    )
    assert [phase.num_steps for phase in cosine.phases] == [50, 950, 3, 197]
    assert cosine(1003) == 0.5


def test_absolute_rates_are_divided_by_the_peak():
    absolute = build(constant_lr=5.5e-4, min_lr=1e-4)
    assert absolute == build(constant_lr_ratio=5.5e-4 / 1e-3, min_lr_ratio=1e-4 / 1e-3)


@pytest.mark.parametrize(("release", "branches"), [("each", 2), ("last", 1), ("none", 0)])
def test_release(release, branches):
    schedule = schedule_from_arguments(
        "infinite", task_steps=[100, 100], learning_rate=1.0, warmup_steps=5, kwargs={}, release=release
    )
    assert len(schedule.branch_points) == branches
    assert schedule.num_steps == 200
