import json
import logging
import sys
import threading
from dataclasses import replace
from fractions import Fraction

import datasets
import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer

from hf_infinite_lr.objectives.packing import PackedStream
from hf_infinite_lr.stream import Stream, Task, mixture
from hf_infinite_lr.stream.loading import StreamBatches, StreamDataset
from hf_infinite_lr.stream.order import epoch_order, replay_before
from hf_infinite_lr.stream.plan import plan_stream, task_lengths
from hf_infinite_lr.stream.reader import StreamReader
from hf_infinite_lr.stream.replay import ReplaySettings
from hf_infinite_lr.stream.task import slug


class Numbers:
    """A map-style dataset that holds nothing."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, row):
        if not 0 <= row < self.size:
            raise IndexError(row)
        return row


def made(sizes, *, batch=16, anneal=None, budget="within", epochs=1.0, rewinds=True, replayed=0.0, **lengths):
    stream = Stream(tuple(Task(f"t{index}", Numbers(size)) for index, size in enumerate(sizes)), {})
    steps = task_lengths(stream, batch, num_train_epochs=epochs, **lengths)
    anneal = [0] * len(sizes) if anneal is None else anneal
    names = [task.name for task in stream.tasks]
    given = {"fingerprints": names, "anneal_budget": budget, "rewinds": rewinds, "replay_fraction": replayed}
    plan = plan_stream(stream, steps, anneal, batch, **given)
    return stream, plan


def batches(sizes, *, micro=16, fraction=0.0, seed=3, **more):
    stream, plan = made(sizes, **more)
    return StreamBatches(stream, plan, micro, seed=seed, replay=ReplaySettings(fraction))


def steps_of(served, micro):
    """The samples of each optimizer step, as (task, row)."""
    flat = [(sample.task, sample.row) for batch in served for sample in batch]
    size = served.plan.global_batch_size
    assert all(len(batch) == micro for batch in served)
    return [flat[start : start + size] for start in range(0, len(flat), size)]


# ---- lengths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "epochs", "steps", "unused"),
    [(160, 1, 10, 0), (175, 1, 10, 15), (175, 2, 20, 15), (175, 0.35, 3, 15), (16, 1, 1, 0), (100, 0.1 * 3, 1, 4)],
)
def test_a_task_has_floor_of_epochs_times_whole_batches(samples, epochs, steps, unused):
    _, plan = made([samples], epochs=epochs)
    assert (plan.tasks[0].num_steps, plan.tasks[0].num_unused_samples) == (steps, unused)


def test_floats_do_not_lose_a_step():
    assert task_lengths(Stream((Task("a", Numbers(1600)),), {}), 16, num_train_epochs=0.29) == (29,)
    assert task_lengths(Stream((Task("a", Numbers(1600), num_epochs=0.57),), {}), 16) == (57,)


@pytest.mark.parametrize("budget", ["within", "extra"])
def test_the_plan_adds_up(budget):
    _, plan = made([160, 80, 96], anneal=[2, 1, 2], budget=budget)
    repeated = [2, 1, 2] if budget == "extra" else [0, 0, 0]
    start = 0
    for task, own, again in zip(plan.tasks, (10, 5, 6), repeated, strict=True):
        assert (task.start_step, task.end_step, task.next_start_step) == (start, start + own, start + own + again)
        start = task.next_start_step
    covered = [step for part in plan.segments for step in range(part.start_step, part.start_step + part.num_steps)]
    assert covered == list(range(plan.num_steps))
    for step in range(plan.num_steps):
        part = plan.segments[plan.segment_of(step)]
        assert part.start_step <= step < part.start_step + part.num_steps
    assert plan.task_at(plan.num_steps + 5) is plan.tasks[-1]


def test_path_updates_are_those_behind_the_released_weights():
    for budget, expected in (("within", [10, 8 + 5, 8 + 4 + 6]), ("extra", [10, 10 + 5, 10 + 5 + 6])):
        _, plan = made([160, 80, 96], anneal=[2, 1, 2], budget=budget)
        assert [plan.path_steps(task) for task in plan.tasks] == expected
    _, plan = made([160, 80, 96], anneal=[2, 1, 2], rewinds=False)
    assert [plan.path_steps(task) for task in plan.tasks] == [10, 15, 21]
    assert [replace(plan, restarts=True).path_steps(task) for task in plan.tasks] == [10, 5, 6]


@pytest.mark.parametrize(
    ("budget", "rewinds", "expected"),
    [
        ("within", True, [1, 2, 3, 4, 5, 4, 5, 6, 7]),
        ("extra", True, [1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9]),
        ("within", False, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_updates_on_the_path_go_back_with_the_trunk(budget, rewinds, expected):
    stream = Stream.of({"a": list(range(5)), "b": list(range(4))})
    given = {"fingerprints": "ab", "anneal_budget": budget, "rewinds": rewinds}
    plan = plan_stream(stream, [5, 4], [2, 1], 1, **given)
    assert [plan.path_steps_at(step) for step in range(1, plan.num_steps + 1)] == expected


@pytest.mark.parametrize("budget", ["within", "extra"])
def test_appending_a_task_changes_nothing_before_it(budget):
    sizes = [160, 80, 96]
    two = batches(sizes[:2], anneal=[2, 1], budget=budget, fraction=0.3)
    three = batches(sizes, anneal=[2, 1, 2], budget=budget, fraction=0.3)
    assert three.plan.tasks[:2] == two.plan.tasks
    assert steps_of(three, 16)[: two.plan.num_steps] == steps_of(two, 16)
    assert [two.plan.epochs_at(step) for step in range(two.plan.num_steps + 1)] == [
        three.plan.epochs_at(step) for step in range(two.plan.num_steps + 1)
    ]


def test_a_pass_is_one_over_a_tasks_own_samples():
    """Replay takes half of each batch: twice the steps, and no pass ends in their middle."""
    _, plan = made([1000, 1000], batch=10, replayed=0.5, added_replay=0.5)
    assert [task.num_steps for task in plan.tasks] == [100, 200]
    assert [plan.epochs_at(step) for step in (50, 100, 150, 200, 300)] == [0.5, 1, 1.25, 1.5, 2]
    assert [step for step in range(1, 301) if plan.ends_pass(step)] == [100, 300]
    _, plan = made([160, 160], replayed=0.5, epochs=2)  # within: the second task visits all of its own once
    assert plan.epochs_at(plan.num_steps) == 3
    assert [step for step in range(1, 41) if plan.ends_pass(step)] == [10, 20, 40]
    _, plan = made([160, 175], batch=16, replayed=0.3, epochs=2, rewinds=False)
    own = [batch * 16 - int(batch * 0.3 * 16) for batch in range(21)]
    crossed = [20 + batch for batch in range(1, 21) if own[batch] // 160 > own[batch - 1] // 160]
    assert [step for step in range(21, 41) if plan.ends_pass(step)] == crossed == [35]


@pytest.mark.parametrize("budget", ["within", "extra"])
def test_a_branch_is_described_by_its_tasks_own_samples(budget):
    _, plan = made([160, 160], anneal=[2, 4], budget=budget, replayed=0.25)
    assert "; the 32 samples of the branch " in plan.describe(plan.tasks[0])
    assert "; the 48 samples of the branch " in plan.describe(plan.tasks[1])


def test_names_become_directories():
    assert slug("Web, 2024/05") == "web-2024-05"
    _, plan = made([16] * 11)
    assert (plan.tasks[0].directory, plan.tasks[10].directory) == ("01-t0", "11-t10")


# ---- order ---------------------------------------------------------------------------------------------------------


def test_every_pass_of_every_task_has_its_own_order():
    orders = [
        tuple(epoch_order(seed, task, epoch, 50)) for seed in (0, 1, 2) for task in (0, 1, 2) for epoch in (0, 1, 2)
    ]
    assert len(set(orders)) == 27
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != tuple(range(50))


def test_a_pass_visits_whole_batches_of_different_samples():
    steps = steps_of(batches([175], epochs=2), 16)
    first, second = ([row for step in half for _, row in step] for half in (steps[:10], steps[10:]))
    for rows in (first, second):
        assert len(set(rows)) == len(rows) == 160
    assert first != second
    assert set(first) != set(second)  # which 15 samples stay out changes too


def test_the_order_of_a_task_does_not_hang_on_the_tasks_before_it():
    """Twin: with the first task longer, the second one's batches are the same."""
    short, long = steps_of(batches([32, 80]), 16), steps_of(batches([320, 80]), 16)
    assert short[2:] == long[20:]


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_processes_and_accumulation_share_the_same_steps(fraction):
    kinds = {micro: steps_of(batches([175, 80], micro=micro, fraction=fraction), micro) for micro in (16, 8, 4, 1)}
    assert kinds[16] == kinds[8] == kinds[4] == kinds[1]


