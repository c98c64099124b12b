"""Model cards: what is in them, that they survive hostile data, that the examples are current."""

import json
import re
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from loopback_hub import card_faults

from hf_infinite_lr.hub import render_card
from hf_infinite_lr.hub.card import code, text
from hf_infinite_lr.hub.contents import NotPublishableError, contents_of, secrets_of, without_paths
from hf_infinite_lr.hub.facts import release_facts
from hf_infinite_lr.hub.metadata import evaluation_entries
from hf_infinite_lr.hub.saved_model import hub_id, model_facts
from hf_infinite_lr.hub.settings import LARGEST_TABLE, changed_settings
from hf_infinite_lr.hub.templates import template_folder
from hf_infinite_lr.metrics import TaskMatrix
from hf_infinite_lr.report.run import Run
from hf_infinite_lr.trainer.checkpoints import write_manifest

EXAMPLES = Path(__file__).parent.parent / "model_cards" / "examples"
HOSTILE = [
    "quotes \" and ' and `ticks` ``two``",
    "lines\n---\n# not a title\n---\nlicense: stolen",
    "{yaml: [*anchor, &a !!python/object x]}: - > |",
    "<script>alert(1)</script><img src=x onerror=y>",
    "| pipes | and *stars* [link](javascript:x) ![p](q)",
    "\u202eright to left \U0001f600 \x07",
    "back\\slash \\| and \\` and \\",
]


def run_of(names, path):
    """A finished run over these tasks, as the trainer's own record would tell it."""
    tasks = [
        {
            "name": name,
            "directory": f"{place + 1:02d}-task",
            "num_steps": 10,
            "num_anneal_steps": 2,
            "start_step": 10 * place,
            "branch_step": 10 * place + 8,
            "end_step": 10 * place + 10,
            "num_samples": 80,
            "updates": {"spent": 10, "on_path": 8},
            "samples": {"spent": 80, "on_path": 64},
        }
        for place, name in enumerate(names)
    ]
    phase = {"name": "anneal", "task": len(names) - 1, "start_step": 10 * len(names) - 2, "end_step": 10 * len(names)}
    state = {
        "global_step": 10 * len(names),
        "schedule": {
            "name": "infinite",
            "learning_rate": 3e-4,
            "arguments": {"note": names[0]},
            "warmup_steps": 2,
            "phases": [{**phase, "start_rate": 1e-4, "end_rate": 3e-5, "shape": "exponential"}],
        },
        "settings": {"seed": 1, "data_seed": 1, "global_batch_size": 8, "anneal_budget": "within"},
        "tasks": tasks,
        "evaluate_also": [],
        "versions": {"torch": "2"},
        "compute": {"train_seconds": 1.0, "evaluation_seconds": 0.5},
        "units": {"eval_loss": "nats"},
    }
    shown = names[:1000]
    matrix = TaskMatrix(shown, shown, "eval_loss", False, [[1.0 + place] * len(shown) for place in range(len(shown))])
    return Run(path, state, (matrix,), [])


def facts_of(run, recipe=None, **changes):
    given = {
        "model": {
            "class": "LlamaForCausalLM",
            "type": "llama",
            "kind": "lm",
            "causal": True,
            "num_parameters": 12,
            "num_trained": 12,
            "base_model": None,
            "from_scratch": True,
            "has_config": True,
            "has_tokenizer": True,
            "image": None,
        },
        "settings": {"learning_rate": 3e-4},
        "compute": {"device": "cpu", "num_processes": 1},
        "recipe": recipe,
        "hub": {"repo_id": "user/model", "trunks": True, "license": None},
        "pictures": ["learning_rate.png"],
        "benchmark_sources": {},
    }
    return json.loads(json.dumps(release_facts(run, run.state["tasks"][-1]["directory"], **{**given, **changes})))


