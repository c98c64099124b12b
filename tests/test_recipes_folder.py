"""The recipes that are shipped parse, differ in the schedule alone, and have the settings that their search chose."""

import importlib.util
import json
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from hf_infinite_lr.cli import main
from hf_infinite_lr.recipe import load_recipe
from hf_infinite_lr.stream.pictures import load_pictures

RECIPES = Path(__file__).parent.parent / "recipes"
DEMO = RECIPES / "lm-docs-python-cpp"
# Fresh optimizer states belong to re-warming as Ibrahim et al. 2024 define it.
SCHEDULE_KEYS = {"lr_scheduler_type", "lr_scheduler_kwargs", "learning_rate", "reset_optimizer", "output_dir"}
# From 160M on, those of the GPT-NeoX style are the sizes that the Pythia suite states for its models of these names.
PARAMETERS = {
    "llama-10m": 10_916_736,
    "llama-160m": 162_220_800,
    "llama-410m": 411_354_112,
    "llama-1b": 1_015_613_440,
    "neox-10m": 10_942_464,
    "neox-160m": 162_322_944,
    "neox-410m": 405_334_016,
    "neox-1b": 1_011_781_632,
}


def script(name, folder=DEMO):
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(folder))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*-*/*.yaml")), ids=lambda path: path.stem)
def test_recipe_is_accepted_and_named_after_its_schedule(path):
    recipe = load_recipe(path)
    recipe.check()
    assert recipe.arguments.lr_scheduler_type.value == path.stem
    assert recipe.arguments.output_dir == f"out/{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("folder", sorted({path.parent for path in RECIPES.glob("*-*/*.yaml")}), ids=lambda f: f.name)
def test_files_of_a_folder_differ_in_the_schedule_alone(folder):
    contents = [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))]
    assert len(contents) > 1
    shared = [{key: value for key, value in content.items() if key not in SCHEDULE_KEYS} for content in contents]
    assert all(other == shared[0] for other in shared)


QUICK = {"mae-digits-glyphs-photos", "mae-split-cifar10", "lm-docs-python-cpp", "lm-from-hub-english"}


def tried(path):
    quick = path.parent.name in QUICK and path.stem == "infinite"
    return pytest.param(path, id=f"{path.parent.name}-{path.stem}", marks=() if quick else pytest.mark.slow)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT
@pytest.mark.parametrize("path", [tried(path) for path in sorted(RECIPES.glob("*-*/*.yaml"))])
def test_two_steps_of_every_recipe_on_the_real_code_path(path, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(RECIPES.parent)
    extra = ["--use_cpu", "true", "--disable_tqdm", "true", "--evaluate_on", "none"]
    assert main(["train", "--config", str(path), "--smoke", *extra]) == 0
    assert "step 2 of" in capsys.readouterr().out
    content = yaml.safe_load(path.read_text())
    entries = [*content["tasks"], *content.get("evaluate_also", ())]
    hub = [entry.get("dataset_name") or entry["data_files"] for entry in entries if "builtin" not in entry]
    for name in [*hub, *filter(None, [content.get("model_name_or_path")])]:
        assert f"stands in for {name}" in caplog.text or f"stand in for {name}" in caplog.text


def test_stand_ins_are_neither_counted_out_nor_ranked_by_a_model_of_the_hub(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    ranked = {"model_name_or_path": "user/reference", "keep": 0.25}
    part = {"name": "web", "dataset_name": "user/web", "num_eval_samples": 4, "subset": 5000, "by_perplexity": ranked}
    content = {"model_type": "llama", "tokenizer_name": "byte", "block_size": 8, "output_dir": "out", "tasks": [part]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "smoke").mkdir()
    stream = load_recipe(tmp_path / "recipe.yaml", smoke=tmp_path / "smoke").stream()
    assert len(stream.tasks[0].dataset) > 0
    assert "by_perplexity of web is left out" in caplog.text


@pytest.mark.parametrize("path", sorted((RECIPES / "models").glob("*.json")), ids=lambda path: path.stem)
def test_model_has_the_parameters_that_its_name_says(path):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    assert model.num_parameters() == PARAMETERS[path.stem]


def test_every_model_that_a_recipe_names_is_there():
    assert {path.stem for path in (RECIPES / "models").glob("*.json")} == set(PARAMETERS)
    contents = [yaml.safe_load(path.read_text()) for path in RECIPES.glob("*-*/*.yaml")]
    named = [content["config_name"] for content in contents if "config_name" in content]
    assert named
    assert all((RECIPES.parent / name).is_file() for name in named)


def test_tasks_from_the_hub_have_lengths_without_a_look_at_their_data():
    lengths = load_recipe(RECIPES / "lm-dclm-stack-german" / "infinite.yaml").task_lengths()
    assert lengths == {"dclm": 9536, "stack": 4768, "german": 4768}


@pytest.mark.parametrize("schedule", ["infinite", "cosine_rewarm"])
def test_settings_are_the_best_trial_of_the_search(schedule):
    grid = script("search").GRID
    trials = json.loads((DEMO / "search.json").read_text())["trials"]
    assert len({len(settings) for settings in grid.values()}) == 1, "the same number of trials for every schedule"
    own = [trial for trial in trials if trial["schedule"] == schedule]
    assert sorted(map(str, (trial["setting"] for trial in own))) == sorted(map(str, grid[schedule]))
    best = min(own, key=lambda trial: trial["score"])["setting"]
    content = yaml.safe_load((DEMO / f"{schedule}.yaml").read_text())
    flat = {
        **content,
        **{f"lr_scheduler_kwargs.{key}": value for key, value in content["lr_scheduler_kwargs"].items()},
    }
    assert {key: flat[key] for key in best} == best


def test_results_in_the_readme_are_those_of_the_file():
    readme = (RECIPES.parent / "README.md").read_text(encoding="utf-8")
    runs = json.loads((DEMO / "results.json").read_text())
    compare = script("compare")
    assert compare.table(runs) in readme
    assert compare.verdict(runs) in readme
    for schedule, values in compare.averages(runs).items():
        assert f"`{schedule}` {', '.join(f'{value:.3f}' for value in values)}" in readme


def test_what_the_readme_says_of_probes_is_in_the_file():
    readme = (RECIPES.parent / "README.md").read_text(encoding="utf-8")
    folder = RECIPES / "mae-digits-glyphs-photos"
    runs, gain = json.loads((folder / "results.json").read_text()), script("probe_gain", folder)
    assert f"{gain.table(runs)}\n" in readme
    assert "means of 3 seeds with 95 % intervals" in readme
    for schedule in sorted({run["schedule"] for run in runs}):
        own = [run for run in runs if run["schedule"] == schedule]
        assert len(own) == 3
        assert min(gain.gains(own, "linear_accuracy", row=0)) > 0
    assert "above the untrained encoder's with every seed and either schedule" in readme
    assert len(load_pictures("digits").eval) == 285
