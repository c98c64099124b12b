"""`objective: mae`: the model, its loss, what is exact about a run, and what is refused."""

import json
from datetime import date
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from transformers import AutoImageProcessor, ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from hf_infinite_lr.objectives.images import IMAGE
from hf_infinite_lr.objectives.mae_model import build_config, build_mae, encode, unmasked
from hf_infinite_lr.objectives.model_source import ModelSource
from hf_infinite_lr.recipe import load_recipe
from hf_infinite_lr.stream.pictures import load_pictures, png

RECIPES = Path(__file__).parent.parent / "recipes"
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}
PHOTOS = {"name": "photos", "builtin": "photos"}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a recipe of a tiny model and returns its path."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(name="recipe", **changes):
        content = {
            "objective": "mae",
            "model_type": "vit_mae",
            "config_overrides": dict(TINY),
            "tasks": [{**PHOTOS, "name": "one"}, {**PHOTOS, "name": "two"}],
            "task_steps": [4],
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 100,
            "learning_rate": 1e-3,
            "num_pictures": 0,
            "smallest_crop": 0.5,
            "horizontal_flip": True,
            "logging_steps": 2,
            "save_steps": 3,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "output_dir": str(tmp_path / "out"),
            **changes,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def new_model(seed=0, **changes):
    torch.manual_seed(seed)
    source = ModelSource(model_type="vit_mae", config_overrides={**TINY, **changes})
    return build_mae(source, build_config(source)).eval()


# ---- the model ---------------------------------------------------------------------------------------------------


def small_model_of_the_paper(**changes):
    content = yaml.safe_load((RECIPES / "mae-split-cifar10" / "infinite.yaml").read_text())
    return new_model(**content["config_overrides"], **changes)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_loss_is_the_squared_error_of_the_masked_pixels(norm_pix_loss):
    model = small_model_of_the_paper(norm_pix_loss=norm_pix_loss)
    pixels, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 256)
    with torch.no_grad():
        found = model(pixels, noise=noise)
    hidden = noise.argsort(dim=1).argsort(dim=1) >= 64
    patches = torch.nn.functional.unfold(pixels, 2, stride=2).transpose(1, 2)  # channels first within a patch
    target = patches.reshape(2, 256, 3, 4).transpose(2, 3).reshape(2, 256, 12)
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    plain = ((found.logits - target) ** 2)[hidden].mean()
    assert abs(found.loss.item() - plain.item()) < 1e-6
    assert torch.equal(found.mask.bool(), hidden)


def test_a_new_model_has_its_fixed_positions():
    model = new_model()
    sincos = build_2d_sinusoidal_position_embedding(height=4, width=4, embed_dim=16, cls_token=True)
    expected = torch.cat([sincos[:, 8:], sincos[:, :8]], dim=-1)[None]  # transformers keeps width before height
    for found in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert torch.equal(found, expected)
        assert not found.requires_grad
    assert model.decoder.mask_token.abs().sum() > 0
    assert model.vit.embeddings.cls_token.abs().sum() > 0


def test_the_encoder_sees_whole_images_in_order():
    model = new_model()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), unmasked(model):
        whole = encode(model, pixels)
        changed = pixels.clone()
        changed[:, :, :8, 8:16] += 1  # the second patch
        noise = torch.arange(16.0).expand(2, -1)
        seen = [model.vit.embeddings(images, noise=noise)[0] for images in (pixels, changed)]
        moved = (seen[1] - seen[0]).abs().sum(dim=(0, 2))
    assert whole.shape == (2, 17, 16)
    assert moved.nonzero().tolist() == [[2]], "the class token comes first"
    assert model.config.mask_ratio == 0.75
    with torch.no_grad():
        assert model(pixels).mask.sum() == 2 * 12


@pytest.mark.parametrize(
    ("folder", "parameters", "encoder"),
    [
        ("mae-split-cifar10", 7_259_532, 5_390_784),
        ("mae-vit-b-imagenet-places-firerisk", 111_907_840, 85_798_656),
        ("mae-vit-b-domainnet", 111_907_840, 85_798_656),
        ("mae-vit-l-imagenet-places-firerisk", 329_541_888, 303_301_632),
        ("mae-digits-glyphs-photos", 522_256, 458_592),
    ],
)
def test_parameters_of_the_shipped_recipes(folder, parameters, encoder):
    for path in (RECIPES / folder).glob("*.yaml"):
        config = load_recipe(path).objective.config
        with torch.device("meta"):
            model = ViTMAEForPreTraining(config)
        assert sum(weight.numel() for weight in model.parameters()) == parameters
        assert sum(weight.numel() for weight in model.vit.parameters()) == encoder


