"""What cannot work under which engine; pure where it can be, so that a launch file is held to the run's own rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate.utils import DistributedType

from hf_infinite_lr.config import schedule_name
from hf_infinite_lr.merging import MergeSettings


def zero_stage(trainer: Any) -> int | None:
    """Stage of DeepSpeed's ZeRO; None without DeepSpeed."""
    return trainer.accelerator.state.deepspeed_plugin.zero_stage if trainer.is_deepspeed_enabled else None


def check_parallelism(kind: str, sizes: Mapping[str, int]) -> None:
    """Refuses engines under which processes share a batch, and those whose checkpoints are of a kind of their own.

    Args:
        kind (`str`): As Accelerate's `DistributedType`.
        sizes (`Mapping[str, int]`): Processes of each dimension (`tp_size`, `cp_size`, `sp_size`) that share a batch.

    Raises:
        ValueError: naming the setting, its value and the rule.
    """
    if kind in (DistributedType.MEGATRON_LM, DistributedType.XLA):
        raise ValueError(
            f"distributed_type={DistributedType(kind).value} cannot be used with ContinualTrainer, which rewinds to "
            "checkpoints of DDP, FSDP and DeepSpeed; use one of those."
        )
    for name, size in sizes.items():
        if size > 1:
            raise ValueError(
                f"{name}={size} cannot be used with ContinualTrainer, because tasks and replay are planned for "
                "processes that have a batch each; use FSDP or DeepSpeed ZeRO for a model that is too large for one "
                "device."
            )


def check_deepspeed(config: Mapping[str, Any], args: Any) -> None:
    """Refuses a DeepSpeed configuration that would replace the schedule, or leave nothing to rewind to or to release.

    Args:
        config (`Mapping`): Under DeepSpeed's own keys.
        args: `TrainingArguments` of a continual run.

    Raises:
        ValueError: naming the key and the rule.
    """
    if "scheduler" in config:
        raise ValueError(
            "deepspeed: the key 'scheduler' of the DeepSpeed configuration would replace "
            f"lr_scheduler_type={schedule_name(args)!r}; remove it."
        )
    if args.max_grad_norm and not config.get("gradient_clipping"):
        raise ValueError(
            f"deepspeed: without the key 'gradient_clipping' nothing clips, but max_grad_norm={args.max_grad_norm:g}; "
            "set the key to auto, or max_grad_norm to 0."
        )
    if args.rewind == "weights":
        raise ValueError(
            "deepspeed: rewind='weights' cannot be used, because the engine keeps the master weights in its optimizer."
        )
    zero = config.get("zero_optimization", {})
    if args.reset_optimizer:
        _check_reset(config, zero, str(getattr(args.optim, "value", args.optim)))
    if zero.get("stage") == 3 and zero.get("stage3_gather_16bit_weights_on_model_save") is not True:
        raise ValueError(
            "deepspeed: zero_optimization.stage3_gather_16bit_weights_on_model_save must be true (in an Accelerate "
            "configuration: zero3_save_16bit_model), or ZeRO-3 saves no model that could be released."
        )


def _check_reset(config: Mapping[str, Any], zero: Mapping[str, Any], name: str) -> None:
    """Under DeepSpeed a state is reset by zeros, which only Adam's moments begin with, and only in memory."""
    name = str(config.get("optimizer", {}).get("type", name)).lower()
    if name not in ("adam", "adamw", "adamw_torch", "adamw_torch_fused"):
        raise ValueError(f"deepspeed: reset_optimizer=True cannot be used with the optimizer {name!r}; use AdamW.")
    if zero.get("offload_optimizer", {}).get("device") == "nvme":
        raise ValueError(
            "deepspeed: reset_optimizer=True cannot be used with offload_optimizer.device='nvme'; use 'cpu' or 'none'."
        )


def check_engine_of_merging(merge: Mapping[str, Any] | None, *, fsdp: bool, deepspeed: bool) -> None:
    """Refuses to merge releases under an engine whose weights are not the model's alone.

    Args:
        merge (`Mapping`, *optional*): As in [`ContinualArguments`].
        fsdp (`bool`): Whether it is FSDP.
        deepspeed (`bool`): Whether it is DeepSpeed.

    Raises:
        ValueError: naming the method, the engine and what to do instead.
    """
    if merge is not None and (fsdp or deepspeed):
        raise ValueError(
            f"merge.method={MergeSettings(**merge).method!r} cannot be used with {'FSDP' if fsdp else 'DeepSpeed'}, "
            "which keeps weights of its own beside the model's; use DDP, or merge the releases afterwards with "
            "merge_checkpoints."
        )


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
    for method in ("lwf", "attention_preserving"):
        for name in ("torch_compile", "use_liger_kernel"):
            if method in chosen and getattr(args, name):
                raise ValueError(
                    f"methods.{method} cannot be used with {name}=True, because it looks into the forward pass; leave "
                    "it out."
                )
    if "nearest_class_mean" in chosen and args.fp16:
        raise ValueError(
            "methods.nearest_class_mean cannot be used with fp16=True, because it leaves no gradient to scale; use "
            "bf16=True."
        )
    if "fisher" in chosen and args.fp16:
        raise ValueError(
            "methods.fisher cannot be used with fp16=True, because small gradients of single samples vanish where no "
            "scaler multiplies them; use bf16=True."
        )
    if fsdp_version == 1 and chosen:
        raise ValueError(f"methods.{next(iter(chosen))} cannot be used with FSDP 1; set fsdp_version=2.")
    for name in ("lwf", "gdumb"):
        if name in chosen and (fsdp or zero_stage == 3):
            raise ValueError(
                f"methods.{name} cannot be used with {'FSDP' if fsdp else 'DeepSpeed ZeRO-3'}, because it keeps a "
                f"whole copy of the weights; use DDP{' or ZeRO-2' if name == 'lwf' else ''}."
            )
    if "attention_preserving" in chosen and (fsdp or zero_stage == 3):
        raise ValueError(
            f"methods.attention_preserving cannot be used with {'FSDP' if fsdp else 'DeepSpeed ZeRO-3'}, because it "
            "runs the model a second time without the engine; use DDP or ZeRO-2."
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
