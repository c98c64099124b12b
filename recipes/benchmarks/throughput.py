"""Tokens or images per second, and the share of the machine's measured ceiling, of three ways to train one model.

    python recipes/benchmarks/throughput.py [--model lm|mae] [--size small|large] [--steps 100] [--device cpu|cuda]

ContinualTrainer, stock Trainer and a hand-written PyTorch loop train the same model from the same weights on the same
batches, in one process each. They take turns step by step, in a new random order each round, so that a slow moment of
the machine meets all alike; a step includes all that happens until the next one. Before the steps, the ceiling of the
machine is measured: operations per second of its fastest square matrix product in the precision of the run. MFU is
6 x matrix parameters x tokens (of an MAE: the patches that encoder and decoder see) a second over that ceiling, so the
products within attention are not counted. Bars on CPU: 0.99 of stock Trainer and 0.95 of the hand-written loop.
"""

import argparse
import datetime
import platform
import statistics
import tempfile
import time

from turns import measure, spread

RUNNERS = ("ContinualTrainer", "stock Trainer", "hand-written loop")


def language_model(size):
    """The model, a batch of random tokens, and tokens a step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, block, batch = (128, 4, 128, 8) if size == "small" else (1024, 24, 2048, 8)
    sizes = {"hidden_size": width, "intermediate_size": 11 * width // 4, "num_hidden_layers": layers}
    config = LlamaConfig(vocab_size=384 if size == "small" else 50304, num_attention_heads=width // 64, **sizes)
    rows = torch.randint(3, 259, (batch, block))
    model = LlamaForCausalLM(config)
    return model, {"input_ids": rows, "labels": rows}, batch * block, 6 * matrix_parameters(model) * batch * block


def masked_autoencoder(size):
    """The model, a batch of random images, and images a step."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    small = {"image_size": 32, "patch_size": 4, "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3}
    small |= {"intermediate_size": 768, "decoder_hidden_size": 192, "decoder_num_attention_heads": 3}
    small |= {"decoder_num_hidden_layers": 2, "decoder_intermediate_size": 768}
    config, batch = (ViTMAEConfig(**small), 64) if size == "small" else (ViTMAEConfig(), 256)
    images = torch.randn(batch, 3, config.image_size, config.image_size)
    model = ViTMAEForPreTraining(config)
    patches = (config.image_size // config.patch_size) ** 2
    seen = round(patches * (1 - config.mask_ratio))
    flops = 6 * batch * (matrix_parameters(model.vit) * seen + matrix_parameters(model.decoder) * patches)
    return model, {"pixel_values": images}, batch, flops


def matrix_parameters(model):
    """Elements of all matrices that multiply activations; a table that is looked up in is none."""
    from torch import nn

    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d)))


MODELS = {"lm": (language_model, "tokens"), "mae": (masked_autoencoder, "images")}


def arguments_of(folder, steps, options):
    return {
        "output_dir": folder,
        "per_device_train_batch_size": options.batch,
        "learning_rate": 1e-4,
        "max_grad_norm": 1.0,
        "max_steps": steps,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": options.device == "cpu",
        "bf16": options.device == "cuda",
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
    }


def train_by_hand(model, batch, turns, steps, options):
    """What the other two do, without them: forward, backward, clipping, AdamW, a warm-up."""
    import torch

    model = model.to(options.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    turns.ready.wait()
    turns.wait()
    for step in range(steps):
        inputs = {name: value.to(options.device) for name, value in batch.items()}
        with torch.autocast(options.device, torch.bfloat16, enabled=options.device == "cuda"):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            loss.item()
        if options.device == "cuda":
            torch.cuda.synchronize()
        turns.step_done()


def train_with(runner, model, batch, turns, steps, options, folder):
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments

    class Synchronise(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if options.device == "cuda":
                torch.cuda.synchronize()

    options.batch = len(next(iter(batch.values())))
    rows = torch.utils.data.TensorDataset(torch.zeros(options.batch * (steps + 10)))
    shared = {"model": model, "data_collator": lambda _: dict(batch), "callbacks": [Synchronise(), turns.callback()]}
    common = arguments_of(folder, steps, options)
    if runner == "stock Trainer":
        trainer = Trainer(args=TrainingArguments(**common), train_dataset=rows, **shared)
    else:
        schedule = {"num_cooldown_steps": 0, "constant_lr_ratio": 1, "num_anneal_steps": 0}
        own = {"lr_scheduler_kwargs": schedule, "evaluate_on": "none", "release": "none", "warmup_steps": 10}
        args = ContinualTrainingArguments(**common, **own)
        trainer = ContinualTrainer(args=args, train_dataset={"one": rows}, **shared)
    turns.ready.wait()
    trainer.train()


def work(runner, turns, options):
    """One process: makes the model, then trains whenever it is its turn; seconds of every step."""
    import torch

    torch.manual_seed(0)
    model, batch, _, _ = MODELS[options.model][0](options.size)
    if runner == "hand-written loop":
        train_by_hand(model, batch, turns, options.steps, options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            train_with(runner, model, batch, turns, options.steps, options, folder)
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
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="lm")
    parser.add_argument("--size", choices=["small", "large"], default="small")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    import torch
    import transformers

    top = ceiling(options.device)
    make, unit = MODELS[options.model]
    _, _, units, flops = make(options.size)
    today = datetime.date.today()
    print(
        f"{platform.machine()}, {options.device}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print(
        f"{today}: ceiling {top / 1e9:.0f} GFLOP/s ({torch.get_num_threads()} threads), {flops / 1e9:.1f} GFLOP a step"
    )
    seconds = measure(work, RUNNERS, options.steps, options)
    for runner, values in seconds.items():
        step = statistics.median(values)
        print(f"{runner}: {units / step:,.0f} {unit} a second, MFU {flops / step / top:.1%}")
    print(f"{len(seconds['ContinualTrainer'])} rounds")
    for runner, bar in (("stock Trainer", 0.99), ("hand-written loop", 0.95)):
        print(f"ContinualTrainer / {runner}: {spread(seconds[runner], seconds['ContinualTrainer'])}   (bar: {bar})")


if __name__ == "__main__":
    main()
