"""What each method costs against fine-tuning: steps per second and peak memory, measured in turns within one run.

    python recipes/benchmarks/methods.py [--steps 150]

One process for each method trains the same small Llama from the same weights on the same two tasks; in the second task
the method acts. The processes take turns step by step there, in a new random order each round, so that a slow moment
of the machine meets all of them alike. What is printed is the median over rounds of a step's time against that of
fine-tuning in the same round, with a 95 % interval of that median: 1.02 means 2 % slower. Fine-tuning runs twice; the
ratio of these twins shows what the measurement itself can tell apart. Memory is the peak of what a process holds
(VmHWM) above what it held before training. The first task and what happens once between the tasks are each runner's
alone; the latter is counted apart, in seconds.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

from turns import measure, spread

BLOCK, BATCH, FIRST_TASK = 128, 16, 3
SAMPLES = 64
RUNNERS = {
    "fine-tuning": {},
    "fine-tuning again": {},
    "replay 0.25": {"replay_fraction": 0.25},
    "l2": {"methods": {"l2": {"weight": 0.1}}},
    "mas": {"methods": {"mas": {"num_samples": SAMPLES}}},
    "fisher": {"methods": {"fisher": {"weight": 10.0, "num_samples": SAMPLES}}},
    "lwf": {"methods": {"lwf": {}}},
    "gdumb": {"methods": {"gdumb": {"buffer_size": BATCH * 10}}},
    "joint": {"methods": {"joint": {}}},
}


def memory(field):
    """A line of /proc/self/status in MiB: VmRSS now, or VmHWM at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def clock_of(turns, alone):
    """A callback: each step of the second task is a turn, and what comes before it one process does at a time."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            alone.acquire()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == FIRST_TASK:
                self.since = time.perf_counter()  # what comes now is done once, between the tasks
            if state.global_step > FIRST_TASK:
                turns.step_done()

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == FIRST_TASK:
                self.between = time.perf_counter() - self.since
                alone.release()
                turns.wait()

    return Clock()


def trainer_of(settings, steps, folder):
    """A run whose second task is long enough for all rounds."""
    import datasets
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments
    from hf_infinite_lr.objectives.packing import causal_lm_collator

    rows = np.random.default_rng(0).integers(3, 259, (BATCH * (steps + 10), BLOCK), dtype=np.int32)
    data = datasets.Dataset.from_dict({"input_ids": rows.tolist()})
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4}
    args = ContinualTrainingArguments(
        folder,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        task_steps=[FIRST_TASK, steps],
        lr_scheduler_kwargs={"num_cooldown_steps": 0, "constant_lr_ratio": 1, "num_anneal_steps": 0},
        warmup_steps=0,
        evaluate_on="none",
        release="none",
        save_strategy="no",
        logging_steps=10_000,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    model = LlamaForCausalLM(LlamaConfig(vocab_size=384, max_position_embeddings=BLOCK, **sizes))
    tasks = {"first": data.select(range(BATCH * 10)), "second": data}
    return ContinualTrainer(model=model, args=args, train_dataset=tasks, data_collator=causal_lm_collator)


def work(runner, turns, alone, steps):
    """One process: builds its trainer, then trains whenever it is its turn."""
    clock = clock_of(turns, alone)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(RUNNERS[runner], steps, folder)
        # Ours comes after the one that works between the tasks.
        trainer.add_callback(clock)
        before = memory("VmRSS")
        turns.ready.wait()
        trainer.train()
    weights = sum(weight.numel() * weight.element_size() for weight in trainer.model.parameters()) / 2**20
    return turns.counted(), clock.between, memory("VmHWM") - before, weights


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    found = measure(work, list(RUNNERS), steps, multiprocessing.get_context("spawn").Lock(), steps)
    seconds, once, peak, weights = found["fine-tuning"]
    step = 1000 * statistics.median(seconds)
    print(f"fine-tuning: {step:.1f} ms a step, peak {peak:.1f} MiB above the start, weights {weights:.1f} MiB")
    print(f"importance on {SAMPLES} samples; medians over {len(seconds)} rounds\n")
    print(f"{'':18} {'time of a step / fine-tuning':40} {'peak memory':>18} {'between tasks':>14}")
    for runner, (times, between, high, _) in list(found.items())[1:]:
        more = f"{high - peak:+.1f} MiB"
        print(f"{runner:18} {spread(times, seconds, digits=3):40} {more:>18} {between - once:>+12.2f} s")


if __name__ == "__main__":
    main()
