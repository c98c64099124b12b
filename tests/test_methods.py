"""Methods by themselves: importances, penalties and distillation against hand computations, buffers by their laws."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from hf_infinite_lr.methods import (
    Learner,
    LearningWithoutForgetting,
    LwFSettings,
    QuadraticPenalty,
    Samples,
    Weights,
    read_methods,
)
from hf_infinite_lr.methods.gdumb import balanced, buffers
from hf_infinite_lr.methods.importance import importance
from hf_infinite_lr.methods.lwf import divergence
from hf_infinite_lr.methods.output import observed, with_mask


class Line(nn.Module):
    """Two parameters: output (a x, b x^2), and the loss (a x + b - y)^2 / 2."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))

    def forward(self, x, y):
        logits = torch.stack([self.a * x, self.b * x**2], -1)[None]
        return {"logits": logits, "loss": (self.a * x + self.b - y).square().mean() / 2}


POINTS = [(1.0, 0.0), (-2.0, 1.0), (3.0, 4.0)]


def learner_of(model, points=POINTS):
    batches = [{"x": torch.tensor([x]), "y": torch.tensor([y])} for x, y in points]
    return Learner(model, Weights(model), None, lambda count: Samples(batches[:count], len(batches[:count])), None)


def penalty(**methods):
    ((name, settings),) = read_methods(methods).items()
    return QuadraticPenalty(name, settings)


def by_hand(kind, a, b, points=POINTS):
    """Means over points: |d/dtheta of (a x)^2 + (b x^2)^2|, or the square of d/dtheta of the loss."""
    if kind == "mas":
        pairs = [(abs(2 * a * x**2), abs(2 * b * x**4)) for x, _ in points]
    else:
        pairs = [((a * x + b - y) ** 2 * x**2, (a * x + b - y) ** 2) for x, y in points]
    return {name: sum(pair[place] for pair in pairs) / len(points) for place, name in enumerate("ab")}


@pytest.mark.parametrize("kind", ["mas", "fisher"])
def test_importance_is_the_hand_computed_one(kind):
    learner = learner_of(Line(0.5, -1.5))
    found = importance(kind, learner.model, learner.weights, learner.samples(9))
    assert {name: part.item() for name, part in found.items()} == pytest.approx(by_hand(kind, 0.5, -1.5))
    assert all(weight.grad is None for weight in learner.model.parameters())


def test_importance_and_reference_move_on_with_each_task():
    """Omega <- alpha Omega + (1 - alpha) Omega_new; the first is taken as it is."""
    method, model = penalty(mas={"alpha": 0.25, "weight": 0.5}), Line(0.5, -1.5)
    method.end_task(learner_of(model))
    with torch.no_grad():
        model.a.fill_(2.0)
    distance = model.a.item() - 0.5
    assert method.value(Weights(model)).item() == pytest.approx(0.5 * by_hand("mas", 0.5, -1.5)["a"] * distance**2)
    method.end_task(learner_of(model, POINTS[:2]))
    first, second = by_hand("mas", 0.5, -1.5), by_hand("mas", 2.0, -1.5, POINTS[:2])
    expected = {name: 0.25 * first[name] + 0.75 * second[name] for name in "ab"}
    assert {name: part.item() for name, part in method.omega.items()} == pytest.approx(expected)
    assert {name: part.item() for name, part in method.reference.items()} == {"a": 2.0, "b": -1.5}
    assert method.value(Weights(model)).item() == 0


