"""Runs whose releases are merged along the stream."""

import pytest
import torch
from safetensors.torch import load_file

from hf_infinite_lr.config import ContinualTrainingArguments
from hf_infinite_lr.merging import MergeSettings

RE_WARMS = {"lr_scheduler_type": "cosine_rewarm", "lr_scheduler_kwargs": {}}


def mean(one, other, weight):
    return {name: weight * one[name] + (1 - weight) * other[name] for name in one}


def releases(tiny, folder):
    return [tiny.weights(path) for path in sorted((folder / "releases").iterdir())]


@pytest.mark.parametrize("settings", [{}, RE_WARMS], ids=["infinite", "cosine_rewarm"])
def test_a_release_is_the_running_average_and_training_does_not_see_it(settings, tiny, tmp_path):
    plain = tiny.run(tmp_path / "plain", **settings)
    done = tiny.run(tmp_path / "ema", merge={"method": "ema", "weight": 0.25}, **settings)
    own, found = releases(tiny, tmp_path / "plain"), releases(tiny, tmp_path / "ema")
    assert tiny.same_tensors(found[0], own[0])
    assert tiny.same_tensors(found[1], mean(own[1], found[0], 0.25))
    assert tiny.same_tensors(found[2], mean(own[2], found[1], 0.25))
    assert tiny.same_tensors(done.model.state_dict(), found[2])
    training = [[log["loss"] for log in run.watch.logs if "loss" in log] for run in (plain, done)]
    assert training[0] == training[1]
    rows = [next(iter(run.record.matrices.values())).matrix for run in (plain, done)]
    assert rows[0][0] == rows[1][0]
    assert rows[0][1] != rows[1][1]
    assert not list((tmp_path / "ema").glob(".incoming*"))


def test_a_release_is_the_mean_with_the_start(tiny, tmp_path):
    tiny.run(tmp_path / "plain", tiny.data("ab"), evaluate_on="none")
    tiny.run(tmp_path / "first", tiny.data("ab"), evaluate_on="none", merge="first")
    start = tiny.weights(tmp_path / "first" / "start")
    assert tiny.same_tensors(start, tiny.model().state_dict())
    own, found = releases(tiny, tmp_path / "plain"), releases(tiny, tmp_path / "first")
    assert all(tiny.same_tensors(found[task], mean(own[task], start, 0.5)) for task in (0, 1))


def test_the_next_task_starts_from_the_average(tiny, tmp_path):
    settings = {**RE_WARMS, "merge": {"method": "ema", "next_start": True}, "save_steps": 14}
    done = tiny.run(tmp_path, tiny.data("ab"), **settings)
    found = releases(tiny, tmp_path)
    assert tiny.same_tensors(done.model.state_dict(), found[1])
    assert tiny.same_tensors(tiny.weights(tmp_path / "checkpoint-14"), found[1])


@pytest.mark.parametrize(
    "settings",
    [
        {"merge": "ema"},
        {"merge": "first", **RE_WARMS},
        {"merge": {"method": "ema", "next_start": True}, "rewind": "none"},
    ],
    ids=["ema", "first", "next_start"],
)
def test_a_resumed_run_is_the_undisturbed_one(settings, tiny, tmp_path):
    settings = {"evaluate_on": "current", **settings}
    whole = tiny.run(tmp_path / "whole", **settings)
    tiny.run(tmp_path / "killed", stop_at=15, **settings)
    resumed = tiny.run(tmp_path / "killed", resume=True, **settings)
    assert tiny.same_end(resumed, whole)
    for one, two in zip(releases(tiny, tmp_path / "whole"), releases(tiny, tmp_path / "killed"), strict=True):
        assert tiny.same_tensors(one, two)


def test_annealing_again_gives_the_same_mean(tiny, tmp_path):
    settings = {"merge": "ema", "evaluate_on": "none"}
    tiny.run(tmp_path, tiny.data("ab"), **settings)
    before = tiny.weights(tmp_path / "releases" / "02-b")
    again = tiny.trainer(tmp_path, tiny.data("ab"), **settings)
    assert again.anneal(tmp_path / "trunk" / "02-b", 2).name == "02-b"
    assert tiny.same_tensors(tiny.weights(tmp_path / "releases" / "02-b"), before)


