"""Annealing after the fact gives the branch that the run itself has grown, and leaves the trunk alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_infinite_lr import ContinualTrainer
from hf_infinite_lr.cli import main
from hf_infinite_lr.stream import Task


def files(folder):
    return {
        path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file() and "releases" not in str(path)
    }


def weights(release):
    return load_file(Path(release) / "model.safetensors")


@pytest.mark.parametrize("budget", ["within", "extra"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_release_is_that_of_the_run(tiny, tmp_path, budget, index):
    trainer = tiny.trainer(tmp_path, anneal_budget=budget)
    trainer.train()
    before = files(tmp_path)
    task = trainer.plan.tasks[index]
    expected = weights(tmp_path / "releases" / task.directory)
    release = tiny.trainer(tmp_path, anneal_budget=budget).anneal(
        tmp_path / "trunk" / task.directory, task.num_anneal_steps
    )
    assert release == tmp_path / "releases" / task.directory
    annealed = weights(release)
    assert all(torch.equal(annealed[name], tensor) for name, tensor in expected.items())
    assert files(tmp_path) == before


class SlowFirst(ContinualTrainer):
    """With an optimizer whose first group has a tenth of the rate."""

    def create_optimizer(self, model=None):
        first, *others = self.model.parameters()
        groups = [{"params": [first], "lr": 0.1 * self.args.learning_rate}, {"params": others}]
        self.optimizer = torch.optim.SGD(groups, lr=self.args.learning_rate)
        return self.optimizer


def test_an_absolute_floor_of_groups_with_own_rates_is_that_of_the_run(tiny, tmp_path):
    kwargs = {"num_cooldown_steps": 2, "num_anneal_steps": 2, "min_lr": 0.2 * tiny.PEAK}
    changed = {"cls": SlowFirst, "lr_scheduler_kwargs": kwargs, "eval_dataset": {}, "evaluate_on": "none"}
    tiny.run(tmp_path, tiny.data("a"), **changed)
    expected = weights(tmp_path / "releases" / "01-a")
    annealed = weights(tiny.trainer(tmp_path, tiny.data("a"), **changed).anneal(tmp_path / "trunk" / "01-a", 2))
    assert all(torch.equal(annealed[name], tensor) for name, tensor in expected.items())


def test_longer_branch_is_another_model(tiny, tmp_path):
    trainer = tiny.trainer(tmp_path)
    trainer.train()
    task = trainer.plan.tasks[0]
    expected = weights(tmp_path / "releases" / task.directory)
    release = tiny.trainer(tmp_path).anneal(tmp_path / "trunk" / task.directory, task.num_anneal_steps + 1)
    assert any(not torch.equal(weights(release)[name], tensor) for name, tensor in expected.items())


def test_what_cannot_be_annealed_is_refused(tiny, tmp_path):
    trainer = tiny.trainer(tmp_path, save_steps=100)
    trainer.train()
    end = trainer.plan.tasks[0].end_step
    with pytest.raises(ValueError, match=rf"step {end} lies on the branch of 'a': anneal trunk/01-a instead"):
        tiny.trainer(tmp_path).anneal(tmp_path / f"checkpoint-{end}", 2)
    with pytest.raises(ValueError, match="num_anneal_steps=0 must be above 0"):
        tiny.trainer(tmp_path).anneal(tmp_path / "trunk" / "01-a", 0)
    (tmp_path / "trunk" / "01-a" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"not a whole checkpoint: optimizer.pt is missing"):
        tiny.trainer(tmp_path).anneal(tmp_path / "trunk" / "01-a", 2)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (
            {"num_anneal_steps": 0, "min_lr": 0.0},
            r"A floor of 0 cannot be reached by anneal_type='exponential'",
        ),
        (
            {"min_lr_ratio": 0.3},
            r"The floor of the annealing \(.*\) must not be above the rate at step 1 \(",
        ),
    ],
)
def test_a_branch_that_would_not_train_or_would_climb_is_refused(tiny, tmp_path, kwargs, words):
    """By the run's own floor of 0 under another type, and from a checkpoint in the warm-up."""
    settings = {"lr_scheduler_kwargs": kwargs, "warmup_steps": 4, "save_strategy": "steps", "save_steps": 1}
    tiny.run(tmp_path, max_steps=2, **settings)
    with pytest.raises(ValueError, match=words):
        tiny.trainer(tmp_path, **settings).anneal(tmp_path / "checkpoint-1", 2)


