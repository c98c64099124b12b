"""`hf-infinite-lr train --config RECIPE.yaml ...`: a continual run from a recipe."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_infinite_lr.announcement import is_main_process
from hf_infinite_lr.cli.run import leave_process_group, talk_once
from hf_infinite_lr.hub import RECIPE
from hf_infinite_lr.recipe import Recipe, load_recipe
from hf_infinite_lr.report import read_run, render_screen
from hf_infinite_lr.trainer.disk import SaveError, saving
from hf_infinite_lr.trainer.preemption import Preemption

SMOKE = "--smoke"

_ALONE_SECONDS = 5.0
"""After so long without being ended, a process that fails does so for a reason of its own, and says it."""

_USAGE = """usage: hf-infinite-lr train --config RECIPE.yaml [--smoke] [--key value ...]

--smoke: two steps of the recipe's own code in a folder that is deleted afterwards, with small local stand-ins for what
lies on the Hub: datasets, tokenizer, and a model whose recipe has smoke_config_name. Every key of the recipe and of
ContinualTrainingArguments can be set: --learning_rate 3e-4, --lr_scheduler_kwargs.num_anneal_steps 0.1,
--output_dir out/second, --resume_from_checkpoint true."""


def train(argv: Sequence[str]) -> int:
    """Trains a recipe, prints its task matrix and writes its report.

    Args:
        argv (`Sequence[str]`): `--config PATH` and overrides.

    Returns:
        `int`: 0; 1 for input that is refused before the first step, a loss that is no number or a disk that takes no
            more; 143 when SIGTERM has ended the run after a save; 2 for a wrong call.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if SMOKE in argv:
        return _try_out([word for word in argv if word != SMOKE])
    return _train(argv)


def _try_out(argv: Sequence[str]) -> int:
    """Trains in a folder of its own, which all processes of one launcher share and the first of them deletes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        with tempfile.TemporaryDirectory() as folder:
            return _train(argv, smoke=Path(folder))
    shared = Path(tempfile.gettempdir()) / f"hf-infinite-lr-smoke-{os.getppid()}-{os.environ['MASTER_PORT']}"
    shared.mkdir(exist_ok=True)
    try:
        return _train(argv, smoke=shared)
    finally:
        if os.environ.get("LOCAL_RANK") == "0":
            shutil.rmtree(shared, ignore_errors=True)


def _train(argv: Sequence[str], smoke: Path | None = None) -> int:
    try:
        path, overrides = split_config(argv)
        talk_once()
        recipe = load_recipe(path, overrides, smoke=smoke)
        trainer = recipe.trainer()
    except (ValueError, OSError) as error:
        return refuse("train", error)
    trainer.add_callback(_KeptRecipe(recipe))
    try:
        with Preemption(trainer) as preemption:
            trainer.train(recipe.arguments.resume_from_checkpoint)
    except ValueError as error:
        if trainer.has_begun:
            raise
        return refuse("train", error)
    except (FloatingPointError, SaveError) as error:
        return refuse("train", error)
    if preemption.acted:
        leave_process_group(wait=True)
        return preemption.exit_status
    if trainer.is_world_process_zero():
        print(render_screen(read_run(str(recipe.arguments.output_dir))))
    leave_process_group(wait=True)
    return 0


class _KeptRecipe(TrainerCallback):
    """Leaves the recipe in `output_dir`, from where `anneal` rebuilds the data."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with saving(RECIPE, Path(args.output_dir)):
                self.recipe.write(Path(args.output_dir) / RECIPE)


def refuse(verb: str, error: Exception) -> int:
    """Says in one sentence why the verb ends here: the main process at once, another if nothing ends it meanwhile.

    Returns:
        `int`: The exit status.
    """
    if is_main_process():
        print(f"hf-infinite-lr {verb}: {error}", file=sys.stderr)
    else:
        # Where all processes fail alike, the launcher ends this one as soon as the main one has said why.
        time.sleep(_ALONE_SECONDS)
        print(f"hf-infinite-lr {verb}, process {os.environ['RANK']}: {error}", file=sys.stderr)
    leave_process_group(wait=False)
    return 1


def split_config(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The path behind `--config`, and all other words."""
    words = list(argv)
    for place, word in enumerate(words):
        if word == "--config" and place + 1 < len(words):
            return words[place + 1], words[:place] + words[place + 2 :]
        if word.startswith("--config="):
            return word.removeprefix("--config="), words[:place] + words[place + 1 :]
    raise ValueError("--config RECIPE.yaml is missing.")
