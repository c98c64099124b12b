import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from hf_infinite_lr.config import ContinualTrainingArguments
from hf_infinite_lr.stream import Task
from hf_infinite_lr.stream.order import epoch_order, rows_at
from hf_infinite_lr.trainer import ContinualMixin, ContinualTrainer
from hf_infinite_lr.trainer.restore import restore_weights

LOAD_ELSEWHERE = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
for name in sys.argv[1:]:
    AutoModelForCausalLM.from_pretrained(name)
    arguments = torch.load(Path(name) / "training_args.bin", weights_only=False)
    assert type(arguments).__module__.startswith("transformers."), type(arguments)
    assert arguments.lr_scheduler_type == "infinite"
    assert arguments.hub_token is None
assert "hf_infinite_lr" not in sys.modules
"""


def read(path):
    return json.loads(Path(path).read_text())


def directories(parent):
    return sorted(path.name for path in Path(parent).glob("*")) if Path(parent).exists() else []


@pytest.fixture(scope="module")
def within(tiny, tmp_path_factory):
    """A whole run with everything at its default, and the directory that it left."""
    out = tmp_path_factory.mktemp("within")
    done = tiny.run(out, hub_token="hf_planted_secret", save_total_limit=1)
    return done, out


@pytest.fixture(scope="module")
def extra(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("extra")
    return tiny.run(out, anneal_budget="extra"), out


# ---- what a run leaves ---------------------------------------------------------------------------------------------


def test_a_run_leaves_trunks_releases_and_the_last_checkpoint(within):
    _, out = within
    assert directories(out / "trunk") == directories(out / "releases") == ["01-a", "02-b", "03-c"]
    assert [name for name in directories(out) if name.startswith("checkpoint-")] == ["checkpoint-21"]
    assert not [path for path in out.rglob("*") if "incoming" in path.name or "outgoing" in path.name]


def test_the_task_matrix_is_as_designed(within):
    _, out = within
    matrix = read(out / "task_matrix.json")
    assert set(matrix) == {"schema_version", "tasks", "columns", "metric", "higher_is_better", "matrix", "baseline"}
    assert matrix["schema_version"] == 1
    assert matrix["tasks"] == ["a", "b", "c"]
    assert matrix["columns"] == ["a", "b", "c", "general"]
    assert (matrix["metric"], matrix["higher_is_better"]) == ("eval_loss", False)
    assert [len(row) for row in matrix["matrix"]] == [4, 4, 4]
    assert all(isinstance(value, float) for row in [*matrix["matrix"], matrix["baseline"]] for value in row)
    assert matrix["baseline"] not in matrix["matrix"]


def test_the_matrix_row_is_the_score_of_the_release(tiny, tmp_path):
    tiny.run(tmp_path / "run", tiny.data("ab"), noise=False)
    judge = tiny.trainer(tmp_path / "judge", tiny.data("ab"), noise=False)
    matrix = read(tmp_path / "run" / "task_matrix.json")
    scores = [judge.evaluate()]
    for name in ("01-a", "02-b"):
        restore_weights(judge.model, tmp_path / "run" / "releases" / name)
        scores.append(judge.evaluate())
    assert [[row[f"eval_{column}_loss"] for column in ("a", "b", "general")] for row in scores] == [
        matrix["baseline"],
        *matrix["matrix"],
    ]


def test_the_state_names_every_step_and_path(within):
    _, out = within
    state = read(out / "continual_state.json")
    assert (state["schema_version"], state["status"]) == (1, "finished")
    assert (state["global_step"], state["num_steps"]) == (21, 21)
    assert state["evaluate_also"] == ["general"]
    first, second, third = state["tasks"]
    steps = ("start_step", "branch_step", "end_step", "next_start_step", "num_steps", "num_anneal_steps")
    assert [first[key] for key in steps] == [0, 6, 8, 8, 8, 2]
    assert [second[key] for key in steps] == [8, 12, 14, 14, 6, 2]
    assert [third[key] for key in steps] == [14, 19, 21, 21, 7, 2]
    assert (first["num_samples"], first["num_unused_samples"]) == (67, 3)
    assert (first["trunk"], first["release"]) == ("trunk/01-a", "releases/01-a")
    assert [task["updates"] for task in state["tasks"]] == [
        {"spent": 8, "on_path": 8},
        {"spent": 14, "on_path": 6 + 6},
        {"spent": 21, "on_path": 6 + 4 + 7},
    ]
    assert third["samples"] == {"spent": 21 * 8, "on_path": 17 * 8}
    assert len({task["fingerprint"] for task in state["tasks"]}) == 3
    assert set(state["versions"]) >= {"hf_infinite_lr", "transformers", "torch"}
    phases = [(p["name"], p["task"], p["start_step"], p["end_step"]) for p in state["schedule"]["phases"]]
    assert phases[:4] == [
        ("warmup", 0, 0, 2),
        ("cooldown_to_constant", 0, 2, 4),
        ("constant", 0, 4, 6),
        ("anneal", 0, 6, 8),
    ]
    assert phases[-1] == ("anneal", 2, 19, 21)
    assert state["compute"]["train_seconds"] > 0


def test_extra_counts_what_the_trunk_repeats(extra):
    done, out = extra
    state = read(out / "continual_state.json")
    assert [task["updates"] for task in state["tasks"]] == [
        {"spent": 8, "on_path": 8},
        {"spent": 8 + 2 + 6, "on_path": 8 + 6},
        {"spent": 8 + 2 + 6 + 2 + 7, "on_path": 8 + 6 + 7},
    ]
    assert state["num_steps"] == done.state.global_step == 25


@pytest.mark.slow
def test_nothing_saved_needs_the_plugin_or_holds_the_token(within):
    _, out = within
    saved = [str(path.parent) for path in out.rglob("model.safetensors")]
    assert len(saved) == 7
    elsewhere = subprocess.run([sys.executable, "-c", LOAD_ELSEWHERE, *saved], capture_output=True, text=True)
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert not [path for path in out.rglob("*") if path.is_file() and b"hf_planted_secret" in path.read_bytes()]


def test_after_training_the_model_is_the_last_release(within, tiny, tmp_path):
    done, out = within
    done.save_model(str(tmp_path))
    assert tiny.same_tensors(tiny.weights(tmp_path), tiny.weights(out / "releases" / "03-c"))
    assert not tiny.same_tensors(tiny.weights(tmp_path), tiny.weights(out / "trunk" / "03-c"))


# ---- rates and logs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["within", "extra"])
def test_every_update_and_every_log_has_the_rate_of_the_schedule(which, request, tiny):
    done, _ = request.getfixturevalue(which)
    expected = [tiny.PEAK * done.schedule(step) for step in range(done.plan.num_steps)]
    assert [done.watch.rates[step] for step in range(done.plan.num_steps)] == expected
    logged = {entry["step"]: entry["learning_rate"] for entry in done.watch.logs if "loss" in entry}
    assert logged == {step + 1: rate for step, rate in enumerate(expected)}


def test_logs_carry_task_and_phase_to_every_callback(within):
    done, out = within
    seen = {entry["step"]: entry for entry in done.watch.logs if "loss" in entry}
    assert [seen[step]["task"] for step in (1, 8, 9, 14, 15, 21)] == ["a", "a", "b", "b", "c", "c"]
    assert [seen[step]["task_index"] for step in (8, 9, 21)] == [0, 1, 2]
    assert [seen[step]["phase"] for step in (1, 2, 3, 5, 7, 8, 9, 13)] == [
        "warmup",
        "warmup",
        "cooldown_to_constant",
        "constant",
        "anneal",
        "anneal",
        "constant",
        "anneal",
    ]
    assert [seen[step]["phase_index"] for step in (1, 3, 5, 7)] == [0, 1, 2, 3]
    evaluated = [entry for entry in done.watch.logs if "eval_general_loss" in entry]
    assert [entry.get("task") for entry in evaluated][1:] == ["a", "b", "c"]
    stored = read(out / "trainer_state.json")["log_history"]
    keys = {"task", "task_index", "phase", "phase_index", "learning_rate", "loss", "step"}
    assert all(keys <= set(entry) for entry in stored if "loss" in entry)


def test_the_epoch_counts_passes_over_tasks(within, extra):
    for done, _ in (within, extra):
        epochs = [entry["epoch"] for entry in done.watch.logs if "loss" in entry]
        assert epochs == sorted(epochs)
    epochs = {entry["step"]: entry["epoch"] for entry in within[0].watch.logs if "loss" in entry}
    assert (epochs[4], epochs[8], epochs[14], epochs[21]) == pytest.approx((0.5, 1, 2, 3))


def test_the_progress_bar_names_task_and_phase(tiny, tmp_path, monkeypatch):
    from hf_infinite_lr.trainer.flow import StreamProgress

    shown = []

    class Screen:
        def __init__(self, *args, **kwargs):
            self.total = kwargs.get("total")

        def set_description(self, text, refresh=True):
            shown.append(text)

        def update(self, steps): ...

        def write(self, text): ...

        def close(self): ...

    monkeypatch.setattr("transformers.trainer_callback.tqdm", Screen)
    done = tiny.run(tmp_path, tiny.data("ab"), disable_tqdm=False, evaluate_on="none", save_strategy="no")
    assert [type(bar) for bar in done.callback_handler.callbacks].count(StreamProgress) == 1
    assert shown == [
        "a (1/2) warmup",
        "a (1/2) cooldown_to_constant",
        "a (1/2) constant",
        "a (1/2) anneal",
        "b (2/2) constant",
        "b (2/2) anneal",
    ]


# ---- inputs --------------------------------------------------------------------------------------------------------


def test_a_list_a_dict_and_tasks_are_the_same_run(tiny, tmp_path):
    tasks = tiny.data("ab")
    plain = {"evaluate_on": "none", "save_strategy": "no"}
    by_name = tiny.run(tmp_path / "dict", tasks, **plain)
    as_tasks = tiny.run(
        tmp_path / "tasks", [Task(name, dataset) for name, dataset in tasks.items()], eval_dataset={}, **plain
    )
    listed = tiny.run(tmp_path / "list", list(tasks.values()), **plain)
    assert [task.name for task in listed.plan.tasks] == ["task-1", "task-2"]
    for other in (as_tasks, listed):
        assert tiny.same_tensors(by_name.model.state_dict(), other.model.state_dict())


def test_held_out_data_may_come_as_a_list_or_with_the_task(tiny, tmp_path):
    tasks, held_out = tiny.data("ab"), [tiny.rows(4, 1), tiny.rows(4, 2)]
    listed = tiny.trainer(tmp_path, list(tasks.values()), eval_dataset=held_out)
    assert listed.columns == ("task-1", "task-2")
    own = [Task("a", tasks["a"], held_out[0]), Task("b", tasks["b"], held_out[1])]
    assert tiny.trainer(tmp_path, own, eval_dataset={"more": held_out[0]}).columns == ("a", "b", "more")


def test_lengths_follow_their_precedence(tiny, tmp_path):
    data = tiny.rows(27, 0)  # three global batches of 8, and 3 samples
    own = [Task("s", data, num_steps=5), Task("e", data, num_epochs=2.5), Task("d", data)]
    plain = {"eval_dataset": {}, "evaluate_on": "none"}

    def lengths(**changes):
        settings = {"lr_scheduler_kwargs": {"num_cooldown_steps": 1, "num_anneal_steps": 1}, "warmup_steps": 1}
        return [t.num_steps for t in tiny.trainer(tmp_path, own, **plain, **settings, **changes).plan.tasks]

    assert lengths() == [5, 7, 3]
    assert lengths(num_train_epochs=1.5) == [5, 7, 4]
    assert lengths(task_steps=[6]) == [5, 7, 6]
    assert lengths(task_steps=[9, 9, 4], num_train_epochs=3) == [5, 7, 4]


# ---- release, rewind, schedule names -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "trunks", "releases", "annealed"),
    [("last", ["01-a", "02-b"], ["02-b"], {12, 13}), ("none", ["01-a", "02-b"], [], set())],
)
def test_release_says_which_tasks_anneal(tiny, tmp_path, release, trunks, releases, annealed):
    done = tiny.run(tmp_path, tiny.data("ab"), release=release)
    assert directories(tmp_path / "trunk") == trunks
    assert directories(tmp_path / "releases") == releases
    logs = [entry for entry in done.watch.logs if entry.get("phase") == "anneal" and "loss" in entry]
    assert {entry["step"] - 1 for entry in logs} == annealed
    states = read(tmp_path / "continual_state.json")["tasks"]
    assert [task["release"] for task in states] == [None, "releases/02-b" if releases else None]
    assert len(read(tmp_path / "task_matrix.json")["matrix"]) == 2


def test_the_trunk_trains_as_if_there_were_no_branch(tiny, tmp_path):
    """Law: at the branch point of b, weights, moments and dropout's generator are those of a run without branches."""
    branched = tiny.run(tmp_path / "each", tiny.data("ab"))
    shorter = zip(tiny.data("ab").items(), (6, 4), strict=True)
    straight = tiny.run(
        tmp_path / "none",
        [Task(name, dataset, num_steps=steps) for (name, dataset), steps in shorter],
        release="none",
        evaluate_on="none",
        eval_dataset={},
    )
    trunk = tmp_path / "each" / "trunk" / "02-b"
    assert tiny.same_tensors(tiny.weights(trunk), tiny.weights(tmp_path / "none" / "checkpoint-10"))
    one, other = (
        torch.load(path / "optimizer.pt", weights_only=True)["state"]
        for path in (trunk, tmp_path / "none" / "checkpoint-10")
    )
    assert all(torch.equal(one[p][k], other[p][k]) for p in one for k in one[p])
    assert branched.plan.num_steps == 14
    assert straight.plan.num_steps == 10


