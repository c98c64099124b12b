"""Adapters through PEFT: trunk, branches and rewind are exact, and releases load in plain PEFT as trained."""

import json

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_infinite_lr.cli.launch import Launch
from hf_infinite_lr.cli.memory import footprint
from hf_infinite_lr.objectives.causal_lm import build_model, build_tokenizer
from hf_infinite_lr.objectives.model_source import ModelSource
from hf_infinite_lr.recipe import load_recipe
from hf_infinite_lr.trainer.rates import separate_embeddings
from hf_infinite_lr.trainer.restore import restore_weights

# PEFT 0.21 asks transformers for a name that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
LORA = {"r": 2, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A pretrained model with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    source = ModelSource(model_type="llama", tokenizer_name="byte", config_overrides=SIZES)
    tokenizer = build_tokenizer(source)
    torch.manual_seed(1)
    build_model(source, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(base, tmp_path):
    """A recipe of two tasks of 8 steps with branches of 2, as a function of what is different."""
    for name, word in (("one", "apple pear "), ("two", "north south ")):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": f"{number} {word}" * 20}) + "\n" for number in range(40))
        )

    def make(out="out", **changes):
        content = {
            "model_name_or_path": str(base),
            "block_size": 32,
            "lora": dict(LORA),
            "tasks": [{"name": name, "data_files": str(tmp_path / f"{name}.jsonl")} for name in ("one", "two")],
            "task_steps": [8],
            "per_device_train_batch_size": 4,
            "lr_scheduler_kwargs": {"num_cooldown_steps": 2, "num_anneal_steps": 2},
            "warmup_steps": 1,
            "learning_rate": 0.05,
            "logging_steps": 1,
            "save_steps": 4,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "output_dir": str(tmp_path / out),
            **changes,
        }
        path = tmp_path / f"{out}.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_recipe(path)

    return make


def adapter(directory):
    return load_file(directory / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


IDS = torch.arange(3, 35)[None]


def test_releases_load_in_plain_peft_with_the_logits_of_training(recipe, base, tmp_path):
    made = recipe(merge_releases=True)
    trainer = made.trainer()
    trainer.train()
    with torch.no_grad():
        trained = trainer.model.eval()(IDS).logits
        release = tmp_path / "out" / "releases" / "02-two"
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), release).eval()
        assert torch.equal(loaded(IDS).logits, trained)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(release).eval()(IDS).logits, trained)
        merged = AutoModelForCausalLM.from_pretrained(release / "merged").eval()
        torch.testing.assert_close(merged(IDS).logits, trained, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(AutoModelForCausalLM.from_pretrained(base).eval()(IDS).logits, trained)
    assert not list(release.glob("model*.safetensors")), "an adapter's release does not hold the base model"
    stored, whole = (
        sum(part.nbytes for part in load_file(release / name).values())
        for name in ("adapter_model.safetensors", "merged/model.safetensors")
    )
    for merges in (False, True):
        counted = footprint(made.objective.empty_model(), made.arguments, Launch("one process", 1), merges=merges)
        assert counted.release == stored + merges * whole
        assert stored < counted.checkpoint < 4 * stored


def test_rewind_brings_the_adapter_back_exactly(recipe, tmp_path):
    trainer = recipe().trainer()
    seen = {}
    begin = trainer._begin_step

    def note(step):
        begin(step)
        seen[step] = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}

    trainer._begin_step = note
    trainer.train()
    assert all(torch.equal(seen[6][name], seen[8][name]) for name in seen[6])
    assert not all(torch.equal(seen[6][name], seen[7][name]) for name in seen[6])
    trunk, release = adapter(tmp_path / "out" / "trunk" / "01-one"), adapter(tmp_path / "out" / "releases" / "01-one")
    assert trunk.keys() == release.keys()
    assert not same(trunk, release)
    assert sorted(map(str, trunk)) == sorted(name.replace(".default", "") for name in seen[6])


@pytest.mark.parametrize(
    ("stop", "changes"), [(7, {}), (12, {"adapter_per_task": True, "reset_optimizer": True})], ids=["one", "per task"]
)
def test_killed_and_resumed_run_is_the_undisturbed_one(recipe, tiny, tmp_path, stop, changes):
    whole = recipe("whole", **changes).trainer()
    whole.train()
    killed = recipe("parts", **changes).trainer()
    killed.add_callback(tiny.Watch(stop_at=stop))
    with pytest.raises(InterruptedError):
        killed.train()
    resumed = recipe("parts", resume_from_checkpoint=True, **changes).trainer()
    resumed.train(True)
    assert tiny.same_end(whole, resumed)
    for name in ("01-one", "02-two"):
        assert same(*(adapter(tmp_path / out / "releases" / name) for out in ("whole", "parts")))


