import math
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image

from hf_infinite_lr.metrics import TaskMatrix
from hf_infinite_lr.plots import (
    Curve,
    Part,
    Span,
    curve_of_schedule,
    draw_comparison,
    draw_hero,
    draw_learning_rate,
    draw_losses,
    draw_task_matrix,
    terminal_curve,
    write_png,
)
from hf_infinite_lr.plots.curve import fitting_labels
from hf_infinite_lr.plots.palette import PHASE_NAMES, PHASES, task_colours
from hf_infinite_lr.schedules import PHASE_ORDER, cosine_rewarm, infinite

PEAK = 3e-4


def infinite_curve(lengths, names=None, **settings):
    schedule = infinite(
        lengths,
        num_warmup_steps=lengths[0] // 20,
        num_cooldown_steps=lengths[0] // 4,
        anneal_steps=[length // 5 for length in lengths],
        constant_ratio=0.75,
        min_ratio=0.1,
        **settings,
    )
    return curve_of_schedule(schedule, PEAK, names)


def lines_of(figure):
    return {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).reshape(-1, 3)


def has_colour(path, colour):
    rgb = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return bool((pixels(path) == rgb).all(axis=1).sum() > 20)


def test_a_curve_has_the_values_of_its_schedule_and_names_of_its_tasks():
    curve = infinite_curve([100, 200], ["web", "code"])
    assert [(part.phase, part.task, part.start, part.stop) for part in curve.parts] == [
        ("warmup", 0, 0, 5),
        ("cooldown_to_constant", 0, 5, 30),
        ("constant", 0, 30, 80),
        ("anneal", 0, 80, 100),
        ("constant", 1, 100, 260),
        ("anneal", 1, 260, 300),
    ]
    assert curve.tasks == (Span("web", 0, 100), Span("code", 100, 300))
    branch = curve.branches[0]
    assert branch.rate(80) == pytest.approx(0.75 * PEAK)
    assert branch.rate(100) == pytest.approx(0.1 * PEAK)
    assert (curve.num_steps, curve.peak) == (300, pytest.approx(PEAK))


def test_an_open_end_is_drawn_and_the_repeated_constant_belongs_to_its_task():
    schedule = infinite(
        [50],
        num_warmup_steps=10,
        num_cooldown_steps=30,
        anneal_steps=[0],
        constant_ratio=0.5,
        min_ratio=0.1,
        open_end=True,
    )
    assert curve_of_schedule(schedule, 1.0).parts[-1].stop == 50
    assert infinite_curve([100, 100], anneal_budget="extra").tasks == (
        Span("task 1", 0, 120),
        Span("task 2", 120, 220),
    )


@pytest.mark.parametrize("num_tasks", [1, 3, 50])
def test_the_picture_draws_each_phase_in_its_colour_and_each_branch_from_the_trunk(num_tasks, tmp_path):
    backend, figures = matplotlib.rcParams["backend"], matplotlib.rcParams["figure.dpi"]
    figure = draw_learning_rate(infinite_curve([100] * num_tasks), title="a title")
    lines = lines_of(figure)
    path = write_png(figure, tmp_path / "new" / "rate.png")
    assert [file.name for file in path.parent.iterdir()] == ["rate.png"]
    with Image.open(path) as picture:
        assert picture.size == (1152, 504)
    names = {"warm-up": "warmup", "cool-down to the constant": "cooldown_to_constant", "constant (trunk)": "constant"}
    for label, phase in {**names, "annealing (branch)": "anneal"}.items():
        assert lines[label].get_color() == PHASES[phase]
        assert has_colour(path, PHASES[phase]), phase
    branches = np.asarray(lines["annealing (branch)"].get_xydata(), dtype=float)
    ends = np.flatnonzero(np.isnan(branches[:, 0]))
    assert len(ends) == num_tasks
    assert np.allclose(branches[ends - 1, 1], 0.1 * PEAK)
    assert branches[0].tolist() == pytest.approx([80, 0.75 * PEAK])
    assert ("release" in lines) == (num_tasks <= 20)
    assert (matplotlib.rcParams["backend"], matplotlib.rcParams["figure.dpi"]) == (backend, figures)


def test_pictures_are_the_same_twice(tmp_path):
    files = [write_png(draw_learning_rate(infinite_curve([100])), tmp_path / name) for name in ("a.png", "b.png")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_failed_picture_leaves_the_old_one(tmp_path, monkeypatch):
    path = write_png(draw_learning_rate(infinite_curve([100])), tmp_path / "rate.png")
    before = path.read_bytes()

    def half(self, file, **settings):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(OSError, match="disk full"):
        write_png(draw_learning_rate(infinite_curve([200])), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_labels_fit_their_tasks():
    spans = [Span("docs", 0, 10), Span("python sources", 10, 20), Span("c", 20, 100)]
    assert fitting_labels(spans, 100, 100) == ["docs", "python s…", "c"]
    many = [Span(f"month {index}", index, index + 1) for index in range(50)]
    labels = fitting_labels(many, 50, 60)
    assert labels[:11] == ["1", "", "", "", "", "6", "", "", "", "", "11"]
    assert sum(len(label) + 1 for label in labels if label) <= 60


def test_the_terminal_shows_the_curve_in_ascii_and_in_braille():
    curve = curve_of_schedule(
        infinite(
            [8, 8], num_warmup_steps=0, num_cooldown_steps=0, anneal_steps=[4, 4], constant_ratio=1, min_ratio=0.1
        ),
        1.0,
    )
    text = terminal_curve(curve, columns=26, rows=4, encoding="ascii")
    assert text.splitlines() == [
        "     1.0 |***** * *****  *",
        "         |     *       *",
        "         |      **      **",
        "       0 |        *      *",
        "         +----------------",
        "          0             16",
        "          |task 1 |task 2",
    ]
    braille = terminal_curve(infinite_curve([100] * 3, ["a", "b", "c"]))
    assert max(map(len, braille.splitlines())) == 72
    assert {ord(letter) for letter in braille.splitlines()[0]} & set(range(0x2801, 0x2900))
    terminal_curve(infinite_curve([100] * 3, ["ä" * 40] * 3), encoding="cp1252").encode("ascii")


def test_a_curve_that_peaks_inside_fills_the_terminal():
    hill = Curve([Part("hill", 0, 0, 100, lambda step: 1e-3 * math.sin(math.pi * step / 100))], [Span("run", 0, 100)])
    lines = terminal_curve(hill, columns=40, rows=5, encoding="ascii").splitlines()
    assert lines[0].startswith("  1.0e-3 |")
    assert "*" in lines[0]
    assert "*" in lines[4]


def test_losses_are_drawn_for_every_column_and_evaluation_only_ones_are_dashed():
    tasks = [Span("a", 0, 10), Span("b", 10, 20)]
    figure = draw_losses(
        [(5, 3.0), (10, 2.0)], {"a": [(0, 8.0), (10, 2.0)], "b": [(0, 8.0)], "general": [(0, 9.0)]}, tasks
    )
    lines = lines_of(figure)
    assert lines["a"].get_xydata().tolist() == [[0, 8.0], [10, 2.0]]
    assert [lines[name].get_linestyle() for name in ("a", "b", "general")] == ["-", "-", "--"]
    assert figure.axes[1].lines[-1].get_xydata().tolist() == [[5, 3.0], [10, 2.0]]


def test_many_tasks_have_as_many_colours():
    for number in (3, 50):
        assert len(set(task_colours([f"t{index}" for index in range(number)]).values())) == number


def test_the_heat_map_writes_values_and_hatches_what_was_not_evaluated(tmp_path):
    matrix = TaskMatrix(
        ["a", "b"],
        ["general", "a", "b"],
        "eval_loss",
        False,
        [[5.0, 1.25, None], [4.0, 2.0, 1.5]],
        [9.0, 8.0, math.nan],
    )
    figure = draw_task_matrix(matrix)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["8", "nan", "9", "1.25", "5", "2", "1.5", "4"]
    patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [(patch.get_x(), patch.get_y()) for patch in patches if patch.get_hatch()] == [(1, 1.25)]
    frames = [(patch.get_x(), patch.get_y()) for patch in patches if to_hex(patch.get_edgecolor()) == "#d55e00"]
    assert frames == [(0, 1.25), (1, 2.25)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "general"]
    assert axes.get_xticks()[2] - axes.get_xticks()[1] > 1
    assert axes.get_title() == "eval_loss (lower is better)"
    assert write_png(figure, tmp_path / "matrix.png").stat().st_size > 5000


def test_bright_is_better_for_scores_and_for_losses():
    def brightness(higher_is_better):
        matrix = TaskMatrix(["a", "b"], ["a", "b"], "m", higher_is_better, [[0.0, 1.0]])
        cells = [patch.get_facecolor()[:3] for patch in draw_task_matrix(matrix).axes[0].patches if patch.get_fill()][
            -2:
        ]
        return [sum(cell) for cell in cells]

    low, high = brightness(True)
    assert low < high
    low, high = brightness(False)
    assert low > high


def test_the_hero_and_the_comparison_are_drawn(tmp_path):
    hero = write_png(draw_hero(), tmp_path / "hero.png")
    shown = PHASES.keys() - {"rsqrt_decay", "linear_end"}
    assert all(has_colour(hero, PHASES[phase]) for phase in shown)
    matrix = TaskMatrix(["a", "b"], ["a", "b"], "eval_loss", False, [[1.0, 4.0], [1.5, 2.0]])
    lines = draw_comparison({"one": matrix, "two": replace(matrix, baseline=[9.0, None])}).axes[0].lines
    assert [line.get_xdata().tolist() for line in lines] == [[1.5, 2.0], [1.0, 2.0]] * 2


def test_repeated_cosine_is_one_line_for_each_phase():
    schedule = cosine_rewarm([100, 100], warmup_steps=[5, 5], peak_ratios=[1.0, 0.5], min_ratio=0.1)
    lines = lines_of(draw_learning_rate(curve_of_schedule(schedule, 1.0)))
    assert list(lines) == ["warm-up", "cosine decay"]
    assert np.nanmax(lines["warm-up"].get_ydata()) == 1.0


def test_dollar_signs_in_names_start_no_formula(tmp_path):
    name = "a $^$ b"
    matrix = TaskMatrix([name], [name], "loss", False, [[1.0]])
    for number, figure in enumerate(
        (
            draw_losses([(1, 2.0)], {name: [(5, 1.0)]}, [Span(name, 0, 9)], evaluation_label=name),
            draw_comparison({name: matrix}),
            draw_task_matrix(matrix, title=name),
            draw_learning_rate(infinite_curve([100]), title=name),
        )
    ):
        assert write_png(figure, tmp_path / f"{number}.png").stat().st_size > 1000


def test_a_curve_without_a_trunk_shows_none():
    schedule = infinite(
        [10, 10], anneal_steps=[3, 3], num_warmup_steps=2, num_cooldown_steps=2, constant_ratio=0.5, min_ratio=0.1
    )
    curves = [curve_of_schedule(schedule, 1.0, has_trunk=kept) for kept in (True, False)]
    kept, gone = ({line.get_label() for line in draw_learning_rate(curve).axes[0].lines} for curve in curves)
    assert kept - gone == {"trunk waits", "trunk checkpoint"}


def test_every_phase_has_its_colour_and_its_name():
    assert PHASES.keys() == PHASE_NAMES.keys() == PHASE_ORDER.keys()
