"""Fine-tuning that preserves attention against plain fine-tuning: on its task, and as a start for other tasks.

    python recipes/vit-pictures/preserving.py [--seeds 0 1 2]

For every seed a small masked autoencoder is pre-trained on all built-in pictures without labels. Its encoder learns
the 52 letters in both ways. The two claims are those of the abstract of the GLAD paper (arXiv 2306.12026), whose
equations are not known here: competitive on the task (at most two points below plain fine-tuning), and a better start
for other tasks (digits and photographs, by a linear probe and by fine-tuning on 300 images). The pre-trained encoder
is measured beside them. Every run is kept in preserving.json; one that stands there is not done again.
"""

import argparse

import numpy as np
import torch
from paired import HERE, complete, train, verdict
from torch import nn
from transformers import ViTForImageClassification

from hf_infinite_lr.evaluation import linear_probe, mean_and_half_width
from hf_infinite_lr.evaluation.finetuning import finetuned_predictions
from hf_infinite_lr.objectives.causal_lm import ModelSource
from hf_infinite_lr.objectives.image_batches import ImageBatches
from hf_infinite_lr.objectives.image_source import ImageSource
from hf_infinite_lr.objectives.images import class_names, load_images
from hf_infinite_lr.objectives.vit_model import build_vit, build_vit_config

RECIPE, RESULTS = HERE / "infinite.yaml", HERE / "preserving.json"
LETTERS = {"tasks": [{"name": "glyphs", "builtin": "glyphs"}], "task_steps": [300]}
SETTINGS = {
    "finetuning": {},
    "attention_preserving": {
        "methods": {"attention_preserving": {"weight": 10.0}},
        "lora": {"r": 16, "lora_alpha": 32, "target_modules": ["v_proj", "o_proj"]},
        "attn_implementation": "eager",
        "merge_releases": True,
        "learning_rate": 4.0e-3,
    },
}
OTHERS = ("digits", "photos")
FEW, EPOCHS, MARGIN = 300, 8, 0.02


class Encoder(nn.Module):
    """The backbone of a classifier."""

    def __init__(self, model):
        super().__init__()
        self.vit = model.vit

    def forward(self, pixels):
        return self.vit(pixels).last_hidden_state


def pictures(name):
    """Images and classes of both parts of a domain."""
    found = load_images(ImageSource(builtin=name))
    batches = ImageBatches(image_size=32, num_patches=64, mean=[0.5] * 3, std=[0.5] * 3)
    return [(batches.pixels(list(part), held_out=True), class_names(part)) for part in (found.train, found.eval)]


@torch.no_grad()
def features(encoder, images):
    return torch.cat([encoder(part)[:, 0] for part in images.split(128)]).numpy()


def worth(path):
    """Accuracies of a backbone on tasks that it was not fine-tuned for."""
    found = {}
    for name in OTHERS:
        (train_images, labels), (test_images, truth) = pictures(name)
        encoder = Encoder(build(path)).eval()
        predicted = linear_probe(features(encoder, train_images), labels, features(encoder, test_images))
        found[f"{name}_linear"] = float(np.mean(predicted == truth))
        few = train_images[:FEW], labels[:FEW], test_images
        tuned = finetuned_predictions(encoder, encoder.vit.config.hidden_size, *few, num_epochs=EPOCHS)
        found[f"{name}_finetuning"] = float(np.mean(tuned == truth))
    return found


def build(path):
    torch.manual_seed(0)
    source = ModelSource(model_name_or_path=str(path))
    return build_vit(source, build_vit_config(source), ["any"])


def measure(kind, seed, folder, backbone):
    """Accuracy on the letters, and what the backbone is worth for others."""
    if kind == "pretrained":
        return worth(backbone)
    trainer = train(RECIPE, folder, seed, model_name_or_path=backbone, **LETTERS, **SETTINGS[kind])
    release = folder / "releases" / "01-glyphs"
    merged = release / "merged" if kind == "attention_preserving" else release
    ViTForImageClassification.from_pretrained(merged)
    return {"letters": trainer.record.matrices["accuracy"].matrix[0][0], **worth(merged)}


def mean_over_others(way):
    return lambda run: float(np.mean([run[f"{name}_{way}"] for name in OTHERS]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs = complete(RESULTS, ["pretrained", *SETTINGS], parser.parse_args().seeds, measure)
    for kind in ("pretrained", *SETTINGS):
        own = [run for run in runs if run["kind"] == kind]
        for name in [name for name in own[0] if name not in ("kind", "seed")]:
            mean, half = mean_and_half_width([100 * run[name] for run in own])
            print(f"{kind:20} {name:18} {mean:.1f} ± {half:.1f} %")
    pair = ("attention_preserving", "finetuning")
    tuned = [run for run in runs if run["kind"] in pair]
    print(verdict("competitive on the letters", tuned, *pair, lambda run: run["letters"], MARGIN))
    for way in ("linear", "finetuning"):
        print(verdict(f"a better start for other tasks, {way}", tuned, *pair, mean_over_others(way)))
        print(
            verdict(f"it keeps what pre-training is worth, {way}", runs, pair[0], "pretrained", mean_over_others(way))
        )


if __name__ == "__main__":
    main()
