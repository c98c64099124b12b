"""Class-incremental classification: what is compared, what the learners do, what is exact, and what is refused."""

import json
import re
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import yaml
from conftest import same_model, same_tensors, weights
from huggingface_hub import ModelCard
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining

from hf_infinite_lr.config import ContinualTrainingArguments
from hf_infinite_lr.evaluation import nearest_class_mean
from hf_infinite_lr.methods.attention import divergence
from hf_infinite_lr.methods.lae import AdapterEnsemble, LAESettings
from hf_infinite_lr.methods.slca import Gaussian, SLCASettings, aligned
from hf_infinite_lr.objectives.image_classification import accuracy
from hf_infinite_lr.objectives.mae_model import build_config, build_mae, build_processor, encode, unmasked
from hf_infinite_lr.objectives.model_source import ModelSource
from hf_infinite_lr.objectives.vit_model import build_vit, build_vit_config
from hf_infinite_lr.recipe import load_recipe
from hf_infinite_lr.stream.task_classes import TaskClasses
from hf_infinite_lr.trainer import ContinualTrainer
from hf_infinite_lr.trainer.engine_rules import check_engine_of_methods, check_methods_of

# PEFT 0.21 asks transformers for a name that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
VIT = {**SIZES, "image_size": 8, "patch_size": 4}
CLASSES = {"a": [0, 1], "b": [2, 3], "c": [4, 5]}
LORA = {"r": 2, "target_modules": ["k_proj", "v_proj"], "layers_to_transform": [0], "modules_to_save": ["classifier"]}
SLCA = {"slca": {"alignment_epochs": 2, "alignment_samples": 8}}
LAE = {"lae": {"decay": 0.5, "frozen_share": 0.5}}
HARD = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


def images(name, count, seed=0):
    """Noise around a picture of each class."""
    random = np.random.RandomState(100 * seed + ord(name))
    labels = [CLASSES[name][place % len(CLASSES[name])] for place in range(count)]
    means = np.random.RandomState(7).randn(6, 3, 8, 8)
    return [
        {"pixel_values": torch.from_numpy(means[n] + random.randn(3, 8, 8)).float(), "labels": torch.tensor(n)}
        for n in labels
    ]


def classifier(attention="sdpa", dropout=0.1):
    torch.manual_seed(0)
    config = ViTConfig(**VIT, num_labels=6, hidden_dropout_prob=dropout)
    return ViTForImageClassification._from_config(config, attn_implementation=attention)


def adapted(**changes):
    from peft import LoraConfig, get_peft_model

    model = classifier(**changes)
    return get_peft_model(model, LoraConfig(**LORA))


def trainer(out, *, model=None, model_init=None, tasks="abc", classes=CLASSES, stop_at=None, **changes):
    given = {
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 1,
        "lr_scheduler_kwargs": {"num_cooldown_steps": 1, "num_anneal_steps": 2}, "task_steps": 6, "save_steps": 4,
        "logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "label_names": ["labels"],
        "evaluate_on": "seen", "weight_decay": 0.0,
    }  # fmt: skip
    made = ContinualTrainer(
        model=classifier() if model is None and model_init is None else model,
        model_init=model_init,
        args=ContinualTrainingArguments(str(out), **{**given, **changes}),
        train_dataset={name: images(name, 24) for name in tasks},
        eval_dataset={name: images(name, 20, seed=1) for name in tasks},
        compute_metrics=accuracy,
        task_classes=classes,
    )
    if stop_at is not None:
        begin = made._begin_step

        def begin_step(step):
            if step == stop_at:
                raise InterruptedError
            begin(step)

        made._begin_step = begin_step
    return made


def run(out, *, resume=None, **changes):
    made = trainer(out, **changes)
    try:
        made.train(resume)
    except InterruptedError:
        assert changes["stop_at"] is not None
    return made


