"""Tokens or images per second, and the share of the machine's measured ceiling, of three ways to train one model.

    python recipes/benchmarks/throughput.py [--model lm-small] [--steps 400] [--device cpu|cuda] [--record]

ContinualTrainer, stock Trainer and a hand-written PyTorch loop train the same model from the same weights on the same
batch, in one process each, on a GPU in bf16. They take turns step by step, in a new random order each round, so that a
slow moment of the machine meets all alike; a step includes all that happens until the next one. The hand-written loop
reads no data at all: it is given its batch. Before the steps, the ceiling of the machine is measured: operations per
second of its fastest square matrix product in the precision of the run. MFU is ContinualTrainer's: the operations of a
forward and backward pass over that ceiling, those that torch's FlopCounterMode counts with whole attention matrices,
which for a language model are those of Chowdhery et al. 2022, appendix B. Bars on CPU: 0.99 of stock Trainer and 0.95
of the hand-written loop. --record keeps what was measured in throughput.json and in the table of
recipes/launch/README.md.

On a CPU, glibc may hand freed memory back to the system and fetch it again, page by page, in every step. Whether it
does so depends on where in the heap small objects happen to lie, which favours the loop that makes fewest of them. So
all three are told to keep their memory (`KEEP_MEMORY`), but for the row that shows what glibc's defaults do.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

from turns import measure, ratio

KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
"""Of glibc, which reads them when a process starts and takes at most 32 MiB for mmap; elsewhere without effect."""

RUNNERS = ("ContinualTrainer", "stock Trainer", "hand-written loop")
BARS = {"stock Trainer": 0.99, "hand-written loop": 0.95}
HERE = Path(__file__).parent
FILE, PAGE = HERE / "throughput.json", HERE.parent / "launch" / "README.md"
BEGIN, END = "<!-- throughput.py --record writes what follows -->", "<!-- up to here -->"

SMALL_LM = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 2}
SMALL_MAE = {"image_size": 32, "patch_size": 4, "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3}
SMALL_MAE |= {"intermediate_size": 768, "decoder_hidden_size": 192, "decoder_num_attention_heads": 3}
SMALL_MAE |= {"decoder_num_hidden_layers": 2, "decoder_intermediate_size": 768}
VIT_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def language_model(config, batch, block):
    """A model, a batch of random tokens, and how many they are."""
    import torch
    from transformers import AutoModelForCausalLM

    rows = torch.randint(3, 259, (batch, block))
    # Eager attention makes whole matrices, which only the counting wants.
    attention = "eager" if rows.is_meta else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model, {"input_ids": rows, "labels": rows}, batch * block


def masked_autoencoder(config, batch):
    """A model, a batch of random images, and how many they are."""
    import torch
    from transformers import ViTMAEForPreTraining

    images = torch.randn(batch, 3, config.image_size, config.image_size)
    attention = "eager" if images.is_meta else "sdpa"
    return ViTMAEForPreTraining._from_config(config, attn_implementation=attention), {"pixel_values": images}, batch


def make(name):
    """The model of that name, a batch of it, and its tokens or images; on the device that is torch's default."""
    from transformers import AutoConfig, LlamaConfig, ViTMAEConfig

    if name == "lm-small":
        return language_model(LlamaConfig(vocab_size=384, **SMALL_LM), batch=8, block=128)
    if name == "lm-410m":  # of 4 rows, so that the three processes fit on one GPU together
        return language_model(AutoConfig.from_pretrained(HERE.parent / "models/llama-410m.json"), batch=4, block=2048)
    sizes, batch = {
        "mae-small": (SMALL_MAE, 16),
        "mae-small-default-malloc": (SMALL_MAE, 16),
        "mae-small-128": (SMALL_MAE, 128),
        "mae-vit-b": ({}, 256),
        "mae-vit-l": (VIT_L, 128),
    }[name]
    return masked_autoencoder(ViTMAEConfig(**sizes), batch)


MODELS = {
    "lm-small": ("Llama, 4 layers of width 128, 128 tokens", "tokens", "cpu"),
    "mae-small": ("MAE, 6 + 2 layers of width 192, 32 x 32, batches of 16", "images", "cpu"),
    "mae-small-default-malloc": ("the same with glibc's defaults, which give memory back", "images", "cpu"),
    "mae-small-128": ("MAE as above, batches of 128", "images", "cpu"),
    "lm-410m": ("Llama, 410M, 2048 tokens", "tokens", "cuda"),
    "mae-vit-b": ("MAE, ViT-B, 224 x 224", "images", "cuda"),
    "mae-vit-l": ("MAE, ViT-L, 224 x 224", "images", "cuda"),
}
"""Name -> what it is, what it is counted in, and the device of its row in the table."""


