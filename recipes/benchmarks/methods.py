"""What each method costs against fine-tuning: steps per second and peak memory, measured in turns within one run.

    python recipes/benchmarks/methods.py [--steps 150] [--repeats 3] [--only "replay 0.25" lwf]

One process for each method trains the same small Llama from the same weights on the same two tasks; in the second task
the method acts. The processes take turns step by step there, in a new random order each round, so that a slow moment
of the machine meets all of them alike. Fine-tuning runs twice. What is printed is the median over rounds of a
step's time against the mean of the two fine-tunings of the same round, with a 95 % interval of that median: 1.02 means
2 % slower. The ratio of the twins themselves shows what the measurement can tell apart. Where a process happens to lie
in memory makes it faster or slower for good, which more rounds cannot mend: `--repeats` starts all processes anew so
often and takes the rounds together. With few runners (`--only`) a round is short, and the interval narrow for the same
time.

Memory is the peak of what a process holds (VmHWM) above what it held before training, and what the methods themselves
keep for each parameter of the model. The first task and what happens once between the tasks are each runner's alone;
the latter is counted apart, in seconds.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from itertools import chain
from pathlib import Path

from turns import measure, spread

BLOCK, BATCH, FIRST_TASK = 128, 16, 3
SAMPLES = 64
TWINS = ("fine-tuning", "fine-tuning again")
RUNNERS = {
    **{name: {} for name in TWINS},
    "replay 0.25": {"replay_fraction": 0.25},
    "l2": {"methods": {"l2": {"weight": 0.1}}},
    "mas": {"methods": {"mas": {"num_samples": SAMPLES}}},
    "fisher": {"methods": {"fisher": {"weight": 10.0, "num_samples": SAMPLES}}},
    "lwf": {"methods": {"lwf": {}}},
    "gdumb": {"methods": {"gdumb": {"buffer_size": BATCH * 10}}},
    "joint": {"methods": {"joint": {}}},
}
METHODS = tuple(RUNNERS)[len(TWINS) :]


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
    kept = sum(part.nbytes for method in trainer._methods for part in method.state().values())
    return {
        "seconds": turns.counted(),
        "between": clock.between,
        "peak": memory("VmHWM") - before,
        "kept": kept / trainer.model.num_parameters(),
        "parameters": trainer.model.num_parameters(),
    }


def pooled(repeats):
    """Of each runner the seconds of all repeats one after another, and the median of everything else."""
    return {
        runner: {
            key: list(chain.from_iterable(found[runner][key] for found in repeats))
            if key == "seconds"
            else statistics.median(found[runner][key] for found in repeats)
            for key in one
        }
        for runner, one in repeats[0].items()
    }


def row(runner, one, plain, twin):
    """One line of the table; the twins are compared with each other."""
    own, mean = one["seconds"], [(a + b) / 2 for a, b in zip(plain["seconds"], twin["seconds"], strict=True)]
    time = spread(own, plain["seconds"] if one is twin else mean, digits=3)
    more, once = f"{one['peak'] - plain['peak']:+.1f} MiB", f"{one['between'] - plain['between']:+.2f} s"
    return f"{runner:18} {time:40} {more:>12} {one['kept']:>10.2f} {once:>14}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    given = parser.parse_args()
    runners, spawn = [*TWINS, *given.only], multiprocessing.get_context("spawn")
    found = pooled([measure(work, runners, given.steps, spawn.Lock(), given.steps) for _ in range(given.repeats)])
    plain, twin = (found[name] for name in TWINS)
    step, size = 1000 * statistics.median(plain["seconds"]), plain["parameters"]
    print(f"fine-tuning: {step:.1f} ms a step, peak {plain['peak']:.1f} MiB above the start, {size:,.0f} parameters")
    print(f"importance on {SAMPLES} samples; medians over {len(plain['seconds'])} rounds, {given.repeats} repeats\n")
    print(f"{'':18} {'time of a step / fine-tuning':40} {'peak memory':>12} {'bytes kept':>10} {'between tasks':>14}")
    print(f"{'':18} {'':40} {'':>12} {'/ param.':>10}")
    for runner, one in list(found.items())[1:]:
        print(row(runner, one, plain, twin))


if __name__ == "__main__":
    main()
