"""The infinite schedule in a bare Accelerate loop: two tasks, a branch for each release, no Trainer.

Run `python recipes/accelerate_loop.py`, or on several processes `accelerate launch recipes/accelerate_loop.py`.

The scheduler is not prepared. `accelerator.prepare(scheduler)` would make it tick once for every process after each
step, so that two processes would run through the curve twice as fast. Stepped by hand, once after every optimizer
step, the rates are the same on any number of processes. So are the batches, of which each process has its share, and
what is learned, where that number divides a batch.
"""

import argparse
import inspect
import json
import pydoc_data.topics
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hf_infinite_lr import get_infinite_schedule

WINDOW = 32
BATCH = 32  # windows of a step, over all processes


def windows_of(text: str) -> TensorDataset:
    """Cut a text into windows of bytes."""
    tokens = torch.tensor(list(text.encode()), dtype=torch.long)
    return TensorDataset(tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW))


class NextByte(nn.Module):
    """Predicts the next byte from the one before: an embedding and a linear head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the mean loss in nats per byte."""
        logits = self.head(self.embedding(tokens[:, :-1]))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def main() -> None:
    """Train on two tasks and print the rate and the loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task_steps", type=int, default=40)
    parser.add_argument("--log_file", type=Path, help="write the rate and the loss of every step here, as JSON")
    arguments = parser.parse_args()

    # A seedable sampler has one order, whatever the number of processes.
    seeded = DataLoaderConfiguration(use_seedable_sampler=True)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), dataloader_config=seeded)
    accelerator.print(f"training on {accelerator.num_processes} process(es)")
    torch.manual_seed(0)
    tasks = [windows_of("".join(pydoc_data.topics.topics.values())), windows_of(inspect.getsource(argparse))]
    model = NextByte()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = get_infinite_schedule(optimizer, num_warmup_steps=4, task_steps=[arguments.task_steps] * len(tasks))
    size = BATCH // accelerator.num_processes
    loaders = [DataLoader(task, batch_size=size, shuffle=True, drop_last=True) for task in tasks]
    model, optimizer, *loaders = accelerator.prepare(model, optimizer, *loaders)  # all but the scheduler

    rates, losses = [], []
    trunk = None
    branch_steps = {point.first_step for point in scheduler.schedule.branch_points}
    for task, loader in enumerate(loaders):
        if trunk is not None:  # back from the released branch to the trunk
            model.load_state_dict(trunk["model"])
            optimizer.load_state_dict(trunk["optimizer"])
            scheduler.set_position(task * arguments.task_steps)
        passes = chain.from_iterable(repeat(loader))  # as many as the steps take
        for (tokens,) in islice(passes, arguments.task_steps):
            if scheduler.last_epoch in branch_steps:
                trunk = {"model": copy_of(model.state_dict()), "optimizer": copy_of(optimizer.state_dict())}
            rates.append(optimizer.param_groups[0]["lr"])
            loss = model(tokens)
            losses.append(accelerator.reduce(loss.detach(), "mean").item())
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        accelerator.print(f"task {task + 1}: {len(rates)} steps, loss {losses[-1]:.3f} nats per byte")

    if arguments.log_file is not None and accelerator.is_main_process:
        arguments.log_file.write_text(json.dumps({"rates": rates, "losses": losses}))
    accelerator.wait_for_everyone()
    # The wrapped model first: were it the last to hold the process group, its end could wait for itself (gloo).
    model, optimizer, *loaders = accelerator.free_memory(model, optimizer, *loaders)
    accelerator.end_training()


def copy_of(state: object) -> object:
    """Copy a state dict, tensors included."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: copy_of(value) for key, value in state.items()}
    return [copy_of(value) for value in state] if isinstance(state, list) else state


if __name__ == "__main__":
    main()
