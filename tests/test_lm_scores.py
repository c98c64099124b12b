"""Models from keys, and scores that agree with their definitions."""

import math

import datasets
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments
from hf_infinite_lr.keys import from_mapping
from hf_infinite_lr.objectives.causal_lm import build_model, build_tokenizer
from hf_infinite_lr.objectives.lm_scores import byte_counts, byte_unigram_bits, language_model_scores
from hf_infinite_lr.objectives.model_source import ModelSource
from hf_infinite_lr.objectives.packing import PackedBlocks, causal_lm_collator, pack

TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SOURCE = ModelSource(model_type="llama", tokenizer_name="byte", config_overrides=TINY)
TEXTS = ["A fixed text, ünd some of it is not ASCII: 漢字.", "Another one.", "And a third document to the end."] * 9


def _documents(texts):
    return datasets.Dataset.from_dict({"text": texts})


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(SOURCE)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return build_model(SOURCE, tokenizer, block_size=32).eval()


@pytest.fixture(scope="module")
def blocks(tokenizer):
    return pack(_documents(TEXTS), tokenizer, block_size=32, count_bytes=True)


@pytest.fixture(scope="module")
def eval_loss(model, blocks, tmp_path_factory):
    arguments = TrainingArguments(
        output_dir=tmp_path_factory.mktemp("out"), per_device_eval_batch_size=4, report_to="none", use_cpu=True
    )
    trainer = Trainer(model, arguments, data_collator=causal_lm_collator, eval_dataset=blocks.dataset)
    return trainer.evaluate()["eval_loss"]


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_scores_equal_the_plain_computation(model, blocks, eval_loss):
    assert len(blocks.dataset) % 4, "the last batch must be smaller than the others"
    ids = torch.tensor(blocks.dataset["input_ids"][:])
    nats = cross_entropy(model(ids).logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten()).item()
    scores = language_model_scores(eval_loss, blocks)
    assert scores["perplexity"] == pytest.approx(math.exp(nats), rel=1e-5)
    num_bytes = sum(token >= 3 for row in blocks.dataset["input_ids"] for token in row[1:])
    assert scores["bits_per_byte"] == pytest.approx(nats * ids[:, 1:].numel() / num_bytes / math.log(2), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_the_routers_loss_is_trained_on_and_not_scored(tokenizer, blocks, tmp_path):
    experts = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    source = ModelSource(model_type="mixtral", tokenizer_name="byte", config_overrides={**TINY, **experts})
    model = build_model(source, tokenizer, block_size=32)
    arguments = ContinualTrainingArguments(
        output_dir=tmp_path,
        task_steps=[2],
        lr_scheduler_type="constant",
        learning_rate=0.0,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        release="none",
    )
    given = {"train_dataset": {"a": blocks.dataset}, "eval_dataset": {"a": blocks.dataset}}
    trainer = ContinualTrainer(model, arguments, data_collator=causal_lm_collator, **given)
    trainer.train()
    ids = torch.tensor(blocks.dataset["input_ids"][:])
    with torch.no_grad():
        nats = cross_entropy(model.eval()(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
    logs = trainer.state.log_history
    assert [entry["eval_a_loss"] for entry in logs if "eval_a_loss" in entry][-1] == pytest.approx(nats, rel=1e-3)
    assert trainer.evaluate(blocks.dataset)["eval_loss"] == pytest.approx(nats, rel=1e-3)
    assert min(entry["loss"] for entry in logs if "loss" in entry) > nats + 0.3
    assert model.config.output_router_logits is True


def test_uniform_model_by_hand(tokenizer):
    # "ab" and "c" are a b E c E: one block of 5 predicts b E c E, of which two are bytes.
    packed = pack(_documents(["ab", "c"]), tokenizer, block_size=5, count_bytes=True)
    scores = language_model_scores(math.log(384), packed)
    assert scores["perplexity"] == pytest.approx(384)
    assert scores["bits_per_byte"] == pytest.approx(math.log2(384) * 4 / 2)


def test_block_length_moves_bits_per_byte_by_the_boundary_only(tokenizer):
    texts = ["x" * 99] * 100
    bits = [
        language_model_scores(1.0, pack(_documents(texts), tokenizer, block_size=size, count_bytes=True))
        for size in (50, 500)
    ]
    # Of 10,000 tokens 100 close a document; each block predicts all but its first token, which is a byte here.
    assert bits[0]["bits_per_byte"] == pytest.approx(9_800 / 9_700 / math.log(2))
    assert bits[1]["bits_per_byte"] == pytest.approx(9_980 / 9_880 / math.log(2))


def test_uncounted_bytes_are_refused(tokenizer):
    packed = pack(_documents(TEXTS), tokenizer, block_size=32)
    with pytest.raises(ValueError, match="num_predicted_bytes is None: pack with count_bytes=True"):
        language_model_scores(1.0, packed)


def test_perplexity_of_a_diverged_model_is_infinite(blocks):
    assert language_model_scores(1e4, blocks)["perplexity"] == math.inf
    assert math.isnan(language_model_scores(math.nan, blocks)["perplexity"])


def test_byte_unigram_by_hand():
    train = [_documents(["aa", "b"]), _documents(["a"])]
    bits = byte_unigram_bits(train, {"same": _documents(["ab"]), "other": _documents(["é"])})
    assert bits["same"] == pytest.approx(-(math.log2(4 / 260) + math.log2(2 / 260)) / 2)
    assert bits["other"] == pytest.approx(math.log2(260))


def test_byte_unigram_is_the_entropy_on_its_own_text():
    text = "some text that is long enough " * 1000
    counts = np.array(sorted(byte_counts(_documents([text]))))
    shares = counts[counts > 0] / counts.sum()
    bits = byte_unigram_bits([_documents([text])], {"own": _documents([text])})["own"]
    assert bits == pytest.approx(-(shares * np.log2(shares)).sum(), rel=1e-2)


def test_new_model_takes_vocabulary_and_special_tokens_from_the_tokenizer(model, tokenizer):
    config = model.config
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (384, 1, 0)
    assert config.hidden_size == 16
    tokenizer_of_model = build_tokenizer(SOURCE)
    assert tokenizer_of_model("</s>", add_special_tokens=False)["input_ids"] == [63, 50, 118, 65]


def test_sizes_that_follow_from_others_follow_the_recipes(model):
    assert model.config.head_dim == TINY["hidden_size"] // TINY["num_attention_heads"]


def test_pretrained_model_and_tokenizer(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    source = ModelSource(model_name_or_path=str(tmp_path), config_overrides={"attention_dropout": 0.5})
    loaded_tokenizer = build_tokenizer(source)
    loaded = build_model(source, loaded_tokenizer)
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert loaded.config.attention_dropout == 0.5
    assert loaded_tokenizer("é</s>")["input_ids"] == tokenizer("é</s>")["input_ids"]


def test_new_model_of_a_stored_configuration(model, tokenizer, tmp_path):
    model.config.save_pretrained(tmp_path)
    given = {"config_name": str(tmp_path / "config.json"), "tokenizer_name": "byte"}
    made = build_model(ModelSource(**given, config_overrides={"eos_token_id": 7}), tokenizer)
    assert made.num_parameters() == model.num_parameters()
    assert made.config.name_or_path == ""  # it is continued from nothing
    assert (made.config.vocab_size, made.config.eos_token_id, made.config.pad_token_id) == (384, 7, 0)
    assert not torch.equal(made.get_input_embeddings().weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize("key", ["config_name", "model_name_or_path"])
def test_model_that_is_not_there(key, tokenizer):
    with pytest.raises(ValueError, match=f"{key}='recipes/models/none.json' cannot be loaded"):
        build_model(ModelSource(**{key: "recipes/models/none.json"}), tokenizer)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "model_name_or_path is None, config_name is None, model_type is None: give exactly one"),
        ({"model_type": "llama", "model_name_or_path": "x"}, "give exactly one of them"),
        ({"model_type": "llama", "config_name": "x"}, "give exactly one of them"),
        ({"model_type": "lama"}, "model_type 'lama' is unknown; did you mean 'llama'"),
        ({"model_type": "llama", "config_overrides": [1]}, r"config_overrides is \[1\] but must be a mapping"),
        (
            {"model_type": "llama", "tokeniser_name": "byte"},
            "'tokeniser_name' is an unknown key; did you mean 'tokenizer",
        ),
    ],
)
def test_bad_keys(entry, message):
    with pytest.raises(ValueError, match=message):
        from_mapping(ModelSource, entry)


def test_bad_override(tokenizer):
    source = ModelSource(model_type="llama", config_overrides={"hiden_size": 8})
    with pytest.raises(ValueError, match="hiden_size is no field of a llama configuration; did you mean"):
        build_model(source, tokenizer)


def test_vocabulary_larger_than_the_models(tokenizer):
    source = ModelSource(model_type="llama", config_overrides={**TINY, "vocab_size": 100})
    with pytest.raises(ValueError, match="has 384 tokens but the model's vocabulary holds only 100"):
        build_model(source, tokenizer)


def test_block_longer_than_the_models_positions(tokenizer):
    with pytest.raises(ValueError, match="block_size is 65 but the model has only 64 positions"):
        build_model(SOURCE, tokenizer, block_size=65)


def test_new_model_without_tokenizer():
    with pytest.raises(ValueError, match="tokenizer_name is missing"):
        build_tokenizer(ModelSource(model_type="llama"))


def test_packed_blocks_count_by_hand():
    packed = PackedBlocks(_documents(["a", "b"]), block_size=4, num_tokens=11)
    assert packed.num_predicted_tokens == 6
