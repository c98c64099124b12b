"""Images from files, parquet and streams: what is read, held out, converted and refused; batches made of them."""

import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_infinite_lr.objectives.image_batches import ImageBatches
from hf_infinite_lr.objectives.image_source import ImageSource
from hf_infinite_lr.objectives.images import IMAGE, class_names, load_images
from hf_infinite_lr.stream.pictures import png


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def _noise(number, mode="RGB", size=(40, 36)):
    values = np.random.RandomState(number).randint(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Two classes of 10 images each."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(10):
            _noise(number + 100 * (label == "dog")).save(tmp_path / label / f"{number}.png")
    return tmp_path


@pytest.fixture
def parquet(tmp_path):
    """The same as a table with other column names and a domain."""
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "class": datasets.ClassLabel(names=["cat", "dog"]),
            "domain": datasets.Value("string"),
        }
    )
    rows = [
        {"img": {"bytes": png(np.asarray(_noise(n))), "path": None}, "class": n % 2, "domain": "ab"[n % 4 > 1]}
        for n in range(20)
    ]
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "table.parquet"))
    return str(tmp_path / "table.parquet")


def test_image_files_are_read_with_their_folders_as_labels(folder):
    found = load_images(ImageSource(data_files=f"{folder}/*/*.png", eval_fraction=0.3))
    again = load_images(ImageSource(data_files=f"{folder}/*/*.png", eval_fraction=0.3))
    assert found.fingerprint == again.fingerprint
    assert len(found.train) + len(found.eval) == 20
    assert found.train.column_names == [IMAGE, "label"]
    assert set(class_names(found.train)) == {"cat", "dog"}
    paths = [{Path(row[IMAGE]["path"]) for row in part} for part in (found.train, found.eval)]
    assert not paths[0] & paths[1]
    (folder / "cat" / "new.png").write_bytes(png(np.asarray(_noise(77))))
    more = load_images(ImageSource(data_files=f"{folder}/*/*.png", eval_fraction=0.3))
    assert paths[1] <= {Path(row[IMAGE]["path"]) for row in more.eval}, "more data moves nothing to the other side"
    assert more.fingerprint != found.fingerprint


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_with_named_columns_and_only_some_rows(parquet, streaming):
    source = ImageSource(
        data_files=parquet,
        image_column="img",
        label_column="class",
        where={"domain": "b", "class": ["dog"]},
        streaming=streaming,
        num_eval_samples=2,
    )
    found = load_images(source)
    train = datasets.Dataset.from_list(list(found.train), features=found.train.features)
    assert (len(train), len(found.eval)) == (3, 2)
    assert set(class_names(train)) == {"dog"}


def _rows_of_unknown_columns(count):
    for number in range(count):
        yield {"image": {"bytes": png(np.asarray(_noise(number))), "path": None}, "domain": "ab"[number % 2]}


@pytest.mark.parametrize("where", [None, {"domain": "b"}])
def test_a_stream_says_its_columns_by_its_first_rows(monkeypatch, where):
    stream = datasets.IterableDataset.from_generator(_rows_of_unknown_columns, gen_kwargs={"count": 6})
    assert stream.column_names is None
    monkeypatch.setattr(ImageSource, "read", lambda *_, **__: stream)
    found = load_images(ImageSource(data_files="x.parquet", streaming=True, num_eval_samples=1, where=where))
    assert (len(list(found.train)), len(found.eval)) == ((5, 1) if where is None else (2, 1))
    assert found.train.column_names == [IMAGE]


@pytest.mark.parametrize("number", [1, 5])
def test_a_number_of_images_is_held_out(parquet, number):
    found = load_images(ImageSource(data_files=parquet, image_column="img", num_eval_samples=number))
    assert (len(found.train), len(found.eval)) == (20 - number, number)
    named = load_images(
        ImageSource(data_files=parquet, image_column="img", eval_data_files=parquet, num_eval_samples=number)
    )
    assert (len(named.train), len(named.eval)) == (20, number)


