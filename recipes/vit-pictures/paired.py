"""What learners.py and preserving.py share: a pre-trained encoder for each seed, kept results, and verdicts."""

import json
import tempfile
from pathlib import Path

import torch

from hf_infinite_lr.evaluation import mean_and_half_width
from hf_infinite_lr.recipe import load_recipe

HERE = Path(__file__).parent
PRETRAINING = HERE.parent / "mae-digits-glyphs-photos" / "infinite.yaml"
BACKBONES = Path("out/vit-pictures/backbones")
QUIET = {"save_strategy": "no", "disable_tqdm": True, "log_level": "error", "use_cpu": True}
# Digits, letters and photographs together, without their labels, for 900 updates.
TOGETHER = {
    "methods": {"joint": {}},
    "task_steps": [300],
    "replay_fraction": 0.0,
    "probes": [],
    "compare_releases": False,
    "num_pictures": 0,
    "evaluate_on": "none",
    "dataloader_num_workers": 0,
    "resume_from_checkpoint": True,
}


def train(path, folder, seed, **changes):
    """Trains a recipe with changed keys in this process; the trainer."""
    torch.set_num_threads(1)
    fixed = {"output_dir": str(folder), "seed": seed, **QUIET, **changes}
    recipe = load_recipe(path, [f"--{key}={json.dumps(value)}" for key, value in fixed.items()])
    trainer = recipe.trainer()
    trainer.train(recipe.arguments.resume_from_checkpoint)
    return trainer


def pretrained(seed):
    """A masked autoencoder of all pictures, made where it is not there yet; the path of its release."""
    folder = BACKBONES / f"seed-{seed}"
    if not (folder / "releases" / "01-joint").exists():
        train(PRETRAINING, folder, seed, **TOGETHER)
    return str(folder / "releases" / "01-joint")


def complete(results, kinds, seeds, measure):
    """Measures what `results` lacks, each as `measure(kind, seed, folder, backbone)`, and writes it at once."""
    runs = json.loads(results.read_text()) if results.exists() else []
    for seed in seeds:
        for kind in [kind for kind in kinds if (kind, seed) not in {(run["kind"], run["seed"]) for run in runs}]:
            with tempfile.TemporaryDirectory() as folder:
                runs.append({"kind": kind, "seed": seed, **measure(kind, seed, Path(folder), pretrained(seed))})
            results.write_text(json.dumps(runs, indent=1) + "\n")
            print(f"seed {seed}, {kind} done", flush=True)
    return [run for run in runs if run["kind"] in kinds and run["seed"] in seeds]


def verdict(claim, runs, better, than, value, margin=0.0):
    """One line: the mean paired difference in points, its 95 % interval over the seeds, and what that says.

    The claim holds where the whole interval is above minus the margin, and is contradicted where it is below.
    """
    pairs = [{run["kind"]: value(run) for run in runs if run["seed"] == seed} for seed in {r["seed"] for r in runs}]
    mean, half = mean_and_half_width([100 * (pair[better] - pair[than]) for pair in pairs])
    low, high = mean - half, mean + half
    word = "holds" if low > -100 * margin else "contradicted" if high < -100 * margin else "inconclusive"
    return f"{claim}: {mean:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f} over {len(pairs)} seeds: {word}"
