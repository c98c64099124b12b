"""How many bytes a run needs on each device and on disk, counted on a model without memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from .launch import Launch

_MASTER = 4


@dataclass(frozen=True)
class Footprint:
    """
    Bytes that stay from step to step; activations, communication buffers and workspace come on top.

    Args:
        weights (`int`):
            Of one process; where shards differ, of the first.
        gradients (`int`):
            Of one process, after the backward pass.
        optimizer (`int`):
            Of one process: its state, and with DeepSpeed the master weights that it updates.
        checkpoint (`int`):
            Of one checkpoint or trunk on disk: weights and optimizer of all processes.
        release (`int`):
            Of one release on disk.
    """

    weights: int
    gradients: int
    optimizer: int
    checkpoint: int
    release: int


def footprint(model: torch.nn.Module, args: Any, launch: Launch) -> Footprint:
    """Count what a run holds.

    DeepSpeed pads the optimizer's shards of ZeRO-1 and ZeRO-2 to whole multiples: a few hundred bytes, left out here.

    Args:
        model (`torch.nn.Module`):
            On the device `meta`, so that it takes no memory.
        args ([`ContinualTrainingArguments`]):
            Of the recipe: the optimizer, and the precision.
        launch ([`Launch`]):
            The engine and the number of processes.

    Returns:
        [`Footprint`]: in bytes.
    """
    parameters = list(model.parameters())
    zero = int(launch.engine[-1]) if launch.deepspeed else 0
    half = bool(zero) and bool(args.bf16 or args.fp16)
    size = {p: 2 if half else p.element_size() for p in parameters}
    trained = [p for p in parameters if p.requires_grad]
    state = _optimizer_state(trained, args)

    def shard(p: torch.Tensor, sharded: bool) -> int:
        return _shard(p, launch) if sharded else p.numel()

    shards_optimizer = bool(zero) or launch.engine == "FSDP"
    shards_weights = zero == 3 or launch.engine == "FSDP"
    master = _MASTER if zero else 0
    whole = sum(p.numel() * size[p] for p in parameters)
    kept = sum(p.numel() * (state[p][0] + master) + state[p][1] for p in trained)
    return Footprint(
        weights=sum(shard(p, shards_weights) * size[p] for p in parameters),
        gradients=sum(shard(p, shards_weights or zero == 2) * size[p] for p in trained),
        optimizer=sum(shard(p, shards_optimizer) * (state[p][0] + master) + state[p][1] for p in trained),
        # ZeRO-1 and -2 keep the weights twice: in DeepSpeed's file and in the ordinary one.
        checkpoint=kept + whole * (2 if zero in (1, 2) else 1),
        release=whole,
    )


def _shard(p: torch.Tensor, launch: Launch) -> int:
    """Elements of the first process: FSDP cuts the first dimension, DeepSpeed the flat tensor."""
    if launch.engine == "FSDP" and p.ndim:
        return math.ceil(p.shape[0] / launch.num_processes) * (p.numel() // max(p.shape[0], 1))
    return math.ceil(p.numel() / launch.num_processes)


def _optimizer_state(parameters: list[torch.nn.Parameter], args: Any) -> dict[torch.Tensor, tuple[int, int]]:
    """What the optimizer itself makes in a step: bytes for each element of a parameter, and bytes besides."""
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer = kind(parameters, **{key: value for key, value in options.items() if key not in ("fused", "foreach")})
    for p in parameters:
        p.grad = torch.empty_like(p)
    optimizer.step()
    found: dict[torch.Tensor, tuple[int, int]] = {}
    for p in parameters:
        tensors = [value for value in optimizer.state[p].values() if isinstance(value, torch.Tensor)]
        alike = [value for value in tensors if value.shape == p.shape and p.ndim]
        rest = sum(value.numel() * value.element_size() for value in tensors if value.shape != p.shape or not p.ndim)
        found[p] = sum(value.element_size() for value in alike), rest
        p.grad = None
    return found


def in_words(num_bytes: int) -> str:
    """
    Bytes as people read them.

    >>> in_words(1_620_000_000)
    '1.62 GB'
    """
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} B"
