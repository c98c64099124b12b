"""Bad input is refused before the first step, in one sentence that names field, value and rule."""

import re

import pytest
from torch.utils.data import IterableDataset
from transformers import Trainer

from hf_infinite_lr.config import ContinualArguments, ContinualTrainingArguments
from hf_infinite_lr.stream import Task
from hf_infinite_lr.trainer import ContinualMixin, ContinualTrainer
from hf_infinite_lr.trainer.engine_rules import check_deepspeed

INFINITE = {"num_cooldown_steps": 2, "num_anneal_steps": 2}


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(range(5))


def refused(tiny, tmp_path, message, tasks=None, **changes):
    with pytest.raises(ValueError, match=message) as caught:
        tiny.trainer(tmp_path / "out", tasks, **changes).train()
    text = str(caught.value)
    assert "\n" not in text
    assert text.rstrip().endswith((".", "?", ")"))
    assert not (tmp_path / "out" / "continual_state.json").exists()
    assert not list(tmp_path.glob("out/checkpoint-*"))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_aneal_steps": 2}, r"num_aneal_steps=2 .*did you mean num_anneal_steps\?"),
        ({"num_decay_steps": 2}, r"num_decay_steps=2 .*here it is num_anneal_steps"),
        ({"decay_type": "linear"}, r"decay_type='linear' .*anneal_type"),
        ({"num_stable_steps": 2}, r"num_stable_steps=2 "),
        ({"warmup_ratio": 0.1}, r"warmup_ratio=0\.1 .*warmup_steps"),
        ({"cooldown_iters_perc": 0.3}, r"cooldown_iters_perc=0\.3 .*num_cooldown_steps"),
        ({"min_lr_rate": 0.1}, r"min_lr_rate=0\.1 .*min_lr_ratio"),
        ({"constant_lr": 1e-3, "constant_lr_ratio": 0.5}, r"constant_lr_ratio=0\.5 and constant_lr=0\.001 "),
        ({"min_lr": 1e-4, "min_lr_ratio": 0.1}, r"min_lr_ratio=0\.1 and min_lr=0\.0001 "),
        ({"min_lr": -1e-4}, r"min_lr=-0\.0001 must not be negative"),
        ({"constant_lr_ratio": 0}, r"constant_lr_ratio=0 must be above 0"),
        ({"constant_lr": 0}, r"constant_lr=0 must be above 0"),
        ({"constant_lr_ratio": 1.5}, r"constant_lr_ratio=1\.5 must not be above the peak"),
        ({"min_lr_ratio": 0.9}, r"min_lr_ratio=0\.9 must not be above the constant"),
        (
            {"min_lr_ratio": 0},
            r"min_lr_ratio=0 cannot be reached by anneal_type='exponential'.*linear, cosine, 1-sqrt",
        ),
        ({"num_anneal_steps": 1.0}, r"num_anneal_steps=1\.0 "),
        ({"num_cooldown_steps": -1}, r"num_cooldown_steps=-1 "),
        ({"num_cooldown_steps": 0}, r"num_cooldown_steps=0 requires a constant_lr_ratio of 1"),
        ({"num_anneal_steps": 20}, r"num_anneal_steps.*20"),
        ({"num_cooldown_steps": 5}, r"2 \+ 5|2.*5.*2.*8"),
        ({"anneal_type": "quadratic"}, r"anneal_type='quadratic' must be one of"),
        ({"cooldown_type": "log"}, r"cooldown_type='log' must be one of"),
        ({"timescale": 0}, r"timescale=0 "),
        ({"task_steps": 5}, r"task_steps=5 does not belong here"),
        ({"on_resume": "perhaps"}, r"on_resume='perhaps' must be one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_schedule_arguments(tiny, tmp_path, kwargs, message):
    given = {key: value for key, value in INFINITE.items() if key not in kwargs}
    refused(tiny, tmp_path, message, lr_scheduler_kwargs={**given, **kwargs})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate=0\.0 must be above 0"),
        ({"learning_rate": -1e-3}, r"learning_rate=-0\.001 "),
        ({"learning_rate": float("nan")}, r"learning_rate=nan "),
        ({"task_steps": [3]}, r"task.*3"),
        ({"task_steps": [5, 5]}, r"task_steps=\[5, 5\] has 2 entries for 3 tasks"),
        ({"task_steps": [0, 1, 1]}, r"task_steps=0 must be an integer of 1 or more"),
        ({"task_steps": [True, 1, 1]}, r"task_steps=True must be an integer"),
        ({"task_steps": ["8"]}, r"task_steps='8' must be an integer"),
        ({"num_train_epochs": 0.01}, r"'a': 0\.01 epochs of 67 samples are less than one global batch of 8"),
        ({"per_device_train_batch_size": 70}, r"'a' has 67 samples, less than one global batch of 70"),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 20}, r"less than one global batch of 80"),
        ({"anneal_budget": "both"}, r"anneal_budget='both' must be one of within, extra"),
        ({"release": "all"}, r"release='all' must be one of each, last, none"),
        ({"rewind": "optimizer"}, r"rewind='optimizer' must be one of full, weights, none"),
        ({"rewind": "none", "anneal_budget": "extra"}, r"anneal_budget='extra' with rewind='none'"),
        ({"evaluate_on": "some"}, r"evaluate_on='some' must be one of all, seen, current, none"),
        ({"replay_fraction": 1.0}, r"replay_fraction=1\.0 must be a number of at least 0 and below 1"),
        ({"replay_fraction": "0.1"}, r"replay_fraction='0\.1' must be a number"),
        ({"replay_fraction": -0.1}, r"replay_fraction=-0\.1 must be"),
        ({"replay_fraction": float("nan")}, r"replay_fraction=nan must be"),
        ({"embedding_learning_rate": float("inf")}, r"embedding_learning_rate=inf must be a finite number"),
        ({"embedding_learning_rate": "1e-4"}, r"embedding_learning_rate='1e-4' must be a finite number"),
        ({"save_only_model": True}, r"save_only_model=True cannot be used"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4}, r"load_best_model_at_end=True"),
        ({"save_strategy": "best", "metric_for_best_model": "a_loss"}, r"save_strategy='best' cannot be used"),
        ({"metric_for_best_model": "loss"}, r"metric_for_best_model='loss' must be of .* such as eval_a_loss"),
        (
            {"metric_for_best_model": "eval_b_loss", "evaluate_on": "seen"},
            r"metric_for_best_model='eval_b_loss' must be of a column that is always evaluated, such as eval_a_loss",
        ),
        ({"metric_for_best_model": "a_loss", "evaluate_on": "none"}, r"and evaluate_on='none' has none"),
        ({"auto_find_batch_size": True}, r"auto_find_batch_size=True cannot be used"),
        ({"ignore_data_skip": True}, r"ignore_data_skip=True cannot be used"),
        ({"enable_jit_checkpoint": True}, r"enable_jit_checkpoint=True cannot be used"),
        ({"accelerator_config": {"split_batches": True}}, r"accelerator_config\.split_batches=True cannot be used"),
        ({"accelerator_config": {"dispatch_batches": True}}, r"accelerator_config\.dispatch_batches=True cannot"),
        ({"train_sampling_strategy": "group_by_length"}, r"train_sampling_strategy='group_by_length' cannot be used"),
        ({"push_to_hub": True, "release": "none"}, r"push_to_hub=True with release='none' .* publishes nothing"),
        ({"push_to_hub": True, "hub_model_id": "a/b/c"}, r"hub_model_id='a/b/c' must be a name on the Hub"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {}, "eval_strategy": "epoch"},
            r"lr_scheduler_type='reduce_lr_on_plateau' cannot be used",
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_training_arguments(tiny, tmp_path, setting, message):
    refused(tiny, tmp_path, message, **setting)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda rows: [], r"train_dataset is empty"),
        (lambda rows: {}, r"train_dataset is empty"),
        (lambda rows: {"a": rows, "b": rows.select([])}, r"'b': its dataset is empty"),
        (lambda rows: {"a": rows, "b": rows.select(range(5))}, r"'b' has 5 samples, less than one global batch of 8"),
        (lambda rows: {"Web 1": rows, "web-1": rows}, r"'Web 1' and 'web-1' are the same \('web-1'\)"),
        (lambda rows: [Task("a", rows), Task("a", rows)], r"'a' and 'a' are the same"),
        (lambda rows: {"..": rows}, r"Task\.name='\.\.' must contain at least one letter or digit"),
        (lambda rows: {1: rows}, r"Task\.name=1 "),
        (lambda rows: [Task("a", rows, num_steps=4, num_epochs=1)], r"num_steps=4 and num_epochs=1"),
        (lambda rows: [Task("a", rows, num_steps=0)], r"num_steps=0 must be a whole number above 0"),
        (lambda rows: [Task("a", rows, num_steps=True)], r"num_steps=True must be a whole number above 0"),
        (lambda rows: [Task("a", rows, num_steps="9")], r"num_steps='9' must be a whole number above 0"),
        (lambda rows: [Task("a", rows, num_epochs=-1)], r"num_epochs=-1 must be"),
        (lambda rows: [Task("a", rows, num_epochs="2")], r"num_epochs='2' must be"),
        (lambda rows: [Task("a", rows, num_epochs=float("inf"))], r"num_epochs=inf must be"),
        (
            lambda rows: [Task("a", rows, num_epochs=0.01)],
            r"0\.01 epochs of 67 samples are less than one global batch",
        ),
        (lambda rows: [Task("s", Numbers())], r"'s' is a streaming dataset without a length.*num_steps"),
        (lambda rows: [Task("s", Numbers(), num_epochs=2)], r"'s' is a streaming dataset without a length"),
        (lambda rows: rows, r"for one dataset write \[dataset\]"),
        (lambda rows: None, r"train_dataset of type NoneType must be a list"),
        (lambda rows: [None], r"'task-1'"),
        (lambda rows: [Task("a", rows, num_steps=2)], r"'?a'?.*2|warm-up.*2"),
    ],
)
def test_tasks(tiny, tmp_path, make, message):
    rows, args = tiny.data("a")["a"], tiny.trainer(tmp_path, tiny.data("a"), evaluate_on="none").args
    with pytest.raises(ValueError, match=message):
        ContinualTrainer(model=tiny.model(), args=args, train_dataset=make(rows), data_collator=tiny.Collator())


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (lambda rows: {"a": rows}, r"Task 'b' has no eval_dataset.*evaluate_on='none'"),
        (lambda rows: None, r"Task 'a' has no eval_dataset"),
        (lambda rows: {"a": rows, "b": rows.select([])}, r"The eval_dataset of 'b' is empty, so that it would have"),
        (lambda rows: {"a": rows, "b": rows, "general": []}, r"The eval_dataset of 'general' is empty"),
        (lambda rows: rows, r"eval_dataset of type Dataset must be a dict name -> dataset"),
        (lambda rows: [rows], r"eval_dataset is a list of 1 datasets for 2 tasks"),
        (lambda rows: {"a": rows, "b": rows, "A!": rows}, r"'a' and 'A!' are the same"),
        (lambda rows: {"a": rows, "b": rows, "": rows}, r"''"),
    ],
)
def test_held_out_data(tiny, tmp_path, held_out, message):
    refused(tiny, tmp_path, message, tiny.data("ab"), eval_dataset=held_out(tiny.rows(4, 0)))


