"""Peak memory of a rewind against the peak of training, on CPU: anonymous memory of the process (RssAnon).

    python recipes/benchmarks/rewind_memory.py [--hidden_size 512]

One process trains two short tasks; a thread reads /proc/self/status (Linux) every 2 milliseconds. The rewind is what
happens between the last step of the first task's branch and the second task's first forward pass; training is every
step. What the process held before it had a model is taken off both. The bar is a ratio of at most 1.05.
"""

import argparse
import contextlib
import tempfile
import threading
import time
from pathlib import Path


def anonymous_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no RssAnon: this measurement needs Linux.")


class Sampler(threading.Thread):
    """Keeps the highest value of each phase."""

    def __init__(self):
        super().__init__(daemon=True)
        self.phase, self.peaks, self.samples, self.over = "before", {}, {}, False

    def run(self):
        while not self.over:
            phase, value = self.phase, anonymous_bytes()
            self.peaks[phase] = max(self.peaks.get(phase, 0), value)
            self.samples[phase] = self.samples.get(phase, 0) + 1
            time.sleep(0.002)


def callbacks(sampler, end):
    from transformers import TrainerCallback

    class BeforeRewind(TrainerCallback):
        """Stands before the trainer's own callbacks."""

        def on_step_begin(self, args, state, control, **kwargs):
            sampler.phase = "rewind" if state.global_step == end else "training"

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            sampler.phase = "training"

        def on_step_end(self, args, state, control, **kwargs):
            sampler.phase = "saving and evaluating"

    class AfterRewind(TrainerCallback):
        """Stands behind them: the rewind is done."""

        def on_step_begin(self, args, state, control, **kwargs):
            sampler.phase = "training"

    return BeforeRewind(), AfterRewind()


def trainer_of(hidden_size, folder, sampler):
    import datasets
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments
    from hf_infinite_lr.objectives.packing import causal_lm_collator

    sampler.baseline = anonymous_bytes()
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden_size, "intermediate_size": 3 * hidden_size, "num_hidden_layers": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=384, max_position_embeddings=64, num_attention_heads=8, **sizes))
    rows = np.random.default_rng(0).integers(3, 259, (64, 64), dtype=np.int32)
    data = datasets.Dataset.from_dict({"input_ids": rows.tolist()})
    args = ContinualTrainingArguments(
        folder,
        task_steps=[6],
        per_device_train_batch_size=2,
        lr_scheduler_kwargs={"num_cooldown_steps": 1, "num_anneal_steps": 2},
        warmup_steps=1,
        evaluate_on="none",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
    )
    before, after = callbacks(sampler, end=6)
    options = {"data_collator": causal_lm_collator, "callbacks": [before]}
    trainer = ContinualTrainer(model=model, args=args, train_dataset={"a": data, "b": data}, **options)
    trainer.add_callback(after)
    return trainer


def measure(hidden_size):
    """Peaks above the process without a model: phase -> bytes; and the model's parameters."""
    sampler = Sampler()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        trainer = trainer_of(hidden_size, folder, sampler)
        sampler.start()
        trainer.train()
        sampler.over = True
        sampler.join()
    peaks = {phase: value - sampler.baseline for phase, value in sampler.peaks.items()}
    return peaks, sampler.samples, sum(p.numel() for p in trainer.model.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden_size", type=int, default=512)
    peaks, samples, parameters = measure(parser.parse_args().hidden_size)
    print(f"{parameters:,} parameters; weights, gradients and AdamW's moments: {16 * parameters / 1e6:.0f} MB")
    for phase, value in peaks.items():
        print(f"{phase}: {value / 1e6:.0f} MB ({samples[phase]} samples)")
    print(f"peak of the rewind / peak of training: {peaks['rewind'] / peaks['training']:.3f} (bar: at most 1.05)")


if __name__ == "__main__":
    main()