def test_under_extra_release_and_trunk_see_the_same_data(tiny, tmp_path, extra):
    """Law: the trunk under `extra` is the trunk of a run that never branched."""
    _, out = extra
    # 8 + 6 + 5 trunk updates lie before the third branch; without branches they are the first 19 updates.
    tiny.run(tmp_path, release="none", evaluate_on="none", max_steps=19)
    assert tiny.same_tensors(tiny.weights(out / "trunk" / "03-c"), tiny.weights(tmp_path / "checkpoint-19"))


def test_the_first_release_is_the_release_of_the_first_task_alone(tiny, tmp_path, within):
    _, out = within
    tiny.run(tmp_path, tiny.data("a"))
    assert tiny.same_tensors(tiny.weights(out / "releases" / "01-a"), tiny.weights(tmp_path / "releases" / "01-a"))


def test_rewind_says_what_comes_back(tiny, tmp_path, within):
    settings = {"evaluate_on": "none", "callbacks": [probe := AtStep(8)]}
    first = tiny.run(tmp_path / "full", tiny.data("ab"), **settings)
    full = probe.found
    tiny.run(tmp_path / "weights", tiny.data("ab"), rewind="weights", evaluate_on="none", callbacks=[w := AtStep(8)])
    tiny.run(tmp_path / "none", tiny.data("ab"), rewind="none", evaluate_on="none", callbacks=[n := AtStep(8)])
    trunk, release = tiny.weights(tmp_path / "full/trunk/01-a"), tiny.weights(tmp_path / "full/releases/01-a")
    assert not tiny.same_tensors(trunk, release)
    assert tiny.same_tensors(full["weights"], trunk)
    assert tiny.same_tensors(w.found["weights"], trunk)
    assert tiny.same_tensors(n.found["weights"], release)
    assert (full["updates"], w.found["updates"], n.found["updates"]) == (6, 8, 8)
    assert full["rate"] == w.found["rate"] == n.found["rate"] == tiny.PEAK * first.schedule(8)
    states = read(tmp_path / "none" / "continual_state.json")["tasks"]
    assert states[1]["updates"] == {"spent": 14, "on_path": 14}


