"""The trainable parameters of a model, as far as one process holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional


def all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, tied ones once, and buffers, without their graph."""
    return {name: part.detach() for name, part in [*model.named_parameters(), *model.named_buffers()]}


def copy_tensors(source: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    """Writes what [`all_tensors`] has given into a model."""
    with torch.no_grad():
        for name, target in all_tensors(model).items():
            target.copy_(source[name])


class Weights:
    """Parameters that every process holds whole: one process, DDP, ZeRO-1 and ZeRO-2.

    What a method keeps for each parameter has the shape of the part that a process holds, so that it is sharded as
    the parameters are.

    Args:
        model (`nn.Module`): Without its wrappers; frozen parameters do not count.
    """

    sharded = False
    """Whether each process holds another part."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def local(self, weight: torch.Tensor) -> torch.Tensor:
        """The part of a parameter (or of its gradient) that this process holds: no copy, no graph."""
        return weight.detach()

    def parts(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter's name and local part."""
        return ((name, self.local(weight)) for name, weight in self.parameters.items())

    def gradients(self, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The local parts of the gradients of a scalar, for the parameters that it depends on.

        Gradients that wait for the optimizer, and hooks that reduce them, are not touched.
        """
        found = torch.autograd.grad(value, list(self.parameters.values()), allow_unused=True)
        for name, gradient in zip(self.parameters, found, strict=True):
            if gradient is not None:
                yield name, gradient

    def with_part(self, weight: torch.Tensor, gradient: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """A whole gradient of one process, before the mean over processes is taken, plus what belongs to its part."""
        return gradient + part.to(gradient.dtype)

    def share(self, count: int) -> range:
        """Which of `count` samples this process looks at."""
        return range(dist.get_rank(), count, dist.get_world_size()) if dist.is_initialized() else range(count)

    def add_over_processes(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Adds up what the processes have found on their shares of the samples, in place."""
        if dist.is_initialized():
            for part in sums.values():
                dist.all_reduce(part)


class ShardedWeights(Weights):
    """Parameters of which each process holds a part; all processes look at the same samples."""

    sharded = True

    def share(self, count: int) -> range:
        """All of them: a gradient is the same on every process, which keeps its own part."""
        return range(count)

    def add_over_processes(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Nothing to add: every process has seen every sample."""


class FullyShardedWeights(ShardedWeights):
    """Parameters under torch's `fully_shard` (FSDP2), which are distributed tensors."""

    def local(self, weight: torch.Tensor) -> torch.Tensor:
        """The shard of this process."""
        part: torch.Tensor = weight.to_local() if isinstance(weight, DTensor) else weight
        return part.detach()

    def gradients(self, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """As in [`Weights`]; FSDP reduces gradients into `.grad` only, which must be empty before."""
        value.backward()
        for name, weight in self.parameters.items():
            if weight.grad is not None:
                yield name, self.local(weight.grad)
                weight.grad = None


class PartitionedWeights(ShardedWeights):
    """Parameters under DeepSpeed's ZeRO-3: each is cut into flat parts of one size, the last one padded.

    Whole gradients exist for a moment on every process: while importance is computed, one for each parameter.
    """

    def local(self, weight: torch.Tensor) -> torch.Tensor:
        """The partition of this process."""
        part: torch.Tensor = weight.ds_tensor  # type: ignore[attr-defined]  # put there by DeepSpeed
        return part.detach()

    def gradients(self, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """As in [`Weights`], this process's partition of each."""
        for name, gradient in super().gradients(value):
            size = self.local(self.parameters[name]).numel()
            own = self._own(gradient.flatten(), size)
            yield name, functional.pad(own, (0, size - own.numel()))

    def with_part(self, weight: torch.Tensor, gradient: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """As in [`Weights`]; no other process adds anything there, so that the mean needs it as often as there are."""
        whole = gradient.flatten().clone()
        own = self._own(whole, part.numel())
        own += dist.get_world_size() * part[: own.numel()].to(own.dtype)
        return whole.view_as(gradient)

    def _own(self, whole: torch.Tensor, size: int) -> torch.Tensor:
        return whole[dist.get_rank() * size : (dist.get_rank() + 1) * size]
