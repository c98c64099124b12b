import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from hf_infinite_lr.stream import Task
from hf_infinite_lr.stream.reader import StreamReader
from hf_infinite_lr.trainer import checkpoints
from hf_infinite_lr.trainer.resume import check_engine

HELD_OUT = {"evaluate_on": "none", "eval_dataset": {}}
HARD = {
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 4,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "save_total_limit": 1,
}


def streams(tiny, names="abc"):
    """The tiny tasks as streams, some in shards, one mapped; each is shorter than its task, so that it starts over."""
    made = {}
    for name in names:
        stream = tiny.rows(30, ord(name), 1000 * ord(name)).to_iterable_dataset(num_shards=3 if name == "b" else 1)
        made[name] = Task(name, stream.map(_same) if name == "c" else stream, num_steps=tiny.TASK_STEPS[name])
    return made


def _same(sample):
    return sample


def inputs(tiny, kind, names="abc"):
    if kind == "map":
        return {"tasks": tiny.data(names)}
    held_out = {name: tiny.rows(8, 7 + place, 9_000_000) for place, name in enumerate([*names, "general"])}
    return {"tasks": list(streams(tiny, names).values()), "eval_dataset": held_out}


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """Whole runs by (kind of data, budget), made once."""
    made = {}

    def of(kind, budget):
        if (kind, budget) not in made:
            out = tmp_path_factory.mktemp("whole")
            replay = 0.25 if kind == "map" else 0
            settings = {**HARD, "anneal_budget": budget, "replay_fraction": replay}
            made[kind, budget] = tiny.run(out, **inputs(tiny, kind), **settings), settings
        return made[kind, budget]

    return of


def losses(continual):
    """Rate and place of each logged step; the mean losses are exact too when every step is logged."""
    keys = ("step", "loss", "learning_rate", "task", "phase", "grad_norm", "epoch")
    return [{key: entry[key] for key in keys} for entry in continual.state.log_history if "loss" in entry]


# ---- a kill at any step --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "budget", "stop_at", "workers"),
    [
        ("map", "within", 8, 0),
        ("map", "extra", 8, 0),
        ("map", "extra", 13, 2),
        ("stream", "within", 3, 0),
        ("stream", "extra", 9, 2),
        ("stream", "extra", 22, 0),
    ],
)
def test_a_killed_run_ends_as_an_undisturbed_one(tiny, tmp_path, undisturbed, kind, budget, stop_at, workers):
    """Bit for bit, with dropout, a collator that draws, accumulation, and whatever number of loader workers."""
    whole, settings = undisturbed(kind, budget)
    settings = {**settings, "dataloader_num_workers": workers}
    tiny.run(tmp_path, stop_at=stop_at, **inputs(tiny, kind), **settings)
    assert not (tmp_path / "checkpoint-0").exists()
    resumed = tiny.run(tmp_path, resume=True, **inputs(tiny, kind), **settings)
    assert tiny.same_model(resumed, whole)
    assert resumed.watch.rates == {step: whole.watch.rates[step] for step in resumed.watch.rates}
    assert losses(resumed) == losses(whole)
    if not workers:  # which draw the noise of held-out batches elsewhere, as with any Trainer
        assert json.loads((tmp_path / "task_matrix.json").read_text()) == whole.record.matrices["eval_loss"].to_dict()
    for release in ("01-a", "02-b", "03-c"):
        mine, other = (Path(run.args.output_dir) / "releases" / release for run in (resumed, whole))
        assert tiny.same_tensors(tiny.weights(mine), tiny.weights(other))


class StopWhen(TrainerCallback):
    """An exception out of an evaluation or right after a save."""

    def __init__(self, event, step):
        self.event, self.step = event, step

    def on_evaluate(self, args, state, control, **kwargs):
        if self.event == "evaluate" and state.global_step == self.step:
            raise InterruptedError

    def on_save(self, args, state, control, **kwargs):
        if self.event == "save" and state.global_step == self.step:
            raise InterruptedError


