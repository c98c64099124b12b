"""Packing: every token once, the same blocks from a stream, and bytes that belong to one token each."""

import itertools
import json
import logging

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from hf_infinite_lr.objectives import tokenization
from hf_infinite_lr.objectives.causal_lm import build_tokenizer
from hf_infinite_lr.objectives.model_source import ModelSource
from hf_infinite_lr.objectives.packing import PackedStream, causal_lm_collator, pack

TEXTS = [
    "Infinite schedules hold the rate.",
    "",
    "Ünïcödé — 漢字 and 🙂🙂 in one document, a little longer than the others so that it fills whole blocks.",
    "x",
    "a</s>b<pad> c <extra_id_0>\n\ttabs  and   spaces ",
] * 60


@pytest.fixture(scope="module")
def byte():
    return build_tokenizer(ModelSource(model_type="llama", tokenizer_name="byte"))


@pytest.fixture(scope="module")
def bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.fixture(params=["byte", "bpe"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def _documents(texts=TEXTS):
    return datasets.Dataset.from_dict({"text": texts})


def _expected(tokenizer, texts=TEXTS):
    """The plain definition: all documents' tokens, each document followed by the end-of-sequence token."""
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [token for row in encoded for token in [*row, tokenizer.eos_token_id]]


@pytest.mark.parametrize("block_size", [2, 7, 64, 3000])
def test_every_token_once_in_blocks_or_remainder(tokenizer, block_size, caplog):
    with caplog.at_level(logging.INFO):
        packed = pack(_documents(), tokenizer, block_size=block_size)
    expected = _expected(tokenizer)
    whole = len(expected) // block_size * block_size
    assert [token for row in packed.dataset["input_ids"] for token in row] == expected[:whole]
    assert packed.num_tokens == len(expected)
    assert f"{len(TEXTS)} documents make {whole // block_size} blocks" in caplog.text
    assert f"the last {len(expected) - whole} tokens are in none." in caplog.text
    assert all(len(row) == block_size for row in packed.dataset["input_ids"])


def test_unpicked_documents_are_left_out(byte):
    documents = _documents().select(range(10, 200, 3))
    packed = pack(documents, byte, block_size=16)
    expected = _expected(byte, documents["text"][:])
    assert [token for row in packed.dataset["input_ids"] for token in row] == expected[: len(packed.dataset) * 16]
    assert packed.num_tokens == len(expected)


def test_byte_tokens_are_the_tokenizers_own(byte):
    assert isinstance(tokenization.encoder_of(byte), tokenization._ByteEncode)
    ids, lengths, _ = tokenization.encoder_of(byte)(TEXTS, count_bytes=False)
    assert ids.tolist() == _expected(byte)
    assert lengths.tolist() == [len(text.encode()) + 1 for text in TEXTS]


def test_a_byte_tokenizer_that_reads_special_tokens_is_not_replaced():
    tokenizer = ByT5Tokenizer()
    packed = pack(_documents(), tokenizer, block_size=8)
    assert packed.num_tokens == len(_expected(tokenizer)) < len(_expected(ByT5Tokenizer(split_special_tokens=True)))


def test_several_processes_make_the_same_blocks(byte):
    alone = pack(_documents(), byte, block_size=32, count_bytes=True)
    together = pack(_documents(), byte, block_size=32, count_bytes=True, num_proc=2)
    assert together.dataset["input_ids"][:] == alone.dataset["input_ids"][:]
    assert together.num_predicted_bytes == alone.num_predicted_bytes


def test_blocks_come_from_the_cache(byte, tmp_path, monkeypatch):
    _documents().save_to_disk(tmp_path / "documents")
    first = pack(datasets.load_from_disk(tmp_path / "documents"), byte, block_size=32)
    monkeypatch.setattr("hf_infinite_lr.objectives.packing._tokenize", None)
    monkeypatch.setattr("hf_infinite_lr.objectives.packing._pack", None)
    again = pack(datasets.load_from_disk(tmp_path / "documents"), byte, block_size=32)
    assert again.dataset["input_ids"][:] == first.dataset["input_ids"][:]


def test_another_tokenizer_makes_other_blocks_of_the_same_cached_documents(byte, bpe, tmp_path):
    _documents().save_to_disk(tmp_path / "documents")
    documents = datasets.load_from_disk(tmp_path / "documents")
    assert pack(documents, byte, block_size=32).num_tokens != pack(documents, bpe, block_size=32).num_tokens


def test_predicted_bytes_by_hand(byte):
    # Tokens a b E | é é' c E | d: blocks of 4 are [a b E é] and [é' c E d]; predicted are b E é and c E d.
    packed = pack(_documents(["ab", "éc", "d"]), byte, block_size=4, count_bytes=True)
    assert packed.num_tokens == 8 + 1
    assert packed.num_predicted_tokens == 6
    assert packed.num_predicted_bytes == 4


@pytest.mark.parametrize("kind", ["byte", "bpe", "slow"])
def test_every_byte_of_a_document_belongs_to_one_token(kind, request):
    tokenizer = ByT5Tokenizer() if kind == "slow" else request.getfixturevalue(kind)
    _, lengths, num_bytes = tokenization.encoder_of(tokenizer)(TEXTS, count_bytes=True)
    rows = np.split(num_bytes, np.cumsum(lengths)[:-1])
    assert [int(row.sum()) for row in rows] == [len(text.encode()) for text in TEXTS]


def test_bytes_of_a_fast_tokenizer_are_those_of_its_tokens(bpe):
    text = "rate 漢字 holds"
    _, _, num_bytes = tokenization.encoder_of(bpe)([text], count_bytes=True)
    encoding = bpe(text, return_offsets_mapping=True, add_special_tokens=False)
    ascii_tokens = [
        (end - start, count)
        for (start, end), count in zip(encoding["offset_mapping"], num_bytes, strict=False)
        if text[start:end].isascii()
    ]
    assert len(ascii_tokens) == 4
    assert all(length == count for length, count in ascii_tokens)
    assert num_bytes[-1] == 0


def _shards(texts=TEXTS, num_shards=3):
    return _documents(texts).to_iterable_dataset(num_shards=num_shards)


@pytest.mark.parametrize("block_size", [5, 64, 900])
def test_stream_yields_the_same_blocks(tokenizer, block_size):
    packed = pack(_documents(), tokenizer, block_size=block_size)
    stream = PackedStream(_shards(), tokenizer, block_size=block_size)
    for _ in range(2):
        blocks = [block["input_ids"].tolist() for block in stream]
        assert blocks == packed.dataset["input_ids"][:]


@pytest.mark.parametrize("stop", [1, 2, 40, 101, 102])
def test_stream_resumes_with_the_next_block(byte, stop):
    whole = [block["input_ids"].tolist() for block in PackedStream(_shards(), byte, block_size=64)]
    stream = PackedStream(_shards(), byte, block_size=64)
    list(itertools.islice(stream, stop))
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = PackedStream(_shards(), byte, block_size=64)
    resumed.load_state_dict(state)
    assert len(whole) > stop
    assert [block["input_ids"].tolist() for block in resumed] == whole[stop:]
    assert [block["input_ids"].tolist() for block in resumed] == whole


def test_state_holds_less_than_a_block_of_tokens(byte):
    stream = PackedStream(_shards(), byte, block_size=64)
    sizes = []
    for _ in stream:
        sizes.append(len(stream.state_dict()["rest"]))
    assert 0 < max(sizes) < 64


def test_streamed_files_resume(byte, tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")

    def stream():
        documents = datasets.load_dataset("json", data_files=str(path), split="train", streaming=True)
        documents = documents.filter(bool, input_columns="text").skip(3)
        return PackedStream(documents, byte, block_size=64)

    whole = [block["input_ids"].tolist() for block in stream()]
    first, second = stream(), stream()
    list(itertools.islice(first, 50))
    second.load_state_dict(first.state_dict())
    assert [block["input_ids"].tolist() for block in second] == whole[50:]


def test_collator_makes_int64_labels(byte):
    packed = pack(_documents(), byte, block_size=16)
    batch = causal_lm_collator([packed.dataset[0], packed.dataset[1]])
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"].dtype == torch.int64
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch["input_ids"][1].tolist() == packed.dataset[1]["input_ids"]


def test_tokens_take_two_bytes(byte):
    assert pack(_documents(), byte, block_size=16).dataset.features["input_ids"].feature.dtype == "uint16"


@pytest.mark.parametrize("block_size", [1, 0, 2.0, True])
def test_bad_block_size(byte, block_size):
    with pytest.raises(ValueError, match=f"block_size is {block_size!r} but must be a whole number of at least 2"):
        pack(_documents(), byte, block_size=block_size)


def test_text_shorter_than_a_block(byte):
    with pytest.raises(ValueError, match="block_size is 8 but the text has only 3 tokens"):
        pack(_documents(["ab"]), byte, block_size=8)


def test_tokenizer_without_end_of_sequence(bpe):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer)
    with pytest.raises(ValueError, match="has no end-of-sequence token"):
        pack(_documents(), tokenizer, block_size=8)
