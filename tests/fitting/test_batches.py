"""Which examples make up the batches of an epoch."""

from types import SimpleNamespace

import numpy as np
import pytest

from hymate_training.data.examples import ExampleDataset, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.fitting.batches import MEGA_BATCH, EpochLoader
from hymate_training.fitting.options import LoopOptions
from tests.support.runs import TASK


def loader(dataset, options, rank=0, processes=1):
    return EpochLoader(dataset, None, options, SimpleNamespace(process_index=rank, num_processes=processes))


def test_processes_share_out_each_epoch(synthetic_folder):
    folder = PreparedFolder(synthetic_folder)
    dataset = load_task(folder, TASK, "train", folder.info.variables)
    options = LoopOptions(batch_size=16)
    shares = [loader(dataset, options, rank, 2).batches(epoch=3) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1])
    seen = np.concatenate([np.concatenate(share) for share in shares])
    assert set(seen.tolist()) == set(range(len(dataset)))
    assert len(seen) - len(dataset) <= options.batch_size
    again = loader(dataset, options, 0, 2).batches(epoch=3)
    assert all(np.array_equal(one, other) for one, other in zip(shares[0], again, strict=True))
    other_epoch = loader(dataset, options, 0, 2).batches(epoch=4)
    assert any(not np.array_equal(one, other) for one, other in zip(shares[0], other_epoch, strict=True))


def test_an_epoch_draws_a_few_examples_of_each_record(synthetic_folder):
    events = PreparedFolder(synthetic_folder).events("train")
    rows = np.repeat(np.arange(5), [1, 2, 9, 4, 7])
    times = np.concatenate([np.linspace(5, 48, count) for count in (1, 2, 9, 4, 7)]).astype(np.float32)
    dataset = ExampleDataset(events, rows, times)
    assert dataset.lengths.tolist() == [
        int((events.times[events.offsets[row] : events.offsets[row + 1]] <= time).sum())
        for row, time in zip(rows, times, strict=True)
    ]
    batches = loader(dataset, LoopOptions(batch_size=4, examples_per_record=3))
    epochs = [np.concatenate(batches.batches(epoch)) for epoch in range(30)]
    for drawn in epochs:
        assert len(set(drawn.tolist())) == len(drawn)
        assert np.bincount(rows[drawn]).tolist() == [1, 2, 3, 3, 3]
    assert len(batches) == len(batches.batches(0)) == 2  # of four records and one
    assert all(len(set(rows[batch])) <= 4 for batch in batches.batches(1))
    assert set(np.concatenate(epochs).tolist()) == set(range(len(rows)))


def as_said(dataset, options, epoch):
    """The batches of an epoch, in the words of the class."""
    rng = np.random.default_rng([options.seed, epoch])
    most, size, records = options.examples_per_record, options.batch_size, list(dataset.groups)
    if most is not None:
        records = [own if len(own) <= most else np.sort(rng.permutation(own)[:most]) for own in records]
    lengths = np.array([dataset.lengths[own].max() for own in records])
    order = rng.permutation(len(records))
    blocks = [order[at : at + MEGA_BATCH * size] for at in range(0, len(order), MEGA_BATCH * size)]
    order = np.concatenate([block[np.argsort(lengths[block], kind="stable")] for block in blocks])
    chosen = [order[at : at + size] for at in range(0, len(order), size)]
    return [np.concatenate([records[at] for at in chosen[place]]) for place in rng.permutation(len(chosen))]


@pytest.mark.parametrize("most", [None, 2])
def test_the_order_is_as_the_class_says(synthetic_folder, most):
    events = PreparedFolder(synthetic_folder).events("train")
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(events), 500)  # some records once, some several times, some never
    dataset = ExampleDataset(events, rows, rng.uniform(1, 48, 500))
    options = LoopOptions(batch_size=3, examples_per_record=most, seed=5)
    for epoch in range(3):
        expected = as_said(dataset, options, epoch)
        found = loader(dataset, options).batches(epoch)
        assert [batch.tolist() for batch in found] == [batch.tolist() for batch in expected]
        shares = [loader(dataset, options, rank, 2).batches(epoch) for rank in (0, 1)]
        for at, batch in enumerate([*expected, *expected[: len(expected) % 2]]):
            assert shares[at % 2][at // 2].tolist() == batch.tolist()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("together", [1, 3])
def test_every_example_of_an_epoch_counts_alike(synthetic_folder, processes, together):
    events = PreparedFolder(synthetic_folder).events("train")
    rng = np.random.default_rng(1)
    rows = np.repeat(np.arange(37), rng.integers(1, 60, 37))
    dataset = ExampleDataset(events, rows, rng.uniform(1, 48, len(rows)))
    options = LoopOptions(batch_size=4, gradient_accumulation_steps=together)

    def steps(rank, batches_seen=0):
        batches = loader(dataset, options, rank, processes)
        batches.collator = lambda examples: len(examples.indices)
        return list(batches.steps(2, batches_seen))

    shares = [steps(rank) for rank in range(processes)]
    weights = np.array([weight for _, weight in shares[0]])
    counts = np.array([[sum(own) for own, _ in share] for share in shares]).sum(0)
    assert len(set(counts)) > 1
    np.testing.assert_allclose(weights, counts / counts.mean())
    assert all([weight for _, weight in share] == weights.tolist() for share in shares)
    for at in range(len(weights) + 1):
        seen = sum(len(own) for own, _ in shares[0][:at])
        assert steps(0, seen) == shares[0][at:]


def test_no_examples_are_refused(synthetic_folder):
    events = PreparedFolder(synthetic_folder).events("train")
    empty = ExampleDataset(events, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
    with pytest.raises(ValueError, match="no example"):
        loader(empty, LoopOptions())
