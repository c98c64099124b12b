"""Built-in pictures: the same pixels each time, in two parts that share nothing."""

import numpy as np
import pytest

from hf_infinite_lr.stream import pictures
from hf_infinite_lr.stream.pictures import EVAL_SHARE, SIZE, load_pictures, picture_names

CLASSES = {"digits": 10, "glyphs": 52, "photos": 2}


def _pixels(part):
    return [np.asarray(image) for image in part["image"]]


@pytest.mark.parametrize("name", picture_names())
def test_same_pictures_twice_rgb_labelled_and_none_in_both_parts(name):
    first = load_pictures(name)
    load_pictures.cache_clear()
    again = load_pictures(name)
    assert again.fingerprint == first.fingerprint
    train, held_out = _pixels(first.train), _pixels(first.eval)
    assert all(image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8 for image in [*train, *held_out])
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in held_out}
    assert len(set(first.train["label"])) == CLASSES[name] == first.eval.features["label"].num_classes
    assert len(set(first.eval["label"])) > 0.9 * CLASSES[name]
    share = len(held_out) / (len(train) + len(held_out))
    assert abs(share - EVAL_SHARE) < 0.05
    assert len(train) >= 1000


def test_groups_are_held_out_whole_and_letters_are_letters():
    found = list(pictures._glyphs())
    parts = {picture.group: pictures._is_held_out(picture.group) for picture in found}
    assert 0 < sum(parts.values()) < len(parts)
    assert len(found) == 4 * len(parts)
    faces = {path.stem for path in pictures._text_faces()}
    assert {"DejaVuSans", "STIXGeneral", "cmr10"} <= faces
    assert not faces & {"cmex10", "cmsy10", "LastResortHE-Regular", "STIXSizOneSymReg"}
    assert all(picture.pixels.std() > 10 for picture in found), "ink on paper"


def test_digits_are_those_of_scikit_learn_scaled_up():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    first = next(pictures._digits())
    small = first.pixels[..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
    assert first.label == str(labels[0])
    assert np.corrcoef(small.ravel(), images[0])[0, 1] > 0.98


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(
        ValueError, match=r"'digit' is no built-in set of pictures; there are digits, glyphs, photos\."
    ):
        load_pictures("digit")