def test_under_extra_the_trunk_repeats_the_branchs_batches():
    steps = steps_of(batches([160, 80], anneal=[3, 1], budget="extra", fraction=0.3), 16)
    assert len(steps) == 10 + 3 + 5
    assert steps[10:13] == steps[7:10]


def test_a_start_in_the_middle_serves_the_rest():
    whole = list(batches([160, 80], micro=8, anneal=[3, 1], budget="extra", fraction=0.3))
    for step in (1, 9, 10, 12, 13, 17):
        later = batches([160, 80], micro=8, anneal=[3, 1], budget="extra", fraction=0.3)
        later.start_at(step, later.state_at(step))
        served = list(later)
        assert served[2 * step :] == whole[2 * step :]
        assert all(batch == [None] * 8 for batch in served[: 2 * step])


# ---- replay --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 20])
@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.5])
def test_replay_counts_are_exact_over_any_stretch(fraction, size):
    share = Fraction(str(fraction)) * size
    served = batches([64 * size, 1000 * size], batch=size, micro=size, fraction=fraction)
    for batch in range(1000):
        expected = int((batch + 1) * share) - int(batch * share)
        assert served.replay.count(1, batch) == expected
        drawn = served.global_batch(1, batch)
        assert [sample.task for sample in drawn].count(0) == expected
        assert len(drawn) == size
    assert replay_before(1000, fraction, size) == int(1000 * share)
    assert all(served.replay.count(0, batch) == 0 for batch in range(10))