def operations(name):
    """Floating-point operations of one forward and backward pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model, batch, _ = make(name)
        with FlopCounterMode(display=False) as counter:
            model.train()(**batch).loss.backward()
    return counter.get_total_flops()


def arguments_of(folder, steps, batch_size, device):
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch_size,
        "learning_rate": 1e-4,
        "max_grad_norm": 1.0,
        "max_steps": steps,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": device == "cpu",
        "bf16": device == "cuda",
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
    }


def train_by_hand(model, batch, turns, steps, device):
    """What the other two do, without them: forward, backward, clipping, AdamW, a warm-up."""
    import torch

    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    turns.ready.wait()
    turns.wait()
    for step in range(steps):
        inputs = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            loss.item()
        if device == "cuda":
            torch.cuda.synchronize()
        turns.step_done()


def trainer_of(runner, model, batch, steps, device, folder, callbacks):
    import torch
    from transformers import Trainer, TrainingArguments

    from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments

    batch_size = len(next(iter(batch.values())))
    rows = torch.utils.data.TensorDataset(torch.zeros(batch_size * (steps + 10)))
    shared = {"model": model, "data_collator": lambda _: dict(batch), "callbacks": callbacks}
    common = arguments_of(folder, steps, batch_size, device)
    if runner == "stock Trainer":
        return Trainer(args=TrainingArguments(**common), train_dataset=rows, **shared)
    schedule = {"num_cooldown_steps": 0, "constant_lr_ratio": 1, "num_anneal_steps": 0}
    own = {"lr_scheduler_kwargs": schedule, "evaluate_on": "none", "release": "none", "warmup_steps": 10}
    args = ContinualTrainingArguments(**common, **own)
    return ContinualTrainer(args=args, train_dataset={"one": rows}, **shared)


def work(runner, turns, name, device):
    """One process: makes the model, then trains whenever it is its turn; seconds of every step."""
    import torch
    from transformers import TrainerCallback

    class Synchronise(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if device == "cuda":
                torch.cuda.synchronize()

    torch.manual_seed(0)
    model, batch, _ = make(name)
    if runner == "hand-written loop":
        train_by_hand(model, batch, turns, turns.steps, device)
        return turns.counted()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(runner, model, batch, turns.steps, device, folder, [Synchronise(), turns.callback()])
        turns.ready.wait()
        trainer.train()
    return turns.counted()


def ceiling(device):
    """Floating-point operations a second of the fastest of a few square matrix products."""
    import torch

    dtype, sizes = (torch.bfloat16, (4096, 8192, 16384)) if device == "cuda" else (torch.float32, (512, 1024, 2048))
    best = 0.0
    for size in sizes:
        one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for _ in range(10):
            started = time.perf_counter()
            one @ other
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    if device == "cuda":
        del one, other
        torch.cuda.empty_cache()
    return best


def result(name, steps, device):
    """What one run of all runners measures, with what it was measured on."""
    import torch
    import transformers

    top = ceiling(device)
    for variable, value in KEEP_MEMORY.items():
        os.environ.pop(variable, None)
        if name != "mae-small-default-malloc":
            os.environ[variable] = value
    seconds = measure(work, RUNNERS, steps, name, device)
    with torch.device("meta"):
        units = make(name)[2]
    return {
        "date": str(datetime.date.today()),
        "machine": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rounds": len(seconds["ContinualTrainer"]),
        "operations_a_second_at_most": top,
        "operations_a_step": operations(name),
        "units_a_step": units,
        "seconds_a_step": {runner: statistics.median(values) for runner, values in seconds.items()},
        "of": {runner: ratio(seconds[runner], seconds["ContinualTrainer"]) for runner in BARS},
    }


def table(results):
    """All results as Markdown; the models without one with the command that would measure them."""
    heads = ["model", *RUNNERS, "MFU", "of stock Trainer (95 %)", "of the hand-written loop (95 %)", "measured"]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for name, (what, unit, device) in MODELS.items():
        if name not in results:
            command = f"python recipes/benchmarks/throughput.py --model {name} --device {device} --record"
            lines.append(f"{what} | not run: `{command}`" + " |" * (len(heads) - 2))
            continue
        one = results[name]
        cells = [f"{one['units_a_step'] / one['seconds_a_step'][runner]:,.0f} {unit}/s" for runner in RUNNERS]
        best = one["operations_a_step"] / one["seconds_a_step"]["ContinualTrainer"]
        cells.append(f"{best / one['operations_a_second_at_most']:.1%}")
        cells += ["{:.4f} ({:.4f} to {:.4f})".format(*one["of"][runner]) for runner in BARS]
        where = f"{one['machine']}, {one['threads']} threads, {one['operations_a_second_at_most'] / 1e9:,.0f} GFLOP/s"
        versions = f"torch {one['torch']}, transformers {one['transformers']}"
        cells.append(f"{one['date']}, {where} at most, {versions}, {one['rounds']} rounds")
        lines.append(" | ".join([what, *cells]))
    return "\n".join(f"| {line} |" for line in lines)


def recorded():
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def record(results):
    """Keeps the results, and writes the page's table anew."""
    FILE.write_text(json.dumps(results, indent=1) + "\n")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="lm-small")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    one = result(options.model, options.steps, options.device)
    print(table({options.model: one}).splitlines()[2 + list(MODELS).index(options.model)])
    for runner, bar in BARS.items():
        median, low, high = one["of"][runner]
        print(f"ContinualTrainer / {runner}: {median:.4f}, 95 % interval {low:.4f} to {high:.4f} (bar on CPU: {bar})")
    if options.record:
        record({**recorded(), options.model: one})


if __name__ == "__main__":
    main()
