import json
import shutil
from pathlib import Path

import pytest

from hf_infinite_lr.cli.report import report
from hf_infinite_lr.config import ContinualTrainingArguments
from hf_infinite_lr.metrics import DESCRIPTIONS, TaskMatrix
from hf_infinite_lr.report import read_run, render_comparison, render_screen, write_comparison, write_report
from hf_infinite_lr.report.markdown import _samples_for_release
from hf_infinite_lr.report.run import Run
from hf_infinite_lr.schedules import rsqrt_rewarm
from hf_infinite_lr.trainer.record import schedule_state

NAMES = ["docs", "python", "cpp"]
BITS = TaskMatrix(
    NAMES,
    [*NAMES, "general"],
    "bits_per_byte",
    False,
    [[3.0, 5.0, 6.0, 4.0], [4.0, 2.0, 4.5, None], [3.5, 2.5, 1.5, 5.0]],
    [8.0, 8.0, 8.0, 8.25],
)
LOSS = TaskMatrix(NAMES, NAMES, "eval_loss", False, [[2.0, 3.0, 4.0]])


def task(index, released=True):
    name, start = f"{index + 1:02d}-{NAMES[index]}", 100 * index
    return {
        "name": NAMES[index],
        "directory": name,
        "num_steps": 100,
        "num_anneal_steps": 20,
        "start_step": start,
        "branch_step": start + 80,
        "end_step": start + 100,
        "next_start_step": start + 100,
        "num_samples": 1600,
        "num_unused_samples": 7,
        "trunk": f"trunk/{name}" if released else None,
        "release": f"releases/{name}" if released else None,
        "updates": {"spent": 100 * (index + 1), "on_path": 80 * index + 100},
        "samples": {"spent": 1600 * (index + 1), "on_path": 1600 + 1280 * index},
    }


def phases():
    rows = [("warmup", 0, 0, 5, 0.0, 3e-3, "linear"), ("cooldown_to_constant", 0, 5, 30, 3e-3, 2e-3, "inverse_sqrt")]
    for index in range(3):
        start = 100 * index
        rows.append(("constant", index, start or 30, start + 80, 2e-3, 2e-3, "constant"))
        rows.append(("anneal", index, start + 80, start + 100, 2e-3, 3e-4, "exponential"))
    keys = ("name", "task", "start_step", "end_step", "start_rate", "end_rate", "shape")
    return [dict(zip(keys, row, strict=True)) for row in rows]


STATE = {
    "schema_version": 1,
    "versions": {"hf_infinite_lr": "0.1.0", "torch": "2.13.0"},
    "schedule": {
        "name": "infinite",
        "learning_rate": 3e-3,
        "arguments": {"num_anneal_steps": 0.2},
        "phases": phases(),
    },
    "settings": {"anneal_budget": "within", "replay_fraction": 0.0625, "seed": 7, "global_batch_size": 16},
    "tasks": [task(0), task(1), task(2)],
    "evaluate_also": ["general"],
    "global_step": 300,
    "num_steps": 300,
    "status": "finished",
    "compute": {"train_seconds": 61.25, "evaluation_seconds": 4.0, "train_steps_per_second": 4.9},
    "units": {"eval_loss": "nats per token", "bits_per_byte": "bits per byte"},
    "references": {"byte_unigram": {"metric": "bits_per_byte", "values": {"docs": 4.9, "python": 4.7, "cpp": 4.8}}},
}
HISTORY = [
    {"step": 10, "loss": 3.5, "learning_rate": 1e-3},
    {"step": 50, "loss": 2.5, "learning_rate": 2e-3},
    {"step": 50, "eval_docs_bits_per_byte": 3.25},
    {"step": 300, "loss": 1.5, "learning_rate": 3e-4},
]


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "out" / "infinite"
    write_json(folder / "continual_state.json", STATE)
    write_json(folder / "task_matrix.json", LOSS.to_dict())
    write_json(folder / "task_matrix.bits_per_byte.json", BITS.to_dict())
    write_json(folder / "trainer_state.json", {"log_history": HISTORY})
    return folder


