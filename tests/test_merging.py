"""Weighted means of saved models, whole and adapters."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from hf_infinite_lr import merge_checkpoints
from hf_infinite_lr.trainer.restore import blend_weights

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def model(seed, **changes):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, initializer_range=0.5, **{**SIZES, **changes}))


@pytest.fixture
def saved(tmp_path):
    def save(seed, name=None, *, shard="1GB", dtype=None, **changes):
        made = model(seed, **changes)
        folder = tmp_path / (name or f"model-{seed}")
        (made if dtype is None else made.to(dtype)).save_pretrained(folder, max_shard_size=shard)
        return folder

    return save


def tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("shards", [("1GB", "1GB"), ("4KB", "1GB"), ("1GB", "4KB"), ("4KB", "9KB")])
def test_the_mean_is_the_hand_computation_bit_for_bit(saved, tmp_path, shards):
    first, second = saved(1, shard=shards[0]), saved(2, shard=shards[1])
    assert (len(list(first.glob("*.safetensors"))) > 1) == (shards[0] == "4KB")
    merged = merge_checkpoints([first, str(second)], [0.25, 0.75], output_dir=tmp_path / "merged")
    one, two = tensors(first), tensors(second)
    assert same(tensors(merged), {name: 0.25 * one[name] + 0.75 * two[name] for name in one})
    loaded = LlamaForCausalLM.from_pretrained(merged)
    assert torch.equal(
        loaded.lm_head.weight, 0.25 * model(1).lm_head.weight.detach() + 0.75 * model(2).lm_head.weight.detach()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "model-1", "model-2"]


def test_three_models_and_the_files_beside_them(saved, tmp_path):
    folders = [saved(seed) for seed in (1, 2, 3)]
    for name in ("tokenizer.json", "chat_template.jinja", "README.md", "manifest.json", "trainer_state.json"):
        (folders[0] / name).write_text("{}")
    merged = merge_checkpoints(folders, [0.5, 0.75, -0.25], "linear", output_dir=tmp_path / "a" / "merged")
    one, two, three = map(tensors, folders)
    assert same(tensors(merged), {name: 0.5 * one[name] + 0.75 * two[name] + -0.25 * three[name] for name in one})
    names = {path.name for path in merged.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    }


def test_tied_weights_stay_tied_and_half_precision_is_rounded_once(saved, tmp_path):
    tied = {"tie_word_embeddings": True, "dtype": torch.bfloat16}
    merged = merge_checkpoints([saved(1, **tied), saved(2, **tied)], [0.25, 0.75], output_dir=tmp_path / "merged")
    found = tensors(merged)
    assert "lm_head.weight" not in found
    one, two = tensors(tmp_path / "model-1"), tensors(tmp_path / "model-2")
    expected = {name: (0.25 * one[name].float() + 0.75 * two[name].float()).bfloat16() for name in one}
    assert same(found, expected)
    loaded = LlamaForCausalLM.from_pretrained(merged)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()


def test_whole_numbers_must_agree(tmp_path):
    for name, count in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        save_file(
            {"x": torch.ones(2), "count": torch.tensor([count])},
            tmp_path / name / "model.safetensors",
            {"format": "pt"},
        )
    merged = merge_checkpoints([tmp_path / "a", tmp_path / "b"], [0.5, 0.5], output_dir=tmp_path / "ab")
    assert tensors(merged)["count"].tolist() == [3]
    with pytest.raises(ValueError, match=r"tensor 'count' is of type torch.int64 and differs between"):
        merge_checkpoints([tmp_path / "a", tmp_path / "c"], [0.5, 0.5], output_dir=tmp_path / "ac")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "ab", "b", "c"]


def resident(kind):
    """Bytes in memory, pages of mapped files included: now (`VmRSS`), or at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux to forget an earlier peak")
@pytest.mark.parametrize("way", ["saved", "in training"])
def test_peak_memory_is_that_of_a_few_tensors_and_not_of_a_model(way, tmp_path):
    number, size = 40, 2**20  # 40 tensors of 4 MiB
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        made = {f"{place:02}": torch.full((size,), value + place) for place in range(number)}
        save_file(made, tmp_path / name / "model.safetensors", {"format": "pt"})
    trained = torch.nn.ParameterDict(made)
    del made
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    if way == "saved":
        del trained
        merge_checkpoints([tmp_path / "a", tmp_path / "b"], [0.25, 0.75], output_dir=tmp_path / "merged")
    else:
        blend_weights(trained, tmp_path / "a", 0.75)
    more = resident("VmHWM") - before
    tensor, whole = 4 * size, 4 * size * number
    # The bar is one model and one tensor; the allocator keeps some of what is freed.
    assert more < 16 * tensor < whole + tensor
    found = tensors(tmp_path / "merged") if way == "saved" else trained
    assert found["07"][0] == 0.25 * 8 + 0.75 * 9