def test_a_missing_release_is_named_before_the_first_step(tiny, tmp_path):
    tiny.run(tmp_path, tiny.data("ab"), stop_at=12, merge="ema", evaluate_on="none")
    (tmp_path / "releases" / "01-a" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"merge.method='ema' needs '.*releases/01-a', which is not whole: model.saf"):
        tiny.run(tmp_path, tiny.data("ab"), resume=True, merge="ema", evaluate_on="none")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"merge": "mean"}, "merge.method='mean' must be one of ema, first"),
        ({"merge": {"weight": 0.5}}, "merge={'weight': 0.5} must be ema or first, or a mapping with a method"),
        ({"merge": {"method": "ema", "share": 0.5}}, "merge: 'share' is an unknown key; the keys are method, weight"),
        ({"merge": {"method": "ema", "weight": 1}}, "merge.weight=1 must be above 0 and below 1"),
        ({"merge": {"method": "ema", "next_start": 1}}, "merge.next_start=1 must be true or false"),
        ({"merge": "ema", "release": "last"}, "merge.method='ema' with release='last' has nothing to merge with"),
        ({"merge": "ema", "methods": {"joint": {}}}, "merge.method='ema' cannot be used with methods.joint"),
        (
            {"merge": '{"method": "ema", "next_start": true}'},
            "merge.next_start=True with rewind='full': the next task would start from the trunk",
        ),
    ],
)
def test_bad_settings_are_refused(changes, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence) as refusal:
        ContinualTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **changes)
    assert "\n" not in str(refusal.value)


@pytest.fixture
def adapted(tiny, monkeypatch):
    """Lets runs train a LoRA adapter with these fields."""
    peft = pytest.importorskip("peft")
    fresh = tiny.model

    def adapt(**fields):
        config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **fields})
        monkeypatch.setattr(tiny, "model", lambda dropout=0.1: peft.get_peft_model(fresh(dropout), config))

    return adapt


def deltas(folder):
    """What a saved adapter adds to each weight, at alpha 8."""
    stored = load_file(folder / "adapter_model.safetensors")
    downs = [name for name in stored if "lora_A" in name or "lora_embedding_A" in name]
    return {name: 8 / len(stored[name]) * stored[name.replace("_A", "_B")] @ stored[name] for name in downs}


def nearest(matrix, rank):
    """The nearest matrix of a rank, by Eckart and Young."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ v[:rank]


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_merged_along_the_run_by_peft(adapted, tiny, tmp_path):
    targets = ["q_proj", "v_proj", "embed_tokens"]
    adapted(target_modules=targets, rank_pattern={"v_proj": 2})
    settings = {"tasks": tiny.data("ab"), "learning_rate": 0.1, "evaluate_on": "none"}
    plain = tiny.run(tmp_path / "plain", **settings)
    done = tiny.run(tmp_path / "ema", merge={"method": "ema", "weight": 0.25}, **settings)
    own, found = ([deltas(run / "releases" / name) for name in ("01-a", "02-b")]
                  for run in (tmp_path / "plain", tmp_path / "ema"))  # fmt: skip
    assert len(own[0]) == len(targets)
    for name in own[0]:
        assert torch.equal(found[0][name], own[0][name])
        expected = nearest(0.25 * own[1][name] + 0.75 * found[0][name], 2 if "v_proj" in name else 4)
        assert torch.allclose(found[1][name], expected, atol=1e-5)
        assert not torch.allclose(found[1][name], own[1][name], atol=1e-3)
    training = [[log["loss"] for log in run.watch.logs if "loss" in log] for run in (plain, done)]
    assert training[0] == training[1]
    assert list(done.model.peft_config) == ["default"]
    trained = [[name for name, part in run.model.named_parameters() if part.requires_grad] for run in (plain, done)]
    assert trained[0] == trained[1] != []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"modules_to_save": ["lm_head"]}, r"with modules_to_save=\['lm_head'\]"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "with use_dora=True"),
        ({"target_modules": ["q_proj"], "bias": "all"}, "with bias='all'"),
    ],
)
def test_adapters_that_peft_does_not_merge_are_refused(fields, fault, adapted, tiny, tmp_path):
    adapted(**fields)
    with pytest.raises(ValueError, match=f"merge.method='ema' cannot be used with an adapter {fault}, which PEFT"):
        tiny.trainer(tmp_path, merge="ema")


def test_settings_are_plain_in_the_state():
    assert MergeSettings.of("first") == MergeSettings.of({"method": "first", "weight": 0.5, "next_start": False})
