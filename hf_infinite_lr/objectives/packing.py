"""Tokens of documents, joined by the end-of-sequence token and cut into blocks of equal length."""

import copy
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from hf_infinite_lr.stream.reader import unshared

from .tokenization import Encode, encoder_of, identity_of, joined, rows_of, token_dtype

logger = logging.getLogger(__name__)

_FORMAT = 1
_BATCH_BYTES = 2**24
"""Text of one batch of `map`."""

# Documents of a stream that are tokenised at once: few, because resuming tokenises them again.
_STREAM_DOCUMENTS = 16


@dataclass(frozen=True)
class PackedBlocks:
    """
    A dataset of blocks, and where each of its tokens went.

    Args:
        dataset (`datasets.Dataset`): One column `input_ids`, `block_size` tokens a row.
        block_size (`int`): Tokens of a block.
        num_tokens (`int`): Tokens of all documents, each of which is followed by one end-of-sequence token.
        num_predicted_bytes (`int`, *optional*):
            UTF-8 bytes of text that the predicted tokens stand for: those at the places 1 to `block_size` - 1 of each
            block. Only counted on request.
    """

    dataset: datasets.Dataset
    block_size: int
    num_tokens: int
    num_predicted_bytes: int | None = None

    @property
    def num_predicted_tokens(self) -> int:
        """Tokens that a causal model predicts: all of a block but its first."""
        return len(self.dataset) * (self.block_size - 1)


def pack(
    documents: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    block_size: int,
    count_bytes: bool = False,
    num_proc: int | None = None,
) -> PackedBlocks:
    """
    Tokenises documents and packs them into blocks: no padding, and every token once, in a block or in the remainder.

    Both passes are `datasets.Dataset.map` calls, cached by the documents, the tokenizer and the block size. How many
    tokens are left over is logged.

    A byte of text belongs to exactly one token: with a fast tokenizer to the first one whose offsets reach past it,
    with the byte tokenizer to its own; with any other tokenizer a document's bytes are spread evenly over its tokens,
    which is exact for the document and an estimate at the borders of blocks. The end-of-sequence token stands for
    what text is left (as a rule none); its loss counts like that of any other token.

    Args:
        documents (`datasets.Dataset`): A column `text` of strings.
        tokenizer (`PreTrainedTokenizerBase`): Must have an end-of-sequence token.
        block_size (`int`): Tokens of a block, at least 2.
        count_bytes (`bool`, *optional*, defaults to `False`):
            Also count the bytes that the predicted tokens stand for, for bits per byte.
        num_proc (`int`, *optional*): Processes.

    Returns:
        [`PackedBlocks`]: The blocks with their counts.

    Raises:
        `ValueError`: If there are fewer tokens than one block takes, or the tokenizer has no end-of-sequence token.

    Example:

    ```python
    >>> from transformers import ByT5Tokenizer
    >>> documents = datasets.Dataset.from_dict({"text": ["ab", "c"]})
    >>> blocks = pack(documents, ByT5Tokenizer(split_special_tokens=True), block_size=2)
    >>> blocks.dataset["input_ids"][:], blocks.num_tokens
    ([[100, 101], [1, 102]], 5)

    ```
    """
    encode = encoder_of(tokenizer)
    _check_block_size(block_size)
    dtype = token_dtype(tokenizer)
    key = [_FORMAT, documents._fingerprint, identity_of(tokenizer), count_bytes]
    rows = rows_of(documents.data.nbytes, len(documents.data), _BATCH_BYTES)
    tokens = documents.with_format("arrow").map(
        _tokenize,
        batched=True,
        batch_size=rows,
        remove_columns=documents.column_names,
        features=_token_features(dtype, count_bytes),
        fn_kwargs={"encode": encode, "dtype": dtype, "count_bytes": count_bytes},
        num_proc=num_proc,
        new_fingerprint=_hash(key),
        desc="Tokenizing",
    )
    ends = np.cumsum(_lengths(tokens))
    num_tokens = _check_one_block(ends, block_size)
    blocks = tokens.map(
        _pack,
        batched=True,
        with_indices=True,
        batch_size=rows,
        remove_columns=tokens.column_names,
        features=datasets.Features({"input_ids": datasets.List(datasets.Value(dtype.name), length=block_size)}),
        fn_kwargs={"tokens": tokens.select_columns("input_ids"), "ends": ends, "block_size": block_size},
        num_proc=num_proc,
        new_fingerprint=_hash([*key, block_size]),
        desc="Packing",
    )
    logger.info(
        "%d documents make %d blocks of %d tokens; the last %d tokens are in none.",
        *(len(documents), len(blocks), block_size, num_tokens - len(blocks) * block_size),
    )
    return PackedBlocks(
        dataset=blocks.with_format(None),
        block_size=block_size,
        num_tokens=num_tokens,
        num_predicted_bytes=_predicted_bytes(tokens, len(blocks), block_size) if count_bytes else None,
    )


