"""Runs that publish while they train: what reaches the Hub, what does not, and how a run goes on from there."""

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from loopback_hub import CALLS, LoopbackHub, connect
from transformers import AutoModelForCausalLM, LlamaForCausalLM, TrainerCallback

from hf_infinite_lr.cli import main
from hf_infinite_lr.manifest import manifest_of
from hf_infinite_lr.recipe import load_recipe
from hf_infinite_lr.stream import Task
from hf_infinite_lr.trainer.preemption import Preemption

PLANTED = ("hf_plantedtoken", "planteduser", "plantedhost")
PUBLISH = {"push_to_hub": True, "hub_model_id": "user/model", "hub_token": "hf_plantedtoken"}


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.fixture(scope="module")
def logs():
    """What the loggers of ours and of the libraries below say, in one text."""
    said = io.StringIO()
    handler, names = logging.StreamHandler(said), ("hf_infinite_lr", "huggingface_hub", "transformers", "httpx2")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)
    yield said
    for name, level in levels.items():
        logging.getLogger(name).removeHandler(handler)
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="module")
def published(tiny, tmp_path_factory, patch, logs):
    """A run of three tasks with its trunks on a Hub that fails once at every call."""
    home = tmp_path_factory.mktemp("planteduser")
    patch.setenv("HOME", str(home))
    patch.setenv("USER", "planteduser")
    patch.setattr("socket.gethostname", lambda: "plantedhost")
    patch.setattr("hf_infinite_lr.trainer.publishing.write_report_of", tiny.REPORTS[1])
    run = home / "run"
    run.mkdir()
    keys = {"tasks": [{"name": "a", "dataset_name": "user/a"}, {"name": "b", "data_files": f"{home}/b.jsonl"}]}
    (run / "recipe.yaml").write_text(yaml.safe_dump({**keys, **PUBLISH, "block_size": 8, "output_dir": str(run)}))
    with LoopbackHub() as hub:
        connect(patch, hub, home / "cache")
        for call in CALLS:
            hub.fail(call, 503)
        trainer = tiny.trainer(run, hub_strategy="all_checkpoints", **PUBLISH)
        trainer.model.config._name_or_path = f"{home}/base"
        trainer.train()
        yield hub, trainer, run


@pytest.mark.pictures
def test_three_tasks_leave_three_tagged_releases_and_cards(published):
    hub, _, run = published
    names = ["01-a", "02-b", "03-c"]
    assert hub.titles() == [title for name in names for title in (f"release {name}", f"Card of release {name}")]
    assert hub.titles("trunk") == [f"trunk {name}" for name in names]
    tags = {f"task-{name}{end}" for name in names for end in ("", "-trunk")}
    assert set(hub.repos["user/model"].tags) == tags
    for name in names:
        files = hub.files(f"task-{name}")
        card = files["README.md"].decode()
        assert card == (run / "releases" / name / "README.md").read_text()
        assert f"after task {int(name[:2])}" in card
        assert not [path for path in files if path.startswith(".eval_results")], (
            "a leaderboard's own, of a dataset on the Hub"
        )
        assert "`user/model@" not in card
        assert f"user/model@task-{name}-trunk" in card
        assert {"report/report.md", "report/learning_rate.png", "report/task_matrix.eval_loss.png"} <= set(files)
        assert "![learning rate over the steps of the run](report/learning_rate.png)" in card
    assert hub.files("main")["README.md"] == hub.files("task-03-c")["README.md"]


@pytest.mark.pictures
def test_a_tagged_release_gives_the_releases_logits_and_the_cards_code_runs(published):
    hub, _, run = published
    tokens = torch.tensor([[1, 2, 3]])
    for name in ("01-a", "02-b"):
        loaded = AutoModelForCausalLM.from_pretrained("user/model", revision=f"task-{name}")
        local = LlamaForCausalLM.from_pretrained(run / "releases" / name)
        assert torch.equal(loaded(tokens).logits, local(tokens).logits)
        card = hub.files(f"task-{name}")["README.md"].decode()
        use = card.split("## Use it")[1].split("\n## ")[0]
        found = {}
        exec(re.search(r"```python\n(.*?)```", use, re.DOTALL)[1], found)
        assert torch.equal(found["logits"], local(tokens).logits)


