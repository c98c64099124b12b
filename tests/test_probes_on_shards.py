"""A masked autoencoder whose weights an engine has cut: measured as a whole, or refused by name."""

import os
import subprocess
import sys

import pytest
import yaml

from hf_infinite_lr.recipe import load_recipe

SIZES = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
DECODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
COPIED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from hf_infinite_lr.objectives.mae_scores import _plain
from hf_infinite_lr.evaluation.whole import is_cut

dist.init_process_group("gloo")
torch.manual_seed(0)
model = ViTMAEForPreTraining(ViTMAEConfig(**eval(sys.argv[1])))
expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
fully_shard(model.vit)
fully_shard(model)
assert is_cut(model)
found = _plain(model)
assert type(found) is ViTMAEForPreTraining and not is_cut(found)
assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
dist.barrier()
dist.destroy_process_group()
"""


def sizes():
    return {**SIZES, "intermediate_size": 16, **{f"decoder_{name}": size for name, size in DECODER.items()}}


@pytest.mark.slow
def test_what_torch_has_cut_is_made_whole(tmp_path):
    (tmp_path / "copied.py").write_text(COPIED)
    launcher = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [sys.executable, *launcher, str(tmp_path / "copied.py"), repr(sizes())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def test_zero_3_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    content = {"objective": "mae", "model_type": "vit_mae", "tasks": [{"name": "one", "data_files": "none.parquet"}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**content, "output_dir": str(tmp_path / "out")}))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    recipe.check()
    monkeypatch.setattr("hf_infinite_lr.objectives.mae.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match=r"^objective='mae' cannot be used with DeepSpeed ZeRO-3, "):
        recipe.trainer()
