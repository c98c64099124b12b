"""A recipe shortened to two steps: its own model, schedule and objective, on stand-ins for what lies on the Hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_infinite_lr.objectives.objective import Objective

from .entries import OWN_KEYS, SplitInto

logger = logging.getLogger(__name__)

NUM_STEPS = 2

_NUM_ROWS = 64
_SHORT: dict[str, Any] = {
    "max_steps": NUM_STEPS,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "save_strategy": "no",
    "report_to": "none",
    "resume_from_checkpoint": None,
}


def for_two_steps(content: Mapping[str, Any], objective: type[Objective], folder: Path) -> dict[str, Any]:
    """
    The keys of a recipe for two steps of one sample each.

    Entries that name data of the Hub read a small local file of the same columns instead, and a model of the Hub is a
    new one of the recipe's `smoke_config_name`; built-in data is cut short, local files are read as they are. What is
    replaced or left out (a choice by a reference model of the Hub) is logged.

    Args:
        content (`Mapping`): The recipe.
        objective (`type[Objective]`): What it trains.
        folder (`Path`): For stand-ins and the run: empty, and the same one for all processes of a run.
    """
    own = folder / f"rank-{os.environ.get('RANK', '0')}"
    own.mkdir()
    data = {
        key: [_local(entry, objective, own) for entry in content[key] or ()]
        for key in ("tasks", "evaluate_also")
        if key in content
    }
    model = objective.stand_in_model(content, own)
    return {**content, **_SHORT, **objective.smoke, **data, **model, "output_dir": str(folder / "run")}


def _local(entry: Mapping[str, Any], objective: type[Objective], folder: Path) -> dict[str, Any]:
    if entry.get("mixture"):
        parts = [
            _local({**part, "name": f"{entry['name']} {place}"}, objective, folder)
            for place, part in enumerate(entry["mixture"], start=1)
        ]
        return {**entry, "mixture": [{key: part[key] for key in part if key != "name"} for part in parts]}
    data = entry.get("dataset_name") or entry.get("data_files") or ""
    files = [data] if isinstance(data, str) else data
    entry = _unranked(entry)
    if entry.get("builtin"):
        return {**_uncounted(entry), **objective.smoke_builtin}
    if not entry.get("dataset_name") and not any(str(file).startswith("hf://") for file in files):
        return dict(entry)
    logger.info("--smoke: a few made-up samples stand in for %s", ", ".join(map(str, files)))
    own = {key: value for key, value in entry.items() if key in (*OWN_KEYS, "weight")}
    source = {key: value for key, value in entry.items() if key not in own}
    return {**objective.stand_in(source, _divided_by(entry), folder), **_uncounted(own)}


def _uncounted(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Without numbers of samples to choose, which few made-up ones, or those of a short corpus, do not reach."""
    asked = entry.get("by_perplexity")
    keep = asked.get("keep") if isinstance(asked, Mapping) else None
    counts = {"subset": entry.get("subset"), "by_perplexity": keep}
    return {key: value for key, value in entry.items() if not isinstance(counts.get(key), int)}


def _unranked(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without `by_perplexity` where its reference model is not on this disk."""
    asked = entry.get("by_perplexity")
    if not isinstance(asked, Mapping) or Path(str(asked.get("model_name_or_path"))).exists():
        return entry
    logger.info("--smoke: by_perplexity of %s is left out", entry["name"])
    return {key: value for key, value in entry.items() if key != "by_perplexity"}


def _divided_by(entry: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Values of the columns by which an entry is divided into tasks: as many different ones as may be asked for."""
    if entry.get("split_into") is None:
        return {}
    split = SplitInto.of(entry["split_into"], entry["name"])
    dates = [f"{2000 + row}-01-01" for row in range(_NUM_ROWS)]
    values: Sequence[Any] = dates if split.kind == "time" else [row // 2 for row in range(_NUM_ROWS)]
    return dict.fromkeys(split.columns, values)