def cells(line, separator=None):
    return [cell.strip() for cell in line.strip("|").split(separator)]


def test_the_screen_is_the_hand_matrix_with_reference_rows(run):
    screen = render_screen(run)
    lines = screen.splitlines()
    assert lines[0] == f"{run}: infinite at learning rate 0.003, finished, step 300 of 300, 3 of 3 tasks released."
    assert lines[2] == "bits_per_byte (lower is better); row = after training a task, column = evaluated on"
    assert lines[4:12] == [
        "                       docs  python    cpp  (general)",
        "untrained             8.000   8.000  8.000      8.250",
        "after docs            3.000   5.000  6.000      4.000",
        "after python          4.000   2.000  4.500          -",
        "after cpp             3.500   2.500  1.500      5.000",
        "right after learning  3.000   2.000  1.500          -",
        "byte unigram          4.900   4.700  4.800          -",
        "",
    ]
    assert [cells(line, "  ")[0::1][-1] for line in lines[12:16]] == ["2.500", "0.500", "-0.500", "3.250"]
    assert f"release of cpp     {run / 'releases/03-cpp'}" in lines
    assert screen.isascii()


def test_a_matrix_that_is_too_wide_is_turned(run):
    names = [f"month-{index}" for index in range(30)]
    matrix = TaskMatrix(names, names, "eval_loss", False, [[float(index) for index in range(30)]], [9.0] * 30)
    write_json(run / "task_matrix.json", matrix.to_dict())
    write_json(run / "continual_state.json", STATE | {"references": {}})
    lines = render_screen(run).splitlines()
    assert max(map(len, lines[3:40])) < 110
    head = next(index for index, line in enumerate(lines) if line.startswith("evaluated on"))
    assert cells(lines[head], "  ")[1:] == ["untrained", "after month-0", "right after learning"]
    assert lines[head + 30].split() == ["month-29", "9.000", "29.000", "-"]


def test_the_report_holds_tables_pictures_and_links(run):
    file = write_report(run)
    assert file == run / "report" / "report.md"
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "learning_rate.png",
        "loss.png",
        "metrics.json",
        "report.md",
        "task_matrix.bits_per_byte.png",
        "task_matrix.eval_loss.png",
    ]
    text = file.read_text()
    rows = [cells(line, "|") for line in text.splitlines() if line.startswith("|")]
    assert ["after python", "4.000", "2.000", "4.500", "-"] in rows
    assert ["byte unigram", "4.900", "4.700", "4.800", "-"] in rows
    assert ["`forgetting_from_best_earlier`", "-", "0.500", DESCRIPTIONS["forgetting_from_best_earlier"]] in rows
    assert ["`final_average`", "2.000", "2.500", DESCRIPTIONS["final_average"]] in rows
    assert ["anneal", "python", "180", "200", "2.0e-3", "3.0e-4"] in rows
    links = ["[trunk/02-python](../trunk/02-python)", "[releases/02-python](../releases/02-python)"]
    assert ["python", "100", "200", "180", "3,200", "2,880", "300", "7", *links] in rows
    assert ["`seed`", "7"] in rows
    assert ["`train_seconds`", "61.25"] in rows
    assert "nats per token" in text
    assert str(run.parent) not in text


def test_json_has_every_number_with_its_convention(run):
    found = json.loads((write_report(run).parent / "metrics.json").read_text())
    assert found["conventions"] == DESCRIPTIONS
    assert found["metrics"].keys() == {"eval_loss", "bits_per_byte"}
    assert all(numbers.keys() == DESCRIPTIONS.keys() for numbers in found["metrics"].values())
    assert found["metrics"]["bits_per_byte"]["final_average"] == 2.5
    assert found["metrics"]["eval_loss"]["forgetting_from_best_earlier"] is None


def test_the_same_run_gives_the_same_report(run, tmp_path):
    first = write_report(run).parent
    other = tmp_path / "elsewhere" / "infinite"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("report"))
    for file in write_report(other).parent.iterdir():
        assert file.read_bytes() == (first / file.name).read_bytes(), file.name


