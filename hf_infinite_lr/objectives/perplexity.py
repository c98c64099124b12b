"""The perplexity of each document under a reference model, kept on disk so that nothing is scored twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from hf_infinite_lr.files import file_sha256

from .causal_lm import build_model, build_tokenizer
from .model_source import ModelSource, stored_config
from .tokenization import Encode, encoder_of, identity_of

_FORMAT = 1
_RECORD = np.dtype([("row", "<i8"), ("nats", "<f8"), ("tokens", "<i8")])


@dataclass(frozen=True)
class DocumentScores:
    """
    What a model makes of some documents, in their order.

    Args:
        nats (`np.ndarray`): The summed loss of each document's predicted tokens.
        num_predicted_tokens (`np.ndarray`): How many these are.
        key (`str`): The fingerprint of documents, model and tokenizer together.
    """

    nats: np.ndarray
    num_predicted_tokens: np.ndarray
    key: str

    @property
    def perplexities(self) -> np.ndarray:
        """Of each document; infinite where no token could be predicted."""
        counts = self.num_predicted_tokens
        means = np.divide(self.nats, counts, out=np.full(len(counts), np.inf), where=counts > 0)
        with np.errstate(over="ignore"):
            return np.exp(means)


def score_documents(
    documents: datasets.Dataset,
    source: ModelSource,
    *,
    block_size: int = 1024,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> DocumentScores:
    """
    Scores each document by itself, as the evaluation scores blocks.

    A document with its closing end-of-sequence token is cut into blocks; of each block every token but the first is
    predicted, and the last block may be shorter. So a document that fills its blocks scores what
    [`~hf_infinite_lr.objectives.lm_scores.language_model_scores`] says of it alone.

    Scores lie below `HF_DATASETS_CACHE`, under the fingerprint of text, model, tokenizer and block size: the same
    documents are never scored twice, and a killed scoring goes on behind its last batch. The model is loaded only if
    there is something to score.

    Args:
        documents (`datasets.Dataset`): A column `text` of strings.
        source ([`ModelSource`]): The reference model, by `model_name_or_path`.
        block_size (`int`, defaults to 1024): Tokens of a block; as many as the model has positions at most.
        batch_size (`int`, defaults to 8): Blocks that are scored at once.
        device (`torch.device` or `str`, defaults to `"cpu"`): Where.

    Raises:
        ValueError: for a model that cannot be loaded.
    """
    tokenizer = build_tokenizer(source)
    encode = encoder_of(tokenizer)
    sizes, text = _sizes_and_hash(documents)
    parts = [_FORMAT, text, _model_identity(source), identity_of(tokenizer), block_size]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    records = _ScoreFile(Path(datasets.config.HF_DATASETS_CACHE, "hf_infinite_lr", f"perplexity-{key}.scores"))
    missing = np.ones(len(documents), bool)
    missing[records.read()["row"]] = False
    if missing.any():
        # Long documents first: what does not fit into memory fails at once, and a batch has little padding.
        rows = np.argsort(-sizes, kind="stable")
        scorer = _Scorer(build_model(source, tokenizer).eval().to(device), encode, block_size, batch_size)
        scorer.score(documents, rows[missing[rows]], records)
    found = records.read()
    found = found[np.unique(found["row"], return_index=True)[1]]
    return DocumentScores(found["nats"], found["tokens"], key)


@dataclass(frozen=True)
class _Scorer:
    model: PreTrainedModel
    encode: Encode
    block_size: int
    batch_size: int

    def score(self, documents: datasets.Dataset, rows: np.ndarray, records: _ScoreFile) -> None:
        """Scores documents in the order of `rows`, and writes each batch down before the next begins."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or self.block_size
        length = min(self.block_size, positions)
        for start in tqdm(range(0, len(rows), self.batch_size), desc="Scoring", unit="batch"):
            batch = rows[start : start + self.batch_size]
            ids, lengths, _ = self.encode(documents[batch]["text"], count_bytes=False)
            tokens = np.split(ids.astype(np.int64), np.cumsum(lengths)[:-1])
            scored = np.zeros(len(batch), _RECORD)
            scored["row"] = batch
            self._fill(scored, [(place, block) for place, each in enumerate(tokens) for block in _cut(each, length)])
            records.append(scored)

    def _fill(self, scored: np.ndarray, blocks: Sequence[tuple[int, np.ndarray]]) -> None:
        for first in range(0, len(blocks), self.batch_size):
            part = blocks[first : first + self.batch_size]
            for (place, block), nats in zip(part, _nats(self.model, [block for _, block in part]), strict=True):
                scored["nats"][place] += nats
                scored["tokens"][place] += len(block) - 1


def _cut(document: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Blocks of a document in which there is something to predict."""
    return (document[at : at + length] for at in range(0, len(document) - 1, length))


@torch.inference_mode()
def _nats(model: PreTrainedModel, blocks: Sequence[np.ndarray]) -> np.ndarray:
    """The summed loss of each block; padding stands behind a block, where a causal model does not see it."""
    longest = max(len(block) for block in blocks)
    ids = np.stack([np.pad(block, (0, longest - len(block))) for block in blocks])
    mask = np.arange(longest) < np.array([len(block) for block in blocks])[:, None]
    inputs, seen = (torch.from_numpy(array).to(model.device) for array in (ids, mask))
    logits = model(input_ids=inputs, attention_mask=seen.long(), use_cache=False).logits.float()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), inputs[:, 1:], reduction="none")
    sums: np.ndarray = (losses * seen[:, 1:]).sum(dim=1, dtype=torch.float64).cpu().numpy()
    return sums


class _ScoreFile:
    """Records of equal size, each batch added by one write, so that a kill leaves whole batches behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> np.ndarray:
        """All whole records; a torn end is cut off."""
        if not self.path.exists():
            return np.empty(0, _RECORD)
        size = self.path.stat().st_size
        if torn := size % _RECORD.itemsize:
            os.truncate(self.path, size - torn)
        return np.fromfile(self.path, _RECORD)

    def append(self, records: np.ndarray) -> None:
        with open(self.path, "ab", buffering=0) as file:
            file.write(records.tobytes())


def _sizes_and_hash(documents: datasets.Dataset) -> tuple[np.ndarray, str]:
    """Bytes of each document, and a hash of the text itself: the fingerprints of `datasets` change with file times."""
    found, sizes = hashlib.sha256(), [np.empty(0, np.int64)]
    for batch in documents.select_columns("text").with_format("arrow").iter(1024):
        encoded = [text.encode() for text in batch.column("text").to_pylist()]
        sizes.append(np.array([len(text) for text in encoded], np.int64))
        found.update(sizes[-1].tobytes() + b"".join(encoded))
    return np.concatenate(sizes), found.hexdigest()


def _model_identity(source: ModelSource) -> list[object]:
    """Of the weights: the files of a folder, or the commit of the Hub; and of what changes them on loading."""
    name = str(source.model_name_or_path)
    given = {key: value for key, value in asdict(source).items() if "name" not in key and key != "model_revision"}
    folder = Path(name)
    if not folder.is_dir():
        return [name, stored_config(source)._commit_hash, given]
    weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    return [[path.name, file_sha256(path)] for path in sorted([*weights, *folder.glob("*config.json")])] + [given]