class PackedStream(IterableDataset):
    """
    The streaming twin of [`pack`]: the same blocks from the same documents, and a state to go on from.

    The state is small: where the source stood before the documents that are being cut, the tokens that were left over
    then (less than a block), and how many blocks have been cut since. Resuming tokenises those documents again.

    Args:
        documents (`datasets.IterableDataset`): Examples with the field `text`.
        tokenizer (`PreTrainedTokenizerBase`): Must have an end-of-sequence token.
        block_size (`int`): Tokens of a block, at least 2.

    The tokens after the last whole block are in no block.

    Example:

    ```python
    >>> from transformers import ByT5Tokenizer
    >>> documents = datasets.Dataset.from_dict({"text": ["ab", "c"]}).to_iterable_dataset()
    >>> stream = PackedStream(documents, ByT5Tokenizer(split_special_tokens=True), block_size=2)
    >>> [block["input_ids"].tolist() for block in stream]
    [[100, 101], [1, 102]]

    ```
    """

    def __init__(
        self, documents: datasets.IterableDataset, tokenizer: PreTrainedTokenizerBase, *, block_size: int
    ) -> None:
        _check_block_size(block_size)
        self.documents = unshared(documents)
        self.block_size = block_size
        self._encode = encoder_of(tokenizer)
        self._dtype = token_dtype(tokenizer)
        self._start: dict[str, Any] | None = None
        self._state = self._snapshot(None, np.empty(0, self._dtype), 0)

    def unshared(self) -> "PackedStream":
        """The same stream at its start, with a position of its own."""
        own = copy.copy(self)
        own.documents = unshared(self.documents)
        own.load_state_dict(None)
        return own

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch to the source, which may shuffle by it."""
        self.documents.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Position after the block that was yielded last, as plain Python values."""
        return dict(self._state)

    def load_state_dict(self, state_dict: Mapping[str, Any] | None) -> None:
        """Lets the next iteration begin with the block after the one at which the state was taken, or at the start."""
        self._start = None if state_dict is None else dict(state_dict)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        start, self._start = self._start or self._snapshot(None, np.empty(0, self._dtype), 0), None
        self.documents.load_state_dict(start["documents"])
        source, rest, done = start["documents"], np.asarray(start["rest"], self._dtype), start["num_blocks"]
        for batch in self.documents.iter(_STREAM_DOCUMENTS):
            flat, _, _ = self._encode(batch["text"], count_bytes=False)
            flat = np.concatenate([rest, flat.astype(self._dtype)])
            whole = len(flat) // self.block_size
            for index, block in enumerate(flat[: whole * self.block_size].reshape(whole, self.block_size)):
                if index >= done:
                    self._state = self._snapshot(source, rest, index + 1)
                    yield {"input_ids": block}
            source, rest, done = self.documents.state_dict(), flat[whole * self.block_size :], 0

    @staticmethod
    def _snapshot(source: dict[str, Any] | None, rest: np.ndarray, num_blocks: int) -> dict[str, Any]:
        return {"documents": source, "rest": rest.tolist(), "num_blocks": num_blocks}


def causal_lm_collator(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """
    Stacks blocks of equal length; the labels are the input, which the model itself shifts by one.

    Args:
        features (`Sequence[Mapping]`): Examples with the field `input_ids`.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids` and `labels`, both of shape (batch, block_size) and type int64.

    Example:

    ```python
    >>> causal_lm_collator([{"input_ids": [1, 2]}, {"input_ids": [3, 4]}])["labels"]
    tensor([[1, 2],
            [3, 4]])

    ```
    """
    input_ids = torch.from_numpy(np.asarray([feature["input_ids"] for feature in features], dtype=np.int64))
    return {"input_ids": input_ids, "labels": input_ids.clone()}


def _check_block_size(block_size: int) -> None:
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 2:
        raise ValueError(f"block_size is {block_size!r} but must be a whole number of at least 2 tokens.")


def _check_one_block(ends: np.ndarray, block_size: int) -> int:
    """The number of tokens of documents that end there, refused if it is less than one block."""
    num_tokens = int(ends[-1]) if len(ends) else 0
    if num_tokens < block_size:
        raise ValueError(f"block_size is {block_size} but the text has only {num_tokens} tokens, less than one block.")
    return num_tokens


def _token_features(dtype: np.dtype[Any], count_bytes: bool) -> datasets.Features:
    columns = {"input_ids": datasets.List(datasets.Value(dtype.name))}
    if count_bytes:
        columns["num_bytes"] = datasets.List(datasets.Value("uint32"))
    return datasets.Features(columns)


def _hash(key: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def _tokenize(table: pa.Table, *, encode: Encode, dtype: np.dtype[Any], count_bytes: bool) -> pa.Table:
    ids, lengths, num_bytes = encode(table.column("text").to_pylist(), count_bytes=count_bytes)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    columns = {"input_ids": pa.ListArray.from_arrays(offsets, pa.array(ids.astype(dtype)))}
    if count_bytes:
        columns["num_bytes"] = pa.ListArray.from_arrays(offsets, pa.array(num_bytes))
    return pa.table(columns)


def _flat(table: pa.Table, column: str) -> np.ndarray:
    flat: np.ndarray = table.column(column).combine_chunks().flatten().to_numpy()
    return flat


def _lengths(tokens: datasets.Dataset) -> np.ndarray:
    lengths = [chunk.value_lengths().to_numpy() for chunk in tokens.data.column("input_ids").chunks]
    return joined(lengths, np.int64)


def _pack(
    table: pa.Table, indices: Sequence[int], *, tokens: datasets.Dataset, ends: np.ndarray, block_size: int
) -> pa.Table:
    """The blocks whose last token lies in these documents, with their heads from the documents before."""
    first, last = indices[0], indices[-1]
    start = int(ends[first - 1]) if first else 0
    head = start // block_size * block_size
    stop = int(ends[last]) // block_size * block_size
    flat = _flat(table, "input_ids")
    if head < start:
        opening = int(np.searchsorted(ends, head, side="right"))
        before = _flat(tokens[opening:first], "input_ids")
        flat = np.concatenate([before[len(before) - (start - head) :], flat])
    values = pa.array(flat[: max(0, stop - head)])
    return pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(values, block_size)})


def _predicted_bytes(tokens: datasets.Dataset, num_blocks: int, block_size: int) -> int:
    flat = _flat(tokens.data.table, "num_bytes")[: num_blocks * block_size]
    return int(flat.reshape(num_blocks, block_size)[:, 1:].sum(dtype=np.int64))