@pytest.mark.pictures
@pytest.mark.parametrize("trunk", ["01-a", "03-c"])
def test_a_run_goes_on_from_a_published_trunk_bit_for_bit(published, tiny, tmp_path, trunk):
    _, trainer, _ = published
    continued = tiny.run(tmp_path / "run", resume=f"user/model@task-{trunk}-trunk")
    assert tiny.same_end(continued, trainer)
    assert tiny.same_tensors(
        tiny.weights(tmp_path / "run" / "releases" / "03-c"), tiny.weights(trainer._output_dir / "releases" / "03-c")
    )


@pytest.mark.pictures
def test_a_trunk_that_is_not_what_its_manifest_says_is_refused_before_it_is_read(published, tiny, tmp_path):
    hub, _, _ = published
    files = dict(hub.files("task-01-a-trunk"))
    made = hub.add_commit("user/model", "broken", "broken", "", {**files, "optimizer.pt": files["optimizer.pt"][:-1]})
    with pytest.raises(ValueError, match=r"not what its manifest says: optimizer\.pt has \d+ bytes instead of"):
        tiny.run(tmp_path / "run", resume=f"user/model@{made.oid}")
    manifest = json.loads(files["manifest.json"])
    manifest = manifest_of({**manifest["files"], "../outside": {"bytes": 0, "sha256": ""}})
    hub.add_commit("user/model", "outside", "outside", "", {**files, "manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(ValueError, match="lists no files of its own"):
        tiny.run(tmp_path / "run", resume="user/model@outside")
    with pytest.raises(ValueError, match="is no trunk of a task"):
        tiny.run(tmp_path / "run", resume="user/model@task-01-a")
    assert not list((tmp_path / "run").rglob("model.safetensors"))


@pytest.mark.pictures
def test_nothing_published_names_this_machine_its_user_or_a_token(published, logs):
    hub, _, run = published
    forbidden = [*PLANTED, str(run), str(run.parent)]
    names = set()
    for name, content in hub.everything():
        names.add(name)
        for word in forbidden:
            assert word.encode() not in content, (name, word)
    assert "recipe.yaml" in names
    assert "training_args.bin" not in names
    kept = [path for path in run.rglob("*") if path.is_file() and path.suffix in (".json", ".md", ".bin", ".pt")]
    assert not [path for path in kept if b"hf_plantedtoken" in path.read_bytes()]
    for words in ("published releases/03-c as task-03-c of user/model", "is tried again in", "/api/repos/create"):
        assert words in logs.getvalue(), "the loggers were heard"
    assert "hf_plantedtoken" not in logs.getvalue()
    recipe = yaml.safe_load(hub.files("task-01-a")["recipe.yaml"])
    assert recipe["tasks"][1]["data_files"] == "b.jsonl"
    assert not [key for key in recipe if key.startswith(("hub_", "push_"))]
    trunk = hub.files("task-01-a-trunk")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(io.BytesIO(trunk[name]), weights_only=True)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("end", ["03-c"]), ("every_save", ["01-a", "02-b", "03-c"]), ("checkpoint", ["01-a", "02-b", "03-c"])],
)
def test_strategies(tiny, tmp_path, monkeypatch, strategy, expected):
    with LoopbackHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache")
        trainer = tiny.run(
            tmp_path / "run", hub_strategy=strategy, evaluate_on="none", hub_private_repo=True, **PUBLISH
        )
        assert hub.titles() == [t for name in expected for t in (f"release {name}", f"Card of release {name}")]
        assert ("trunk" in hub.repos["user/model"].branches) == (strategy == "checkpoint")
        assert hub.repos["user/model"].private
        trainer.save_model(str(tmp_path / "again"))
        assert list(hub.repos) == ["user/model"]
        branches = hub.repos["user/model"].branches.values()
        commits = {commit.oid for branch in branches for commit in branch.history}
        assert len(commits) == 1 + 2 * len(expected) + (3 if strategy == "checkpoint" else 0)