class AtStep(TrainerCallback):
    """What the first forward pass of a step begins with."""

    def __init__(self, step):
        self.step, self.found = step, None

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.state, self.optimizer = state, optimizer
        model.register_forward_pre_hook(self.note)

    def note(self, module, inputs):
        if module.training and self.state.global_step == self.step and self.found is None:
            moments = list(getattr(self.optimizer, "optimizer", self.optimizer).state.values())
            self.found = {
                "weights": {k: v.clone() for k, v in module.state_dict().items() if "rotary" not in k},
                "updates": int(moments[0]["step"]) if moments else 0,
                "rate": self.optimizer.param_groups[0]["lr"],
            }


def test_reset_optimizer_starts_every_later_task_afresh(tiny, tmp_path):
    probe, before = AtStep(8), AtStep(7)
    tiny.run(tmp_path, tiny.data("ab"), reset_optimizer=True, evaluate_on="none", callbacks=[before, probe])
    assert (before.found["updates"], probe.found["updates"]) == (7, 0)


@pytest.mark.parametrize(
    ("name", "phases"), [("cosine_rewarm", {"cosine_decay"}), ("rsqrt_rewarm", {"rsqrt_decay", "linear_end"})]
)
def test_what_re_warms_goes_on_from_the_tasks_end(name, phases, tiny, tmp_path):
    done = tiny.run(
        tmp_path,
        tiny.data("ab"),
        lr_scheduler_type=name,
        lr_scheduler_kwargs={"num_rewarm_steps": 3, "rewarm_lr_ratio": "autoregressive"},
        callbacks=[probe := AtStep(8)],
    )
    assert [done.watch.rates[step] for step in range(14)] == [tiny.PEAK * done.schedule(step) for step in range(14)]
    assert done.watch.rates[8] == 0
    assert 0 < max(done.watch.rates[step] for step in range(9, 14)) < tiny.PEAK
    assert directories(tmp_path / "trunk") == directories(tmp_path / "releases") == ["01-a", "02-b"]
    assert tiny.same_tensors(probe.found["weights"], tiny.weights(tmp_path / "releases/01-a"))
    assert {entry["phase"] for entry in done.watch.logs if "loss" in entry} == {"warmup", *phases}