# ---- runs --------------------------------------------------------------------------------------------------------


def matrices(folder):
    return {path.name: json.loads(path.read_text()) for path in Path(folder).glob("task_matrix*.json")}


def test_a_run_leaves_loadable_releases_probe_matrices_and_its_pace(write, tmp_path):
    probes = ["linear_seen", "knn", "nearest_class_mean", "few_shot", "finetuning"]
    trainer = load_recipe(
        write(
            probes=probes,
            probe_samples=100,
            finetuning_epochs=1,
            compare_releases=True,
            sharpness_radius=0.05,
            num_pictures=2,
            evaluate_also=[{"name": "transfer", "builtin": "digits"}],
        )
    ).trainer()
    trainer.train()
    out = tmp_path / "out"
    found = matrices(out)
    names = {f"task_matrix.{name}_accuracy.json" for name in probes}
    assert set(found) == {
        "task_matrix.json",
        "task_matrix.few_shot_half_width.json",
        "task_matrix.sharpness.json",
        *names,
    }
    for name in names:
        matrix = found[name]
        assert matrix["columns"] == ["one", "two", "transfer"]
        assert matrix["higher_is_better"]
        assert len(matrix["matrix"]) == 2
        if name == "task_matrix.linear_seen_accuracy.json":
            assert matrix["baseline"] == [None] * 3
            assert [[cell is None for cell in row] for row in matrix["matrix"]] == [
                [False, True, True],
                [False, False, True],
            ]
        else:
            assert all(0 <= cell <= 1 for row in [matrix["baseline"], *matrix["matrix"]] for cell in row)
    assert not found["task_matrix.sharpness.json"]["higher_is_better"]
    similar = json.loads((out / "representations.json").read_text())
    assert similar["one"]["models"] == ["untrained", "01-one", "02-two"]
    assert all(abs(similar["one"]["linear_cka"][k][k] - 1) < 1e-9 for k in range(3))
    pictures = {path.name for path in (out / "report").glob("*.png")}
    assert {f"reconstructions.{name}.png" for name in similar["one"]["models"]} <= pictures
    paces = [entry for entry in trainer.state.log_history if "data_wait_share" in entry]
    assert all(0 <= entry["data_wait_share"] <= 1 and entry["samples_per_second"] > 0 for entry in paces)
    assert paces

    release = out / "releases" / "02-two"
    plain = ViTMAEForPreTraining.from_pretrained(release)
    assert isinstance(plain.config, ViTMAEConfig)
    processor = AutoImageProcessor.from_pretrained(release, backend="pil")
    image = load_pictures("photos").eval[0]["image"]
    ours = trainer.data_collator([{IMAGE: {"bytes": png(np.asarray(image)), "path": None}, "noise": 0}])
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours[IMAGE], theirs, atol=1e-5, rtol=0)
    with torch.no_grad():
        loss = plain.eval()(theirs, noise=ours["noise"]).loss
        assert torch.equal(loss, plain(ours[IMAGE], noise=ours["noise"]).loss)


