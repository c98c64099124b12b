import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hf_infinite_lr import TrunkCheckpointCallback
from hf_infinite_lr.lr_scheduler import ScheduleLR

LR = 1e-2


class Counting(Dataset):
    def __len__(self):
        return 400

    def __getitem__(self, index):
        tokens = torch.arange(index % 7, index % 7 + 8)
        return {"input_ids": tokens, "labels": tokens}


def tiny_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, num_attention_heads=2, num_key_value_heads=2, **sizes))


class Rates(TrainerCallback):
    """The rate that each update was made with."""

    def __init__(self):
        self.rates = {}

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates[state.global_step] = optimizer.param_groups[0]["lr"]


def train(output_dir, resume=None, callbacks=(), **changes):
    given = {
        "lr_scheduler_type": "infinite",
        "lr_scheduler_kwargs": {},
        "learning_rate": LR,
        "max_steps": 20,
        "warmup_steps": 2,
        "save_steps": 5,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    rates = Rates()
    trainer = Trainer(
        tiny_model(),
        TrainingArguments(output_dir, **{**given, **changes}),
        train_dataset=Counting(),
        eval_dataset=torch.utils.data.Subset(Counting(), range(2)),
        callbacks=[rates, *callbacks],
    )
    trainer.train(resume_from_checkpoint=resume and str(Path(output_dir) / resume))
    return trainer, rates.rates


def checkpoints(output_dir):
    return sorted(int(path.name.split("-")[1]) for path in Path(output_dir).glob("checkpoint-*"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 20 steps: warm-up to 2, cool-down to 9, constant to 16, annealing to 20."""
    output_dir = tmp_path_factory.mktemp("run")
    trainer, rates = train(output_dir, callbacks=[TrunkCheckpointCallback()])
    return output_dir, trainer, rates


def test_rates_and_the_branch_point(finished):
    output_dir, trainer, rates = finished
    assert isinstance(trainer.lr_scheduler, ScheduleLR)
    assert list(rates.values()) == [LR * trainer.lr_scheduler.schedule(step) for step in range(20)]
    assert rates[15] == pytest.approx(0.75 * LR)
    assert checkpoints(output_dir) == [5, 10, 15, 16, 20]


def test_resume_without_a_change(finished, tmp_path):
    output_dir, _, rates = finished
    _, resumed = train(output_dir, resume="checkpoint-10", save_strategy="no")
    assert resumed == {step: rates[step] for step in range(10, 20)}


def test_continue_keeps_the_rates(finished):
    output_dir, _, _ = finished
    _, resumed = train(output_dir, resume="checkpoint-16", save_strategy="no", max_steps=24, learning_rate=2 * LR)
    assert list(resumed.values()) == pytest.approx(
        [0.75 * LR] * 4 + [0.75 * LR * (0.1 / 0.75) ** (n / 4) for n in range(4)]
    )


def test_another_share_moves_a_phase_that_has_not_begun(finished):
    kwargs = {"num_anneal_steps": 0.1}
    _, resumed = train(finished[0], resume="checkpoint-10", save_strategy="no", lr_scheduler_kwargs=kwargs)
    assert list(resumed.values()) == pytest.approx([0.75 * LR] * 9 + [0.75 * LR * (0.1 / 0.75) ** 0.5])


def test_a_shortened_run_anneals_to_its_end(finished):
    _, resumed = train(finished[0], resume="checkpoint-10", save_strategy="no", max_steps=12)
    assert list(resumed.values()) == pytest.approx([0.75 * LR, 0.75 * LR * (0.1 / 0.75) ** 0.5])


def test_an_update_that_fp16_skipped_moves_no_phase(finished, tmp_path, monkeypatch):
    skipped = iter([False, True, True, *[False] * 17])
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda self: next(skipped)))
    _, rates = train(tmp_path, callbacks=[TrunkCheckpointCallback()], save_strategy="no")
    assert rates == finished[2]
    state = torch.load(tmp_path / "checkpoint-16" / "scheduler.pt", weights_only=True)
    assert state["last_epoch"] == 16


def test_another_schedule_is_refused_by_both_names(finished):
    message = r"lr_scheduler_type='cosine_rewarm': the checkpoint was trained with 'infinite'.*on_resume=override"
    with pytest.raises(ValueError, match=message):
        train(finished[0], resume="checkpoint-10", save_strategy="no", lr_scheduler_type="cosine_rewarm")


def test_another_schedule_rules_with_override(finished):
    kwargs = {"on_resume": "override", "num_tasks": 1}
    trainer, resumed = train(
        finished[0],
        resume="checkpoint-10",
        save_strategy="no",
        lr_scheduler_type="cosine_rewarm",
        lr_scheduler_kwargs=kwargs,
    )
    assert list(resumed.values()) == [LR * trainer.lr_scheduler.schedule(step) for step in range(10, 20)]


def test_continue_refuses_what_is_annealed(finished):
    with pytest.raises(
        ValueError, match=r"^checkpoint-20 is annealed \(rate 1.0e-3\); continue from checkpoint-16, or"
    ):
        train(finished[0], resume="checkpoint-20", max_steps=40)


def test_override_rules_from_the_first_update(finished):
    _, resumed = train(
        finished[0],
        resume="checkpoint-20",
        save_strategy="no",
        max_steps=40,
        learning_rate=2 * LR,
        lr_scheduler_kwargs={"on_resume": "override"},
    )
    assert [resumed[step] for step in range(20, 32)] == pytest.approx([0.75 * 2 * LR] * 12)


def test_anneal_starts_at_the_resumed_step(finished):
    kwargs = {"on_resume": "anneal", "num_anneal_steps": 4, "anneal_type": "linear"}
    _, resumed = train(finished[0], resume="checkpoint-10", save_strategy="no", lr_scheduler_kwargs=kwargs)
    expected = [LR * (0.75 - 0.65 * n / 4) for n in range(4)] + [0.1 * LR] * 6
    assert list(resumed.values()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"save_total_limit": 1}, [16, 20]),
        ({"save_total_limit": 2}, [15, 16, 20]),
        ({"save_strategy": "no"}, [16]),
        (
            # The model gets worse from the first evaluation on, so that nothing but the branch point and one is saved.
            {
                "save_strategy": "best",
                "eval_strategy": "steps",
                "eval_steps": 8,
                "metric_for_best_model": "loss",
                "greater_is_better": True,
            },
            [8, 16],
        ),
    ],
)
def test_the_branch_point_survives(tmp_path, changes, expected):
    trainer, _ = train(tmp_path, callbacks=[TrunkCheckpointCallback()], **changes)
    assert checkpoints(tmp_path) == expected
    assert (tmp_path / "checkpoint-16" / "optimizer.pt").exists()
    assert trainer.args.save_total_limit == changes.get("save_total_limit")
    assert trainer.args.save_strategy == changes.get("save_strategy", "steps")


def test_the_callback_leaves_other_schedules_alone(tmp_path):
    train(tmp_path, callbacks=[TrunkCheckpointCallback()], lr_scheduler_type="linear", save_strategy="no", max_steps=2)
    assert checkpoints(tmp_path) == []


def test_repeated_cosine(tmp_path):
    kwargs = {"num_tasks": 2, "min_lr": 0.0}
    trainer, rates = train(
        tmp_path, lr_scheduler_type="cosine_rewarm", lr_scheduler_kwargs=kwargs, save_strategy="no", max_steps=10
    )
    assert [rates[step] for step in (0, 1, 2, 5, 7)] == pytest.approx([0.0, LR / 2, LR, 0.0, LR])
    assert trainer.lr_scheduler.rate_at(10) == 0.0


def test_output_loads_without_the_plugin(finished):
    code = """
import sys, torch
from transformers import LlamaForCausalLM
folder = sys.stdin.read()
LlamaForCausalLM.from_pretrained(folder)
args = torch.load(folder + "/training_args.bin", weights_only=False)
state = torch.load(folder + "/scheduler.pt", weights_only=True)
assert not any(module.startswith("hf_infinite_lr") for module in sys.modules)
print(args.lr_scheduler_type, state["last_epoch"])
"""
    folder = str(finished[0] / "checkpoint-16")
    done = subprocess.run([sys.executable, "-c", code], input=folder, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["infinite", "16"]
    assert json.loads((finished[0] / "checkpoint-16" / "trainer_state.json").read_text())["global_step"] == 16


def test_bad_arguments_stop_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"num_decay_steps=5 .* here it is num_anneal_steps"):
        train(tmp_path, lr_scheduler_kwargs={"num_decay_steps": 5})
    assert not list(tmp_path.glob("checkpoint-*"))