def test_adapter_per_task_starts_every_task_afresh(recipe, tmp_path):
    given = {"adapter_per_task": True, "reset_optimizer": True, "evaluate_on": "none", "release": "none"}
    trainer = recipe(lr_scheduler_type="constant", warmup_steps=0, **given).trainer()
    first = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    at_start = {}
    begin = trainer._begin_step

    def note(step):
        begin(step)
        if step == 8:
            at_start.update({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
            assert not trainer._raw_optimizer().state

    trainer._begin_step = note
    trainer.train()
    assert same(first, at_start)
    assert not same(first, dict(trainer.model.named_parameters()))


@pytest.mark.parametrize(
    "lora", [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["q_proj", "embed_tokens"]}]
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
def test_embeddings_follow_the_schedule_at_a_rate_of_their_own(recipe, base, tmp_path, lora):
    trainer = recipe(lora={**LORA, **lora}, embedding_learning_rate=0.01).trainer()
    rates = {}
    begin = trainer._begin_step

    def note(step):
        begin(step)
        rates[step] = [group["lr"] for group in trainer._raw_optimizer().param_groups]

    trainer._begin_step = note
    trainer.train()
    owners = {id(p): name for name, p in trainer.model.named_parameters()}
    names = [[owners[id(p)] for p in group["params"]] for group in trainer._raw_optimizer().param_groups]
    assert len(names) == 3
    assert all("embed_tokens" in name for name in names[2])
    assert not any("embed_tokens" in name for group in names[:2] for name in group)
    assert len({row[2] for row in rates.values()}) > 4, "all phases"
    assert all(row[2] == pytest.approx(row[0] / 5) for row in rates.values())
    release = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "out" / "releases" / "02-two"
    ).eval()
    with torch.no_grad():
        assert torch.equal(release(IDS).logits, trainer.model.eval()(IDS).logits)


def test_restoring_another_adapter_is_refused(recipe, base, tmp_path):
    made = recipe("small").trainer()
    made.model.save_pretrained(tmp_path / "saved")
    other = recipe("large", lora={**LORA, "r": 4}).trainer()
    with pytest.raises(ValueError, match="has shape"):
        restore_weights(other.model, tmp_path / "saved")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rank": 4}}, "lora.rank is no field of peft.LoraConfig"),
        (
            {"lora": {"target_module": "q"}},
            "lora.target_module is no field of peft.LoraConfig; did you mean 'target_mod",
        ),
        ({"lora": [8]}, r"lora=\[8\] must be a mapping"),
        ({"lora": {"target_modules": ["nowhere"]}}, r"lora=\{'target_modules': \['nowhere'\]\}: Target modules"),
        ({"lora": {**LORA, "modules_to_save": ["embed_out"]}}, "modules_to_save names 'embed_out', which is not in"),
        ({"lora": {"r": 0, "target_modules": ["q_proj"]}}, r"lora=.*`r` should be a positive integer"),
        ({"lora": None, "adapter_per_task": True}, "adapter_per_task=True needs an adapter: give lora"),
        ({"lora": None, "merge_releases": True}, "merge_releases=True needs an adapter: give lora"),
        ({"adapter_per_task": True}, "reset_optimizer=False would train a fresh adapter"),
        (
            {"adapter_per_task": True, "reset_optimizer": True, "methods": {"l2": {"weight": 1}}},
            r"adapter_per_task=True with methods\.l2 would pull each fresh adapter to the one before",
        ),
        ({"model_name_or_path": None, "model_type": "llama"}, "lora needs model_name_or_path"),
        ({"embedding_learning_rate": 1e-4}, "embedding_learning_rate=0.0001: the model trains no embedding"),
        ({"embedding_learning_rate": 0}, r"embedding_learning_rate=0.0 must be above 0"),
    ],
)
def test_bad_keys(recipe, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        recipe(**changes).trainer().create_optimizer()
    assert "\n" not in str(caught.value)


def test_tied_embeddings_of_a_whole_model_get_one_group_of_their_own():
    source = ModelSource(
        model_type="llama", tokenizer_name="byte", config_overrides={**SIZES, "tie_word_embeddings": True}
    )
    model = build_model(source, build_tokenizer(source))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.3)
    separate_embeddings(optimizer, model, 1e-4)
    rest, own = optimizer.param_groups
    assert [id(parameter) for parameter in own["params"]] == [id(model.get_input_embeddings().weight)]
    assert (rest["lr"], own["lr"], own["weight_decay"]) == (1e-3, 1e-4, 0.3)
    assert len(rest["params"]) == len(list(model.parameters())) - 1


def test_merging_is_refused_where_no_process_holds_the_whole_model(recipe, monkeypatch):
    monkeypatch.setattr("hf_infinite_lr.trainer.mixin.zero_stage", lambda trainer: 3)
    with pytest.raises(ValueError, match=r"merged adapters \(merge_releases\) need the whole model .* ZeRO-3"):
        recipe(merge_releases=True).trainer()


@pytest.mark.parametrize("stage", [0, 3])
def test_fresh_adapters_are_refused_where_the_engine_trains_other_tensors(recipe, monkeypatch, stage):
    monkeypatch.setattr("hf_infinite_lr.trainer.mixin.zero_stage", lambda trainer: stage)
    with pytest.raises(
        ValueError, match=r"\(adapter_per_task=True\) cannot be used with DeepSpeed, which trains master"
    ):
        recipe(adapter_per_task=True, reset_optimizer=True).trainer()
