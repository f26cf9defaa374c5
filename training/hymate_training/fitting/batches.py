"""Which records, with which of their examples, make up each batch of an epoch, in one process or several."""

import math
from collections.abc import Callable, Iterator

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
        rng = np.random.default_rng([self.options.seed, epoch])
        most, size, records = self.options.examples_per_record, self.options.batch_size, self.dataset.groups
        if most is not None:
            records = [own if len(own) <= most else np.sort(rng.permutation(own)[:most]) for own in records]
        lengths = np.maximum.reduceat(
            self.dataset.lengths[np.concatenate(records)], np.cumsum([0, *map(len, records[:-1])])
        )
        order = rng.permutation(len(records))
        blocks = [order[at : at + MEGA_BATCH * size] for at in range(0, len(order), MEGA_BATCH * size)]
        order = np.concatenate([block[np.argsort(lengths[block], kind="stable")] for block in blocks])
        chosen = [order[at : at + size] for at in range(0, len(order), size)]
        batches = [np.concatenate([records[at] for at in chosen[place]]) for place in rng.permutation(len(chosen))]
        shared = [batches[at % len(batches)] for at in range(len(self) * self.world)]
        return shared[self.rank :: self.world]

    def steps(self, epoch: int, batches_seen: int) -> Iterator[list[dict[str, torch.Tensor]]]:
        """The epoch's batches after the first `batches_seen`, in groups that make up one optimizer step."""
        self.dataset.set_epoch(epoch)
        remaining = self.batches(epoch)[batches_seen:]
        group = []
        loader = DataLoader(
            self.dataset,
            batch_sampler=[batch.tolist() for batch in remaining],
            collate_fn=self.collator,
            generator=torch.Generator(),  # it draws a number, which must not come from the one behind dropout
        )
        for position, batch in enumerate(loader, start=1):
            group.append(batch)
            if len(group) == self.options.gradient_accumulation_steps or position == len(remaining):
                yield group
                group = []