def batch(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


# ---- the model ------------------------------------------------------------------------------------------------------


def test_the_backbone_is_the_encoder_of_an_autoencoder(tmp_path):
    decoder = {f"decoder_{name}": value for name, value in SIZES.items()}
    source = ModelSource(model_type="vit_mae", config_overrides={**VIT, **decoder})
    autoencoder = build_mae(source, build_config(source)).eval()
    autoencoder.save_pretrained(tmp_path)
    source = ModelSource(model_name_or_path=str(tmp_path))
    model = build_vit(source, build_vit_config(source), ["cat", "dog", "emu"]).eval()
    pixels = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), unmasked(autoencoder):
        assert torch.equal(model.vit(pixels).last_hidden_state, encode(autoencoder, pixels))
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "emu"}
    assert model.classifier.out_features == 3
    source = ModelSource(model_name_or_path=str(tmp_path), config_overrides={"image_size": 16})
    with pytest.raises(ValueError, match=r"no weights of the right shape for vit\.embeddings\.position_embeddings"):
        build_vit(source, build_vit_config(source), ["cat"])


def test_config_name_makes_a_new_model_of_that_size(tmp_path):
    source = ModelSource(model_type="vit", config_overrides=VIT)
    known = build_vit_config(source)
    known.save_pretrained(tmp_path)
    stored = ModelSource(config_name=str(tmp_path))
    model, expected = (build_vit(one, build_vit_config(one), ["cat", "dog"]) for one in (stored, source))
    assert [each.shape for each in model.parameters()] == [each.shape for each in expected.parameters()]


# ---- what is compared -----------------------------------------------------------------------------------------------


def test_a_run_compares_the_classes_of_its_task_and_predicts_those_seen(tmp_path):
    """The matrix, recomputed from the releases; rows of the head for later classes never move."""
    made = run(tmp_path)
    matrix = made.record.matrices["accuracy"].matrix
    losses = made.record.matrices["eval_loss"].matrix
    start = classifier().state_dict()
    seen = []
    for row, (name, directory) in enumerate(zip("abc", ("01-a", "02-b", "03-c"), strict=True)):
        model = ViTForImageClassification.from_pretrained(tmp_path / "releases" / directory).eval()
        seen += CLASSES[name]
        later = [number for number in range(6) if number not in seen]
        assert torch.equal(model.classifier.weight[later], start["classifier.weight"][later])
        assert not torch.equal(model.classifier.weight[seen[-1]], start["classifier.weight"][seen[-1]])
        for column, other in enumerate("abc"[: row + 1]):
            inputs = batch(images(other, 20, seed=1))
            with torch.no_grad():
                logits = model(inputs["pixel_values"]).logits[:, seen]
            labels = torch.tensor([seen.index(label) for label in inputs["labels"].tolist()])
            assert matrix[row][column] == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
            assert losses[row][column] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-4)
        assert matrix[row][row + 1 :] == (None,) * (2 - row)
    assert made.record.matrices["accuracy"].higher_is_better


@pytest.mark.parametrize(("settings", "moves"), [({}, False), ({"replay_fraction": 0.25}, True)])
def test_old_rows_of_the_head_move_with_replay_only(tmp_path, settings, moves):
    run(tmp_path, tasks="ab", rewind="none", lr_scheduler_kwargs={"num_cooldown_steps": 1, "num_anneal_steps": 0},
        optim="sgd", **settings)  # fmt: skip
    old, new = (weights(tmp_path / "releases" / name)["classifier.weight"] for name in ("01-a", "02-b"))
    assert torch.equal(old[:2], new[:2]) is not moves
    assert torch.equal(old[4:], new[4:])


