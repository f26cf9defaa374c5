"""Which examples make up each batch of an epoch, in one process or several."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from hymate_training.data.examples import ExampleDataset
from hymate_training.fitting.options import LoopOptions

MEGA_BATCH = 32  # batches whose examples are sorted by length together


class EpochLoader:
    """Batches of similar lengths in an order that depends on the seed and the epoch alone, shared out to processes.

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
        size = len(self._examples(np.random.default_rng(0)))
        return math.ceil(math.ceil(size / self.options.batch_size) / self.world)

    def _examples(self, rng: np.random.Generator) -> np.ndarray:
        """The examples of an epoch in random order, of each record at most `options.examples_per_record`."""
        order = rng.permutation(len(self.dataset))
        most = self.options.examples_per_record
        if most is None:
            return order
        rows = self.dataset.rows[order]
        grouped = np.argsort(rows, kind="stable")
        starts = np.flatnonzero(np.diff(rows[grouped], prepend=-1))
        rank = np.empty(len(order), dtype=np.int64)
        rank[grouped] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        return order[rank < most]

    def batches(self, epoch: int) -> list[list[int]]:
        """Indices of the examples of each of this process's batches."""
        rng = np.random.default_rng([self.options.seed, epoch])
        lengths, size = self.dataset.lengths, self.options.batch_size
        order = self._examples(rng)
        blocks = [order[at : at + MEGA_BATCH * size] for at in range(0, len(order), MEGA_BATCH * size)]
        order = np.concatenate([block[np.argsort(lengths[block], kind="stable")] for block in blocks])
        batches = [order[at : at + size].tolist() for at in range(0, len(order), size)]
        batches = [batches[at] for at in rng.permutation(len(batches))]
        shared = [batches[at % len(batches)] for at in range(len(self) * self.world)]
        return shared[self.rank :: self.world]

    def steps(self, epoch: int, batches_seen: int) -> Iterator[list[dict[str, torch.Tensor]]]:
        """The epoch's batches after the first `batches_seen`, in groups that make up one optimizer step."""
        self.dataset.set_epoch(epoch)
        remaining = self.batches(epoch)[batches_seen:]
        group = []
        loader = DataLoader(
            self.dataset,
            batch_sampler=remaining,
            collate_fn=self.collator,
            generator=torch.Generator(),  # it draws a number, which must not come from the one behind dropout
        )
        for position, batch in enumerate(loader, start=1):
            group.append(batch)
            if len(group) == self.options.gradient_accumulation_steps or position == len(remaining):
                yield group
                group = []