def test_command_line_says_what_is_missing(tmp_path, capsys):
    assert main(["anneal", str(tmp_path / "trunk" / "01-a")]) == 1
    assert "--num_anneal_steps N is missing" in capsys.readouterr().err
    assert main(["anneal", str(tmp_path / "trunk" / "01-a"), "--num_anneal_steps", "5"]) == 1
    assert "recipe.yaml cannot be read" in capsys.readouterr().err


def test_annealing_does_not_stop_where_the_run_did(tiny, tmp_path):
    tiny.run(tmp_path, max_steps=4)
    release = tiny.trainer(tmp_path, max_steps=4).anneal(tmp_path / "checkpoint-4", 2)
    assert release.name == "01-a-from-4-over-2"
    assert weights(release)


def card_of(release):
    return " ".join((release / "README.md").read_text().split())


def test_the_card_of_a_release_says_which_checkpoint_it_grew_from(tiny, tmp_path):
    settings = {"max_steps": 4, "save_steps": 1}
    tiny.run(tmp_path, **settings)
    card = card_of(tiny.trainer(tmp_path, **settings).anneal(tmp_path / "checkpoint-4", 2))
    place = f"{tmp_path.name}/checkpoint-4"
    for words in (
        f"| grew from the checkpoint | `{place}`, step 4 |",
        "| constant learning rate of the trunk | 7.5e-3 |",
        "not in this release; it is in the checkpoint",
        f"Continue from the checkpoint that it grew from, at step 4, which has the optimizer's and the schedule's "
        f"state. It is not published; the run had it as `{place}`.",
        f'trainer.train("{place}")',
        f'trainer.anneal("{place}", num_anneal_steps=4)',
        "The annealing trained on the batches to which the task would have come next.",
    ):
        assert words in card
    assert "trunk/01-a" not in card
    card = card_of(tiny.trainer(tmp_path, **settings).anneal(tmp_path / "checkpoint-3", 2))
    assert "checkpoint-3`, step 3 |" in card
    assert "constant" not in card.split("## Use it")[0]


def test_the_card_of_another_branch_of_a_trunk_names_the_trunk(tiny, tmp_path):
    tiny.run(tmp_path, tiny.data("a"))
    card = card_of(tiny.trainer(tmp_path, tiny.data("a")).anneal(tmp_path / "trunk" / "01-a", 1))
    assert "| grew from the trunk | `trunk/01-a`, step 6 |" in card
    assert f'trainer.train("{tmp_path.name}/trunk/01-a")' in card


