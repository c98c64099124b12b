"""Weights come back exactly, also for models that transformers saves under other names; another model is refused.

A rewind costs one load: what the run itself has hashed before is not hashed again, unless it has been written to.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, TrainerCallback

from hf_infinite_lr.trainer import checkpoints, engines
from hf_infinite_lr.trainer.restore import restore_weights

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def mixtral():
    return MixtralForCausalLM(MixtralConfig(vocab_size=32, num_key_value_heads=2, num_local_experts=2, **SIZES))


def llama(tied=False, **changes):
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=tied, **{**SIZES, **changes}))


@pytest.mark.parametrize("make", [llama, lambda: llama(tied=True), mixtral], ids=["llama", "tied", "experts"])
def test_weights_come_back(make, tmp_path):
    model = make()
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    restore_weights(model, tmp_path)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (llama, lambda: llama(hidden_size=32)),
        (llama, lambda: llama(num_hidden_layers=2)),
        (lambda: llama(num_hidden_layers=2), llama),
        (llama, mixtral),
    ],
    ids=["wider", "deeper", "flatter", "another family"],
)
def test_another_models_weights_are_refused(make, other, tmp_path):
    other().save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match=r"shape|lacks|does not hold|mismatch"):
        restore_weights(make(), tmp_path)


class OnTheBranch(TrainerCallback):
    """Acts on the trunk at the last step of the first task's branch."""

    def __init__(self, action):
        self.action = action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 8:
            self.action(f"{args.output_dir}/trunk/01-a/model.safetensors")


SETTINGS = {"evaluate_on": "none", "eval_dataset": {}, "save_strategy": "no"}


def test_a_rewind_reads_the_trunk_once(tiny, tmp_path, monkeypatch):
    hashed, of_file = [], checkpoints.file_sha256
    monkeypatch.setattr(checkpoints, "file_sha256", lambda path: hashed.append(path) or of_file(path))
    restored = []

    def counted(name):
        restore = getattr(engines, name)
        monkeypatch.setattr(engines, name, lambda *words: restored.append(name) or restore(*words))

    counted("restore_weights")
    counted("restore_optimizer")
    tiny.run(tmp_path, tiny.data("ab"), **SETTINGS)
    assert restored == ["restore_weights", "restore_optimizer"]
    assert hashed
    assert len(hashed) == len(set(hashed)), "each file when it was saved, and none again"


def test_a_trunk_that_changes_during_its_branch_is_not_rewound_to(tiny, tmp_path):
    def alter(path):
        content = bytearray(Path(path).read_bytes())
        content[-1] ^= 1
        Path(path).write_bytes(content)

    run = tiny.trainer(tmp_path, tiny.data("ab"), callbacks=[OnTheBranch(alter)], **SETTINGS)
    with pytest.raises(ValueError, match=r"01-a is not whole, .* at step 8: model\.safetensors has other content"):
        run.train()


@pytest.mark.parametrize("finds", ["a checkpoint", ValueError("it is broken."), OSError("it cannot be read.")])
def test_every_process_gets_what_the_main_one_finds(finds, monkeypatch):
    told, asked = [], []

    def look():
        asked.append(finds)
        if isinstance(finds, Exception):
            raise finds
        return finds

    def of(is_main):
        # What the main process sends takes the place of what the other one has.
        send = told.append if is_main else lambda own: own.__setitem__(slice(None), told[0])
        monkeypatch.setattr(checkpoints, "broadcast_object_list", send)
        try:
            return checkpoints.asked_of_main(SimpleNamespace(is_main_process=is_main), look)
        except (ValueError, OSError) as error:
            return error

    assert of(is_main=True) is of(is_main=False) is finds
    assert len(asked) == 1, "the other process reads nothing"
