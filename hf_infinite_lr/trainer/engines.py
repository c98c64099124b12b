"""What differs by engine (plain or DDP, DeepSpeed, FSDP): restoring, and whole models to release."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from transformers.integrations.fsdp import get_fsdp_ckpt_kwargs

from .engine_rules import check_deepspeed, check_parallelism
from .host import Host
from .restore import restore_optimizer, restore_weights

logger = logging.getLogger(__name__)


class Engines(Host):
    """One manner of restoring and releasing over all engines.

    DeepSpeed and FSDP keep shards of weights and optimizer in each process, in files of their own.
    """

    args: Any
    lr_scheduler: Any
    optimizer: Any

    @property
    def _sharded(self) -> bool:
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _raw_optimizer(self) -> torch.optim.Optimizer:
        """Not as Accelerate has wrapped it."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    # ---- The schedule ------------------------------------------------------------------------------------------

    def _take_back_scheduler(self) -> None:
        """Takes the scheduler from a DeepSpeed engine that makes its own optimizer.

        Such an engine also keeps the scheduler, and would step, save and load it behind Trainer's back.
        """
        if isinstance(self.lr_scheduler, AcceleratedScheduler):
            self.lr_scheduler = self.lr_scheduler.scheduler
            self.accelerator.deepspeed_engine_wrapped.engine.lr_scheduler = None
            self._created_lr_scheduler = True

    # ---- Restoring ---------------------------------------------------------------------------------------------

    def _restore(self, directory: Path, *, optimizer: bool) -> None:
        """Brings back, at a step of a run, what its engine saved; the learning rates are for the schedule to write."""
        if self.is_deepspeed_enabled:
            from transformers.integrations.deepspeed import deepspeed_load_checkpoint

            # Of an adapter's model Trainer saves what is trained; the frozen rest is as it was.
            whole = not hasattr(self._unwrapped(), "peft_config")
            deepspeed_load_checkpoint(self.model_wrapped, str(directory), load_module_strict=whole)
        elif self.is_fsdp_enabled:
            super()._load_from_checkpoint(str(directory), self.model_wrapped)
            if optimizer:
                self._restore_fsdp_optimizer(directory)
        else:
            restore_weights(self._unwrapped(), directory)
            if optimizer:
                restore_optimizer(self._raw_optimizer(), directory / "optimizer.pt")

    def _restore_fsdp_optimizer(self, directory: Path) -> None:
        from accelerate.utils import load_fsdp_optimizer

        plugin = self.accelerator.state.fsdp_plugin
        options = get_fsdp_ckpt_kwargs()
        load_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, str(directory), **options)

    def _reset_optimizer(self) -> None:
        """Gives the optimizer the state of its first step; master weights, which DeepSpeed keeps beside it, stay."""
        optimizer: Any = self._raw_optimizer()
        if not self.is_deepspeed_enabled:
            optimizer.state.clear()
            return
        # Not cleared: a state that DeepSpeed's own Adam makes later counts on from the steps of a loaded checkpoint.
        for state in optimizer.optimizer.state.values():
            for key, value in state.items():
                state[key] = value.zero_() if isinstance(value, torch.Tensor) else 0

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            restore_weights(self._unwrapped(), Path(resume_from_checkpoint))

    def _load_optimizer(self, checkpoint: Path) -> None:
        """On resuming; DeepSpeed's engine has loaded its optimizer with the weights."""
        if self.is_fsdp_enabled:
            self._restore_fsdp_optimizer(checkpoint)
        elif not self.is_deepspeed_enabled:
            restore_optimizer(self._raw_optimizer(), checkpoint / "optimizer.pt")

    def _load_released(self, directory: Path) -> None:
        """Loads whole weights before an engine has taken the model; ZeRO-3 partitions it while it is constructed."""
        if self.is_fsdp_enabled and not any(directory.glob("*.safetensors")):
            logger.warning("%s holds shards alone: the model is left as it was constructed.", directory)
            return
        parameters = [p for p in self._unwrapped().parameters() if hasattr(p, "ds_id")]
        if not parameters:
            restore_weights(self._unwrapped(), directory)
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
            if self.accelerator.is_main_process:
                restore_weights(self._unwrapped(), directory)

    # ---- Releasing ---------------------------------------------------------------------------------------------

    def _save_whole(self, output_dir: str) -> None:
        """Saves one ordinary model that loads without the engine; every process takes part."""
        if self.is_fsdp_enabled:
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
        else:
            super().save_model(output_dir, _internal_call=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`, whole also where FSDP keeps sharded checkpoints."""
        if self.is_fsdp_enabled and not _internal_call:
            self._save_whole(str(self.args.output_dir if output_dir is None else output_dir))
        else:
            super().save_model(output_dir, _internal_call)

    # ---- What cannot work --------------------------------------------------------------------------------------

    def _check_engine(self) -> None:
        """Refuses what would train something else than was asked for, or could not be rewound or released.

        Raises:
            ValueError: naming the setting, its value and the rule.
        """
        self._check_in_force()
        sizes = {"tp_size": self.get_tp_size(), "cp_size": self.get_cp_size(), "sp_size": self.get_sp_size()}
        check_parallelism(self.accelerator.distributed_type, sizes)
        if self.is_deepspeed_enabled:
            check_deepspeed(self.accelerator.state.deepspeed_plugin.deepspeed_config, self.args)
        self._check_shared_directory()

    def _check_in_force(self) -> None:
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > self.args.world_size:
            raise ValueError(
                f"WORLD_SIZE={started}, but each process would train alone, because no accelerator was found: pass "
                "--use_cpu true to train on the CPU."
            )
        asked = {
            DistributedType.FSDP: bool(self.args.fsdp) or _asked("ACCELERATE_USE_FSDP"),
            DistributedType.DEEPSPEED: bool(self.args.deepspeed) or _asked("ACCELERATE_USE_DEEPSPEED"),
        }
        in_force = self.accelerator.distributed_type
        for engine, wanted in asked.items():
            if wanted and in_force != engine:
                raise ValueError(
                    f"The launch asks for {engine.value}, but {in_force.value} would run (device "
                    f"{self.args.device.type}): Accelerate has no {engine.value} for this machine or with use_cpu."
                )

    def _check_shared_directory(self) -> None:
        """Whether every process sees what the main one writes, as checkpoints and rewinds need it."""
        if self.args.world_size == 1:
            return
        directory = Path(str(self.args.output_dir))
        probe = [f".shared-{uuid.uuid4().hex}"]
        broadcast_object_list(probe)
        if self.accelerator.is_main_process:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / probe[0]).touch()
        self.accelerator.wait_for_everyone()
        seen = gather_object([(directory / probe[0]).exists()])
        if self.accelerator.is_main_process:
            (directory / probe[0]).unlink()
        if not all(seen):
            raise ValueError(
                f"output_dir={str(directory)!r} is not shared by all nodes: process {seen.index(False)} does not see "
                "what process 0 writes there; name a directory that all of them see."
            )


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")
