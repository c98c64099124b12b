"""Replay: exact counts, buffers by size, share and class, and streaming tasks whose samples are kept on disk."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard

from hf_infinite_lr.stream import InOrder, Stream, Task, mixture
from hf_infinite_lr.stream.buffer import FILE_SIZE, StreamBuffer
from hf_infinite_lr.stream.loading import StreamBatches
from hf_infinite_lr.stream.order import epoch_order, replay_before, scatter
from hf_infinite_lr.stream.plan import plan_stream, task_lengths
from hf_infinite_lr.stream.replay import ReplaySettings, kept_key
from hf_infinite_lr.stream.reservoir import Reservoir, chosen
from hf_infinite_lr.stream.sample_file import SampleFile, write_samples


def labelled(size, first=0, classes=4):
    """Rows with an id, and a label whose classes have very different sizes."""
    labels = [min(int(np.log2(row + 1)), classes - 1) for row in range(size)]
    return datasets.Dataset.from_dict({"id": list(range(first, first + size)), "label": labels})


def planned(tasks, batch=16, **more):
    stream = Stream(tuple(tasks), {})
    lengths = task_lengths(stream, batch, **more)
    return stream, plan_stream(stream, lengths, [0] * len(tasks), batch, fingerprints=[t.name for t in tasks])


def served(tasks, batch=16, micro=None, seed=3, buffers=None, writes=True, **settings):
    stream, plan = planned(tasks, batch)
    replay = ReplaySettings(settings.pop("fraction", 0.25), **settings)
    return StreamBatches(stream, plan, micro or batch, seed=seed, replay=replay, buffers=buffers, writes=writes)


# ---- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("batch", [16, 20])
@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.5])
def test_a_thousand_global_batches_hold_exactly_the_counts(fraction, batch, world_size, accumulation):
    """As the processes of a run get them: each its share of the micro-batches, as Accelerate deals them out."""
    size = batch * world_size * accumulation
    tasks = [Task("a", range(4 * size)), Task("b", range(1000 * size))]
    stream, plan = planned(tasks, size)
    whole = StreamBatches(stream, plan, batch, seed=0, replay=ReplaySettings(fraction))
    ranks = [iter(BatchSamplerShard(whole, world_size, rank)) for rank in range(world_size)]
    share = Fraction(str(fraction)) * size
    for _ in range(4 * accumulation):
        assert all(sample.task == 0 for rank in ranks for sample in next(rank))
    for step in range(1000):
        replayed = sum(sample.task == 0 for rank in ranks for _ in range(accumulation) for sample in next(rank))
        assert replayed == int((step + 1) * share) - int(step * share)
    assert plan.num_steps == planned(tasks, size, added_replay=0.0)[1].num_steps == 1004
    assert all(next(rank, None) is None for rank in ranks)


@pytest.mark.parametrize(("fraction", "steps"), [(0.0, 10), (0.05, 10), (0.25, 13), (0.5, 20), (0.9, 100)])
def test_extra_replay_leaves_all_of_a_tasks_own_data_in_it(fraction, steps):
    tasks = [Task("a", range(160)), Task("b", range(160)), Task("c", range(160), num_steps=7)]
    _, plan = planned(tasks, added_replay=fraction)
    assert [task.num_steps for task in plan.tasks] == [10, steps, 7]
    own = steps * 16 - replay_before(steps, fraction, 16)
    assert own <= 160 < own + 16 + 1


# ---- what is kept --------------------------------------------------------------------------------------------------


def test_numbers_of_positions_look_random_and_hang_on_the_key():
    numbers = scatter(np.arange(100_000), 1, 2, 3)
    assert len(np.unique(numbers)) == 100_000
    shares, _ = np.histogram(numbers / 2**64, bins=20, range=(0, 1))
    assert abs(shares - 5000).max() < 5 * 5000**0.5
    assert abs(np.corrcoef(numbers[:-1].astype(float), numbers[1:].astype(float))[0, 1]) < 0.02
    assert not np.isin(numbers, scatter(np.arange(100_000), 1, 2, 4)).any()
    assert (scatter(np.arange(50, 60), 1, 2, 3) == numbers[50:60]).all()


@pytest.mark.parametrize(("size", "kept"), [(None, 160), (10, 10), (160, 160), (0.25, 40), (0.001, 1), (0.999, 159)])
def test_a_buffer_has_its_size_and_holds_visited_samples(size, kept):
    batches = served([Task("a", range(170)), Task("b", range(16 * 2000))], buffer_size=size, fraction=0.5)
    drawn = {row for batch in range(400) for _, row in batches.replay.draw(1, batch)}
    assert drawn <= set(epoch_order(3, 0, 0, 170)[:160].tolist())
    assert len(drawn) == kept


def test_a_buffer_by_size_gives_every_task_the_same_weight():
    tasks = [Task("a", range(1600)), Task("b", range(160)), Task("c", range(16 * 500))]
    sources = [
        [task for batch in range(500) for task, _ in served(tasks, buffer_size=size).replay.draw(2, batch)]
        for size in (20, None)
    ]
    assert abs(np.mean(sources[0]) - 0.5) < 0.05
    assert abs(np.mean(sources[1]) - 120 / 1720) < 0.03


def test_balanced_buffers_and_draws():
    data = labelled(320)
    sizes = np.bincount(data["label"])
    assert sizes.tolist() == [1, 2, 4, 313]
    batches = served([Task("a", data), Task("b", labelled(16 * 400))], buffer_size=20, class_column="label")
    drawn = [data[row]["label"] for batch in range(400) for _, row in batches.replay.draw(1, batch)]
    assert abs(np.bincount(drawn) / len(drawn) - 0.25).max() < 0.04
    rows = {row for batch in range(400) for _, row in batches.replay.draw(1, batch)}
    assert np.bincount([data[row]["label"] for row in rows]).tolist() == [1, 2, 4, 13]


def test_draws_hang_on_seed_task_and_batch_alone():
    tasks = [Task("a", labelled(64)), Task("b", labelled(64)), Task("c", labelled(640))]
    for settings in ({}, {"buffer_size": 10}, {"buffer_size": 0.5, "class_column": "label"}):
        one, other = served(tasks, **settings), served(tasks, micro=2, **settings)
        for batch in (0, 7, 3):
            assert one.global_batch(2, batch) == other.global_batch(2, batch)
        assert one.global_batch(2, 5) != served(tasks, seed=4, **settings).global_batch(2, 5)


@pytest.mark.parametrize("classes", [None, 3, 50])
@pytest.mark.parametrize("size", [1, 10, 60, 500])
def test_a_reservoir_lets_in_all_that_is_kept_at_any_end(size, classes):
    """Law: of what was let in up to any moment the same is chosen as of everything up to there."""
    numbers = scatter(np.arange(2000), 7)
    labels = None if classes is None else (scatter(np.arange(2000), 8) % np.uint64(classes)).astype(int) ** 2 // 5
    reservoir, entries = Reservoir(size), []
    for start in range(0, 2000, 16):
        batch = slice(start, start + 16)
        entries += [
            start + place
            for place in reservoir.let_in(numbers[batch], None if labels is None else labels[batch].tolist())
        ]
        of_all = chosen(numbers[: start + 16], size, None if labels is None else labels[: start + 16])
        of_entries = chosen(numbers[entries], size, None if labels is None else labels[entries])
        assert of_all.tolist() == np.asarray(entries)[of_entries].tolist()
    assert len(entries) < 2000 or size == 500
    if classes is None:
        assert len(entries) <= size * (1.5 + np.log(2000 / size)) + 10


# ---- samples on disk -----------------------------------------------------------------------------------------------


SAMPLES = {
    "tokens": lambda n: {"input_ids": np.arange(n, n + 5, dtype=np.uint16)},
    "lists": lambda n: {"input_ids": [n, n + 1], "text": f"number {n}", "weight": n / 7},
    "tensors": lambda n: {"x": torch.full((2, 3), n / 3), "n": torch.tensor(n), "scalar": np.float32(n)},
    "bare": lambda n: n,
    "nested": lambda n: {"box": {"left": n, "names": ["a", None]}},
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_samples_come_back_as_what_they_were(kind, tmp_path):
    samples = [SAMPLES[kind](number) for number in range(20)]
    write_samples(tmp_path / "x.arrow", list(range(100, 120)), samples)
    file = SampleFile(tmp_path / "x.arrow")
    assert file.positions == list(range(100, 120))
    for place in (0, 19, 7):
        found, expected = file.sample(place), samples[place]
        assert repr(found) == repr(expected)
        if isinstance(expected, dict):
            assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]
            assert [getattr(v, "dtype", None) for v in found.values()] == [
                getattr(v, "dtype", None) for v in expected.values()
            ]


def test_samples_of_several_kinds_come_back_as_what_they_were(tmp_path):
    samples = [
        {"a": 1},
        {"a": 2, "b": [3], "crops": [torch.ones(2), torch.zeros(3)]},
        {"n": {"x": np.arange(3), "y": [None, "z"]}, "half": torch.tensor([1.5, -0.25], dtype=torch.bfloat16)},
        {"a": None, "pair": (torch.tensor(1), {"k": np.float32(2)})},
    ]
    write_samples(tmp_path / "x.arrow", [0, 1, 2, 3], samples)
    file = SampleFile(tmp_path / "x.arrow")
    assert repr(file.sample(0)) == repr(samples[0])
    assert repr(file.sample(1)) == repr(samples[1])
    assert repr(file.sample(2)) == repr(samples[2])
    assert repr(file.sample(3)) == repr({"a": None, "pair": list(samples[3]["pair"])})
    tensors = [(torch.full((2,), float(n)), torch.tensor(n)) for n in range(3)]
    write_samples(tmp_path / "y.arrow", [0, 1, 2], tensors)
    assert [repr(SampleFile(tmp_path / "y.arrow").sample(n)) for n in range(3)] == [repr(list(t)) for t in tensors]


@pytest.mark.parametrize(
    "samples",
    [
        [{"tools": [{"name": "a"}]}, {"tools": []}, {"tools": [{"name": "b"}, {"name": "c"}]}],
        [{"b": [torch.ones(2), torch.zeros(2)]}, {"b": []}],
        [{"b": [torch.ones(2), torch.tensor(1)]}, {"b": []}],
        [[{"a": 1}], []],
        [{"n": [np.int64(1)]}, {"n": [1, 2]}],
    ],
)
def test_lists_may_be_empty_or_of_other_parts_elsewhere(samples, tmp_path):
    write_samples(tmp_path / "x.arrow", list(range(len(samples))), samples)
    file = SampleFile(tmp_path / "x.arrow")
    assert [repr(file.sample(place)) for place in range(len(samples))] == [repr(sample) for sample in samples]


def test_images_are_kept_without_loss(tmp_path):
    import io

    from PIL import Image

    noise = np.random.RandomState(0).randint(0, 256, (9, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    image = Image.open(file)
    write_samples(tmp_path / "x.arrow", [0], [{"image": image, "label": 3}])
    found = SampleFile(tmp_path / "x.arrow").sample(0)
    assert np.array_equal(np.asarray(found["image"]), np.asarray(image))
    assert found["label"] == 3


def test_a_sample_that_no_file_can_hold_is_refused_at_once(tmp_path):
    buffer = StreamBuffer("s", tmp_path, 10, kept_key(0, 0))
    with pytest.raises(ValueError, match="samples of the streaming task 's' cannot be kept for replay"):
        buffer.offer(0, [{"x": object()}])


@pytest.mark.parametrize("column", [None, "label"])
@pytest.mark.parametrize("stop", [16, 400, 624, 1600, 1984])
def test_a_buffer_goes_on_from_any_position(tmp_path, column, stop):
    rows = [{"id": n, "label": n % 7 // 3} for n in range(2000)]

    def filled(directory, size=400):
        return StreamBuffer("s", tmp_path / directory, size, kept_key(5, 1), class_column=column)

    def read(buffer, start, end):
        for at in range(start, end, 16):
            buffer.offer(at, rows[at : at + 16])

    whole = filled("whole")
    read(whole, 0, 2000)
    one = filled("parts")
    read(one, 0, min(stop + 48, 2000))  # a loader runs ahead of the step that is saved
    one.flush()
    shutil.copytree(tmp_path / "parts", tmp_path / "saved")
    other = StreamBuffer("s", tmp_path / "saved", 400, kept_key(5, 1), class_column=column)
    other.load(stop)
    assert len(other) <= len(one)
    read(other, stop, 2000)
    kept = [[buffer.sample(entry) for entry in buffer.chosen(400)] for buffer in (whole, other)]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 400
    assert len(other) == len(whole)
    assert len(other._pending) < FILE_SIZE
    files = [sorted(path.name for path in (tmp_path / name).glob("0*")) for name in ("whole", "saved")]
    assert files[0] == files[1]


def test_a_buffer_is_offered_the_same_positions_twice(tmp_path):
    """`extra` reads the branch's batches again."""
    buffer = StreamBuffer("s", tmp_path, 10, kept_key(0, 0))
    rows = [{"id": n} for n in range(64)]
    buffer.offer(0, rows[:32])
    entries = len(buffer)
    buffer.offer(16, rows[16:32])
    assert len(buffer) == entries
    buffer.offer(24, rows[24:48])
    assert buffer._read == 48


