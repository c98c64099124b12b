"""Texts to tokens, by what each kind of tokenizer does fastest, with the bytes that every token stands for."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

_CALL_BYTES = 2**23
"""Text of one call of a fast tokenizer: enough to keep its threads busy."""

_MOST_ROWS = 1000


class Encode(Protocol):
    """What a tokenizer does to a batch of texts."""

    def __call__(self, texts: Sequence[str], *, count_bytes: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All their tokens with a closing token each, their lengths, and the bytes each token stands for."""


@dataclass(frozen=True)
class _ByteEncode:
    """What `ByT5Tokenizer` does to text without special tokens, at memory speed instead of 0.7 MB/s."""

    eos: int
    offset: int

    def __call__(self, texts: Sequence[str], *, count_bytes: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        encoded = [text.encode() for text in texts]
        lengths = np.fromiter((len(text) + 1 for text in encoded), np.int64, len(encoded))
        closing = np.cumsum(lengths) - 1
        ids = np.frombuffer(b"\0".join([*encoded, b""]), np.uint8).astype(np.uint16) + self.offset
        ids[closing] = self.eos
        num_bytes = np.ones(len(ids) if count_bytes else 0, np.uint32)
        if count_bytes:
            num_bytes[closing] = 0
        return ids, lengths, num_bytes


@dataclass(frozen=True)
class _FastEncode:
    """The Rust tokenizer alone, without the lists and masks that its wrapper builds."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, texts: Sequence[str], *, count_bytes: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        # The fast variant gives the same tokens and leaves the offsets out.
        encode = backend.encode_batch if count_bytes else backend.encode_batch_fast
        size = rows_of(sum(map(len, texts)), len(texts), _CALL_BYTES)
        pieces = [list(texts[start : start + size]) for start in range(0, len(texts), size)]
        parts = []
        # The tokenizer works on the next piece, without the interpreter's lock, while this one's tokens are taken out.
        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(encode, pieces[0], add_special_tokens=False) if pieces else None
            for place, piece in enumerate(pieces, start=1):
                assert following is not None
                encodings = following.result()
                if place < len(pieces):
                    following = ahead.submit(encode, pieces[place], add_special_tokens=False)
                parts.append(self._taken_out(piece, encodings, count_bytes))
        ids, lengths, counts = zip(*parts, strict=True) if parts else ((), (), ())
        return joined(ids, np.int64), joined(lengths, np.int64), joined(counts, np.uint32)

    def _taken_out(self, texts: Sequence[str], encodings: Sequence[Any], count_bytes: bool) -> tuple[np.ndarray, ...]:
        lengths = np.fromiter((len(encoding) + 1 for encoding in encodings), np.int64, len(encodings))
        ends = np.cumsum(lengths)
        ids = np.full(ends[-1], self.tokenizer.eos_token_id, np.int64)
        for encoding, length, end in zip(encodings, lengths.tolist(), ends.tolist(), strict=True):
            ids[end - length : end - 1] = encoding.ids
        rows = zip(texts, encodings, strict=True) if count_bytes else ()
        counts = [_bytes_by_offsets(text, encoding.offsets) for text, encoding in rows]
        return ids, lengths, joined(counts, np.uint32)


@dataclass(frozen=True)
class _SlowEncode:
    """Any other tokenizer, through its public call."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, texts: Sequence[str], *, count_bytes: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        ids = [np.asarray([*row, self.tokenizer.eos_token_id], np.int64) for row in encoded]
        lengths = np.fromiter((len(row) for row in ids), np.int64, len(ids))
        rows = zip(texts, encoded, strict=True) if count_bytes else ()
        counts = [_bytes_spread(len(text.encode()), len(row)) for text, row in rows]
        return joined(ids, np.int64), lengths, joined(counts, np.uint32)


def rows_of(num_bytes: int, num_rows: int, wanted: int) -> int:
    """How many rows of average size hold the wanted bytes."""
    return max(1, min(_MOST_ROWS, wanted * num_rows // max(1, num_bytes)))


def joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    """One array of all of them, also of none."""
    return np.concatenate([np.empty(0, dtype), *arrays]).astype(dtype)


def _bytes_by_offsets(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Bytes up to the end of each token that lie past the ends of all tokens before it; the rest is the closing's."""
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (code_points > 0x7F) + (code_points > 0x7FF) + (code_points > 0xFFFF)
    position = np.concatenate([[0], np.cumsum(widths)])
    ends = np.fromiter((end for _, end in offsets), np.int64, len(offsets))
    reached = position[np.maximum.accumulate(ends)] if len(ends) else ends
    return np.diff(np.concatenate([[0], reached, position[-1:]])).astype(np.uint32)


def _bytes_spread(num_bytes: int, num_tokens: int) -> np.ndarray:
    if not num_tokens:
        return np.asarray([num_bytes], np.uint32)
    ends = np.arange(num_tokens + 1) * num_bytes // num_tokens
    return np.concatenate([np.diff(ends), [0]]).astype(np.uint32)


def encoder_of(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """
    The fastest way to use a tokenizer.

    Raises:
        `ValueError`: If it has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer_name {tokenizer.name_or_path!r} has no end-of-sequence token, which joins documents here; "
            "set eos_token in the tokenizer."
        )
    if isinstance(tokenizer, ByT5Tokenizer) and tokenizer.split_special_tokens:
        return _ByteEncode(eos=tokenizer.eos_token_id, offset=tokenizer.offset)
    return _FastEncode(tokenizer) if tokenizer.is_fast else _SlowEncode(tokenizer)


def token_dtype(tokenizer: PreTrainedTokenizerBase) -> np.dtype[Any]:
    """The smallest of two types that hold every token."""
    largest = max(tokenizer.get_vocab().values())
    return np.dtype(np.uint16 if largest < 2**16 else np.uint32)


def identity_of(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """All that decides which tokens a text becomes, as JSON can hold it."""
    kind, vocabulary = type(tokenizer).__qualname__, sorted(tokenizer.get_vocab().items())
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else None
    return [kind, vocabulary, backend, tokenizer.eos_token_id, bool(getattr(tokenizer, "split_special_tokens", False))]