def test_another_schedule_is_one_curve_over_the_whole_run(tiny, tmp_path):
    done = tiny.run(tmp_path, tiny.data("ab"), lr_scheduler_type="linear", lr_scheduler_kwargs={}, warmup_steps=0)
    assert [done.watch.rates[step] for step in range(14)] == pytest.approx(
        [tiny.PEAK * (1 - n / 14) for n in range(14)]
    )
    assert directories(tmp_path / "releases") == ["01-a", "02-b"]
    assert {entry["phase"] for entry in done.watch.logs if "loss" in entry} == {"linear"}
    assert read(tmp_path / "continual_state.json")["schedule"]["phases"] == []


@pytest.mark.parametrize(
    "schedule", [{}, {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {}}], ids=["infinite", "cosine"]
)
def test_max_steps_stops_early_and_moves_nothing(tiny, tmp_path, schedule):
    whole = tiny.run(tmp_path / "whole", tiny.data("ab"), evaluate_on="none", **schedule)
    short = tiny.run(tmp_path / "short", tiny.data("ab"), evaluate_on="none", max_steps=11, **schedule)
    assert short.state.global_step == 11
    assert [task.end_step for task in short.plan.tasks] == [8, 14]
    assert short.watch.rates == {step: whole.watch.rates[step] for step in range(11)}
    assert short.data_collator.ids[:11] == whole.data_collator.ids[:11]
    assert read(tmp_path / "short/continual_state.json")["status"] == "running"
    resumed = tiny.run(tmp_path / "short", tiny.data("ab"), evaluate_on="none", resume=True, **schedule)
    assert tiny.same_end(resumed, whole)


