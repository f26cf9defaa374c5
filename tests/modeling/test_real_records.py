"""The contracts Prefix and Stream on real records: ICU stays of PhysioNet 2012 and 2019, years of MIMIC-IV codes."""

import itertools
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForSequenceClassification
from tests.support.helpers import close, make_model


def physionet2012(folder: Path) -> pl.DataFrame:
    with tarfile.open(folder / "set-b.tar.gz") as archive:
        members = itertools.islice((member for member in archive if member.isfile()), 6)
        texts = {Path(member.name).stem: archive.extractfile(member).read() for member in members}
    stays = [
        pl.read_csv(text, columns=["Time", "Parameter", "Value"], schema_overrides={"Value": pl.Float64})
        .with_columns(record_id=pl.lit(name), hours=pl.col("Time").str.split(":"))
        .filter(pl.col("Parameter").is_not_null() & (pl.col("Parameter") != "RecordID"))
        for name, text in texts.items()
    ]
    hours = pl.col("hours").list.get(0).cast(pl.Float64) + pl.col("hours").list.get(1).cast(pl.Float64) / 60
    return pl.concat(stays).select("record_id", time=hours, variable="Parameter", value="Value")


def physionet2019(folder: Path) -> pl.DataFrame:
    patients = []
    with zipfile.ZipFile(folder / "training_setA.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".psv")][:6]
        for name in names:
            hours = pl.read_csv(archive.read(name), separator="|", null_values="NaN", infer_schema_length=None)
            measured = hours.drop("SepsisLabel", "Age", "Gender").with_row_index("time")
            events = measured.unpivot(index="time").drop_nulls().with_columns(pl.col("value").cast(pl.Float64))
            patients.append(events.with_columns(pl.lit(name).alias("record_id")))
    return pl.concat(patients).with_columns(pl.col("time").cast(pl.Float64))


def meds(folder: Path) -> pl.DataFrame:
    """The subject with most events of all, and the hours since its first."""
    shards = [pl.read_parquet(path) for path in (folder / "data").rglob("*.parquet")]
    events = pl.concat(
        [shard.select("subject_id", "time", "code", "numeric_value").drop_nulls("time") for shard in shards]
    )
    longest = events["subject_id"].value_counts(sort=True)["subject_id"][0]
    found = events.filter(subject_id=longest).sort("time")
    hours = (pl.col("time") - pl.col("time").min()).dt.total_seconds() / 3600
    value = pl.col("numeric_value").cast(pl.Float64).replace([np.inf, -np.inf], None)
    return found.select(record_id=pl.lit("longest"), time=hours, variable="code", value=value)


SOURCES: dict[str, tuple[str, Callable[[Path], pl.DataFrame], int]] = {
    "physionet2012": ("physionet2012", physionet2012, 49),
    "physionet2019": ("physionet2019", physionet2019, 30),
    "meds": ("mimic-iv-demo-meds", meds, 6),
}


@pytest.fixture(scope="module", params=SOURCES)
def asked(request, shared_data):
    """Events, a model and feature extractor for them, and times at which to ask: every hour, or a few times in years,
    where a record is cut in the midst of events of one time stamp's neighbors."""
    name, read, predictions = SOURCES[request.param]
    events = read(shared_data(name))
    variables = events["variable"].unique().sort().to_list()
    extractor = HyMaTEFeatureExtractor.fit(events, variables)
    model = make_model(
        HyMaTEForSequenceClassification,
        num_variables=len(variables),
        num_static_features=0,
        num_statistic_bins=2,
        num_mamba_layers=1,
        time_scale=extractor.time_scale,
    )
    if request.param == "meds":
        assert len(events) > 50_000
        times = np.quantile(events["time"].unique().to_numpy(), np.linspace(0.02, 1, predictions), method="nearest")
    else:
        times = np.arange(predictions, dtype=np.float64)
    return events, extractor, model, times


@torch.no_grad()
def test_all_times_in_one_pass_are_cutting_and_running(asked):
    events, extractor, model, times = asked
    records = events["record_id"].n_unique()
    found = model(**extractor(events, prediction_times=times)).logits
    assert found.shape == (records, len(times), 2)
    rows = {record_id: row for row, record_id in enumerate(events["record_id"].unique(maintain_order=True))}
    for place, time in enumerate(times):
        # the file's own numbers of hours: what is cut is cut in hours, before anything is scaled
        kept = events.filter(pl.col("time").cast(pl.Float32) <= np.float32(time))
        if kept.is_empty():
            continue
        cut = model(**extractor(kept, prediction_times=[time])).logits[:, 0]
        chosen = [rows[record_id] for record_id in kept["record_id"].unique(maintain_order=True)]
        close(found[chosen, place], cut)


@torch.no_grad()
def test_a_stream_in_random_chunks_gives_what_the_record_gives(asked):
    events, extractor, model, _ = asked
    first = events.filter(record_id=events["record_id"][0])
    inputs = {name: tensor for name, tensor in extractor(first).items() if name != "static_values"}
    length = inputs["values"].shape[1]
    generator = np.random.default_rng(0)
    ends = np.unique(np.concatenate([generator.integers(1, length, 12), np.arange(1, 40), [length]]))
    state = model.start_stream()
    for begin, end in zip([0, *ends], ends, strict=False):
        outputs, state = model.stream(state, **{name: tensor[:, begin:end] for name, tensor in inputs.items()})
        if end in ends[::10] or end == length:
            seen = {name: tensor[:, :end] for name, tensor in inputs.items()}
            close(outputs.logits, model(**seen).logits)