def test_held_out_data_given_twice(tiny, tmp_path):
    tasks, held_out = [Task("a", tiny.data("a")["a"], tiny.rows(4, 0))], {"a": tiny.rows(4, 1)}
    message = r"Task 'a' has an eval_dataset of its own, and eval_dataset=\{'a': ...\} names another: give one of them"
    refused(tiny, tmp_path, message, tasks, eval_dataset=held_out)


def test_plain_training_arguments_are_refused(tiny, tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(ValueError, match="args of type TrainingArguments must be ContinualTrainingArguments"):
        ContinualTrainer(model=tiny.model(), args=TrainingArguments(str(tmp_path)), train_dataset=tiny.data("a"))
    with pytest.raises(ValueError, match="args of type NoneType must be ContinualTrainingArguments"):
        ContinualTrainer(model=tiny.model(), train_dataset=tiny.data("a"))


def test_a_scheduler_object_is_refused(tiny, tmp_path):
    import torch

    made = tiny.trainer(tmp_path, tiny.data("a"))
    optimizer = torch.optim.SGD(made.model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ValueError, match="optimizers: a scheduler object cannot be used"):
        ContinualTrainer(
            model=made.model,
            args=made.args,
            train_dataset=tiny.data("a"),
            eval_dataset={"a": tiny.rows(4, 0)},
            optimizers=(optimizer, scheduler),
        )


@pytest.mark.parametrize("name", ["get_train_dataloader", "_get_train_sampler", "_inner_training_loop"])
def test_a_host_that_serves_its_own_data_is_refused_by_name(tiny, tmp_path, name):
    host = type("OwnLoader", (Trainer,), {name: lambda self, *args, **kwargs: None})
    continual = type("Continual", (ContinualMixin, host), {})
    message = rf"ContinualMixin cannot work over OwnLoader: it replaces Trainer\.{name}"
    refused(tiny, tmp_path, message, tiny.data("a"), cls=continual)


def test_a_host_that_is_no_trainer_is_refused(tiny, tmp_path):
    refused(tiny, tmp_path, r"Lone: ContinualMixin works over transformers\.Trainer", tiny.data("a"),
            cls=type("Lone", (ContinualMixin,), {}))  # fmt: skip


def test_a_scheduler_in_the_deepspeed_configuration_is_refused(tiny, tmp_path):
    args = tiny.trainer(tmp_path, tiny.data("a")).args
    configuration = {"zero_optimization": {"stage": 2}, "gradient_clipping": "auto"}
    check_deepspeed(configuration, args)
    configuration["scheduler"] = {"type": "WarmupLR"}
    with pytest.raises(ValueError, match=r"deepspeed: the key 'scheduler' .*lr_scheduler_type='infinite'; remove it"):
        check_deepspeed(configuration, args)


def test_a_checkpoint_that_is_none_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"resume_from_checkpoint='.*nowhere' is not a whole checkpoint"):
        tiny.trainer(tmp_path, tiny.data("a")).train(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ContinualArguments.__dataclass_fields__)
