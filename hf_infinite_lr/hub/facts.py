"""What a model card is filled from: plain values, gathered when the release is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_infinite_lr.merging import MergeSettings
from hf_infinite_lr.methods.joint import JOINT
from hf_infinite_lr.metrics import DESCRIPTIONS, HEADLINE, TaskMatrix, summary
from hf_infinite_lr.report.run import Run
from hf_infinite_lr.report.screen import SHORT, matrix_rows

from .queue import tag_of
from .saved_model import hub_id
from .settings import LARGEST_TABLE, brief

_SCHEMA_VERSION = 1
_OF_THE_TASK = ("name", "directory", "num_samples", "start_step", "branch_step", "end_step")


def release_facts(
    run: Run,
    directory: str,
    *,
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
    compute: Mapping[str, Any],
    recipe: Mapping[str, Any] | None,
    hub: Mapping[str, Any],
    pictures: Sequence[str],
    benchmark_sources: Mapping[str, Mapping[str, str | None]],
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """Everything that the card of a release says, as JSON.

    Args:
        run ([`Run`]): As it stands right after the release.
        directory (`str`): The release's directory, such as `01-web`.
        model (`Mapping`): From [`model_facts`].
        settings (`Mapping`): From [`changed_settings`].
        compute (`Mapping`): `device` and `num_processes`.
        recipe (`Mapping`, *optional*): The recipe, of a run that has one.
        hub (`Mapping`): `repo_id` (None where it is not known), `trunks` (whether they are published), `license`.
        pictures (`Sequence[str]`): Names of the pictures in the release's `report/`.
        benchmark_sources (`Mapping`): Of each benchmark `scored_by`, `dataset` and `subset`, where they are known.
        checkpoint (`Path`, *optional*): Of an annealing after the fact: where it began.
    """
    tasks = run.tasks
    place = max(n for n, task in enumerate(tasks) if run.state["global_step"] > task["start_step"])
    task, other = tasks[place], run.state.get("annealed_on")
    if other:  # whose number of samples the record has in the place of the task's own
        task = {**task, "num_samples": None}
        tasks = [*tasks[:place], task, *tasks[place + 1 :]]
    trained = [_source(recipe, name) for name in [*(each["name"] for each in tasks[: place + 1]), other] if name]
    return {
        "schema_version": _SCHEMA_VERSION,
        "directory": directory,
        "output_dir": _as_given(run.path),
        "hub": dict(hub),
        "model": dict(model),
        "task": {key: task.get(key) for key in _OF_THE_TASK} | {"number": place + 1},
        "stream": [_stream_row(n, each, recipe) for n, each in _shortened(list(enumerate(tasks)))],
        "num_tasks": len(tasks),
        "datasets": sorted({part["dataset"] for part in map(_data, _parts(trained)) if part["dataset"]}),
        "annealed_on": other and {"name": other, **_data(_source(recipe, other))},
        "evaluate_also": list(run.state.get("evaluate_also") or ())[:LARGEST_TABLE],
        "spent": {kind: task[kind] for kind in ("updates", "samples")} | _tokens(task, recipe),
        "schedule": _schedule(run, place),
        "trunk": _trunk(run, place, checkpoint),
        **_ways(run, place),
        "scores": [_scores(run, matrix, recipe) for matrix in run.matrices],
        "benchmarks": _benchmarks(run, task["name"], benchmark_sources),
        "settings": {**settings, **_run_settings(run)},
        "versions": dict(run.state.get("versions") or {}),
        "compute": {**(run.state.get("compute") or {}), **compute},
        "recipe": recipe is not None,
        "pictures": list(pictures),
    }


def _as_given(output_dir: Path) -> str:
    """The directory as the launch has named it, from where the card's commands work; of an absolute one the name."""
    inside = not output_dir.is_absolute() and ".." not in output_dir.parts and output_dir.name
    return " ".join(str(output_dir if inside else output_dir.resolve().name).split())


def _run_settings(run: Run) -> dict[str, Any]:
    names, settings = ("global_batch_size", "seed", "data_seed"), run.state.get("settings") or {}
    found = {name: settings[name] for name in names if name in settings}
    for name, keys in (settings.get("methods") or {}).items():
        given = {f"methods.{name}.{key}": value for key, value in keys.items() if value is not None}
        found |= given or {f"methods.{name}": "no keys"}
    return found | {f"merge.{key}": value for key, value in (settings.get("merge") or {}).items()}


