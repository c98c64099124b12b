"""SLCA and LAE against the nearest class mean and plain fine-tuning, on digits that come two classes at a time.

    python recipes/vit-pictures/learners.py [--seeds 0 1 2]

For every seed a small masked autoencoder is pre-trained on all built-in pictures without labels; its encoder, kept in
out/vit-pictures/backbones, is the backbone of all four. Every run is kept in learners.json; one that stands there is
not done again. Prints the accuracy over the classes seen so far (final, and mean over the tasks), and for each claim
the mean paired difference with its 95 % interval and a verdict. The settings are those of the published codes where
these say them; none was searched for.
"""

import argparse

from paired import HERE, complete, train, verdict

from hf_infinite_lr.evaluation import mean_and_half_width
from hf_infinite_lr.metrics import summary

RECIPE, RESULTS = HERE / "infinite.yaml", HERE / "learners.json"
LAE_LORA = {"r": 5, "lora_alpha": 5, "target_modules": ["k_proj", "v_proj"], "layers_to_transform": [0, 1, 2, 3]}
SETTINGS = {
    "finetuning": {},
    "nearest_class_mean": {"methods": {"nearest_class_mean": {}}, "task_steps": [4]},
    "slca": {"methods": {"slca": {}}, "optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.01},
    "lae": {"methods": {"lae": {}}, "lora": LAE_LORA, "learning_rate": 2.8e-3},
}
METRICS = ("final_average", "average_incremental")


def measure(kind, seed, folder, backbone):
    """The task matrix of accuracies of one learner, and what it cost."""
    trainer = train(RECIPE, folder, seed, model_name_or_path=backbone, **SETTINGS[kind])
    matrix = trainer.record.matrices["accuracy"]
    return {
        "matrix": matrix.to_dict(),
        **{name: summary(matrix)[name] for name in METRICS},
        "train_seconds_on_one_core": round(trainer.record.train_seconds, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs = complete(RESULTS, list(SETTINGS), parser.parse_args().seeds, measure)
    for kind in SETTINGS:
        found = [mean_and_half_width([100 * run[name] for run in runs if run["kind"] == kind]) for name in METRICS]
        final, mean = (f"{value:.1f} ± {half:.1f}" for value, half in found)
        print(f"{kind:18} accuracy after the last task {final} %, mean over the tasks {mean} %")
    for name in METRICS:
        for learner in ("slca", "lae"):
            for baseline in ("nearest_class_mean", "finetuning"):
                claim = f"{learner} above {baseline}, {name}"
                print(verdict(claim, runs, learner, baseline, lambda run, name=name: run[name]))


if __name__ == "__main__":
    main()