def test_further_columns_are_kept_for_dividing_the_data(parquet):
    source = ImageSource(name="x", data_files=parquet, image_column="img", label_column="class")
    assert load_images(source, ["domain"]).eval.column_names == [IMAGE, "label", "domain"]
    with pytest.raises(ValueError, match="column 'date' of task 'x' is missing: there is only img, class, domain"):
        load_images(source, ["date"])
    with pytest.raises(ValueError, match="column 'class' of task 'x' is its label here: write 'label'"):
        load_images(source, ["class"])


def test_other_modes_are_converted_counted_and_named(folder, caplog):
    _noise(1, "L").save(folder / "cat" / "grey.png")
    _noise(2, "RGBA").save(folder / "cat" / "alpha.png")
    caplog.set_level(logging.WARNING, "hf_infinite_lr")
    found = load_images(ImageSource(name="pets", data_files=f"{folder}/*/*.png"))
    assert "Task 'pets': of 22 images 1 L, 1 RGBA; they are converted." in caplog.text
    batch = ImageBatches(32, 16, (0.5,) * 3, (0.5,) * 3)([found.train[row] for row in range(len(found.train))])
    assert batch[IMAGE].shape == (len(found.train), 3, 32, 32)


def _truncated(path):
    whole = Path(path).with_suffix(".jpg")
    _noise(5).save(whole, quality=95)
    whole.write_bytes(whole.read_bytes()[:-900])
    return whole


def test_unreadable_images_are_named_and_counted_and_left_out_on_request_only(folder, caplog):
    (folder / "cat" / "text.png").write_text("no image")
    _truncated(folder / "dog" / "half.png")
    source = {"name": "pets", "data_files": f"{folder}/*/*.*"}
    with pytest.raises(
        ValueError, match=r"'pets': 2 of 22 images cannot be read, the first of them .*text\.png"
    ) as found:
        load_images(ImageSource(**source))
    assert "\n" not in str(found.value)
    caplog.set_level(logging.WARNING, "hf_infinite_lr")
    found = load_images(ImageSource(**source, skip_unreadable=True))
    assert len(found.train) + len(found.eval) == 20
    assert "2 of 22 images cannot be read and are left out" in caplog.text


def test_an_unreadable_image_of_a_stream_ends_the_run_or_is_left_out(folder):
    (folder / "cat" / "text.png").write_text("no image")
    source = {"data_files": f"{folder}/*/*.png", "streaming": True, "num_eval_samples": 3}
    assert sum(1 for _ in load_images(ImageSource(**source, skip_unreadable=True)).train) == 17
    rows = list(load_images(ImageSource(**source)).train)
    assert len(rows) == 18
    with pytest.raises(ValueError, match=r"text\.png' cannot be read as an image"):
        ImageBatches(32, 16, (0.5,) * 3, (0.5,) * 3)(rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_files": None}, "must give exactly one of builtin, dataset_name and data_files, not none of them"),
        ({"builtin": "digits"}, "not builtin and data_files"),
        ({"data_files": None, "builtin": "digits", "streaming": True}, "streaming .* does not go with builtin"),
        ({"split": "test"}, "split of task 'x' is 'test' but does not go with data_files"),
        ({"eval_fraction": 1.5}, "eval_fraction of task 'x' is 1.5 but must be between 0 and 1"),
        ({"eval_fraction": 0.1, "num_eval_samples": 3}, "of which only one can hold"),
        ({"num_eval_samples": 0}, "num_eval_samples of task 'x' is 0 but must be a positive"),
        ({"streaming": True}, "streams and must name its held-out part"),
        ({"image_column": "picture"}, "image_column of task 'x' is 'picture', but there is only image, label"),
        ({"image_column": "label"}, "image_column 'label' of task 'x' holds ClassLabel"),
        ({"where": {"colour": "red"}}, "where of task 'x' names 'colour', but there is only image, label"),
        ({"where": {"label": ["bird"]}}, "where.label of task 'x' has 'bird', which is no class; there are cat, dog"),
        ({"where": 3}, "where of task 'x' is 3 but must map"),
        ({"data_files": "nowhere/*.png"}, "data_files 'nowhere/.*' of task 'x' matches no file"),
    ],
)
def test_bad_sources_are_refused_in_one_sentence(folder, changes, message):
    values = {"name": "x", "data_files": f"{folder}/*/*.png", **changes}
    with pytest.raises(ValueError, match=message) as found:
        load_images(ImageSource(**values))
    assert "\n" not in str(found.value)


