"""`hf-infinite-lr train --config RECIPE.yaml ...`: a continual run from a recipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hf_infinite_lr.announcement import is_main_process
from hf_infinite_lr.cli.run import leave_process_group
from hf_infinite_lr.report import read_run, render_screen, write_report

_USAGE = """usage: hf-infinite-lr train --config RECIPE.yaml [--key value ...]

Every key of the recipe and of ContinualTrainingArguments can be set: --learning_rate 3e-4,
--lr_scheduler_kwargs.num_anneal_steps 0.1, --output_dir out/second, --resume_from_checkpoint true."""


def train(argv: Sequence[str]) -> int:
    """Trains a recipe, prints its task matrix and writes its report.

    Args:
        argv (`Sequence[str]`): `--config PATH` and overrides.

    Returns:
        `int`: 0; 1 for input that is refused before the first step; 2 for a wrong call.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    try:
        path, overrides = _split(argv)
        return _train(path, overrides)
    except (ValueError, FileNotFoundError) as error:
        if is_main_process():
            print(f"hf-infinite-lr train: {error}", file=sys.stderr)
        leave_process_group(wait=False)
        return 1


def _split(argv: Sequence[str]) -> tuple[str, list[str]]:
    words = list(argv)
    for place, word in enumerate(words):
        if word == "--config" and place + 1 < len(words):
            return words[place + 1], words[:place] + words[place + 2 :]
        if word.startswith("--config="):
            return word.removeprefix("--config="), words[:place] + words[place + 1 :]
    raise ValueError("--config RECIPE.yaml is missing.")


def _train(path: str, overrides: Sequence[str]) -> int:
    from hf_infinite_lr.recipe import load_recipe

    recipe = load_recipe(path, overrides)
    trainer = recipe.trainer()
    trainer.train(recipe.arguments.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        output_dir = str(recipe.arguments.output_dir)
        write_report(output_dir)
        print(render_screen(read_run(output_dir)))
    leave_process_group(wait=True)
    return 0