def assert_valid(card):
    """Metadata that the Hub takes, and Markdown whose tables and fences are whole."""
    assert card_faults(card) == []
    body = card.split("\n---\n", 1)[1]
    tables = [list(lines) for is_row, lines in groupby(body.splitlines(), lambda line: line[:1] == "|") if is_row]
    assert len(tables) >= 3
    for table in tables:
        assert re.fullmatch(r"[| :-]+", table[1])
        assert {columns_of(row) for row in table} == {columns_of(table[1])}
    assert sum(line.startswith("```") for line in body.splitlines()) % 2 == 0
    for line in re.sub(r"^```.*?^```", "", body, flags=re.DOTALL | re.MULTILINE).splitlines():
        assert not line.startswith(("---", "<"))
        prose = re.sub(r"(`+).*?\1", "", line)
        assert not re.search(r"<\w|(?<!\\)\[link\]", prose), line
    return ModelCard(card).data


def columns_of(line):
    return len(re.findall(r"(?<!\\)\|", line))


def test_a_card_says_where_it_comes_from_and_how_to_go_on(tmp_path):
    recipe = {
        "block_size": 16,
        "tasks": [
            {"name": "web", "dataset_name": "user/web", "split": "train"},
            {"name": "code", "data_files": "/x/y"},
        ],
    }
    facts = facts_of(run_of(["web", "code"], tmp_path / "run"), recipe)
    card = render_card(facts)
    data = assert_valid(card)
    assert (data.library_name, data.pipeline_tag, data.datasets) == ("transformers", "text-generation", ["user/web"])
    assert [(r.dataset_type, r.dataset_split, r.metric_value) for r in data.eval_results] == [
        ("user/web", "train", 2.0),
        ("local", None, 2.0),
    ]
    for words in (
        "| grew from the trunk | `task-02-task-trunk`, step 18 |",
        "| parent of that trunk | `task-01-task-trunk` |",
        "| learning rate at the release | 3.0e-5 |",
        "| tokens: on the path / spent | 1,024 / 1,280 |",
        "not in this release; it is in the trunk",
        "--resume_from_checkpoint user/model@task-02-task-trunk",
        "hf-infinite-lr anneal annealed/trunk/02-task --num_anneal_steps 4",
        "`forgetting_from_best_earlier`",
        "arXiv 1801.10112",
        "One run with one seed",
        "![learning rate over the steps of the run](report/learning_rate.png)",
    ):
        assert words in card
    assert "/x/y" not in card


def test_benchmarks_are_on_the_card_in_its_metadata_and_in_the_hubs_own_form(tmp_path):
    run = run_of(["web", "code"], tmp_path)
    by, names = "lm-evaluation-harness 0.4, zero-shot", ("arc_easy", "arc_challenge", "gsm8k", "mine", "mmlu")
    scores = {name: {"acc": 0.25, "acc_stderr": 0.02, "acc_norm": 0.5} for name in names}
    scores["gsm8k"] = {"exact_match,strict-match": 0.125, "exact_match_stderr,strict-match": float("nan")}
    rows = [{"task": None, "scores": scores}, {"task": "web", "scores": {}}, {"task": "code", "scores": scores}]
    sources = {
        "arc_easy": {"dataset": "allenai/ai2_arc", "subset": "ARC-Easy"},
        "arc_challenge": {"dataset": "allenai/ai2_arc", "subset": "ARC-Challenge"},
        "gsm8k": {"dataset": "openai/gsm8k", "subset": "main"},
        "mine": {"dataset": "json", "subset": None},
        "mmlu": {},
    }
    benchmark_sources = {name: {"scored_by": by, **source} for name, source in sources.items()}
    facts = facts_of(replace(run, state={**run.state, "benchmarks": rows}), benchmark_sources=benchmark_sources)
    card = render_card(facts)
    assert_valid(card)
    assert f"| arc\\_easy | `acc` | 0.250 | 0.020 | {by} |" in card
    assert f"| gsm8k | `exact_match,strict-match` | 0.125 | nan | {by} |" in card
    assert "and of the listed benchmarks alone" in card
    results = [each for each in ModelCard(card).data.eval_results if each.dataset_name in names]
    assert [(each.dataset_type, each.dataset_config, each.metric_type, each.metric_value) for each in results] == [
        ("allenai/ai2_arc", "ARC-Easy", "acc", 0.25),
        ("allenai/ai2_arc", "ARC-Easy", "acc_norm", 0.5),
        ("allenai/ai2_arc", "ARC-Challenge", "acc", 0.25),
        ("allenai/ai2_arc", "ARC-Challenge", "acc_norm", 0.5),
        ("openai/gsm8k", "main", "exact_match_strict_match", 0.125),
        ("local", "mine", "acc", 0.25),
        ("local", "mine", "acc_norm", 0.5),
        ("local", "mmlu", "acc", 0.25),
        ("local", "mmlu", "acc_norm", 0.5),
    ]
    assert yaml.safe_load(evaluation_entries(facts)) == [
        {"dataset": {"id": dataset, "task_id": name}, "value": value, "notes": f"{metric}, {by}"}
        for dataset, name, metric, value in (
            ("allenai/ai2_arc", "arc_easy", "acc", 0.25),
            ("allenai/ai2_arc", "arc_challenge", "acc", 0.25),
            ("openai/gsm8k", "gsm8k", "exact_match,strict-match", 0.125),
        )
    ]
    before = facts_of(run)
    assert evaluation_entries(before) is None
    assert "enchmarks" not in render_card(before)


