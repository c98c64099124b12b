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
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

BLOCK, BATCH, FIRST_TASK, UNCOUNTED = 128, 16, 3, 5
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


def round_order(steps):
    """All turns as (step, runner), each round in an order of its own."""
    draw = random.Random(0)
    return [(step, place) for step in range(steps) for place in draw.sample(range(len(RUNNERS)), len(RUNNERS))]


def memory(field):
    """A line of /proc/self/status in MiB: VmRSS now, or VmHWM at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def clock_of(place, turns, alone, steps):
    """A callback that gives its turn to the next in the round's order at the end of each step of the second task."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.seconds, self.order = [], round_order(steps)

        def on_train_begin(self, args, state, control, **kwargs):
            alone.acquire()

        def on_step_end(self, args, state, control, **kwargs):
            done = state.global_step - FIRST_TASK
            if done == 0:
                self.since = time.perf_counter()  # what comes now is done once, between the tasks
            if done > 0:
                self.seconds.append(time.perf_counter() - self.since)
                at = self.order.index((done - 1, place))
                if at + 1 < len(self.order):
                    turns[self.order[at + 1][1]].release()
                if done < steps:
                    self.wait()

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == FIRST_TASK:
                self.between = time.perf_counter() - self.since
                alone.release()
                self.wait()

        def wait(self):
            turns[place].acquire()
            self.since = time.perf_counter()

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


def work(place, turns, alone, ready, steps, results):
    """One process: builds its trainer, then trains whenever it is its turn."""
    settings = list(RUNNERS.values())[place]
    clock = clock_of(place, turns, alone, steps)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        trainer = trainer_of(settings, steps, folder)
        # Ours comes after the one that works between the tasks.
        trainer.add_callback(clock)
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        before = memory("VmRSS")
        ready.wait()
        trainer.train()
    weights = sum(weight.numel() * weight.element_size() for weight in trainer.model.parameters()) / 2**20
    results.put((place, clock.seconds, clock.between, memory("VmHWM") - before, weights))


def measure(steps):
    """What each process has measured, by runner."""
    spawn = multiprocessing.get_context("spawn")
    turns, alone = [spawn.Semaphore(0) for _ in RUNNERS], spawn.Lock()
    ready, results = spawn.Barrier(len(RUNNERS)), spawn.Queue()
    turns[round_order(steps)[0][1]].release()
    processes = [
        spawn.Process(target=work, args=(place, turns, alone, ready, steps, results), daemon=True)
        for place in range(len(RUNNERS))
    ]
    for process in processes:
        process.start()
    found = sorted(results.get() for _ in processes)
    for process in processes:
        process.join()
    return dict(zip(RUNNERS, (rest for _, *rest in found), strict=True))


def spread(slower, faster):
    """The median ratio with the interval that holds the true median in 95 of 100 cases (order statistics)."""
    ratios = sorted(a / b for a, b in zip(slower[UNCOUNTED:], faster[UNCOUNTED:], strict=True))
    half, middle = round(0.98 * len(ratios) ** 0.5), len(ratios) // 2
    low, high = ratios[max(middle - half, 0)], ratios[min(middle + half, len(ratios) - 1)]
    return f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    found = measure(parser.parse_args().steps)
    seconds, once, peak, weights = found["fine-tuning"]
    step = 1000 * statistics.median(seconds[UNCOUNTED:])
    print(f"fine-tuning: {step:.1f} ms a step, peak {peak:.1f} MiB above the start, weights {weights:.1f} MiB")
    print(f"importance on {SAMPLES} samples; medians over {len(seconds) - UNCOUNTED} rounds\n")
    print(f"{'':18} {'time of a step / fine-tuning':32} {'peak memory':>18} {'between tasks':>14}")
    for runner, (times, between, high, _) in list(found.items())[1:]:
        more = f"{high - peak:+.1f} MiB"
        print(f"{runner:18} {spread(times, seconds):32} {more:>18} {between - once:>+12.2f} s")


if __name__ == "__main__":
    main()