@pytest.fixture
def adapters(tmp_path, saved):
    peft = pytest.importorskip("peft")
    base = saved(0, "base")

    def save(seed, rank=4, **changes):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], **changes)
        adapted = peft.get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data.normal_()
        adapted.save_pretrained(tmp_path / f"adapter-{seed}")
        return tmp_path / f"adapter-{seed}"

    return save


def deltas(folder):
    """What an adapter adds to the weights of the base."""
    from peft import PeftModel

    base = LlamaForCausalLM.from_pretrained(folder.parent / "base")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    merged = PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    return {name: merged[name] - before[name] for name in before}


@pytest.mark.parametrize(("method", "rank"), [("cat", 8), ("svd", 4), (None, 4), ("linear", 4)])
def test_adapters_are_merged_by_peft(adapters, tmp_path, method, rank):
    folders = [adapters(1), adapters(2)]
    merged = merge_checkpoints(folders, [0.25, 0.75], method, output_dir=tmp_path / "merged")
    assert json.loads((merged / "adapter_config.json").read_text())["r"] == rank
    one, two, found = map(deltas, (*folders, merged))
    exact = {name: 0.25 * one[name] + 0.75 * two[name] for name in one}
    distance = sum(float((found[name] - exact[name]).norm()) for name in exact)
    size = sum(float(each.norm()) for each in exact.values())
    assert size > 1
    assert distance < {"cat": 1e-5, "linear": 1.0}.get(method, 0.9) * size
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "mer"))) == ["merged"]


def test_the_mean_of_an_adapter_and_itself_is_the_adapter(adapters, tmp_path):
    one = adapters(1)
    found = deltas(merge_checkpoints([one, one], [0.25, 0.75], output_dir=tmp_path / "merged"))
    for name, expected in deltas(one).items():
        assert torch.allclose(found[name], expected, atol=1e-4), name


def test_what_cannot_be_merged(saved, adapters, tmp_path):
    one, two = saved(1), saved(2)
    shards = saved(5, shard="4KB")
    min(shards.glob("*.safetensors")).unlink()
    lacking = tmp_path / "lacking"
    shutil.copytree(two, lacking)
    kept = {name: tensor for name, tensor in load_file(two / "model.safetensors").items() if name != "lm_head.weight"}
    save_file(kept, lacking / "model.safetensors", {"format": "pt"})
    (tmp_path / "empty").mkdir()
    for paths, weights, method, sentence in [
        ([one], [1.0], "linear", "must name two models or more"),
        ([one, two], [1.0], "linear", r"weights=\[1.0\] must hold one weight for each of the 2 paths"),
        ([one, two], [0.5, float("nan")], "linear", "must be finite numbers"),
        ([one, two], [1, 1], "linear", r"weights=\[1, 1\] add up to 2, but must add up to 1"),
        ([one, two], [0.5, 0.5], "ties", "method='ties' is one of adapters at most; whole models"),
        ([one, tmp_path / "nowhere"], [0.5, 0.5], "linear", "nowhere' is no folder"),
        ([one, tmp_path / "empty"], [0.5, 0.5], "linear", "empty' holds no safetensors weights"),
        ([one, shards], [0.5, 0.5], "linear", "model-5' lacks the file 'model-00001-of-.*' that its index names"),
        ([one, lacking], [0.5, 0.5], "linear", "lacking' lacks the tensor 'lm_head.weight' of .*model-1"),
        ([lacking, one], [0.5, 0.5], "linear", "lacking' lacks the tensor 'lm_head.weight' of .*model-1"),
        (
            [one, saved(3, intermediate_size=32)],
            [0.5, 0.5],
            "linear",
            r"tensor 'model.layers.0.mlp.down_proj.weight' has shape \[16, 24\] in .*model-1' and \[16, 32\] in",
        ),
        ([one, adapters(1)], [0.5, 0.5], "linear", "adapter-1' is an adapter and .*model-1' is not; merge one kind"),
        ([adapters(1), adapters(2, rank=8)], [0.5, 0.5], "linear", "PEFT cannot merge .*adapter-1"),
        ([adapters(1), adapters(3)], [0.5, 0.5], "mean", "PEFT cannot merge .*"),
    ]:
        with pytest.raises(ValueError, match=sentence) as refusal:
            merge_checkpoints(paths, weights, method, output_dir=tmp_path / "merged")
        assert "\n" not in str(refusal.value)
        assert not (tmp_path / "merged").exists()
        assert not (tmp_path / ".merged.incoming").exists()
    with pytest.raises(ValueError, match=r"output_dir=.*model-2' is there already; name a new folder"):
        merge_checkpoints([one, two], [0.5, 0.5], output_dir=two)