def test_parts_of_one_dataset_are_told_apart_and_mixtures_taken_apart(tmp_path):
    mixed = [{"dataset_name": "user/a", "weight": 1}, {"builtin": "photos", "weight": 1}]
    recipe = {
        "tasks": [
            {"name": "web", "dataset_name": "user/web", "eval_split": "test", "split_into": {"kind": "date"}},
            {"name": "mix", "mixture": mixed},
        ],
        "evaluate_also": [{"name": "held", "dataset_name": "user/web", "dataset_config_name": "de", "split": "dev"}],
    }
    run = run_of(["web-2023", "web-2024", "mix"], tmp_path / "run")
    names = list(run.matrices[0].tasks)
    matrix = TaskMatrix(names, [*names, "held"], "eval_loss", False, 3 * [[1.0, 2.0, 3.0, 4.0]])
    card = render_card(facts_of(Run(run.path, run.state, (matrix,), []), recipe))
    data = assert_valid(card)
    assert data.datasets == ["user/a", "user/web"]
    found = [(r.dataset_type, r.dataset_config, r.dataset_split, r.metric_value) for r in data.eval_results]
    assert found == [
        ("user/web", "web-2023", "test", 1.0),
        ("user/web", "web-2024", "test", 2.0),
        ("local", None, None, 3.0),
        ("user/web", "de", "dev", 4.0),
    ]
    parts = "mixture: [user/a](https://huggingface.co/datasets/user/a), built-in corpus `photos`"
    assert f"| 3 | **mix** | {parts} |" in card


def test_a_task_that_has_left_the_recipe_is_no_part_of_one_that_was_split(tmp_path):
    recipe = {"tasks": [{"name": "web", "dataset_name": "user/web", "split_into": {"kind": "time"}}]}
    card = render_card(facts_of(run_of(["web-1", "web-old"], tmp_path / "run"), recipe))
    assert "| 1 | web-1 | [user/web]" in card
    assert "| 2 | **web-old** | local data |" in card
    recipe["tasks"][0]["split_into"]["kind"] = "domain"
    assert "| 2 | **web-old** | [user/web]" in render_card(
        facts_of(run_of(["web-1", "web-old"], tmp_path / "run"), recipe)
    )


def test_the_base_of_an_adapter_with_a_head_is_loaded_at_its_revision(tmp_path):
    facts = facts_of(run_of(["web"], tmp_path / "run"))
    revision = {"base_model": "user/base", "base_revision": "v0", "base_class": "ViTForImageClassification"}
    facts["model"].update(kind="adapter", causal=False, **revision)
    assert 'from_pretrained("user/base", revision="v0", config=config' in render_card(facts)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_valid_metadata_and_readable_markdown(name, tmp_path):
    recipe = {"tasks": [{"name": name, "dataset_name": name, "split": name, "dataset_config_name": name}]}
    facts = facts_of(
        run_of([name, "next"], tmp_path / name.replace("/", "").replace("\0", "")),
        recipe,
        settings={"note": name},
        hub={"repo_id": None, "trunks": False, "license": None},
        pictures=[],
    )
    data = assert_valid(render_card(facts))
    assert data.license is None
    assert data.datasets is None
    assert data.eval_results[0].dataset_name == " ".join(name.split())