@pytest.mark.parametrize("methods", [{"mas": {}}, {"fisher": {"weight": 3.0}}, {"l2": {"weight": 0.7}}], ids=str)
def test_the_pull_is_the_gradient_of_the_penalty(methods):
    method, model = penalty(**methods), Line(0.5, -1.5)
    assert method.pull("a", model.a) is None
    assert method.value(Weights(model)) is None
    method.end_task(learner_of(model))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        with torch.no_grad():
            weight += torch.randn(())
        pull, step = method.pull(name, weight).item(), 0.5  # central differences of a parabola are exact at any step
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * step
            values.append(method.value(Weights(model)).item())
            with torch.no_grad():
                weight -= sign * step
        assert pull != 0
        assert pull == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def test_a_state_comes_back_as_it_was():
    model = Line(0.5, -1.5)
    for method, empty in (
        (penalty(mas={}), penalty(mas={})),
        (penalty(l2={"weight": 1.0}), penalty(l2={"weight": 1.0})),
        (LearningWithoutForgetting(LwFSettings()), LearningWithoutForgetting(LwFSettings())),
    ):
        assert method.state() == {}
        method.end_task(learner_of(model))
        empty.load(method.state(), learner_of(Line(9.0, 9.0)))
        assert empty.state() == method.state() != {}


# ---- distillation ---------------------------------------------------------------------------------------------------


def test_divergence_is_that_of_the_predicted_tokens():
    torch.manual_seed(0)
    old, new = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    labels = torch.tensor([[1, 2, 3, 4], [1, 2, -100, -100]])
    p, q = old.softmax(-1), new.softmax(-1)
    each = [(p[s, t] * (p[s, t] / q[s, t]).log()).sum() for s, t in ((0, 0), (0, 1), (0, 2), (1, 0))]
    assert divergence(old, new, labels).item() == pytest.approx(sum(each).item() / 4, rel=1e-5)
    assert divergence(old, old, labels).item() == 0
    parts = [divergence(old[s : s + 1], new[s : s + 1], labels[s : s + 1], 4) for s in range(2)]
    assert sum(parts).item() == pytest.approx(divergence(old, new, labels).item())


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = {f"decoder_{name}": value if "layers" not in name else 1 for name, value in sizes.items()}
    return ViTMAEForPreTraining(ViTMAEConfig(image_size=8, patch_size=2, **sizes, **decoder)).eval()


def feature_distance(student, teacher, inputs):
    method = LearningWithoutForgetting(LwFSettings(weight=2.0))
    method.end_task(Learner(teacher, Weights(teacher), None, None, None))
    inputs = with_mask(student, inputs)
    with observed(student) as seen:
        student(**inputs)
    return method.extra_loss(student, inputs, seen[0], None, {}), seen[0], inputs


def test_features_are_compared_under_one_mask_over_the_feature_axis(autoencoder):
    pixels = {"pixel_values": torch.randn(3, 3, 8, 8)}
    distance, _, _ = feature_distance(autoencoder, autoencoder, pixels)
    assert distance.item() == pytest.approx(0, abs=1e-6)
    other = copy.deepcopy(autoencoder)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.1 * torch.randn_like(weight)
    distance, features, inputs = feature_distance(autoencoder, other, pixels)
    old = other.vit(**inputs).last_hidden_state
    expected = 2.0 * (1 - (functional.normalize(old, dim=2) * functional.normalize(features, dim=2)).sum(2)).mean()
    assert distance.item() == pytest.approx(expected.item(), rel=1e-5)
    assert features.shape == (3, 5, 16)


def test_a_mask_is_drawn_as_the_model_draws_it(autoencoder):
    pixels = {"pixel_values": torch.randn(3, 3, 8, 8)}
    torch.manual_seed(1)
    own = autoencoder(**pixels).loss, torch.rand(1)
    torch.manual_seed(1)
    ours = autoencoder(**with_mask(autoencoder, pixels)).loss, torch.rand(1)
    assert own == ours
    given = {**pixels, "noise": torch.rand(3, 16)}
    assert with_mask(autoencoder, given) is given


def test_mas_of_an_autoencoder_spares_the_decoder(autoencoder):
    samples = Samples([with_mask(autoencoder, {"pixel_values": torch.randn(1, 3, 8, 8)}) for _ in range(2)], 2)
    with torch.no_grad():  # a fresh normalisation gives all tokens the same norm, whatever the layers below do
        autoencoder.vit.layernorm.weight.uniform_(0.5, 1.5)
    found = importance("mas", autoencoder, Weights(autoencoder), samples)
    assert all(not part.any() for name, part in found.items() if name.startswith("decoder"))
    assert found["vit.layers.0.mlp.fc1.weight"].any()
    assert "vit.embeddings.position_embeddings" not in found  # frozen


