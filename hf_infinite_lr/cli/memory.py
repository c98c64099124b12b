"""How many bytes a run needs on each device and on disk, counted on a model without memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from hf_infinite_lr.methods import make_methods, read_methods

from .launch import Launch

_MASTER = 4
_SMALL = 100_000  # elements, where a DeepSpeed configuration does not say

_Bytes = Iterable[tuple[torch.Tensor, int]]
"""Tensors, and bytes for each element of them."""


@dataclass(frozen=True)
class Footprint:
    """
    Bytes that stay from step to step; activations, communication buffers and workspace come on top.

    Args:
        weights (`int`):
            Of one process; where shards differ, of the first.
        small (`int`):
            Of one process: the weights that ZeRO-3 also keeps whole on the device, because they are small.
        gradients (`int`):
            Of one process, after the backward pass.
        optimizer (`int`):
            Of one process: its state, and with DeepSpeed the master weights that it updates.
        methods (`int`):
            Of one process: what the methods keep on the device, from the end of the first task on.
        methods_on_machine (`int`):
            Of one process: what they keep in the memory of the machine.
        checkpoint (`int`):
            Of one checkpoint or trunk on disk: weights, optimizer and methods of all processes.
        release (`int`):
            Of one release on disk.
    """

    weights: int
    small: int
    gradients: int
    optimizer: int
    methods: int
    methods_on_machine: int
    checkpoint: int
    release: int


def footprint(model: torch.nn.Module, args: Any, launch: Launch, *, merges: bool = False) -> Footprint:
    """Count what a run holds.

    DeepSpeed pads the optimizer's shards of ZeRO-1 and ZeRO-2 to whole multiples: a few hundred bytes, left out here.

    Args:
        model (`torch.nn.Module`):
            On the device `meta`, so that it takes no memory; left in half precision where DeepSpeed trains it so.
        args ([`ContinualTrainingArguments`]):
            Of the recipe: the optimizer, and the precision.
        launch ([`Launch`]):
            The engine and the number of processes.
        merges (`bool`, *optional*, defaults to `False`):
            Whether the release of an adapter also holds the whole model.

    Returns:
        [`Footprint`]: in bytes.
    """
    zero = int(launch.engine[-1]) if launch.deepspeed else 0
    trained = [p for p in model.parameters() if p.requires_grad]
    state = _optimizer_state(trained, args)
    if zero and (args.bf16 or args.fp16):  # DeepSpeed trains a model in half precision, with masters in the optimizer
        model.half()
    if launch.engine == "FSDP" and (args.bf16 or args.fp16):  # Accelerate keeps what is trained in single precision
        for p in trained:
            p.data = p.data.float()
    shards_optimizer = bool(zero) or launch.engine == "FSDP"
    shards_weights = zero == 3 or launch.engine == "FSDP"
    master = _MASTER if zero else 0
    weights = [(p, p.element_size()) for p in model.parameters()]
    gradients = [(p, p.element_size()) for p in trained]
    optimizer = [(p, state[p][0] + master) for p in trained]
    constants = sum(state[p][1] for p in trained)
    on_device, on_machine = (_methods(model, args, on_device=place) for place in (True, False))

    def own(tensors: _Bytes, sharded: bool) -> int:
        return sum((_shard(p, launch) if sharded else p.numel()) * size for p, size in tensors)

    # Of an adapter PEFT saves what is trained.
    written = gradients if hasattr(model, "peft_config") else weights
    # ZeRO-1 and -2 keep the weights twice: in DeepSpeed's file and in the ordinary one.
    saved = [*written, *(written if zero in (1, 2) else ()), *optimizer, *on_device, *on_machine]
    return Footprint(
        weights=own(weights, shards_weights),
        small=sum(p.numel() * size for p, size in weights if zero == 3 and p.numel() <= _largest_small(model, launch)),
        gradients=own(gradients, shards_weights or zero == 2),
        optimizer=own(optimizer, shards_optimizer) + constants,
        methods=own(on_device, shards_weights),
        methods_on_machine=own(on_machine, shards_weights),
        checkpoint=own(saved, False) + constants,
        release=own(weights if merges else written, False),
    )


def _methods(model: torch.nn.Module, args: Any, *, on_device: bool) -> list[tuple[torch.Tensor, int]]:
    """What methods keep, on the device or in the memory of the machine."""
    chosen = make_methods(read_methods(args.methods))
    return [kept for method in chosen if method.on_device == on_device for kept in method.kept(model)]


def _largest_small(model: torch.nn.Module, launch: Launch) -> int:
    """Elements of the largest weight that ZeRO-3 leaves gathered."""
    given = launch.deepspeed["zero_optimization"].get("stage3_param_persistence_threshold", _SMALL)
    if given != "auto":
        return int(given)
    config: Any = model.config
    return 10 * int(config.get_text_config().hidden_size)  # as Accelerate fills it in


def _shard(p: torch.Tensor, launch: Launch) -> int:
    """Elements of the first process: FSDP cuts the first dimension, DeepSpeed the flat tensor."""
    if launch.engine == "FSDP" and p.ndim:
        return math.ceil(p.shape[0] / launch.num_shards) * (p.numel() // max(p.shape[0], 1))
    return math.ceil(p.numel() / launch.num_shards)


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
