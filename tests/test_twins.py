"""Runs under our schedules against the same settings under transformers' own names: the same losses, step by step."""

import pytest
from transformers import Trainer, TrainingArguments

import hf_infinite_lr  # noqa: F401  # registers the schedules for the plain Trainer

WSD = {"num_cooldown_steps": 0, "constant_lr_ratio": 1, "num_anneal_steps": 8, "anneal_type": "linear", "min_lr": 0.0}
TWINS = {
    "cosine": (("cosine_rewarm", {"min_lr": 0.0}), ("cosine", {})),
    "cosine with a floor": (
        ("cosine_rewarm", {"min_lr_ratio": 0.1}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ),
    "warmup-stable-decay": (
        ("infinite", WSD),
        ("warmup_stable_decay", {"num_decay_steps": 8, "decay_type": "linear"}),
    ),
}
STEPS = 24


def plain(tiny, folder, name, kwargs):
    watch = tiny.Watch()
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=tiny.BATCH,
        learning_rate=tiny.PEAK,
        max_steps=STEPS,
        warmup_steps=4,
        lr_scheduler_type=name,
        lr_scheduler_kwargs=kwargs,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    data = tiny.rows(STEPS * tiny.BATCH, 0)
    Trainer(tiny.model(), args, data_collator=tiny.Collator(), train_dataset=data, callbacks=[watch]).train()
    return watch


def continual(tiny, folder, name, kwargs):
    task = {"a": tiny.rows(STEPS * tiny.BATCH, 0)}
    run = tiny.run(folder, task, warmup_steps=4, lr_scheduler_type=name, lr_scheduler_kwargs=kwargs)
    return run.watch


@pytest.mark.parametrize("host", [plain, continual])
@pytest.mark.parametrize("twin", TWINS)
def test_losses_are_those_of_transformers_own_schedule(twin, host, tiny, tmp_path):
    ours, theirs = (host(tiny, tmp_path / name, name, kwargs) for name, kwargs in TWINS[twin])
    losses, expected = ([log["loss"] for log in watch.logs if "loss" in log] for watch in (ours, theirs))
    assert len(losses) == STEPS
    assert losses == pytest.approx(expected, abs=1e-6)
    assert len(set(ours.rates.values())) > STEPS // 3, "the rate moves"
    assert ours.rates == pytest.approx(theirs.rates, abs=1e-9)