def _ways(run: Run, place: int) -> dict[str, Any]:
    """What of the run makes a release other than the trunk, annealed, and its scores other than its own."""
    settings = run.state.get("settings") or {}
    merge = settings.get("merge") or {}
    merged = bool(merge) and (place > 0 or merge["method"] == "first")  # a running average begins with the task's own
    return {
        "rewind": settings.get("rewind"),
        "methods": dict(settings.get("methods") or {}),
        "merge": asdict(MergeSettings(**merge)) if merged else None,
    }


def _shortened(rows: list[Any]) -> list[Any]:
    """The first and the last of many rows, with None between."""
    if len(rows) <= LARGEST_TABLE:
        return rows
    half = LARGEST_TABLE // 2
    return [*rows[:half], (None, None), *rows[-half:]]


def _entries(recipe: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    return [*((recipe or {}).get("tasks") or ()), *((recipe or {}).get("evaluate_also") or ())]


def _source(recipe: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """The recipe's entry of a task or column: its own, or the one that was split into it; of all at once a mixture."""
    entries = {entry["name"]: entry for entry in _entries(recipe)}
    if name in entries:
        return entries[name]
    if name == JOINT:
        return {"mixture": _parts((recipe or {}).get("tasks") or ())}
    split = [whole for whole, entry in entries.items() if _is_part(name, whole, entry.get("split_into"))]
    return entries[max(split, key=len)] if split else {}


def _is_part(name: str, whole: str, split_into: Mapping[str, Any] | None) -> bool:
    """Whether a task has the name of a part of an entry: its domain, else its number."""
    if not split_into or not name.startswith(f"{whole}-"):
        return False
    return split_into.get("kind") == "domain" or name.removeprefix(f"{whole}-").isdecimal()


def _parts(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Mixtures taken apart."""
    return [part for entry in entries for part in entry.get("mixture") or [entry]]


def _data(source: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dataset": hub_id(source.get("dataset_name")),
        "subset": source.get("dataset_config_name"),
        "split": source.get("split"),
        "builtin": source.get("builtin"),
    }


def _held_out(source: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what is held out; a file beside a dataset of the Hub is none of its splits."""
    data = _data({} if source.get("eval_data_files") else source)
    return {**data, "split": source.get("eval_split") or data["split"]}


def _stream_row(
    place: int | None, task: Mapping[str, Any] | None, recipe: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    if task is None:
        return None
    source = _source(recipe, task["name"])
    return {
        "number": (place or 0) + 1,
        "name": task["name"],
        **_data(source),
        "mixture": [_data(part) for part in source.get("mixture") or ()],
        "num_samples": task.get("num_samples"),
        "num_steps": task.get("num_steps"),
        "num_anneal_steps": task.get("num_anneal_steps"),
    }


def _tokens(task: Mapping[str, Any], recipe: Mapping[str, Any] | None) -> dict[str, Any]:
    """Tokens where every sample is a block of as many, as in a recipe of a language model."""
    size = (recipe or {}).get("block_size")
    return {"tokens": {key: value * size for key, value in task["samples"].items()}} if size else {}


def _schedule(run: Run, place: int) -> dict[str, Any]:
    schedule, end = run.state["schedule"], run.state["global_step"]
    phases = schedule.get("phases") or ()
    last = [phase for phase in phases if phase["start_step"] < end and phase["task"] == place]
    constant = [phase["end_rate"] for phase in phases if phase["name"] == "constant"]
    logged = [entry["learning_rate"] for entry in run.log_history if "learning_rate" in entry]
    return {
        "name": schedule["name"],
        "peak": schedule.get("learning_rate"),
        "constant": constant[0] if constant and schedule["name"] == "infinite" else None,
        "arguments": brief({**schedule.get("arguments", {}), "warmup_steps": schedule.get("warmup_steps")}),
        "phase": last[-1]["name"] if last else None,
        "rate": last[-1]["end_rate"] if last else (logged[-1] if logged else None),
        "anneal_budget": run.state.get("settings", {}).get("anneal_budget"),
        "replay_fraction": run.state.get("settings", {}).get("replay_fraction"),
        "global_batch_size": run.state.get("settings", {}).get("global_batch_size"),
    }


def _trunk(run: Run, place: int, checkpoint: Path | None) -> dict[str, Any] | None:
    """What the release grew from, and what that grew from."""
    tasks = run.tasks
    task = tasks[place]
    if not task.get("directory"):
        return None
    return {
        "directory": task["directory"],
        "tag": tag_of("trunk", task["directory"]),
        **_other_than_trunk(checkpoint, run.path, task["directory"]),
        "unpickled": str((run.state.get("settings") or {}).get("engine")).startswith("deepspeed"),
        "step": trunk_step(task),
        "num_anneal_steps": task["end_step"] - trunk_step(task),
        "parent": tasks[place - 1]["directory"] if place else None,
        "parent_annealed": place > 0 and tasks[place - 1].get("branch_step") is not None,
    }


def trunk_step(task: Mapping[str, Any]) -> int:
    """The global step at which a task's trunk is saved, from what `continual_state.json` says of the task."""
    step: int = task["end_step"] if task.get("branch_step") is None else task["branch_step"]
    return step


def _other_than_trunk(checkpoint: Path | None, output_dir: Path, directory: str) -> dict[str, Any]:
    """The checkpoint where a branch began that is not its task's trunk, as a command names it.

    Of one outside `output_dir` the last part, because the card names no place of a machine.
    """
    path, root = (checkpoint or output_dir / "trunk" / directory).resolve(), output_dir.resolve()
    if path == root / "trunk" / directory:
        return {"checkpoint": None, "outside": False}
    if path.is_relative_to(root):
        return {"checkpoint": f"{_as_given(output_dir)}/{path.relative_to(root)}", "outside": False}
    return {"checkpoint": path.name, "outside": True}


def _benchmarks(run: Run, task: str, sources: Mapping[str, Mapping[str, str | None]]) -> list[dict[str, Any]]:
    """What the benchmarks say of the newest release of a task, with the standard error where there is one."""
    rows = [row["scores"] for row in run.state.get("benchmarks") or () if row["task"] == task]
    found = []
    for name, scores in (rows[-1] if rows else {}).items():
        source = sources.get(name, {})
        dataset = source.get("dataset")
        data = {"dataset": hub_id(dataset) if dataset and "/" in dataset else None, "subset": source.get("subset")}
        for metric, value in scores.items():
            kind, comma, kept = metric.partition(",")  # behind a comma is how the harness reads an answer
            if not kind.endswith("_stderr"):
                error = scores.get(f"{kind}_stderr{comma}{kept}")
                of = {"benchmark": name, "metric": metric, "value": value, "standard_error": error}
                found.append({**of, **data, "scored_by": source.get("scored_by")})
    return found


def _scores(run: Run, matrix: TaskMatrix, recipe: Mapping[str, Any] | None) -> dict[str, Any]:
    """A task matrix as a card shows it: the table where it is small, else the learned columns one by one."""
    learned = list(matrix.tasks[: len(matrix.matrix)])
    last = dict(zip(matrix.columns, matrix.matrix[-1], strict=True)) if matrix.matrix else {}
    after = dict(zip(learned, matrix.diagonal, strict=True))
    columns = [(name, None) for name in [*learned, *matrix.evaluation_only]]
    numbers = summary(matrix)
    return {
        "metric": matrix.metric,
        "unit": run.unit(matrix.metric),
        "higher_is_better": matrix.higher_is_better,
        "shown": run.shown_matrix is not None and run.shown_matrix.metric == matrix.metric,
        "table": matrix_rows(run, matrix) if len(matrix.columns) <= LARGEST_TABLE else None,
        "last": [
            None
            if name is None
            else {"column": name, "value": last.get(name), "right_after_learning": after.get(name)}
            | {key: value for key, value in _held_out(_source(recipe, name)).items() if key != "builtin"}
            for name, _ in _shortened(columns)
        ],
        "numbers": {
            key: {"value": numbers[key], "name": SHORT[key], "convention": DESCRIPTIONS[key]} for key in HEADLINE
        },
    }
