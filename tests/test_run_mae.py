"""A script that pre-trains a masked autoencoder with stock Trainer, under `hf-infinite-lr run`, unchanged.

The official run_mae.py is not part of this repository. To try it too, name a copy: RUN_MAE=path pytest
tests/test_run_mae.py. Its imports from torchvision are met by torchvision_stand_in.py.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import ViTMAEForPreTraining

from hf_infinite_lr.stream.pictures import load_pictures

HERE = Path(__file__).parent
OWN_SCRIPT = """
import sys
import torch
from datasets import load_dataset
from torchvision.transforms import Compose, RandomResizedCrop, ToTensor
from torchvision.transforms.functional import InterpolationMode
from transformers import HfArgumentParser, Trainer, TrainingArguments, ViTMAEConfig, ViTMAEForPreTraining

words = sys.argv[1:]
images = load_dataset(words.pop(words.index("--dataset_name") + 1), split="train")
words.remove("--dataset_name")
config = ViTMAEConfig()
config.update_from_string(words.pop(words.index("--config_overrides") + 1))
words.remove("--config_overrides")
(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(words)
crop = RandomResizedCrop((224, 224), scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC)
transforms = Compose([crop, ToTensor()])
images.set_transform(lambda rows: {"pixel_values": [transforms(image) for image in rows["image"]]})
trainer = Trainer(
    ViTMAEForPreTraining(config),
    args,
    train_dataset=images,
    data_collator=lambda rows: {"pixel_values": torch.stack([row["pixel_values"] for row in rows])},
)
trainer.train()
trainer.save_model()
trainer.save_state()
"""
SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SIZES |= {f"decoder_{name}": value for name, value in SIZES.items()}
FLAGS = ["--do_train", "--max_steps", "10", "--warmup_steps", "2", "--per_device_train_batch_size", "4"]
FLAGS += ["--remove_unused_columns", "false", "--label_names", "pixel_values", "--use_cpu", "--report_to", "none"]
FLAGS += ["--save_strategy", "no", "--logging_steps", "1", "--disable_tqdm", "true"]
FLAGS += ["--config_overrides", ",".join(f"{name}={value}" for name, value in SIZES.items())]


@pytest.fixture(params=["own", "official"])
def script(request, tmp_path):
    """The script, with the stand-in beside it and a folder of images."""
    if request.param == "official" and "RUN_MAE" not in os.environ:
        pytest.skip("the official run_mae.py is not part of this repository; name a copy in RUN_MAE")
    room = tmp_path / "script"
    (room / "torchvision/transforms").mkdir(parents=True)
    (room / "torchvision/__init__.py").touch()
    shutil.copy(HERE / "torchvision_stand_in.py", room / "torchvision/transforms/__init__.py")
    modes = "from PIL.Image import Resampling as InterpolationMode\n"
    (room / "torchvision/transforms/functional.py").write_text(modes)
    text = OWN_SCRIPT if request.param == "own" else Path(os.environ["RUN_MAE"]).read_text()
    (room / "run_mae.py").write_text(text)
    (tmp_path / "images").mkdir()
    for number, row in enumerate(load_pictures("digits").train.select(range(24))):
        row["image"].convert("RGB").save(tmp_path / f"images/{number}.png")
    return room / "run_mae.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["infinite", "cosine_rewarm"])
def test_a_masked_autoencoder_script_unchanged(script, tmp_path, name):
    words = ["--dataset_name", "images", "--output_dir", "out", "--lr_scheduler_type", name, *FLAGS]
    done = subprocess.run(
        [sys.executable, "-m", "hf_infinite_lr", "run", str(script), *words],
        cwd=tmp_path,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "out/trainer_state.json").read_text())
    rates = [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
    assert len(rates) == 10
    shares = [rate / max(rates) for rate in rates]
    if name == "infinite":
        assert shares[5:8] == pytest.approx([0.75] * 3)
        assert shares[-1] < 0.3
    else:
        cosine = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
        assert shares == pytest.approx([0, 0.5] + [0.1 + 0.9 * value for value in cosine])
    assert (tmp_path / "out/checkpoint-8").exists() == (name == "infinite")
    ViTMAEForPreTraining.from_pretrained(tmp_path / "out")