@pytest.mark.parametrize("methods", [{}, {"mas": {}}, {"nearest_class_mean": {}}], ids=str)
def test_images_without_labels_are_predicted_among_the_classes_seen(tmp_path, methods):
    made = trainer(tmp_path, methods=methods, max_steps=8)
    unlabelled = [{"pixel_values": image["pixel_values"]} for image in images("a", 3, seed=1)]
    untrained = made.predict(unlabelled)
    assert np.isfinite(untrained.predictions).all()
    made.train()
    found = made.predict(unlabelled)
    assert found.label_ids is None
    assert np.isfinite(found.predictions).tolist() == [[True] * 4 + [False] * 2] * 3


def test_a_task_of_one_class_is_warned_of(tmp_path, caplog):
    trainer(tmp_path, classes={**CLASSES, "c": [4]})
    assert "task 'c' has one class, so that its loss is 0" in caplog.text


def test_joint_training_compares_all_classes(tmp_path):
    made = run(tmp_path, methods={"joint": {}})
    assert made._trained_tasks() == ["a", "b", "c"]
    assert None not in made.record.matrices["accuracy"].matrix[-1]


# ---- the learners ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "stop_at", "settings"),
    [
        (SLCA, 9, {}),
        (SLCA, 12, {"lr_scheduler_type": "cosine_rewarm", "lr_scheduler_kwargs": {}}),
        (LAE, 9, {"anneal_budget": "extra"}),
        (LAE, 15, {}),
        ({"nearest_class_mean": {}}, 13, {}),
    ],
    ids=str,
)
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, methods, stop_at, settings):
    def started(out, **changes):
        model = adapted() if "lae" in methods else classifier()
        return run(tmp_path / out, model=model, methods=methods, **HARD, **settings, **changes)

    whole = started("whole")
    started("parts", stop_at=stop_at)
    resumed = started("parts", resume=True)
    frozen = "nearest_class_mean" in methods
    assert same_tensors(resumed.model.state_dict(), whole.model.state_dict()) if frozen else same_model(resumed, whole)
    assert resumed.record.matrices == whole.record.matrices
    for release in (tmp_path / "whole" / "releases").rglob("*.safetensors"):
        other = tmp_path / "parts" / release.relative_to(tmp_path / "whole")
        assert release.read_bytes() == other.read_bytes()


def test_the_nearest_mean_is_that_of_the_probe_on_the_pretrained_model(tmp_path):
    made = run(tmp_path, methods={"nearest_class_mean": {}}, task_steps=4)
    model = classifier().eval()
    assert same_tensors(weights(tmp_path / "releases" / "03-c"), weights(tmp_path / "releases" / "01-a"))

    def features(rows):
        with torch.no_grad():
            return model.vit(batch(rows)["pixel_values"]).last_hidden_state[:, 0].numpy()

    train = [row for name in "abc" for row in images(name, 24)]
    labels = np.array([int(row["labels"]) for row in train])
    for column, name in enumerate("abc"):
        test = images(name, 20, seed=1)
        predicted = nearest_class_mean(features(train), labels, features(test))
        expected = np.mean(predicted == [int(row["labels"]) for row in test])
        assert made.record.matrices["accuracy"].matrix[2][column] == pytest.approx(expected)


@pytest.mark.parametrize("methods", [{"nearest_class_mean": {}}, {}], ids=["method", "none"])
def test_a_loss_alone_is_that_of_the_predictions(tmp_path, methods):
    whole, alone = (
        run(tmp_path / name, methods=methods, task_steps=4, prediction_loss_only=only)
        for name, only in (("whole", False), ("alone", True))
    )
    assert "accuracy" not in alone.record.matrices
    assert alone.record.matrices["eval_loss"].matrix == whole.record.matrices["eval_loss"].matrix


def test_a_model_that_is_made_by_a_function_compares_the_same_classes(tmp_path):
    given = run(tmp_path / "given", model=classifier(dropout=0.0))
    made = trainer(tmp_path / "made", model_init=lambda: classifier(dropout=0.0))
    made.train()
    assert made.record.matrices["eval_loss"].matrix == given.record.matrices["eval_loss"].matrix