def test_ten_thousand_tasks_give_a_short_card(tmp_path):
    names = [f"{HOSTILE[n % len(HOSTILE)]} {n}" for n in range(10_000)]
    facts = facts_of(run_of(names, tmp_path / "run"))
    card = render_card(facts)
    assert_valid(card)
    assert len(card) < 20_000
    assert len(json.dumps(facts)) < 20_000
    assert f"{10_000 - LARGEST_TABLE:,} more" in card
    assert f"| 10000 | **{text(names[-1])}** |" in card


def test_a_card_for_another_repository_names_no_trunk_there(tmp_path):
    facts = facts_of(run_of(["web", "code"], tmp_path / "run"), {"tasks": []})
    card = render_card(facts, repo_id="org/b")
    assert_valid(card)
    assert "org/b@" not in card
    assert "-trunk" not in card
    assert "It is not in this repository; it lies in the run's own directory, `trunk/02-task`." in card
    assert "--resume_from_checkpoint run/trunk/02-task" in card
    facts["hub"]["repo_id"] = "b"  # as a run names it that leaves the namespace to the token
    assert "--resume_from_checkpoint org/b@task-02-task-trunk" in render_card(facts, repo_id="org/b")


@pytest.mark.parametrize("recipe", [{"tasks": []}, None], ids=["recipe", "script"])
@pytest.mark.parametrize(
    ("checkpoint", "told", "named"),
    [
        ("run/checkpoint-18", "the run had it as `run/checkpoint-18`.", "run/checkpoint-18"),
        ("x/checkpoint-18", "`checkpoint-18` outside its own directory, in a place", "where/it/lies/checkpoint-18"),
    ],
)
def test_the_card_of_a_branch_from_a_checkpoint_names_it(checkpoint, told, named, recipe, tmp_path):
    """By its place in the run's own directory; any other is of this machine, and stands open in the commands."""
    card = render_card(facts_of(run_of(["web", "code"], tmp_path / "run"), recipe, checkpoint=tmp_path / checkpoint))
    assert_valid(card)
    for words in (
        f"| grew from the checkpoint | `{checkpoint.removeprefix('x/')}`, step 18 |",
        "| parent of that checkpoint | `trunk/01-task` |",
        told,
        *([f"--resume_from_checkpoint {named}\n", f"anneal {named} -"] if recipe else [f'train("{named}")']),
    ):
        assert words in card


@pytest.mark.parametrize("recipe", [{"tasks": []}, None], ids=["recipe", "script"])
def test_the_card_of_a_run_under_deepspeed_has_its_trunk_downloaded_first(recipe, tmp_path):
    """Which its engine would unpickle: a run refuses to take it from the Hub by itself."""
    run = run_of(["web"], tmp_path / "run")
    run.state["settings"]["engine"] = "deepspeed-zero2"
    card = render_card(facts_of(run, recipe))
    assert_valid(card)
    assert "user/model@" not in card
    place = "continued/run/trunk/01-task" if recipe else "run/trunk/01-task"
    assert f"hf download user/model --revision task-01-task-trunk --local-dir {place}" in card
    assert (f"--resume_from_checkpoint {place}" if recipe else f'trainer.train("{place}")') in card


def test_facts_that_no_template_can_be_filled_with_are_refused(tmp_path):
    facts = facts_of(run_of(["web"], tmp_path / "run"))
    facts["model"]["kind"] = "mae"
    with pytest.raises(ValueError, match=r"The card cannot be rendered \(UndefinedError"):
        render_card(facts)
    del facts["stream"]
    with pytest.raises(KeyError, match="stream"):
        render_card(facts)


