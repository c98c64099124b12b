"""Images per second of the image recipe against a plain PyTorch loop on the same model, batch and precision.

    python recipes/benchmarks/images.py [--steps 100]

Two processes train the demonstration's model on the built-in glyphs with its batch size: the recipe through
ContinualTrainer, and a loop written by hand that decodes, normalises, masks and updates with torch and Pillow.
They take turns step by step, in a new random order each round, so that a slow moment of the machine meets both; a
step includes all that happens until the next one. Printed is the median over rounds of the ratio within a round, with
a 95 % interval of that median. Above 1, the recipe was the faster one.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from turns import measure, spread

RECIPE = Path(__file__).parent.parent / "mae-digits-glyphs-photos" / "infinite.yaml"
RUNNERS = ("plain loop", "recipe")


def recipe(steps, turns):
    """The recipe with one task and without evaluation, logs every 10 steps."""
    from hf_infinite_lr.recipe import load_recipe

    with tempfile.TemporaryDirectory() as folder:
        changes = {
            "tasks": "[{name: glyphs, builtin: glyphs}]",
            "task_steps": f"[{steps}]",
            "dataloader_num_workers": 0,
            "evaluate_on": "none",
            "release": "none",
            "save_strategy": "no",
            "logging_steps": 10,
            "disable_tqdm": True,
            "use_cpu": True,
            "output_dir": folder,
        }
        trainer = load_recipe(RECIPE, [f"--{key}={value}" for key, value in changes.items()]).trainer()
        trainer.add_callback(turns.callback())
        turns.ready.wait()
        trainer.train()


def plain_loop(steps, turns):
    """The same work by hand: order, decoding, normalisation, masks, clipping and AdamW."""
    from io import BytesIO

    import numpy as np
    import torch
    import yaml
    from datasets import Image as ImageFeature
    from PIL import Image
    from transformers import ViTMAEConfig, ViTMAEForPreTraining, get_cosine_schedule_with_warmup

    from hf_infinite_lr.stream.pictures import load_pictures

    settings = yaml.safe_load(RECIPE.read_text())
    size = settings["per_device_train_batch_size"]
    torch.manual_seed(0)
    model = ViTMAEForPreTraining(ViTMAEConfig(**settings["config_overrides"])).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings["learning_rate"], betas=(0.9, 0.95), weight_decay=settings["weight_decay"]
    )
    rates = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    images = load_pictures("glyphs").train.cast_column("image", ImageFeature(decode=False))
    order = torch.randperm(len(images)).tolist()
    turns.ready.wait()
    turns.wait()
    for step in range(steps):
        rows = [order[(step * size + place) % len(order)] for place in range(size)]
        decoded = [Image.open(BytesIO(found["bytes"])).convert("RGB") for found in images[rows]["image"]]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in decoded])).permute(0, 3, 1, 2)
        loss = model(pixel_values=(pixels.float() / 255 - 0.5) / 0.5).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            loss.item()
        turns.step_done()


def work(runner, turns, steps):
    """One process, which works whenever it is its turn; seconds of every step."""
    (plain_loop if runner == "plain loop" else recipe)(steps, turns)
    return turns.counted()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    seconds = measure(work, RUNNERS, steps, steps)
    for runner, values in seconds.items():
        print(f"{runner}: median step {1000 * statistics.median(values):.1f} ms")
    print(f"{len(seconds['recipe'])} rounds")
    print(f"recipe / plain loop, images per second: {spread(seconds['plain loop'], seconds['recipe'])}")


if __name__ == "__main__":
    main()
