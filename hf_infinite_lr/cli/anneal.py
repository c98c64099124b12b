"""`hf-infinite-lr anneal CHECKPOINT --num_anneal_steps N`: a release from any trunk checkpoint of a recipe's run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_infinite_lr.cli.run import leave_process_group
from hf_infinite_lr.cli.train import RECIPE, refuse
from hf_infinite_lr.recipe import load_recipe, parse_value
from hf_infinite_lr.trainer.disk import SaveError

_USAGE = """usage: hf-infinite-lr anneal CHECKPOINT --num_anneal_steps N [--key value ...]

CHECKPOINT is a directory of a run of `train`: trunk/01-... or a checkpoint-N on the trunk. N is a number of steps, or
a share of the task. The release goes to releases/ of the run; its trunk is not touched. Other keys override the run's
recipe, as in --per_device_eval_batch_size 64."""


def anneal(argv: Sequence[str]) -> int:
    """Anneals a trunk checkpoint.

    Args:
        argv (`Sequence[str]`): The checkpoint, `--num_anneal_steps N` and overrides.

    Returns:
        `int`: 0; 1 for input that is refused before the first step; 2 for a wrong call.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    checkpoint = Path(argv[0])
    try:
        num_anneal_steps, overrides = _num_anneal_steps(argv[1:])
        run = checkpoint.parent.parent if checkpoint.parent.name == "trunk" else checkpoint.parent
        here = ["--output_dir", json.dumps(str(run)), "--resume_from_checkpoint", "true"]
        trainer = load_recipe(run / RECIPE, [*overrides, *here]).trainer()
    except (ValueError, OSError) as error:
        return refuse("anneal", error)
    try:
        release = trainer.anneal(checkpoint, num_anneal_steps)
    except ValueError as error:
        if trainer.is_in_train:
            raise
        return refuse("anneal", error)
    except SaveError as error:
        return refuse("anneal", error)
    if trainer.is_world_process_zero():
        print(f"annealed: {release}")
    leave_process_group(wait=True)
    return 0


def _num_anneal_steps(words: Sequence[str]) -> tuple[int | float, list[str]]:
    name = "--num_anneal_steps"
    for place, word in enumerate(words):
        if word == name and place + 1 < len(words):
            return parse_value(words[place + 1]), [*words[:place], *words[place + 2 :]]
        if word.startswith(f"{name}="):
            return parse_value(word.removeprefix(f"{name}=")), [*words[:place], *words[place + 1 :]]
    raise ValueError(f"{name} N is missing.")