def test_samples_of_a_stream_that_are_kept_for_replay_are_never_published(tiny, tmp_path):
    tasks = [Task(name, data.to_iterable_dataset(), num_steps=8) for name, data in tiny.data("ab").items()]
    changes = {"hub_strategy": "all_checkpoints", "evaluate_on": "none", "eval_dataset": {}, **PUBLISH}
    with pytest.raises(ValueError, match=r"would publish the samples that the streaming task 'a' keeps for replay"):
        tiny.trainer(tmp_path / "run", tasks, replay_fraction=0.25, **changes)
    tiny.trainer(tmp_path / "run", tasks, **changes)


def test_trunks_in_shards_are_not_offered_to_the_hub(tiny, tmp_path):
    trainer = tiny.trainer(tmp_path / "run", hub_strategy="checkpoint", **PUBLISH)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match=r"hub_strategy='checkpoint' cannot be used with FSDP.*'every_save'"):
        trainer._check_publication()
    trainer.args.hub_strategy = "every_save"
    trainer._check_publication()


@pytest.mark.parametrize(
    ("engine", "advice"),
    [
        ("FSDP", "those are not published: continue from a trunk on this machine"),
        ("DeepSpeed", "the same engine on the same number of processes, download it yourself .* pass its path"),
    ],
)
def test_an_engine_of_shards_takes_no_trunk_from_the_hub(tiny, tmp_path, monkeypatch, engine, advice):
    with LoopbackHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache")
        trainer = tiny.trainer(tmp_path / "run")
        setattr(trainer, f"is_{engine.lower()}_enabled", True)
        for go_on in (trainer.train, lambda checkpoint: trainer.anneal(checkpoint, 2)):
            with pytest.raises(ValueError, match=rf"'user/model@x' cannot be used with {engine}, .*{advice}"):
                go_on("user/model@x")
        assert hub.calls == []