def test_words_from_outside_are_shown_as_they_are():
    assert text("a\n\n# b <i>*c*") == r"a \# b &lt;i&gt;\*c\*"
    assert code("x\ny") == "`x y`"
    assert code("a ``` b") == "```` a ``` b ````"


@pytest.mark.parametrize("kind", ["lm", "mae", "adapter", "model"])
def test_every_template_renders_with_and_without_a_trunk_a_recipe_and_a_repository(kind, tmp_path):
    run = run_of(["web", "code"], tmp_path / "run")
    for trunks in (True, False):
        for repo_id in ("user/model", None):
            for recipe in ({"tasks": []}, None):
                hub = {"repo_id": repo_id, "trunks": trunks, "license": "apache-2.0"}
                facts = facts_of(run, recipe, hub=hub)
                facts["model"].update(kind=kind, image=[3, 32], base_model="user/base", causal=kind != "mae")
                data = assert_valid(render_card(facts))
                assert (data.license, data.base_model) == ("apache-2.0", "user/base")
                assert data.library_name == ("peft" if kind == "adapter" else "transformers")
        facts["trunk"] = None
        assert "no trunk" in render_card(facts)


def test_the_card_of_a_curve_without_branches_and_of_a_run_without_scores(tmp_path):
    run = run_of(["web"], tmp_path / "run")
    run.state["tasks"][0]["branch_step"] = None
    run.state["schedule"].update(name="linear", phases=[])
    facts = facts_of(Run(run.path, run.state, (), [{"step": 9, "learning_rate": 1e-5}]))
    card = render_card(facts)
    data = assert_valid(card)
    assert "no annealed branch" in card
    assert "Nothing was evaluated." in card
    assert "at rate 1.0e-5" in card
    assert data.eval_results is None


MEAN = "The weights are a mean: 0.25 of the task's own model and 0.75 of {}."


@pytest.mark.parametrize(
    ("settings", "number", "said", "unsaid"),
    [
        ({}, 2, ["Do not continue from this release", "which reach its release only", "| `task-01-task-trunk` |"], []),
        (
            {"rewind": "none"},
            2,
            [
                "the run then anneals once more",
                "it went on from the annealed model of `01-task`",
                "To anneal the trunk",
            ],
            ["Do not continue", "which reach its release only"],
        ),
        (
            {"methods": {"gdumb": {"buffer_size": 1500, "label_column": None}}},
            2,
            [
                "trained anew from the run's first weights on GDumb's buffer of 80 samples",
                "Nothing continues from this release",
                "| parent of that trunk | none: trained from scratch |",
                "| `methods.gdumb.buffer_size` | `1500` |",
            ],
            ["the trunk of the run, annealed", "which reach its release only", "To anneal the trunk", "label_column"],
        ),
        ({"merge": {"method": "ema", "weight": 0.25}}, 2, [MEAN.format("the release before"), "`merge.weight`"], []),
        ({"merge": {"method": "ema", "weight": 0.25}}, 1, ["`merge.weight`"], ["The weights are a mean"]),
        ({"merge": {"method": "first", "weight": 0.25}}, 1, [MEAN.format("the model that the run began with")], []),
        ({"methods": {"lae": {"decay": 0.9}}}, 2, ["This adapter alone was not scored", "`methods.lae.decay`"], []),
        (
            {"methods": {"nearest_class_mean": {}}},
            2,
            ["head of the model itself was not trained", "`no keys`"],
            [],
        ),
    ],
)
def test_a_card_says_what_a_run_made_otherwise(settings, number, said, unsaid, tmp_path):
    run = run_of(["web", "code"][:number], tmp_path / "run")
    run.state["settings"] |= settings
    card = render_card(facts_of(run))
    assert_valid(card)
    assert [words for words in said if words not in card] == []
    assert [words for words in unsaid if words in card] == []


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({}, "the release is the model at the task's end, and training goes on from there with", "merged"),
        ({"methods": {"gdumb": {"buffer_size": 9}}}, "goes on from its state at step 20.", "goes on from there"),
        ({"merge": {"method": "ema"}}, "goes on from the task's own model, before it was merged, with", "from there"),
        ({"merge": {"method": "ema", "next_start": True}}, "training goes on from there with", "before it was merged"),
        ({"rewind": "none"}, "| parent of that trunk | `task-01-task-trunk` |", "the annealed model"),
    ],
    ids=str,
)
def test_where_training_goes_on_without_a_branch(settings, said, unsaid, tmp_path):
    run = run_of(["web", "code"], tmp_path / "run")
    for task in run.state["tasks"]:
        task.update(branch_step=None, num_anneal_steps=0)
    run.state["settings"] |= settings
    card = render_card(facts_of(run))
    assert_valid(card)
    assert said in card.replace("\n", " ")
    assert unsaid not in card


