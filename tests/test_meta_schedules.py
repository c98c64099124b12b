"""The re-warming schedules of Roth et al. 2024 against their formulas, which stand here once more."""

import math

import pytest

from hf_infinite_lr.construction import schedule_from_arguments

LENGTHS = [400, 130, 57, 800, 251]
WARMUPS = [20, 13, 5, 80, 25]  # 20 steps, then a tenth of each task
PEAK, FLOOR = 3e-4, 3e-5


def build(name, task_steps=LENGTHS, warmup_steps=20, **kwargs):
    schedule = schedule_from_arguments(
        name,
        task_steps=task_steps,
        learning_rate=PEAK,
        warmup_steps=warmup_steps,
        kwargs={"num_rewarm_steps": 0.1, "min_lr": FLOOR, **kwargs},
    )
    return lambda step: PEAK * schedule(step)


def autoregressive(name, task, length, warmup):
    """The peak of a task by the published rules."""
    if task == 0:
        return PEAK
    if name == "cosine_rewarm":
        u = (task * (length - warmup) + 1) / ((task + 1) * (length - warmup))
        return FLOOR + (PEAK - FLOOR) / 2 * (1 + math.cos(math.pi * u))
    return FLOOR + math.sqrt((task + 1) * warmup / (task * length + warmup)) * (PEAK - FLOOR)


def cosine(step, peak, length, warmup, end):
    if step < warmup:
        return peak * step / warmup
    return FLOOR + (peak - FLOOR) / 2 * (1 + math.cos(math.pi * (step - warmup) / (length - warmup)))


def rsqrt(step, peak, length, warmup, end):
    if step < warmup:
        return peak * step / warmup
    rate = FLOOR + math.sqrt(warmup / step) * (peak - FLOOR)
    j = step - (length - end)
    return rate if j < 0 else rate * (end - j - 1) / end


FORMULAS = {"cosine_rewarm": (cosine, 0), "rsqrt_rewarm": (rsqrt, 0.25)}
PEAKS = {
    "constant": (0.6, lambda name, task, *sizes: PEAK if task == 0 else 0.6 * PEAK),
    "listed": ([0.9, 0.5, 0.8, 0.2], lambda name, task, *sizes: PEAK * [1, 0.9, 0.5, 0.8, 0.2][task]),
    "autoregressive": ("autoregressive", autoregressive),
}


@pytest.mark.parametrize("peaks", PEAKS)
@pytest.mark.parametrize("name", FORMULAS)
def test_values_are_those_of_the_formulas_at_every_step_of_five_unequal_tasks(name, peaks):
    (formula, share), (ratio, peak_of) = FORMULAS[name], PEAKS[peaks]
    ends = {"num_anneal_steps": share} if share else {}
    rate = build(name, rewarm_lr_ratio=ratio, **ends)
    expected = [
        formula(step, peak_of(name, task, length, warmup), length, warmup, int(share * length))
        for task, (length, warmup) in enumerate(zip(LENGTHS, WARMUPS, strict=True))
        for step in range(length)
    ]
    assert [rate(step) for step in range(sum(LENGTHS))] == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert rate(10**9) == pytest.approx(0.0 if share else FLOOR)


def test_autoregressive_peaks_fall_from_task_to_task():
    for name in FORMULAS:
        rate = build(name, task_steps=[200] * 5, warmup_steps=0.1, rewarm_lr_ratio="autoregressive")
        peaks = [rate(200 * task + 20) for task in range(5)]
        assert peaks[0] == PEAK
        assert peaks == sorted(peaks, reverse=True)
        assert len(set(peaks)) == 5


@pytest.mark.parametrize("peaks", PEAKS)
@pytest.mark.parametrize("name", FORMULAS)
def test_appending_a_task_changes_nothing_before(name, peaks):
    ratio = PEAKS[peaks][0]
    shorter = ratio[:-1] if isinstance(ratio, list) else ratio
    short, long = (build(name, LENGTHS[:n], rewarm_lr_ratio=r) for n, r in ((4, shorter), (5, ratio)))
    assert all(short(step) == long(step) for step in range(sum(LENGTHS[:4])))


@pytest.mark.parametrize(("warmup", "num_end"), [(1, 1), (6, 4), (9, 1), (10, 0), (1, 0)])
def test_a_linear_end_takes_what_the_warm_up_leaves(warmup, num_end):
    rate = build("rsqrt_rewarm", [10], warmup, num_rewarm_steps=None, num_anneal_steps=num_end)
    expected = [rsqrt(step, PEAK, 10, warmup, num_end) if num_end else 0 for step in range(10)]
    if not num_end:
        decay = [FLOOR + math.sqrt(warmup / step) * (PEAK - FLOOR) for step in range(warmup, 11)]
        expected = [PEAK * step / warmup for step in range(warmup)] + decay[:-1]
        assert rate(99) == pytest.approx(decay[-1])
    assert [rate(step) for step in range(10)] == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("rsqrt_rewarm", {"warmup_steps": 0}, "num_warmup_steps=0 must be 1 or more: rsqrt_rewarm decays by"),
        ("rsqrt_rewarm", {"num_rewarm_steps": 0}, "num_rewarm_steps=0 must be 1 or more"),
        (
            "rsqrt_rewarm",
            {"num_rewarm_steps": 100, "num_anneal_steps": 31},
            "longer than their task: num_rewarm_steps 100 .* 31 = 131, but task 2 has 130 steps",
        ),
        ("rsqrt_rewarm", {"num_cooldown_steps": 5}, "num_cooldown_steps=5 is not a name .* it is num_anneal_steps"),
        ("rsqrt_rewarm", {"num_decay_steps": 5}, "num_decay_steps=5 is not a name .* it is num_anneal_steps"),
        ("rsqrt_rewarm", {"num_anneal_steps": 1.5}, "num_anneal_steps=1.5 must be a number of steps"),
        ("rsqrt_rewarm", {"constant_lr": 1e-4}, "constant_lr=0.0001 is not a key .* for rsqrt_rewarm"),
        ("rsqrt_rewarm", {"min_lr": 4e-4}, "min_lr=0.0004 must not be above the peak of task 1"),
        ("rsqrt_rewarm", {"rewarm_lr_ratio": [0.5]}, r"rewarm_lr_ratio=\[0.5\] must hold one ratio .* first: 4"),
        ("cosine_rewarm", {"rewarm_lr_ratio": "auto"}, "rewarm_lr_ratio='auto' must be one of .*, autoregressive"),
        (
            "cosine_rewarm",
            {"rewarm_lr_ratio": "autoregressive", "num_rewarm_steps": 57},
            "rewarm_lr_ratio='autoregressive' needs tasks .* but task 3 has 57 steps and num_rewarm_steps 57",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(name, changes, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        build(name, **changes)
    assert "\n" not in str(refusal.value)
