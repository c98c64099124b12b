"""Fine-tuning that preserves attention against plain fine-tuning: on its task, and as a start for other tasks.

    python recipes/vit-pictures/preserving.py [--seeds 0 1 2 3 4]

**Protocol.** For every seed a small masked autoencoder is pre-trained on the training parts of all built-in pictures
without labels (the same as in learners.py). Its encoder learns the 26 small letters in three ways, for as many updates
at the same batch under the same schedule: plainly; with `attention_preserving`; and with that method's adapter alone,
which tells what the penalty adds. The pre-trained encoder is measured beside them.

The two claims are those of the abstract of the GLAD paper (arXiv 2306.12026), whose equations are not known here:
competitive on the task (at most two points below plain fine-tuning), and a better start for other tasks: digits and
photographs, by a linear probe of the frozen features of all training images, and by fine-tuning on 300 images; the
mean of both domains counts. Linear probe and few-image fine-tuning have fixed settings, the same for all.

The learning rate is searched for: three rates for plain fine-tuning and three for `attention_preserving`, whose rate
its adapter alone takes, on another seed, on three quarters of the letters' training part, scored by the accuracy on
its last quarter alone; what the backbone is worth for other tasks takes no part in it. Rank and scale of the adapter
and the weight of the penalty were set beforehand.

`holds` where the 95 % interval of the paired difference over the seeds lies above 0 (minus the two points in the first
claim), `contradicted` where it lies below. results_page.py makes README.md of it.
"""

from string import ascii_lowercase

import numpy as np
import torch
from paired import HERE, RECIPE, Claim, Comparison, entry, main, pretrained, train
from torch import nn

from hf_infinite_lr.evaluation import linear_probe
from hf_infinite_lr.evaluation.finetuning import finetuned_predictions
from hf_infinite_lr.objectives.image_batches import ImageBatches
from hf_infinite_lr.objectives.image_source import ImageSource
from hf_infinite_lr.objectives.images import class_names, load_images
from hf_infinite_lr.objectives.model_source import ModelSource
from hf_infinite_lr.objectives.vit_model import build_vit, build_vit_config

UPDATES, FEW, EPOCHS, MARGIN = 300, 300, 8, 0.02
OTHERS = ("digits", "photos")
WAYS = {"linear": "linear probe", "finetuning": "fine-tuning on 300 images"}
_ADAPTER = {"lora": {"r": 16, "lora_alpha": 32, "target_modules": ["v_proj", "o_proj"]}, "merge_releases": True}
SETTINGS = {
    "finetuning": {},
    "attention_preserving": {
        "methods": {"attention_preserving": {"weight": 10.0}},
        "attn_implementation": "eager",
        **_ADAPTER,
    },
    "adapter_alone": _ADAPTER,
}
RATES = {
    "pretrained": (),
    "finetuning": (2e-4, 6e-4, 1.8e-3),
    "attention_preserving": (1.3e-3, 4e-3, 1.2e-2),
    "adapter_alone": "attention_preserving",
}
LETTERS = {"where": {"label": list(ascii_lowercase)}}


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
    """Of the class token, shape (images, width)."""
    return torch.cat([encoder(part)[:, 0] for part in images.split(128)]).numpy()


def encoder_of(path):
    """The backbone of a saved model."""
    torch.manual_seed(0)
    source = ModelSource(model_name_or_path=str(path))
    return Encoder(build_vit(source, build_vit_config(source), ["any"])).eval()


def worth(path):
    """Accuracies of a backbone on tasks that it was not fine-tuned for, and their means."""
    found = {}
    for name in OTHERS:
        (train_images, labels), (test_images, truth) = pictures(name)
        encoder = encoder_of(path)
        predicted = linear_probe(features(encoder, train_images), labels, features(encoder, test_images))
        found[f"{name}_linear"] = float(np.mean(predicted == truth))
        few = train_images[:FEW], labels[:FEW], test_images
        tuned = finetuned_predictions(encoder, encoder.vit.config.hidden_size, *few, num_epochs=EPOCHS)
        found[f"{name}_finetuning"] = float(np.mean(tuned == truth))
    means = {f"others_{way}": float(np.mean([found[f"{name}_{way}"] for name in OTHERS])) for way in WAYS}
    return {**found, **means}


def measure(arm, rate, seed, purpose, folder):
    """Accuracy on the letters, and what the backbone is worth for others."""
    if arm == "pretrained":
        return worth(pretrained(seed))
    changes = {"tasks": [entry("glyphs", purpose) | LETTERS], "task_steps": [UPDATES], "learning_rate": rate}
    trainer = train(RECIPE, folder, seed, model_name_or_path=pretrained(seed), **changes, **SETTINGS[arm])
    letters = {"letters": trainer.record.matrices["accuracy"].matrix[0][0]}
    if purpose == "search":
        return letters
    release = folder / "releases" / "01-glyphs"
    return {**letters, **worth(release / "merged" if "lora" in SETTINGS[arm] else release)}


_OURS, _PLAIN = "attention_preserving", "finetuning"
CLAIMS = [
    Claim(
        "competitive on its task with plain fine-tuning (at most two points below)", _OURS, _PLAIN, "letters", MARGIN
    )
]
for _way, _words in WAYS.items():
    _measure = f"others_{_way}"
    CLAIMS += [
        Claim(f"a better start for other tasks than plain fine-tuning, {_words}", _OURS, _PLAIN, _measure),
        Claim(f"a better start than its adapter without the penalty, {_words}", _OURS, "adapter_alone", _measure),
        Claim(f"at most two points below the pre-trained encoder, {_words}", _OURS, "pretrained", _measure, MARGIN),
    ]
PRESERVING = Comparison(HERE / "preserving.json", RATES, "letters", measure, CLAIMS)

if __name__ == "__main__":
    main(PRESERVING, __doc__)
