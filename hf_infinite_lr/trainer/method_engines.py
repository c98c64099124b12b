"""Under which engines a method is what it says."""

from __future__ import annotations

from typing import Any


def zero_stage(trainer: Any) -> int | None:
    """Stage of DeepSpeed's ZeRO; None without DeepSpeed."""
    return trainer.accelerator.state.deepspeed_plugin.zero_stage if trainer.is_deepspeed_enabled else None


def check_finishing(*, fsdp: bool, zero_stage: int | None) -> None:
    """Refuses engines under which no process has the whole model, for what reads it before a release is saved.

    Args:
        fsdp (`bool`): Whether it is FSDP.
        zero_stage (`int`, *optional*): Of DeepSpeed; None without it.

    Raises:
        ValueError: naming the engine and why.
    """
    if fsdp or zero_stage == 3:
        raise ValueError(
            "finish_release: benchmarks (zero_shot_tasks) and merged adapters (merge_releases) need the whole model "
            f"on every process, which {'FSDP does' if fsdp else 'DeepSpeed ZeRO-3 does'} not keep; leave them out and "
            "score the releases afterwards."
        )


def check_beginning(*, fsdp: bool, zero_stage: int | None) -> None:
    """Refuses engines that hold the trained weights elsewhere than in the model, for what writes them before a task.

    Args:
        fsdp (`bool`): Whether it is FSDP.
        zero_stage (`int`, *optional*): Of DeepSpeed; None without it.

    Raises:
        ValueError: naming the engine and why.
    """
    if fsdp or zero_stage is not None:
        raise ValueError(
            "begin_task: a fresh adapter for each task (adapter_per_task=True) cannot be used with "
            f"{'FSDP, which trains shards' if fsdp else 'DeepSpeed, which trains master weights'} in place of the "
            "model's own parameters; use DDP."
        )


def check_engine_of_methods(trainer: Any) -> None:
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
    fsdp_version = accelerator.state.fsdp_plugin.fsdp_version if trainer.is_fsdp_enabled else None
    check_methods_of(trainer.args, fsdp_version=fsdp_version, zero_stage=zero_stage(trainer))


def check_methods_of(args: Any, *, fsdp_version: int | None, zero_stage: int | None) -> None:
    """Refuses methods that other arguments or a sharding engine cannot carry.

    Args:
        args ([`ContinualTrainingArguments`]): Of the run.
        fsdp_version (`int`, *optional*): 1 or 2; None without FSDP.
        zero_stage (`int`, *optional*): Of DeepSpeed; None without it.

    Raises:
        ValueError: naming the method, the engine and why.
    """
    chosen, fsdp = args.methods, fsdp_version is not None
    for name in ("torch_compile", "use_liger_kernel"):
        if "lwf" in chosen and getattr(args, name):
            raise ValueError(
                f"methods.lwf cannot be used with {name}=True, because it looks into the forward pass; leave it out."
            )
    if "nearest_class_mean" in chosen and args.fp16:
        raise ValueError(
            "methods.nearest_class_mean cannot be used with fp16=True, because it leaves no gradient to scale; use "
            "bf16=True."
        )
    if fsdp_version == 1 and chosen:
        raise ValueError(f"methods.{next(iter(chosen))} cannot be used with FSDP 1; set fsdp_version=2.")
    for name in ("lwf", "gdumb"):
        if name in chosen and (fsdp or zero_stage == 3):
            raise ValueError(
                f"methods.{name} cannot be used with {'FSDP' if fsdp else 'DeepSpeed ZeRO-3'}, because it keeps a "
                f"whole copy of the weights; use DDP{' or ZeRO-2' if name == 'lwf' else ''}."
            )
    for name in ("slca", "lae", "nearest_class_mean"):
        if name in chosen and (fsdp or zero_stage is not None):
            raise ValueError(
                f"methods.{name} cannot be used with {'FSDP' if fsdp else 'DeepSpeed'}, because it looks at single "
                "weights between updates; use DDP."
            )
    if "gdumb" in chosen and zero_stage is not None:
        raise ValueError(
            "methods.gdumb cannot be used with DeepSpeed, because the engine keeps the master weights in its "
            "optimizer; use DDP."
        )