@pytest.mark.parametrize(("event", "step"), [("evaluate", 8), ("evaluate", 5), ("save", 6), ("save", 8), ("save", 21)])
def test_a_kill_between_the_parts_of_a_boundary(tiny, tmp_path, undisturbed, event, step):
    whole, settings = undisturbed("map", "within")
    with pytest.raises(InterruptedError):
        tiny.trainer(tmp_path, callbacks=[StopWhen(event, step)], **settings).train()
    resumed = tiny.run(tmp_path, resume=True, **settings)
    assert resumed.record.matrices == whole.record.matrices
    assert tiny.same_tensors(resumed.model.state_dict(), whole.model.state_dict())


def test_a_kill_in_the_middle_of_a_save(tiny, tmp_path, undisturbed, monkeypatch):
    whole, settings = undisturbed("map", "within")
    real = checkpoints.write_manifest

    def failing(directory):
        if directory.name == "checkpoint-8":
            raise KeyboardInterrupt
        real(directory)

    monkeypatch.setattr(checkpoints, "write_manifest", failing)
    with pytest.raises(KeyboardInterrupt):
        tiny.trainer(tmp_path, **settings).train()
    monkeypatch.undo()
    assert not (tmp_path / "checkpoint-8").exists()
    assert tiny.same_end(tiny.run(tmp_path, resume=True, **settings), whole)


class Counted:
    """A stream with a state, which counts the rows that are read of it."""

    def __init__(self, count):
        self.count, self.place, self.read = count, 0, 0

    def __iter__(self):
        while self.place < self.count:
            self.place += 1
            self.read += 1
            yield {"input_ids": [self.place % 30] * 8, "id": self.place}
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


@pytest.mark.parametrize("stop_at", [20, 33, 39])
def test_a_resumed_stream_reads_a_block_and_a_batch_again_at_most(tiny, tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr("hf_infinite_lr.stream.reader.BLOCK_SIZE", 50)
    monkeypatch.setattr(StreamReader.__init__, "__defaults__", (50,))
    settings = {"save_steps": stop_at - 1, "max_steps": stop_at + 1, **HELD_OUT}
    tiny.run(tmp_path, [Task("s", Counted(10_000), num_steps=60)], stop_at=stop_at, **settings)
    stream = Counted(10_000)
    resumed = tiny.run(tmp_path, [Task("s", stream, num_steps=60)], resume=True, **settings)
    trained = len(resumed.watch.rates) * tiny.BATCH
    ahead = 50  # the block that the last batch lies in is read whole
    assert trained == 2 * tiny.BATCH
    assert stream.read <= trained + 50 + tiny.BATCH + ahead


@pytest.mark.slow
def test_kills_at_random_moments():
    """The benchmark, made small: what it prints tells the seed and where each kill fell."""
    script = Path(__file__).parent.parent / "recipes" / "benchmarks" / "kill_and_resume.py"
    words = [sys.executable, "-W", "ignore", str(script), "--kills", "5", "--data", "map"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    # A machine that becomes faster in between ends the run before the last kills.
    told = r"map: [2-5] of 5 kills fell; 24 of 24 things equal bit for bit"
    assert re.search(told, done.stdout), done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize("lr_scheduler_type", ["cosine_rewarm", "rsqrt_rewarm", "cosine"])
def test_other_schedules_resume_exactly(tiny, tmp_path, lr_scheduler_type):
    settings = {"lr_scheduler_type": lr_scheduler_type, "lr_scheduler_kwargs": {}, "evaluate_on": "none"}
    whole = tiny.run(tmp_path / "whole", tiny.data("ab"), **settings)
    tiny.run(tmp_path / "killed", tiny.data("ab"), stop_at=9, **settings)
    resumed = tiny.run(tmp_path / "killed", tiny.data("ab"), resume=True, **settings)
    assert tiny.same_end(resumed, whole)
    assert losses(resumed) == losses(whole)


@pytest.mark.parametrize("setting", [{"rewind": "weights"}, {"rewind": "none"}, {"reset_optimizer": True}])
def test_every_rewind_resumes_exactly(tiny, tmp_path, setting):
    setting = {**setting, "evaluate_on": "none"}
    whole = tiny.run(tmp_path / "whole", tiny.data("ab"), **setting)
    for stop_at in (8, 9):
        tiny.run(tmp_path / str(stop_at), tiny.data("ab"), stop_at=stop_at, **setting)
        assert tiny.same_end(tiny.run(tmp_path / str(stop_at), tiny.data("ab"), resume=True, **setting), whole)


KILLED = """
import os, signal, sys
import conftest as tiny
from transformers import TrainerCallback

class Kill(TrainerCallback):
    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

tiny.torch.set_num_threads(1)
settings = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, dataloader_num_workers=2)
tiny.run(sys.argv[1], callbacks=[Kill()], resume=True, **settings)
"""


@pytest.mark.slow
def test_sigkill_and_the_same_command_again(tiny, tmp_path):
    def command(stop_at):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path / "killed"), str(stop_at)]
        return subprocess.run(words, env=environment, capture_output=True, text=True)

    assert command(10).returncode == -signal.SIGKILL
    last = command(-1)
    assert last.returncode == 0, last.stderr
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "dataloader_num_workers": 2}
    whole = tiny.run(tmp_path / "whole", **settings)
    for name in ("releases/03-c", "trunk/02-b", "checkpoint-21"):
        assert tiny.same_tensors(tiny.weights(tmp_path / "killed" / name), tiny.weights(tmp_path / "whole" / name))
    matrices = [json.loads((tmp_path / run / "task_matrix.json").read_text()) for run in ("killed", "whole")]
    assert matrices[0] == matrices[1]
    assert whole.state.global_step == 21


