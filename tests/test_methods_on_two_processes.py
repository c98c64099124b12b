"""Methods on two processes are those on one, within float error: DDP, ZeRO and FSDP2, with gloo on CPU."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hf_infinite_lr.cli.launch import Launch
from hf_infinite_lr.cli.memory import footprint

pytestmark = pytest.mark.slow

ON_LOGITS = {"mas": {"num_samples": 5, "weight": 3.0}, "lwf": {"weight": 2.0}}
ON_LOSSES = {"mas": {"num_samples": 5, "weight": 3.0}, "fisher": {"num_samples": 5, "weight": 50.0}}
METHODS = {"ddp": ON_LOGITS, "zero2": ON_LOGITS, "zero3": ON_LOSSES, "fsdp2": ON_LOSSES}
"""Engine of `two_ranks.py` -> the methods that are tried on it."""

COMMON = {"noise": False, "dropout": 0.0, "evaluate_on": "none", "learning_rate": 1e-3}
LOGGED = ("loss", "mas_penalty", "fisher_penalty", "lwf_loss")
RUN = """
import gc, json, os, sys
from pathlib import Path
import conftest as tiny
from hf_infinite_lr.cli.run import leave_process_group
from two_ranks import ENGINES, forget, pass_over_the_operator

pass_over_the_operator()
gc.freeze()
common, keys, asked = json.loads(sys.argv[2])
for engine, methods in asked.items():
    out, (environment, settings) = Path(sys.argv[1]) / engine, ENGINES[engine]
    os.environ.update(environment)
    settings = {**settings, **common, "methods": methods, "per_device_train_batch_size": 4, "save_steps": 10}
    tiny.run(out, tiny.data("ab"), stop_at=11, **settings)
    done = tiny.run(out, tiny.data("ab"), resume=True, **settings)
    logged = [entry for entry in done.state.log_history if "loss" in entry]
    seen = {key: [entry[key] for entry in logged if key in entry] for key in keys}
    seen["bytes"] = sum(part.nbytes for method in done._methods for part in method.state().values())
    (out / f"seen.{done.args.process_index}.json").write_text(json.dumps(seen))
    done.accelerator.free_memory()
    forget(environment)
leave_process_group(wait=True)
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The runs on two processes of all engines, in one launch, because starting takes longer than training."""
    out = tmp_path_factory.mktemp("methods")
    script = out / "run.py"
    script.write_text(RUN)
    installed = find_spec("deepspeed") is not None
    asked = {engine: methods for engine, methods in METHODS.items() if installed or not engine.startswith("zero")}
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [sys.executable, "-W", "ignore", *launcher, str(script), str(out), json.dumps([COMMON, LOGGED, asked])]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("engine", METHODS)
def test_two_processes_are_one_also_when_they_are_killed_and_resumed(launched, tmp_path, tiny, engine):
    if not (launched / engine).exists():
        pytest.skip("DeepSpeed is not installed")
    one = tiny.run(tmp_path, tiny.data("ab"), methods=METHODS[engine], **COMMON)
    two = [json.loads((launched / engine / f"seen.{rank}.json").read_text()) for rank in range(2)]
    logged = [entry for entry in one.state.log_history if "loss" in entry]
    for key in LOGGED:
        values = [entry[key] for entry in logged if key in entry]
        assert two[0][key] == pytest.approx(values, rel=1e-3, abs=1e-7), key
    assert len(two[0]["mas_penalty"]) == 6
    stage = int(engine[4:]) if engine.startswith("zero") else 0
    name = f"ZeRO-{stage}" if stage else {"ddp": "DDP", "fsdp2": "FSDP"}[engine]
    given = {"zero_optimization": {"stage": stage}} if stage else {}
    counted = footprint(tiny.model().to("meta"), one.args, Launch(name, 2, deepspeed=given))
    assert [part["bytes"] for part in two] == [counted.methods] * 2
    for release in ("01-a", "02-b"):
        first, second = (tiny.weights(run / "releases" / release) for run in (tmp_path, launched / engine))
        assert all((first[key] - second[key]).abs().max() < 1e-5 for key in first)
