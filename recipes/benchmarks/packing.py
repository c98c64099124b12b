"""Text to packed blocks against a bare batch call of `tokenizers` on the same text and cores, in turns.

    python recipes/benchmarks/packing.py [--megabytes 100] [--rounds 10]

A byte-level BPE tokenizer is trained on some of the built-in corpora, whose text is then taken over and over, in an
order of its own for each round. In each round the same documents go, in a random order, through `pack`, which
tokenises, joins, cuts and writes the blocks to disk, and through one call of `encode_batch_fast` over all documents at
once, which gives tokens without offsets. Above 1, `pack` was the faster one. Seconds of all threads together are
compared as well, because a busy machine disturbs them less than seconds of the clock.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import datasets
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_infinite_lr.objectives.packing import pack
from hf_infinite_lr.stream.corpora import load_corpus

BLOCK, VOCABULARY, EOS = 1024, 8192, "<|endoftext|>"
TRAINED_ON = 500
"""Documents."""


def built_in_texts():
    return [text for name in ("docs", "python", "cpp") for text in load_corpus(name).train["text"]]


def trained(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(random.Random(2).sample(texts, TRAINED_ON), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


def chunks(texts, megabytes, rounds):
    """For each round so many documents that all rounds together hold the given size."""
    draw = random.Random(0)
    for _ in range(rounds):
        chunk, size = [], 0
        while size < megabytes * 1e6 / rounds:
            chunk.append(draw.choice(texts))
            size += len(chunk[-1].encode())
        yield chunk, size


def seconds_of(run):
    """By the clock, and of all threads together."""
    clock, threads = time.perf_counter(), time.process_time()
    result = run()
    return (time.perf_counter() - clock, time.process_time() - threads), result


def measure(tokenizer, texts, megabytes, rounds, folder):
    """Seconds of every round: runner -> list."""
    draw = random.Random(1)
    seconds = {"pack": [], "encode_batch_fast": []}
    total = 0
    backend = tokenizer.backend_tokenizer
    for number, (chunk, size) in enumerate(chunks(texts, megabytes, rounds)):
        stored = folder / str(number)
        datasets.Dataset.from_dict({"text": chunk}).save_to_disk(stored)
        documents = datasets.load_from_disk(stored)
        runners = {
            "pack": lambda documents=documents: pack(documents, tokenizer, block_size=BLOCK),
            "encode_batch_fast": lambda chunk=chunk: backend.encode_batch_fast(chunk, add_special_tokens=False),
        }
        for name in draw.sample(list(runners), len(runners)):
            passed, result = seconds_of(runners[name])
            seconds[name].append(passed)
            if name == "pack":
                packed = result.num_tokens
            else:
                bare = sum(len(encoding) for encoding in result) + len(chunk)
            del result
        assert packed == bare, "every token of the bare call, and one that closes each document"
        total += size
    return seconds, total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    datasets.disable_progress_bars()
    texts = built_in_texts()
    tokenizer = trained(texts)
    with tempfile.TemporaryDirectory() as folder:
        seconds, total = measure(tokenizer, texts, given.megabytes, given.rounds, Path(folder))
    for name, values in seconds.items():
        clock = sum(passed for passed, _ in values)
        print(f"{name}: {total / 1e6:.0f} MB in {clock:.1f} s, {total / 1e6 / clock:.2f} MB/s")
    for kind, what in enumerate(("second of the clock", "second of all threads")):
        pairs = zip(seconds["encode_batch_fast"], seconds["pack"], strict=True)
        ratios = [bare[kind] / ours[kind] for bare, ours in pairs]
        print(
            f"pack / encode_batch_fast, text per {what}: median {statistics.median(ratios):.3f} "
            f"of {len(ratios)} rounds ({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
