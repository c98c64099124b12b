"""A launch file beside a recipe: which engine it starts, on how many processes, and what of the two does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_infinite_lr.files import read_json
from hf_infinite_lr.trainer.engine_rules import (
    check_beginning,
    check_deepspeed,
    check_engine_of_merging,
    check_finishing,
    check_methods_of,
    check_parallelism,
)
from hf_infinite_lr.trainer.hub_rules import check_trunks_on_hub

if TYPE_CHECKING:
    from hf_infinite_lr.recipe import Recipe

_PARALLEL = "parallelism_config_"
"""What Accelerate puts before each key of `parallelism_config`."""


@dataclass(frozen=True)
class Launch:
    """
    What `accelerate launch --config_file` would start.

    Args:
        engine (`str`):
            `one process`, `DDP`, `ZeRO-1`, `ZeRO-2`, `ZeRO-3` or `FSDP`.
        num_processes (`int`):
            Over all machines.
        num_machines (`int`):
            Machines.
        mixed_precision (`str`):
            What the file says: `no`, `bf16`, `fp16` or `fp8`.
        offloads_weights (`bool`):
            Whether weights lie in the memory of the machine, not of the device.
        offloads_optimizer (`bool`):
            Whether the optimizer does.
        deepspeed (`Mapping[str, Any]`):
            The DeepSpeed configuration, under DeepSpeed's own keys.
        num_replicas (`int`):
            Groups of processes of which each holds all shards (FSDP with replicas).
        fsdp_version (`int`, *optional*):
            1 or 2; None without FSDP.
    """

    engine: str
    num_processes: int
    num_machines: int = 1
    mixed_precision: str = "no"
    offloads_weights: bool = False
    offloads_optimizer: bool = False
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    num_replicas: int = 1
    fsdp_version: int | None = None

    @property
    def num_shards(self) -> int:
        """Processes over which an engine that shards cuts the model."""
        return self.num_processes // self.num_replicas


def read_launch(path: Path, num_processes: int | None = None, num_machines: int | None = None) -> Launch:
    """Read an Accelerate configuration.

    Args:
        path (`Path`):
            A file as `accelerate config` writes it, or one of `recipes/launch/`.
        num_processes (`int`, *optional*):
            Overrides the file's, as that option of `accelerate launch` does.
        num_machines (`int`, *optional*):
            The same of machines.

    Returns:
        [`Launch`]: what it starts.

    Raises:
        `ValueError`: for a file that is no such configuration, and for one that would silently start another engine.
    """
    from accelerate.utils import DistributedType

    config = _read_config(path)
    kind, machines = config.distributed_type, config.num_machines if num_machines is None else num_machines
    processes = config.num_processes if num_processes is None else num_processes
    for key, value in (("num_processes", processes), ("num_machines", machines)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{key}={value!r} of {path} must be an integer of 1 or more; or pass --{key}.")
    if processes % machines:
        raise ValueError(f"num_processes={processes} must be a multiple of num_machines={machines}.")
    replicas = _num_replicas(config, processes)
    _refuse_another_engine(config, processes)
    common: dict[str, Any] = {"num_machines": machines, "mixed_precision": str(config.mixed_precision or "no")}
    if kind == DistributedType.DEEPSPEED:
        deepspeed = _deepspeed(config.deepspeed_config)
        zero = deepspeed["zero_optimization"]
        return Launch(
            f"ZeRO-{zero['stage']}",
            processes,
            **common,
            offloads_weights=_offloads(zero, "offload_param"),
            offloads_optimizer=_offloads(zero, "offload_optimizer"),
            deepspeed=deepspeed,
        )
    if kind == DistributedType.FSDP:
        offloads = str(config.fsdp_config.get("fsdp_offload_params", False)).lower() == "true"
        common |= {"offloads_weights": offloads, "offloads_optimizer": offloads, "num_replicas": replicas}
        return Launch("FSDP", processes, **common, fsdp_version=int(config.fsdp_config.get("fsdp_version", 1)))
    return Launch("DDP" if processes > 1 else "one process", processes, **common)


def _read_config(path: Path) -> Any:
    """The file as Accelerate reads it."""
    from accelerate.commands.config.config_args import load_config_from_file
    from yaml import YAMLError

    if path.suffix == ".sbatch":
        raise ValueError(
            f"--launch {path} is a batch script; name the file that its LAUNCH names, with --num_processes and "
            "--num_machines of the whole job."
        )
    try:
        return load_config_from_file(str(path))
    except (AttributeError, TypeError, YAMLError) as error:
        raise ValueError(f"--launch {path} is no Accelerate configuration: {' '.join(str(error).split())}.") from error


def _num_replicas(config: Any, processes: int) -> int:
    """Groups of processes of which each holds all shards; refuses other parallelism than by data."""
    sizes = {key.removeprefix(_PARALLEL): value for key, value in config.parallelism_config.items()}
    replicas, shards = sizes.pop("dp_replicate_size", 1), sizes.get("dp_shard_size", 1)
    check_parallelism(
        config.distributed_type, {key: sizes[key] for key in ("tp_size", "cp_size", "sp_size") if key in sizes}
    )
    if replicas * shards not in (1, processes):
        raise ValueError(
            f"num_processes={processes} must be dp_replicate_size={replicas} times dp_shard_size={shards} of "
            "parallelism_config."
        )
    return replicas


def _refuse_another_engine(config: Any, processes: int) -> None:
    """Refuses what Accelerate would silently start as another engine than the file names."""
    from accelerate.utils import DistributedType

    kind = config.distributed_type
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED) and config.use_cpu:
        raise ValueError(f"use_cpu=True with distributed_type={kind.value} would run plain DDP; remove use_cpu.")
    if kind == DistributedType.MULTI_CPU and processes > 1 and not config.mpirun_config:
        raise ValueError(
            f"distributed_type=MULTI_CPU with num_processes={processes} starts one process without mpirun_config; see "
            "recipes/launch/cpu-2.yaml."
        )
    if kind == DistributedType.NO and processes > 1:
        raise ValueError(
            f"distributed_type=NO with num_processes={processes} starts one process; see recipes/launch/ddp.yaml."
        )


def _deepspeed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Accelerate's own names as DeepSpeed's; of a file of DeepSpeed's, its content."""
    if file := config.get("deepspeed_config_file"):
        content: dict[str, Any] = read_json(Path(file))
        if "zero_optimization" not in content:
            raise ValueError(f"deepspeed: {file} lacks zero_optimization, without which Accelerate refuses it.")
        content["zero_optimization"].setdefault("stage", 0)
        return {"gradient_accumulation_steps": 1, "gradient_clipping": 0.0, **content}  # what an absent key means
    zero = {
        "stage": int(config.get("zero_stage", 2)),
        "stage3_gather_16bit_weights_on_model_save": str(config.get("zero3_save_16bit_model")).lower() == "true",
        "offload_optimizer": {"device": config.get("offload_optimizer_device", "none")},
        "offload_param": {"device": config.get("offload_param_device", "none")},
    }
    repeated = {key: config.get(key, "auto") for key in ("gradient_accumulation_steps", "gradient_clipping")}
    return {**repeated, "zero_optimization": zero}


