"""Scores of language models in units that can be compared."""

import math
from collections.abc import Iterable, Mapping

import datasets
import numpy as np

from .packing import PackedBlocks


def language_model_scores(eval_loss: float, blocks: PackedBlocks) -> dict[str, float]:
    r"""
    Perplexity and bits per byte of a held-out part.

    With the mean loss $\ell$ in nats per predicted token, $n$ predicted tokens (all of a block but its first) and $b$
    UTF-8 bytes of text that these stand for: perplexity is $e^\ell$, and bits per byte is $\ell n / (b \ln 2)$. An
    end-of-sequence token stands for no byte, but predicting it costs.

    Args:
        eval_loss (`float`): Mean over the predicted tokens of all blocks, in nats per token.
        blocks ([`PackedBlocks`]): What it was measured on, packed with `count_bytes=True`.

    Returns:
        `dict[str, float]`: `perplexity` and `bits_per_byte`.

    Raises:
        `ValueError`: If the bytes were not counted.

    Example:

    ```python
    >>> blocks = PackedBlocks(
    ...     datasets.Dataset.from_dict({"input_ids": [[100, 101, 102]]}),
    ...     block_size=3,
    ...     num_tokens=4,
    ...     num_predicted_bytes=2,
    ... )
    >>> language_model_scores(math.log(8), blocks)["bits_per_byte"]
    3.0

    ```
    """
    if not blocks.num_predicted_bytes:
        raise ValueError(
            f"num_predicted_bytes is {blocks.num_predicted_bytes}: pack with count_bytes=True for bits per byte."
        )
    tokens_per_byte = blocks.num_predicted_tokens / blocks.num_predicted_bytes
    perplexity = math.inf if eval_loss >= 700 else math.exp(eval_loss)
    return {"perplexity": perplexity, "bits_per_byte": eval_loss * tokens_per_byte / math.log(2)}


def byte_counts(documents: datasets.Dataset) -> np.ndarray:
    """
    How often each of the 256 bytes occurs in the UTF-8 text of some documents.

    Args:
        documents (`datasets.Dataset`): A column `text` of strings.

    Returns:
        `np.ndarray`: Shape (256,), type int64.
    """
    counts = np.zeros(256, np.int64)
    for batch in documents.select_columns("text").with_format("arrow").iter(1024):
        for text in batch.column("text").to_pylist():
            counts += np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)
    return counts


def byte_unigram_bits(train: Iterable[datasets.Dataset], evals: Mapping[str, datasets.Dataset]) -> dict[str, float]:
    r"""
    The reference row: what a model would score that knows only how frequent each byte is.

    $-\sum_v c_v \log_2 p_v / \sum_v c_v$ with the counts $c$ of the held-out bytes and $p_v = (n_v + 1) / (N + 256)$
    of the training bytes of **all** tasks together. Documents alone count, without end-of-sequence tokens.

    Args:
        train (`Iterable[datasets.Dataset]`): The training parts of all tasks, with a column `text`.
        evals (`Mapping[str, datasets.Dataset]`): The held-out parts by column name, with a column `text`.

    Returns:
        `dict[str, float]`: Bits per byte of each held-out part.

    Example:

    ```python
    >>> text = datasets.Dataset.from_dict({"text": ["b"]})
    >>> byte_unigram_bits([text.select([])], {"general": text})
    {'general': 8.0}

    ```
    """
    counts = sum((byte_counts(part) for part in train), start=np.zeros(256, np.int64)) + 1
    bits = -np.log2(counts / counts.sum())
    held_out = {name: byte_counts(part) for name, part in evals.items()}
    return {name: float(bits @ count / count.sum()) for name, count in held_out.items()}