def test_a_gaussian_has_the_moments_of_its_features():
    torch.manual_seed(0)
    features = torch.randn(50, 4) @ torch.randn(4, 4) + 3
    drawn = Gaussian.of(features).draw(200_000)
    assert torch.allclose(drawn.mean(0), features.mean(0), atol=0.05)
    assert torch.allclose(drawn.T.cov(), features.T.cov() + 1e-4 * torch.eye(4), atol=0.15)
    alone = Gaussian.of(features[:1])
    assert torch.allclose(alone.factor, 1e-2 * torch.eye(4, dtype=torch.double))


def test_alignment_learns_all_classes_and_leaves_the_other_rows():
    torch.manual_seed(0)
    head = torch.nn.Linear(4, 5)
    own = {name: part.clone() for name, part in head.state_dict().items()}
    gaussians = {row: Gaussian.of(0.1 * torch.randn(20, 4) + 3 * torch.eye(4)[row]) for row in (0, 2, 3)}
    found = aligned(head, gaussians, SLCASettings())
    assert same_tensors(head.state_dict(), own)
    for name in own:
        assert torch.equal(found[name][[1, 4]], own[name][[1, 4]])
    for row, gaussian in gaussians.items():
        scores = functional.linear(gaussian.mean.float(), found["weight"], found["bias"])[[0, 2, 3]]
        assert scores.argmax() == [0, 2, 3].index(row)


def test_the_aligned_head_is_released_and_the_trunk_keeps_its_own(tmp_path):
    made = run(tmp_path, methods=SLCA, lr_scheduler_type="cosine_rewarm", lr_scheduler_kwargs={})
    groups = {group["lr"] / made._get_learning_rate() for group in made.optimizer.param_groups}
    assert sorted(groups) == pytest.approx([0.01, 1.0])
    last, checkpoint = weights(tmp_path / "releases" / "03-c"), weights(tmp_path / "checkpoint-18")
    different = {name for name in last if not torch.equal(last[name], checkpoint[name])}
    assert different == {"classifier.weight", "classifier.bias"}
    assert torch.equal(made.model.classifier.weight, last["classifier.weight"]), "after training it is the release"
    first, before = weights(tmp_path / "releases" / "01-a"), weights(tmp_path / "trunk" / "01-a")
    assert same_tensors(first, before), "one task needs no alignment"


def test_the_offline_adapter_is_the_moving_average_and_both_predict(tmp_path):
    seen = []

    class Noted(AdapterEnsemble):
        def end_update(self, learner):
            before = {name: part.clone() for name, part in self.offline.items()}
            super().end_update(learner)
            for name, part in learner.weights.parts():
                if name in before:
                    assert torch.allclose(self.offline[name], 0.75 * before[name] + 0.25 * part)
            seen.append({name: part.clone() for name, part in learner.weights.parts()})

    made = trainer(tmp_path, model=adapted(), methods=LAE, tasks="ab", num_train_epochs=1)
    made._methods = [Noted(LAESettings(decay=0.75, frozen_share=0.5))]
    made.train()
    adapter = [name for name in seen[0] if "lora_" in name]
    assert len(adapter) == 4
    for step in range(1, 12):
        moved = any(not torch.equal(seen[step][name], seen[step - 1][name]) for name in adapter)
        # The trunk comes back before update 6; after it the first half of task b trains the head alone.
        assert moved is (step not in (7, 8)), step
        assert any(not torch.equal(seen[step][name], seen[step - 1][name]) for name in seen[0] if name not in adapter)
    method, model = made._methods[0], made.model.eval()
    inputs = batch(images("b", 6, seed=1))
    with torch.no_grad():
        online = model(**inputs).logits[:, :4].softmax(-1)
        with method._offline_in(model):
            offline = model(**inputs).logits[:, :4].softmax(-1)
        again = model(**inputs).logits[:, :4].softmax(-1)
    _, scores, _ = made.prediction_step(model, inputs, False)
    assert torch.equal(online, again)
    assert not torch.equal(online, offline)
    assert torch.allclose(scores[:, :4].exp(), torch.maximum(online, offline), atol=1e-6)
    assert scores[:, 4:].isneginf().all()