def test_what_a_kill_has_kept_from_the_queue_is_queued_when_the_run_goes_on(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run, settings = tmp_path / "run", {"hub_strategy": "checkpoint", "evaluate_on": "none", **PUBLISH}

    def killed(name):
        raise KeyboardInterrupt

    first = tiny.trainer(run, **settings)
    monkeypatch.setattr(first, "_publish_trunk", killed)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert first._queue.waiting() == []
    second = tiny.run(run, resume=True, stop_at=6, **settings)
    assert [each.folder for each in second._queue.waiting()] == ["trunk/01-a"]
    tiny.run(run, resume=True, **settings)
    folders = [f"{kind}/{name}" for name in ("01-a", "02-b", "03-c") for kind in ("trunk", "releases")]
    assert [each.folder for each in second._queue.waiting()] == folders
    (run / "hub" / "waiting").rename(run / "hub" / "sent")
    for file in (run / "hub" / "sent").glob("*.json"):
        publication = json.loads(file.read_text())
        del publication["schema_version"]
        file.write_text(json.dumps({"repo_id": "user/model", "publication": publication}))
    next((run / "hub" / "sent").glob("*release-02-b.json")).unlink()
    second._queue.add(second._queue.publication("release", "02-b", "user/other", branch="main", private=None))
    tiny.run(run, resume=True, **settings)
    waiting = [(each.folder, each.repo_id) for each in second._queue.waiting()]
    assert waiting == [("releases/02-b", "user/other"), ("releases/02-b", "user/model")], "each repository has its own"


def test_a_run_that_is_requeued_keeps_its_last_release_for_the_end(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = {"hub_strategy": "end", "evaluate_on": "none", **PUBLISH}

    class Sigterm(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 10:
                signal.raise_signal(signal.SIGTERM)

    trainer = tiny.trainer(tmp_path / "run", callbacks=[Sigterm()], **settings)
    with Preemption(trainer) as preemption:
        trainer.train()
    assert preemption.acted
    assert (tmp_path / "run" / "releases" / "01-a").exists()
    assert trainer._queue.waiting() == []
    tiny.run(tmp_path / "run", resume=True, **settings)
    assert [each.folder for each in trainer._queue.waiting()] == ["releases/03-c"]


def test_offline_the_queue_fills_and_a_finished_run_sends_it_later(tiny, tmp_path, monkeypatch, caplog):
    with LoopbackHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        trainer = tiny.run(tmp_path / "run", evaluate_on="none", **PUBLISH)
        assert trainer.state.global_step == 21
        assert f"hf-infinite-lr push {tmp_path / 'run'}" in caplog.text
        assert "HF_HUB_OFFLINE is set" in caplog.text
        assert hub.calls == []
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        tiny.run(tmp_path / "run", resume=True, evaluate_on="none", **PUBLISH)
        assert len(hub.titles()) == 6


@pytest.mark.parametrize("kind", [401, 403, 503, "cut"])
def test_a_hub_that_always_fails_costs_the_training_nothing(tiny, tmp_path, monkeypatch, caplog, kind):
    monkeypatch.setattr("hf_infinite_lr.hub.background.PATIENCE_SECONDS", 0.0)
    with LoopbackHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache")
        hub.fail("create_repo", kind, times=10_000)
        trainer = tiny.run(tmp_path / "run", tiny.data("a"), evaluate_on="none", **PUBLISH)
        assert trainer.state.global_step == 8
        assert len(trainer._queue.waiting()) == 1
        assert "Nothing is lost" in caplog.text


def test_a_card_lies_in_every_release_also_of_a_run_that_does_not_publish(tiny, tmp_path):
    tiny.run(tmp_path / "run", tiny.data("a"), hub_license="mit")
    card = (tmp_path / "run" / "releases" / "01-a" / "README.md").read_text()
    assert 'from_pretrained("run/releases/01-a")' in card
    assert "license: mit" in card
    assert "run/trunk/01-a" in card
    assert not (tmp_path / "run" / "hub").exists()


def test_a_card_that_cannot_be_rendered_costs_the_training_nothing(tiny, tmp_path, monkeypatch, caplog):
    class MAEForCausalLM(LlamaForCausalLM):
        """A name that says nothing of what it is."""

    made = tiny.model
    monkeypatch.setattr(tiny, "model", lambda dropout: MAEForCausalLM(made(dropout).config))
    trainer = tiny.run(tmp_path / "lm", tiny.data("a"))
    card = (tmp_path / "lm" / "releases" / "01-a" / "README.md").read_text()
    assert "A causal language model (`MAEForCausalLM`)" in card
    monkeypatch.setattr("hf_infinite_lr.hub.saved_model._kind", lambda *given: "unheard of")
    trainer = tiny.run(tmp_path / "odd", tiny.data("a"))
    assert trainer.state.global_step == 8
    assert tiny.weights(tmp_path / "odd" / "releases" / "01-a")
    assert "releases/01-a has no card\nTraceback" in caplog.text
    assert "KeyError: 'unheard of'" in caplog.text


@pytest.mark.filterwarnings("default")
def test_the_card_of_an_adapter_tells_its_settings_and_the_version_of_peft(tiny, tmp_path, monkeypatch):
    import peft

    made = tiny.model
    lora = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    monkeypatch.setattr(tiny, "model", lambda dropout: peft.get_peft_model(made(dropout), lora))
    tiny.run(tmp_path / "run", tiny.data("a"))
    card = (tmp_path / "run" / "releases" / "01-a" / "README.md").read_text()
    assert [row for row in card.splitlines() if row.startswith("| `lora.")] == [
        "| `lora.r` | `3` |",
        "| `lora.target_modules` | `['q_proj', 'v_proj']` |",
    ]
    assert f", peft {peft.__version__}.\n" in card


def test_a_card_names_the_trunks_that_its_own_repository_holds(tiny, tmp_path, monkeypatch):
    """Of a run that is told another repository later on, and of one that went on from another run's trunk."""
    tasks, settings = tiny.data("ab"), {"evaluate_on": "none", "hub_strategy": "all_checkpoints", **PUBLISH}
    with LoopbackHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache")
        tiny.run(tmp_path / "run", tasks, **settings)
        tiny.run(tmp_path / "run", tasks, resume=True, **{**settings, "hub_model_id": "user/moved"})
        from_hub = {"resume": "user/model@task-02-b-trunk", "hub_model_id": "user/second"}
        tiny.run(tmp_path / "second", tasks, **{**settings, **from_hub})
        for name, parent in (("moved", "`task-01-a-trunk`"), ("second", "`trunk/01-a`, not in this repository")):
            card = hub.files("task-02-b", f"user/{name}")["README.md"].decode()
            assert f'trainer.train("user/{name}@task-02-b-trunk")' in card
            assert f"| parent of that trunk | {parent} |" in card
            assert ("task-01-a-trunk" in hub.repos[f"user/{name}"].tags) == (name == "moved")


@pytest.mark.filterwarnings("default")
def test_an_adapter_on_a_revision_is_loaded_with_the_weights_of_that_revision(tmp_path, monkeypatch):
    """The head of `main` moves with every release of a published run, and would be another model under the adapter."""
    monkeypatch.chdir(tmp_path)
    bases = [base_of_recipe(tmp_path, seed) for seed in (1, 2)]
    with LoopbackHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache")
        hub.create_repo({"organization": "user", "name": "base"})
        for place, (_, files) in enumerate(bases):
            hub.add_commit("user/base", "main", "base", "", files)
            hub.create_tag("user/base", "main", {"tag": f"v{place}"})
        changes = {"model_name_or_path": "user/base", "model_revision": "v0", "lora": {"r": 2}}
        new = {key: value for key, value in RECIPE.items() if key not in ("model_type", "config_overrides")}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**new, **changes, "tasks": RECIPE["tasks"][:1]}))
        assert main(["train", "--config", "recipe.yaml"]) == 0
        card = hub.files("task-01-docs")["README.md"].decode()
        found = {}
        exec(re.search(r"## Use it\s+```python\n(.*?)```", card, re.DOTALL)[1], found)
    assert "for `user/base` at `v0`, together" in card
    loaded = found["model"].get_base_model().get_input_embeddings().weight
    assert [torch.equal(loaded, base.get_input_embeddings().weight) for base, _ in bases] == [True, False]