# ---- evaluation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluate_on", "known"),
    [
        ("seen", [[True, False, True], [True, True, True]]),
        ("current", [[True, False, True], [False, True, True]]),
        ("none", [[False] * 3, [False] * 3]),
    ],
)
def test_evaluate_on_chooses_columns(tiny, tmp_path, evaluate_on, known):
    done = tiny.run(tmp_path, tiny.data("ab"), evaluate_on=evaluate_on, eval_strategy="steps", eval_steps=3)
    matrix = read(tmp_path / "task_matrix.json")
    assert [[value is not None for value in row] for row in matrix["matrix"]] == known
    assert [value is not None for value in matrix["baseline"]] == [evaluate_on != "none"] * 3
    assert done.state.global_step == 14


@pytest.mark.parametrize("save_strategy", ["steps", "no", "epoch"])
def test_a_run_without_held_out_data(tiny, tmp_path, save_strategy):
    done = tiny.run(tmp_path, tiny.data("ab"), eval_dataset=None, evaluate_on="none", save_strategy=save_strategy)
    assert done.state.global_step == 14
    assert directories(tmp_path / "releases") == ["01-a", "02-b"]
    assert directories(tmp_path / "trunk") == ["01-a", "02-b"]
    assert bool([name for name in directories(tmp_path) if name.startswith("checkpoint-")]) == (save_strategy != "no")