# ---- batches -----------------------------------------------------------------------------------------------------


def _samples(count, size=(40, 36), **more):
    return [{IMAGE: {"bytes": png(np.asarray(_noise(n, size=size))), "path": None}, **more} for n in range(count)]


def test_held_out_batches_depend_on_the_sample_alone():
    collate = ImageBatches(32, 16, (0.5,) * 3, (0.25,) * 3, smallest_crop=0.3, flip=True)
    samples = [{**sample, "noise": seed} for seed, sample in enumerate(_samples(6))]
    whole = collate(samples)
    torch.manual_seed(3)
    parts = [collate(samples[start : start + 2]) for start in (0, 2, 4)]
    for name in whole:
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    assert len({tuple(row) for row in whole["noise"].tolist()}) == 6
    assert whole["noise"].shape == (6, 16)


def test_training_batches_follow_the_global_generator():
    collate = ImageBatches(32, 16, (0.5,) * 3, (0.5,) * 3, smallest_crop=0.3, flip=True)
    torch.manual_seed(1)
    one, two = collate(_samples(4)), collate(_samples(4))
    torch.manual_seed(1)
    again = collate(_samples(4))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one[IMAGE], two[IMAGE])


def test_an_image_of_the_right_size_passes_unchanged_up_to_normalisation():
    collate = ImageBatches(32, 16, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    sample = _samples(1, size=(32, 32))
    pixels = np.asarray(_noise(0, size=(32, 32))).transpose(2, 0, 1) / 255
    expected = (pixels - np.reshape([0.1, 0.2, 0.3], (3, 1, 1))) / np.reshape([0.5, 0.6, 0.7], (3, 1, 1))
    batch = collate(sample)[IMAGE]
    np.testing.assert_allclose(batch[0].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(collate.pictures(batch)[0].numpy(), pixels, atol=1e-6)


def test_half_of_the_images_are_mirrored():
    collate = ImageBatches(32, 16, (0.5,) * 3, (0.5,) * 3, flip=True)
    samples = _samples(1, size=(32, 32)) * 200
    torch.manual_seed(0)
    plain = ImageBatches(32, 16, (0.5,) * 3, (0.5,) * 3)(samples[:1])[IMAGE][0]
    mirrored = [torch.equal(image, plain.flip(-1)) for image in collate(samples)[IMAGE]]
    assert 70 < sum(mirrored) < 130


def test_crops_lie_inside_and_cover_the_shares_asked_for():
    from hf_infinite_lr.objectives.image_batches import _random_boxes

    torch.manual_seed(0)
    image = _noise(0, size=(400, 360))
    boxes = np.array(_random_boxes([image] * 500, 0.25))
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    shares = widths * heights / (400 * 360)
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 400
    assert boxes[:, 3].max() <= 360
    assert shares.min() > 0.24
    assert 0.5 < shares.mean() < 0.7
    aspects = widths / heights
    assert aspects.min() > 0.7
    assert aspects.max() < 1.4


def test_grey_models_get_grey_images():
    assert ImageBatches(32, 16, (0.5,), (0.5,))(_samples(2))[IMAGE].shape == (2, 1, 32, 32)