def test_only_visited_samples_are_replayed_and_none_of_the_own_is_lost():
    served = batches([400, 175, 96], anneal=[2, 2, 1], fraction=0.25, epochs=0.5, task_steps=None)
    steps = steps_of(served, 16)
    visited = {0: {row for step in steps[:12] for task, row in step if task == 0}}
    own = [row for step in steps[12:17] for task, row in step if task == 1]
    replayed = [pair for step in steps[12:17] for pair in step if pair[0] != 1]
    assert len(visited[0]) == 192
    assert all(task == 0 and row in visited[0] for task, row in replayed)
    assert len(replayed) == int(5 * 0.25 * 16)
    assert own == epoch_order(3, 1, 0, 175)[: len(own)].tolist()
    visited[1] = set(own)
    last = [pair for step in steps[17:] for pair in step if pair[0] != 2]
    assert {task for task, _ in last} == {0, 1}
    assert all(row in visited[task] for task, row in last)


def test_replayed_samples_are_spread_and_all_earlier_ones_are_reachable():
    served = batches([64, 64, 16 * 400], fraction=0.25, batch=16)
    visited = {pair for step in steps_of(served, 16)[:8] for pair in step}
    drawn = [pair for batch in range(400) for pair in served.replay.draw(2, batch)]
    assert set(drawn) == visited
    assert len(visited) == 64 + 48
    places = [place for place, sample in enumerate(served.global_batch(2, 0)) if sample.task != 2]
    assert places == [0, 4, 8, 12]