def streamed(size=640, first=0, **changes):
    return labelled(size, first).to_iterable_dataset(**changes)


def test_a_streaming_task_keeps_what_a_map_style_one_keeps(tmp_path):
    """Twin: the positions are the same, whatever lies at them."""
    tasks = [Task("s", streamed(), num_steps=40), Task("b", range(16 * 100))]
    for column in (None, "label"):
        batches = served(tasks, buffer_size=50, buffers=tmp_path / str(column), class_column=column)
        own = [sample.row for batch in range(40) for sample in batches.global_batch(0, batch)]
        buffer = batches.replay.buffers[0]
        kept = [buffer.sample(entry) for entry in buffer.chosen(50)]
        numbers = scatter(np.arange(640), *kept_key(3, 0))
        labels = None if column is None else np.asarray([row["label"] for row in own])
        assert kept == [own[place] for place in chosen(numbers, 50, labels)]
        drawn = [pair for batch in range(200) for pair in batches.replay.draw(1, batch)]
        assert {task for task, _ in drawn} == {0}
        assert {sample["id"] for _, sample in drawn} == {sample["id"] for sample in kept}


def test_a_process_that_does_not_write_waits_for_the_files_of_the_one_that_does(tmp_path):
    tasks = [Task("s", streamed(3200), num_steps=200), Task("b", range(16 * 100))]
    reading = served(tasks, buffers=tmp_path, writes=False)
    ahead = [reading.global_batch(0, batch) for batch in range(200)]
    assert not list(tmp_path.glob("*"))
    early = [reading.global_batch(1, batch) for batch in range(20)]
    writing = served(tasks, buffers=tmp_path)
    assert [writing.global_batch(0, batch) for batch in range(200)] == ahead
    assert [writing.global_batch(1, batch) for batch in range(20)] == early
    later = served(tasks, buffers=tmp_path, writes=False)
    assert [later.global_batch(0, batch) for batch in range(200)] == ahead
    assert [later.global_batch(1, batch) for batch in range(20)] == early
    assert len(later.replay.buffers[0]._pending) < FILE_SIZE


