"""What each of two processes does in `test_recipes_on_two_processes.py`: recipe after recipe by the command."""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from hf_infinite_lr.cli import main
from hf_infinite_lr.cli.run import leave_process_group
from hf_infinite_lr.stream.loading import StreamDataset


def train(words):
    """Trains a recipe by the package's own command; the task, row and position of all samples of each micro-batch."""
    seen = []
    fetch = StreamDataset.__getitems__

    def noted(self, samples):
        seen.append([[sample.task, sample.row, sample.position] for sample in samples])
        return fetch(self, samples)

    with ExitStack() as stack:
        stack.enter_context(patch.object(StreamDataset, "__getitems__", noted))
        # The next recipe needs the process group too, and pictures take longer than these runs.
        stack.enter_context(patch("hf_infinite_lr.cli.train.leave_process_group"))
        stack.enter_context(patch("hf_infinite_lr.trainer.publishing.write_report_of"))
        stack.enter_context(patch("hf_infinite_lr.trainer.mixin.write_report"))
        assert main(["train", *words]) == 0
    return seen


def train_all(path, rank):
    """Each of the runs; one that leaves checkpoints goes on from the first of them once more, as after a kill."""
    for words in json.loads(Path(path).read_text()):
        out = Path(words[words.index("--output_dir") + 1])
        Path(f"{out}.{rank}.json").write_text(json.dumps(train(words)))
        if "--save_steps" in words:
            if rank == "0":
                (out / "releases").rename(out / "undisturbed")
            train(
                [*words, "--resume_from_checkpoint", str(out / f"checkpoint-{words[words.index('--save_steps') + 1]}")]
            )
    leave_process_group(wait=True)


if __name__ == "__main__":
    train_all(sys.argv[1], os.environ["RANK"])