def test_annealing_after_the_fact_leaves_a_card_too(tiny, tmp_path):
    trainer = tiny.run(tmp_path / "run", tiny.data("a"))
    release = trainer.anneal(tmp_path / "run" / "trunk" / "01-a", 1)
    assert "releases/01-a-from-6-over-1" in (release / "README.md").read_text()


def test_the_card_of_an_annealing_on_other_data_names_that_data(tmp_path, capsys):
    task = {"name": "docs", "builtin": "docs", "max_bytes": 20_000, "eval_bytes": 2048}
    recipe = {**RECIPE, "push_to_hub": False, "tasks": [task], "task_steps": 5, "output_dir": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "--config", str(tmp_path / "recipe.yaml")]) == 0
    other = "{builtin: cpp, max_bytes: 60000, eval_bytes: 2048}"
    trunk = str(tmp_path / "run" / "trunk" / "01-docs")
    assert main(["anneal", trunk, "--num_anneal_steps", "2", "--dataset", other]) == 0
    card = (tmp_path / "run" / "releases" / "01-docs-from-4-over-2-on-dataset" / "README.md").read_text()
    assert "trained on other data than the task's: dataset, built-in corpus `cpp`." in card
    assert "| 1 | **docs** | built-in corpus `docs` | - | 6 | 2 |" in card, "the samples are of the other data"


