"""A tiny model, tiny tasks and a tiny run, shared by the tests of continual training (fixture `tiny`)."""

import gc
import os
import sys

import datasets
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from hf_infinite_lr.config import ContinualTrainingArguments
from hf_infinite_lr.trainer import ContinualTrainer, mixin, publishing

# Models of a few thousand parameters are faster on one thread, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

PEAK = 1e-2
TASK_STEPS = {"a": 8, "b": 6, "c": 7}
BATCH = 8

# Runs of a few steps leave no report, here and in the scripts that tests start: pictures take longer than they.
REPORTS = mixin.write_report, publishing.write_report_of
mixin.write_report = publishing.write_report_of = lambda *given: None


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    """Runs of a test marked `pictures` do leave a report."""
    if "pictures" in request.keywords:
        monkeypatch.setattr(mixin, "write_report", REPORTS[0])
        monkeypatch.setattr(publishing, "write_report_of", REPORTS[1])


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: what is left for the end is short, and the workers end together."""
    slow = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish(session):
    """Trainer ends each run with a garbage collection, which need not look through all that is imported each time."""
    gc.freeze()


def rows(num_samples, seed, first_id=0):
    """Samples with an id that no other sample of a test has."""
    tokens = np.random.RandomState(seed).randint(0, 30, (num_samples, 8)).tolist()
    return datasets.Dataset.from_dict({"input_ids": tokens, "id": list(range(first_id, first_id + num_samples))})


def model(dropout=0.1):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32, max_position_embeddings=16, attention_dropout=dropout, **sizes)
    return LlamaForCausalLM(config)


class Collator:
    """Notes the ids of each batch, and adds noise of its own unless told otherwise."""

    def __init__(self, noise=True):
        self.noise, self.ids = noise, []

    def __call__(self, samples):
        self.ids.append([sample["id"] for sample in samples])
        tokens = torch.tensor([list(sample["input_ids"]) for sample in samples])
        if self.noise:
            tokens = tokens + torch.randint(0, 2, tokens.shape) + np.random.randint(0, 2)
        return {"input_ids": tokens, "labels": tokens}


class Watch(TrainerCallback):
    """The rate of every update, every log, and an exception at the beginning of one step."""

    def __init__(self, stop_at=None):
        self.stop_at, self.rates, self.logs = stop_at, {}, []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.stop_at:
            raise InterruptedError

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates[state.global_step] = optimizer.param_groups[0]["lr"]

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append({**logs, "step": state.global_step})


def data(names="abc", steps=None):
    """One task a letter: whole batches and a remainder of 3 samples."""
    lengths = TASK_STEPS if steps is None else steps
    return {name: rows(lengths[name] * BATCH + 3, ord(name), 1000 * ord(name)) for name in names}


def trainer(output_dir, tasks=None, *, stop_at=None, noise=True, dropout=0.1, cls=ContinualTrainer, **changes):
    tasks = data() if tasks is None else tasks
    names = list(tasks) if isinstance(tasks, dict) else [f"task-{n}" for n in range(1, len(tasks) + 1)]
    given = {
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": 16,
        "learning_rate": PEAK,
        "warmup_steps": 2,
        "lr_scheduler_kwargs": {"num_cooldown_steps": 2, "num_anneal_steps": 2},
        "logging_steps": 1,
        "save_steps": 4,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    made = {key: changes.pop(key) for key in ("eval_dataset", "callbacks") if key in changes}
    watch = Watch(stop_at)
    held_out = {name: rows(8, 7 + place, 9_000_000) for place, name in enumerate([*names, "general"])}
    continual = cls(
        model=model(dropout),
        args=ContinualTrainingArguments(str(output_dir), **{**given, **changes}),
        train_dataset=tasks,
        eval_dataset=made.get("eval_dataset", held_out),
        data_collator=Collator(noise),
        callbacks=[watch, *made.get("callbacks", ())],
    )
    continual.watch = watch
    return continual


def run(output_dir, tasks=None, *, resume=None, **changes):
    continual = trainer(output_dir, tasks, **changes)
    try:
        continual.train(resume)
    except InterruptedError:
        assert continual.watch.stop_at is not None
    return continual


def weights(directory):
    """The stored weights of a checkpoint or release."""
    from safetensors.torch import load_file

    return load_file(f"{directory}/model.safetensors")


def same_tensors(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same_end(one, other):
    """Whether two runs ended with the same weights, optimizer and scores, bit for bit."""
    return same_model(one, other) and one.record.matrices == other.record.matrices


def same_model(one, other):
    """Whether two runs ended with the same weights and optimizer, bit for bit."""
    moments = [
        [value for state in run.optimizer.state_dict()["state"].values() for value in state.values()]
        for run in (one, other)
    ]
    return (
        same_tensors(one.model.state_dict(), other.model.state_dict())
        and len(moments[0]) == len(moments[1]) > 0
        and all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    )


@pytest.fixture(scope="session")
def tiny():
    torch.set_num_threads(1)
    return sys.modules[__name__]
