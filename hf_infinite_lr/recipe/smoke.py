"""A recipe shortened to two steps: its own model, schedule and objective, on stand-ins for what lies on the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_infinite_lr.objectives.objective import Objective

from .entries import OWN_KEYS, SplitInto

NUM_STEPS = 2

_NUM_ROWS = 64
_SHORT: dict[str, Any] = {
    "max_steps": NUM_STEPS,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "save_strategy": "no",
    "report_to": "none",
    "resume_from_checkpoint": None,
}


def for_two_steps(content: Mapping[str, Any], objective: type[Objective], folder: Path) -> dict[str, Any]:
    """
    The keys of a recipe for two steps of one sample each.

    Entries that name a Hub dataset read a small local file of the same columns instead; models, built-in data and
    local files are read as they are.

    Args:
        content (`Mapping`): The recipe.
        objective (`type[Objective]`): What it trains.
        folder (`Path`): An empty folder for stand-ins and the run.
    """
    data = {
        key: [_local(entry, objective, folder) for entry in content[key] or ()]
        for key in ("tasks", "evaluate_also")
        if key in content
    }
    return {**content, **_SHORT, **objective.smoke, **data, "output_dir": str(folder / "run")}


def _local(entry: Mapping[str, Any], objective: type[Objective], folder: Path) -> dict[str, Any]:
    if entry.get("mixture"):
        parts = [
            _local({**part, "name": f"{entry['name']} {place}"}, objective, folder)
            for place, part in enumerate(entry["mixture"], start=1)
        ]
        return {**entry, "mixture": [{key: part[key] for key in part if key != "name"} for part in parts]}
    if not entry.get("dataset_name"):
        return dict(entry)
    own = {key: value for key, value in entry.items() if key in (*OWN_KEYS, "weight")}
    source = {key: value for key, value in entry.items() if key not in own}
    return {**objective.stand_in(source, _divided_by(entry), folder), **own}


def _divided_by(entry: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Values of the columns by which an entry is divided into tasks: as many different ones as may be asked for."""
    if entry.get("split_into") is None:
        return {}
    split = SplitInto.of(entry["split_into"], entry["name"])
    dates = [f"{2000 + row}-01-01" for row in range(_NUM_ROWS)]
    values: Sequence[Any] = dates if split.kind == "time" else [row // 2 for row in range(_NUM_ROWS)]
    return dict.fromkeys(split.columns, values)
