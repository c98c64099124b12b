"""The README's code runs, its commands are accepted, and the line it promises is the line that is printed."""

import json
import re
import shlex
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_infinite_lr.announcement import describe
from hf_infinite_lr.cli import VERBS
from hf_infinite_lr.lr_scheduler import get_infinite_schedule
from hf_infinite_lr.plain_run import plain_schedule
from hf_infinite_lr.recipe import load_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """Every call of the package's command, from the blocks and from the table."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    lines = [*text.splitlines(), *re.findall(r"`(hf-infinite-lr [^`]*)`", README)]
    return [line[line.index("hf-infinite-lr") :] for line in lines if re.search(r"(^|/|`)hf-infinite-lr", line)]


def test_promised_line_is_what_the_command_above_it_prints():
    words = shlex.split(next(command for command in commands() if "--warmup_steps 500" in command))
    kwargs = json.loads(words[words.index("--lr_scheduler_kwargs") + 1])
    schedule, _ = plain_schedule(
        "infinite", learning_rate=3e-4, num_warmup_steps=500, num_training_steps=10000, kwargs=kwargs
    )
    assert describe("infinite", schedule, 3e-4, 10000) == blocks("text")[0].strip()


def test_a_month_later_the_rate_goes_on_as_it_says():
    command = next(command for command in commands() if "--resume_from_checkpoint out/checkpoint-8000" in command)
    words, promised = shlex.split(command), re.search(r"up to step (\d+), annealed again to step (\d+)", README)
    states = []
    for steps in (10000, int(words[words.index("--max_steps") + 1])):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=3e-4)
        kwargs = json.loads(words[words.index("--lr_scheduler_kwargs") + 1])
        states.append(get_infinite_schedule(optimizer, 500, steps, **kwargs))
    first, later = states
    first.set_position(8000)
    later.load_state_dict(first.state_dict())
    start, end = map(int, promised.groups())
    rates = [later.rate_at(step) for step in (8000, start, start + 1, end)]
    assert rates[0] == rates[1] == pytest.approx(2.25e-4)
    assert rates[2] < rates[1]
    assert rates[3] == pytest.approx(3e-5)


def test_commands_name_verbs_and_files_that_exist():
    assert len(commands()) >= 6
    for command in commands():
        words = shlex.split(command)
        assert words[1] in VERBS
        for word in words:
            if word.startswith("recipes/"):
                assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("text", re.findall(r"--lr_scheduler_kwargs '(.*?)'", README))
def test_schedule_arguments_are_accepted(text):
    schedule, _ = plain_schedule(
        "infinite", learning_rate=1e-4, num_warmup_steps=500, num_training_steps=10000, kwargs=json.loads(text)
    )
    assert schedule.num_steps == 10000


def test_recipe_is_accepted(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(blocks("yaml")[0], encoding="utf-8")
    recipe = load_recipe(path)
    assert [task["name"] for task in recipe.data.tasks] == ["web", "code", "german"]
    assert recipe.arguments.learning_rate == 3e-4


def samples(seed):
    tokens = np.random.RandomState(seed).randint(0, 30, (160, 8)).tolist()
    return datasets.Dataset.from_dict({"input_ids": tokens, "labels": tokens})


def tiny_model():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=16, **sizes))


@pytest.mark.pictures
def test_continual_trainer_in_eight_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {name: samples(seed) for seed, name in enumerate(["web", "code", "german"])}
    evals = {f"{name}_eval": samples(10 + seed) for seed, name in enumerate([*names, "general"])}
    code = blocks("python")[0].replace('"out",', '"out", report_to="none", use_cpu=True, disable_tqdm=True,')
    scope = {"model": tiny_model(), **names, **evals}
    exec(code, scope)
    released = re.search(r"out/releases/(\S+), (\S+), (\S+);", code).groups()
    assert sorted(path.name for path in Path("out/releases").iterdir()) == sorted(released)
    assert Path("out/report/report.md").is_file()
    full_states = {path.stat().st_ino for path in Path("out").rglob("optimizer.pt")}
    assert len(full_states) == 2 * len(released)  # of the trunk and of the task's end, as the text says
    assert scope["trainer"].columns == ("web", "code", "german", "general")


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")  # SFTConfig's own default
def test_trl_classes():
    from dataclasses import dataclass

    from trl import SFTConfig, SFTTrainer

    from hf_infinite_lr import ContinualArguments, ContinualMixin

    scope = {
        "dataclass": dataclass,
        "SFTConfig": SFTConfig,
        "SFTTrainer": SFTTrainer,
        "ContinualMixin": ContinualMixin,
        "ContinualArguments": ContinualArguments,
    }
    exec(blocks("python")[1], scope)
    assert scope["ContinualSFTConfig"]("out", report_to="none", use_cpu=True, release="last").release == "last"


def test_every_internal_link_leads_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