def test_a_release_holds_the_offline_adapter(tmp_path):
    from peft import PeftModel
    from safetensors.torch import load_file

    made = run(tmp_path, model=adapted(), methods=LAE, tasks="ab")
    release = tmp_path / "releases" / "02-b"
    assert not (tmp_path / "releases" / "01-a" / "offline").exists()
    stored, offline = load_file(release / "offline" / "adapter_model.safetensors"), made._methods[0].offline
    for name, part in offline.items():
        assert torch.equal(stored[name.replace(".default", "")], part)
    PeftModel.from_pretrained(classifier(), release / "offline")


# ---- fine-tuning that preserves -------------------------------------------------------------------------------------


def test_the_divergence_of_maps():
    random = torch.Generator().manual_seed(0)
    before, after = (torch.rand(3, 2, 4, 4, generator=random).softmax(-1) for _ in range(2))
    expected = functional.kl_div(after.log(), before.log(), log_target=True, reduction="none").sum(-1).mean((1, 2))
    assert torch.allclose(divergence(before, after), expected, atol=1e-6)
    assert torch.equal(divergence(before, before), torch.zeros(3))


def test_the_penalty_holds_the_attention(tmp_path):
    """It is logged beside the loss that holds it, and a heavy one leaves the maps nearer to the pretrained ones."""
    moved = {}
    for weight in (1e-6, 100.0):
        settings = {"methods": {"attention_preserving": {"weight": weight}}, "tasks": "a", "task_steps": 20}
        made = run(tmp_path / str(weight), model=adapted(attention="eager", dropout=0.0), **settings)
        logs = [entry["attention_preserving_loss"] for entry in made.state.log_history if "loss" in entry]
        assert logs[0] == 0, "a new adapter changes nothing"
        model, inputs = made.model.eval(), batch(images("a", 8, seed=2))
        with torch.no_grad():
            after = model(**inputs, output_attentions=True).attentions
            with model.disable_adapter():
                before = model(**inputs, output_attentions=True).attentions
        moved[weight] = sum(divergence(old, new).mean().item() for old, new in zip(before, after, strict=True))
    assert moved[100.0] < 0.2 * moved[1e-6]


def test_accumulation_changes_no_penalty(tmp_path):
    settings = {"methods": {"attention_preserving": {"weight": 10.0}}, "tasks": "a", "task_steps": 4}
    logs = []
    for out, changes in (("one", {}), ("parts", HARD)):
        made = run(tmp_path / out, model=adapted(attention="eager", dropout=0.0), **settings, **changes)
        logs.append([entry["attention_preserving_loss"] for entry in made.state.log_history if "loss" in entry])
    assert logs[0] == pytest.approx(logs[1], rel=1e-3, abs=1e-7)
    assert logs[0][-1] > 0


@pytest.mark.parametrize("field", ["attention_probs_dropout_prob", "attention_dropout"])
def test_maps_that_are_dropped_at_random_are_refused(tmp_path, field):
    model = adapted(attention="eager", dropout=0.0)
    setattr(model.get_base_model().config, field, 0.1)
    with pytest.raises(ValueError, match=rf"methods\.attention_preserving cannot be used with {field}=0\.1 of the"):
        trainer(tmp_path, model=model, methods={"attention_preserving": {}}, tasks="a")


