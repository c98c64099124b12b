"""Weights come back exactly, also for models that transformers saves under other names; another model is refused."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

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
