"""Steps per second of ContinualTrainer against stock Trainer on the same work, measured in turns within one run.

    python recipes/benchmarks/overhead.py [--steps 200]

Four processes train the same model from the same weights on one dataset with the same batch size: stock Trainer, and
ContinualTrainer with a stream of 1, 10 and 1000 tasks. They take turns step by step, in a new random order each round,
so that a slow moment of the machine meets all of them alike; a step includes all that happens until the next one. What
is printed is the median over rounds of the ratio within a round, with a 95 % interval of that median. Above 1,
ContinualTrainer (or the stream of more tasks) was the faster one.
"""

import argparse
import statistics
import tempfile

from turns import measure, spread

BLOCK, BATCH = 128, 16
RUNNERS = ("stock", 1, 10, 1000)


def data_and_model(steps):
    import datasets
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    rows = np.random.default_rng(0).integers(3, 259, (BATCH * (steps + 10), BLOCK), dtype=np.int32)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=384, max_position_embeddings=BLOCK, **sizes))
    return datasets.Dataset.from_dict({"input_ids": rows.tolist()}), model


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
        "use_cpu": True,
        "logging_nan_inf_filter": False,
    }


def trainer_of(runner, data, model, folder, steps, clock):
    from transformers import Trainer, TrainingArguments

    from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments
    from hf_infinite_lr.objectives.packing import causal_lm_collator

    shared = {"model": model, "data_collator": causal_lm_collator, "callbacks": [clock]}
    if runner == "stock":
        args = TrainingArguments(**common(folder, steps), lr_scheduler_type="cosine")
        return Trainer(args=args, train_dataset=data, **shared)
    args = ContinualTrainingArguments(
        **common(folder, steps),
        lr_scheduler_kwargs={"num_cooldown_steps": 0, "constant_lr_ratio": 1, "num_anneal_steps": 0},
        warmup_steps=0,
        evaluate_on="none",
        release="none",
    )
    return ContinualTrainer(args=args, train_dataset={f"task-{n}": data for n in range(runner)}, **shared)


def work(runner, turns, steps):
    """One process: builds its trainer, then trains whenever it is its turn; seconds of every step."""
    data, model = data_and_model(steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(runner, data, model, folder, steps, turns.callback())
        turns.ready.wait()
        trainer.train()
    return turns.counted()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    seconds = measure(work, RUNNERS, steps, steps)
    for runner, values in seconds.items():
        name = "stock Trainer" if runner == "stock" else f"ContinualTrainer, {runner} task(s)"
        print(f"{name}: median step {1000 * statistics.median(values):.1f} ms")
    print(f"{len(seconds['stock'])} rounds")
    print(f"ContinualTrainer / stock Trainer, steps per second: {spread(seconds['stock'], seconds[1])}")
    for tasks in RUNNERS[2:]:
        print(f"{tasks} tasks / 1 task, steps per second: {spread(seconds[1], seconds[tasks])}")


if __name__ == "__main__":
    main()
