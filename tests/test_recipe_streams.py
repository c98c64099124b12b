"""A recipe that splits an entry into tasks, mixes datasets inside a task, and trains on a subset."""

import json

import pytest
import yaml

from hf_infinite_lr.recipe import load_recipe

MODEL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
TOPICS = ["farm", "sea", "town", "sky"]


@pytest.fixture
def recipe(tmp_path):
    """A corpus with topics, years and vectors; `recipe(entry, ...)` loads a recipe of one entry over it."""
    rows = []
    for number in range(120):
        topic = TOPICS[number % 4]
        text = f"{number} of the {topic} " * (12 + number % 3)
        vector = [float(number % 4 // 2), number / 1000]
        rows.append(
            {"text": text, "topic": topic, "date": f"20{20 + number % 3}-0{1 + number % 9}-01", "vector": vector}
        )
    path = tmp_path / "data.jsonl"
    held = tmp_path / "held.jsonl"
    for file, part in ((path, rows), (held, rows[::5])):
        file.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")

    def load(*entries, **changes):
        tasks = []
        for entry in entries:
            data = {} if "mixture" in entry or "builtin" in entry else {"data_files": str(path)}
            tasks.append({"name": "news", **data, **entry})
        content = {
            "objective": "causal_lm",
            "model_type": "llama",
            "config_overrides": dict(MODEL),
            "tokenizer_name": "byte",
            "block_size": 32,
            "tasks": json.loads(json.dumps(tasks).replace("DATA", str(path)).replace("HELD", str(held))),
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "output_dir": str(tmp_path / "out"),
            **changes,
        }
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return load_recipe(file)

    return load


def split(**keys):
    return {"split_into": keys, "eval_fraction": 0.3}


TREE = {"farm": "land/village", "town": "land/village", "sea": "water", "sky": "air"}


@pytest.mark.parametrize(
    ("entry", "names", "holds"),
    [
        (split(kind="instance", num_tasks=3), ["news-1", "news-2", "news-3"], "random part 1 of 3"),
        (split(kind="class", num_tasks=2, column="topic", seed=None), ["news-1", "news-2"], "classes farm, sea"),
        (split(kind="distance", num_tasks=2, column="topic", tree=TREE), ["news-1", "news-2"], None),
        (split(kind="distance", num_tasks=2, column="topic", features="vector"), ["news-1", "news-2"], None),
        (split(kind="domain", column="topic"), [f"news-{topic}" for topic in sorted(TOPICS)], "domain farm"),
        (split(kind="domain", column="topic", domains=["sky", "sea"]), ["news-sky", "news-sea"], "domain sky"),
        (split(kind="time", period="year"), ["news-2020", "news-2021", "news-2022"], "2020-01-01 to 2020-07-01"),
        (split(kind="time", num_tasks=2), ["news-1", "news-2"], None),
        (split(kind="time", boundaries=["2021-05"]), ["news-1", "news-2"], None),
    ],
)
def test_an_entry_becomes_several_tasks(recipe, entry, names, holds):
    made = recipe({**entry, "num_epochs": 0.5})
    stream = made.stream()
    assert [task.name for task in stream.tasks] == names
    assert all(task.num_epochs == 0.5 for task in stream.tasks)
    assert all(len(task.eval_dataset) for task in stream.tasks)
    assert holds in (None, stream.tasks[0].holds)
    assert stream.tasks[0].dataset.column_names == ["input_ids"]
    assert list(made.task_lengths()) == names
    assert len({task.identity() for task in stream.tasks}) == len(names)


def test_what_is_known_without_data_is_told_without_data(recipe):
    made = recipe({**split(kind="class", num_tasks=2, column="topic"), "num_steps": 7, "data_files": "nowhere.jsonl"})
    made.check()
    assert made.task_lengths() == {"news-1": 7, "news-2": 7}


def test_a_split_stream_trains_with_replay(recipe, tmp_path):
    entry = {
        "streaming": True,
        "eval_data_files": "HELD",
        "num_steps": 4,
        "split_into": {"kind": "domain", "column": "topic", "domains": ["farm", "sea"]},
    }
    trainer = recipe(entry, replay_fraction=0.25, save_strategy="no", evaluate_on="current").trainer()
    trainer.train()
    assert trainer.state.global_step == 8
    assert (tmp_path / "out" / "trunk" / "02-news-sea" / "replay" / "01-news-farm" / "tail.arrow").exists()
    matrix = json.loads((tmp_path / "out" / "task_matrix.json").read_text())
    assert matrix["tasks"] == ["news-farm", "news-sea"]


MIXED = {
    "num_epochs": 2,
    "mixture_samples": 24,
    "mixture": [
        {"weight": 0.75, "data_files": "DATA", "eval_fraction": 0.1},
        {"weight": 0.25, "data_files": "HELD", "eval_fraction": 0.1, "subset": 0.5},
    ],
}


def test_a_mixture_is_trained_and_held_out(recipe):
    trainer = recipe(MIXED, save_strategy="no").trainer()
    mixed = trainer.stream.tasks[0].dataset
    assert mixed.counts == (18, 6)
    assert trainer.plan.tasks[0].num_steps == 12
    trainer.train()
    assert trainer.state.global_step == 12


def test_a_mixture_of_streams(recipe):
    parts = [{**part, "streaming": True, "num_eval_samples": 3} for part in MIXED["mixture"]]
    parts = [{key: value for key, value in part.items() if key != "eval_fraction"} for part in parts]
    trainer = recipe({"mixture": parts, "num_steps": 3}, save_strategy="no", evaluate_on="none").trainer()
    trainer.train()
    assert trainer.state.global_step == 3


def test_a_subset_is_smaller_and_the_same_for_the_same_seed(recipe):
    sizes, rows = {}, {}
    for subset in (0.25, 20, None):
        made = [recipe({"subset": subset} if subset else {}, seed=seed).stream().tasks[0] for seed in (0, 0, 1)]
        sizes[subset] = len(made[0].dataset)
        rows[subset] = [task.dataset["input_ids"][:] for task in made]
        assert rows[subset][0] == rows[subset][1]
        assert (rows[subset][0] == rows[subset][2]) == (subset is None)
    assert sizes[20] < sizes[0.25] < sizes[None]


def test_parts_of_a_builtin_corpus_have_identities_of_their_own(recipe):
    entry = {"builtin": "python", "max_bytes": 40_000, "eval_bytes": 40_000}
    whole = recipe(entry).stream().tasks[0].identity()
    parts = [
        task.identity()
        for task in recipe({**entry, "split_into": {"kind": "instance", "num_tasks": 2}}).stream().tasks
    ]
    assert len({whole, *parts, recipe({**entry, "subset": 0.5}).stream().tasks[0].identity()}) == 4


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (split(kind="clas", num_tasks=2), r"'news': split_into: kind='clas' must be one of .*; did you mean 'class'"),
        (split(num_tasks=2), r"split_into: kind=None must be one of class, distance, domain, instance, time"),
        ({"split_into": 5}, r"split_into=5 must be a mapping with a kind"),
        (split(kind="class"), r"split_into: 'num_tasks' is missing, which kind 'class' needs"),
        (split(kind="class", num_task=2), r"'num_task' is an unknown key of kind 'class'; did you mean 'num_task"),
        (split(kind="class", num_tasks=2, period="year"), r"'period' is an unknown key of kind 'class'"),
        (split(kind="class", num_tasks=2, eval_dataset="x"), r"'eval_dataset' is an unknown key of kind 'class'"),
        (split(kind="class", num_tasks=5, column="topic"), r"num_tasks=5 is more than the 4 classes"),
        (split(kind="class", num_tasks=2), r"column 'label' of task 'news' is missing: there is only text, topic"),
        (split(kind="time", column="when", period="year"), r"column 'when' of task 'news' is missing"),
        (split(kind="time", column="topic", period="year"), r"topic holds 'farm', which is no date"),
        (split(kind="domain"), r"column is missing: name the column of domains"),
        ({"mixture_samples": 5}, r"'news': mixture_samples goes with mixture only"),
        ({"mixture": []}, r"mixture=\[\] must be a list of mappings"),
        ({"mixture": [{"data_files": "DATA"}]}, r"part 'news 1' of a mixture needs a weight"),
        ({"mixture": [{"weight": 1, "data_files": "DATA", "num_steps": 3}]}, r"has 'num_steps', which"),
        ({"mixture": [{"weight": 0, "data_files": "DATA"}]}, r"weight=0 must be a finite number above 0"),
        ({"mixture": [{"weight": 1, "data_fils": "DATA"}]}, r"'news 1': 'data_fils' is an unknown key"),
        ({"mixture": [{"weight": 1, "data_files": "DATA"}], "text_column": "x"}, r"'text_column' does not go with"),
        (
            {"mixture": [{"weight": 1, "data_files": "DATA"}], "split_into": {"kind": "instance", "num_tasks": 2}},
            r"'news' has split_into and mixture: give one of them",
        ),
        (
            {
                "num_steps": 2,
                "mixture": [
                    {"weight": 1, "data_files": "DATA"},
                    {"weight": 1, "data_files": "DATA", "streaming": True, "num_eval_samples": 1},
                ],
            },
            r"'news': some parts of its mixture are streaming and some are not",
        ),
        ({"subset": 0}, r"subset=0 must be a whole number of samples, or a share"),
        ({"subset": 500}, r"subset=500 is more than the \d+ samples"),
        ({"splitt_into": {}}, r"'splitt_into' is an unknown key"),
    ],
)  # fmt: skip
def test_keys_and_values(recipe, tmp_path, entry, message):
    with pytest.raises(ValueError, match=message) as caught:
        recipe(entry).trainer()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*"))
