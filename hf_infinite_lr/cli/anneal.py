"""`hf-infinite-lr anneal CHECKPOINT --num_anneal_steps N`: a release from any trunk checkpoint of a recipe's run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_infinite_lr.cli.run import leave_process_group, talk_once
from hf_infinite_lr.cli.train import refuse
from hf_infinite_lr.files import read_json
from hf_infinite_lr.hub import RECIPE, is_hub_revision
from hf_infinite_lr.manifest import STATE
from hf_infinite_lr.recipe import load_recipe, parse_value
from hf_infinite_lr.recipe.document import read_document
from hf_infinite_lr.recipe.recipe import OBJECTIVES
from hf_infinite_lr.trainer.disk import SaveError

_OWN = ("num_anneal_steps", "task", "dataset", "config")
_USAGE = """usage: hf-infinite-lr anneal CHECKPOINT --num_anneal_steps N [--key value ...]

CHECKPOINT is a directory of a run of `train`: trunk/01-... or a checkpoint-N on the trunk. N is a number of steps, or
a share of the task. The release goes to releases/ of the run; its trunk is not touched. Other keys override the run's
recipe, as in --per_device_eval_batch_size 64.

Where the data of the run cannot be had again:
  --task NAME       anneal on the data of this task of the recipe; no other task is read
  --dataset ENTRY   anneal on other data: an entry as under `tasks` of a recipe, as in '{data_files: new/*.jsonl}'
  --config RECIPE   a recipe for a run that has kept none"""


def anneal(argv: Sequence[str]) -> int:
    """Anneals a trunk checkpoint.

    Args:
        argv (`Sequence[str]`): The checkpoint, `--num_anneal_steps N`, where the data is, and overrides.

    Returns:
        `int`: 0; 1 for input that is refused before the first step; 2 for a wrong call.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    checkpoint = Path(argv[0])
    try:
        if is_hub_revision(argv[0]):
            raise ValueError(
                f"{argv[0]} lies on the Hub: download it and its recipe first, as its release's card says."
            )
        own, overrides = _own_options(argv[1:])
        if "num_anneal_steps" not in own:
            raise ValueError("--num_anneal_steps N is missing.")
        num_anneal_steps = parse_value(own["num_anneal_steps"])
        run = checkpoint.parent.parent if checkpoint.parent.name == "trunk" else checkpoint.parent
        path = own.get("config", run / RECIPE)
        entry = _entry(own, path, checkpoint)
        data = [] if entry is None else ["--tasks", json.dumps([entry], default=str), "--task_steps", "null"]
        here = ["--output_dir", json.dumps(str(run)), "--resume_from_checkpoint", "true"]
        talk_once()
        trainer = load_recipe(path, [*overrides, *data, *here]).trainer()
        trainer.other_data = entry
    except (ValueError, OSError) as error:
        return refuse("anneal", error)
    try:
        release = trainer.anneal(checkpoint, num_anneal_steps, task=None if entry is None else entry["name"])
    except ValueError as error:
        if trainer.has_begun:
            raise
        return refuse("anneal", error)
    except SaveError as error:
        return refuse("anneal", error)
    if trainer.is_world_process_zero():
        print(f"annealed: {release}")
    leave_process_group(wait=True)
    return 0


def _own_options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The values of the options that are the verb's own, and all other words."""
    own: dict[str, str] = {}
    others: list[str] = []
    pending = iter(words)
    for word in pending:
        name, equals, value = word.removeprefix("--").partition("=")
        if name not in _OWN or not word.startswith("--"):
            others.append(word)
        elif equals or (value := next(pending, "")):
            own[name] = value
        else:
            raise ValueError(f"--{name} needs a value.")
    return own, others


def _entry(own: Mapping[str, str], path: str | Path, checkpoint: Path) -> dict[str, Any] | None:
    """The entry of `tasks` that says on which data to anneal; None for the batches that come next."""
    if "dataset" in own and "task" in own:
        raise ValueError(f"--task {own['task']} and --dataset {own['dataset']} cannot go together: give one of them.")
    if "dataset" not in own and "task" not in own:
        return None
    entry = _named_entry(own["task"], path) if "task" in own else _given_entry(own["dataset"])
    lengths = {key for objective in OBJECTIVES.values() for key in objective.lengths}
    # The recipe's shares are of its first task, so that they fit what is as long; the branch has its own length.
    first = read_json(checkpoint / STATE)["tasks"][0]
    return {**{key: value for key, value in entry.items() if key not in lengths}, "num_steps": first["num_steps"]}


def _given_entry(text: str) -> dict[str, Any]:
    given = parse_value(text)
    if not isinstance(given, dict):
        raise ValueError(
            f"--dataset {text} must be an entry as under tasks of a recipe, such as '{{data_files: new/*.jsonl}}'."
        )
    return {"name": "dataset", **given}


def _named_entry(name: str, path: str | Path) -> dict[str, Any]:
    entries = read_document(path).get("tasks") or []
    for entry in entries:
        if entry.get("name") == name:
            return dict(entry)
    names = ", ".join(str(entry.get("name")) for entry in entries)
    raise ValueError(f"--task {name} must be a task of {path}: {names}.")