# ---- broken checkpoints --------------------------------------------------------------------------------------------


def _truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def _empty(directory):
    (directory / "optimizer.pt").write_bytes(b"")


def _remove(directory):
    (directory / "rng_state.pth").unlink()


def _alter(directory):
    content = bytearray((directory / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (directory / "model.safetensors").write_bytes(content)


def _swap(directory):
    shutil.copy(directory / "optimizer.pt", directory / "scheduler.pt")


def _without_manifest(directory):
    (directory / "manifest.json").unlink()


def _wrong_manifest(directory):
    (directory / "manifest.json").write_text("[1, 2")


def _listed_manifest(directory):
    (directory / "manifest.json").write_text("[1, 2]")


def _wrong_state(directory):
    (directory / "continual_state.json").write_text("{}")


@pytest.fixture(scope="module")
def interrupted(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("interrupted")
    tiny.run(out, tiny.data("ab"), stop_at=13, **HELD_OUT)
    return out


@pytest.mark.parametrize(
    "corrupt",
    [
        _truncate,
        _empty,
        _remove,
        _alter,
        _swap,
        _without_manifest,
        _wrong_manifest,
        _listed_manifest,
        _wrong_state,
    ],
)
def test_a_broken_checkpoint_is_passed_over(tiny, tmp_path, interrupted, corrupt, caplog):
    out = tmp_path / "out"
    shutil.copytree(interrupted, out)
    newest = checkpoints.candidates(out)[0][1]
    assert newest.name == "checkpoint-12"
    corrupt(newest)
    corrupt(out / "trunk" / "02-b")
    with pytest.raises(ValueError, match=r"checkpoint-12' is not a whole checkpoint: "):
        tiny.trainer(out, tiny.data("ab"), **HELD_OUT).train(str(newest))
    with caplog.at_level(logging.WARNING):
        resumed = tiny.run(out, tiny.data("ab"), resume=True, stop_at=9, **HELD_OUT)
    assert resumed._resumed_from.name == "checkpoint-8"
    assert "checkpoint-12 is passed over" in caplog.text


def test_a_broken_trunk_is_not_silently_rewound_to(tiny, tmp_path):
    tiny.run(tmp_path, tiny.data("ab"), stop_at=8, **HELD_OUT)
    _alter(tmp_path / "trunk" / "01-a")
    # The checkpoint of the same step shares the trunk's files where the file system has hard links.
    with pytest.raises(ValueError, match=r"01-a.*model\.safetensors"):
        tiny.trainer(tmp_path, tiny.data("ab"), **HELD_OUT).train(str(tmp_path / "checkpoint-8"))


def test_leftovers_of_a_save_are_no_checkpoint(tiny, tmp_path):
    tiny.run(tmp_path, tiny.data("ab"), stop_at=10, **HELD_OUT)
    shutil.copytree(tmp_path / "checkpoint-8", tmp_path / ".incoming" / "checkpoint-99")
    (tmp_path / "checkpoint-tmp").mkdir()
    resumed = tiny.run(tmp_path, tiny.data("ab"), resume=True, stop_at=9, **HELD_OUT)
    assert resumed._resumed_from.name == "checkpoint-8"


# ---- start, finish, used directories -------------------------------------------------------------------------------


def test_resume_without_a_checkpoint_starts_fresh_and_says_so(tiny, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="hf_infinite_lr"):
        fresh = tiny.run(tmp_path, tiny.data("a"), resume=True, **HELD_OUT)
    assert fresh.state.global_step == 8
    assert "starting from the beginning" in caplog.text


def test_a_used_directory_is_refused_and_stays_as_it_was(tiny, tmp_path, interrupted):
    out = tmp_path / "out"
    shutil.copytree(interrupted, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(ValueError, match=r"output_dir='.*' holds a run already: pass resume_from_checkpoint=True"):
        tiny.trainer(out, tiny.data("ab"), **HELD_OUT).train()
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_a_finished_run_says_so_and_trains_nothing(tiny, tmp_path, caplog):
    done = tiny.run(tmp_path, tiny.data("ab"), **HELD_OUT)
    matrix = (tmp_path / "task_matrix.json").read_bytes()
    with caplog.at_level(logging.INFO, logger="hf_infinite_lr"):
        again = tiny.trainer(tmp_path, tiny.data("ab"), **HELD_OUT)
        result = again.train(True)
    assert "is finished (14 steps)" in caplog.text
    assert result.global_step == 14
    assert again.watch.rates == {}
    assert tiny.same_tensors(again.model.state_dict(), done.model.state_dict())
    assert (tmp_path / "task_matrix.json").read_bytes() == matrix


def test_a_kill_after_the_last_save_leaves_nothing_undone(tiny, tmp_path):
    """The same command then writes what the end of the run writes, though nothing is left to train."""
    with pytest.raises(InterruptedError):
        tiny.trainer(tmp_path, tiny.data("ab"), callbacks=[StopWhen("save", 14)]).train()
    assert not (tmp_path / "trainer_state.json").exists()
    again = tiny.run(tmp_path, tiny.data("ab"), resume=True)
    assert again.watch.rates == {}
    assert json.loads((tmp_path / "continual_state.json").read_text())["status"] == "finished"
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 14


def test_an_old_checkpoint_under_max_steps_is_not_the_last_release(tiny, tmp_path):
    tiny.run(tmp_path, tiny.data("a"), **HELD_OUT)
    again = tiny.run(tmp_path, tiny.data("a"), max_steps=4, resume=str(tmp_path / "checkpoint-4"), **HELD_OUT)
    then = tiny.weights(tmp_path / "checkpoint-4")
    assert not torch.equal(
        then["model.norm.weight"], tiny.weights(tmp_path / "releases" / "01-a")["model.norm.weight"]
    )
    assert torch.equal(again.model.model.norm.weight, then["model.norm.weight"])


def test_a_run_that_stopped_at_max_steps_trains_nothing_more_with_the_same_max_steps(tiny, tmp_path):
    tiny.run(tmp_path, tiny.data("ab"), max_steps=9, **HELD_OUT)
    before = tiny.weights(tmp_path / "checkpoint-9")
    again = tiny.run(tmp_path, tiny.data("ab"), max_steps=9, resume=True, **HELD_OUT)
    assert again.watch.rates == {}
    assert again.state.global_step == 9
    saved = again.model.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in before.items())


# ---- open end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"anneal_budget": "extra"},
        {"release": "last"},
        {"release": "last", "anneal_budget": "extra"},
        {"release": "none"},
        {"rewind": "weights"},
        {"rewind": "none"},
        {"reset_optimizer": True},
        {"lr_scheduler_type": "cosine_rewarm", "lr_scheduler_kwargs": {}},
        {"save_strategy": "no"},
        {"replay_fraction": 0.25, "save_total_limit": 1},
    ],
    ids=lambda setting: " ".join(f"{key}={value}" for key, value in setting.items() if value) or "default",
)
def test_appending_a_task_later_changes_nothing(tiny, tmp_path, setting):
    held_out = {name: tiny.rows(8, ord(name), 9_000_000) for name in "abc"}
    known = {name: held_out[name] for name in "ab"}
    setting = {"logging_steps": 0.5, **setting}
    whole = tiny.run(tmp_path / "whole", tiny.data("abc"), eval_dataset=held_out, **setting)
    tiny.run(tmp_path / "grown", tiny.data("ab"), eval_dataset=known, **setting)
    grown = tiny.run(tmp_path / "grown", tiny.data("abc"), eval_dataset=held_out, resume=True, **setting)
    assert grown.state.global_step == whole.state.global_step
    assert tiny.same_tensors(grown.model.state_dict(), whole.model.state_dict())
    assert grown.watch.rates == {step: whole.watch.rates[step] for step in grown.watch.rates}
    assert losses(grown) == losses(whole)
    one, other = (run.record.matrices["eval_loss"] for run in (grown, whole))
    assert one.matrix[2] == other.matrix[2]
    assert [row[:2] for row in one.matrix] == [row[:2] for row in other.matrix]
    # Where the run had to go back to before the end of b, c was known when b was evaluated again.
    assert one.matrix[0][2] is None
    assert one.matrix[1][2] in (None, other.matrix[1][2])
    assert one.baseline == (*other.baseline[:2], None)
    states = [json.loads((tmp_path / run / "continual_state.json").read_text()) for run in ("grown", "whole")]
    assert states[0]["tasks"] == states[1]["tasks"]


def test_a_stream_grows_too(tiny, tmp_path):
    whole = tiny.run(tmp_path / "whole", list(streams(tiny).values()), **HELD_OUT)
    tiny.run(tmp_path / "grown", list(streams(tiny, "ab").values()), **HELD_OUT)
    grown = tiny.run(tmp_path / "grown", list(streams(tiny).values()), resume=True, **HELD_OUT)
    assert tiny.same_end(grown, whole)


# ---- other tasks ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    tiny.run(out, tiny.data("ab"), **HELD_OUT)
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tiny: tiny.data("a"), r"task 'b' is no longer in the stream"),
        (lambda tiny: tiny.data("ba"), r"task \d was '[ab]' and is '[ab]' now"),
        (lambda tiny: tiny.data("ac"), r"task 2 was 'b' and is 'c' now"),
        (lambda tiny: {**tiny.data("a"), "b": tiny.rows(51, 999)}, r"data of its task 'b' has changed \(fingerprint"),
        (lambda tiny: {**tiny.data("a"), "b": tiny.rows(67, ord("b"))}, r"data of its task 'b' has changed"),
        (lambda tiny: [Task("a", tiny.data()["a"]), Task("b", tiny.data()["b"], num_steps=9)], r"'b'.*14.*17"),
    ],
    ids=["removed", "reordered", "renamed", "other rows", "longer data", "longer"],
)
def test_other_tasks_than_the_trained_ones_are_refused(tiny, tmp_path, trained, change, message):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    with pytest.raises(ValueError, match=message):
        tiny.trainer(out, change(tiny), **HELD_OUT).train(True)
    assert sorted(path.name for path in (out / "releases").iterdir()) == ["01-a", "02-b"]


