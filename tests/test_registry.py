import copy
import importlib
import json
import logging
import pickle
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_linear_schedule_with_warmup
from transformers.trainer_utils import SchedulerType

import hf_infinite_lr
from hf_infinite_lr.lr_scheduler import ScheduleLR, get_infinite_schedule
from hf_infinite_lr.registry import add_member

NAMES = ["infinite", "cosine_rewarm", "rsqrt_rewarm"]
ADVICE = "To continue on new data later, use checkpoint-8000, not checkpoint-10000."


def make_optimizer(lr=3e-4):
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr)


def python(code, **kwargs):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, **kwargs)


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_enum_member(self, name):
        member = SchedulerType(name)
        assert isinstance(member, SchedulerType)
        assert member is getattr(SchedulerType, name.upper()) is SchedulerType[name.upper()]
        assert member == name
        assert member in SchedulerType
        assert [other.value for other in SchedulerType].count(name) == 1
        assert repr(member) == f"<SchedulerType.{name.upper()}: {name!r}>"

    def test_training_arguments(self, name, tmp_path):
        args = TrainingArguments(
            tmp_path, lr_scheduler_type=name, lr_scheduler_kwargs='{"task_steps": [5, 5]}', report_to="none"
        )
        assert args.lr_scheduler_type is SchedulerType(name)
        assert args.lr_scheduler_kwargs == {"task_steps": [5, 5]}
        assert json.loads(args.to_json_string())["lr_scheduler_type"] == name
        assert args.to_dict()["lr_scheduler_type"] == name

    def test_parser(self, name, tmp_path):
        kwargs = ["--lr_scheduler_kwargs", '{"min_lr_ratio": 0.2}']
        (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
            ["--output_dir", str(tmp_path), "--lr_scheduler_type", name, *kwargs]
        )
        assert args.lr_scheduler_type is SchedulerType(name)
        assert args.lr_scheduler_kwargs == {"min_lr_ratio": 0.2}

    def test_get_scheduler(self, name):
        scheduler = get_scheduler(name, make_optimizer(), 2, 20, scheduler_specific_kwargs={"min_lr_ratio": 0.2})
        assert isinstance(scheduler, ScheduleLR)
        # One closes with a line to zero, which multiplies its floor as well.
        assert scheduler.rate_at(20) == pytest.approx(0.0 if name == "rsqrt_rewarm" else 0.2 * 3e-4)

    @pytest.mark.parametrize("protocol", range(6))
    def test_pickles_hold_the_plain_string(self, name, protocol):
        loaded = pickle.loads(pickle.dumps({"type": SchedulerType(name)}, protocol))["type"]
        assert (type(loaded), loaded) == (str, name)

    def test_copies_stay_the_member(self, name):
        assert copy.deepcopy(SchedulerType(name)) == copy.copy(SchedulerType(name)) == SchedulerType(name)

    def test_saved_arguments_load_without_the_plugin(self, name, tmp_path):
        args = TrainingArguments(tmp_path, lr_scheduler_type=name, report_to="none")
        torch.save(args, tmp_path / "training_args.bin")
        code = """
import sys, torch
args = torch.load(sys.stdin.read(), weights_only=False)
assert not any(module.startswith("hf_infinite_lr") for module in sys.modules)
print(type(args.lr_scheduler_type).__name__, args.lr_scheduler_type)
"""
        assert python(code, input=str(tmp_path / "training_args.bin")).stdout.split() == ["str", name]


def test_registration_can_be_repeated():
    before = list(SchedulerType)
    hf_infinite_lr.register()
    importlib.reload(importlib.import_module("hf_infinite_lr.registry")).register()
    assert list(SchedulerType) == before


def test_a_name_taken_by_another_package_is_refused(monkeypatch):
    monkeypatch.setitem(TYPE_TO_SCHEDULER_FUNCTION, SchedulerType("infinite"), get_linear_schedule_with_warmup)
    with pytest.raises(RuntimeError, match="lr_scheduler_type='infinite' is already taken by <function get_linear"):
        hf_infinite_lr.register()


def test_enum_of_this_python_takes_a_member_twice_without_harm():
    class Shade(str, Enum):  # noqa: UP042 - as transformers builds its enums
        DARK = "dark"

    add_member(Shade, "light")
    add_member(Shade, "light")
    assert [shade.name for shade in Shade] == ["DARK", "LIGHT"]
    assert Shade("light") is Shade.LIGHT
    assert Shade.LIGHT in Shade
    assert hash(Shade.LIGHT) is not None
    assert len({Shade.LIGHT, Shade("light")}) == 1
    with pytest.raises(ValueError, match="'grey' is not a valid"):
        Shade("grey")


