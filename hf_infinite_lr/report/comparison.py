"""Several runs side by side: what each scores and what each cost, and no winner."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_infinite_lr.files import write_text
from hf_infinite_lr.metrics import DESCRIPTIONS, TaskMatrix, summary
from hf_infinite_lr.plots import draw_comparison, write_png
from hf_infinite_lr.plots.comparison import final_values
from hf_infinite_lr.report.run import Run, read_run
from hf_infinite_lr.report.screen import SHORT, metric_line
from hf_infinite_lr.report.table import NOTHING, aligned, count, markdown, number, seconds

COMPARISON_FILE = "comparison.md"
PICTURE_FILE = "comparison.png"

NUMBERS = (
    "final_average",
    "average_right_after_learning",
    "forgetting_from_best_earlier",
    "forgetting_from_right_after_learning",
)
"""The keys of a summary that stand side by side."""

CAUTION = "One run each: how much of a difference is the seed's, single runs cannot tell."


def render_comparison(paths: Sequence[str | os.PathLike[str]]) -> str:
    """
    Several runs side by side for the terminal, a column for each run.

    Args:
        paths (`Sequence[str | os.PathLike]`):
            The `output_dir` of each run.

    Raises:
        ValueError: a folder without a run, files that are not whole, or runs without a metric in common.
    """
    runs = [read_run(path) for path in paths]
    matrices = _common_matrices(runs)
    return f"{metric_line(runs[0], matrices[0])}, after the last task\n\n{aligned(_rows(runs, matrices))}\n\n{CAUTION}"


def write_comparison(paths: Sequence[str | os.PathLike[str]], folder: str | os.PathLike[str]) -> Path:
    """
    Write `comparison.md` and `comparison.png` of several runs.

    Args:
        paths (`Sequence[str | os.PathLike]`):
            The `output_dir` of each run.
        folder (`str` or `os.PathLike`):
            Where to write.

    Returns:
        `Path`: the Markdown file.

    Raises:
        ValueError: as [`render_comparison`].
    """
    runs = [read_run(path) for path in paths]
    matrices = _common_matrices(runs)
    names = _names(runs)
    write_png(draw_comparison(dict(zip(names, matrices, strict=True))), Path(folder) / PICTURE_FILE)
    conventions = [["number", "convention"], *([SHORT[key], DESCRIPTIONS[key]] for key in NUMBERS)]
    sections = [
        f"# {metric_line(runs[0], matrices[0])}",
        markdown(_rows(runs, matrices)),
        CAUTION,
        f"![the runs side by side]({PICTURE_FILE})",
        markdown(conventions),
    ]
    target = Path(folder) / COMPARISON_FILE
    write_text(target, "\n\n".join(sections) + "\n")
    return target


def _common_matrices(runs: Sequence[Run]) -> list[TaskMatrix]:
    """For each run the matrix of one metric that all have, the one that the first run shows if it can be."""
    first = runs[0].shown_matrix
    wanted = [*([first] if first else []), *runs[0].matrices]
    for candidate in wanted:
        found = [_of_metric(run, candidate) for run in runs]
        matrices = [matrix for matrix in found if matrix is not None]
        if len(matrices) == len(runs):
            return matrices
    have = "; ".join(f"{run.path}: {', '.join(matrix.metric for matrix in run.matrices) or 'none'}" for run in runs)
    raise ValueError(f"The runs have no metric in common ({have}): only runs that measured the same can be compared.")


def _of_metric(run: Run, wanted: TaskMatrix) -> TaskMatrix | None:
    for matrix in run.matrices:
        if (matrix.metric, matrix.higher_is_better) == (wanted.metric, wanted.higher_is_better):
            return matrix
    return None


def _names(runs: Sequence[Run]) -> list[str]:
    return [str(run.path) for run in runs]


def _rows(runs: Sequence[Run], matrices: Sequence[TaskMatrix]) -> list[list[str]]:
    columns = dict.fromkeys(column for matrix in matrices for column in (*matrix.tasks, *matrix.evaluation_only))
    finals, summaries = [final_values(matrix) for matrix in matrices], [summary(matrix) for matrix in matrices]
    tasks = {task for matrix in matrices for task in matrix.tasks}
    lines = [["", *_names(runs)], ["schedule", *(run.state["schedule"]["name"] for run in runs)]]
    lines.append(["status", *(_status(run, matrix) for run, matrix in zip(runs, matrices, strict=True))])
    lines += [_setting_row(runs, "seed"), _setting_row(runs, "anneal_budget"), _setting_row(runs, "replay_fraction")]
    for column in columns:
        name = column if column in tasks else f"({column})"
        lines.append([name, *(number(values.get(column)) for values in finals)])
    lines += [[SHORT[key], *(number(numbers[key]) for numbers in summaries)] for key in NUMBERS]
    for kind in ("updates", "samples", "tokens"):
        spent = [run.spent(kind) for run in runs]
        if kind == "tokens" and not any(spent):
            continue
        lines.append([f"{kind} spent", *(count(counts.get("spent")) for counts in spent)])
        lines.append([f"{kind} on the path to the last model", *(count(each.get("on_path")) for each in spent)])
    compute: list[Mapping[str, Any]] = [run.state.get("compute") or {} for run in runs]
    lines.append(["training seconds", *(seconds(each.get("train_seconds")) for each in compute)])
    lines.append(["evaluation seconds", *(seconds(each.get("evaluation_seconds")) for each in compute)])
    return lines


def _status(run: Run, matrix: TaskMatrix) -> str:
    word = "finished" if run.state["status"] == "finished" else "not finished"
    return f"{word}, {len(matrix.matrix)} of {len(matrix.tasks)} tasks"


def _setting_row(runs: Sequence[Run], name: str) -> list[str]:
    values = [(run.state.get("settings") or {}).get(name) for run in runs]
    return [name, *(NOTHING if value is None else str(value) for value in values)]