# ---- runs ----------------------------------------------------------------------------------------------------------

HARD = {
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 4,
    "save_total_limit": 1,
    "replay_fraction": 0.25,
    "replay_buffer_size": 20,
}


def tasks_of(tiny, kinds="sms"):
    """Streams and tables by turns, as `Task`s and the held-out data of each."""
    made = []
    for name, kind in zip("abc", kinds, strict=False):
        table = tiny.rows(30 if kind == "s" else tiny.TASK_STEPS[name] * 8 + 3, ord(name), 1000 * ord(name))
        table = table.add_column("label", [row % 3 for row in range(len(table))])
        made.append(Task(name, table.to_iterable_dataset() if kind == "s" else table, num_steps=tiny.TASK_STEPS[name]))
    return {"tasks": made, "eval_dataset": {}, "evaluate_on": "none"}


def test_a_run_evaluates_at_the_end_of_a_pass_and_not_in_its_middle(tiny, tmp_path):
    settings = {"replay_fraction": 0.5, "replay_budget": "extra", "eval_strategy": "epoch", "save_strategy": "no"}
    made = tiny.run(tmp_path, tiny.data("ab"), **settings)
    assert made.plan.num_steps == 20
    seen = [(log["step"], log["epoch"]) for log in made.watch.logs if "eval_a_loss" in log]
    assert seen[-2:] == [(8, 1.0), (20, 2.0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "stop_at"),
    [
        ({"dataloader_num_workers": 2}, 11),
        ({"anneal_budget": "extra", "replay_buffer_size": None}, 9),
        ({"replay_class_column": "label", "replay_buffer_size": 0.3, "save_strategy": "no"}, 15),
    ],
)
def test_a_killed_run_with_kept_streams_ends_as_an_undisturbed_one(tiny, tmp_path, changes, stop_at):
    settings = {**HARD, **changes}
    whole = tiny.run(tmp_path / "whole", **tasks_of(tiny), **settings)
    tiny.run(tmp_path / "parts", stop_at=stop_at, **tasks_of(tiny), **settings)
    resumed = tiny.run(tmp_path / "parts", resume=True, **tasks_of(tiny), **settings)
    assert resumed.watch.rates == {step: whole.watch.rates[step] for step in resumed.watch.rates}
    assert tiny.same_model(resumed, whole)
    replayed = [row for batch in whole.data_collator.ids for row in batch if row < 98_000]
    if not changes.get("dataloader_num_workers"):
        assert len(replayed) > 8 * 8  # task a's own and some of it later


