"""Microseconds per new event: a stream after many or few events, and beside it XGBoost on the same stays.

    hymate prepare physionet2012 --raw DIR --output runs/physionet2012
    python -m benchmarks.streaming --data runs/physionet2012 --write

One thread. The first table follows a simulated patient per length, each event at a time of its own; lengths take
turns, so that whatever else the machine does falls on all of them. The second feeds real stays, whose events often
share a time, event by event and predicts after each. XGBoost has the features of the evidence page, in two ways:
all of them anew from the stay so far, and updated in place by the one event, which is the least that they can cost.
"""

import argparse
import math
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xgboost
from tqdm import tqdm

import hymate_native
from benchmarks.measure import processor, titled_table, write_section
from experiments.evidence.studies import STUDIES
from hymate_training.data.examples import TaskDataset, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.summary_features import EARLY_HOURS, ONCE_FEATURES, summary_features
from hymate_training.inference.checkpoints import Checkpoint, load_checkpoint
from modeling_hymate import HyMaTEFeatureExtractor, Stream, StreamState

TASK = STUDIES["mortality"].task
CHECKPOINT = Path(__file__).parents[1] / "model_cards" / "hymate-physionet2012-mortality"
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
SECTION = "Event by event"
STATISTICS = ONCE_FEATURES.whole
LENGTHS = (100, 1_000, 10_000, 32_000)
AT_A_TIME = 20  # events of one length in a row
TREES = {"max_depth": 4, "min_child_weight": 5, "colsample_bytree": 0.3, "eta": 0.03, "subsample": 0.7}
ROUNDS = 300
PACKAGES = ("hymate", "torch", "xgboost-cpu", "numpy")
INTRODUCTION = """\
A stream takes one event and answers. `python -m benchmarks.streaming --data PREPARED --write` wrote this section:
PREPARED is PhysioNet 2012 as `hymate prepare physionet2012` leaves it, and the model is
`model_cards/hymate-physionet2012-mortality`. One thread, one patient. `model.stream` takes tensors,
`hymate.Stream.add` a name and a number in clinical units. In the first table, events are simulated, each at a time
of its own, and the four lengths take turns. In the second they are those of real stays, of which many share a
time: the stream reads events of one time again, until the next time comes. XGBoost has the features of
[evidence](evidence.md), with each event either updated in place, which is the least that they can cost, or
computed anew from the stay so far."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="Folder of a fine-tuned model.")
    parser.add_argument("--data", type=Path, help="Prepared folder of PhysioNet 2012; without it, no real stays.")
    parser.add_argument("--events", type=int, default=2000, help="Events measured at each length (default: 2000).")
    parser.add_argument("--stays", type=int, default=20, help="Stays of the validation split (default: 20).")
    parser.add_argument("--write", action="store_true", help="Put the tables into docs/speed.md.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(args.checkpoint)
    checkpoint.model.eval()
    tables = [INTRODUCTION, _head(), length_table(checkpoint, args.events)]
    if args.data:
        tables.append(stay_table(checkpoint, args.data, args.stays))
    text = "\n\n".join(tables)
    print(text)
    if args.write:
        write_section(PAGE, SECTION, text)


def _head() -> str:
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    build = hymate_native.selected_build() if hymate_native.is_available() else None
    return f"{processor()}, 1 thread, kernels {build}, Python {platform.python_version()}, {versions}"


# ------------------------------------------------------------------------------------------- past events


def length_table(checkpoint: Checkpoint, num_events: int) -> str:
    """Time of one event, and bytes of a state, after few and after many events."""
    followed = {length: _Followed(checkpoint, length, num_events) for length in LENGTHS}
    for _ in tqdm(range(num_events // AT_A_TIME), desc="lengths"):
        for patient in followed.values():
            patient.go_on(AT_A_TIME)
    rows = [[f"{length:,}", *patient.row()] for length, patient in followed.items()]
    columns = ("past events", "model.stream, µs: p50", "p99", "hymate.Stream.add, µs: p50", "p99", "state, bytes")
    medians = [np.median(patient.seconds[0]) for patient in followed.values()]
    ratio = f"The largest median of `model.stream` is {max(medians) / min(medians):.2f} times the smallest."
    return f"{titled_table('One event after many', columns, rows)}\n\n{ratio}"


class _Followed:
    """A simulated patient, whose events are at times of their own and of whichever variable."""

    def __init__(self, checkpoint: Checkpoint, length: int, num_events: int):
        self.model, self.extractor = checkpoint.model, checkpoint.extractor
        rng, total = np.random.default_rng(length), length + 1 + num_events
        hours = np.sort(rng.uniform(0, self.extractor.time_scale, total))
        ids = rng.integers(0, self.extractor.num_variables, total)
        ranges = np.array(self.extractor.value_ranges)[ids]
        values = rng.uniform(ranges[:, 0], ranges[:, 1])
        names = [self.extractor.variables[index] for index in ids]
        self.events = [
            {"time": hour, "variable": name, "value": value}
            for hour, name, value in zip(hours.tolist(), names, values.tolist(), strict=True)
        ]
        static = {column["name"]: None for column in self.extractor.static_columns}
        self.stream = Stream(self.model, self.extractor, static or None)
        past = {"time": hours[:length], "variable": names[:length], "value": values[:length]}
        self.stream.add(past)
        self.state = self.stream.state
        self.tensors = list(_events_of(self.extractor, hours, ids, values))
        self.at = length
        self.seconds: tuple[list[float], list[float]] = ([], [])

    def go_on(self, count: int):
        for at in range(self.at, self.at + count):
            taken, (_, self.state) = _timed(partial(self.model.stream, self.state, **self.tensors[at]))
            self.seconds[0].append(taken)
        for at in range(self.at, self.at + count):
            taken, _ = _timed(partial(self.stream.add, self.events[at]))
            self.seconds[1].append(taken)
        self.at += count

    def row(self) -> list[object]:
        return [*_percentiles(self.seconds[0]), *_percentiles(self.seconds[1]), f"{_bytes(self.state):,}"]


def _events_of(
    extractor: HyMaTEFeatureExtractor, hours: np.ndarray, ids: np.ndarray, values: np.ndarray
) -> Iterator[dict[str, torch.Tensor]]:
    """What `model.stream` takes, event by event."""
    standardized = extractor.standardize(ids, values).astype(np.float32)
    times = (hours / extractor.time_scale).astype(np.float32)
    columns: dict[str, np.ndarray] = {
        "values": np.nan_to_num(standardized),
        "times": times,
        "variable_ids": ids.astype(np.int64),
        "value_mask": ~np.isnan(standardized),
    }
    for at in range(len(hours)):
        yield {name: torch.from_numpy(column[at : at + 1].reshape(1, 1)) for name, column in columns.items()}


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def _percentiles(seconds: list[float]) -> list[float]:
    return [float(np.percentile(seconds, percent)) * 1e6 for percent in (50, 99)]


def _bytes(state: StreamState) -> int:
    return sum(tensor.nbytes for tensor in state.to_dict().values())


# -------------------------------------------------------------------------------------------- real stays


class RunningFeatures:
    """`summary_features` of one stay, of which each event updates those of its variable."""

    def __init__(self, num_variables: int, static: np.ndarray):
        self.row = np.concatenate([np.full(num_variables * len(STATISTICS), np.nan), static])
        self.row[len(STATISTICS) - 1 : num_variables * len(STATISTICS) : len(STATISTICS)] = 0  # counts
        self._sums = [[0, 0.0, 0.0, 0, 0.0] for _ in range(num_variables)]

    def add(self, hours: float, variable: int, value: float):
        """Takes an event; NaN is one without a number."""
        at = variable * len(STATISTICS)
        row = self.row
        row[at + len(STATISTICS) - 1] += 1
        if math.isnan(value):
            return
        sums = self._sums[variable]
        sums[0] += 1
        sums[1] += value
        sums[2] += value * value
        if sums[0] == 1:
            row[at] = row[at + 2] = row[at + 3] = value
        else:
            row[at + 2], row[at + 3] = min(row[at + 2], value), max(row[at + 3], value)
        mean = sums[1] / sums[0]
        row[at + 1], row[at + 4] = value, mean
        row[at + 5] = max(0.0, sums[2] / sums[0] - mean * mean) ** 0.5
        if hours <= EARLY_HOURS:
            sums[3] += 1
            sums[4] += value
            row[at + 6] = sums[4] / sums[3]


def stay_table(checkpoint: Checkpoint, data: Path, num_stays: int) -> str:
    """Time of one event of real stays, features and prediction included, of each contestant."""
    folder, extractor = PreparedFolder(data), checkpoint.extractor
    booster = _fit_trees(load_task(folder, TASK, "train", extractor.variables), extractor)
    dataset = load_task(folder, TASK, "validation", extractor.variables)
    contestants: dict[str, Callable] = {
        "HyMaTE, model.stream": _by_model,
        "HyMaTE, hymate.Stream.add": _by_stream,
        "XGBoost, features updated": _by_updated_trees,
        "XGBoost, features anew": _by_trees,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for stay in tqdm(range(num_stays), desc="stays"):
        one = TaskDataset(dataset.events.take(dataset.rows[[stay]]), np.array([0]), np.array([np.inf]), np.array([0]))
        for name, follow in contestants.items():
            seconds[name] += list(follow(checkpoint, booster, one))
    events = len(next(iter(seconds.values())))
    rows = [[name, *_percentiles(found), f"{1 / np.mean(found):,.0f}"] for name, found in seconds.items()]
    table = titled_table(
        f"{events:,} events of {num_stays} stays of PhysioNet 2012",
        ("a prediction after each event by", "µs per event: p50", "p99", "events/s"),
        rows,
    )
    sizes = f"XGBoost: {ROUNDS} trees of depth {TREES['max_depth']} on {booster.num_features()} features."
    return f"{table}\n\n{sizes}"


def _fit_trees(train: TaskDataset, extractor: HyMaTEFeatureExtractor) -> xgboost.Booster:
    settings = {"objective": "binary:logistic", "nthread": 1, "seed": 0} | TREES
    return xgboost.train(
        settings, xgboost.DMatrix(summary_features(train, extractor, ONCE_FEATURES), train.labels), ROUNDS
    )


def _static_tensor(checkpoint: Checkpoint, stay: TaskDataset) -> torch.Tensor:
    return torch.from_numpy(checkpoint.extractor.encode_static(stay.events.static, 1))


def _by_model(checkpoint: Checkpoint, _: xgboost.Booster, stay: TaskDataset) -> Iterator[float]:
    model, events = checkpoint.model, stay.events
    state = model.start_stream(_static_tensor(checkpoint, stay))
    for event in _events_of(checkpoint.extractor, events.times, events.variable_ids, events.values):
        taken, (_, state) = _timed(partial(model.stream, state, **event))
        yield taken


def _by_stream(checkpoint: Checkpoint, _: xgboost.Booster, stay: TaskDataset) -> Iterator[float]:
    events, names = stay.events, checkpoint.extractor.variables
    static = {name: column[0] for name, column in events.static.items()}
    stream = Stream(checkpoint.model, checkpoint.extractor, static)
    columns = (events.times.tolist(), events.variable_ids.tolist(), events.values.tolist())
    for hours, variable, value in zip(*columns, strict=True):
        event = {"time": hours, "variable": names[variable], "value": value}
        taken, _ = _timed(partial(stream.add, event))
        yield taken


def _by_updated_trees(checkpoint: Checkpoint, booster: xgboost.Booster, stay: TaskDataset) -> Iterator[float]:
    events, extractor = stay.events, checkpoint.extractor
    features = RunningFeatures(extractor.num_variables, extractor.encode_static(events.static, 1)[0])
    columns = (events.times.tolist(), events.variable_ids.tolist(), events.values.tolist())

    def predict(event: tuple[float, int, float]) -> Any:
        features.add(*event)
        return booster.inplace_predict(features.row[None])

    for event in zip(*columns, strict=True):
        taken, _ = _timed(partial(predict, event))
        yield taken
    np.testing.assert_allclose(
        features.row[None], summary_features(stay, extractor, ONCE_FEATURES), rtol=1e-5, atol=1e-4
    )


def _by_trees(checkpoint: Checkpoint, booster: xgboost.Booster, stay: TaskDataset) -> Iterator[float]:
    whole = np.arange(len(stay.events.times))

    def predict(end: int) -> Any:
        so_far = TaskDataset(stay.events.select(whole < end), stay.rows, stay.prediction_times, stay.labels)
        return booster.inplace_predict(summary_features(so_far, checkpoint.extractor, ONCE_FEATURES))

    for end in range(1, len(whole) + 1):
        taken, _ = _timed(partial(predict, end))
        yield taken


if __name__ == "__main__":
    main()