def test_another_global_batch_is_refused(tiny, tmp_path, trained):
    with pytest.raises(ValueError, match="global batch of 8 samples, not 4"):
        tiny.trainer(trained, tiny.data("ab"), per_device_train_batch_size=4, **HELD_OUT).train(True)


def test_another_seed_is_refused(tiny, trained):
    """The order of the data hangs on the seed: with another one the rest of a task is not the rest of that task."""
    with pytest.raises(ValueError, match=r"seed"):
        tiny.trainer(trained, tiny.data("abc"), seed=7, **HELD_OUT).train(True)


def test_a_curve_over_the_whole_run_cannot_grow(tiny, tmp_path):
    settings = {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {}, **HELD_OUT}
    tiny.run(tmp_path, tiny.data("a"), **settings)
    with pytest.raises(ValueError, match=r"lr_scheduler_type='cosine' is one curve over the whole run.*8 -> 14"):
        tiny.trainer(tmp_path, tiny.data("ab"), **settings).train(True)


def test_a_curve_over_the_whole_run_cannot_take_over(tiny, tmp_path):
    tiny.run(tmp_path, tiny.data("ab"), stop_at=5, **HELD_OUT)
    again = tiny.trainer(tmp_path, tiny.data("ab"), lr_scheduler_type="cosine", lr_scheduler_kwargs={}, **HELD_OUT)
    with pytest.raises(ValueError, match=r"'cosine' is one curve .* checkpoint of 'infinite'; only infinite, cosine_"):
        again.train(True)


