"""Steps per second of ContinualTrainer against stock Trainer on the same work, measured in turns in one run.

    python recipes/benchmarks/overhead.py [--pairs 10] [--steps 60]

Both train the same model from the same weights on one dataset with the same batch size. Each pair runs one after the
other, the order changing from pair to pair. The speed of a run is one over its median step, the first steps not
counted, so that a moment's disturbance of the machine does not decide. A ratio above 1 means that ContinualTrainer was
the faster one. The lines after it are ContinualTrainer alone: the first steps of a stream of 10 and of 1000 tasks
against those of a stream of one.
"""

import argparse
import statistics
import tempfile
import time

import datasets
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments
from hf_infinite_lr.objectives.packing import causal_lm_collator

BLOCK, BATCH, UNCOUNTED = 128, 16, 5


class Clock(TrainerCallback):
    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())

    @property
    def steps_per_second(self):
        return 1 / statistics.median(np.diff(self.times[UNCOUNTED:]))


def blocks(count):
    rows = np.random.default_rng(0).integers(3, 259, (count, BLOCK), dtype=np.int32)
    return datasets.Dataset.from_dict({"input_ids": rows.tolist()})


def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=384, max_position_embeddings=BLOCK, **sizes))


def common(folder, steps):
    return {
        "output_dir": folder,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-3,
        "max_steps": steps,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": not torch.cuda.is_available(),
    }


def stock(data, steps):
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(**common(folder, steps), lr_scheduler_type="cosine", logging_nan_inf_filter=False)
        trainer = Trainer(model(), args, train_dataset=data, data_collator=causal_lm_collator, callbacks=[clock])
        trainer.train()
    return clock.steps_per_second


def continual(data, steps, tasks=1):
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = ContinualTrainingArguments(
            **common(folder, steps),
            lr_scheduler_kwargs={"num_cooldown_steps": 0, "constant_lr_ratio": 1, "num_anneal_steps": 0},
            warmup_steps=0,
            evaluate_on="none",
            release="none",
        )
        trainer = ContinualTrainer(
            model(),
            args,
            train_dataset={f"task-{number}": data for number in range(tasks)},
            data_collator=causal_lm_collator,
            callbacks=[clock],
        )
        trainer.train()
    return clock.steps_per_second


def spread(values):
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"median {middle:.3f}   min {low:.3f}   max {high:.3f}   ({len(values)} pairs)"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    data = blocks(BATCH * (options.steps + 10))
    ratios, many = [], {10: [], 1000: []}
    for pair in range(options.pairs):
        order = [stock, continual] if pair % 2 else [continual, stock]
        speed = {run: run(data, options.steps) for run in order}
        ratios.append(speed[continual] / speed[stock])
        for tasks, values in many.items():
            values.append(continual(data, options.steps, tasks) / continual(data, options.steps))
        print(f"pair {pair + 1}: stock {speed[stock]:.2f} steps/s, ContinualTrainer {speed[continual]:.2f} steps/s")
    print(f"ContinualTrainer / stock Trainer, steps per second: {spread(ratios)}")
    for tasks, values in many.items():
        print(f"{tasks} tasks / 1 task, steps per second: {spread(values)}")


if __name__ == "__main__":
    main()