def test_a_task_appended_later_replays_the_streams_before_it(tiny, tmp_path):
    """Open end: [a, b], then [a, b, c], is [a, b, c] from the start; b, a stream, was the last task of the first."""
    three = tasks_of(tiny, "mss")
    whole = tiny.run(tmp_path / "whole", **three, **HARD)
    tiny.run(tmp_path / "parts", **{**three, "tasks": three["tasks"][:2]}, **HARD)
    grown = tiny.run(tmp_path / "parts", resume=True, **tasks_of(tiny, "mss"), **HARD)
    assert tiny.same_model(grown, whole)
    ids = [row for batch in grown.data_collator.ids for row in batch]
    assert {row // 1000 for row in ids} == {ord("a"), ord("b"), ord("c")}


def test_an_annealing_after_the_fact_replays_the_streams_of_its_checkpoint(tiny, tmp_path):
    settings = {**HARD, "anneal_budget": "within"}
    run = tiny.run(tmp_path, **tasks_of(tiny), **settings)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "replay").rglob("*"))
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "releases" / "02-b", kept)
    again = tiny.trainer(tmp_path, **tasks_of(tiny), **settings)
    again.anneal(tmp_path / "trunk" / "02-b", 2)
    assert tiny.same_tensors(tiny.weights(tmp_path / "releases" / "02-b"), tiny.weights(kept))
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "replay").rglob("*"))
    assert run.plan.tasks[1].num_samples is not None