def test_evaluating_on_start_at_a_boundary_adds_no_row(tiny, tmp_path):
    """The checkpoint there holds the task's row already."""
    whole = tiny.run(tmp_path / "whole", tiny.data("ab"))
    tiny.run(tmp_path / "parts", tiny.data("ab"), stop_at=8)
    resumed = tiny.run(tmp_path / "parts", tiny.data("ab"), resume=True, eval_on_start=True)
    assert resumed.record.matrices["eval_loss"].matrix == whole.record.matrices["eval_loss"].matrix


# ---- another engine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        (
            ("deepspeed-zero2", 4),
            ("deepspeed-zero2", 2),
            r"deepspeed-zero2 on world_size=4 .* deepspeed-zero2 on .*=2",
        ),
        (
            ("deepspeed-zero3", 2),
            ("deepspeed-zero2", 2),
            r"deepspeed-zero3 on world_size=2 .* deepspeed-zero2 on .*=2",
        ),
        (
            ("fsdp", 2),
            ("replicated", 2),
            r"by fsdp on world_size=2 and cannot be loaded by replicated on world_size=2",
        ),
        (
            ("replicated", 1),
            ("fsdp", 1),
            r"by replicated on world_size=1 and cannot be loaded by fsdp on world_size=1",
        ),
        (("replicated", 1), ("replicated", 8), None),
        (("fsdp", 8), ("fsdp", 8), None),
    ],
)
def test_shards_of_another_engine_or_world_are_refused(then, now, message):
    was, now = ({"engine": engine, "world_size": size} for engine, size in (then, now))
    state = {"global_step": 12, "settings": was}
    if message is None:
        assert check_engine(state, now) is None
    else:
        with pytest.raises(ValueError, match=message):
            check_engine(state, now)


