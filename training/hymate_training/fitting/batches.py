"""Which records, with which of their examples, make up each batch of an epoch, in one process or several."""

import math
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from hymate_training.data.examples import ExampleDataset
from hymate_training.fitting.options import LoopOptions

MEGA_BATCH = 32  # batches whose records are sorted by length together


class EpochLoader:
    """Batches of records of similar lengths in an order that depends on the seed and the epoch alone, shared out to
    processes. The examples of a record, or as many as `options.examples_per_record` says, are in one batch.

    Every process gets the same number of batches, so that none waits for another; what does not divide evenly is
    made up for with the epoch's first batches.
    """

    def __init__(self, dataset: ExampleDataset, collator: Callable, options: LoopOptions, accelerator: Accelerator):
        self.dataset = dataset
        self.collator = collator
        self.options = options
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        if not len(dataset):
            raise ValueError("the training data holds no example")

    def __len__(self) -> int:
        return math.ceil(math.ceil(len(self.dataset.groups) / self.options.batch_size) / self.world)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Indices of the examples of each of this process's batches."""
        return self._everyones_batches(epoch)[self.rank :: self.world]

    def _everyones_batches(self, epoch: int) -> list[np.ndarray]:
        """Those of all processes, who take turns."""
        rng = np.random.default_rng([self.options.seed, epoch])
        size, order, bounds = self.options.batch_size, *self._chosen(rng)
        lengths = np.maximum.reduceat(self.dataset.lengths[order], bounds[:-1])
        records = rng.permutation(len(lengths))
        for at in range(0, len(records), MEGA_BATCH * size):
            block = records[at : at + MEGA_BATCH * size]
            block[:] = block[np.argsort(lengths[block], kind="stable")]
        places = rng.permutation(math.ceil(len(records) / size))
        starts = [places[at % len(places)] * size for at in range(len(self) * self.world)]
        return [
            np.concatenate([order[bounds[record] : bounds[record + 1]] for record in records[at : at + size]])
            for at in starts
        ]

    def _chosen(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's examples, record after record, and where each record begins among them."""
        groups, most = self.dataset.groups, self.options.examples_per_record
        if most is None:
            return groups.order, groups.bounds
        bounds = np.cumsum([0, *np.minimum(np.diff(groups.bounds), most)])
        order = np.empty(bounds[-1], dtype=np.int64)
        for own, begin, end in zip(groups, bounds, bounds[1:], strict=False):
            order[begin:end] = own if len(own) <= most else np.sort(rng.permutation(own)[:most])
        return order, bounds

    def steps(self, epoch: int, batches_seen: int) -> Iterator[tuple[list[dict[str, torch.Tensor]], float]]:
        """The epoch's batches after the first `batches_seen`, in groups that make up one optimizer step, each with its
        weight: the number of its examples in all processes, over that of the epoch's mean step.

        So each example counts alike. A batch holds records of similar lengths, so that without weights an example of
        a short record, which is asked rarely, would count more than one of a long record.
        """
        self.dataset.set_epoch(epoch)
        together = self.options.gradient_accumulation_steps
        everyones = self._everyones_batches(epoch)
        steps = np.arange(len(everyones)) // (together * self.world)
        counts = np.bincount(steps, [len(batch) for batch in everyones])
        weights = counts / counts.mean()
        own = everyones[self.rank :: self.world]
        loader = DataLoader(
            self.dataset,
            batch_sampler=own[batches_seen:],  # type: ignore[arg-type]  # arrays of indices, which the data set takes
            collate_fn=self.collator,
            num_workers=self.options.dataloader_num_workers,
            generator=torch.Generator(),  # it draws a number, which must not come from the one behind dropout
        )
        batches = iter(loader)
        for weight in weights[math.ceil(batches_seen / together) :]:
            yield list(islice(batches, together)), float(weight)
