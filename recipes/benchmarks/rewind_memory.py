"""Peak memory of a rewind against the peak of training, and its time against that of loading a checkpoint.

    python recipes/benchmarks/rewind_memory.py [--hidden_size 512] [--device cpu|cuda] [--rounds 24]

One process trains four short tasks for the memory, then others for the time. Memory on the CPU is the process's
anonymous memory (RssAnon, Linux), which a thread reads every 2 milliseconds, less what the process held before it had
a model; on a GPU it is the allocator's maximum. The rewind is what happens between the last step of a task's branch
and the next task's first forward pass; training is every step. After each rewind of the second run the same checkpoint
is loaded by from_pretrained, torch.load and load_state_dict. Bars: a peak of at most 1.05 of the training's, and no
more time than that load takes (processor seconds, which a busy machine disturbs less; the median over the rounds, with
its interval).
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from turns import spread

STEPS = 4
"""Of each task."""


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


def callbacks(begin):
    """Callbacks that stand before and behind the trainer's own, and say which phase begins."""
    from transformers import TrainerCallback

    class BeforeRewind(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            begin("rewind" if state.global_step and state.global_step % STEPS == 0 else "training")

        def on_step_end(self, args, state, control, **kwargs):
            begin("saving and evaluating")

    class AfterRewind(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            begin("training")

    return BeforeRewind(), AfterRewind()


class Rounds:
    """Processor seconds of each rewind and, right after it, of loading the same checkpoint."""

    def __init__(self):
        self.rewinds, self.loads, self.trainer, self._since = [], [], None, None

    def begin(self, phase):
        now = time.process_time()
        if phase == "rewind":
            self._since = now
        elif self._since is not None:
            self.rewinds.append(now - self._since)
            self.loads.append(self._load())
            self._since = None

    def _load(self):
        import torch

        folder = Path(self.trainer.args.output_dir)
        trunk = max((folder / "trunk").iterdir())
        since = time.process_time()
        type(self.trainer.model).from_pretrained(trunk)
        state = torch.load(trunk / "optimizer.pt", map_location=self.trainer.args.device, weights_only=True)
        self.trainer.optimizer.load_state_dict(state)
        return time.process_time() - since


def trainer_of(hidden_size, folder, device, num_tasks, begin):
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
    before, after = callbacks(begin)
    tasks = {f"task {number}": data for number in range(num_tasks)}
    options = {"data_collator": causal_lm_collator, "callbacks": [before]}
    trainer = ContinualTrainer(model=model, args=args, train_dataset=tasks, **options)
    trainer.add_callback(after)
    return trainer


def measure(hidden_size, device, num_rounds):
    """Peaks by phase in bytes, processor seconds by round, and the model's parameters."""
    import transformers.models.llama.modeling_llama  # noqa: F401  # what the imports hold belongs to no phase

    import hf_infinite_lr.trainer  # noqa: F401

    sampler, rounds = Sampler() if device == "cpu" else DevicePeaks(), Rounds()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        trainer = trainer_of(hidden_size, f"{folder}/memory", device, 4, partial(setattr, sampler, "phase"))
        sampler.start()
        trainer.train()
        sampler.end()
        rounds.trainer = trainer_of(hidden_size, f"{folder}/time", device, num_rounds + 1, rounds.begin)
        rounds.trainer.train()
    return sampler.peaks, rounds, sum(p.numel() for p in trainer.model.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=24, help="of a rewind and a load")
    options = parser.parse_args()
    peaks, rounds, parameters = measure(options.hidden_size, options.device, options.rounds)
    print(f"{parameters:,} parameters; weights, gradients and AdamW's moments: {16 * parameters / 1e6:.0f} MB")
    for phase, value in peaks.items():
        print(f"{phase}: {value / 1e6:.0f} MB")
    print(f"peak of a rewind / peak of training: {peaks['rewind'] / peaks['training']:.3f} (bar: at most 1.05)")
    seconds = " and ".join(f"{statistics.median(each):.3f} s" for each in (rounds.rewinds, rounds.loads))
    print(f"a rewind and a load of its checkpoint take {seconds} (medians of {len(rounds.loads)} rounds)")
    print(f"a rewind / a load: {spread(rounds.rewinds, rounds.loads, 2)} (bar: at most 1)")


if __name__ == "__main__":
    main()
