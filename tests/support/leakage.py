"""Nothing from after a prediction time reaches a tensor: for tests of any prepared folder and task.

assert check_leakage(folder, "in_hospital_mortality") > 0
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hymate_training.data.collators import TaskCollator, fit_feature_extractor
from hymate_training.data.examples import Examples, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from modeling_hymate import Events


def check_leakage(folder: Path, task: str, split: str = "train", max_examples: int = 500, seed: int = 0) -> int:
    """Asserts that events after the prediction time, altered at random, change no tensor that the collator makes.

    Later events get other times (later still), variables and values, some vanish and some are new. The collator runs
    as in training, with variable dropout, and as in evaluation, with and without a limit to the number of events.
    Returns how many events were altered, so that a test can tell that there was something to leak.
    """
    extractor = fit_feature_extractor(PreparedFolder(folder))
    dataset = load_task(PreparedFolder(folder), task, split, extractor.variables)
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(dataset))
    _, first = np.unique(dataset.rows[shuffled], return_index=True)  # one prediction per record
    examples = dataset.__getitems__(shuffled[np.sort(first)][:max_examples])
    events, num_later = alter_later_events(examples, extractor.num_variables, generator)
    for options in ({}, {"max_events": 7}, {"variable_dropout": 0.3}):
        collator = TaskCollator(extractor, **options)
        before, after = collator(examples), collator(replace(examples, events=events))
        assert before.keys() == after.keys()
        for name, content in before.items():
            changed = f"{name} changes with what comes after the prediction ({options})"
            torch.testing.assert_close(after[name], content, rtol=0, atol=0, msg=changed)
    return num_later


def alter_later_events(examples: Examples, num_variables: int, generator: np.random.Generator) -> tuple[Events, int]:
    """The examples' events, those after the prediction times altered; and how many there were of those."""
    events, parts, num_later = examples.events, [], 0
    for row, limit in enumerate(examples.prediction_times):
        places = slice(events.offsets[row], events.offsets[row + 1])
        times, variables, values = (column[places] for column in (events.times, events.variable_ids, events.values))
        seen = times <= limit
        num_later += int((~seen).sum())
        size = generator.integers(0, 2 * (~seen).sum() + 3)
        # the smallest step first: an event just after the prediction is the one that leaks
        late = np.sort(
            np.nextafter(np.float32(limit), np.float32(np.inf))
            + generator.exponential(2, size) * (generator.random(size) < 0.8)
        )
        parts.append(
            (
                np.concatenate([times[seen], late.astype(times.dtype)]),
                np.concatenate(
                    [variables[seen], generator.integers(num_variables, size=size).astype(variables.dtype)]
                ),
                np.concatenate([values[seen], generator.normal(0, 1e4, size).astype(values.dtype)]),
            )
        )
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    offsets = np.concatenate([[0], np.cumsum([len(times) for times, _, _ in parts])])
    altered = replace(events, offsets=offsets, times=columns[0], variable_ids=columns[1], values=columns[2])
    return altered, num_later