def test_a_run_records_its_engine_and_refuses_another(tiny, tmp_path, monkeypatch):
    tiny.run(tmp_path, tiny.data("ab"), stop_at=5, **HELD_OUT)
    assert json.loads((tmp_path / "continual_state.json").read_text())["settings"]["engine"] == "replicated"
    other = tiny.trainer(tmp_path, tiny.data("ab"), **HELD_OUT)
    monkeypatch.setattr("hf_infinite_lr.trainer.mixin.engine_name", lambda accelerator: "deepspeed-zero2")
    with pytest.raises(
        ValueError, match=r"step 4 was written by replicated .* loaded by deepspeed-zero2 on world_size=1"
    ):
        other.train(True)


# ---- the resume policy ---------------------------------------------------------------------------------------------


def test_a_changed_rate_is_not_applied_silently(tiny, tmp_path, caplog):
    tiny.run(tmp_path, tiny.data("ab"), stop_at=5, **HELD_OUT)
    with caplog.at_level(logging.WARNING):
        resumed = tiny.run(tmp_path, tiny.data("ab"), resume=True, learning_rate=2 * tiny.PEAK, **HELD_OUT)
    assert resumed.watch.rates[4] == tiny.PEAK * 0.75
    assert "learning_rate" in caplog.text
    assert "not applied" in caplog.text


