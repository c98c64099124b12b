"""SLCA and LAE against the nearest class mean and plain fine-tuning, on digits that come two classes at a time.

    python recipes/vit-pictures/learners.py [--seeds 0 1 2 3 4]

**Protocol.** For every seed a small masked autoencoder is pre-trained on the training parts of all built-in pictures
without labels; its encoder, kept in out/vit-pictures/backbones, is the backbone of all arms. A seed also decides which
classes come together, the head and the order of samples. All arms see the same tasks for the same number of updates at
the same batch under the same schedule; only the nearest class mean trains nothing. Losses compare the classes of the
present task alone in every arm, plain fine-tuning included, as the published codes of SLCA and LAE do; predictions are
over all classes seen so far.

Settings are those of the published codes where these say them, scaled down where the model is smaller (LAE's adapter
on all four blocks of four), and the learning rate, on which all depend, is searched for: three rates, each four times
the one before, for each arm that trains, on another seed, on three quarters of the training part, scored on its last
quarter by the final accuracy. SLCA's rates begin at its published one of 0.01 and LAE's surround its published 0.0028,
because both were made for many times more updates; the ratio of SLCA's two rates (a hundredth for the backbone) stays.

The verdicts are on the accuracy after the last task and on its mean over the tasks (average incremental): `holds`
where the 95 % interval of the paired difference over the seeds lies above 0, `contradicted` where it lies below.
results_page.py makes README.md of the results.
"""

from paired import HERE, RECIPE, Claim, Comparison, entry, main, pretrained, train

from hf_infinite_lr.metrics import summary

METRICS = {"final_average": "after the last task", "average_incremental": "mean over the tasks"}
_LORA = {"r": 5, "lora_alpha": 5, "target_modules": ["k_proj", "v_proj"], "layers_to_transform": [0, 1, 2, 3]}
SETTINGS = {
    "finetuning": {},
    "nearest_class_mean": {"methods": {"nearest_class_mean": {}}, "task_steps": [4]},
    "slca": {"methods": {"slca": {}}, "optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 5e-4},
    "lae": {"methods": {"lae": {}}, "lora": _LORA},
}
RATES = {
    "finetuning": (5e-5, 2e-4, 8e-4),
    "nearest_class_mean": (),
    "slca": (0.01, 0.04, 0.16),
    "lae": (7e-4, 2.8e-3, 1.12e-2),
}


def measure(arm, rate, seed, purpose, folder):
    """The task matrix of accuracies of one arm and its averages."""
    split = {"kind": "class", "num_tasks": 5, "seed": seed}
    changes = {**SETTINGS[arm], **({} if rate is None else {"learning_rate": rate})}
    tasks = [{**entry("digits", purpose), "split_into": split}]
    trainer = train(RECIPE, folder, seed, tasks=tasks, model_name_or_path=pretrained(seed), **changes)
    matrix = trainer.record.matrices["accuracy"]
    numbers = {name: summary(matrix)[name] for name in (*METRICS, "average_right_after_learning")}
    return {"tasks": list(matrix.tasks), "matrix": matrix.to_dict()["matrix"], **numbers}


CLAIMS = [
    Claim(f"`{learner}` is better than `{baseline}`, {words}", learner, baseline, name)
    for name, words in METRICS.items()
    for learner in ("slca", "lae")
    for baseline in ("nearest_class_mean", "finetuning")
]
LEARNERS = Comparison(HERE / "learners.json", RATES, "final_average", measure, CLAIMS)

if __name__ == "__main__":
    main(LEARNERS, __doc__)