# ---- cost ----------------------------------------------------------------------------------------------------------


class Counted(list):
    """A list that counts how often an item of it is looked at."""

    looked = 0

    def __getitem__(self, place):
        type(self).looked += 1
        return super().__getitem__(place)


@pytest.mark.parametrize("num_tasks", [1, 10, 1000])
def test_a_lookup_looks_at_a_logarithm_of_the_tasks(num_tasks):
    _, plan = made([32] * num_tasks, anneal=[1] * num_tasks)
    plan.__dict__["_segment_starts"] = Counted(plan._segment_starts)
    for step in range(0, plan.num_steps, max(1, plan.num_steps // 50)):
        Counted.looked = 0
        plan.task_at(step)
        plan.epochs_at(step)
        assert Counted.looked <= 2 * (2 * num_tasks).bit_length()


def test_a_batch_costs_the_same_with_many_tasks():
    """Operations of a batch late in the stream: those of replay's draw, not of the number of tasks."""

    def calls(num_tasks):
        served = batches([32] * num_tasks, fraction=0.25)
        served.global_batch(num_tasks - 1, 0)
        served.state_at(0)
        counted = 0

        def count(frame, event, argument):
            nonlocal counted
            counted += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            served.global_batch(num_tasks - 1, 1)
            served.state_at(served.plan.num_steps - 1)
        finally:
            sys.setprofile(before)
        return counted

    assert calls(1000) < 1.5 * calls(10)


def test_the_record_of_a_long_stream_is_quick_to_write():
    """`path_steps` of all tasks together must not be quadratic: it stands in every checkpoint."""
    _, plan = made([32] * 1000, anneal=[1] * 1000)
    looked = 0

    class Watched(tuple):
        def __iter__(self):
            for part in tuple.__iter__(self):
                nonlocal looked
                looked += 1
                yield part

    plan.__dict__["segments"] = Watched(plan.segments)
    assert [plan.path_steps(task) for task in plan.tasks][-1] == 999 + 2
    assert looked <= 20 * 2000


# ---- fetching ------------------------------------------------------------------------------------------------------


def test_a_batch_is_fetched_with_one_call_and_keeps_its_order():
    class Bulk(Numbers):
        calls = 0

        def __getitems__(self, rows):
            Bulk.calls += 1
            return [f"bulk {row}" for row in rows]

    served = batches([64, 64], fraction=0.5)
    fetch = StreamDataset([Bulk(64), Numbers(64)], list, seed=0)
    batch = served.global_batch(1, 0)
    expected = [f"bulk {sample.row}" if sample.task == 0 else sample.row for sample in batch]
    assert fetch.__getitems__(batch) == expected
    assert Bulk.calls == 1


def test_draws_while_fetching_hang_on_the_position_alone():
    served = batches([64])
    fetch = StreamDataset([Numbers(64)], lambda rows: (torch.rand(1).item(), np.random.rand()), seed=0)
    first, second = served.global_batch(0, 0), served.global_batch(0, 1)
    before = torch.get_rng_state()
    one, other = fetch.__getitems__(first), fetch.__getitems__(second)
    assert one != other
    torch.rand(5)
    assert fetch.__getitems__(first) == one
    torch.set_rng_state(before)
    fetch.__getitems__(first)
    assert torch.equal(torch.get_rng_state(), before)


# ---- streaming -----------------------------------------------------------------------------------------------------


class Plain(torch.utils.data.IterableDataset):
    """A stream without a state."""

    def __init__(self, size=70):
        self.size, self.read = size, 0

    def __iter__(self):
        for number in range(self.size):
            self.read += 1
            yield number


def _double(sample):
    return {"x": 2 * sample["x"]}


def table(**changes):
    return datasets.Dataset.from_dict({"x": list(range(70))}).to_iterable_dataset(**changes)


def packed():
    documents = datasets.Dataset.from_dict({"text": [f"document {number} " * (number % 5) for number in range(60)]})
    return PackedStream(documents.to_iterable_dataset(), ByT5Tokenizer(split_special_tokens=True), block_size=16)


KINDS = {
    "plain": table,
    "shards": lambda: table(num_shards=4),
    "mapped": lambda: table(num_shards=2).map(_double),
    "filtered": lambda: table().filter(_keeps),
    "batched": lambda: table().map(_batch_double, batched=True, batch_size=8),
    "buffer": lambda: table(num_shards=2).shuffle(seed=1, buffer_size=20),
    "no state": Plain,
    "packed": packed,
    "mixed": lambda: mixture([table(), table(num_shards=2)], [0.7, 0.3], seed=3),
}


def _keeps(sample):
    return sample["x"] % 3 > 0


def _batch_double(batch):
    return {"x": [2 * number for number in batch["x"]]}


def values(samples):
    plain = [next(iter(sample.values())) if isinstance(sample, dict) else sample for sample in samples]
    return [tuple(value.tolist()) if isinstance(value, np.ndarray) else value for value in plain]


def reader(dataset, block_size=16, seed=5):
    return StreamReader("s", dataset, seed, 0, block_size=block_size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_exactly_from_any_position(kind, caplog):
    whole = values(reader(KINDS[kind]()).take(0, 200))
    for position in (0, 5, 16, 47, 71, 97, 150):
        first = reader(KINDS[kind]())
        done = values(first.take(0, position)) if position else []
        state = json.loads(json.dumps(first.state_at(position)))
        later = reader(KINDS[kind]())
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            later.load_state(state)
            assert done + values(later.take(position, 200 - position)) == whole, position
        again = state["block"] > 0 and kind in ("buffer", "no state")
        assert ("are read again" in caplog.text) == again


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_back_to_a_branch_point(kind):
    """`extra` reads the branch's batches twice."""
    one = reader(KINDS[kind]())
    first = values(one.take(0, 150))
    one.forget_before(90)
    assert values(one.take(90, 60)) == first[90:]
    assert values(one.take(150, 20)) == values(reader(KINDS[kind]()).take(0, 170))[150:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_was_loaded_and_not_read_from_leaves_no_trace(kind):
    """A resumed run goes back to the start of the branch that it never read, and reads a task's first samples anew."""
    first = reader(KINDS[kind]())
    whole, state = values(first.take(0, 100)), first.state_at(90)
    back, beside = reader(KINDS[kind]()), reader(KINDS[kind]())
    back.load_state(state)
    assert values(back.take(40, 20)) == whole[40:60]
    beside.load_state(state)
    assert values(beside.anew().take(0, 20)) == whole[:20]
    assert values(beside.take(90, 10)) == whole[90:]


@pytest.mark.parametrize("kind", ["plain", "packed", "buffer", "no state"])
def test_a_second_reader_of_the_same_dataset_begins_at_its_start(kind):
    """Two trainers in one process, or a second `train()`, share the dataset object."""
    dataset = KINDS[kind]()
    first = values(reader(dataset).take(0, 100))
    assert values(reader(dataset).take(0, 100)) == first


def _numbered(count):
    yield from ({"x": number} for number in range(count))


def test_streams_that_share_a_source_do_not_move_each_other():
    """`skip`, `take` and `filter` of one stream share its position."""

    def parts():
        base = datasets.IterableDataset.from_generator(_numbered, gen_kwargs={"count": 100})
        return base.skip(20), base.take(20)

    whole = values(reader(parts()[0]).take(0, 60))
    train, held_out = parts()
    one = reader(train)
    done = values(one.take(0, 16))
    list(held_out)  # an evaluation
    done += values(one.take(16, 24))
    later = reader(parts()[0])
    later.load_state(one.state_at(40))
    assert done + values(later.take(40, 20)) == whole


def test_a_stream_with_what_cannot_be_copied_is_read():
    lock = threading.Lock()

    def held(row, lock):
        with lock:
            return row

    stream = table().map(held, fn_kwargs={"lock": lock})
    one = reader(stream)
    assert values(one.take(0, 20)) == values(reader(table()).take(0, 20))
    assert values(one.anew().take(0, 20)) == values(one.take(0, 20))


def test_parts_of_a_mixture_that_share_a_source_do_not_move_each_other():
    def mixed():
        base = datasets.IterableDataset.from_generator(_numbered, gen_kwargs={"count": 400})
        odd, even = base.filter(lambda row: row["x"] % 2), base.filter(lambda row: row["x"] % 2 == 0)
        return mixture([odd, even], [0.5, 0.5])

    whole = values(reader(mixed()).take(0, 200))
    for position in (48, 96, 160):
        one, later = reader(mixed()), reader(mixed())
        one.take(0, position)
        later.load_state(one.state_at(position))
        assert values(later.take(position, 40)) == whole[position : position + 40]


def shared_texts(count=200):
    """Two streams of blocks out of one stream of documents."""
    base = datasets.IterableDataset.from_generator(_texts, gen_kwargs={"count": count})
    halves = [base.filter(_of_half, fn_kwargs={"half": half}) for half in (0, 1)]
    return [PackedStream(half, ByT5Tokenizer(split_special_tokens=True), block_size=16) for half in halves]


def _texts(count):
    yield from ({"text": f"document {number} " * (1 + number % 5)} for number in range(count))


def _of_half(row, half):
    return int(row["text"].split()[1]) % 2 == half


def test_blocks_of_texts_that_share_a_source_do_not_move_each_other():
    """As in joint training of the parts of one stream of texts."""
    whole = values(reader(mixture(shared_texts(), [0.5, 0.5])).take(0, 200))
    for position in (48, 96, 160):
        one, later = reader(mixture(shared_texts(), [0.5, 0.5])), reader(mixture(shared_texts(), [0.5, 0.5]))
        one.take(0, position)
        later.load_state(one.state_at(position))
        assert values(later.take(position, 40)) == whole[position : position + 40]


def test_a_part_that_was_not_read_since_a_state_begins_anew_with_the_mixture():
    def mixed():
        return reader(mixture(shared_texts(), [0.98, 0.02]))

    first = mixed()
    whole, state = values(first.take(0, 400)), first.state_at(320)
    back = mixed()
    back.load_state(state)
    back.take(320, 1)
    assert values(back.anew().take(0, 300)) == whole[:300]
    assert values(back.take(0, 300)) == whole[:300]


def test_texts_behind_a_shuffle_buffer_are_read_again_from_their_start(caplog):
    def shuffled():
        documents = datasets.Dataset.from_dict({"text": [row["text"] for row in _texts(60)]}).to_iterable_dataset()
        tokenizer = ByT5Tokenizer(split_special_tokens=True)
        return PackedStream(documents.shuffle(seed=1, buffer_size=20), tokenizer, block_size=16)

    first, later = reader(shuffled()), reader(shuffled())
    whole = values(first.take(0, 100))
    later.load_state(json.loads(json.dumps(first.state_at(70))))
    with caplog.at_level(logging.WARNING):
        assert values(later.take(70, 30)) == whole[70:]
    assert "are read again" in caplog.text


def test_a_stream_is_shuffled_in_blocks_and_no_sample_is_lost():
    served = values(reader(table()).take(0, 140))
    for start in (0, 70):
        part = served[start : start + 70]
        assert sorted(part) == list(range(70))
        assert part != sorted(part)
        assert set(part[:16]) == set(range(16))
    assert served[:70] != served[70:]
    assert values(reader(table(), seed=6).take(0, 70)) != served[:70]


def test_resuming_reads_one_block_again_at_most():
    read = []

    def noted(sample):
        read.append(sample["x"])
        return sample

    first = reader(table().map(noted))
    first.take(0, 60)
    state = first.state_at(60)
    read.clear()
    later = reader(table().map(noted))
    later.load_state(state)
    later.take(60, 4)
    assert len(read) <= 16


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match=r"Task 's': its streaming dataset has no samples"):
        reader(Plain(0)).take(0, 1)


def test_an_empty_stream_is_refused_also_before_a_read_block():
    with pytest.raises(ValueError, match="no samples"):
        reader(table().filter(lambda sample: False)).take(0, 1)


def test_streams_and_tables_follow_one_another(tiny):
    stream = Stream((Task("s", table(), num_steps=6), Task("m", Numbers(64)), Task("t", Plain(), num_steps=3)), {})
    plan = plan_stream(stream, (6, 4, 3), [2, 1, 1], 16, fingerprints="smt", anneal_budget="extra")

    def serve(start=0, state=None):
        served = StreamBatches(stream, plan, 16, seed=0)
        if start:
            served.start_at(start, state)
        return [values(sample.row for sample in batch) for batch in list(served)[start:]]

    whole = serve()
    assert whole[6:8] == whole[4:6]
    for step in range(1, plan.num_steps):
        walked = StreamBatches(stream, plan, 16, seed=0)
        for _, _ in zip(range(step), walked, strict=False):
            pass
        state = json.loads(json.dumps(walked.state_at(step)))
        assert serve(step, state) == whole[step:], step


# ---- identity ------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_content():
    rows = [{"x": torch.tensor([number]), "y": np.arange(number % 3), "z": "text"} for number in range(40)]
    same = [{"z": row["z"], "y": row["y"].copy(), "x": row["x"].clone()} for row in rows]
    one = Task("a", rows).identity()
    assert Task("b", same).identity() == one
    assert Task("a", rows[:-1]).identity() != one
    assert Task("a", [*rows[:-1], {**rows[-1], "z": "other"}]).identity() != one
    assert Task("a", rows, fingerprint="mine").identity() == "mine"
    table_a, table_b = (datasets.Dataset.from_dict({"x": list(range(size))}) for size in (20, 20))
    assert Task("a", table_a).identity() == Task("a", table_b).identity()


def test_looking_at_a_fingerprint_does_not_read_a_stream():
    stream = Plain()
    assert Task("s", stream).identity() == Task("s", Plain()).identity() != Task("t", Plain()).identity()
    assert stream.read == 0


def numbered(count):
    return datasets.Dataset.from_dict({"id": list(range(count))})


def test_a_batch_may_be_all_replay():
    stream = Stream.of({"a": numbered(40), "b": numbered(40)})
    plan = plan_stream(stream, [20, 20], [0, 0], 2, fingerprints=["", ""])
    batches = StreamBatches(stream, plan, 2, seed=0, replay=ReplaySettings(0.6))
    sources = [[sample.task for sample in batches.global_batch(1, batch)] for batch in range(20)]
    assert [0, 0] in sources
    assert sum(sum(source) for source in sources) == 40 - 24


def test_a_stream_keeps_what_is_only_evaluated():
    stream = Stream.of({"a": numbered(8)}, {"a": numbered(8), "general": numbered(8)})
    assert list(Stream.of(stream).eval_datasets) == ["a", "general"]


def test_a_state_that_json_cannot_hold_is_read_again_from_the_start():
    class Tensors(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from range(10)

        def state_dict(self):
            return {"position": torch.zeros(1)}

        def load_state_dict(self, state):
            raise AssertionError("a state that was never kept")

    reader = StreamReader("t", Tensors(), 0, 0, block_size=4)
    samples = reader.take(0, 10)
    again = StreamReader("t", Tensors(), 0, 0, block_size=4)
    again.load_state(reader.state_at(6))
    assert again.take(6, 4) == samples[6:]
