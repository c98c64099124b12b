"""The callback that saves the branch point in a plain Trainer run: the checkpoint to continue from."""

import logging
import re
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy
from transformers.training_args import TrainingArguments

from hf_infinite_lr.announcement import is_main_process, trunk_savers
from hf_infinite_lr.lr_scheduler import ScheduleLR

logger = logging.getLogger(__name__)


class TrunkCheckpointCallback(TrainerCallback):
    """Saves a checkpoint where annealing branches off, keeps it from rotation, and the schedule at the global step.

    It does nothing in a run whose scheduler is not one of this package, and under `ContinualTrainer`, which keeps its
    own trunk. It saves whatever `save_strategy` says, also
    with `best` and `no`. As Trainer's own rotation would delete any old checkpoint, the callback takes
    `save_total_limit` over while the run lasts: branch points stay and are not counted, the limit holds for all
    others.

    >>> callback = TrunkCheckpointCallback()
    """

    def __init__(self) -> None:
        self._branch_steps: frozenset[int] = frozenset()
        self._limit: int | None = None
        self._strategy: SaveStrategy | str | None = None
        trunk_savers.add(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the branch points from the scheduler, write its rate once more, and take over the rotation."""
        scheduler = kwargs.get("lr_scheduler")
        self._branch_steps = frozenset()
        if not isinstance(scheduler, ScheduleLR) or scheduler.rewinds:
            return
        # DeepSpeed restores the rates of an optimizer that its config defines after the scheduler's state was loaded.
        scheduler.set_position(scheduler.last_epoch)
        self._branch_steps = frozenset(point.first_step for point in scheduler.schedule.branch_points)
        ahead = any(state.global_step < step < state.max_steps for step in self._branch_steps)
        if args.save_only_model and ahead and is_main_process():
            logger.warning("save_only_model=True: the checkpoint of the branch point will hold no optimizer state.")
        if self._branch_steps and not state.is_hyper_param_search and args.save_total_limit is not None:
            self._limit, args.save_total_limit = args.save_total_limit, None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the schedule to the global step, as Trainer steps it at no skipped update; save at a branch point."""
        scheduler = kwargs.get("lr_scheduler")
        if isinstance(scheduler, ScheduleLR) and not scheduler.rewinds and scheduler.last_epoch != state.global_step:
            scheduler.set_position(state.global_step)
        if state.global_step in self._branch_steps:
            control.should_save = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep `save_strategy=best` from replacing the request: it saves after an evaluation only what is best."""
        if control.should_save and state.global_step in self._branch_steps and args.save_strategy == SaveStrategy.BEST:
            self._strategy, args.save_strategy = args.save_strategy, SaveStrategy.STEPS

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Delete the oldest checkpoints above the limit, branch points and the best one excepted."""
        if self._strategy is not None:
            args.save_strategy, self._strategy = self._strategy, None
        if self._limit is not None and self._limit > 0 and args.should_save:
            for checkpoint in self._superfluous(args, state):
                shutil.rmtree(checkpoint, ignore_errors=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give `save_total_limit` back."""
        if self._limit is not None:
            args.save_total_limit, self._limit = self._limit, None

    def _superfluous(self, args: TrainingArguments, state: TrainerState) -> list[Path]:
        assert args.output_dir is not None
        assert self._limit is not None
        steps: dict[int, Path] = {}
        for path in Path(args.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)
            if match and path.is_dir() and int(match[1]) not in self._branch_steps:
                steps[int(match[1])] = path
        best = None if state.best_model_checkpoint is None else Path(state.best_model_checkpoint)
        kept = {path for path in steps.values() if path == best} | {steps[s] for s in steps if s == state.global_step}
        num_to_delete = len(steps) - max(self._limit, len(kept))
        oldest = [steps[step] for step in sorted(steps) if steps[step] not in kept]
        return oldest[: max(num_to_delete, 0)]