def test_values_that_are_no_numbers_are_left_out_of_the_metadata(tmp_path):
    run = run_of(["web", "code"], tmp_path / "run")
    rows = [[float("nan"), None], [2.0, float("inf")]]
    matrix = TaskMatrix(["web", "code"], ["web", "code"], "eval_loss", False, rows)
    data = assert_valid(render_card(facts_of(Run(run.path, run.state, (matrix,), []))))
    assert [result.metric_value for result in data.eval_results] == [2.0]


def test_the_half_width_of_an_interval_is_no_score(tmp_path):
    run = run_of(["web", "code"], tmp_path / "run")
    half = replace(run.matrices[0], metric="few_shot_half_width")
    facts = facts_of(Run(run.path, run.state, (*run.matrices, half), []))
    assert [scores["metric"] for scores in facts["scores"]] == ["eval_loss", "few_shot_half_width"]
    assert "half_width" not in render_card(facts)


@pytest.mark.parametrize("facts", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_rendered_examples_are_what_their_stored_inputs_give(facts):
    assert facts.with_suffix(".md").read_text(encoding="utf-8") == render_card(json.loads(facts.read_text()))


def test_there_are_examples_and_every_template_is_packed():
    import tomllib

    kinds = [json.loads(path.read_text())["model"]["kind"] for path in EXAMPLES.glob("*.json")]
    assert sorted(kinds) == ["adapter", "lm", "mae"]
    project = tomllib.loads((EXAMPLES.parent.parent / "pyproject.toml").read_text())
    packed = project["tool"]["setuptools"]["data-files"]["share/hf_infinite_lr/model_cards"]
    root = EXAMPLES.parent.parent
    assert {path for pattern in packed for path in root.glob(pattern)} == set(template_folder().glob("*.md"))


def test_paths_and_ids():
    assert without_paths({"a": ["/data/me/x.bin", "C:/me/y"], "b": "user/model", "c": 1}) == {
        "a": ["x.bin", "y"],
        "b": "user/model",
        "c": 1,
    }
    assert [hub_id(name) for name in ("user/x", "gpt2", "/x/y", "tests", "a b", None)] == [
        "user/x",
        "gpt2",
        *[None] * 4,
    ]


def test_changed_settings_name_no_place_and_no_account(tmp_path):
    from hf_infinite_lr import ContinualTrainingArguments

    args = ContinualTrainingArguments(
        str(tmp_path), hub_token="hf_x", hub_model_id="a/b", run_name="mine", learning_rate=1e-3, use_cpu=True
    )
    assert changed_settings(args) == {"learning_rate": 1e-3, "use_cpu": True} | (
        {} if args.dataloader_pin_memory else {"dataloader_pin_memory": False}
    )


def test_changed_settings_tell_lists_and_mappings_but_no_paths(tmp_path):
    from hf_infinite_lr import ContinualTrainingArguments

    args = ContinualTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        task_steps=[*range(5, 1005)],
        label_names=["labels"],
        optim_target_modules=["layers", "/data/me/list"],
        liger_kernel_config={"rope": False, "fused": None},
        methods={"mas": {}},
        merge="ema",
    )
    told = changed_settings(args)
    assert told["task_steps"] == [5, 6, 7, 8, 9, 10, "...", 999, 1000, 1001, 1002, 1003, 1004]
    assert told["label_names"] == ["labels"]
    assert told["liger_kernel_config"] == {"rope": False, "fused": None}
    assert not {"optim_target_modules", "methods", "merge"} & set(told)
    assert without_paths(told) == told, "nothing is left to be cut down"