def test_a_changed_rate_of_the_embeddings_is_not_applied_silently(tiny, tmp_path, caplog):
    tiny.run(tmp_path, tiny.data("ab"), stop_at=5, embedding_learning_rate=1e-3, **HELD_OUT)
    with caplog.at_level(logging.WARNING):
        changed = {"embedding_learning_rate": 5e-3, **HELD_OUT}
        tiny.run(tmp_path, tiny.data("ab"), resume=True, stop_at=9, **changed)
        assert "peaks of parameter groups 1.0e-3 -> 5.0e-3 (not applied" in caplog.text
        caplog.clear()
        resumed = tiny.run(tmp_path, tiny.data("ab"), resume=True, **changed)
        assert "peaks" not in caplog.text
    assert sorted(set(resumed.lr_scheduler.base_lrs)) == [1e-3, tiny.PEAK]
    assert resumed.record.settings["embedding_learning_rate"] == 1e-3


def test_override_applies_new_arguments_from_the_next_update(tiny, tmp_path):
    tiny.run(tmp_path, tiny.data("ab"), stop_at=5, **HELD_OUT)
    kwargs = {"num_cooldown_steps": 2, "num_anneal_steps": 2, "constant_lr_ratio": 0.5, "on_resume": "override"}
    resumed = tiny.run(tmp_path, tiny.data("ab"), resume=True, lr_scheduler_kwargs=kwargs, **HELD_OUT)
    assert resumed.watch.rates[4] == resumed.watch.rates[8] == tiny.PEAK * 0.5


def test_on_resume_of_none_is_the_default(tiny, tmp_path):
    kwargs = {"num_cooldown_steps": 2, "num_anneal_steps": 2}
    default, none = (
        tiny.run(tmp_path / str(len(each)), tiny.data("a"), lr_scheduler_kwargs=each, **HELD_OUT)
        for each in (kwargs, {**kwargs, "on_resume": None})
    )
    assert default.watch.rates == none.watch.rates


def test_the_record_shows_the_rates_in_force_after_a_resume(tmp_path, tiny):
    tiny.run(tmp_path, stop_at=6)
    resumed = tiny.run(tmp_path, resume=True, learning_rate=2 * tiny.PEAK)
    state = json.loads((tmp_path / "continual_state.json").read_text())
    assert state["schedule"]["learning_rate"] == tiny.PEAK
    constant = [phase for phase in state["schedule"]["phases"] if phase["name"] == "constant"][1]
    assert constant["start_rate"] == pytest.approx(resumed.watch.rates[constant["start_step"]])


@pytest.mark.parametrize("limit", [-1, 0, None])
def test_a_limit_below_one_is_none(tiny, tmp_path, limit):
    tiny.run(tmp_path, tiny.data("a"), save_total_limit=limit, **HELD_OUT)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6", "checkpoint-8"}


