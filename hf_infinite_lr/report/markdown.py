"""One run as a Markdown report with pictures."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_infinite_lr.announcement import format_rate
from hf_infinite_lr.files import write_json, write_text
from hf_infinite_lr.metrics import DESCRIPTIONS, TaskMatrix, summary
from hf_infinite_lr.plots import draw_learning_rate, draw_losses, draw_task_matrix, write_png
from hf_infinite_lr.report.representations import representation_sections
from hf_infinite_lr.report.run import Run, read_run
from hf_infinite_lr.report.screen import matrix_rows, metric_line, status_line
from hf_infinite_lr.report.table import NOTHING, count, markdown, number
from hf_infinite_lr.stream.order import replay_before

REPORT_FOLDER = "report"
REPORT_FILE = "report.md"
METRICS_FILE = "metrics.json"

_LARGEST_PICTURE = 100
"""Columns of the largest matrix that is drawn: a picture of more takes minutes and cannot be read."""


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """
    Write `report/` of one run: `report.md`, its pictures, and all metrics of its matrices as `metrics.json`.

    The files of the run are read and nothing else, so the same run gives the same report. Each file is replaced whole.

    Args:
        run_dir (`str` or `os.PathLike`):
            The `output_dir` of the run.

    Returns:
        `Path`: the Markdown file.

    Raises:
        ValueError: no run lies there, or its files are not whole.
    """
    run = read_run(run_dir)
    return write_report_of(run, run.path / REPORT_FOLDER)


def write_report_of(run: Run, folder: Path) -> Path:
    """
    Write the report of a run to any folder.

    Args:
        run ([`Run`]):
            The run.
        folder (`Path`):
            Where to write.

    Returns:
        `Path`: the Markdown file.
    """
    pictures = _write_pictures(run, folder)
    sections = [f"# {run.path.resolve().name}", status_line(run, "This run")]
    for matrix in run.matrices:
        sections += _matrix_section(run, matrix, pictures)
    sections += _numbers_section(run)
    sections += _gap_section(run)
    sections += _benchmark_section(run)
    sections += representation_sections(run, folder)
    sections += _rate_section(run, pictures)
    if "loss.png" in pictures:
        sections += ["## Losses", "![loss per task](loss.png)"]
    sections += _spent_section(run, linked=folder.parent == run.path)
    for title, key in (("Compute", "compute"), ("Settings", "settings"), ("Versions", "versions")):
        if run.state.get(key):
            sections += [f"## {title}", _mapping_table(run.state[key])]
    if run.matrices:
        write_json(folder / METRICS_FILE, _metrics(run))
    write_text(folder / REPORT_FILE, "\n\n".join(sections) + "\n")
    return folder / REPORT_FILE


def _metrics(run: Run) -> dict[str, Any]:
    """Every number of every matrix, and what each key means."""
    numbers = {matrix.metric: summary(matrix) for matrix in run.matrices}
    return {"schema_version": 1, "conventions": DESCRIPTIONS, "metrics": numbers}


def _write_pictures(run: Run, folder: Path) -> list[str]:
    figures = {}
    curve, matrix = run.curve(), run.shown_matrix
    if curve is not None:
        figures["learning_rate.png"] = draw_learning_rate(
            curve, title=f"{run.state['schedule']['name']} learning rate"
        )
    losses, points = run.training_losses(), run.evaluations(matrix) if matrix else {}
    if losses or any(points.values()):
        label = metric_line(run, matrix) if matrix else ""
        figures["loss.png"] = draw_losses(losses, points, run.spans(), evaluation_label=label)
    for each in run.matrices:
        if len(each.columns) <= _LARGEST_PICTURE:
            figures[_picture_name(each)] = draw_task_matrix(each, title=metric_line(run, each))
    for name, figure in figures.items():
        write_png(figure, folder / name)
    return list(figures)


def _picture_name(matrix: TaskMatrix) -> str:
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in matrix.metric)
    return f"task_matrix.{safe}.png"


def _matrix_section(run: Run, matrix: TaskMatrix, pictures: Sequence[str]) -> list[str]:
    picture = _picture_name(matrix)
    section = [
        f"## Task matrix: {metric_line(run, matrix)}",
        "Row = after training a task, column = evaluated on; columns in brackets are evaluated only; "
        f"`{NOTHING}` = not evaluated.",
        markdown(matrix_rows(run, matrix)),
    ]
    if picture in pictures:
        section.append(f"![task matrix of {matrix.metric}]({picture})")
    return section


def _numbers_section(run: Run) -> list[str]:
    if not run.matrices:
        return []
    summaries = [summary(matrix) for matrix in run.matrices]
    rows = [["number", *(matrix.metric for matrix in run.matrices), "convention"]]
    rows += [[f"`{key}`", *(number(each[key]) for each in summaries), text] for key, text in DESCRIPTIONS.items()]
    return ["## Learned and forgotten", markdown(rows)]


def _gap_section(run: Run) -> list[str]:
    gaps = run.state.get("stability_gap")
    if not gaps:
        return []
    text = (
        "The loss on an old task while a later one is learned, from the evaluations in between. Depth: the largest "
        "minus the one at the end of the task before (of its release). Length: steps from the switch until it is back "
        f"within 1 % of that; `{NOTHING}` = not by the end of the task."
    )
    rows = [["learned", "old task", "loss before", "depth", "length"]]
    for gap in gaps:
        losses = (number(gap["loss_before"]), number(gap["depth"]))
        rows.append([gap["task"], gap["old_task"], *losses, count(gap["length"])])
    return ["## Stability gap", text, markdown(rows)]


def _benchmark_section(run: Run) -> list[str]:
    """Zero-shot scores of the releases, one row for each benchmark and metric, with standard errors."""
    models = run.state.get("benchmarks") or []
    if not models:
        return []
    names = [f"release of {model['task']}" if model["task"] else "before training" for model in models]
    scores = [model["scores"] for model in models]
    kinds = {(name, metric): None for each in scores for name, metrics in each.items() for metric in metrics}
    rows = [["benchmark", "metric", *names]]
    for name, metric in kinds:
        rows.append([name, metric, *(number(each.get(name, {}).get(metric)) for each in scores)])
    return ["## Zero-shot benchmarks (lm-evaluation-harness)", markdown(rows)]


def _rate_section(run: Run, pictures: Sequence[str]) -> list[str]:
    schedule, names = run.state["schedule"], [task["name"] for task in run.tasks]
    section = [f"## Learning rate: {schedule['name']}"]
    if schedule.get("arguments"):
        section.append(_mapping_table(schedule["arguments"]))
    if "learning_rate.png" in pictures:
        section.append("![learning rate](learning_rate.png)")
    rows = [["phase", "task", "from step", "to step", "rate at its start", "rate at its end"]]
    for phase in schedule.get("phases") or ():
        steps = (count(phase["start_step"]), "open" if phase["end_step"] is None else count(phase["end_step"]))
        rates = (format_rate(phase["start_rate"]), format_rate(phase["end_rate"]))
        rows.append([phase["name"], names[phase["task"]], *steps, *rates])
    return [*section, markdown(rows)] if len(rows) > 1 else section


def _spent_section(run: Run, *, linked: bool) -> list[str]:
    kinds = [kind for kind in ("updates", "samples", "tokens") if any(task.get(kind) for task in run.tasks)]
    head = ["task", "steps", *(f"{kind} {part}" for kind in kinds for part in ("spent", "on the path"))]
    rows = [[*head, "samples for the release only", "samples unused", "trunk", "release"]]
    for task in run.tasks:
        known = task if run.has_ended(task) else {}
        counts = [(known.get(kind) or {}).get(part) for kind in kinds for part in ("spent", "on_path")]
        places = [task.get(kind) or NOTHING for kind in ("trunk", "release")]
        links = [f"[{place}](../{place})" if linked and place != NOTHING else place for place in places]
        kept = [count(_samples_for_release(run, task)), count(task.get("num_unused_samples"))]
        rows.append([task["name"], count(task.get("num_steps")), *map(count, counts), *kept, *links])
    text = (
        "Spent: all that was computed until this release, for earlier tasks too. On the path: what is in the history "
        "of the released weights; branches from which the trunk came back are not. Samples for the release only: the "
        "trunk never trains on them. Samples unused: a pass is whole global batches, and these fill none."
    )
    return ["## Spent", text, markdown(rows)]


def _samples_for_release(run: Run, task: Mapping[str, Any]) -> int | None:
    """Samples of a task that its branch alone has seen: its own of the annealing, unless training goes on from there.

    With GDumb there is no trunk that could see any.
    """
    settings = run.state.get("settings") or {}
    if "gdumb" in (settings.get("methods") or {}):
        return None
    if task.get("branch_step") is None or settings.get("anneal_budget") == "extra" or settings.get("rewind") == "none":
        return 0
    if (size := settings.get("global_batch_size")) is None:
        return None
    first, last = (task[name] - task["start_step"] for name in ("branch_step", "end_step"))
    has_source = any(other.get("num_samples") != 0 for other in run.tasks[: run.tasks.index(task)])
    replayed = (settings.get("replay_fraction") or 0) if has_source else 0
    own = [batch * size - replay_before(batch, replayed, size) for batch in (first, last)]
    return own[1] - own[0]


def _mapping_table(values: Mapping[str, Any]) -> str:
    rows = [["name", "value"]]
    for name, value in sorted(values.items()):
        rows.append([f"`{name}`", value if isinstance(value, str) else json.dumps(value, default=str)])
    return markdown(rows)