def test_what_a_model_is_stands_in_its_files(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/models/llama", "revision": "v1"}')
    facts = model_facts(
        tmp_path, "PeftModelForCausalLM", "LlamaForCausalLM", num_parameters=5, num_trained=1, base_model=None
    )
    assert (facts["kind"], facts["base_model"], facts["from_scratch"], facts["causal"]) == (
        "adapter",
        None,
        False,
        True,
    )
    assert facts["base_revision"] is None, "of a model on this disk there is none"
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "vit_mae", "image_size": 32, "num_channels": 3}')
    facts = model_facts(
        tmp_path,
        *["ViTMAEForPreTraining"] * 2,
        num_parameters=5,
        num_trained=5,
        base_model="user/base",
        base_revision="v1",
    )
    assert (facts["kind"], facts["base_model"], facts["image"]) == ("mae", "user/base", [3, 32])
    assert facts["base_revision"] == "v1"


def test_published_files_hold_no_paths_no_pickles_and_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    folder = tmp_path / "releases" / "01-web"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "config.json").write_text(json.dumps({"_name_or_path": f"{tmp_path}/base", "vocab": "</s>"}))
    (folder / "tokenizer.json").write_text(json.dumps({"/usr/bin/python": 1}))
    (folder / "notes.md").write_text("fine")
    (folder / "offline").mkdir()
    (folder / "offline" / "README.md").write_text(f"base_model: {tmp_path}/base")
    write_manifest(folder)
    secrets = secrets_of(tmp_path, None)
    contents = contents_of(folder, "release", secrets=secrets)
    assert set(contents) == {"model.safetensors", "config.json", "tokenizer.json", "notes.md", "manifest.json"}
    assert json.loads(contents["config.json"]) == {"_name_or_path": "base", "vocab": "</s>"}
    for secret in ("hf_planted", str(tmp_path.resolve())):
        (folder / "notes.md").write_text(f"see {secret}")
        with pytest.raises(NotPublishableError, match=r"notes\.md holds a token or a path"):
            contents_of(folder, "release", secrets=secrets)
    (folder / "notes.md").unlink()
    shutil.copy(folder / "training_args.bin", folder / "model.pt")
    with pytest.raises(NotPublishableError, match=r"model\.pt is a pickle"):
        contents_of(folder, "release", secrets=secrets)
    assert "model.pt" in contents_of(folder, "trunk", secrets=secrets)


def _language_model(folder):
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=384, max_position_embeddings=64, **sizes))
    model.save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return type(model).__name__


def _masked_autoencoder(folder):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    model = ViTMAEForPreTraining(ViTMAEConfig(image_size=8, patch_size=4, **sizes, **decoder))
    model.save_pretrained(folder)
    return type(model).__name__


def _adapter(folder):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    _language_model(folder.parent / "base")
    base = LlamaForCausalLM.from_pretrained(folder.parent / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(folder)
    return type(model).__name__


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("make", "made"), [(_language_model, "generate"), (_masked_autoencoder, "features"), (_adapter, "model")]
)
def test_the_cards_code_runs_on_the_release(make, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_of(["web"], tmp_path / "run")
    folder = run.path / "releases" / "01-task"
    folder.mkdir(parents=True)
    model_class = make(folder)
    model = model_facts(folder, model_class, model_class, num_parameters=5, num_trained=5, base_model=None)
    card = render_card(facts_of(run, model=model, hub={"repo_id": None, "trunks": False, "license": None}))
    found = {}
    exec(re.search(r"## Use it\s+```python\n(.*?)```", card, re.DOTALL)[1], found)
    assert found[made] is not None
    if made == "features":
        assert found["features"].shape == (1, 8)