# ---- the buffer of GDumb --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ([10, 10, 10], 9, [3, 3, 3]),
        ([10, 10, 10], 11, [4, 4, 3]),
        ([10, 2, 10], 12, [5, 2, 5]),
        ([1, 1, 10], 12, [1, 1, 10]),
        ([1, 1], 5, [1, 1]),
        ([5, 5, 5], 3, [1, 1, 1]),
        ([5], 3, [3]),
    ],
)
def test_quotas_are_as_equal_as_they_can_be(counts, size, expected):
    assert balanced(counts, size) == expected


@pytest.mark.parametrize("size", [7, 12, 25, 38])
def test_a_buffer_holds_only_what_could_be_kept(size):
    """It is balanced, and made of the buffer before and the new task alone."""
    groups = [["x"] * 9 + ["y"] * 4, ["z"] * 12, ["y"] * 6 + ["w"] * 9]
    made, before = buffers(groups, size, seed=3), set()
    assert made == buffers(groups, size, seed=3) != buffers(groups, size, seed=4)
    counts = {}
    for task, (held, members) in enumerate(zip(made, groups, strict=True)):
        assert set(held) <= before | {(task, row) for row in range(len(members))}
        before = set(held)
        for name in members:
            counts[name] = counts.get(name, 0) + 1
        assert len(held) == len(before) == min(size, sum(counts.values()))
        kept = [groups[t][row] for t, row in held]
        numbers = {name: kept.count(name) for name in counts}
        short = [name for name in counts if numbers[name] < counts[name]]
        assert max(numbers.values()) <= min((numbers[name] for name in short), default=math.inf) + 1


# ---- the argument ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mass": {}}, "attention_preserving); did you mean 'mas'?."),
        ({"ewc": {}}, "here it is methods.fisher."),
        ({"none": {}}, "here it is no method at all."),
        ({"replay": {}}, "here it is replay_fraction."),
        ({"mas": {"lambda": 1}}, "methods.mas.lambda=1 is an unknown key; here it is weight."),
        ({"mas": {"wieght": 1}}, "methods.mas.wieght=1 is an unknown key; did you mean 'weight'?."),
        ({"mas": {"weight": -1}}, "methods.mas.weight=-1 must be a number above 0."),
        ({"mas": {"weight": float("nan")}}, "methods.mas.weight=nan must be a number above 0."),
        ({"mas": {"weight": "1"}}, "methods.mas.weight='1' must be a number above 0."),
        ({"mas": {"alpha": 1.0}}, "methods.mas.alpha=1.0 must be at least 0 and below 1."),
        ({"mas": {"num_samples": 0}}, "methods.mas.num_samples=0 must be a whole number above 0."),
        ({"mas": 3}, "methods.mas=3 must be a mapping of keys to values."),
        ({"fisher": {}}, "methods.fisher.weight is missing: it has no default."),
        ({"l2": None}, "methods.l2.weight is missing: it has no default."),
        ({"gdumb": {"buffer_size": 2.5}}, "methods.gdumb.buffer_size=2.5 must be a whole number above 0."),
        (
            {"gdumb": {"buffer_size": 2, "label_column": 1}},
            "methods.gdumb.label_column=1 must be the name of a column.",
        ),
        ({"joint": {}, "mas": {}}, "joint says what the whole run trains on and stands alone, not with mas."),
        ([1], "methods=[1] must be a mapping of names to settings."),
        ("mas", "methods='mas' must be a mapping of names to settings, as JSON"),
    ],
    ids=str,
)
def test_bad_methods_are_refused_in_one_sentence(given, sentence):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the sentence is compared
        read_methods(given)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_methods_are_read_from_the_command_line():
    assert read_methods('{"mas": {"weight": 2}, "lwf": null}') == read_methods({"mas": {"weight": 2}, "lwf": {}})
    assert read_methods(None) == {}
