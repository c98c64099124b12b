"""Methods on two processes are those on one, within float error: DDP, ZeRO and FSDP2, with gloo on CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_infinite_lr.cli.launch import Launch
from hf_infinite_lr.cli.memory import footprint

pytestmark = pytest.mark.slow

RUN = """
import json, os, sys
import conftest as tiny
from hf_infinite_lr.cli.run import leave_process_group
from two_ranks import FSDP2, OnCpu

out, settings = sys.argv[1], json.loads(sys.argv[2])
if settings.pop("fsdp2", False):
    os.environ.update(FSDP2, FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT")
    settings["cls"] = OnCpu
settings |= {"noise": False, "dropout": 0.0, "save_steps": 10}
tiny.run(out, tiny.data("ab"), stop_at=11, **settings)
done = tiny.run(out, tiny.data("ab"), resume=True, **settings)
logged = [entry for entry in done.state.log_history if "loss" in entry]
keys = ("loss", "mas_penalty", "fisher_penalty", "lwf_loss")
seen = {key: [entry[key] for entry in logged if key in entry] for key in keys}
seen["bytes"] = sum(part.nbytes for method in done._methods for part in method.state().values())
open(f"{out}.{done.args.process_index}.json", "w").write(json.dumps(seen))
leave_process_group(wait=True)
"""


@pytest.fixture(scope="session")
def operators(tmp_path_factory):
    """Where DeepSpeed builds what it needs: in the usual place a build that was killed is waited for without end."""
    return os.environ.get("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.getbasetemp() / "torch_extensions"))


def launch(out, script, settings, **variables):
    """The script on two processes; what each of them has written."""
    file = Path(out).with_suffix(".py")
    file.write_text(script)
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **variables}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [sys.executable, "-W", "ignore", *launcher, str(file), str(out), json.dumps(settings)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(Path(f"{out}.{rank}.json").read_text()) for rank in range(2)]


def deepspeed(folder, stage):
    """The file of a DeepSpeed configuration for two CPU processes."""
    config = {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
    file = folder / "deepspeed.json"
    file.write_text(json.dumps(config))
    return str(file)


@pytest.mark.parametrize(
    ("engine", "methods"),
    [
        ("ddp", {"mas": {"num_samples": 5, "weight": 3.0}, "lwf": {"weight": 2.0}}),
        (2, {"mas": {"num_samples": 5, "weight": 3.0}, "lwf": {"weight": 2.0}}),
        (3, {"mas": {"num_samples": 5, "weight": 3.0}, "fisher": {"num_samples": 5, "weight": 50.0}}),
        ("fsdp2", {"mas": {"num_samples": 5, "weight": 3.0}, "fisher": {"num_samples": 5, "weight": 50.0}}),
    ],
    ids=["DDP", "ZeRO-2", "ZeRO-3", "FSDP2"],
)
def test_two_processes_are_one_also_when_they_are_killed_and_resumed(tmp_path, tiny, operators, engine, methods):
    settings = {"methods": methods, "evaluate_on": "none", "learning_rate": 1e-3}
    one = tiny.run(tmp_path / "one", tiny.data("ab"), noise=False, dropout=0.0, **settings)
    more = {"fsdp2": True} if engine == "fsdp2" else {}
    if engine in (2, 3):
        pytest.importorskip("deepspeed")
        if shutil.which("c++") is None:
            pytest.skip("DeepSpeed builds its operators with a C++ compiler")
        more["deepspeed"] = deepspeed(tmp_path, engine)
    halves = {**settings, **more, "per_device_train_batch_size": 4}
    two = launch(tmp_path / "two", RUN, halves, TORCH_EXTENSIONS_DIR=operators)
    logged = [entry for entry in one.state.log_history if "loss" in entry]
    for key in ("loss", "mas_penalty", "fisher_penalty", "lwf_loss"):
        values = [entry[key] for entry in logged if key in entry]
        assert two[0][key] == pytest.approx(values, rel=1e-3, abs=1e-7), key
    assert len(two[0]["mas_penalty"]) == 6
    name = {"ddp": "DDP", "fsdp2": "FSDP"}.get(engine, f"ZeRO-{engine}")
    given = {"zero_optimization": {"stage": engine}} if engine in (2, 3) else {}
    counted = footprint(tiny.model().to("meta"), one.args, Launch(name, 2, deepspeed=given))
    assert [part["bytes"] for part in two] == [counted.methods] * 2
    for release in ("01-a", "02-b"):
        first, second = (tiny.weights(tmp_path / run / "releases" / release) for run in ("one", "two"))
        assert all((first[key] - second[key]).abs().max() < 1e-5 for key in first)
