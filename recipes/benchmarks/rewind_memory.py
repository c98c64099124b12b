"""Peak memory of a rewind against the peak of training, and its time against that of loading a checkpoint.

    python recipes/benchmarks/rewind_memory.py [--hidden_size 512] [--device cpu|cuda]

One process trains four short tasks. Memory on the CPU is the process's anonymous memory (RssAnon, Linux), which a
thread reads every 2 milliseconds, less what the process held before it had a model; on a GPU it is the allocator's
maximum. The rewind is what happens between the last step of a task's branch and the next task's first forward pass;
training is every step. Bars: a peak of at most 1.05 of the training's, and no more time than it takes to load the same
checkpoint by from_pretrained, torch.load and load_state_dict (medians; processor seconds, which a busy machine
disturbs less).
"""

import argparse
import contextlib
import statistics
import tempfile
import threading
import time
from pathlib import Path

TASKS, STEPS = "abcd", 4


def anonymous_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no RssAnon: this measurement needs Linux.")


class Sampler(threading.Thread):
    """Keeps the highest value of each phase."""

    def __init__(self):
        super().__init__(daemon=True)
        self.phase, self.peaks, self.baseline, self.over = "before", {}, anonymous_bytes(), False

    def run(self):
        while not self.over:
            phase, value = self.phase, anonymous_bytes()
            self.peaks[phase] = max(self.peaks.get(phase, 0), value - self.baseline)
            time.sleep(0.002)

    def end(self):
        self.over = True
        self.join()


class DevicePeaks:
    """The same of the device's allocator, which keeps a maximum itself."""

    def __init__(self):
        self.peaks, self._phase = {}, "before"

    @property
    def phase(self):
        return self._phase

    @phase.setter
    def phase(self, phase):
        import torch

        self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        self._phase = phase

    def start(self):
        self.phase = "before"

    def end(self):
        self.phase = "after"


def callbacks(sampler, seconds):
    """Callbacks that stand before and behind the trainer's own, and note phases and the time of each rewind."""
    from transformers import TrainerCallback

    class BeforeRewind(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            is_rewind = state.global_step and state.global_step % STEPS == 0
            sampler.phase = "rewind" if is_rewind else "training"
            self.since = time.process_time()

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            sampler.phase = "training"

        def on_step_end(self, args, state, control, **kwargs):
            sampler.phase = "saving and evaluating"

    class AfterRewind(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if sampler.phase == "rewind":
                seconds.append(time.process_time() - before.since)
            sampler.phase = "training"

    before = BeforeRewind()
    return before, AfterRewind()


def trainer_of(hidden_size, folder, device, before, after):
    import datasets
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments
    from hf_infinite_lr.objectives.packing import causal_lm_collator

    torch.manual_seed(0)
    sizes = {"hidden_size": hidden_size, "intermediate_size": 3 * hidden_size, "num_hidden_layers": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=384, max_position_embeddings=64, num_attention_heads=8, **sizes))
    rows = np.random.default_rng(0).integers(3, 259, (64, 64), dtype=np.int32)
    data = datasets.Dataset.from_dict({"input_ids": rows.tolist()})
    args = ContinualTrainingArguments(
        folder,
        task_steps=[STEPS],
        per_device_train_batch_size=2,
        lr_scheduler_kwargs={"num_cooldown_steps": 1, "num_anneal_steps": 1},
        warmup_steps=1,
        evaluate_on="none",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=device == "cpu",
    )
    options = {"data_collator": causal_lm_collator, "callbacks": [before]}
    trainer = ContinualTrainer(model=model, args=args, train_dataset=dict.fromkeys(TASKS, data), **options)
    trainer.add_callback(after)
    return trainer


def loading(trainer, trunk):
    """Processor seconds that it takes to load a checkpoint by the usual means, three times."""
    import torch

    for _ in range(3):
        since = time.process_time()
        type(trainer.model).from_pretrained(trunk)
        state = torch.load(trunk / "optimizer.pt", map_location=trainer.args.device, weights_only=True)
        trainer.optimizer.load_state_dict(state)
        yield time.process_time() - since


def measure(hidden_size, device="cpu"):
    """Peaks by phase in bytes, processor seconds of the rewinds and of loading, and the model's parameters."""
    import transformers.models.llama.modeling_llama  # noqa: F401  # what the imports hold belongs to no phase

    import hf_infinite_lr.trainer  # noqa: F401

    sampler, rewinds = Sampler() if device == "cpu" else DevicePeaks(), []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        trainer = trainer_of(hidden_size, folder, device, *callbacks(sampler, rewinds))
        sampler.start()
        trainer.train()
        sampler.end()
        loads = list(loading(trainer, Path(folder) / "trunk" / f"01-{TASKS[0]}"))
    return sampler.peaks, rewinds, loads, sum(p.numel() for p in trainer.model.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    peaks, rewinds, loads, parameters = measure(options.hidden_size, options.device)
    print(f"{parameters:,} parameters; weights, gradients and AdamW's moments: {16 * parameters / 1e6:.0f} MB")
    for phase, value in peaks.items():
        print(f"{phase}: {value / 1e6:.0f} MB")
    print(f"peak of a rewind / peak of training: {peaks['rewind'] / peaks['training']:.3f} (bar: at most 1.05)")
    rewind, load = statistics.median(rewinds), statistics.median(loads)
    print(f"a rewind {rewind:.3f} s, loading its checkpoint {load:.3f} s: {rewind / load:.2f} (bar: at most 1)")


if __name__ == "__main__":
    main()
