"""Methods inside a Trainer: when they act, what they are shown, and how their state is saved and comes back."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_infinite_lr.methods import (
    FullyShardedWeights,
    Learner,
    PartitionedWeights,
    Samples,
    Weights,
    make_methods,
    read_methods,
)
from hf_infinite_lr.methods.output import observed, with_mask
from hf_infinite_lr.stream.loading import StreamBatches, StreamDataset, kept_rng, seeded_rng
from hf_infinite_lr.stream.plan import StreamPlan, TaskPlan

from .host import Host

logger = logging.getLogger(__name__)


class ForgettingMethods(Host):
    """Lets the methods of `args.methods` act on a run."""

    args: Any
    plan: StreamPlan
    _batches: StreamBatches
    _served: StreamDataset

    def _raw_optimizer(self) -> torch.optim.Optimizer:
        raise NotImplementedError  # trunk and branches know it

    def _make_methods(self) -> None:
        check_engine_of_methods(self)
        self._methods = make_methods(read_methods(self.args.methods))
        self._weights: Weights | None = None
        self._terms: dict[str, torch.Tensor] = {}
        self._num_updates = 0
        self._pulling = False
        self._handles: list[Any] = []

    # ---- When they act -----------------------------------------------------------------------------------------

    def _begin_methods(self, checkpoint: Path | None) -> None:
        """With the model in its final form, before the first step: afresh, or with a checkpoint's state."""
        if not self._methods:
            return
        self._weights = self._held_weights()
        for handle in self._handles:
            handle.remove()
        if self.is_deepspeed_enabled:
            named = self._weights.parameters.items()
            self._handles = [weight.register_hook(partial(self._with_pull, name, weight)) for name, weight in named]
        learner = self._learner(None)
        file = None if checkpoint is None else checkpoint / self._state_file
        stored = load_file(file) if file is not None and file.exists() else {}
        for method in self._methods:
            mark = f"{method.name}/"
            method.load({key.removeprefix(mark): stored[key] for key in stored if key.startswith(mark)}, learner)
            if checkpoint is None:
                method.begin(learner)

    def _between_tasks(self, ended: TaskPlan) -> None:
        """With the weights that the next task starts from, before its first step."""
        with kept_rng():
            for method in self._methods:
                method.end_task(self._learner(ended))

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The host's loss, and while training what methods add to it."""
        comparing = [method for method in self._methods if method.compares_outputs and model.training]
        if not comparing:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        bare = self._bare_model
        inputs = with_mask(bare, inputs)
        with observed(bare) as seen:
            loss, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        summed = num_items_in_batch is not None  # then the host divides by all items, else by the micro-batches
        scale = self.accelerator.num_processes if summed and self.args.average_tokens_across_devices else 1
        for method in comparing:
            term = scale * method.extra_loss(bare, inputs, seen[0], num_items_in_batch)
            loss = loss + term
            part = term.detach() / (1 if summed else self.current_gradient_accumulation_steps)
            self._terms[method.name] = self._terms.get(method.name, 0) + part
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """The host's step; the pull of the penalties joins the gradient of the last micro-batch."""
        self._pulling = bool(self._methods) and self.accelerator.sync_gradients
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._pulling:
            self._num_updates += 1
            if not self.is_deepspeed_enabled:
                self._add_pulls()
        self._pulling = False
        return loss

    def _add_pulls(self) -> None:
        assert self._weights is not None
        # Gradients are still scaled where half precision needs it.
        scale = 1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale()
        for name, weight in self._weights.parameters.items():
            if weight.grad is not None and (pull := self._pull(name, weight)) is not None:
                self._weights.local(weight.grad).add_(pull, alpha=scale)

    def _pull(self, name: str, weight: torch.Tensor) -> torch.Tensor | None:
        assert self._weights is not None
        part = self._weights.local(weight)
        pulls = [pull for method in self._methods if (pull := method.pull(name, part)) is not None]
        return sum(pulls[1:], start=pulls[0]) if pulls else None

    def _with_pull(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """DeepSpeed takes its step inside backward, so there the pull has to join each gradient as it comes."""
        if not self._pulling or (pull := self._pull(name, weight)) is None:
            return gradient
        assert self._weights is not None
        engine: Any = self.model_wrapped
        scale = engine.optimizer.loss_scale if engine.fp16_enabled() else 1.0
        return self._weights.with_part(weight, gradient, scale * pull)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of each extra term since the last log, and the present value of each penalty."""
        if "loss" in logs and self._weights is not None:
            logs.update(self._method_values())
        super().log(logs, *args, **kwargs)

    def _method_values(self) -> dict[str, float]:
        assert self._weights is not None
        found = {}
        for name, total in self._terms.items():
            found[f"{name}_loss"] = self.accelerator.reduce(total, "mean").item() / self._num_updates
        self._terms, self._num_updates = {}, 0
        for method in self._methods:
            if (value := method.value(self._weights)) is not None:
                whole = self.accelerator.reduce(value, "sum") if self._weights.sharded else value
                found[f"{method.name}_penalty"] = whole.item()
        return found

    # ---- What they are shown -----------------------------------------------------------------------------------

    @property
    def _bare_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _held_weights(self) -> Weights:
        if self.is_fsdp_enabled:
            return FullyShardedWeights(self._bare_model)
        return (PartitionedWeights if zero_stage(self) == 3 else Weights)(self._bare_model)

    def _learner(self, ended: TaskPlan | None) -> Learner:
        def samples(count: int) -> Samples:
            assert ended is not None
            return self._first_samples(ended, count)

        assert self._weights is not None
        return Learner(self._bare_model, self._weights, self._raw_optimizer(), samples)

    def _first_samples(self, task: TaskPlan, count: int) -> Samples:
        """The task's own samples in the order of its first pass, fetched one by one as for training."""
        addresses = self._batches.first_samples(task.index, count)

        def batches() -> Iterator[Mapping[str, Any]]:
            assert self._weights is not None
            for place in self._weights.share(len(addresses)):
                batch = self._served.__getitems__([addresses[place]])
                with seeded_rng(self._batches.seed, task.index, place):
                    batch = with_mask(self._bare_model, batch)
                yield self._prepare_inputs(batch)  # type: ignore[arg-type]  # any mapping will do

        return Samples(batches(), len(addresses))

    # ---- Their state -------------------------------------------------------------------------------------------

    @property
    def _state_file(self) -> str:
        assert self._weights is not None
        return (
            f"methods.rank-{self.args.process_index}.safetensors" if self._weights.sharded else "methods.safetensors"
        )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As in the host, with the methods' state beside it."""
        super()._save_optimizer_and_scheduler(output_dir)
        if not self._methods or self._weights is None:
            return
        if self._weights.sharded or self.args.should_save:
            state = {
                f"{method.name}/{name}": part.contiguous()
                for method in self._methods
                for name, part in method.state().items()
            }
            save_file(state, Path(output_dir) / self._state_file)


def zero_stage(trainer: Host) -> int:
    """Stage of DeepSpeed's ZeRO; 0 without it."""
    return trainer.accelerator.state.deepspeed_plugin.zero_stage if trainer.is_deepspeed_enabled else 0


def check_engine_of_methods(trainer: ForgettingMethods) -> None:
    """Refuses the engines under which a method would not be what it says.

    Raises:
        ValueError: naming the method, the engine and why.
    """
    chosen, accelerator = trainer.args.methods, trainer.accelerator
    if trainer.args.n_gpu > 1 and chosen:
        raise ValueError(
            f"methods.{next(iter(chosen))} cannot be used with one process for {trainer.args.n_gpu} GPUs; start one "
            "process for each, with accelerate launch or torchrun."
        )
    if "lwf" in chosen and trainer.args.torch_compile:
        raise ValueError(
            "methods.lwf cannot be used with torch_compile=True, because it looks into the forward pass; set "
            "torch_compile=False."
        )
    if trainer.is_fsdp_enabled and accelerator.state.fsdp_plugin.fsdp_version != 2 and chosen:
        raise ValueError(f"methods.{next(iter(chosen))} cannot be used with FSDP 1; set fsdp_version=2.")
    check_sharded_methods(
        chosen,
        fsdp=trainer.is_fsdp_enabled,
        zero_stage=zero_stage(trainer) if trainer.is_deepspeed_enabled else None,
    )


def check_sharded_methods(chosen: Collection[str], *, fsdp: bool, zero_stage: int | None) -> None:
    """Refuses methods that a sharding engine cannot carry.

    Args:
        chosen (`Collection[str]`): Names of methods.
        fsdp (`bool`): Whether it is FSDP.
        zero_stage (`int`, *optional*): Of DeepSpeed; None without it.

    Raises:
        ValueError: naming the method, the engine and why.
    """
    for name in ("lwf", "gdumb"):
        if name in chosen and (fsdp or zero_stage == 3):
            raise ValueError(
                f"methods.{name} cannot be used with {'FSDP' if fsdp else 'DeepSpeed ZeRO-3'}, because it keeps a "
                "whole copy of the weights; use DDP or ZeRO-2."
            )
    if "gdumb" in chosen and zero_stage is not None:
        raise ValueError(
            "methods.gdumb cannot be used with DeepSpeed, because the engine keeps the master weights in its "
            "optimizer; use DDP."
        )


def check_methods(state: Mapping[str, Any], methods: Mapping[str, Any], plan: StreamPlan) -> None:
    """Refuses other methods than the checkpoint's once they have begun to act; logs changed settings.

    Args:
        state (`Mapping`): `continual_state.json` of the checkpoint.
        methods (`Mapping`): `args.methods` now.
        plan ([`StreamPlan`]): Of this run.

    Raises:
        ValueError: naming the methods then and now.
    """
    then, step = state["settings"].get("methods") or {}, state["global_step"]
    if then.keys() != methods.keys() and step > plan.tasks[0].next_start_step:
        raise ValueError(
            f"methods={sorted(methods)} were {sorted(then)} up to the checkpoint at step {step}, which holds nothing "
            "of the others about the tasks before; keep them, or resume from before the second task."
        )
    for name in then.keys() & methods.keys():
        if then[name] != methods[name]:
            logger.warning("methods.%s: %s -> %s", name, then[name], methods[name])
