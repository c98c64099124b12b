"""Two processes with half the batch each are one process with the whole: gloo, on CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

from hf_infinite_lr.stream import Task

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
import conftest as tiny
from hf_infinite_lr.cli.run import leave_process_group
from hf_infinite_lr.stream import Task

out, resume, settings = sys.argv[1], sys.argv[2] == "resume", json.loads(sys.argv[3])
tiny.torch.set_num_threads(1)
tasks = tiny.data("ab")
if settings.pop("streaming", False):
    steps = tiny.TASK_STEPS
    tasks = [Task(name, table.to_iterable_dataset(), num_steps=steps[name]) for name, table in tasks.items()]
done = tiny.run(out, tasks, resume=resume or None, noise=False, dropout=0.0, **settings)
seen = {"ids": done.data_collator.ids, "rates": done.watch.rates, "world_size": done.args.world_size}
seen["losses"] = [entry["loss"] for entry in done.state.log_history if "loss" in entry]
open(f"{out}.{done.args.process_index}.json", "w").write(json.dumps(seen))
leave_process_group(wait=True)
"""


def launch(out, resume="fresh", processes=2, **settings):
    script = Path(out).with_suffix(".py")
    script.write_text(SCRIPT)
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent)])  # the package that the tests themselves import
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", free_port()]
    words = [sys.executable, "-W", "ignore", *launcher, str(script), str(out), resume, json.dumps(settings)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [json.loads(Path(f"{out}.{rank}.json").read_text()) for rank in range(processes)]
    assert [part["world_size"] for part in seen] == [processes] * processes
    return seen


def steps(parts, num_steps):
    """Sample ids of each optimizer step over all processes, whose loaders may have fetched more than they used."""
    return [sorted(row for part in parts for row in part["ids"][step]) for step in range(num_steps)]


def test_two_processes_are_one(tmp_path, tiny):
    settings = {"replay_fraction": 0.25, "anneal_budget": "extra", "evaluate_on": "none", "merge": "first"}
    one = tiny.run(tmp_path / "one", tiny.data("ab"), noise=False, dropout=0.0, **settings)
    two = launch(tmp_path / "two", per_device_train_batch_size=4, **settings)
    num_steps = one.plan.num_steps
    assert num_steps == 16
    assert two[0]["rates"] == two[1]["rates"] == {str(step): rate for step, rate in one.watch.rates.items()}
    assert steps(two, num_steps) == [sorted(batch) for batch in one.data_collator.ids[:num_steps]]
    losses = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    assert two[0]["losses"] == pytest.approx(losses, abs=1e-5)
    for name in ("trunk/01-a", "trunk/02-b", "releases/01-a", "releases/02-b"):
        pairs = (tiny.weights(tmp_path / run / name) for run in ("one", "two"))
        first, second = pairs
        assert all((first[key] - second[key]).abs().max() < 1e-4 for key in first)
    left = [path.name for path in (tmp_path / "two").iterdir()]
    assert not [name for name in left if name.startswith(".incoming")]


def test_two_processes_keep_the_same_samples_of_a_stream(tmp_path, tiny):
    """Also after a resume: what one of them has written, both replay."""
    settings = {"replay_fraction": 0.25, "replay_buffer_size": 20, "save_steps": 3}
    settings |= {"evaluate_on": "none", "eval_dataset": {}}
    tasks = [
        Task(name, data.to_iterable_dataset(), num_steps=tiny.TASK_STEPS[name])
        for name, data in tiny.data("ab").items()
    ]
    one = tiny.run(tmp_path / "one", tasks, noise=False, dropout=0.0, **settings)
    launched = {**settings, "per_device_train_batch_size": 4, "streaming": True}
    two = launch(tmp_path / "two", **launched)
    expected = [sorted(batch) for batch in one.data_collator.ids[:14]]
    assert steps(two, 14) == expected
    assert any(row < 98_000 for batch in expected[8:] for row in batch)
    for later in ("checkpoint-14", "checkpoint-12", "trunk/02-b", "releases/02-b"):
        shutil.rmtree(tmp_path / "two" / later)
    rest = launch(tmp_path / "two", "resume", **launched)
    assert steps(rest, 5) == expected[9:]


def test_two_processes_evaluate_and_resume(tmp_path, tiny):
    settings = {"per_device_train_batch_size": 4, "save_steps": 3, "merge": "ema"}
    whole = launch(tmp_path / "whole", **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for later in ("checkpoint-14", "checkpoint-12", "trunk/02-b", "releases/02-b", "task_matrix.json"):
        target = tmp_path / "parts" / later
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    rest = launch(tmp_path / "parts", "resume", **settings)
    assert list(rest[0]["rates"]) == [str(step) for step in range(9, 14)]
    assert rest[0]["losses"] == whole[0]["losses"]
    for name in ("trunk/02-b", "releases/02-b", "checkpoint-14"):
        assert tiny.same_tensors(tiny.weights(tmp_path / "parts" / name), tiny.weights(tmp_path / "whole" / name))
    matrices = [(tmp_path / run / "task_matrix.json").read_text() for run in ("parts", "whole")]
    assert matrices[0] == matrices[1]


def test_a_run_goes_on_under_another_number_of_processes(tmp_path, tiny):
    """1 -> 2 and 2 -> 1: the same samples in each step, and losses within 1e-5 of a run that never changed."""
    settings = {"replay_fraction": 0.25, "anneal_budget": "extra", "evaluate_on": "none", "save_steps": 5}
    plain = {"noise": False, "dropout": 0.0, **settings}
    whole = tiny.run(tmp_path / "whole", tiny.data("ab"), **plain)
    expected = [sorted(batch) for batch in whole.data_collator.ids[:16]]
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]

    tiny.run(tmp_path / "grown", tiny.data("ab"), stop_at=5, **plain)
    two = launch(tmp_path / "grown", "resume", per_device_train_batch_size=4, **settings)
    assert steps(two, 11) == expected[5:]
    assert two[0]["losses"] == pytest.approx(losses, abs=1e-5)

    launch(tmp_path / "shrunk", per_device_train_batch_size=4, max_steps=7, **settings)
    (one,) = launch(tmp_path / "shrunk", "resume", processes=1, **settings)
    assert [sorted(batch) for batch in one["ids"][:9]] == expected[7:]
    assert one["losses"] == pytest.approx(losses, abs=1e-5)


def test_another_global_batch_is_refused_by_both_sizes(tmp_path, tiny):
    short = {"evaluate_on": "none", "warmup_steps": 1}
    short["lr_scheduler_kwargs"] = {"num_cooldown_steps": 1, "num_anneal_steps": 1}
    tiny.run(tmp_path, tiny.data("ab"), stop_at=6, **short)
    with pytest.raises(ValueError, match=r"of 8 samples, not 16 \(per_device_train_batch_size x gradient_accum"):
        tiny.trainer(tmp_path, tiny.data("ab"), per_device_train_batch_size=16, **short).train(True)