def test_only_evaluated_columns_are_probed(write, tmp_path):
    trainer = load_recipe(write(probes=["nearest_class_mean"], probe_samples=50, evaluate_on="seen")).trainer()
    trainer.train()
    features = tmp_path / "out/features"
    parts = {folder.name: {path.stem for path in folder.iterdir()} for folder in features.iterdir()}
    both = {"one-train", "one-held_out", "two-train", "two-held_out"}
    assert parts == {"untrained": both, "01-one": {"one-train", "one-held_out"}, "02-two": both}
    matrix = matrices(tmp_path / "out")["task_matrix.nearest_class_mean_accuracy.json"]["matrix"]
    assert [[cell is None for cell in row] for row in matrix] == [[False, True], [False, False]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_is_the_same_bit_for_bit(write, tmp_path, tiny, workers):
    settings = {"probes": ["linear_seen"], "probe_samples": 50, "dataloader_num_workers": workers}
    whole = load_recipe(write(**settings, output_dir=str(tmp_path / "whole"))).trainer()
    whole.train()
    path = write(**settings, output_dir=str(tmp_path / "parts"))
    load_recipe(path, ["--max_steps", "3"]).trainer().train()
    rest = load_recipe(path, ["--resume_from_checkpoint", "true"]).trainer()
    rest.train(True)
    assert rest._resumed_from.name == "checkpoint-3"
    assert tiny.same_end(whole, rest)
    assert matrices(tmp_path / "whole") == matrices(tmp_path / "parts")


def test_evaluation_repeats_whatever_the_batch_size_and_the_generator(write):
    losses = []
    for size in (100, 33):
        trainer = load_recipe(write(per_device_eval_batch_size=size)).trainer()
        torch.manual_seed(size)
        losses += [trainer.evaluate()["eval_one_loss"], trainer.evaluate()["eval_one_loss"]]
    assert losses[0] == losses[1]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


def parquet(folder, name="images", count=40, mode="RGB", **columns):
    random = np.random.RandomState(0)
    shape = (36, 40, 3) if mode == "RGB" else (36, 40)
    rows = {
        "image": [{"bytes": png(random.randint(0, 256, shape, np.uint8)), "path": None} for _ in range(count)],
        **{key: value(count) for key, value in columns.items()},
    }
    file = str(folder / f"{name}.parquet")
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(file)
    return file


@pytest.mark.parametrize("streaming", [False, True])
def test_files_are_trained_on_and_probed_map_style_or_streaming(write, tmp_path, streaming):
    file = parquet(tmp_path, label=lambda count: [n % 2 for n in range(count)])
    task = {"name": "files", "data_files": file, "streaming": streaming, "num_eval_samples": 8, "num_steps": 5}
    trainer = load_recipe(write(tasks=[task], probes=["nearest_class_mean"], probe_samples=20)).trainer()
    assert trainer.stream.tasks[0].streaming == streaming
    trainer.train()
    assert trainer.state.global_step == 5
    row = json.loads((tmp_path / "out" / "task_matrix.nearest_class_mean_accuracy.json").read_text())["matrix"][0]
    assert 0 <= row[0] <= 1


def test_parts_of_a_split_and_of_a_mixture_are_probed_on_their_own_images(write, tmp_path):
    files = [parquet(tmp_path, name, label=lambda count: [n % 4 for n in range(count)]) for name in ("one", "two")]
    split = {"name": "s", "data_files": files[0], "eval_fraction": 0.4}
    split["split_into"] = {"kind": "class", "num_tasks": 2, "column": "label"}
    mixed = {"name": "m", "mixture": [{"data_files": file, "eval_fraction": 0.4, "weight": 1} for file in files]}
    recipe = load_recipe(write(tasks=[split, mixed], probes=["nearest_class_mean_seen"], task_steps=[3]))
    trainer = recipe.trainer()
    parts = [set(recipe.objective._columns[name].labels[0]) for name in ("s-1", "s-2", "m")]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == parts[2] == set("0123")
    trainer.train()
    found = matrices(tmp_path / "out")["task_matrix.nearest_class_mean_seen_accuracy.json"]["matrix"]
    assert [[cell is None for cell in row] for row in found] == [
        [False, True, True],
        [False, False, True],
        [False] * 3,
    ]


def test_a_split_by_dates_takes_those_of_yaml(write, tmp_path):
    """Unquoted, they are no text; the parts of what a source knows as a whole are told apart by what was asked."""
    file = parquet(tmp_path, day=lambda count: [f"{2020 + n % 2}-06-01" for n in range(count)])
    split = {"kind": "time", "column": "day", "boundaries": [date(2021, 1, 1)]}
    path = write(tasks=[{"name": "s", "data_files": file, "eval_fraction": 0.4, "split_into": split}], probes=[])
    assert "- 2021-01-01\n" in path.read_text()
    tasks = load_recipe(path).stream().tasks
    assert [len(task.dataset) > 0 for task in tasks] == [True, True]
    assert tasks[0].identity() != tasks[1].identity()


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_balance_what_is_replayed(write, tmp_path, streaming):
    """Nine images of one class to one of the other; the model itself never sees a label."""
    file = parquet(tmp_path, label=lambda count: [int(n % 10 == 0) for n in range(count)])
    data = {"data_files": file, "streaming": streaming, "num_eval_samples": 8, "num_steps": 3}
    balanced = {"replay_fraction": 0.5, "replay_class_column": "label"}
    tasks = [{"name": name, **data} for name in ("one", "two")]
    trainer = load_recipe(write(tasks=tasks, **balanced, evaluate_on="none", save_strategy="no")).trainer()
    trainer.train()
    memory = trainer._batches.replay._memory_before(1)
    sizes = np.diff([0, *memory.class_ends])
    assert len(sizes) == 2
    assert sizes[0] > 3 * sizes[1]


def test_gdumb_balances_classes_by_name(write):
    """Number 0 of the digits is another class than number 0 of the letters."""
    tasks = [{"name": name, "builtin": name} for name in ("digits", "glyphs")]
    made = load_recipe(write(tasks=tasks, methods={"gdumb": {"buffer_size": 62, "label_column": "label"}})).trainer()
    first, both = (task.dataset for task in made.stream.tasks)
    assert sorted(np.unique(first["label"][:], return_counts=True)[1].tolist()) == [6] * 8 + [7] * 2
    assert len({(row["label"], place < 10) for place, row in enumerate(both)}) == len(both) == 62


def test_pictures_of_other_classes_are_mixed(write):
    parts = [{"builtin": name, "weight": 1} for name in ("digits", "photos")]
    recipe = load_recipe(write(tasks=[{"name": "m", "mixture": parts}], probes=["nearest_class_mean"]))
    trainer = recipe.trainer()
    assert trainer.stream.tasks[0].dataset.column_names == ["pixel_values", "label"]
    assert len(set(recipe.objective._columns["m"].labels[0])) == 12


def test_a_pretrained_model_brings_its_own_normalisation(write, tmp_path):
    from transformers import ViTImageProcessorPil

    new_model().save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(image_mean=[0.4, 0.5, 0.6], image_std=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "model")
    changes = {"model_type": None, "config_overrides": {}, "model_name_or_path": str(tmp_path / "model")}
    objective = load_recipe(write(**changes)).objective
    assert objective.collate.mean == (0.4, 0.5, 0.6)
    assert objective.collate.std == (0.1, 0.2, 0.3)
    pretrained = objective.model()
    assert all(torch.equal(a, b) for a, b in zip(pretrained.parameters(), new_model().parameters(), strict=True))
    assert load_recipe(write(**changes, image_mean=[0.5] * 3)).objective.collate.mean == (0.5,) * 3


def test_config_name_makes_a_new_model_of_that_size(tmp_path):
    known = new_model()
    known.config.save_pretrained(tmp_path)
    source = ModelSource(config_name=str(tmp_path), config_overrides={"mask_ratio": 0.5})
    model = build_mae(source, build_config(source))
    assert [each.shape for each in model.parameters()] == [each.shape for each in known.parameters()]
    assert model.config.mask_ratio == 0.5
    assert model.vit.embeddings.position_embeddings.abs().sum() > 0
    with pytest.raises(ValueError, match=r"^config_name='.*gone' cannot be loaded"):
        build_config(ModelSource(config_name=str(tmp_path / "gone")))


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_overrides": {**TINY, "image_size": 33}}, "image_size=33 is not divisible by patch_size=8"),
        ({"config_overrides": {**TINY, "patchsize": 4}}, "config_overrides.patchsize is no field .* 'patch_size'"),
        ({"config_overrides": {**TINY, "num_channels": 4}}, r"num_channels=4 must be 1 \(grey\) or 3"),
        ({"config_overrides": {**TINY, "image_size": [32, 32]}}, "image_size=.* must be a whole number of pixels"),
        ({"model_type": "llama", "config_overrides": {}}, "model_type='llama' must be vit_mae"),
        ({"tokenizer_name": "byte"}, "tokenizer_name='byte' has no meaning"),
        ({"probes": ["liner"]}, "probes: 'liner' is no probe; did you mean 'linear'"),
        ({"probes": "linear"}, "probes='linear' must be a list"),
        ({"probe_samples": 1}, "probe_samples=1 must be a whole number of 2 or more"),
        ({"sharpness_radius": -0.1}, "sharpness_radius=-0.1 must not be negative"),
        ({"smallest_crop": 0.0}, "smallest_crop=0.0 must be above 0"),
        ({"image_mean": [0.5]}, "image_mean=.* must have one value for each of 3"),
        ({"tasks": [{"name": "x", "builtin": "photos", "text_column": "text"}]}, "'text_column' is an unknown key"),
    ],
)
def test_bad_recipes_are_refused_in_one_sentence(write, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as found:
        load_recipe(write(**changes)).trainer()
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_probes_ask_for_classes_and_streams_for_a_number(write, tmp_path):
    task = {"name": "files", "data_files": parquet(tmp_path), "num_eval_samples": 8}
    with pytest.raises(ValueError, match=r"probes=\['knn'\] need classes, but 'files' has no column 'label'"):
        load_recipe(write(tasks=[task], probes=["knn"])).trainer()
    with pytest.raises(ValueError, match=r"of the streaming task 'files' need probe_samples"):
        load_recipe(write(tasks=[{**task, "streaming": True, "num_steps": 2}], probes=["knn"]))
    task["data_files"] = parquet(tmp_path, "unlabelled", label=lambda count: [-1] * count)
    with pytest.raises(ValueError, match=r"'files': 8 of 8 images have no class in 'label'"):
        load_recipe(write(tasks=[task], probes=["knn"])).trainer()