def _offloads(zero: Mapping[str, Any], key: str) -> bool:
    return str(zero.get(key, {}).get("device", "none")) != "none"


def check_launch(launch: Launch, recipe: Recipe) -> Iterator[str]:
    """Compare a launch file with a recipe.

    Args:
        launch ([`Launch`]):
            What the file starts.
        recipe ([`Recipe`]):
            What it is to train.

    Yields:
        `str`: what is legal but doubtful, in a sentence each.

    Raises:
        `ValueError`: the sentence with which the run would be refused.
    """
    args: Any = recipe.arguments
    if launch.deepspeed:
        check_deepspeed(launch.deepspeed, args)
        _check_settings(launch, args)
    stage = launch.deepspeed["zero_optimization"]["stage"] if launch.deepspeed else None
    fsdp = launch.fsdp_version is not None
    recipe.objective.check_zero(stage)
    check_methods_of(args, fsdp_version=launch.fsdp_version, zero_stage=stage)
    check_engine_of_merging(args.merge, fsdp=fsdp, deepspeed=stage is not None)
    check_trunks_on_hub(args, fsdp=fsdp)
    if recipe.objective.finishes_releases:
        check_finishing(fsdp=fsdp, zero_stage=stage)
    if recipe.objective.begins_tasks:
        check_beginning(fsdp=fsdp, zero_stage=stage)
    said = {"bf16": args.bf16, "fp16": args.fp16}
    own = next((name for name, is_set in said.items() if is_set), "no")
    if launch.mixed_precision not in ("no", own):
        text = f"mixed_precision={launch.mixed_precision!r} of the launch file, but {own!r} of the recipe"
        if launch.deepspeed:
            raise ValueError(f"{text}: DeepSpeed refuses two answers; say it in the recipe ({{bf16: true}}).")
        yield f"{text}: say it in the recipe alone, or the same recipe gives other numbers elsewhere."


def _check_settings(launch: Launch, args: Any) -> None:
    """What a DeepSpeed configuration may repeat of the recipe, but not contradict."""
    micro, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    for key, own in (
        ("train_micro_batch_size_per_gpu", micro),
        ("gradient_accumulation_steps", accumulation),
        ("train_batch_size", micro * accumulation * launch.num_processes),
        ("gradient_clipping", args.max_grad_norm),
        ("bf16.enabled", args.bf16),
        ("fp16.enabled", args.fp16),
    ):
        block, _, switch = key.partition(".")
        given = launch.deepspeed.get(block, {}).get(switch, "auto") if switch else launch.deepspeed.get(key, "auto")
        if given not in ("auto", own):
            raise ValueError(f"deepspeed: {key}={given!r}, but the recipe makes it {own}; set it to auto.")