def test_checkpoints_carry_what_was_kept(tiny, tmp_path):
    tiny.run(tmp_path, **tasks_of(tiny), **HARD)
    for directory in (tmp_path / "trunk" / "02-b", tmp_path / "trunk" / "03-c"):
        names = json.loads((directory / "manifest.json").read_text())["files"]
        assert "replay/01-a/tail.arrow" in names
        assert SampleFile(directory / "replay" / "01-a" / "tail.arrow").positions
    none = tiny.run(tmp_path / "none", **tasks_of(tiny), **{**HARD, "replay_fraction": 0.0})
    assert not list(Path(none.args.output_dir).rglob("replay"))


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "settings", "message"),
    [
        ("mm", {"replay_buffer_size": 68}, r"replay_buffer_size=68 is more than the 67 samples of task 'a'"),
        ("sm", {"replay_buffer_size": 65}, r"replay_buffer_size=65 is more than the 64 samples of task 'a'"),
        ("mm", {"replay_buffer_size": 0}, r"replay_buffer_size=0 must be a whole number of samples, or a share"),
        ("mm", {"replay_buffer_size": -3}, r"replay_buffer_size=-3 must be"),
        ("mm", {"replay_buffer_size": 1.5}, r"replay_buffer_size=1\.5 must be"),
        ("mm", {"replay_buffer_size": True}, r"replay_buffer_size=True must be"),
        ("mm", {"replay_buffer_size": float("nan")}, r"replay_buffer_size=nan must be"),
        ("mm", {"replay_budget": "added"}, r"replay_budget='added' must be one of within, extra"),
        (
            "mm",
            {"replay_class_column": "lable"},
            r"replay_class_column='lable': task 'a' has no such column \(.*label",
        ),
        (
            "ms",
            {"replay_class_column": "missing"},
            r"replay_class_column='missing': task 'a' has no such column",
        ),
        (
            "sm",
            {"replay_class_column": "lable"},
            r"replay_class_column='lable': task 'a' has no such column \(.*label",
        ),
    ],
)
def test_bad_replay_is_refused(tiny, tmp_path, kinds, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        tiny.trainer(tmp_path, **tasks_of(tiny, kinds), **{"replay_fraction": 0.5, **settings})
    assert "\n" not in str(caught.value)


def test_classes_of_mixtures_and_ordered_tables_are_balanced(tiny, tmp_path):
    def table(first):
        rows = tiny.rows(64, first, first)
        return rows.add_column("label", [int(n % 8 == 0) for n in range(len(rows))])

    tasks = {
        "mixed": mixture([table(1000), table(2000)], [0.5, 0.5]),
        "sorted": InOrder(table(3000)),
        "c": table(4000),
    }
    done = tiny.run(tmp_path, tasks, replay_fraction=0.5, replay_class_column="label", evaluate_on="none")
    replayed = [row for batch in done.data_collator.ids for row in batch if 1000 <= row < 4000]
    drawn = [row for batch in done.data_collator.ids[-8:] for row in batch if row < 4000]
    assert {row // 1000 for row in replayed} == {1, 2, 3}
    rare = sum(row % 1000 % 8 == 0 for row in drawn)
    assert 0.25 < rare / len(drawn) < 0.75  # an eighth of the rows


def test_labels_that_only_show_while_reading(tiny, tmp_path):
    class Unknown(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from tiny.rows(30, 0)

    given = tasks_of(tiny, "sm")
    tasks = [Task("u", Unknown(), num_steps=8), given["tasks"][1]]
    with pytest.raises(ValueError, match=r"a sample of the streaming task 'u' has no such column"):
        tiny.run(tmp_path, **{**given, "tasks": tasks}, replay_fraction=0.5, replay_class_column="label")


@pytest.mark.parametrize(
    ("first", "later", "message"),
    [
        ({"replay_fraction": 0.0}, {}, r"replay_fraction=0\.25 was 0\.0 .*the streaming task 'a'"),
        ({"replay_buffer_size": 10}, {}, r"replay_buffer_size=20 was 10 .*the streaming task 'a'"),
    ],
)
def test_what_a_stream_has_kept_cannot_be_changed_afterwards(tiny, tmp_path, first, later, message):
    given = tasks_of(tiny, "sm")
    tiny.run(tmp_path, **{**given, "tasks": given["tasks"][:1]}, **{**HARD, **first})
    with pytest.raises(ValueError, match=message):
        tiny.run(tmp_path, resume=True, **tasks_of(tiny, "sm"), **{**HARD, **later})
