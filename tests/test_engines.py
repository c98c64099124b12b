"""Every engine on two real processes (gloo, CPU): the same run as one process, rewound and resumed bit for bit.

DeepSpeed runs as it is. FSDP2 is Accelerate's and torch's own; only the test that it wants an accelerator for it is
taken away, so what GPUs add (NCCL, mixed precision, offload) is not run here.
"""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from ports import free_port

from hf_infinite_lr.cli.launch import Launch
from hf_infinite_lr.cli.memory import footprint
from hf_infinite_lr.config import ContinualTrainingArguments

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
ENGINES = ["ddp", "zero1", "zero2", "zero3", "zero2-optimizer", "fsdp2", "fsdp2-full"]
COMMON = {"noise": False, "dropout": 0.0, "save_steps": 5, "anneal_budget": "extra", "replay_fraction": 0.25}


def start(*words):
    """Runs a script of this folder on two processes."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    search = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-W", "ignore", *launcher, *map(str, words)],
        env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The runs of all engines, in one launch, because starting two processes takes longer than training."""
    out = tmp_path_factory.mktemp("engines")
    installed = find_spec("deepspeed") is not None
    engines = [engine for engine in ENGINES if installed or not engine.startswith("zero")]
    done = start(TESTS / "two_ranks.py", out, *engines)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("back on the trunk of 01-a") == 3 * len(engines), "once per job, not per process"
    return out


