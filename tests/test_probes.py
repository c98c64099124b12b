"""Probes and measures against scikit-learn, closed forms and laws."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import normalize

from hf_infinite_lr.evaluation import (
    few_shot_accuracy,
    linear_cka,
    linear_probe,
    mean_and_half_width,
    nearest_class_mean,
    nearest_neighbours,
    perturbed,
    sharpness,
)
from hf_infinite_lr.evaluation.classifiers import warmup_cosine
from hf_infinite_lr.evaluation.features import FeatureCache, Features, extract, fingerprint_of
from hf_infinite_lr.evaluation.finetuning import finetuned_predictions
from hf_infinite_lr.evaluation.probes import ProbeArguments, Probed, probe_scores


@pytest.fixture(scope="module")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    return train_test_split(pixels.astype(np.float32), labels.astype(str), test_size=0.3, random_state=0)


def test_linear_probe_agrees_with_logistic_regression(digits):
    train, test, labels, truth = digits
    ours = np.mean(linear_probe(train, labels, test) == truth)
    theirs = LogisticRegression(max_iter=2000).fit(train / 16, labels).score(test / 16, truth)
    assert abs(ours - theirs) <= 0.01
    assert np.array_equal(linear_probe(train, labels, test), linear_probe(train, labels, test))
    moved = np.mean(linear_probe(3 * train - 7, labels, 3 * test - 7) == truth)
    assert abs(ours - moved) <= 0.005, "the scale of the features does not matter"


def test_nearest_class_mean_is_nearest_centroid_of_normalised_features(digits):
    train, test, labels, _ = digits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of pixels that do not vary
        theirs = NearestCentroid().fit(normalize(train), labels).predict(normalize(test))
    means = np.stack([normalize(train)[labels == label].mean(axis=0) for label in np.unique(labels)])
    distances = ((normalize(test)[:, None] - means) ** 2).sum(axis=2)
    ours = nearest_class_mean(train, labels, test)
    assert np.array_equal(ours, theirs)
    assert np.array_equal(ours, np.unique(labels)[distances.argmin(axis=1)])


def test_neighbours_are_those_of_scikit_learn_and_fewer_where_there_are_fewer(digits):
    train, test, labels, _ = digits
    theirs = KNeighborsClassifier(20).fit(normalize(train), labels).predict(normalize(test))
    assert np.mean(nearest_neighbours(train, labels, test) == theirs) > 0.99
    assert set(nearest_neighbours(train[:5], labels[:5], test)) <= set(labels[:5])


def test_few_shots_draw_that_many_and_more_are_better(digits):
    train, test, labels, truth = digits
    one, half_one = few_shot_accuracy(train, labels, test, truth, per_class=1)
    ten, half_ten = few_shot_accuracy(train, labels, test, truth, per_class=10)
    assert 0.4 < one < ten < 1
    assert 0 < half_ten < half_one
    assert few_shot_accuracy(train, labels, test, truth, per_class=1) == (one, half_one)
    rare = np.concatenate([np.flatnonzero(labels == "0")[:2], np.flatnonzero(labels != "0")])
    few_shot_accuracy(train[rare], labels[rare], test, truth, per_class=10, draws=2)


def test_one_class_is_every_probes_answer(digits):
    train, test, labels, truth = digits
    only = train[labels == "3"]
    names = np.repeat("3", len(only))
    for probe in (linear_probe, nearest_class_mean, nearest_neighbours):
        assert set(probe(only, names, test)) == {"3"}
    assert few_shot_accuracy(only, names, test, truth, per_class=5) == (np.mean(truth == "3"), 0.0)


def test_interval_of_known_values():
    mean, half = mean_and_half_width([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(4.302653 * math.sqrt(7 / 3) / math.sqrt(3), rel=1e-6)
    with pytest.raises(ValueError, match="at least two"):
        mean_and_half_width([1.0])


def test_rates_of_the_linear_probe():
    rates = [warmup_cosine(step, 5, 25) for step in range(25)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert rates[15] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(rates[5:]))


def column(*classes, seed):
    """Well separated classes; the same seed gives the same features under other names."""
    random = np.random.RandomState(seed)
    names = np.repeat(classes, 20)
    centres = np.repeat(5 * random.randn(len(classes), 8), 20, axis=0)
    train, test = ((centres + random.randn(*centres.shape)).astype(np.float32) for _ in range(2))
    return Probed(Features(train, -train), names, Features(test, -test), names)


def test_seen_probes_know_the_classes_of_the_learned_tasks_only():
    arguments = ProbeArguments(probes=["nearest_class_mean", "nearest_class_mean_seen", "linear_pooled"])
    found = {"a": column("k", "l", seed=0), "b": column("m", "n", seed=0), "c": column("o", "p", seed=1)}
    scores = probe_scores(arguments, found, ["a", "b"])
    assert [scores[name]["nearest_class_mean_accuracy"] for name in "abc"] == [1, 1, 1]
    assert all(own["linear_pooled_accuracy"] == 1 for own in scores.values())
    # One classifier for both tasks, which cannot tell equal features of different names apart.
    assert [scores[name].get("nearest_class_mean_seen_accuracy") for name in "abc"] == [1, 0, None]
    assert "nearest_class_mean_seen_accuracy" not in probe_scores(arguments, found, [])["a"]


def test_finetuning_learns_and_moves_the_encoder_it_was_given():
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 8)

        def forward(self, images):
            return self.layer(images.flatten(1))[:, None]

    torch.manual_seed(0)
    images, encoder = torch.randn(256, 1, 2, 2), Encoder()
    before = encoder.layer.weight.detach().clone()
    labels = np.where(images[:, 0, 0, 0] > images[:, 0, 1, 1], "a", "b")
    found = finetuned_predictions(encoder, 8, images, labels, images, num_epochs=100)
    assert np.mean(found == labels) > 0.8
    assert not torch.equal(encoder.layer.weight, before)


# ---- measures ----------------------------------------------------------------------------------------------------


def test_cka_of_itself_a_rotation_and_noise():
    random = np.random.RandomState(0)
    x = random.randn(600, 12) * np.arange(1, 13)
    rotation, _ = np.linalg.qr(random.randn(12, 12))
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert linear_cka(x, random.randn(600, 12)) < 0.1
    halfway = linear_cka(x, np.hstack([x[:, 6:], 10 * random.randn(600, 6)]))
    assert 0.1 < halfway < 0.99
    assert halfway == pytest.approx(linear_cka(np.hstack([x[:, 6:]]), x), abs=0.5)


def test_cka_equals_its_definition_by_gram_matrices():
    random = np.random.RandomState(1)
    x, y = random.randn(40, 5), random.randn(40, 7)
    centre = np.eye(40) - 1 / 40
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    assert linear_cka(x, y) == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))
    with pytest.raises(ValueError, match="same samples, not 40 and 39"):
        linear_cka(x, y[1:])
    with pytest.raises(ValueError, match="same for all samples"):
        linear_cka(x, np.ones((40, 3)))


def test_perturbations_have_their_size_and_leave_no_trace():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 1))
    model[1].bias.requires_grad_(False)
    before = [weight.clone() for weight in model.parameters()]
    with perturbed(model, 0.1, seed=3), torch.no_grad():
        moved = [
            float((weight - own).norm() / own.norm()) for weight, own in zip(model.parameters(), before, strict=True)
        ]
    assert moved[:3] == pytest.approx([0.1] * 3, rel=1e-5)
    assert moved[3] == 0
    assert all(torch.equal(weight, own) for weight, own in zip(model.parameters(), before, strict=True))


def test_sharpness_of_a_parabola():
    """Around its minimum w, k |x - w|^2 rises by k r^2 |w|^2, whatever the direction."""
    model = torch.nn.Linear(50, 1, bias=False)
    target = model.weight.detach().clone()

    def loss():
        return 7 * ((model.weight - target) ** 2).sum().item()

    expected = 7 * 0.2**2 * float(target.norm() ** 2)
    assert sharpness(model, loss, radius=0.2) == pytest.approx(expected, rel=1e-4)
    assert sharpness(model, loss, radius=0.0) == 0


def test_features_are_extracted_once_for_each_model_and_set(tmp_path):
    hidden = torch.randn(5, 4, 3)
    made = extract(lambda batch: batch, iter(hidden.split(2)))
    np.testing.assert_array_equal(made.cls, hidden[:, 0].numpy())
    np.testing.assert_allclose(made.pooled, hidden[:, 1:].mean(dim=1).numpy(), rtol=1e-6)
    cache, calls = FeatureCache(tmp_path), []

    def make():
        calls.append(1)
        return made

    for fingerprint in ("a", "a", "b", "b"):
        np.testing.assert_array_equal(cache.get("01-x", "digits", fingerprint, make).cls, made.cls)
    assert len(calls) == 2
    assert cache.known("01-x", "glyphs") is None
    np.testing.assert_array_equal(cache.known("01-x", "digits").pooled, made.pooled)
    assert not list(tmp_path.glob("*/.*"))
    FeatureCache(tmp_path / "reader", writes=False).get("01-x", "digits", "a", make)
    assert not (tmp_path / "reader").exists()


def test_a_model_has_the_fingerprint_of_its_weights():
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert fingerprint_of(one) != fingerprint_of(other)
    other.load_state_dict(one.state_dict())
    assert fingerprint_of(one) == fingerprint_of(other)