def test_a_checkpoint_that_is_named_is_gone_on_from_also_after_the_end(tiny, tmp_path):
    tiny.run(tmp_path, tiny.data("ab"), **HELD_OUT)
    again = tiny.run(tmp_path, tiny.data("ab"), resume=str(tmp_path / "checkpoint-12"), **HELD_OUT)
    assert min(again.watch.rates) == 12
    kwargs = {"num_cooldown_steps": 2, "num_anneal_steps": 2, "min_lr_ratio": 0.5, "on_resume": "override"}
    settings = {"save_strategy": "no", **HELD_OUT}
    tiny.run(tmp_path / "no", tiny.data("ab"), **settings)
    other = tiny.run(tmp_path / "no", tiny.data("ab"), resume=True, lr_scheduler_kwargs=kwargs, **settings)
    assert min(other.watch.rates) == 12


def test_the_end_of_another_length_is_not_this_runs(tiny, tmp_path):
    tiny.run(tmp_path, max_steps=4, **HELD_OUT)
    tiny.run(tmp_path, resume=True, stop_at=13, **HELD_OUT)
    done = tiny.run(tmp_path, resume=True, max_steps=10, **HELD_OUT)
    assert done.state.global_step == 12


def test_a_start_that_failed_before_it_trained_may_be_tried_again(tiny, tmp_path):
    trainer = tiny.run(tmp_path, stop_at=0, **HELD_OUT)
    trainer.watch.stop_at = None
    assert trainer.train(True).global_step == 21


def test_what_is_made_after_going_back_is_newer_than_what_was_abandoned(tiny, tmp_path):
    """With a limit its checkpoints would be the first to go, and the next resume would take the abandoned end."""
    tiny.run(tmp_path, save_total_limit=2, **HELD_OUT)
    tiny.run(tmp_path, resume=str(tmp_path / "trunk" / "01-a"), stop_at=15, save_total_limit=2, **HELD_OUT)
    saved = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert saved == {"checkpoint-12", "checkpoint-14"}
    resumed = tiny.run(tmp_path, resume=True, save_total_limit=2, **HELD_OUT)
    assert min(resumed.watch.rates) == 14
    assert resumed.record.times_back == 1
    assert resumed.state.global_step == 21


def test_a_run_that_ended_without_a_checkpoint_is_finished(tiny, tmp_path, caplog):
    tiny.run(tmp_path, save_strategy="no", **HELD_OUT)
    with caplog.at_level(logging.INFO, "hf_infinite_lr"):
        again = tiny.run(tmp_path, resume=True, save_strategy="no", **HELD_OUT)
    assert again.watch.rates == {}
    assert "the run is finished (21 steps) and no task is new" in caplog.text
    (tmp_path / "trainer_state.json").unlink()  # as after a kill before the end was written
    assert tiny.run(tmp_path, resume=True, save_strategy="no", **HELD_OUT).watch.rates
    longer = tiny.run(
        tmp_path, tiny.data("abcd", {**tiny.TASK_STEPS, "d": 5}), resume=True, save_strategy="no", **HELD_OUT
    )
    assert longer.watch.rates


def test_a_trained_model_is_not_a_fresh_start(tiny, tmp_path):
    trainer = tiny.run(tmp_path, stop_at=2, save_steps=100, **HELD_OUT)
    with pytest.raises(ValueError, match=r"this trainer's model has been trained already: make a new trainer"):
        trainer.train(True)


def test_time_between_two_calls_is_no_training(tiny, tmp_path):
    trainer = tiny.run(tmp_path, stop_at=6, **HELD_OUT)
    trainer._step_seconds._since -= 1000  # as if much time had passed since the interrupt
    trainer.watch.stop_at = None
    trainer.train(True)
    assert trainer.record.train_seconds < 500
