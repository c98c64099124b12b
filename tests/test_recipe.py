import gzip
import json
from functools import partial

import pytest
import yaml

from hf_infinite_lr.recipe import load_recipe, parse_value

MODEL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


@pytest.fixture
def files(tmp_path):
    """Two small corpora as plain files, and a way to write a recipe over them."""
    for name, word in (("one", "apple pear "), ("two", "north south ")):
        (tmp_path / name).mkdir()
        for number in range(12):
            (tmp_path / name / f"{number}.txt").write_text(f"{number} {word}" * 40, encoding="utf-8")

    def write(text=None, **changes):
        content = {
            "objective": "causal_lm",
            "model_type": "llama",
            "config_overrides": dict(MODEL),
            "tokenizer_name": "byte",
            "block_size": 32,
            "tasks": [
                {"name": "one", "data_files": f"{tmp_path}/one/*.txt", "eval_fraction": 0.2},
                {"name": "two", "data_files": f"{tmp_path}/two/*.txt", "eval_fraction": 0.2, "num_steps": 4},
            ],
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-3,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "output_dir": str(tmp_path / "out"),
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        kept = {key: value for key, value in content.items() if value is not ...}
        if isinstance(text, bytes):
            path.write_bytes(text)
        else:
            path.write_text(yaml.safe_dump(kept) if text is None else text, encoding="utf-8")
        return path

    return write


def refused(path, message, *overrides):
    """A sentence, before anything is written."""
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(path, overrides).trainer()
    assert "\n" not in str(caught.value)
    assert not list(path.parent.glob("out/*"))


# ---- what a recipe does --------------------------------------------------------------------------------------------


def test_a_recipe_trains_and_scores_in_bits_per_byte(files, tmp_path):
    recipe = load_recipe(files(), ["--max_steps", "3", "--save_strategy", "no"])
    lengths = recipe.task_lengths()
    trainer = recipe.trainer()
    assert lengths == {task.name: task.num_steps for task in trainer.plan.tasks}
    assert lengths["two"] == 4
    trainer.train()
    state = json.loads((tmp_path / "out" / "continual_state.json").read_text())
    bits = json.loads((tmp_path / "out" / "task_matrix.bits_per_byte.json").read_text())
    assert bits["columns"] == ["one", "two"]
    assert all(7 < value < 10 for value in bits["baseline"])  # an untrained model over 256 bytes and a few more
    spent = {kind: state["tasks"][0][kind]["spent"] for kind in ("samples", "tokens")}
    assert spent == {"samples": lengths["one"] * 16, "tokens": lengths["one"] * 16 * 32}
    last = trainer.state.log_history[-1]
    assert (last["tokens_spent"], last["tokens_on_path"]) == (3 * 16 * 32, 3 * 16 * 32)
    unigram = state["references"]["byte_unigram"]
    assert unigram["metric"] == "bits_per_byte"
    assert all(2 < value < 5 for value in unigram["values"].values())


def test_a_loss_that_is_not_the_datas_is_refused(files):
    refused(files(label_smoothing_factor=0.1), r"label_smoothing_factor=0\.1 cannot be used for language models")


def test_a_streaming_task_is_read_while_training(files, tmp_path):
    stream = {"name": "s", "data_files": f"{tmp_path}/one/*.txt", "streaming": True, "num_eval_samples": 2}
    tokens = {**stream, "num_tokens": 3 * 16 * 32 + 5}
    recipe = load_recipe(files(tasks=[tokens], save_strategy="no", warmup_steps=1, evaluate_on="none"))
    assert recipe.task_lengths() == {"s": 3}
    trainer = recipe.trainer()
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.references == {}


def test_trunks_that_hold_samples_of_a_stream_are_not_published(files, tmp_path):
    stream = {"data_files": f"{tmp_path}/one/*.txt", "streaming": True, "num_eval_samples": 2}
    publish = {"push_to_hub": True, "hub_strategy": "checkpoint", "replay_fraction": 0.25}
    named = {**stream, "name": "s", "num_steps": 3}
    mixed = {"name": "m", "mixture": [{**stream, "weight": 1}, {**stream, "weight": 1}], "num_steps": 3}
    for task in (named, mixed):
        words = f"the samples that the streaming task '{task['name']}' keeps for replay"
        refused(files(tasks=[task], **publish), words)
        load_recipe(files(tasks=[task], **{**publish, "hub_strategy": "every_save"}))


@pytest.mark.parametrize(
    ("changes", "entry"),
    [
        ({"task_steps": [6]}, {}),
        ({"task_steps": [6, 7]}, {"num_epochs": 2}),
        ({"num_train_epochs": 2}, {}),
        ({}, {"num_steps": 9}),
        ({"task_steps": [5]}, {"num_steps": 9}),
        ({}, {"num_tokens": 16 * 32 * 7}),
    ],
)
def test_the_lengths_that_show_uses_are_those_of_the_run(files, tmp_path, changes, entry):
    path = files(**changes)
    content = yaml.safe_load(path.read_text())
    content["tasks"][0].update(entry)
    path.write_text(yaml.safe_dump(content))
    told = load_recipe(path).task_lengths()
    assert told == {task.name: task.num_steps for task in load_recipe(path).trainer().plan.tasks}


def test_overrides_merge_and_go_deep(files):
    recipe = load_recipe(
        files(lr_scheduler_kwargs={"num_anneal_steps": 0.1, "anneal_type": "linear"}),
        [
            "--lr_scheduler_kwargs.num_anneal_steps",
            "0",
            "--lr_scheduler_kwargs={min_lr_ratio: 0.2}",
            "--config_overrides.hidden_size=32",
            "--learning_rate",
            "3e-4",
            "--resume_from_checkpoint",
            "true",
        ],
    )
    assert recipe.arguments.lr_scheduler_kwargs == {
        "num_anneal_steps": 0,
        "anneal_type": "linear",
        "min_lr_ratio": 0.2,
    }
    assert recipe.objective.source.config_overrides == {**MODEL, "hidden_size": 32}
    assert recipe.arguments.learning_rate == 3e-4
    assert recipe.arguments.resume_from_checkpoint is True
    assert recipe.arguments.lr_scheduler_type == "infinite"


@pytest.mark.parametrize(("written", "steps"), [("500", 500), ("1", 1), ("0", 0), ("0.05", 0.05), ("5e2", 500)])
def test_warmup_steps_are_steps_or_a_share(files, written, steps):
    value = load_recipe(files(), ["--warmup_steps", written]).arguments.warmup_steps
    assert (value, type(value)) == (steps, type(steps))


def test_yaml_numbers_are_numbers(files):
    path = files()
    path.write_text(path.read_text() + "\nmax_steps: 1e2\nweight_decay: 1\nlogging_steps: 5.0e+1\n")
    arguments = load_recipe(path).arguments
    assert (arguments.max_steps, arguments.weight_decay, arguments.logging_steps) == (100, 1.0, 50)
    assert type(arguments.max_steps) is int
    assert parse_value("1e-3") == 1e-3
    assert parse_value("a: b: c") == "a: b: c"


# ---- what a recipe refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", r"recipe\.yaml must hold a mapping of keys to values, not a list"),
        ("", r"recipe\.yaml must hold a mapping of keys to values, not a NoneType"),
        ("just text", r"must hold a mapping of keys to values, not a str"),
        ("a: [1, 2", r"recipe\.yaml is not valid YAML"),
        (b"objective: caf\xe9\n", r"recipe\.yaml is not UTF-8 text \(byte 14\)"),
        ("1: 2\n", r"1 is an unknown key"),
        ("output_dir: out\n", r"'tasks' is missing"),
        ("tasks: [{name: a, builtin: docs}]\nmodel_type: llama\n", r"'output_dir' is missing"),
    ],
)
def test_files_that_are_no_recipe(files, text, message):
    refused(files(text), message)


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.yaml cannot be read: No such file"):
        load_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1}, r"'learning_rat' is an unknown key; did you mean 'learning_rate'\?"),
        ({"learning_rate": "fast"}, r"learning_rate='fast' must be of type float"),
        ({"learning_rate": 0}, r"learning_rate=0\.0 must be above 0"),
        ({"learning_rate": True}, r"learning_rate=True must be of type float"),
        ({"max_steps": 2.5}, r"max_steps=2\.5 must be of type int"),
        ({"bf16": "perhaps"}, r"bf16='perhaps' must be of type bool"),
        ({"output_dir": 5}, r"output_dir=5 must be of type"),
        ({"output_dir": None}, r"output_dir"),
        ({"task_steps": "many"}, r"task_steps='many'"),
        ({"task_steps": {"one": 3}}, r"task_steps=\{'one': 3\}"),
        ({"lr_scheduler_kwargs": [1]}, r"lr_scheduler_kwargs=\[1\]"),
        ({"lr_scheduler_kwargs": 5}, r"lr_scheduler_kwargs=5"),
        ({"lr_scheduler_kwargs": "{not json"}, r"lr_scheduler_kwargs"),
        ({"lr_scheduler_type": "infinit"}, r"infinit"),
        ({"objective": "causal"}, r"objective='causal' must be one of"),
        ({"tasks": []}, r"tasks=\[\] must name at least one dataset"),
        ({"tasks": {"one": {}}}, r"tasks=.* must be a list of mappings"),
        ({"tasks": ["one"]}, r"tasks=\['one'\] must be a list of mappings"),
        ({"tasks": [{"builtin": "docs"}]}, r"tasks: entry 1 needs a name"),
        ({"tasks": [{"name": 7, "builtin": "docs"}]}, r"tasks: entry 1 needs a name"),
        ({"evaluate_also": {"name": "x"}}, r"evaluate_also=.* must be a list of mappings"),
        ({"block_size": "long"}, r"block_size='long' must be of type int"),
        ({"block_size": 1}, r"block_size is 1 but must be a whole number of at least 2"),
        ({"block_size": 64}, r"block_size is 64 but the model has only 32 positions"),
        (
            {
                "block_size": 64,
                "model_type": "gpt2",
                "config_overrides": {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2},
            },
            r"block_size is 64 but the model has only 32 positions",
        ),
        ({"model_type": "lama"}, r"model_type 'lama' is unknown; did you mean 'llama'\?"),
        ({"model_type": ...}, r"config_name is None, model_type is None: give exactly one"),
        ({"config_overrides": {"hiden_size": 8}}, r"config_overrides\.hiden_size is no field.*'hidden_size'"),
        ({"config_overrides": 5}, r"config_overrides"),
        ({"tokenizer_name": ...}, r"tokenizer_name is missing"),
        ({"save_only_model": True}, r"save_only_model=True cannot be used"),
        ({"per_device_train_batch_size": 5000}, r"'one' has \d+ samples, less than one global batch of 5000"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_keys_and_values(files, changes, message):
    refused(files(**changes), message)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"data_fils": "x"}, r"tasks: 'one': 'data_fils' is an unknown key; did you mean 'data_files'\?"),
        ({"data_files": "nowhere/*.txt"}, r"data_files 'nowhere/\*\.txt' of task 'one' matches no file"),
        ({"data_files": 5}, r"data_files"),
        ({"data_files": ...}, r"'one' must give exactly one of builtin, dataset_name and data_files, not none"),
        ({"builtin": "docs"}, r"exactly one of builtin, dataset_name and data_files, not builtin and data_files"),
        ({"data_files": ..., "eval_fraction": ..., "builtin": "doc"}, r"doc"),
        ({"text_column": "content"}, r"text_column of task 'one' is 'content', but there is only text"),
        ({"eval_fraction": 1.0}, r"eval_fraction of task 'one' is 1\.0 but must be between 0 and 1"),
        ({"eval_fraction": "half"}, r"tasks: 'one': eval_fraction='half' must be of type float"),
        ({"num_steps": "four"}, r"num_steps='four' must be a whole number above 0"),
        ({"num_steps": 4, "num_epochs": 1}, r"'one' has num_steps, num_epochs: give one of them"),
        ({"num_tokens": 100}, r"num_tokens=100 of 'one' is less than one global batch of 16 blocks of 32 tokens"),
        ({"num_tokens": "many"}, r"num_tokens='many' of 'one'"),
        ({"num_epochs": "two"}, r"num_epochs='two'"),
        ({"name": "Two!"}, r"'Two!' and 'two' are the same \('two'\)"),
        ({"name": "two"}, r"'two' and 'two' are the same"),
        ({"name": "--"}, r"name='--' must contain at least one letter or digit"),
        ({"streaming": True, "eval_fraction": ...}, r"'one' streams and must name its held-out part"),
        ({"streaming": True, "eval_fraction": ..., "num_eval_samples": 2}, r"'one' is a streaming dataset without a"),
        ({"eval_data_files": "nowhere.txt", "eval_fraction": ...}, r"nowhere\.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_entries_of_tasks(files, entry, message):
    path = files()
    content = yaml.safe_load(path.read_text())
    content["tasks"][0] = {k: v for k, v in {**content["tasks"][0], **entry}.items() if v is not ...}
    path.write_text(yaml.safe_dump(content))
    refused(path, message)


@pytest.mark.parametrize(
    ("name", "content", "streaming", "message"),
    [
        ("a.jsonl", b"no JSON\n" * 9, False, "JSON parse error"),
        ("a.jsonl", b"no JSON\n" * 9, True, "JSON parse error"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b', False, "JSON parse error: Missing a closing quotation mark"),
        ("a.parquet", b"PAR1 and then nothing", False, "Parquet"),
    ],
)
def test_content_that_cannot_be_read_is_named(files, tmp_path, name, content, streaming, message):
    (tmp_path / name).write_bytes(content)
    task = {"name": "one", "data_files": str(tmp_path / name), "streaming": streaming, "num_eval_samples": 1}
    refused(files(tasks=[{**task, "num_steps": 3}]), rf"{name}' of task 'one' cannot be read: .*{message}")


@pytest.mark.parametrize(("suffix", "packed"), [("", bytes), (".gz", partial(gzip.compress, mtime=0))])
def test_text_that_is_not_utf8(files, tmp_path, suffix, packed):
    (tmp_path / f"3.txt{suffix}").write_bytes(packed(b"fine so far \xff"))
    task = {"name": "one", "data_files": str(tmp_path / f"3.txt{suffix}"), "num_steps": 3}
    refused(files(tasks=[task]), rf"3\.txt{suffix} is not UTF-8 text: byte 12 cannot be decoded")


def test_an_evaluation_column_with_the_name_of_a_task(files, tmp_path):
    also = [{"name": "One", "data_files": f"{tmp_path}/two/*.txt"}]
    refused(files(evaluate_also=also), r"'one' and 'One' are the same")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learning_rate", "3"], r"'learning_rate' must be the name of a key"),
        (["--learning_rate"], r"--learning_rate needs a value"),
        (["--learning_rate.x", "3"], r"--learning_rate\.x: learning_rate is 0\.001, no mapping"),
        (["--lr_scheduler_kwargs.num_aneal_steps", "3"], r"num_aneal_steps=3 .*num_anneal_steps"),
        (["--no_such_key=1"], r"'no_such_key' is an unknown key"),
    ],
)
def test_overrides_that_are_wrong(files, overrides, message):
    refused(files(), message, *overrides)


