"""Seconds to the first step of a map-style task of ten million samples: resumed at 90 %, and started at 0, in turns.

    python recipes/benchmarks/resume_speed.py [--rounds 3] [--samples 10000000]

The dataset makes its rows when they are read and the model is tiny, so that what is measured is the order of the
samples and the way to the place in it. Each start is a process of its own, a fork of one that has imported everything;
the clocks (the wall's, and the processor's for a machine that is not idle) run from the call of `train` to the end of
the first update. Printed are all seconds, the median difference within a round, and the memory that the order takes
(the bytes of its array, and what the process grew by).
"""

import argparse
import os
import pickle
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.utils import logging

from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments
from hf_infinite_lr.stream.order import epoch_order

BATCH = 8


class Rows(Dataset):
    """Rows that cost nothing until they are read."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return {"input_ids": [row % 30] * 8, "labels": [row % 30] * 8}


class FirstStep(TrainerCallback):
    """Notes when the first update is done, and ends the run there."""

    def __init__(self):
        self.at = None

    def on_step_end(self, args, state, control, **kwargs):
        self.at = self.at or (time.perf_counter(), time.process_time())
        control.should_training_stop = control.should_save = True


def trainer(folder, samples):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    args = ContinualTrainingArguments(
        str(folder),
        per_device_train_batch_size=BATCH,
        warmup_steps=10,
        lr_scheduler_kwargs={"num_cooldown_steps": 10, "num_anneal_steps": 10},
        save_steps=10**9,
        evaluate_on="none",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=16, **sizes))
    return ContinualTrainer(model, args, train_dataset={"rows": Rows(samples)}, callbacks=[FirstStep()])


def checkpoint_at(folder, samples, share):
    """A checkpoint at a share of the task: the first step's, told that it is a later one."""
    run = trainer(folder, samples)
    run.train()
    step = int(share * run.plan.num_steps)
    run.state.global_step = step
    run.lr_scheduler.set_position(step)
    run._save_checkpoint(run.model, None)
    return folder / f"checkpoint-{step}"


def first_step(folder, samples, checkpoint):
    """Seconds to the first step and memory of the order, measured in a process of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        run = trainer(folder, samples)
        before, since, computed = resident(), time.perf_counter(), time.process_time()
        run.train(None if checkpoint is None else str(checkpoint))
        clock = next(callback for callback in run.callback_handler.callbacks if isinstance(callback, FirstStep))
        found = {
            "seconds": clock.at[0] - since,
            "cpu_seconds": clock.at[1] - computed,
            "step": run.state.global_step,
            "order_bytes": epoch_order(run._data_seed, 0, 0, samples).nbytes,
            "grown_bytes": resident() - before,
        }
        os.write(writing, pickle.dumps(found))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    os.waitpid(pid, 0)
    return pickle.loads(content)


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(samples, rounds):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pid = os.fork()
        if not pid:
            checkpoint_at(folder / "run", samples, 0.9)
            os._exit(0)
        os.waitpid(pid, 0)
        (checkpoint,) = (path for path in (folder / "run").glob("checkpoint-*") if path.name != "checkpoint-1")
        for number in range(rounds):
            fresh = first_step(folder / f"fresh-{number}", samples, None)
            resumed = first_step(folder / "run", samples, checkpoint)
            yield fresh, resumed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=10_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    more = {"seconds": [], "cpu_seconds": []}
    for fresh, resumed in measure(arguments.samples, arguments.rounds):
        for kind, values in more.items():
            values.append(resumed[kind] - fresh[kind])
        starts = (
            f"to step {found['step']}: {found['seconds']:.2f} s ({found['cpu_seconds']:.2f} s of processor)"
            for found in (fresh, resumed)
        )
        print("; ".join(starts))
    wall, processor = (statistics.median(values) for values in more.values())
    print(
        f"resumed at 90 % of {arguments.samples:,} samples: median {wall:+.2f} s to the first step, "
        f"{processor:+.2f} s of processor"
    )
    order, grown = resumed["order_bytes"], [found["grown_bytes"] / 1e6 for found in (fresh, resumed)]
    print(
        f"the order takes {order / 1e6:.1f} MB ({order / arguments.samples:.0f} bytes a sample); the fresh process "
        f"grew by {grown[0]:.1f} MB, the resumed one by {grown[1]:.1f} MB"
    )


if __name__ == "__main__":
    main()
