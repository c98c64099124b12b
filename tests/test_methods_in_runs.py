"""Methods inside a run: what they add, what is exact on resume, what is refused, and the two run modes."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from transformers import HfArgumentParser, TrainerCallback, ViTMAEConfig, ViTMAEForPreTraining

from hf_infinite_lr.cli.launch import Launch
from hf_infinite_lr.cli.memory import footprint
from hf_infinite_lr.config import ContinualTrainingArguments
from hf_infinite_lr.recipe import load_recipe
from hf_infinite_lr.stream import Task, mixture
from hf_infinite_lr.trainer import ContinualTrainer
from hf_infinite_lr.trainer.engine_rules import check_engine_of_methods

QUIET = {"evaluate_on": "none", "eval_dataset": {}}
HARD = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "save_total_limit": 1, "save_steps": 3}
BOTH = {"mas": {"num_samples": 5, "weight": 3.0}, "lwf": {"weight": 2.0}}


class Gradients(TrainerCallback):
    """The gradient of every update, as clipping has left it."""

    def __init__(self):
        self.of = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.of[state.global_step] = {name: weight.grad.clone() for name, weight in model.named_parameters()}


class Weights(TrainerCallback):
    """The weights before every update."""

    def __init__(self):
        self.of = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.of[state.global_step] = {name: weight.detach().clone() for name, weight in model.named_parameters()}


# ---- exact on resume ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "budget", "stop_at"),
    [
        (BOTH, "within", 10),
        (BOTH, "extra", 8),
        ({"fisher": {"weight": 50.0, "num_samples": 5}}, "extra", 12),
        ({"gdumb": {"buffer_size": 20}}, "within", 10),
        ({"joint": {}}, "within", 10),
    ],
    ids=str,
)
def test_a_killed_run_ends_as_an_undisturbed_one(tiny, tmp_path, methods, budget, stop_at):
    """Bit for bit, with dropout, a collator that draws and accumulation; killed inside and at the start of task 2."""
    settings = {**QUIET, **HARD, "methods": methods, "anneal_budget": budget}
    whole = tiny.run(tmp_path / "whole", tiny.data("ab"), **settings)
    tiny.run(tmp_path / "parts", tiny.data("ab"), stop_at=stop_at, **settings)
    resumed = tiny.run(tmp_path / "parts", tiny.data("ab"), resume=True, **settings)
    assert tiny.same_model(resumed, whole)
    assert resumed.watch.rates == {step: whole.watch.rates[step] for step in resumed.watch.rates}
    for release in (tmp_path / "whole" / "releases").iterdir():
        assert tiny.same_tensors(tiny.weights(release), tiny.weights(tmp_path / "parts" / "releases" / release.name))


def test_a_stream_with_an_open_end_goes_on_exactly(tiny, tmp_path):
    """Streaming tasks, of which importance reads the first samples a second time; the third comes later."""

    def tasks(names):
        rows = {name: tiny.rows(30, ord(name), 1000 * ord(name)).to_iterable_dataset(2) for name in names}
        return [Task(name, rows[name], num_steps=tiny.TASK_STEPS[name]) for name in names]

    settings = {**QUIET, **HARD, "methods": BOTH}
    whole = tiny.run(tmp_path / "whole", tasks("abc"), **settings)
    tiny.run(tmp_path / "parts", tasks("ab"), **settings)
    resumed = tiny.run(tmp_path / "parts", tasks("abc"), resume=True, **settings)
    assert tiny.same_model(resumed, whole)
    shutil.rmtree(tmp_path / "parts" / "releases" / "02-b")
    expected = tiny.weights(tmp_path / "whole" / "releases" / "02-b")
    again = tiny.trainer(tmp_path / "parts", tasks("abc"), **settings)
    release = again.anneal(tmp_path / "parts" / "trunk" / "02-b", again.plan.tasks[1].num_anneal_steps)
    assert tiny.same_tensors(tiny.weights(release), expected)  # the branch has the penalty and the teacher too


@pytest.mark.parametrize(
    ("methods", "trained", "frozen"),
    [
        ({"l2": {"weight": 0.1}}, 4, 0),
        ({"mas": {"num_samples": 3}}, 8, 0),
        ({"fisher": {"num_samples": 3, "weight": 5.0}, "lwf": {}}, 12, 4),
        ({"lwf": {}}, 4, 4),
        ({"gdumb": {"buffer_size": 40}}, 4, 4),
        ({"joint": {}}, 0, 0),
    ],
    ids=str,
)
def test_show_knows_what_methods_hold(tiny, tmp_path, methods, trained, frozen):
    run = tiny.trainer(tmp_path, tiny.data("ab"), methods=methods, save_strategy="no", **QUIET)
    empty = tiny.model().to("meta")
    for model in (run.model, empty):
        model.get_input_embeddings().requires_grad_(False)
    run.train()
    counted = footprint(empty, run.args, Launch("one process", 1))
    held = [part for method in run._methods for part in method.state().values()]
    assert counted.methods + counted.methods_on_machine == sum(part.nbytes for part in held)
    assert (counted.methods_on_machine > 0) == ("gdumb" in methods)
    sizes = [(weight.numel(), trained if weight.requires_grad else frozen) for weight in run.model.parameters()]
    buffers = sum(part.nbytes for part in run.model.buffers()) if frozen else 0
    assert sum(part.nbytes for part in held) == sum(number * size for number, size in sizes) + buffers
    alone = footprint(empty, ContinualTrainingArguments(str(tmp_path), use_cpu=True), Launch("one process", 1))
    assert counted.checkpoint - alone.checkpoint == sum(part.nbytes for part in held)


def test_the_state_is_part_of_checkpoints_and_trunks(tiny, tmp_path):
    tiny.run(tmp_path, **QUIET, methods=BOTH)
    manifest = json.loads((tmp_path / "trunk" / "02-b" / "manifest.json").read_text())
    assert manifest["files"]["methods.safetensors"]["bytes"] > 0
    (tmp_path / "trunk" / "02-b" / "methods.safetensors").unlink()
    with pytest.raises(ValueError, match=r"methods\.safetensors is missing"):
        tiny.trainer(tmp_path, **QUIET, methods=BOTH).train(str(tmp_path / "trunk" / "02-b"))


def test_other_methods_than_the_checkpoint_are_refused_once_they_act(tiny, tmp_path, caplog):
    settings, l2 = {**QUIET, "save_steps": 3, "max_steps": 11}, {"l2": {"weight": 0.5}}
    tiny.run(tmp_path / "early", stop_at=5, **settings)
    done = tiny.run(tmp_path / "early", resume=True, methods=l2, **settings)
    whole = tiny.run(tmp_path / "whole", methods=l2, **settings)
    assert tiny.same_model(done, whole)
    message = r"methods=\['mas'\] were \['l2'\] up to the checkpoint at step 11.*keep them, or resume from before"
    settings["max_steps"] = 12
    with pytest.raises(ValueError, match=message):
        tiny.run(tmp_path / "whole", resume=True, methods={"mas": {}}, **settings)
    tiny.run(tmp_path / "whole", resume=True, methods={"l2": {"weight": 0.25}}, **settings)
    assert "methods.l2: {'weight': 0.5} -> {'weight': 0.25}" in caplog.text


# ---- what is added --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [8, 4])
def test_the_gradient_of_an_update_has_the_pull_once(tiny, tmp_path, micro_batch):
    """2 lambda (theta - theta*) at the second update of task 2, where both runs still have the same weights."""
    seen = {}
    for name, methods in (("plain", None), ("l2", {"l2": {"weight": 3.0}})):
        gradients, weights = Gradients(), Weights()
        tiny.run(
            tmp_path / name,
            noise=False,
            dropout=0.0,
            max_steps=10,
            max_grad_norm=0.0,
            callbacks=[gradients, weights],
            methods=methods,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=8 // micro_batch,
            **QUIET,
        )
        seen[name] = gradients.of, weights.of
    (without, there), (with_pull, same) = seen["plain"], seen["l2"]
    for name, start in there[8].items():
        assert torch.equal(there[9][name], same[9][name])
        assert torch.equal(without[8][name], with_pull[8][name])
        expected = 2 * 3.0 * (there[9][name] - start)
        assert torch.allclose(with_pull[9][name] - without[9][name], expected, atol=1e-6)
        assert expected.any()


def test_accumulation_changes_no_distillation(tiny, tmp_path):
    """The term is divided by the tokens of the whole batch, and logged beside the loss that holds it."""
    settings = {**QUIET, "noise": False, "dropout": 0.0, "methods": {"lwf": {"weight": 2.0}}}
    one = tiny.run(tmp_path / "one", **settings)
    parts = tiny.run(tmp_path / "parts", **settings, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    logs = [[entry for entry in done.watch.logs if "loss" in entry] for done in (one, parts)]
    for key in ("loss", "lwf_loss"):
        values = [[entry[key] for entry in entries if key in entry] for entries in logs]
        assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-6)
    assert [entry["step"] for entry in logs[0] if "lwf_loss" in entry] == list(range(9, 22))


def images(count, seed):
    pixels = np.random.RandomState(seed).randn(count, 3, 8, 8).astype(np.float32)
    return [{"pixel_values": torch.from_numpy(image)} for image in pixels]


def autoencoder():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    dropout = {"hidden_dropout_prob": 0.1}
    return ViTMAEForPreTraining(ViTMAEConfig(image_size=8, patch_size=2, **sizes, **decoder, **dropout))


def test_an_autoencoder_learns_with_the_same_line(tmp_path):
    """Its own random masks, exact on resume, and the first task as without methods."""

    def run(out, resume=None, max_steps=-1, **changes):
        args = ContinualTrainingArguments(
            str(tmp_path / out), per_device_train_batch_size=4, learning_rate=1e-3, warmup_steps=1, save_steps=2,
            lr_scheduler_kwargs={"num_cooldown_steps": 1, "num_anneal_steps": 1}, logging_steps=1, use_cpu=True,
            report_to="none", disable_tqdm=True, evaluate_on="none", max_steps=max_steps, **changes,
        )  # fmt: skip
        data = {name: images(16, ord(name)) for name in "ab"}
        made = ContinualTrainer(model=autoencoder(), args=args, train_dataset=data)
        made.train(resume)
        return made

    settings = {"methods": {"mas": {"num_samples": 3}, "lwf": {}}}
    plain, whole = run("plain"), run("whole", **settings)
    run("parts", max_steps=6, **settings)
    resumed = run("parts", resume=True, **settings)
    assert all(torch.equal(one, resumed.model.state_dict()[key]) for key, one in whole.model.state_dict().items())
    losses = [[entry["loss"] for entry in made.state.log_history if "loss" in entry] for made in (plain, whole)]
    assert losses[0][:4] == losses[1][:4]
    assert losses[0][4:] != losses[1][4:]
    assert whole.state.log_history[-2]["lwf_loss"] > 0
    assert whole.state.log_history[-2]["mas_penalty"] > 0


# ---- run modes ------------------------------------------------------------------------------------------------------


def test_joint_training_is_one_task_of_the_union(tiny, tmp_path):
    done = tiny.run(tmp_path, methods={"joint": {}}, num_train_epochs=2)
    plain = tiny.trainer(tmp_path / "plain", num_train_epochs=2)
    assert done.plan.num_steps == plain.plan.num_steps
    assert [task.name for task in done.plan.tasks] == ["joint"]
    usable = (sum(len(rows) for rows in tiny.data().values()) // 8) * 8
    first_pass = [row for batch in done.data_collator.ids for row in batch if row < 9_000_000][:usable]
    assert len(set(first_pass)) == usable
    assert {row // 1000 for row in first_pass[:16]} == {ord(name) for name in "abc"}
    matrix = json.loads((tmp_path / "task_matrix.json").read_text())
    assert matrix["tasks"] == ["a", "b", "c"]
    assert matrix["matrix"][:2] == [[None] * 4] * 2
    assert None not in matrix["matrix"][2]
    state = json.loads((tmp_path / "continual_state.json").read_text())
    assert state["evaluate_also"] == ["general"]


def test_joint_training_of_streams_is_their_mixture(tiny, tmp_path):
    """Each by its steps, and exact on resume."""

    def tasks():
        rows = {name: tiny.rows(40, ord(name), 1000 * ord(name)).to_iterable_dataset() for name in "ab"}
        return [Task(name, rows[name], num_steps=steps) for name, steps in (("a", 12), ("b", 4))]

    settings = {**QUIET, **HARD, "methods": {"joint": {}}}
    whole = tiny.run(tmp_path / "whole", tasks(), **settings)
    assert whole.plan.num_steps == 16
    ids = [row for batch in whole.data_collator.ids for row in batch]
    first = sum(row // 1000 == ord("a") for row in ids)
    assert 0.6 < first / len(ids) < 0.9
    tiny.run(tmp_path / "parts", tasks(), stop_at=7, **settings)
    assert tiny.same_model(tiny.run(tmp_path / "parts", tasks(), resume=True, **settings), whole)


def test_run_modes_take_a_mixture_by_its_shares(tiny, tmp_path):
    web, code = tiny.rows(100, 1, 1000), tiny.rows(20, 2, 2000)
    tasks = {"mixed": mixture([web, code], [0.75, 0.25]), "b": tiny.rows(64, 3, 3000)}

    def counts(method, settings):
        made = tiny.trainer(tmp_path, tasks, methods={method: settings}, **QUIET)
        data = made.stream.tasks[-1].dataset
        ids = [data[row]["id"] for row in range(len(data))]
        assert len(set(ids)) == len(ids)
        return [sum(row // 1000 == part for row in ids) for part in (1, 2, 3)]

    assert counts("joint", {}) == [60, 20, 64]
    web_kept, code_kept, kept = counts("gdumb", {"buffer_size": 60})
    assert (web_kept + code_kept, kept) == (30, 30)
    assert code_kept > 2


@pytest.mark.pictures
def test_a_joint_run_has_a_report(tiny, tmp_path):
    tiny.run(tmp_path, methods={"joint": {}})
    assert "joint" in (tmp_path / "report" / "report.md").read_text()


def test_gdumb_starts_from_scratch_after_each_task(tiny, tmp_path):
    weights = Weights()
    done = tiny.run(tmp_path, methods={"gdumb": {"buffer_size": 18}}, callbacks=[weights], **QUIET)
    starts = [task.start_step for task in done.plan.tasks]
    assert starts == [0, 8, 14]
    assert all(tiny.same_tensors(weights.of[start], weights.of[0]) for start in starts)
    assert not tiny.same_tensors(weights.of[7], weights.of[0])
    assert all(done.watch.rates[start + 1] == tiny.PEAK / 2 for start in starts)
    for task, start in zip(done.plan.tasks, starts, strict=True):
        ids = {row for batch in done.data_collator.ids[start : task.end_step] for row in batch}
        assert len(ids) <= 18
        assert {row // 1000 for row in ids} == {ord(name) for name in "abc"[: task.index + 1]}


def test_gdumb_balances_classes(tiny, tmp_path):
    tasks = {name: rows.add_column("label", [n % 2 for n in range(len(rows))]) for name, rows in tiny.data().items()}
    tasks["c"] = tasks["c"].remove_columns("label").add_column("label", [7] * len(tasks["c"]))
    made = tiny.trainer(tmp_path, tasks, methods={"gdumb": {"buffer_size": 12, "label_column": "label"}}, **QUIET)
    labels = [[row["label"] for row in task.dataset] for task in made.stream.tasks]
    assert [{label: part.count(label) for label in set(part)} for part in labels] == [
        {0: 6, 1: 6},
        {0: 6, 1: 6},
        {0: 4, 1: 4, 7: 4},
    ]


# ---- the argument ---------------------------------------------------------------------------------------------------


def test_a_recipe_takes_methods_by_one_line_or_from_the_command_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    content = {"model_type": "llama", "tokenizer_name": "byte", "output_dir": str(tmp_path), "use_cpu": True}
    content |= {
        "tasks": [
            {"name": "a", "data_files": "a.txt", "num_steps": 4},
            {"name": "b", "data_files": "b.txt", "num_steps": 6},
        ]
    }
    path.write_text(yaml.safe_dump({**content, "methods": {"mas": {"alpha": 0.5}}}))
    chosen = load_recipe(path, ["--methods.mas.weight", "2", "--methods.lwf.weight=0.25"]).arguments.methods
    assert chosen == {"mas": {"weight": 2, "alpha": 0.5, "num_samples": 256}, "lwf": {"weight": 0.25}}
    with pytest.raises(ValueError, match=r"methods\.mas\.weigth=2 is an unknown key; did you mean 'weight'"):
        load_recipe(path, ["--methods.mas.weigth", "2"])
    path.write_text(yaml.safe_dump({**content, "methods": {"joint": None}}))
    assert load_recipe(path).task_lengths() == {"joint": 10}
    words = ["--output_dir", str(tmp_path), "--use_cpu", "--methods", '{"l2": {"weight": 1}}']
    (parsed,) = HfArgumentParser(ContinualTrainingArguments).parse_args_into_dataclasses(words)
    assert parsed.methods == {"l2": {"weight": 1}}


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"methods": {"joint": {}}, "replay_fraction": 0.1},
            r"replay_fraction=0\.1 cannot be used with methods\.joint",
        ),
        ({"methods": {"gdumb": {"buffer_size": 500}}}, r"buffer_size=500 must not be above the 177 samples"),
        ({"methods": {"gdumb": {"buffer_size": 2}}}, r"buffer_size=2 must be at least the number of tasks, 3"),
        ({"methods": {"gdumb": {"buffer_size": 5}}}, r"'a' has 5 samples, less than one global batch of 8"),
        (
            {"methods": {"gdumb": {"buffer_size": 20, "label_column": "klass"}}},
            r"label_column='klass' must be a column of every task; 'a' has input_ids, id",
        ),
        (
            {"methods": {"gdumb": {"buffer_size": 20}}, "anneal_budget": "extra"},
            r"anneal_budget='extra' cannot be used",
        ),
        (
            {"methods": {"gdumb": {"buffer_size": 20}}, "lr_scheduler_type": "linear", "lr_scheduler_kwargs": {}},
            r"lr_scheduler_type='linear' cannot be used with methods\.gdumb",
        ),
        ({"methods": {"lwf": {}}, "torch_compile": True}, r"methods\.lwf cannot be used with torch_compile=True"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_before_the_first_step(tiny, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"joint": {}}, r"methods\.joint: task 's' is streaming and others are not; make them all one or the other"),
        ({"gdumb": {"buffer_size": 20}}, r"methods\.gdumb: task 's' is streaming, but buffers are drawn from all"),
    ],
    ids=str,
)
def test_streams_that_a_run_mode_cannot_use_are_refused(tiny, tmp_path, methods, message):
    tasks = [Task("s", tiny.data()["a"].to_iterable_dataset(), num_steps=8), Task("t", tiny.data()["b"])]
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, tasks, methods=methods, **QUIET)


@pytest.mark.parametrize(
    ("methods", "engine", "message"),
    [
        ("lwf", {"zero_stage": 3}, r"methods\.lwf cannot be used with DeepSpeed ZeRO-3"),
        ("gdumb", {"zero_stage": 3}, r"methods\.gdumb cannot be used with DeepSpeed ZeRO-3"),
        ("gdumb", {"zero_stage": 2}, r"methods\.gdumb cannot be used with DeepSpeed, because"),
        ("lwf", {"fsdp_version": 2}, r"methods\.lwf cannot be used with FSDP,"),
        ("gdumb", {"fsdp_version": 2}, r"methods\.gdumb cannot be used with FSDP,"),
        ("mas", {"fsdp_version": 1}, r"methods\.mas cannot be used with FSDP 1; set fsdp_version=2"),
        ("mas", {"n_gpu": 2}, r"methods\.mas cannot be used with one process for 2 GPUs"),
        ("lwf", {"zero_stage": 2}, None),
        ("lwf", {"liger": True}, r"methods\.lwf cannot be used with use_liger_kernel=True, because it looks into"),
        ("mas", {"liger": True}, None),
        ("mas", {"zero_stage": 3}, None),
        ("mas", {"fsdp_version": 2}, None),
    ],
)
def test_engines_that_cannot_be_correct_are_refused_by_name(methods, engine, message):
    plugins = {
        "deepspeed_plugin": SimpleNamespace(zero_stage=engine.get("zero_stage")),
        "fsdp_plugin": SimpleNamespace(fsdp_version=engine.get("fsdp_version")),
    }
    trainer = SimpleNamespace(
        args=SimpleNamespace(
            methods={methods: {}},
            n_gpu=engine.get("n_gpu", 1),
            torch_compile=False,
            use_liger_kernel=engine.get("liger", False),
        ),
        accelerator=SimpleNamespace(state=SimpleNamespace(**plugins)),
        is_fsdp_enabled="fsdp_version" in engine,
        is_deepspeed_enabled="zero_stage" in engine,
    )
    if message is None:
        check_engine_of_methods(trainer)
        return
    with pytest.raises(ValueError, match=message):
        check_engine_of_methods(trainer)
