"""A recipe shortened to two steps: its own model, schedule and objective, on stand-ins for what lies on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_infinite_lr.objectives.objective import Objective

NUM_STEPS = 2

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

    def local(entries: Any) -> Any:
        return [objective.stand_in(entry, folder) if entry.get("dataset_name") else entry for entry in entries or ()]

    data = {key: local(content[key]) for key in ("tasks", "evaluate_also") if key in content}
    return {**content, **_SHORT, **objective.smoke, **data, "output_dir": str(folder / "run")}