def test_evaluating_leaves_no_trace_in_training(tiny, tmp_path):
    often = tiny.run(tmp_path / "often", tiny.data("ab"), eval_strategy="steps", eval_steps=2)
    never = tiny.run(tmp_path / "never", tiny.data("ab"), evaluate_on="none")
    assert tiny.same_tensors(often.model.state_dict(), never.model.state_dict())
    assert len([entry for entry in often.watch.logs if "eval_a_loss" in entry]) == 1 + 7


def test_further_metrics_get_a_matrix_of_their_own(tiny, tmp_path):
    done = tiny.run(
        tmp_path,
        tiny.data("ab"),
        cls=lambda **kwargs: ContinualTrainer(
            **kwargs, score_column=lambda column, metrics: {"perplexity": 2 ** metrics["loss"]}
        ),
        metric_for_best_model="a_perplexity",
        greater_is_better=False,
    )
    loss, further = (read(tmp_path / name) for name in ("task_matrix.json", "task_matrix.perplexity.json"))
    assert further["metric"] == "perplexity"
    assert further["matrix"] == [[2**value for value in row] for row in loss["matrix"]]
    assert further["baseline"] == [2**value for value in loss["baseline"]]
    assert done.state.best_metric == min(row[0] for row in further["matrix"])
    found = done.evaluate()
    assert found["eval_a_perplexity"] == 2 ** found["eval_a_loss"]


# ---- the same work as Trainer --------------------------------------------------------------------------------------


