"""Methods inside a Trainer: when they act, what they are shown, and how their state is saved and comes back."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

from hf_infinite_lr.methods import (
    FullyShardedWeights,
    Learner,
    Method,
    PartitionedWeights,
    Samples,
    Weights,
    make_methods,
    read_methods,
)
from hf_infinite_lr.methods.output import observed, with_mask
from hf_infinite_lr.stream.loading import StreamBatches, StreamDataset, kept_rng, seeded_rng
from hf_infinite_lr.stream.order import Sample
from hf_infinite_lr.stream.plan import StreamPlan, TaskPlan

from .classes import ClassIncremental
from .engine_rules import check_engine_of_methods, zero_stage

logger = logging.getLogger(__name__)

_RELEASE = 1  # sets the draws at a task's end apart from those of its samples


class ForgettingMethods(ClassIncremental):
    """Lets the methods of `args.methods` act on a run."""

    args: Any
    plan: StreamPlan
    _batches: StreamBatches
    _served: StreamDataset

    def _raw_optimizer(self) -> torch.optim.Optimizer:
        raise NotImplementedError  # trunk and branches know it

    def _load_released(self, directory: Path) -> None:
        raise NotImplementedError  # the engines know how

    def _make_methods(self) -> None:
        check_engine_of_methods(self)
        self._methods = make_methods(read_methods(self.args.methods))
        for method in self._methods:
            method.check(self._unwrapped(), self.task_classes)
        self._weights: Weights | None = None
        self._terms: dict[str, torch.Tensor] = {}
        self._num_updates = 0
        self._pulling = self._loss_asked = False
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
        self._load_methods(self._methods, checkpoint)
        if checkpoint is None:
            for method in self._methods:
                method.begin(self._learner(None))

    def _load_methods(self, methods: Iterable[Method], checkpoint: Path | None) -> None:
        file = None if checkpoint is None else checkpoint / self._state_file
        stored = load_file(file) if file is not None and file.exists() else {}
        for method in methods:
            mark = f"{method.name}/"
            own = {key.removeprefix(mark): stored[key] for key in stored if key.startswith(mark)}
            method.load(own, self._learner(None))

    def _rewind_methods(self, trunk: Path) -> None:
        """After the trunk's weights have come back."""
        if moving := [method for method in self._methods if method.follows_updates]:
            self._load_methods(moving, trunk)

    def _between_tasks(self, ended: TaskPlan) -> None:
        """With the weights that the next task starts from, before its first step."""
        with kept_rng(), self._comparing([ended.name]):
            for method in self._methods:
                method.end_task(self._learner(ended))

    def _end_update(self) -> None:
        """After every update."""
        for method in self._methods:
            if not self._loss_asked and type(method).extra_loss is not Method.extra_loss:
                raise ValueError(
                    f"methods.{method.name} has no effect under {type(self).__name__}.compute_loss, which does not "
                    "call super().compute_loss: put it into a Trainer of its own, behind ContinualMixin."
                )
            method.end_update(self._learner(None))

    @contextmanager
    def _released(self, ended: TaskPlan) -> Iterator[None]:
        """Around evaluation and release at a task's end."""
        with ExitStack() as stack:
            for method in self._methods:
                with kept_rng(), seeded_rng(self._batches.seed, ended.index, _RELEASE):
                    stack.enter_context(method.released(self._learner(ended)))
            yield

    def _become_release(self, directory: Path) -> None:
        """At the run's end, where a method has put the trunk's weights back after the release."""
        if directory.exists() and any(method.changes_release for method in self._methods):
            self._load_released(directory)

    def _rate_of(self, name: str) -> float:
        """The factor of a parameter's learning rate."""
        return math.prod(method.rate_of(name) for method in self._methods)

    def _add_to_release(self, directory: Path) -> None:
        for method in self._methods:
            method.add_to_release(self._unwrapped(), directory)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The host's loss, and while training what methods add to it."""
        self._loss_asked = True
        comparing = [method for method in self._methods if method.compares_outputs and model.training]
        if not comparing:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        bare = self._unwrapped()
        inputs = with_mask(bare, {**inputs, **{k: v for method in comparing for k, v in method.inputs.items()}})
        with observed(bare) as seen:
            loss, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        summed = num_items_in_batch is not None  # then the host divides by all items, else by the micro-batches
        scale = self.accelerator.num_processes if summed and self.args.average_tokens_across_devices else 1
        for method in comparing:
            term = scale * method.extra_loss(bare, inputs, seen[0], num_items_in_batch, outputs)
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
                self._freeze()
        self._pulling = False
        return loss

    def _freeze(self) -> None:
        """Takes the gradient of what a method freezes now, so that the optimizer passes it over."""
        assert self._weights is not None
        segment = self.plan.segments[self.plan.segment_of(self.state.global_step)]
        batch = segment.first_batch + self.state.global_step - segment.start_step
        done = batch / self.plan.tasks[segment.task].num_steps
        for name, weight in self._weights.parameters.items():
            if any(method.freezes(name, segment.task, done) for method in self._methods):
                weight.grad = None

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The host's step; predictions and their loss are those of the methods."""
        if self.task_classes is None or not self._methods:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        loss, logits, labels = super().prediction_step(model, inputs, False, ignore_keys)
        if not isinstance(logits, torch.Tensor):
            return loss, logits, labels
        inputs = self._prepare_inputs(inputs)
        for method in self._methods:
            logits = method.predict(self._unwrapped(), inputs, logits)
        if labels is not None:
            loss = cross_entropy(logits, labels)
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

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

    def _held_weights(self) -> Weights:
        if self.is_fsdp_enabled:
            return FullyShardedWeights(self._unwrapped())
        return (PartitionedWeights if zero_stage(self) == 3 else Weights)(self._unwrapped())

    def _learner(self, ended: TaskPlan | None) -> Learner:
        def samples(count: int) -> Samples:
            assert ended is not None
            return self._first_samples(ended, count)

        def one_pass(size: int) -> Iterator[Mapping[str, Any]]:
            assert ended is not None
            return self._one_pass(ended, size)

        assert self._weights is not None
        return Learner(self._unwrapped(), self._weights, self._raw_optimizer(), samples, one_pass)

    def _first_samples(self, task: TaskPlan, count: int) -> Samples:
        """The task's own samples in the order of its first pass, fetched one by one as for training."""
        assert self._weights is not None
        addresses = self._batches.first_samples(task.index, count)
        own = [(place, [addresses[place]]) for place in self._weights.share(len(addresses))]
        return Samples(self._fetched(task, own), len(addresses))

    def _one_pass(self, task: TaskPlan, size: int) -> Iterator[Mapping[str, Any]]:
        addresses = self._batches.first_samples(task.index)
        return self._fetched(task, [(at, addresses[at : at + size]) for at in range(0, len(addresses), size)])

    def _fetched(self, task: TaskPlan, batches: Iterable[tuple[int, list[Sample]]]) -> Iterator[Mapping[str, Any]]:
        for place, addresses in batches:
            batch = self._served.__getitems__(addresses)
            with seeded_rng(self._batches.seed, task.index, place):
                batch = with_mask(self._unwrapped(), batch)
            yield self._prepare_inputs(batch)  # type: ignore[arg-type]  # any mapping will do

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
