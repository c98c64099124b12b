"""SIGTERM, as a scheduler sends it before it takes a machine away: the run saves at the next step and ends."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from .mixin import ContinualMixin

logger = logging.getLogger(__name__)

EXIT_STATUS = 128 + signal.SIGTERM


REPEATED_SECONDS = 15.0
"""SIGTERMs that come so soon after the first belong to it: a batch system signals every process of a job, and
torchrun, being one of them, passes its own on."""


class FirstSigterm:
    """Handles SIGTERM: notes the first, passes over those that belong to it, and ends the process at a later one."""

    def __init__(self) -> None:
        self._at: float | None = None

    @property
    def came(self) -> bool:
        """Whether there was one."""
        return self._at is not None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """As `signal.signal` calls it."""
        now = time.monotonic()
        if self._at is None:
            self._at = now
        elif now - self._at > REPEATED_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def outlive_sigterm(worker: int) -> None:  # noqa: ARG001  # as a loader calls it
    """Makes a loader's worker pass over the first SIGTERM: a batch system signals the whole group of processes.

    A worker that dies takes the training process with it before that could save. When that process ends for good, its
    workers end too.
    """
    signal.signal(signal.SIGTERM, FirstSigterm())


class Preemption(TrainerCallback):
    """Within it, SIGTERM makes the trainer save at the next step boundary, whatever `save_strategy` says, and return.

    Another SIGTERM, later than 15 seconds after the first, ends the process at once. Under several processes it is
    enough that one of them gets the signal: they agree on the step by one byte that each sends while the next step
    computes. The handler is put back at the end; it can be installed by the main thread only.

    Args:
        trainer ([`ContinualTrainer`]): On every process of the run.

    Example:

    ```python
    with Preemption(trainer) as preemption:
        trainer.train(resume_from_checkpoint=True)
    sys.exit(preemption.exit_status)
    ```
    """

    def __init__(self, trainer: ContinualMixin) -> None:
        self.trainer = trainer
        self.acted = False
        self._signal = FirstSigterm()
        self._group: Any = None
        self._sent: tuple[torch.Tensor, Any] | None = None

    @property
    def exit_status(self) -> int:
        """143 if a SIGTERM has ended the training early, else 0."""
        return EXIT_STATUS if self.acted else 0

    def __enter__(self) -> Preemption:
        self.trainer.add_callback(self)
        self._before = signal.signal(signal.SIGTERM, self._signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)
        self.trainer.remove_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens a group of its own, on the processors, so that no device ever waits for the agreement."""
        if args.world_size > 1:
            self._group = distributed.new_group(backend="gloo")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks for a save and the end, on all processes at the same step."""
        if not control.should_training_stop and self._agreed():
            logger.warning("SIGTERM: saving at step %d and ending.", state.global_step)
            self.acted = control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Receives what is still under way and closes the group."""
        if self._sent is not None:
            self._sent[1].wait()
        if self._group is not None:
            distributed.destroy_process_group(self._group)
        self._group = self._sent = None

    def _agreed(self) -> bool:
        """Whether any process had been asked to end: in one process now, in several at the end of the step before."""
        if self._group is None:
            return self._signal.came
        known = self._sent is not None and self._received()
        flag = torch.tensor([self._signal.came], dtype=torch.uint8)
        work = distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._sent = flag, work
        return known

    def _received(self) -> bool:
        assert self._sent is not None
        flag, work = self._sent
        work.wait()
        return bool(flag.item())
