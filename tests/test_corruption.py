"""Every corruption of a checkpoint ends in a clear error or in the previous whole one, never in a silent wrong run."""

import json
import shutil

import pytest

from hf_infinite_lr.trainer import checkpoints
from hf_infinite_lr.trainer.resume import find_checkpoint

SETTINGS = {"evaluate_on": "none", "eval_dataset": {}}
FILES = [
    "config.json",
    "continual_arguments.json",
    "continual_state.json",
    "generation_config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "stream_state.json",
    "trainer_state.json",
    "training_args.bin",
]


def truncated(path):
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path):
    path.write_bytes(b"")


def missing(path):
    path.unlink()


def altered(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_another_step(path):
    """As an incomplete copy of a directory over another leaves it."""
    shutil.copy(path.parent.parent / "checkpoint-8" / path.name, path)


def of_another_kind(path):
    others = [other for other in path.parent.iterdir() if other.name != path.name]
    shutil.copy(max(others, key=lambda other: other.stat().st_size), path)


def another_json(path):
    path.write_text(json.dumps({"schema_version": 1, "files": {}, "global_step": 12}))


def not_a_file(path):
    path.unlink()
    path.mkdir()


DAMAGES = [truncated, emptied, missing, altered, of_another_step, of_another_kind, another_json, not_a_file]


@pytest.fixture(scope="module")
def interrupted(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("interrupted")
    tiny.run(out, tiny.data("ab"), stop_at=13, **SETTINGS)
    shutil.rmtree(out / "trunk" / "02-b")  # the same step as checkpoint-12
    return out


@pytest.fixture(scope="module")
def plan(tiny, tmp_path_factory):
    return tiny.trainer(tmp_path_factory.mktemp("plan"), tiny.data("ab"), **SETTINGS).plan


def test_the_table_has_every_file(interrupted):
    assert sorted(path.name for path in (interrupted / "checkpoint-12").iterdir()) == FILES


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_every_file_and_every_damage(tmp_path, interrupted, plan, name, damage, caplog):
    out = tmp_path / "out"
    shutil.copytree(interrupted, out)
    newest = out / "checkpoint-12"
    before = (newest / name).read_bytes()
    damage(newest / name)
    if (newest / name).is_file() and (newest / name).read_bytes() == before:
        return  # files that are the same at each step: nothing is damaged
    assert find_checkpoint(out, True, plan).name == "checkpoint-8"
    assert "checkpoint-12 is passed over: " in caplog.text
    with pytest.raises(ValueError, match=r"checkpoint-12' is not a whole checkpoint: .+\."):
        find_checkpoint(out, str(newest), plan)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("continual_state.json", "{}", r"continual_state.json lacks global_step, num_steps, "),
        ("continual_state.json", "[1]", r"continual_state.json lacks global_step"),
        ("continual_state.json", "{", r"continual_state.json is not valid JSON"),
        ("trainer_state.json", "{}", r"its trainer_state.json is of step None, its continual_state.json of step 12"),
        ("trainer_state.json", "[]", r"its trainer_state.json is of step None"),
    ],
)
def test_wrong_json_under_a_manifest_that_fits(tmp_path, interrupted, plan, name, content, message):
    out = tmp_path / "out"
    shutil.copytree(interrupted, out)
    (out / "checkpoint-12" / name).write_text(content)
    checkpoints.write_manifest(out / "checkpoint-12")
    for resume in (True, str(out / "checkpoint-12")):
        with pytest.raises(ValueError, match=message):
            find_checkpoint(out, resume, plan)


def test_weights_of_another_model_under_a_manifest_that_fits(tiny, tmp_path, interrupted):
    out = tmp_path / "out"
    shutil.copytree(interrupted, out)
    wider = tiny.LlamaForCausalLM(tiny.LlamaConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1))
    wider.save_pretrained(out / "checkpoint-12")
    checkpoints.write_manifest(out / "checkpoint-12")
    run = tiny.trainer(out, tiny.data("ab"), **SETTINGS)
    with pytest.raises(ValueError, match=r"checkpoint-12: tensor .* of shape .* (has shape|is not in the model)"):
        run.train(True)
    assert not run.has_begun
    assert run.watch.rates == {}


@pytest.mark.parametrize("name", ["checkpoint-99", "trunk/09-x"])
def test_a_file_where_a_directory_should_be(tmp_path, interrupted, plan, name):
    out = tmp_path / "out"
    shutil.copytree(interrupted, out)
    (out / name).write_text("not a directory")
    assert find_checkpoint(out, True, plan).name == "checkpoint-12"
    with pytest.raises(
        ValueError, match=r"is not a whole checkpoint: .*manifest.json cannot be read \(Not a directory\)"
    ):
        find_checkpoint(out, str(out / name), plan)


def test_a_checkpoint_that_nobody_may_read(tmp_path, interrupted, plan, monkeypatch):
    real = checkpoints.read_json

    def forbidden(path):
        if path.parent.name == "checkpoint-12":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(checkpoints, "read_json", forbidden)
    assert find_checkpoint(interrupted, True, plan).name == "checkpoint-8"
