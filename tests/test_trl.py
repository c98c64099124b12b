"""The mixin over TRL's SFTTrainer: raw text, prepared task by task by SFT's own code."""

from dataclasses import dataclass

import datasets
import pytest
import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from hf_infinite_lr.config import ContinualArguments
from hf_infinite_lr.trainer import ContinualMixin

pytestmark = [
    # SFTConfig turns on an option that transformers has renamed.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    # SFT ends every text with the end-of-sequence token, as ByT5's tokenizer does too.
    pytest.mark.filterwarnings("ignore:This sequence already has </s>:UserWarning"),
]
ON_CPU = {"use_cpu": True, "bf16": False}


@dataclass
class ContinualSFTConfig(ContinualArguments, SFTConfig): ...


class ContinualSFTTrainer(ContinualMixin, SFTTrainer):
    def prepare_task_dataset(self, dataset, name):
        args = self.args
        return self._prepare_dataset(
            dataset,
            self.processing_class,
            args,
            args.packing,
            formatting_func=None,
            dataset_name=name,
        )


def text(word, count=20):
    return datasets.Dataset.from_dict({"text": [f"{word} number {number}" for number in range(count)]})


def trainer(output_dir, **changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=400, eos_token_id=1, pad_token_id=0, **sizes))
    given = {
        "lr_scheduler_type": "infinite",
        "lr_scheduler_kwargs": {"num_cooldown_steps": 1, "num_anneal_steps": 1},
        "warmup_steps": 1,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "max_length": 24,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 3,
        "report_to": "none",
        **ON_CPU,
        "disable_tqdm": True,
        "dataset_num_proc": None,
    }
    return ContinualSFTTrainer(
        model=model,
        args=ContinualSFTConfig(str(output_dir), **{**given, **changes}),
        train_dataset=[text("apple"), text("north", 12), text("wave")],
        eval_dataset={f"task-{number}": text(word, 4) for number, word in enumerate(("fig", "south", "sea"), start=1)},
        processing_class=ByT5Tokenizer(),
    )


def test_sft_learns_a_list_of_raw_text_datasets(tmp_path):
    done = trainer(tmp_path)
    assert all("input_ids" in task.dataset.column_names for task in done.stream.tasks)
    assert [task.num_steps for task in done.plan.tasks] == [5, 3, 5]
    done.train()
    assert done.state.global_step == 13
    assert sorted(path.name for path in (tmp_path / "releases").iterdir()) == ["01-task-1", "02-task-2", "03-task-3"]
    matrix = done.record.matrices["eval_loss"]
    assert all(isinstance(value, float) for row in (*matrix.matrix, matrix.baseline) for value in row)
    logged = [entry for entry in done.state.log_history if "loss" in entry]
    assert [entry["task"] for entry in logged] == ["task-1"] * 5 + ["task-2"] * 3 + ["task-3"] * 5
    assert all("mean_token_accuracy" in entry for entry in logged)
    assert [entry["learning_rate"] for entry in logged] == [
        done.args.learning_rate * done.schedule(step) for step in range(13)
    ]


def test_sft_resumes_exactly(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    trainer(tmp_path / "parts", max_steps=6).train()
    rest = trainer(tmp_path / "parts")
    rest.train(True)
    assert rest.state.global_step == 13
    pairs = zip(rest.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert rest.record.matrices == whole.record.matrices


def test_the_mixed_arguments_keep_sfts_own_defaults(tmp_path):
    mixed, own = ContinualSFTConfig(str(tmp_path), **ON_CPU), SFTConfig(str(tmp_path), **ON_CPU)
    for name in ("learning_rate", "max_length", "packing", "logging_steps", "lr_scheduler_type"):
        assert getattr(mixed, name) == getattr(own, name)
    assert mixed.anneal_budget == "within"


def test_an_sft_trainer_with_a_loader_of_its_own_is_refused_by_name(tmp_path):
    class OwnLoaderSFT(SFTTrainer):
        def get_train_dataloader(self):
            return super().get_train_dataloader()

    class Continual(ContinualMixin, OwnLoaderSFT): ...

    with pytest.raises(ValueError, match=r"cannot work over OwnLoaderSFT: it replaces Trainer\.get_train_dataloader"):
        Continual(model=None, args=ContinualSFTConfig(str(tmp_path), **ON_CPU), train_dataset=[text("apple")])
