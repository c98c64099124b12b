"""What each of two processes does in `test_engines.py`: the tiny run on one engine after another."""

import gc
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import conftest as tiny
from accelerate.state import DistributedType, PartialState
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hf_infinite_lr import ContinualTrainer
from hf_infinite_lr.cli.run import leave_process_group

COMMON = {"noise": False, "dropout": 0.0, "save_steps": 5, "anneal_budget": "extra", "replay_fraction": 0.25}
RESET = {"reset_optimizer": True, "evaluate_on": "none"}
AUTO = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
TORCH_ADAMW = {"torch_adam": True, "lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
TWO_NODES = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
STARTED = {name: os.environ.get(name, "") for name in TWO_NODES}


class OnCpu(ContinualTrainer):
    """Lets Accelerate's FSDP run on gloo, which it otherwise does for accelerators alone."""

    def create_accelerator_and_postprocess(self):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()


def deepspeed(stage, **more):
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
    return {"deepspeed": {**dict.fromkeys(AUTO, "auto"), "zero_optimization": zero, **more}}


ENGINES = {
    "ddp": ({}, {}),
    "zero1": ({}, deepspeed(1)),
    "zero2": ({}, deepspeed(2)),
    "zero3": ({}, deepspeed(3)),
    "zero2-optimizer": ({}, deepspeed(2, optimizer={"type": "AdamW", "params": TORCH_ADAMW})),
    "fsdp2": ({**FSDP2, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, {"cls": OnCpu}),
    "fsdp2-full": ({**FSDP2, "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}, {"cls": OnCpu}),
}
"""Engine -> environment and settings of its runs."""


def seen_by(run):
    return {
        "ids": run.data_collator.ids,
        "rates": run.watch.rates,
        "logged_rates": [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry],
        "losses": [entry["loss"] for entry in run.state.log_history if "loss" in entry],
        "engine": run.accelerator.distributed_type.value,
        "world_size": run.args.world_size,
        "bytes": bytes_held(run),
    }


class Gradients(TrainerCallback):
    """Notes the bytes of the gradients after a backward pass; DeepSpeed has used them up by then."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.bytes = size_of(p.grad for p in model.parameters() if p.grad is not None)


def bytes_held(run):
    """What this process really holds: weights, and the optimizer's state with the master weights of DeepSpeed."""
    optimizer, masters = run.optimizer.optimizer, []
    if run.is_deepspeed_enabled:
        partitions = "fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"
        masters = next(getattr(optimizer, name) for name in partitions if hasattr(optimizer, name))
        optimizer = optimizer.optimizer
    states = [value for state in optimizer.state.values() for value in state.values()]
    gathered = sum(p.data.nbytes for p in run.model.parameters() if hasattr(p, "ds_tensor"))
    return {"weights": size_of(run.model.parameters()), "small": gathered, "optimizer": size_of([*states, *masters])}


def size_of(tensors):
    own = [tensor.ds_tensor if hasattr(tensor, "ds_tensor") else tensor for tensor in tensors]
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in own]
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


def train_on(engine, out):
    """Trains undisturbed, killed on a branch and resumed, with one branch less, and with moments that begin anew."""
    environment, settings = ENGINES[engine]
    settings = {**COMMON, **settings, "per_device_train_batch_size": tiny.BATCH // 2}
    os.environ.update(environment)
    gradients = Gradients()
    whole = tiny.run(out / "whole", tiny.data("ab"), callbacks=[gradients], **settings)
    on_the_branch = {**settings, "save_steps": 7}
    tiny.run(out / "parts", tiny.data("ab"), stop_at=7, **on_the_branch)
    rest = tiny.run(out / "parts", tiny.data("ab"), resume=True, **on_the_branch)
    straight = tiny.run(out / "straight", tiny.data("ab"), release="last", evaluate_on="none", **settings)
    reset = tiny.run(out / "reset", tiny.data("ab"), **RESET, **settings)
    runs = {"whole": whole, "parts": rest, "straight": straight, "reset": reset}
    seen = {name: seen_by(run) for name, run in runs.items()}
    seen["whole"]["bytes"]["gradients"] = gradients.bytes
    (out / f"seen.{whole.args.process_index}.json").write_text(json.dumps(seen))
    whole.accelerator.free_memory()
    forget(environment)


SCHEDULER = {"type": "WarmupLR", "params": {"warmup_num_steps": 2}}
UNGATHERED = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}
REFUSED = {
    "scheduler": ({}, deepspeed(2, scheduler=SCHEDULER)),
    "reset_optimizer": ({}, {**deepspeed(2), "reset_optimizer": True, "optim": "adafactor"}),
    "rewind": ({}, {**deepspeed(2), "rewind": "weights", "anneal_budget": "within"}),
    "gather": ({}, deepspeed(3, zero_optimization=UNGATHERED)),
    "fsdp": (FSDP2, {}),
    "deepspeed": ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "true"}, {}),
    "alone": ({}, {"use_cpu": False}),
    "not_shared": (TWO_NODES, {}),
    "each_node": ({}, {"save_on_each_node": True}),
}
"""Case -> environment and settings of a run that is refused before its first step."""


def refuse(case, out, rank):
    environment, settings = REFUSED[case]
    os.environ.update(environment)
    directory = out / f"{case}-{rank}" if case == "not_shared" else out / case
    try:
        tiny.trainer(directory, tiny.data("ab"), **{**COMMON, **settings})
    except ValueError as error:
        return str(error)
    finally:
        forget(environment)
    return "was not refused"


def forget(environment):
    for name in (*environment, "ACCELERATE_USE_DEEPSPEED"):
        os.environ.pop(name, None)
    os.environ.update(STARTED)


def pass_over_the_operator():
    """What DeepSpeed compiles for a minute when it starts on CPUs is an all-reduce of inference, not of training."""
    if find_spec("deepspeed") is not None:
        from deepspeed import ops

        ops.__compatible_ops__["deepspeed_shm_comm"] = False


def main():
    pass_over_the_operator()
    gc.freeze()  # as in conftest.py
    out, rank = Path(sys.argv[1]), os.environ["RANK"]
    for engine in sys.argv[2:]:
        train_on(engine, out / engine)
    refusals = {case: refuse(case, out, rank) for case in REFUSED}
    (out / f"refusals.{rank}.json").write_text(json.dumps(refusals))
    leave_process_group(wait=True)


if __name__ == "__main__":
    main()
