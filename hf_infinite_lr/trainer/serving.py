"""The stream as Trainer's loop reads it: one loader over all tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from hf_infinite_lr.run_plan import replay_settings
from hf_infinite_lr.stream.loading import StreamBatches, StreamDataset
from hf_infinite_lr.stream.plan import StreamPlan
from hf_infinite_lr.stream.task import Stream

from .host import Host
from .preemption import outlive_sigterm


class ServedStream(Host):
    """Serves a stream through Trainer's own loader."""

    args: Any
    stream: Stream
    plan: StreamPlan
    _annealing: bool
    _batches: StreamBatches
    _served: StreamDataset

    @property
    def _buffers(self) -> Path:
        raise NotImplementedError  # trunk and branches know where they lie

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def get_train_dataloader(self) -> DataLoader:
        """The stream's loader: the same samples per step for any number of processes, workers and accumulation."""
        self._batches = StreamBatches(
            self.stream,
            self.plan,
            self._train_batch_size,
            seed=self._data_seed,
            replay=replay_settings(self.args),
            buffers=self._buffers,
            writes=self.args.should_save and not self._annealing,
        )
        datasets = [None if task.streaming else self._reduced(task.dataset) for task in self.stream.tasks]
        collate = self._get_collator_with_removed_columns(self.data_collator, description="training")
        args = self.args
        self._served = StreamDataset(datasets, collate, self._data_seed)
        loader = DataLoader(
            self._served,
            batch_sampler=self._batches,
            collate_fn=_as_collated,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=outlive_sigterm,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
        return self.accelerator.prepare(loader)

    def _reduced(self, dataset: Any) -> Any:
        """A `datasets` table without the columns that the model does not take, so that they are never read."""
        from datasets import Dataset

        return self._remove_unused_columns(dataset, "training") if isinstance(dataset, Dataset) else dataset

    def num_examples(self, dataloader: DataLoader) -> int:
        """Samples that the whole run reads, repeats included; of other loaders, as in `Trainer`."""
        if isinstance(dataloader.dataset, StreamDataset):
            return self.plan.num_steps * self.plan.global_batch_size
        return super().num_examples(dataloader)


def _as_collated(batch: Any) -> Any:
    """[`StreamDataset`] has collated already."""
    return batch
