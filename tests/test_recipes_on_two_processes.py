"""Recipes for pictures, classes and adapters on two real processes (gloo, CPU) learn what one process learns.

An image's crop, mirroring and mask are drawn for the micro-batch that it is in, so the one process accumulates two
micro-batches of the size that each of the two processes has. With other sizes the samples of a step are the same, but
not what is drawn for them.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from ports import free_port
from recipes_on_ranks import train
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, ViTForImageClassification, ViTMAEForPreTraining

from hf_infinite_lr.objectives.causal_lm import build_model, build_tokenizer
from hf_infinite_lr.objectives.model_source import ModelSource

# PEFT 0.21 asks transformers for a name that transformers 5.23 deprecates.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

TESTS = Path(__file__).parent
RECIPES = TESTS.parent / "recipes"
SHORT = [
    *("--task_steps", "[6]", "--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "32"),
    *("--save_total_limit", "null"),
    *("--dataloader_num_workers", "0", "--disable_tqdm", "true"),
    *("--lr_scheduler_kwargs.num_cooldown_steps", "2", "--lr_scheduler_kwargs.num_anneal_steps", "2"),
    *("--warmup_steps", "1", "--logging_steps", "1"),
]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURES = "[{name: digits, builtin: digits}, {name: glyphs, builtin: glyphs}]"
CLASSES = "[{name: digits, builtin: digits, split_into: {kind: class, num_tasks: 2, seed: null}}]"


def words_of(kind, folder, inputs):
    """The command of a run on two processes."""
    if kind == "mae":
        recipe = "mae-digits-glyphs-photos"
        more = ["--tasks", PICTURES, "--probes", "[knn]", "--probe_samples", "200", "--compare_releases", "false"]
        more += ["--smallest_crop", "0.5", "--horizontal_flip", "true", "--replay_fraction", "0.25"]
    elif kind == "classes":
        recipe = "vit-pictures"
        more = ["--model_name_or_path", folder / "mae" / "releases" / "02-glyphs", "--tasks", CLASSES]
    else:
        recipe = "lm-lora-german"
        tasks = [{"name": name, "data_files": str(inputs / f"{name}.jsonl")} for name in ("general", "german")]
        more = ["--model_name_or_path", inputs / "base", "--tasks", json.dumps(tasks), "--evaluate_also", "[]"]
        more += ["--block_size", "32", "--gradient_accumulation_steps", "1", "--learning_rate", "0.01"]
    if kind.startswith("lora-zero"):
        more += ["--deepspeed", inputs / f"{kind.removeprefix('lora-')}.json"]
    more += ["--save_steps", "5"] if kind == "lora-zero3" else ["--save_strategy", "no"]
    words = ["--config", RECIPES / recipe / "infinite.yaml", *SHORT, *more, "--output_dir", folder / kind]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A small pretrained model of the adapter's recipe, text, and DeepSpeed's configurations."""
    folder = tmp_path_factory.mktemp("inputs")
    sizes = {**SIZES, "max_position_embeddings": 32}
    source = ModelSource(model_type="gpt_neox", tokenizer_name="byte", config_overrides=sizes)
    tokenizer = build_tokenizer(source)
    torch.manual_seed(1)
    build_model(source, tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for name, word in (("general", "apple pear "), ("german", "Nord Süd ")):
        lines = [json.dumps({"text": f"{number} {word}" * 20}) for number in range(40)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    for stage in (2, 3):
        zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
        auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        config = {**dict.fromkeys(auto, "auto"), "zero_optimization": zero}
        (folder / f"zero{stage}.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def on_two(inputs, tmp_path_factory):
    """All runs of two processes, in one launch, because its start takes longer than they do."""
    folder = tmp_path_factory.mktemp("two")
    has_deepspeed = shutil.which("c++") is not None and find_spec("deepspeed") is not None
    kinds = ["mae", "classes", "lora", *(["lora-zero2", "lora-zero3"] if has_deepspeed else [])]
    (folder / "runs.json").write_text(json.dumps([words_of(kind, folder, inputs) for kind in kinds]))
    words = ["launch", "--config_file", RECIPES / "launch" / "cpu-2.yaml", "--main_process_port", free_port()]
    words = ["-m", "accelerate.commands.accelerate_cli", *words, TESTS / "recipes_on_ranks.py", folder / "runs.json"]
    # A folder of this session's own: a build that was killed in the usual one would be waited for without end.
    operators = os.environ.get("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.getbasetemp() / "torch_extensions"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": operators}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def on_one(inputs, tmp_path_factory):
    """The same runs on one process, and the samples of each of their steps."""
    folder = tmp_path_factory.mktemp("one")
    seen = {}
    for kind in ("mae", "classes", "lora"):
        parts = train([*words_of(kind, folder, inputs), "--gradient_accumulation_steps", "2", "--use_cpu", "true"])
        seen[kind] = [sorted(first + second) for first, second in zip(parts[::2], parts[1::2], strict=True)]
    return folder, seen


KINDS = ["mae", "classes", "lora", "lora-zero2", "lora-zero3"]


@pytest.fixture(params=KINDS)
def runs(request, on_one, on_two):
    """Folders of a run on two processes and of its twin on one, the micro-batches of the two, the steps of the one."""
    two, kind = on_two / request.param, request.param.split("-")[0]
    if not two.exists():
        pytest.skip(f"{request.param}: DeepSpeed is not installed, or has no C++ compiler to build its operator with")
    parts = [json.loads(Path(f"{two}.{rank}.json").read_text()) for rank in range(2)]
    return two, on_one[0] / kind, parts, on_one[1][kind]


def state(out):
    return json.loads((out / "trainer_state.json").read_text())["log_history"]


def test_same_samples_rates_losses_and_scores(runs):
    two, one, parts, steps = runs
    assert [sorted(first + second) for first, second in zip(*parts, strict=True)] == steps
    logged = [[entry for entry in state(out) if "loss" in entry] for out in (two, one)]
    assert len(logged[1]) == 12
    for key in ("learning_rate", "epoch", "step"):
        assert [entry[key] for entry in logged[0]] == [entry[key] for entry in logged[1]]
    losses = [[entry["loss"] for entry in entries] for entries in logged]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    matrices = sorted(path.name for path in one.glob("task_matrix*.json"))
    assert matrices == sorted(path.name for path in two.glob("task_matrix*.json"))
    for name in matrices:
        found, expected = (json.loads((out / name).read_text())["matrix"] for out in (two, one))
        tolerance = 1e-9 if "accuracy" in name else 1e-5
        assert np.array(found, float) == pytest.approx(np.array(expected, float), rel=tolerance, nan_ok=True), name


def test_a_release_loads_in_a_plain_process(runs, inputs):
    two, one, *_ = runs
    releases = sorted(path.name for path in (one / "releases").iterdir() if path.is_dir())
    assert len(releases) == 2
    for release in releases:
        found, expected = (whole_weights(out / "releases" / release, inputs) for out in (two, one))
        assert found.keys() == expected.keys()
        assert all((found[name] - expected[name]).abs().max() < 1e-4 for name in found)


def test_an_adapter_in_shards_goes_on_from_the_middle_of_a_branch(on_two):
    out = on_two / "lora-zero3"
    if not out.exists():
        pytest.skip("DeepSpeed is not installed, or has no C++ compiler to build its operator with")
    for release in ("01-general", "02-german"):
        before, after = (
            load_file(out / kind / release / "adapter_model.safetensors") for kind in ("undisturbed", "releases")
        )
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def whole_weights(release, inputs):
    """As transformers and PEFT load them."""
    if (release / "adapter_config.json").exists():
        base = AutoModelForCausalLM.from_pretrained(inputs / "base")
        return PeftModel.from_pretrained(base, release).merge_and_unload().state_dict()
    kind = ViTMAEForPreTraining if "mae" in release.parts else ViTForImageClassification
    return kind.from_pretrained(release).state_dict()