def test_every_continual_argument_has_help(name):
    """`HfArgumentParser` shows it; the docstring names it too."""
    assert ContinualArguments.__dataclass_fields__[name].metadata["help"]
    assert re.search(rf"\n +{name} \(", ContinualArguments.__doc__)


@pytest.mark.parametrize(("given", "kept"), [(500.0, 500), (1.0, 1), (0.0, 0), (3, 3), (0.5, 0.5)])
def test_a_parser_that_makes_floats_of_steps_is_understood(tmp_path, given, kept):
    value = ContinualTrainingArguments(str(tmp_path), warmup_steps=given).warmup_steps
    assert (value, type(value)) == (kept, type(kept))


def test_a_subclass_that_replaces_what_the_stream_is_served_through_is_refused(tiny, tmp_path):
    class OwnLoader(ContinualTrainer):
        def get_train_dataloader(self):
            return []

    with pytest.raises(ValueError, match=r"cannot work under OwnLoader: it replaces Trainer\.get_train_dataloader"):
        tiny.trainer(tmp_path, cls=OwnLoader)


def test_a_loss_under_which_a_method_has_no_effect_ends_the_run_at_once(tiny, tmp_path):
    class OwnLoss(ContinualTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    trainer = tiny.trainer(tmp_path, cls=OwnLoss, methods={"lwf": {}}, evaluate_on="none", eval_dataset={})
    with pytest.raises(ValueError, match=r"methods\.lwf has no effect under OwnLoss\.compute_loss"):
        trainer.train()
    assert trainer.state.global_step <= 1