class Sequential(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_task_is_bit_for_bit_what_trainer_does(tiny, tmp_path, schedule, accumulation):
    settings = {
        "lr_scheduler_type": schedule,
        "lr_scheduler_kwargs": {},
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "save_strategy": "no",
        "num_train_epochs": 2,
    }
    ours = tiny.run(tmp_path / "ours", tiny.data("a"), evaluate_on="none", noise=False, **settings)
    own = ours.args.to_dict()
    order = rows_at(lambda epoch: epoch_order(ours.args.seed, 0, epoch, 67), 64, 0, 16 * 8).tolist()
    keys = ("learning_rate", "warmup_steps", "logging_steps", "report_to", "use_cpu", "disable_tqdm")
    stock = Sequential(
        model=tiny.model(),
        args=TrainingArguments(
            str(tmp_path / "stock"),
            remove_unused_columns=False,
            **{key: own[key] for key in keys},
            **{**settings, "num_train_epochs": 1},
        ),
        train_dataset=tiny.data("a")["a"].select(order),
        data_collator=tiny.Collator(noise=False),
    )
    stock.train()
    assert [row for batch in ours.data_collator.ids for row in batch] == [
        row for batch in stock.data_collator.ids for row in batch
    ]
    assert stock.state.global_step == ours.state.global_step == 16
    assert tiny.same_tensors(ours.model.state_dict(), stock.model.state_dict())


def test_accumulation_changes_no_sample_of_a_step(tiny, tmp_path):
    settings = {"evaluate_on": "none", "save_strategy": "no", "replay_fraction": 0.3}
    whole = tiny.run(tmp_path / "1", tiny.data("ab"), **settings)
    parts = tiny.run(
        tmp_path / "4",
        tiny.data("ab"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        **settings,
    )
    ids = [row for batch in parts.data_collator.ids for row in batch]
    assert [row for batch in whole.data_collator.ids for row in batch] == ids
    assert all(row < 1000 * ord("b") for row in ids[:64])
    replayed = [row for row in ids[64:] if row < 1000 * ord("b")]
    assert len(replayed) == int(6 * 0.3 * 8)
    assert set(replayed) <= set(ids[:64])


class NotANumber(ContinualTrainer):
    """Its loss is no number from one step on."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        return loss * float("nan") if self.state.global_step >= 10 else loss


@pytest.mark.parametrize(("logging_steps", "seen_at"), [(1, 11), (100, 12)], ids=["at a log", "before a save"])
def test_a_loss_that_is_no_number_ends_the_run(tmp_path, tiny, logging_steps, seen_at):
    expected = (
        rf"loss is nan at step {seen_at} \(task 'b', learning rate 0.0075\); the last checkpoint is .*checkpoint-8"
    )
    with pytest.raises(FloatingPointError, match=expected):
        tiny.run(tmp_path, cls=NotANumber, logging_steps=logging_steps, save_steps=4, max_grad_norm=0)
    assert not (tmp_path / "checkpoint-12").exists()


# ---- what else Trainer may be asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize("max_steps", [-1, 8])
def test_the_end_of_trainers_one_epoch_is_no_second_end_of_a_task(tiny, tmp_path, max_steps):
    """With `max_steps` the run stops where its first task ends, and goes on from there."""
    whole = tiny.run(tmp_path / "whole")
    epochs = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    done = tiny.run(tmp_path / "epoch", max_steps=max_steps, **epochs)
    rows = whole.record.matrices["eval_loss"].matrix
    assert done.record.matrices["eval_loss"].matrix == (rows if max_steps < 0 else rows[:1])
    if max_steps > 0:
        again = tiny.run(tmp_path / "epoch", resume=True, **epochs)
        assert again.record.matrices["eval_loss"].matrix == rows


def test_early_stopping_watches_a_metric_and_no_checkpoint_is_the_best(tiny, tmp_path):
    best = {"metric_for_best_model": "eval_a_loss", "greater_is_better": False}
    settings = {**best, "eval_strategy": "steps", "eval_steps": 100, "save_total_limit": 1}
    stopping = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=100.0)
    done = tiny.run(tmp_path, callbacks=[stopping], **settings)
    assert done.state.global_step == 14  # nothing is better by 100: the second evaluation is the last
    assert done.state.best_metric == done.record.matrices["eval_loss"].matrix[0][0]
    assert done.state.best_model_checkpoint is None
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-14"]


def test_an_optimizer_that_is_given_agrees_with_the_arguments(tiny, tmp_path):
    def made(rate, **changes):
        model = tiny.model()
        args = ContinualTrainingArguments(
            str(tmp_path), per_device_train_batch_size=8, use_cpu=True, report_to="none", **changes
        )
        optimizers = (torch.optim.AdamW(model.parameters(), lr=rate), None)
        data = {"a": tiny.rows(80, 0)}
        given = {"train_dataset": data, "eval_dataset": data, "data_collator": tiny.Collator()}
        return ContinualTrainer(model, args, optimizers=optimizers, **given)

    assert made(1e-3, learning_rate=1e-3).optimizer.defaults["lr"] == 1e-3
    with pytest.raises(
        ValueError, match=r"learning_rate=5e-05 must be the rate of the optimizer that is given, 0\.001"
    ):
        made(1e-3)
    with pytest.raises(ValueError, match=r"embedding_learning_rate .* cannot give parameters rates of their own"):
        made(1e-3, learning_rate=1e-3, embedding_learning_rate=1e-4)


def test_a_strategy_of_epochs_acts_after_each_pass(tiny, tmp_path):
    settings = dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "epoch")
    run = tiny.run(tmp_path, tiny.data("ab"), num_train_epochs=2, **settings)
    passes = [8, 16, 22, 28]
    assert sorted({log["step"] for log in run.watch.logs if "loss" in log}) == passes
    assert sorted({log["step"] for log in run.watch.logs if "eval_a_loss" in log}) == [0, *passes]
    assert {int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")} >= set(passes)


def test_a_strategy_of_epochs_waits_as_long_as_it_is_told(tiny, tmp_path):
    run = tiny.run(tmp_path, tiny.data("a"), num_train_epochs=4, eval_strategy="epoch", eval_delay=3)
    assert sorted({log["step"] for log in run.watch.logs if "eval_a_loss" in log}) == [0, 24, 32]


@pytest.mark.parametrize("value", [[0.1, 0.2], "good", {"f1": 0.5}])
def test_metrics_that_are_no_numbers_are_named_and_left_out(tiny, tmp_path, value, caplog):
    class Scored(ContinualTrainer):
        def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
            found = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            found.metrics[f"{metric_key_prefix}_each"] = value
            found.metrics[f"{metric_key_prefix}_f1"] = 0.5
            return found

    with caplog.at_level("WARNING", "hf_infinite_lr"):
        run = tiny.run(tmp_path, tiny.data("a"), cls=Scored)
    assert run.record.matrices.keys() == {"eval_loss", "f1"}
    assert "only numbers are recorded" in caplog.text


def test_a_host_may_take_more_than_trainer_for_an_evaluation(tiny, tmp_path):
    class Host(Trainer):
        def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval", **generation):
            self.seen = generation
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    class Continual(ContinualMixin, Host):
        pass

    trainer = tiny.trainer(tmp_path, tiny.data("a"), cls=Continual)
    assert trainer.evaluate(tiny.rows(8, 1, 0), max_length=9)["eval_loss"] > 0
    assert trainer.seen == {"max_length": 9}
    trainer.evaluate(max_length=3)
    assert trainer.seen == {"max_length": 3}


@pytest.mark.parametrize(
    ("remainder", "batch", "rows"),
    [
        (3, {"return_loss": True, "input_ids": torch.zeros(4, 8)}, slice(3)),
        (5, {"input_ids": torch.zeros(4, 8)}, slice(4)),
        (4, {"input_ids": torch.zeros(4, 8)}, None),
        (3, {"input_ids": torch.zeros(4, 8), "pixel_values": torch.zeros(20, 8)}, None),
        (3, {"input_ids": torch.zeros(4, 8), "number": torch.tensor(2)}, None),
        (3, {"text": "no tensor"}, None),
        (-1, {"input_ids": torch.zeros(4, 8)}, None),
    ],
)
def test_only_rows_that_can_be_told_apart_are_left_out_of_a_loss(tiny, tmp_path, monkeypatch, remainder, batch, rows):
    trainer = tiny.trainer(tmp_path, tiny.data("a"))
    state = SimpleNamespace(end_of_dataloader=True, remainder=remainder)
    monkeypatch.setattr(trainer.accelerator, "gradient_state", state)
    assert trainer._own_rows(batch) == rows