def test_points_and_rates_behind_the_pictures(run):
    found = read_run(run)
    assert found.training_losses() == [(10, 3.5), (50, 2.5), (300, 1.5)]
    assert found.evaluations(BITS)["docs"] == [(0, 8.0), (50, 3.25), (100, 3.0), (200, 4.0), (300, 3.5)]
    assert found.evaluations(BITS)["general"] == [(0, 8.25), (100, 4.0), (300, 5.0)]
    curve = found.curve()
    assert [part.rate(part.start) for part in curve.parts[:3]] == pytest.approx([0.0, 3e-3, 2e-3])
    assert curve.branches[1].rate(200) == pytest.approx(3e-4)
    assert [span.stop for span in curve.tasks] == [100, 200, 300]


def test_the_rates_behind_the_picture_of_a_repeated_reciprocal_square_root(run):
    schedule = rsqrt_rewarm([20, 30], warmup_steps=[2, 3], end_steps=[5, 0], peak_ratios=[1.0, 0.5], min_ratio=0.1)
    args = ContinualTrainingArguments(str(run), learning_rate=2e-3, lr_scheduler_type="rsqrt_rewarm")
    write_json(run / "continual_state.json", STATE | {"schedule": schedule_state(args, schedule)})
    rates = {step: part.rate(step) for part in read_run(run).curve().parts for step in range(part.start, part.stop)}
    assert rates == pytest.approx({step: 2e-3 * schedule(step) for step in range(50)})


def test_a_foreign_schedule_is_drawn_as_it_was_logged(run):
    write_json(run / "continual_state.json", STATE | {"schedule": {"name": "linear", "phases": []}})
    curve = read_run(run).curve()
    assert [curve.parts[0].rate(step) for step in (10, 30, 50, 300)] == pytest.approx([1e-3, 1.5e-3, 2e-3, 3e-4])
    assert "## Learning rate: linear" in write_report(run).read_text()


def test_a_run_under_way_is_reported_with_what_is_there(run):
    state = STATE | {
        "status": "running",
        "global_step": 150,
        "tasks": [task(0), task(1, False), task(2, False)],
    }
    write_json(run / "continual_state.json", state)
    write_json(run / "task_matrix.bits_per_byte.json", BITS.to_dict() | {"matrix": [[3.0, 5.0, 6.0, 4.0]]})
    (run / "trainer_state.json").unlink()
    write_json(run / "checkpoint-90" / "trainer_state.json", {"log_history": HISTORY[:1]})
    write_json(run / "checkpoint-110" / "trainer_state.json", {"log_history": HISTORY[:2]})
    write_json(run / "checkpoint-999.tmp" / "trainer_state.json", {})
    assert read_run(run).training_losses() == [(10, 3.5), (50, 2.5)]
    text = write_report(run).read_text()
    assert "not finished, step 150 of 300, 1 of 3 tasks released." in text
    assert "| python | 100 | - | - | - | - | 300 | 7 | - | - |" in text
    assert "after python" not in render_screen(run)
    (run / "task_matrix.bits_per_byte.json").unlink()
    write_json(run / "task_matrix.json", LOSS.to_dict() | {"matrix": [[None, None, None]]})
    assert "Nothing was evaluated" in render_screen(run)
    assert "## Spent" in write_report(run).read_text()


def rival(run):
    folder = run.parent / "cosine"
    shutil.copytree(run, folder)
    matrix = [[3.0, 5.0, 6.0, 4.0], [4.0, 2.0, 4.5, 4.0], [4.5, 3.5, 1.25, 5.0]]
    write_json(folder / "task_matrix.bits_per_byte.json", BITS.to_dict() | {"matrix": matrix})
    schedule = {"name": "cosine_rewarm", "learning_rate": 1e-3, "phases": []}
    write_json(folder / "continual_state.json", STATE | {"schedule": schedule, "compute": {"train_seconds": 60.0}})
    return folder