def test_the_verb_anneal_says_where_to_take_a_trunk_of_the_hub_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["anneal", "user/model@task-01-a-trunk", "--num_anneal_steps", "2", "--config", "recipe.yaml"]) == 1
    assert "user/model@task-01-a-trunk lies on the Hub: download it and its recipe first" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said"), [(OSError("Try again."), "OSError: Try again."), (OSError("x"), "OSError: x.")]
)
def test_a_trunk_that_cannot_be_had_is_told_in_one_sentence(tiny, tmp_path, monkeypatch, error, said):
    def refuse(*given, **options):
        raise error

    monkeypatch.setattr("hf_infinite_lr.hub.download.hf_hub_download", refuse)
    with pytest.raises(ValueError, match="cannot be had") as caught:
        tiny.run(tmp_path / "run", resume="user/model@task-01-a-trunk")
    assert str(caught.value) == f"resume_from_checkpoint='user/model@task-01-a-trunk' cannot be had: {said}"


@pytest.mark.slow
def test_a_training_that_is_killed_while_it_pushes_goes_on_and_doubles_nothing(tmp_path):
    script = f"""
import conftest
from hf_infinite_lr.trainer import mixin, publishing
mixin.write_report = publishing.write_report_of = lambda *given: None
conftest.run({str(tmp_path / "run")!r}, resume=True, evaluate_on="none", push_to_hub=True, hub_model_id="user/model")
"""
    folder = str(Path(__file__).parent)
    with LoopbackHub() as hub:
        paths = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "PYTHONPATH": paths}
        hub.fail("commit", "hang_done")
        child = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.DEVNULL)
        assert hub.hanging.wait(600)
        child.kill()
        child.wait()
        assert (tmp_path / "run" / "hub" / "waiting").is_dir()
        subprocess.run([sys.executable, "-c", script], env=environment, stdout=subprocess.DEVNULL, check=True)
        names = ("01-a", "02-b", "03-c")
        assert hub.titles() == [title for name in names for title in (f"release {name}", f"Card of release {name}")]


RECIPE = {
    "objective": "causal_lm",
    "model_type": "llama",
    "config_overrides": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "tokenizer_name": "byte",
    "block_size": 64,
    "tasks": [{"name": name, "builtin": name, "max_bytes": 60_000, "eval_bytes": 4096} for name in ("docs", "cpp")],
    "task_steps": 10,
    "lr_scheduler_type": "infinite",
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "output_dir": "run",
    "push_to_hub": True,
    "hub_model_id": "user/model",
    "hub_strategy": "all_checkpoints",
}


def base_of_recipe(folder, seed):
    """A pretrained model with its tokenizer, as they lie on the Hub."""
    (folder / "base.yaml").write_text(yaml.safe_dump(RECIPE))
    objective = load_recipe(folder / "base.yaml").objective
    torch.manual_seed(seed)
    model = objective.model()
    target = folder / f"base-{seed}"
    model.save_pretrained(target)
    objective.tokenizer.save_pretrained(target)
    return model, {path.name: path.read_bytes() for path in target.iterdir()}


def test_train_ends_well_with_a_queue_and_says_how_to_send_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    task = {"name": "docs", "builtin": "docs", "max_bytes": 20_000, "eval_bytes": 2048}
    recipe = {**RECIPE, "tasks": [task], "task_steps": 5, "evaluate_on": "none", "output_dir": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "--config", str(tmp_path / "recipe.yaml")]) == 0
    said = capsys.readouterr().err
    assert "Not on the Hub yet: trunk/01-docs, releases/01-docs (HF_HUB_OFFLINE is set)." in said
    assert f"hf-infinite-lr push {tmp_path / 'run'}" in said


