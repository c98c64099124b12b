"""Mixtures inside a task: exact shares, new samples in every pass, and an order that goes on anywhere."""

import json
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer

from hf_infinite_lr.objectives.packing import PackedStream
from hf_infinite_lr.stream import Stream, Task, mixture
from hf_infinite_lr.stream.loading import StreamBatches
from hf_infinite_lr.stream.mixture import MixedStream, Mixture
from hf_infinite_lr.stream.plan import plan_stream, task_lengths
from hf_infinite_lr.stream.reader import StreamReader
from hf_infinite_lr.stream.replay import ReplaySettings


def numbers(first, size):
    return datasets.Dataset.from_dict({"x": list(range(first, first + size))})


def of(*sizes, weights, **more):
    return mixture([numbers(1000 * place, size) for place, size in enumerate(sizes)], weights, **more)


def passes(mixed, count, seed=0, task=0):
    return [[mixed[int(row)]["x"] for row in mixed.order(seed, task, epoch)] for epoch in range(count)]


@pytest.mark.parametrize(
    ("sizes", "weights", "num_samples", "counts"),
    [
        ((100, 10), [0.8, 0.2], None, (40, 10)),
        ((100, 10), [8, 2], 50, (40, 10)),
        ((100, 10), [0.5, 0.5], 60, (30, 30)),
        ((7, 7, 7), [1, 1, 1], 10, (4, 3, 3)),
        ((50, 50), [0.55, 0.45], 1, (1, 0)),
        ((3, 300), [0.9, 0.1], 200, (180, 20)),
    ],
)
def test_a_pass_holds_the_shares_exactly(sizes, weights, num_samples, counts):
    mixed = of(*sizes, weights=weights, num_samples=num_samples)
    assert mixed.counts == counts
    for samples in passes(mixed, 3):
        assert len(samples) == len(mixed) == sum(counts)
        found = Counter(sample // 1000 for sample in samples)
        assert tuple(found[part] for part in range(len(counts))) == counts


def test_every_pass_takes_samples_that_the_passes_before_did_not():
    """A part is seen evenly: after k passes no sample has been seen twice more than another."""
    for sizes, num_samples in (((100, 10), 50), ((23, 5), 17), ((3, 300), 200)):
        mixed = of(*sizes, weights=[0.6, 0.4], num_samples=num_samples)
        seen = Counter()
        for samples in passes(mixed, 12):
            seen.update(samples)
            for part, size in enumerate(sizes):
                times = [seen[1000 * part + place] for place in range(size)]
                assert max(times) - min(times) <= 1
    first, second = passes(of(1000, 1000, weights=[1, 1], num_samples=100), 2)
    assert not set(first) & set(second)


def test_an_order_hangs_on_seed_task_and_pass_alone():
    mixed = of(50, 20, weights=[0.7, 0.3], num_samples=40)
    orders = {(seed, task): passes(mixed, 3, seed, task) for seed in (0, 1) for task in (0, 1)}
    flat = [tuple(order) for three in orders.values() for order in three]
    assert len(set(flat)) == 12
    assert passes(of(50, 20, weights=[7, 3], num_samples=40), 3) == orders[0, 0]
    assert flat[0] != tuple(sorted(flat[0]))


def served(micro=16):
    mixed = of(200, 30, weights=[0.75, 0.25], num_samples=64)
    stream = Stream((Task("m", mixed, num_epochs=3), Task("b", numbers(5000, 160))), {})
    plan = plan_stream(stream, task_lengths(stream, 16), [2, 2], 16, fingerprints="mb", anneal_budget="extra")
    return mixed, plan, StreamBatches(stream, plan, micro, seed=0, replay=ReplaySettings(0.25))


def test_a_mixture_is_a_task_like_any_other():
    mixed, plan, batches = served()
    assert plan.tasks[0].num_steps == 12
    steps = list(batches)
    for epoch in range(3):
        rows = [sample.row for step in steps[4 * epoch : 4 * epoch + 4] for sample in step]
        assert rows == mixed.order(0, 0, epoch).tolist()
    replayed = {sample.row for step in steps[14:] for sample in step if sample.task == 0}
    assert replayed
    assert replayed <= set(mixed.order(0, 0, 0).tolist())
    flat = [sample for step in served(micro=4)[2] for sample in step]
    assert flat == [sample for step in steps for sample in step]
    later = served()[2]
    later.start_at(9, {})
    assert list(later)[9:] == steps[9:]


def test_the_fingerprint_of_a_mixture():
    made = [
        of(50, 20, weights=[0.7, 0.3], num_samples=40),
        of(50, 20, weights=[7, 3], num_samples=40),
        of(50, 20, weights=[0.6, 0.4], num_samples=40),
        of(51, 20, weights=[0.7, 0.3], num_samples=40),
        of(5, 2, weights=[0.7, 0.3], num_samples=400),
    ]
    prints = [Task("m", mixed).identity() for mixed in made]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_a_killed_run_over_mixtures_ends_as_an_undisturbed_one(tiny, tmp_path):
    def tasks():
        parts = [tiny.rows(60, 1), tiny.rows(9, 2, 1000)]
        return [Task("m", mixture(parts, [0.7, 0.3], num_samples=24), num_epochs=3), Task("n", tiny.rows(40, 3, 5000))]

    settings = {"eval_dataset": {}, "evaluate_on": "none", "replay_fraction": 0.25}
    whole = tiny.run(tmp_path / "whole", tasks(), **settings)
    tiny.run(tmp_path / "parts", tasks(), stop_at=7, **settings)
    assert tiny.same_model(tiny.run(tmp_path / "parts", tasks(), resume=True, **settings), whole)


# ---- streams -------------------------------------------------------------------------------------------------------


def packed(word, count):
    documents = datasets.Dataset.from_dict({"text": [f"{word} {number}" for number in range(count)]})
    return PackedStream(documents.to_iterable_dataset(), ByT5Tokenizer(split_special_tokens=True), block_size=8)


STREAMS = {
    "tables": lambda: [numbers(0, 70).to_iterable_dataset(num_shards=2), numbers(1000, 20).to_iterable_dataset()],
    "packed": lambda: [packed("one", 40), packed("two", 15)],
}


def plain(samples):
    return [np.asarray(next(iter(sample.values()))).tolist() for sample in samples]


@pytest.mark.parametrize("kind", STREAMS)
def test_a_mixed_stream_goes_on_exactly_from_any_position(kind):
    def reader():
        return StreamReader("m", mixture(STREAMS[kind](), [0.7, 0.3], seed=3), 0, 0, block_size=16)

    whole = plain(reader().take(0, 250))
    for position in (1, 16, 90, 200):
        first = reader()
        done = plain(first.take(0, position))
        later = reader()
        later.load_state(json.loads(json.dumps(first.state_at(position))))
        assert done + plain(later.take(position, 250 - position)) == whole, position
    again = reader()
    assert plain(again.take(0, 250)) == whole
    assert plain(again.take(60, 30)) == whole[60:90]


def test_a_mixed_stream_holds_the_shares_and_loses_no_sample():
    mixed = mixture(STREAMS["tables"](), [0.7, 0.3])
    assert isinstance(mixed, MixedStream)
    iterator = iter(mixed)
    samples = [next(iterator)["x"] for _ in range(3000)]
    assert abs(np.mean([sample < 1000 for sample in samples]) - 0.7) < 0.03
    for first, size in ((0, 70), (1000, 20)):
        own = [sample for sample in samples if first <= sample < first + size]
        for start in range(0, len(own) - size, size):  # `datasets` may turn the shards round in a later pass
            assert sorted(own[start : start + size]) == list(range(first, first + size))
    assert [sample["x"] for sample, _ in zip(mixed, range(50), strict=False)] == samples[:50]
    other = mixture(STREAMS["tables"](), [0.7, 0.3], seed=1)
    assert [sample["x"] for sample, _ in zip(other, range(50), strict=False)] != samples[:50]


# ---- bad input -----------------------------------------------------------------------------------------------------


def _never(sample):
    return False


class Stateless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from range(5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixture([], []), r"0 weights for 0 datasets"),
        (lambda: of(5, 5, weights=[1]), r"1 weights for 2 datasets; give one for each"),
        (lambda: of(5, 5, weights=[1, 0]), r"weight=0 must be a finite number above 0"),
        (lambda: of(5, 5, weights=[1, "a"]), r"weight='a' must be a finite number"),
        (
            lambda: of(5, 5, weights=[1, 1], num_samples=0),
            r"num_samples=0 and all parts must have at least one sample",
        ),
        (
            lambda: mixture([numbers(0, 5), numbers(0, 5).select([])], [1, 1]),
            r"all parts must have at least one sample",
        ),
        (lambda: mixture([numbers(0, 5), [1, 2]], [1, 1]), r"a part of type list must be a datasets\.Dataset"),
        (
            lambda: mixture([numbers(0, 5), numbers(0, 5).rename_column("x", "y")], [1, 1]),
            r"the columns .*'y'.* differ from those of the first",
        ),
        (
            lambda: mixture([numbers(0, 5), numbers(0, 5).to_iterable_dataset()], [1, 1]),
            r"some parts are streaming and some are not",
        ),
        (lambda: mixture([Stateless()], [1]), r"a stream of type Stateless has no state"),
        (
            lambda: mixture([numbers(0, 50).to_iterable_dataset().shuffle(buffer_size=10)], [1]),
            r"a stream of type IterableDataset has no state",
        ),
        (
            lambda: mixture([numbers(0, 5).to_iterable_dataset()], [1], num_samples=5),
            r"num_samples=5 does not go with streams",
        ),
        (
            lambda: next(iter(mixture([numbers(0, 5).to_iterable_dataset().filter(_never)], [1]))),
            r"part 1 has no samples",
        ),
    ],
)
def test_bad_mixtures_are_refused(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_mixture_of_tables_is_no_copy():
    data = numbers(0, 50)
    mixed = mixture([data, data], [1, 1])
    assert isinstance(mixed, Mixture)
    assert mixed.table.data.table.column("x").chunk(0).equals(data.data.table.column("x").chunk(0))