@pytest.mark.parametrize("replay_fraction", [0.0, 0.25])
def test_other_data_where_the_own_is_gone(tiny, tmp_path, replay_fraction):
    """Nothing of the run's own data is needed; the trunk's files stay as they were."""
    run = tiny.run(tmp_path, replay_fraction=replay_fraction)
    before = files(tmp_path)
    other = [Task("fine", tiny.rows(40, 5, 70_000), num_steps=8)]
    held_out = {"fine": tiny.rows(8, 7, 9_000_000)}
    again = tiny.trainer(tmp_path, other, eval_dataset=held_out, replay_fraction=replay_fraction)
    release = again.anneal(tmp_path / "trunk" / "02-b", 3, task="fine")
    assert release == tmp_path / "releases" / "02-b-from-12-over-3-on-fine"
    assert [row // 1000 for batch in again.data_collator.ids[:3] for row in batch] == [70] * 3 * tiny.BATCH
    expected = [run.watch.rates[12], *(run.watch.rates[12] * (0.1 / 0.75) ** (n / 3) for n in (1, 2))]
    assert list(again.watch.rates.values()) == pytest.approx(expected)
    assert files(tmp_path) == before
    assert again.stream.tasks[0].name == "fine"


def test_a_task_of_the_run_as_data(tiny, tmp_path):
    tiny.run(tmp_path)
    again = tiny.trainer(tmp_path)
    assert again.anneal(tmp_path / "trunk" / "02-b", 2, task="a").name == "02-b-from-12-over-2-on-a"
    assert {row // 1000 for batch in again.data_collator.ids[:2] for row in batch} == {ord("a")}
    with pytest.raises(ValueError, match="task='x' must be one of a, b, c"):
        again.anneal(tmp_path / "trunk" / "02-b", 2, task="x")


@pytest.mark.parametrize(
    "settings", [{"reset_optimizer": True}, {"methods": {"mas": {"num_samples": 8}}}], ids=["reset", "mas"]
)
def test_other_data_is_no_new_task(tiny, tmp_path, settings):
    """The branch goes on with the trunk's optimizer; nothing that happens between tasks happens before it."""
    tiny.run(tmp_path, **settings)
    begun, states = [], []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            states.append(len(optimizer.state_dict()["state"]))

    again = tiny.trainer(tmp_path, callbacks=[Look()], **settings)
    again.begin_task = lambda: begun.append(again.state.global_step)
    assert again.anneal(tmp_path / "trunk" / "02-b", 2, task="c").name == "02-b-from-12-over-2-on-c"
    assert begun == []
    assert states[0] == states[1] > 0


def test_a_release_made_afterwards_tells_of_the_run_before_it(tiny, tmp_path):
    """The same scores, times and counts as those of the run's own release."""
    run = tiny.run(tmp_path)
    card = tmp_path / "releases" / "02-b" / "card.json"
    told = json.loads(card.read_text())
    again = tiny.trainer(tmp_path)
    again.anneal(tmp_path / "trunk" / "02-b", run.plan.tasks[1].num_anneal_steps)
    now = json.loads(card.read_text())
    assert now["spent"] == told["spent"]
    assert now["compute"]["train_seconds"] > 0.5 * told["compute"]["train_seconds"]
    (mine,), (known,) = now["scores"], told["scores"]
    assert mine["numbers"]["forgetting_from_best_earlier"] == known["numbers"]["forgetting_from_best_earlier"]
    assert mine["last"][:2] == known["last"][:2]
    rows = [{row[0]: dict(zip(one["table"][0], row, strict=True)) for row in one["table"]} for one in (mine, known)]
    for name in ("untrained", "after a"):
        assert {column: rows[0][name][column] for column in ("a", "b")} == {
            column: rows[1][name][column] for column in ("a", "b")
        }
        assert rows[0][name]["a"] != "-"


def test_a_release_on_other_data_counts_the_trunks_steps_and_names_the_data(tiny, tmp_path):
    run = tiny.run(tmp_path)
    other = [Task("fine", tiny.rows(40, 5, 70_000), num_steps=8)]
    again = tiny.trainer(tmp_path, other, eval_dataset={"fine": tiny.rows(8, 7, 9_000_000)})
    release = again.anneal(tmp_path / "trunk" / "02-b", 3, task="fine")
    facts, card = json.loads((release / "card.json").read_text()), (release / "README.md").read_text()
    on_trunk = run.plan.path_steps_at(run.plan.tasks[1].branch_step)
    assert facts["spent"]["updates"]["on_path"] == on_trunk + 3
    assert facts["annealed_on"]["name"] == "fine"
    assert "The annealing trained on other data than the task's: fine, local data." in card
    assert "on the last of its data" not in card


def test_an_annealing_that_is_stopped_has_no_release_to_name(tiny, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    tiny.run(tmp_path)
    with pytest.raises(RuntimeError, match=r"stopped at step 7 of 9, before its release 01-a-from-6-over-3"):
        tiny.trainer(tmp_path, callbacks=[Stop()]).anneal(tmp_path / "trunk" / "01-a", 3)


BESIDE = """
import sys
import conftest as tiny
print(tiny.trainer(sys.argv[1]).anneal(sys.argv[1] + "/trunk/01-a", 4))
"""


class AnnealBeside(TrainerCallback):
    """Anneals in another process while the run stands at a step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 10:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
            words = [sys.executable, "-W", "ignore", "-c", BESIDE, args.output_dir]
            subprocess.run(words, env=environment, check=True, capture_output=True)


@pytest.mark.slow
def test_annealing_beside_the_run(tiny, tmp_path):
    """While the trunk goes on: a release of what is there, and the run ends as one that was left alone."""
    whole = tiny.run(tmp_path / "whole")
    run = tiny.run(tmp_path / "run", callbacks=[AnnealBeside()])
    assert weights(tmp_path / "run" / "releases" / "01-a-from-6-over-4")
    assert tiny.same_end(run, whole)


def test_command_line_takes_other_data(tmp_path, capsys):
    run = tmp_path / "run"
    checkpoint = [str(run / "trunk" / "01-a"), "--num_anneal_steps=5"]
    run.mkdir()
    (run / "recipe.yaml").write_text("tasks: [{name: a}, {name: b}]")
    for words, message in (
        (["--dataset", "x.txt"], "--dataset x.txt must be an entry as under tasks of a recipe"),
        (["--task", "c"], "--task c must be a task of"),
        (["--task", "a", "--dataset", "{data_files: x}"], "cannot go together"),
        (["--task"], "--task needs a value"),
        (["--task", "a"], "No such file or directory"),
        (["--config", str(run / "none.yaml")], "none.yaml cannot be read"),
    ):
        assert main(["anneal", *checkpoint, *words]) == 1
        assert message in capsys.readouterr().err