TOGETHER = """
import sys, time
from datetime import timedelta
import conftest as tiny
from hf_infinite_lr.cli.run import leave_process_group
from hf_infinite_lr.trainer import mixin, publishing
from torch.distributed.distributed_c10d import _set_pg_timeout, default_pg_timeout

mixin.write_report = publishing.write_report_of = lambda *given: None
tiny.torch.distributed.init_process_group("gloo")
wait = publishing.Publishing._finish_current_push

def wait_with_short_collectives(trainer):
    began = time.monotonic()
    _set_pg_timeout(timedelta(seconds=float(sys.argv[2])))
    wait(trainer)
    _set_pg_timeout(default_pg_timeout)
    if trainer.args.push_to_hub:
        open(f"{out}/waited.{tiny.os.environ['RANK']}", "w").write(str(time.monotonic() - began))

publishing.Publishing._finish_current_push = wait_with_short_collectives
out, settings = sys.argv[1], {"noise": False, "dropout": 0.0, "per_device_train_batch_size": 4, "evaluate_on": "none"}
publish = {"push_to_hub": True, "hub_model_id": "user/model", "hub_strategy": "checkpoint"}
tiny.run(f"{out}/first", tiny.data("ab"), **publish, **settings)
try:
    tiny.run(f"{out}/refused", tiny.data("ab"), resume="user/model@none", **settings)
except ValueError as error:
    open(f"{out}/refusal.{tiny.os.environ['RANK']}", "w").write(str(error))
done = tiny.run(f"{out}/second", tiny.data("ab"), resume="user/model@task-01-a-trunk", **settings)
open(f"{out}/end.{tiny.os.environ['RANK']}", "w").write(str(done.state.global_step))
leave_process_group(wait=True)
"""


@pytest.mark.slow
def test_two_processes_outlast_an_upload_and_go_on_from_the_hub(tmp_path, tiny):
    """The upload waits longer than a collective may last; what one process is refused, both are."""
    longest_collective = 4.0
    (tmp_path / "together.py").write_text(TOGETHER)
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with LoopbackHub() as hub:
        hub.fail("create_repo", 503, retry_after=8, after=3)  # at the release with which the training ends
        client = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        environment = {**os.environ, **client, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        words = [sys.executable, "-W", "ignore", *launcher, str(tmp_path / "together.py"), str(tmp_path)]
        words.append(str(longest_collective))
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert hub.faults[0].times == 0
        assert hub.titles("trunk") == ["trunk 01-a", "trunk 02-b"]
    assert all(float((tmp_path / f"waited.{rank}").read_text()) > longest_collective for rank in (0, 1))
    refusals = {(tmp_path / f"refusal.{rank}").read_text() for rank in (0, 1)}
    assert len(refusals) == 1
    assert "'user/model@none' cannot be had" in refusals.pop()
    assert [(tmp_path / f"end.{rank}").read_text() for rank in (0, 1)] == ["14", "14"]
    ends = [tiny.weights(tmp_path / run / "releases" / "02-b") for run in ("first", "second")]
    assert tiny.same_tensors(*ends)


@pytest.mark.slow
def test_the_commands_of_a_published_card_continue_bit_for_bit_and_anneal(tmp_path, tiny):
    home = tmp_path / "planteduser"
    home.mkdir()
    (home / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with LoopbackHub() as hub:
        planted = {
            "HOME": str(home),
            "USER": "planteduser",
            "HF_TOKEN": "hf_plantedtoken",
            "HF_HOME": str(home / "hf"),
        }
        environment = {**os.environ, **planted, "PATH": tools, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}

        def said_by(commands):
            done = subprocess.run(
                ["bash", "-ec", commands], cwd=home, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout + done.stderr

        said = said_by("hf-infinite-lr train --config recipe.yaml")
        assert "hf_plantedtoken" in hub.tokens
        card = hub.files("task-01-docs")["README.md"].decode()
        blocks = re.findall(r"```bash\n(.*?)```", card, re.DOTALL)
        assert [block.split()[:2] for block in blocks] == [["hf", "download"]] * 2
        said += "".join(map(said_by, blocks))
        for name, content in hub.everything():
            assert not [word for word in PLANTED if word.encode() in content], name
    assert "hf_plantedtoken" not in said
    ends = [tiny.weights(home / run / "releases" / "02-cpp") for run in ("run", "continued/run")]
    assert tiny.same_tensors(*ends)
    assert list((home / "annealed").rglob("model.safetensors"))