# ---- the recipe -----------------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a recipe of a tiny model and returns its path."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(**changes):
        content = {
            "objective": "image_classification",
            "model_type": "vit",
            "config_overrides": {**SIZES, "image_size": 32, "patch_size": 16},
            "tasks": [{"name": "digits", "builtin": "digits", "split_into": {"kind": "class", "num_tasks": 2}}],
            "task_steps": [3],
            "per_device_eval_batch_size": 100,
            "learning_rate": 1e-3,
            "warmup_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "output_dir": str(tmp_path / "out"),
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def of_a_base(folder):
    """Keys of a recipe with an adapter of a saved masked autoencoder."""
    decoder = {f"decoder_{name}": value for name, value in SIZES.items()}
    config = ViTMAEConfig(**SIZES, **decoder, image_size=32, patch_size=16)
    ViTMAEForPreTraining(config).save_pretrained(folder / "base")
    build_processor(ModelSource(model_type="vit_mae"), config, None, None).save_pretrained(folder / "base")
    base = {"model_name_or_path": str(folder / "base"), "model_type": None, "config_overrides": {}}
    return {**base, "lora": {"r": 2, "target_modules": ["v_proj"]}}


def test_a_recipe_splits_pictures_by_class(write, tmp_path):
    made = load_recipe(write(**of_a_base(tmp_path), merge_releases=True)).trainer()
    assert [len(part) for part in made.task_classes.of.values()] == [5, 5]
    assert made.task_classes.of_tasks(["digits-1", "digits-2"]) == tuple(range(10))
    made.train()
    matrix = json.loads((tmp_path / "out" / "task_matrix.accuracy.json").read_text())
    assert matrix["matrix"][0][1] is None
    assert 0 <= matrix["matrix"][1][0] <= 1
    merged = ViTForImageClassification.from_pretrained(tmp_path / "out" / "releases" / "02-digits-2" / "merged")
    names = [merged.config.id2label[number] for number in made.task_classes.of["digits-1"]]
    held = made.stream.tasks[0].holds
    assert held == f"classes {', '.join(names)}"


def test_the_code_of_an_adapters_card_makes_the_classifier(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = load_recipe(write(**of_a_base(tmp_path), methods={"lae": {}})).trainer()
    made.train()
    release = tmp_path / "out" / "releases" / "02-digits-2"
    card = (release / "README.md").read_text()
    assert ModelCard(card).data.pipeline_tag == "image-classification"
    code = re.search(r"## Use it\s+```python\n(.*?)```", card, re.DOTALL)[1]
    found = {}
    exec(code.replace("where/the/base/model/lies", "base"), found)
    pixels = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        logits = found["model"].eval()(pixel_values=pixels).logits
        assert torch.equal(logits, made.model.eval()(pixel_values=pixels).logits)
    assert list(found["config"].id2label.values()) == list(made.model.config.id2label.values())
    assert sorted(path.name for path in release.rglob("README.md")) == ["README.md"], "PEFT's own name a local path"
    assert not any(str(tmp_path) in (release / name).read_text() for name in ("README.md", "card.json"))


def test_the_head_is_trained_with_whatever_else_an_adapter_saves(write, tmp_path):
    given = of_a_base(tmp_path)
    given["lora"]["modules_to_save"] = ["layernorm"]
    made = load_recipe(write(**given)).trainer()
    trained = {name for name, part in made.model.named_parameters() if part.requires_grad and "lora" not in name}
    assert {name.split(".")[-4] for name in trained if "modules_to_save" in name} == {"classifier", "layernorm"}, (
        trained
    )


DIGITS = {"name": "digits", "builtin": "digits"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tasks": [DIGITS, {**DIGITS, "name": "again"}]},
            r"class '0' is in 'digits' and in 'again': in class-incremental learning every class belongs to one task",
        ),
        ({"evaluate_also": [{"name": "x", "builtin": "photos"}]}, r"'x' is evaluated on class 'china', which no task"),
        ({"model_type": "vit_mae"}, r"model_type='vit_mae' must be vit with objective='image_classification'"),
        ({"config_overrides": {"image_size": 30, "patch_size": 16}}, r"image_size=30 is not divisible"),
        (
            {"tasks": [{"name": "s", "data_files": "x.parquet", "streaming": True, "num_eval_samples": 2}]},
            r"streaming=True of 's' cannot be used with objective='image_classification'",
        ),
        ({"methods": {"lae": {}}}, r"methods\.lae needs an adapter: give lora"),
        ({"lora": {}}, r"lora needs model_name_or_path: an adapter's release does not hold a new model's weights"),
        (
            {"methods": {"attention_preserving": {}}, "lora": {"target_modules": ["v_proj"]}},
            r"methods\.attention_preserving needs attn_implementation='eager'",
        ),
        ({"methods": {"lwf": {}}}, r"methods\.lwf cannot be used for classification"),
        ({"methods": {"slca": {}, "nearest_class_mean": {}}}, r"slca and nearest_class_mean each say how classes"),
        ({"methods": {"slca": {"backbone_rate": 0}}}, r"methods\.slca\.backbone_rate=0 must be a number above 0"),
        ({"methods": {"lae": {"decay": 2}}}, r"methods\.lae\.decay=2 must be at least 0 and at most 1"),
        ({"methods": {"slca": {}}, "lora": {"target_modules": ["v_proj"]}}, r"methods\.slca needs a model whose"),
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor=0\.1 cannot be used with task_classes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_refused_before_the_first_step(write, tmp_path, changes, message):
    base = of_a_base(tmp_path) if changes.get("lora") else {}
    with pytest.raises(ValueError, match=message):
        load_recipe(write(**{**base, **changes})).trainer()
    assert not list(tmp_path.glob("out/*"))


def test_classes_may_come_from_a_generator():
    assert TaskClasses({"a": (number for number in (1, 0))}).of_tasks(["a"]) == (0, 1)


def test_classes_are_needed_and_belong_to_tasks(tmp_path):
    with pytest.raises(ValueError, match=r"methods\.slca is for class-incremental classification"):
        trainer(tmp_path, classes=None, methods={"slca": {}})
    with pytest.raises(ValueError, match=r"task_classes has no class of task 'c'"):
        trainer(tmp_path, classes={"a": [0, 1], "b": [2, 3]})
    with pytest.raises(ValueError, match=r"task_classes of 'c': 6 must be the number of one of the model's 6 outputs"):
        trainer(tmp_path, classes={**CLASSES, "c": [4, 5, 6]})
    with pytest.raises(ValueError, match=r"class '1' is in 'a' and in 'b'"):
        TaskClasses({"a": [0, 1], "b": [1]})


@pytest.mark.parametrize("name", ["fisher", "nearest_class_mean"])
def test_half_precision_is_refused_where_gradients_are_not_scaled(name):
    args = SimpleNamespace(methods={name: {}}, fp16=True)
    with pytest.raises(ValueError, match=rf"methods\.{name} cannot be used with fp16=True"):
        check_methods_of(args, fsdp_version=None, zero_stage=None)


@pytest.mark.parametrize("name", ["slca", "lae", "nearest_class_mean"])
@pytest.mark.parametrize(("engine", "said"), [({"zero_stage": 2}, "DeepSpeed"), ({"fsdp_version": 2}, "FSDP")])
def test_engines_that_keep_weights_elsewhere_are_refused_by_name(name, engine, said):
    plugins = {
        "deepspeed_plugin": SimpleNamespace(zero_stage=engine.get("zero_stage")),
        "fsdp_plugin": SimpleNamespace(fsdp_version=engine.get("fsdp_version")),
    }
    made = SimpleNamespace(
        args=SimpleNamespace(methods={name: {}}, n_gpu=1, fp16=False),
        accelerator=SimpleNamespace(state=SimpleNamespace(**plugins)),
        is_fsdp_enabled="fsdp_version" in engine,
        is_deepspeed_enabled="zero_stage" in engine,
    )
    with pytest.raises(ValueError, match=rf"methods\.{name} cannot be used with {said}"):
        check_engine_of_methods(made)
