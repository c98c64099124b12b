"""Zero-shot benchmarks of the harness on local files: as by hand, in the record, without a trace in training."""

import json
import re

import pytest
import torch
import yaml

from hf_infinite_lr.evaluation.harness import BenchmarkArguments, ZeroShot
from hf_infinite_lr.objectives.causal_lm import build_model, build_tokenizer
from hf_infinite_lr.objectives.model_source import ModelSource
from hf_infinite_lr.recipe import load_recipe
from hf_infinite_lr.report import write_report
from hf_infinite_lr.stream.corpora import load_corpus

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SOURCE = ModelSource(model_type="llama", tokenizer_name="byte", config_overrides=SIZES)
TASK = {
    "task": "next_line",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module")
def questions():
    """Beginnings of lines of the built-in Python corpus, with the right end and that of another line."""
    lines = [line for text in load_corpus("python", max_bytes=20_000).eval["text"] for line in text.splitlines()]
    lines = [line for line in lines if 24 <= len(line) <= 40 and line.isascii()][:12]
    return [
        {"text": line[:12], "choices": [line[12:], lines[place - 1][12:]], "answer": 0}
        for place, line in enumerate(lines)
    ]


@pytest.fixture
def benchmark(questions, tmp_path):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    files = {"dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}}}
    (folder / "next_line.yaml").write_text(yaml.safe_dump({**TASK, **files}))
    return {"zero_shot_tasks": ["next_line"], "zero_shot_include_path": str(folder), "zero_shot_batch_size": 5}


def by_hand(model, tokenizer, question):
    """The index of the likelier choice."""
    scores = []
    for choice in question["choices"]:
        ids = torch.tensor(tokenizer(question["text"] + choice, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logs = model.eval()(ids[None]).logits[0, :-1].log_softmax(-1)
        scores.append(logs.gather(1, ids[1:, None])[len(question["text"]) - 1 :].sum().item())
    return max(range(len(scores)), key=scores.__getitem__)


def test_scores_are_those_of_a_plain_computation(benchmark, questions):
    tokenizer = build_tokenizer(SOURCE)
    torch.manual_seed(3)
    model = build_model(SOURCE, tokenizer)
    expected = sum(by_hand(model, tokenizer, question) == 0 for question in questions) / len(questions)
    assert 0 < expected < 1
    model.train()
    scores = ZeroShot(BenchmarkArguments(**benchmark), tokenizer)(model)
    assert scores["next_line"]["acc"] == pytest.approx(expected)
    assert set(scores["next_line"]) == {"acc", "acc_stderr"}
    assert model.training


def test_releases_are_scored_without_a_trace_in_training(benchmark, tiny, tmp_path):
    def run(name, resume=None, stop_at=None, **more):
        content = {
            "model_type": "llama",
            "tokenizer_name": "byte",
            "config_overrides": {**SIZES, "attention_dropout": 0.2},
            "block_size": 32,
            "tasks": [
                {"name": kind, "builtin": kind, "max_bytes": 8000, "eval_bytes": 600} for kind in ("docs", "cpp")
            ],
            "task_steps": [5],
            "per_device_train_batch_size": 4,
            "lr_scheduler_kwargs": {"num_cooldown_steps": 1, "num_anneal_steps": 2},
            "warmup_steps": 1,
            "save_steps": 3,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "output_dir": str(tmp_path / name),
            "resume_from_checkpoint": resume,
            **more,
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        trainer = load_recipe(tmp_path / "recipe.yaml").trainer()
        if stop_at is not None:
            trainer.add_callback(tiny.Watch(stop_at))
            with pytest.raises(InterruptedError):
                trainer.train(resume)
        else:
            trainer.train(resume)
        return trainer

    plain, scored = run("plain"), run("scored", **benchmark)
    assert tiny.same_end(plain, scored)
    assert plain.record.benchmarks == []
    assert [row["task"] for row in scored.record.benchmarks] == [None, "docs", "cpp"]
    assert all(0 <= row["scores"]["next_line"]["acc"] <= 1 for row in scored.record.benchmarks)
    run("killed", stop_at=8, **benchmark)
    resumed = run("killed", resume=True, **benchmark)
    assert resumed.record.benchmarks == scored.record.benchmarks
    state = json.loads((tmp_path / "killed" / "continual_state.json").read_text())
    assert state["benchmarks"] == scored.record.benchmarks
    report = write_report(tmp_path / "killed").read_text()
    assert "| benchmark | metric | before training | release of docs | release of cpp |" in report
    assert "| next_line | acc |" in report
    card = (tmp_path / "killed" / "releases" / "02-cpp" / "README.md").read_text()
    (row,) = re.findall(r"\| next\\_line \| `acc` \| (\S+) \| \S+ \| lm-evaluation-harness [\d.]+, zero-shot \|", card)
    assert float(row) == pytest.approx(scored.record.benchmarks[-1]["scores"]["next_line"]["acc"], abs=5e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero_shot_tasks": "next_line"}, "zero_shot_tasks='next_line' must be a list of names"),
        ({"zero_shot_batch_size": 0}, "zero_shot_batch_size=0 must be at least 1"),
    ],
)
def test_bad_keys(changes, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkArguments(**changes)


@pytest.mark.slow  # the harness reads its fourteen thousand task files
def test_unknown_benchmark_is_refused(benchmark):
    arguments = BenchmarkArguments(**{**benchmark, "zero_shot_tasks": ["next_line", "hellaswagg"]})
    with pytest.raises(ValueError, match="zero_shot_tasks names 'hellaswagg', which is no task or group of lm-eval"):
        ZeroShot(arguments, build_tokenizer(SOURCE))