@pytest.fixture(params=ENGINES)
def engine(request, launched):
    """Where an engine left its runs, and what each of its two processes saw of them."""
    if not (launched / request.param).exists():
        pytest.skip(f"{request.param}: DeepSpeed is not installed")
    directory = launched / request.param
    return directory, [json.loads((directory / f"seen.{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """The twin: one process with the whole batch."""
    return tiny.run(tmp_path_factory.mktemp("alone"), tiny.data("ab"), **COMMON)


def matrix(directory):
    return json.loads((directory / "task_matrix.json").read_text())["matrix"]


def test_it_is_the_engine_asked_for(engine):
    directory, seen = engine
    asked = {"ddp": "MULTI_CPU", "zer": "DEEPSPEED", "fsd": "FSDP"}[directory.name[:3]]
    assert [(part["whole"]["engine"], part["whole"]["world_size"]) for part in seen] == [(asked, 2)] * 2
    said = json.loads((directory / "whole" / "trunk" / "01-a" / "continual_state.json").read_text())["settings"]
    name = {"ddp": "replicated", "fsd": "fsdp"}.get(directory.name[:3], f"deepspeed-{directory.name[:5]}")
    assert (said["engine"], said["world_size"]) == (name, 2)


def test_two_processes_learn_what_one_learns(engine, alone, tiny):
    directory, seen = engine
    whole = seen[0]["whole"]
    logs = alone.state.log_history
    assert whole["rates"] == seen[1]["whole"]["rates"] == {str(step): r for step, r in alone.watch.rates.items()}
    assert whole["logged_rates"] == [entry["learning_rate"] for entry in logs if "learning_rate" in entry]
    assert whole["losses"] == pytest.approx([entry["loss"] for entry in logs if "loss" in entry], abs=1e-5)
    for row, expected in zip(matrix(directory / "whole"), matrix(Path(alone.args.output_dir)), strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_each_step_has_the_samples_of_one_process(engine, alone):
    trained = [sorted(batch) for batch in alone.data_collator.ids if batch[0] < 9_000_000]
    parts = [[batch for batch in part["whole"]["ids"] if batch[0] < 9_000_000] for part in engine[1]]
    assert [sorted(one + other) for one, other in zip(*parts, strict=True)] == trained


@pytest.mark.parametrize("release", ["01-a", "02-b"])
def test_a_release_is_one_ordinary_model(engine, alone, tiny, release):
    from transformers import AutoModelForCausalLM

    directory = engine[0] / "whole" / "releases" / release
    expected = tiny.weights(Path(alone.args.output_dir) / "releases" / release)
    found = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    assert found.keys() == tiny.weights(directory).keys() == expected.keys()
    assert all((found[name] - expected[name]).abs().max() < 1e-5 for name in expected)


def test_a_resumed_run_is_the_undisturbed_one(engine, tiny):
    directory, seen = engine
    whole, parts = seen[0]["whole"], seen[0]["parts"]
    assert list(parts["rates"]) == [str(step) for step in range(7, 16)], "from the middle of a branch"
    assert parts["rates"].items() <= whole["rates"].items()
    assert parts["losses"] == whole["losses"]
    assert matrix(directory / "parts") == matrix(directory / "whole")
    assert tiny.same_tensors(*(tiny.weights(directory / run / "releases/02-b") for run in ("parts", "whole")))


def test_a_later_task_begins_with_fresh_moments_where_asked(engine, tiny, tmp_path):
    one = tiny.run(tmp_path, tiny.data("ab"), **COMMON, reset_optimizer=True, evaluate_on="none")
    losses = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    assert engine[1][0]["reset"]["losses"] == pytest.approx(losses, abs=1e-5)
    assert losses[-1] != pytest.approx(engine[1][0]["whole"]["losses"][-1], abs=1e-5)


def test_a_rewind_leaves_no_trace_of_the_branch(engine, tiny):
    # With anneal_budget=extra the trunk trains on the same batches whether or not the first task had a branch.
    assert tiny.same_tensors(*(tiny.weights(engine[0] / run / "releases/02-b") for run in ("whole", "straight")))


def test_show_knows_what_a_process_holds(engine, tiny):
    directory, seen = engine
    name = {"ddp": "DDP", "fsd": "FSDP"}.get(directory.name[:3], f"ZeRO-{directory.name[4:5]}")
    with torch.device("meta"):
        model = tiny.model()
    args = ContinualTrainingArguments(str(directory / "args"), use_cpu=True)
    counted = footprint(model, args, Launch(name, 2, deepspeed={"zero_optimization": {}} if "ZeRO" in name else {}))
    held = seen[0]["whole"]["bytes"]
    assert counted.weights == held["weights"]
    assert counted.small == held["small"]
    assert counted.gradients == held["gradients"] or name.startswith("ZeRO")
    assert counted.methods == counted.methods_on_machine == 0
    # DeepSpeed pads, and steps once for a whole group of parameters.
    assert counted.optimizer == pytest.approx(held["optimizer"], abs=200 if name.startswith("ZeRO") else 0)


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("scheduler", r"^deepspeed: the key 'scheduler' .*lr_scheduler_type='infinite'; remove it\.$"),
        ("reset_optimizer", r"^deepspeed: reset_optimizer=True cannot be used with the optimizer 'adafactor'"),
        ("rewind", r"^deepspeed: rewind='weights' cannot be used"),
        ("gather", r"^deepspeed: zero_optimization\.stage3_gather_16bit_weights_on_model_save must be true"),
        ("fsdp", r"^The launch asks for FSDP, but MULTI_CPU would run \(device cpu\)"),
        ("deepspeed", r"^The launch asks for DEEPSPEED, but MULTI_CPU would run \(device cpu\)"),
        ("alone", r"^WORLD_SIZE=2, but each process would train alone"),
        ("not_shared", r"^output_dir='.*not_shared-0' is not shared by all nodes: process 1 does not see"),
        ("each_node", r"^save_on_each_node=True cannot be used"),
    ],
)
def test_what_cannot_work_is_refused_by_every_process(launched, case, sentence):
    told = [json.loads((launched / f"refusals.{rank}.json").read_text())[case] for rank in range(2)]
    assert re.match(sentence, told[0]), told[0]
    assert told[1].replace("not_shared-1", "not_shared-0") == told[0]