def test_the_command_says_the_sentence_and_exits_1(files, capsys):
    from hf_infinite_lr.cli.train import train

    assert train(["--config", str(files(learning_rate=0))]) == 1
    assert capsys.readouterr().err.strip().endswith("hf-infinite-lr train: learning_rate=0.0 must be above 0.")
    assert train(["--learning_rate", "3"]) == 1
    assert "--config RECIPE.yaml is missing" in capsys.readouterr().err
    assert train([]) == 2


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("learning_rate: 1.0e-3\ntasks: []\nlearning_rate: 5.0e-1\n")
    with pytest.raises(ValueError, match="'learning_rate' stands twice, again in line 3"):
        load_recipe(path)
    path.write_text("tasks:\n  - {name: one, num_steps: 6, num_steps: 60}\n")
    with pytest.raises(ValueError, match="'num_steps' stands twice, again in line 2"):
        load_recipe(path)


def test_merge_keys_and_keys_of_two_types_stand_once():
    text = "{base: &b {lr: 1, x: 2}, tasks: [&a {<<: *b, lr: 3}], last: {<<: *a}, 1: c, '1': d}"
    assert parse_value(text)["last"] == {"lr": 3, "x": 2}
    with pytest.raises(ValueError, match="'a' stands twice"):
        parse_value("{a: 1, a: 2}")


def test_numbers_are_those_of_yaml_1_2():
    assert [parse_value(text) for text in ("0100", "1_000", "-5", "0.5", "0x10")] == [100, 1000, -5, 0.5, 16]