def test_import_is_light_and_names_are_lazy():
    code = """
import sys
import hf_infinite_lr
assert "transformers.trainer" not in sys.modules
assert "matplotlib" not in sys.modules
assert "datasets" not in sys.modules
assert "TrunkCheckpointCallback" in dir(hf_infinite_lr)
hf_infinite_lr.get_infinite_schedule, hf_infinite_lr.TrunkCheckpointCallback
assert "transformers.trainer" not in sys.modules
"""
    python(code)
    with pytest.raises(AttributeError, match="no attribute 'Trunk'"):
        hf_infinite_lr.Trunk  # noqa: B018


def announced(caplog, **kwargs):
    caplog.clear()
    with caplog.at_level(logging.INFO, "hf_infinite_lr"):
        get_scheduler("infinite", make_optimizer(), 500, 10000, scheduler_specific_kwargs=kwargs)
    return caplog.messages


def test_announcement(caplog, monkeypatch):
    monkeypatch.setattr("hf_infinite_lr.announcement.trunk_savers", {"a callback"})
    assert announced(caplog, num_cooldown_steps=3000, num_anneal_steps=2000) == [
        "infinite: warm-up 0–500 (to 3.0e-4), cool-down to the constant 500–3500 (to 2.25e-4), constant to 8000,"
        f" annealing to 10000 (to 3.0e-5). {ADVICE}"
    ]


def test_announcement_says_how_to_save_the_branch_point(caplog, monkeypatch):
    monkeypatch.setattr("hf_infinite_lr.announcement.trunk_savers", set())
    (line,) = announced(caplog)
    assert f"{ADVICE} To be sure that it is saved, add callbacks=[hf_infinite_lr.TrunkCheckpointCallback()]" in line
    assert "\n" not in line


def test_announcement_of_a_run_that_never_anneals(caplog):
    (line,) = announced(caplog, num_anneal_steps=0)
    assert line.endswith(
        "constant to 10000. Nothing is annealed at the end: continue on new data from the last checkpoint."
    )


def test_announcement_of_tasks_warns_of_the_warmup_share(caplog):
    warning, line = announced(caplog, task_steps=[4000, 3000, 2000, 1000])
    assert "Trainer took it of the whole run (10000 steps) and not of the first task" in warning
    assert "; task 2: constant to 6400, annealing to 7000 (to 3.0e-5); task 3: " in line
    assert "and 1 more tasks to 10000" in line
    assert "use checkpoint-9800, not checkpoint-10000" in line


def test_announcement_of_num_tasks_speaks_of_no_other_key(caplog):
    with caplog.at_level(logging.INFO, "hf_infinite_lr"):
        get_scheduler("cosine_rewarm", make_optimizer(), 500, 10000, scheduler_specific_kwargs={"num_tasks": 2})
    warning, _ = caplog.messages
    assert warning.startswith(
        "cosine_rewarm: the run has several tasks, and the warm-up is 500 steps; if warmup_steps"
    )


def test_tasks_that_end_before_the_run_are_warned_of(caplog):
    def warned(**kwargs):
        return any("end at step 9000, but the run at 10000" in message for message in announced(caplog, **kwargs))

    assert warned(task_steps=[5000, 4000])
    assert "the rest trains at the last rate (3.0e-5)" in caplog.text
    assert not warned(task_steps=[5000, 4000], num_anneal_steps=0)
    assert not warned(task_steps=[5000, 5000])


def test_announcement_comes_from_the_main_process_alone(caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert announced(caplog) == []


def test_plain_functions_are_silent(caplog):
    with caplog.at_level(logging.INFO, "hf_infinite_lr"):
        get_infinite_schedule(make_optimizer(), 5, 100)
    assert caplog.messages == []


@pytest.mark.parametrize(
    "setup",
    [
        "pass",
        "logging.basicConfig()",
        "logging.basicConfig(level='INFO')",
        "logging.basicConfig(); logging.root.handlers[0].setLevel('ERROR')",
    ],
)
def test_announcement_is_printed_once_whatever_the_logging(setup):
    code = f"""
import logging
{setup}
import hf_infinite_lr, torch, transformers
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=3e-4)
transformers.get_scheduler("infinite", optimizer, 500, 10000)
"""
    assert python(code).stderr.count("use checkpoint-8000") == 1


def test_import_time_benchmark_runs():
    script = Path(__file__).parent.parent / "recipes" / "benchmarks" / "import_time.py"
    done = subprocess.run([sys.executable, script, "--repeats", "1"], check=True, capture_output=True, text=True)
    assert "added by hf_infinite_lr" in done.stdout
