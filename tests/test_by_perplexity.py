"""Documents ranked by perplexity: scores, their cache, and what a recipe makes of them."""

import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hf_infinite_lr.objectives import perplexity
from hf_infinite_lr.objectives.causal_lm import build_tokenizer
from hf_infinite_lr.objectives.lm_scores import language_model_scores
from hf_infinite_lr.objectives.model_source import ModelSource
from hf_infinite_lr.objectives.packing import causal_lm_collator, pack
from hf_infinite_lr.objectives.perplexity import DocumentScores, score_documents
from hf_infinite_lr.recipe import load_recipe
from hf_infinite_lr.recipe.by_perplexity import ByPerplexity
from hf_infinite_lr.stream import InOrder, Task

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXTS = ["aaaa" * n + "".join(chr(97 + (n * place) % 26) for place in range(n % 9 + 1)) for n in range(1, 21)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "hf_infinite_lr"


@pytest.fixture
def reference(tmp_path):
    """A model of bytes in a folder."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=384, max_position_embeddings=32, initializer_range=0.3, **SIZES)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return ModelSource(model_name_or_path=str(tmp_path / "model"), tokenizer_name="byte")


def documents(texts=TEXTS):
    return datasets.Dataset.from_dict({"text": list(texts)})


def evaluated(reference, text, block_size, folder):
    """What the evaluation says of one document."""
    blocks = pack(documents([text]), build_tokenizer(reference), block_size=block_size, count_bytes=True)
    args = TrainingArguments(str(folder), report_to="none", use_cpu=True, disable_tqdm=True)
    model = LlamaForCausalLM.from_pretrained(reference.model_name_or_path)
    trainer = Trainer(model, args, data_collator=causal_lm_collator)
    return language_model_scores(trainer.evaluate(blocks.dataset)["eval_loss"], blocks)["perplexity"]


def test_scores_are_those_of_the_evaluation(reference, tmp_path):
    texts = ["short", "xy", "just one byte less than 32 here", "é" * 8, "two blocks that are full" * 2 + "!" * 15]
    scores = score_documents(documents(texts), reference, block_size=32, batch_size=3)
    lengths = [len(text.encode()) + 1 for text in texts]
    assert lengths == [6, 3, 32, 17, 64]
    assert scores.num_predicted_tokens.tolist() == [5, 2, 31, 16, 62]
    expected = [evaluated(reference, text, min(32, len(text.encode()) + 1), tmp_path) for text in texts]
    assert scores.perplexities == pytest.approx(expected, rel=1e-5)
    assert len({round(value, 6) for value in expected}) == 5


def test_a_document_longer_than_the_model_has_positions_is_cut(reference):
    text = "".join(chr(97 + place % 26) for place in range(69))  # 70 tokens: blocks of 32, 32 and 6
    whole = score_documents(documents([text]), reference, block_size=1024)
    assert whole.num_predicted_tokens.tolist() == [31 + 31 + 5]
    one = score_documents(documents([text]), reference, block_size=32, batch_size=1)
    assert whole.nats == pytest.approx(one.nats, rel=1e-6)


def test_batches_and_order_change_no_score(reference, cache):
    together = score_documents(documents(), reference, batch_size=7)
    for file in cache.iterdir():
        file.unlink()
    alone = score_documents(documents(), reference, batch_size=1)
    backwards = score_documents(documents(TEXTS[::-1]), reference, batch_size=3)
    assert together.perplexities == pytest.approx(alone.perplexities, rel=1e-5)
    assert together.perplexities == pytest.approx(backwards.perplexities[::-1], rel=1e-5)


def test_the_same_documents_are_never_scored_again(reference, tmp_path, cache, monkeypatch):
    first = score_documents(documents(), reference)
    monkeypatch.setattr(perplexity, "build_model", None)
    again = score_documents(documents(), reference, batch_size=3)
    assert again.key == first.key
    assert again.nats.tolist() == first.nats.tolist()
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache.parent)
    keys = {first.key, score_documents(documents(TEXTS[1:]), reference).key}
    keys.add(score_documents(documents(), reference, block_size=16).key)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path / "model")
    keys.add(score_documents(documents(), reference).key)
    assert len(keys) == 4


def test_a_torn_record_is_scored_again_and_no_other(reference, cache, monkeypatch):
    whole = score_documents(documents(), reference, batch_size=4)
    (file,) = cache.iterdir()
    os.truncate(file, 8 * 24 + 11)
    rows, score = [], perplexity._Scorer.score
    monkeypatch.setattr(perplexity._Scorer, "score", lambda *given: rows.extend(given[2]) or score(*given))
    mended = score_documents(documents(), reference, batch_size=4)
    assert mended.nats == pytest.approx(whole.nats, rel=1e-6)
    assert len(rows) == len(TEXTS) - 8
    assert file.stat().st_size == len(TEXTS) * 24


KILLED = """
import json, os, signal, sys
import datasets
from hf_infinite_lr.objectives import perplexity
from hf_infinite_lr.objectives.model_source import ModelSource

folder, texts = json.load(sys.stdin)
datasets.config.HF_DATASETS_CACHE = folder + "/cache"
score, calls = perplexity._nats, []

def kill(model, blocks):
    calls.append(len(blocks))
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return score(model, blocks)

perplexity._nats = kill
source = ModelSource(model_name_or_path=folder + "/model", tokenizer_name="byte")
perplexity.score_documents(datasets.Dataset.from_dict({"text": texts}), source, batch_size=2)
"""


def test_a_killed_scoring_resumes_without_scoring_anything_twice(reference, tmp_path, cache, monkeypatch):
    texts = [text[:30] for text in TEXTS]  # one block each, so that a batch is one call of the model
    words = [sys.executable, "-W", "ignore", "-c", KILLED]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    given = json.dumps([str(tmp_path), texts])
    killed = subprocess.run(words, input=given, env=environment, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    (file,) = cache.iterdir()
    assert file.stat().st_size == 3 * 2 * 24
    seen = []
    score = perplexity._nats
    monkeypatch.setattr(perplexity, "_nats", lambda model, blocks: seen.append(len(blocks)) or score(model, blocks))
    resumed = score_documents(documents(texts), reference, batch_size=2)
    assert seen == [2] * 7
    file.unlink()
    assert resumed.nats.tolist() == score_documents(documents(texts), reference, batch_size=2).nats.tolist()


def test_ranking():
    nats = np.array([4.0, 1.0, 0.0, 9.0, 3.0])
    scores = DocumentScores(nats, np.array([2, 1, 0, 3, 1]), "key")
    assert scores.perplexities == pytest.approx(np.exp([2, 1, np.inf, 3, 3]))
    source = ModelSource(model_name_or_path="somewhere")
    rows = {
        (keep, curriculum): ByPerplexity(source, keep, curriculum).rows(scores, "news").tolist()
        for keep in (2, 0.6, 0.1, None)
        for curriculum in (False, True)
    }
    assert rows == {
        (2, False): [0, 1],
        (2, True): [1, 0],
        (0.6, False): [0, 1, 3],
        (0.6, True): [1, 0, 3],
        (0.1, False): [1],
        (0.1, True): [1],
        (None, False): [0, 1, 2, 3, 4],
        (None, True): [1, 0, 3, 4, 2],
    }


@pytest.fixture
def recipe(tmp_path, reference):
    (tmp_path / "news.jsonl").write_text("".join(json.dumps({"text": text * 3}) + "\n" for text in TEXTS))

    def load(entry, **changes):
        by = {"model_name_or_path": reference.model_name_or_path, "tokenizer_name": "byte"}
        task = {"name": "news", "data_files": str(tmp_path / "news.jsonl"), "num_eval_samples": 2}
        asked = entry.pop("by_perplexity", {})
        if "mixture" in entry:
            entry["mixture"] = [{**task, **part, "by_perplexity": {**by, **asked}} for part in entry["mixture"]]
            for part in entry["mixture"]:
                del part["name"]
            task = {"name": "news"}
        else:
            task["by_perplexity"] = {**by, **asked} if isinstance(asked, dict) else asked
        content = {
            "model_type": "llama",
            "config_overrides": {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 32},
            "tokenizer_name": "byte",
            "block_size": 32,
            "tasks": [{**task, **entry}],
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "output_dir": str(tmp_path / "out"),
            **changes,
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        return load_recipe(tmp_path / "recipe.yaml")

    return load


def learned(made):
    """The documents that the objective was given to train on."""
    return [document for data in made.objective._train for document in data["text"][:]]


def test_a_recipe_keeps_the_best_documents_and_learns_them_in_order(recipe, reference, capsys):
    made = recipe({"by_perplexity": {"keep": 0.5, "curriculum": True}})
    (task,) = made.stream().tasks
    documents_left = learned(made)
    rows = recipe({"by_perplexity": {"keep": 0.999}})
    rows.stream()
    scores = score_documents(documents(learned(made)), reference, block_size=32)
    assert len(documents_left) == 9
    assert len(learned(rows)) == 17
    assert scores.perplexities.tolist() == sorted(scores.perplexities)
    assert isinstance(task.dataset, InOrder)
    first = bytes(token - 3 for token in task.dataset[0]["input_ids"])
    assert first.decode() == (documents_left[0] * 2)[:32] or documents_left[0].startswith(first.decode()[:8])
    (plain,) = recipe({"by_perplexity": {"keep": 0.5}}).stream().tasks
    assert not isinstance(plain.dataset, InOrder)
    assert len(plain.dataset) == len(task.dataset)
    assert plain.identity() != task.identity()


def test_a_mixture_can_keep_the_best_of_a_part(recipe):
    made = recipe({"mixture": [{"weight": 1}, {"weight": 1, "subset": 8}], "by_perplexity": {"keep": 5}})
    made.check()
    made.stream()
    assert [len(data) for data in made.objective._train] == [5, 5]


def test_a_curriculum_is_trained(recipe):
    trainer = recipe(
        {"by_perplexity": {"curriculum": True}, "num_epochs": 2}, save_strategy="no", evaluate_on="none"
    ).trainer()
    table = trainer.stream.tasks[0].dataset.table
    served = []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: served.extend(row["input_ids"] for row in rows) or collate(rows)
    trainer.train()
    usable = len(table) // 4 * 4
    assert [list(block) for block in served[:4]] == [table[row]["input_ids"] for row in range(4)]
    assert trainer.state.global_step == 2 * usable // 4


@pytest.mark.parametrize(
    ("entry", "changes", "sentence"),
    [
        ({"by_perplexity": True}, {}, "by_perplexity=True must be a mapping with a model_name_or_path"),
        ({"by_perplexity": {"model_name_or_path": None}}, {}, "must be a mapping with a model_name_or_path"),
        ({"by_perplexity": {}}, {}, "'news': by_perplexity says neither keep .* nor curriculum"),
        ({"by_perplexity": {"kep": 0.5}}, {}, "by_perplexity: 'kep' is an unknown key; did you mean 'keep'?"),
        ({"by_perplexity": {"model_type": "llama"}}, {}, "by_perplexity: .* give exactly one of them"),
        ({"by_perplexity": {"keep": 1.0}}, {}, r"keep=1\.0 must be a whole number of documents, or a share"),
        ({"by_perplexity": {"keep": 0}}, {}, "keep=0 must be a whole number"),
        ({"by_perplexity": {"keep": True}}, {}, "keep=True must be a whole number"),
        ({"by_perplexity": {"curriculum": "yes"}}, {}, "curriculum='yes' must be true or false"),
        ({"by_perplexity": {"keep": 19}}, {}, "by_perplexity: keep=19 is more than the 18 documents"),
        (
            {"by_perplexity": {"keep": 0.5}, "streaming": True, "num_steps": 2},
            {},
            "by_perplexity needs all documents before the first step, so that streaming cannot be true",
        ),
        (
            {"by_perplexity": {"curriculum": True}},
            {"methods": {"joint": {}}},
            "curriculum=True cannot be used with methods.joint",
        ),
        (
            {"by_perplexity": {"curriculum": True}, "split_into": {"kind": "instance", "num_tasks": 2}},
            {},
            "'news' has split_into and by_perplexity with curriculum: give one of them",
        ),
        (
            {"by_perplexity": {"curriculum": True}, "mixture": [{"weight": 1}]},
            {},
            "part 'news 1' of a mixture has by_perplexity with curriculum, but a mixture is drawn at random",
        ),
        (
            {"by_perplexity": {"model_name_or_path": "no/where/at-all", "keep": 2}},
            {},
            "model_name_or_path='no/where/at-all' cannot be loaded",
        ),
    ],
)
def test_bad_keys_are_refused(recipe, entry, changes, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:  # noqa: PT012  # wherever it is noticed
        made = recipe(dict(entry), **changes)
        made.check()
        made.stream()
    assert "\n" not in str(refusal.value)


def test_pictures_have_no_perplexity(tmp_path):
    by = {"model_name_or_path": "somewhere", "keep": 2}
    content = {
        "objective": "mae",
        "model_type": "vit_mae",
        "tasks": [{"name": "digits", "builtin": "digits", "by_perplexity": by}],
        "output_dir": str(tmp_path / "out"),
        "report_to": "none",
        "use_cpu": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="'digits': by_perplexity needs objective: causal_lm, but this is mae"):
        load_recipe(tmp_path / "recipe.yaml").check()


def test_rows_in_order_resume_exactly(tiny, tmp_path):
    def tasks():
        return [Task(name, InOrder(data)) for name, data in tiny.data("ab").items()]

    settings = {"evaluate_on": "none", "eval_dataset": {}}
    whole = tiny.run(tmp_path / "whole", tasks(), **settings)
    assert [row for batch in whole.data_collator.ids for row in batch][:64] == [97_000 + row for row in range(64)]
    tiny.run(tmp_path / "killed", tasks(), stop_at=9, **settings)
    assert tiny.same_end(tiny.run(tmp_path / "killed", tasks(), resume=True, **settings), whole)
    with pytest.raises(ValueError, match="InOrder: a dataset of type IterableDataset is streaming"):
        InOrder(tiny.rows(4, 0).to_iterable_dataset())
    assert Task("a", InOrder([1, 2])).identity() != Task("a", [1, 2]).identity()