def test_runs_side_by_side_state_numbers_and_name_no_winner(run, tmp_path):
    other = rival(run)
    text = render_comparison([run, other])
    rows = {cells(line, "  ")[0]: [cell for cell in cells(line, "  ") if cell][1:] for line in text.splitlines()}
    assert rows["schedule"] == ["infinite", "cosine_rewarm"]
    assert rows["docs"] == ["3.500", "4.500"]
    assert rows["(general)"] == ["5.000", "5.000"]
    assert rows["final average over tasks"] == ["2.500", "3.083"]
    assert rows["average right after learning"] == ["2.167", "2.083"]
    assert rows["forgetting, from right after learning"] == ["0.500", "1.500"]
    assert rows["updates spent"] == ["300", "300"]
    assert rows["updates on the path to the last model"] == ["260", "260"]
    assert rows["training seconds"] == ["61.2", "60.0"]
    assert rows["evaluation seconds"] == ["4.0", "-"]
    file = write_comparison([run, other], tmp_path / "new")
    assert sorted(path.name for path in file.parent.iterdir()) == ["comparison.md", "comparison.png"]
    assert "| final average over tasks | 2.500 | 3.083 |" in file.read_text()
    assert not any(word in text + file.read_text() for word in ("best run", "winner", "wins", "**"))


def test_the_command(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert report([str(run)]) == 0
    assert "after python          4.000" in capsys.readouterr().out
    assert report([str(run), str(rival(run))]) == 0
    assert (tmp_path / "report-comparison" / "comparison.md").is_file()
    assert report([str(run), str(run), "--output", "side"]) == 0
    assert (tmp_path / "side" / "comparison.png").is_file()


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("continual_state.json", None, "has no continual_state.json: it must be the output_dir of a continual run."),
        ("continual_state.json", '{"schema_version": 1, ', "continual_state.json is not valid JSON"),
        ("continual_state.json", "[]", "holds a list: it must hold a mapping."),
        ("continual_state.json", '{"schema_version": 9}', "has schema_version 9: only 1 can be read."),
        (
            "continual_state.json",
            '{"schema_version": 1}',
            "lacks schedule, tasks, global_step, status: it is not whole.",
        ),
        ("task_matrix.json", '{"schema_version": 1}', "matrix must be among them."),
        ("task_matrix.json", "", "task_matrix.json is not valid JSON"),
        ("trainer_state.json", "{", "trainer_state.json is not valid JSON"),
    ],
)
def test_missing_and_half_files_are_one_sentence_and_exit_1(run, file, content, sentence, capsys):
    (run / file).unlink() if content is None else (run / file).write_text(content)
    assert report([str(run)]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (run / "report").exists()


def test_runs_that_cannot_be_compared_are_refused(run, capsys):
    other = rival(run)
    (other / "task_matrix.bits_per_byte.json").unlink()
    write_json(other / "task_matrix.json", LOSS.to_dict() | {"metric": "accuracy", "higher_is_better": True})
    assert report([str(run), str(other)]) == 1
    assert "The runs have no metric in common" in capsys.readouterr().err
    assert report([str(run), "--output", "side"]) == 1
    assert "--output is side: it is for several runs" in capsys.readouterr().err


def test_the_stability_gap_is_shown(run):
    gap = {"task": "python", "old_task": "docs", "loss_before": 2.0, "depth": 0.25, "length": None}
    small = {"task": "cpp", "old_task": "docs", "loss_before": 2.0, "depth": 0.125, "length": 1200}
    write_json(run / "continual_state.json", {**STATE, "stability_gap": [gap, small]})
    assert "+0.250 in the loss on docs while learning python, not back by its end" in render_screen(run)
    text = write_report(run).read_text()
    assert "| python | docs | 2.000 | 0.250 | - |" in text
    assert "| cpp | docs | 2.000 | 0.125 | 1,200 |" in text


def test_replayed_samples_are_not_among_those_for_the_release_only():
    tasks = [
        {"start_step": 0, "branch_step": 8, "end_step": 10},
        {"start_step": 10, "branch_step": 17, "end_step": 20},
    ]
    run = Run(Path("run"), {"tasks": tasks, "settings": {"global_batch_size": 10, "replay_fraction": 0.25}}, (), [])
    # 7.5 of the last 30 samples are replayed: 17 up to the branch, 25 up to its end.
    assert [_samples_for_release(run, task) for task in tasks] == [20, 22]
