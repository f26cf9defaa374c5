"""The simulator: same seed, same stays; plausible values; outcomes that follow the recorded drivers and only those."""

import argparse

import numpy as np
import polars as pl
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hymate_training.cli import prepare as command
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from hymate_training.evaluation.sample import PROBLEM_TYPES
from hymate_training.readers import synthetic

NUM_RECORDS = 6000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("simulated") / "out"
    synthetic.prepare(output, num_records=NUM_RECORDS, seed=7)  # two blocks
    return output


@pytest.fixture(scope="module")
def rows(folder):
    tables = {split: pl.DataFrame(pl.from_arrow(PreparedFolder(folder).records(split))) for split in SPLITS}
    return pl.concat([table.with_columns(split=pl.lit(split)) for split, table in tables.items()])


@pytest.fixture(scope="module")
def events(folder, rows):
    names = dict(enumerate(PreparedFolder(folder).info.variables))
    long = rows.select("record_id", "time", "variable", "value").explode("time", "variable", "value")
    return long.with_columns(pl.col("variable").replace_strict(names, return_dtype=pl.String))


def task_labels(folder, task):
    return pl.concat([pl.DataFrame(pl.from_arrow(PreparedFolder(folder).task(task, split))) for split in SPLITS])


def test_the_seed_decides_everything(tmp_path):
    for name, seed in {"one": 1, "again": 1, "two": 2}.items():
        synthetic.prepare(tmp_path / name, num_records=60, seed=seed)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 2 + 3 + 3 * 5
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    assert (
        not PreparedFolder(tmp_path / "one").records("train").equals(PreparedFolder(tmp_path / "two").records("train"))
    )


def test_splits_are_disjoint_and_as_promised(rows):
    assert rows["record_id"].n_unique() == rows.height == NUM_RECORDS
    counts = dict(rows["split"].value_counts().iter_rows())
    assert counts == {"train": 4200, "validation": 900, "test": 900}


@pytest.mark.parametrize("num_records", [20, 21, 27])
def test_small_numbers_fill_every_split(num_records, tmp_path):
    synthetic.prepare(tmp_path / "out", num_records=num_records)
    assert sum(PreparedFolder(tmp_path / "out").records(split).num_rows for split in SPLITS) == num_records


@pytest.mark.parametrize(
    ("options", "message"), [({"num_records": 19}, "at least 20"), ({"seed": -1}, "not be negative")]
)
def test_impossible_requests_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        synthetic.prepare(tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_no_value_is_implausible(events, rows):
    ranges = events.group_by("variable").agg(pl.col("value").min().alias("low"), pl.col("value").max().alias("high"))
    assert set(ranges["variable"]) == set(synthetic.VARIABLES)
    for name, low, high in ranges.iter_rows():
        variable = synthetic.VARIABLES[name]
        assert low >= np.float32(variable.low), name
        assert high <= np.float32(variable.high), name
    assert events["value"].null_count() == 0
    assert events["time"].is_between(0, 48).all()
    assert rows["age"].drop_nulls().is_between(18, 95).all()
    assert rows["height"].drop_nulls().is_between(140, 205).all()


def test_stays_are_irregular_sparse_and_share_time_stamps(events, rows):
    lengths = rows["time"].list.len()
    assert 100 < lengths.median() < 300
    assert lengths.quantile(0.95) > 1.3 * lengths.quantile(0.05)
    assert rows["time"].list.n_unique().lt(lengths).all()
    measured = events.group_by("variable").agg(pl.col("record_id").n_unique() / NUM_RECORDS)
    share = dict(measured.iter_rows())
    assert share["troponin"] < 0.6
    assert share["heart_rate"] > 0.99
    for name in ("age", "sex", "height"):
        assert 0 < rows[name].null_count() < NUM_RECORDS / 2


def test_values_are_autocorrelated(events):
    pressure = events.filter(pl.col("variable") == "mean_arterial_pressure").sort("record_id", "time")
    pairs = pressure.with_columns(
        previous=pl.col("value").shift().over("record_id"), gap=pl.col("time").diff().over("record_id")
    ).drop_nulls()
    near = pairs.filter(pl.col("gap") < 2).select(pl.corr("value", "previous")).item()
    far = pairs.filter(pl.col("gap") > 8).select(pl.corr("value", "previous")).item()
    assert near > 0.75
    assert far < near - 0.1


def test_missing_not_at_random(events, folder, rows):
    """Lactate is drawn where it is high, and those who will die are sampled more often."""
    lactate = (
        events.filter(pl.col("variable") == "lactate").group_by("record_id").agg(pl.len(), pl.col("value").mean())
    )
    assert lactate.select(pl.corr("len", "value")).item() > 0.3
    died = task_labels(folder, "in_hospital_mortality").join(rows, on="record_id")
    by_outcome = dict(died.group_by("boolean_value").agg(pl.col("time").list.len().mean()).iter_rows())
    assert by_outcome[True] > 1.05 * by_outcome[False]
    missing = dict(died.group_by("boolean_value").agg(pl.col("height").is_null().mean()).iter_rows())
    assert missing[True] > missing[False]


def test_every_problem_type_is_there(folder):
    info = PreparedFolder(folder).info
    assert {task.problem_type for task in info.tasks} == set(PROBLEM_TYPES)
    died = task_labels(folder, "in_hospital_mortality")
    assert 0.15 < died["boolean_value"].mean() < 0.20
    destinations = task_labels(folder, "discharge_destination")
    assert destinations["categorical_value"].value_counts(normalize=True)["proportion"].min() > 0.1
    assert destinations.filter(pl.col("categorical_value") == "died")["record_id"].equals(
        died.filter("boolean_value")["record_id"]
    )
    phenotypes = task_labels(folder, "phenotypes").select(info.task("phenotypes").label_columns)
    assert all(0.1 < column.mean() < 0.4 for column in phenotypes)
    assert task_labels(folder, "length_of_stay")["float_value"].min() >= 2
    until = task_labels(folder, "time_to_death")
    assert until["event_time"].min() > 48
    assert until["event_observed"].equals(died["boolean_value"])


def means(events, labels, start, end):
    """(records, variables) mean values between two hours, in the order of the labels."""
    names = list(synthetic.VARIABLES)
    window = events.filter(pl.col("time").is_between(start, end, closed="left"))
    wide = window.pivot(on="variable", index="record_id", values="value", aggregate_function="mean")
    joined = labels.select("record_id").join(wide, on="record_id", how="left", maintain_order="left")
    return joined.select(pl.col(names).cast(pl.Float64).fill_null(float("nan"))).to_numpy()


def test_the_events_tell_the_outcome_nearly_as_well_as_the_risk_itself(events, folder, rows):
    labels = task_labels(folder, "in_hospital_mortality").join(rows.select("record_id", "split"), on="record_id")
    features = np.hstack([means(events, labels, *window) for window in ((0, 24), (24, 36), (36, 48))])
    train, died = (labels["split"] == "train").to_numpy(), labels["boolean_value"].to_numpy()
    model = make_pipeline(
        SimpleImputer(keep_empty_features=True), StandardScaler(), LogisticRegression(C=0.05, max_iter=300)
    )
    model.fit(features[train], died[train])
    reached = roc_auc_score(died[~train], model.decision_function(features[~train]))
    best = PreparedFolder(folder).info.extra["best_possible_auroc"]["in_hospital_mortality"]
    assert 0.87 < best < 0.91
    assert 0.83 < reached < best


def test_the_recorded_drivers_are_the_drivers(events, folder):
    """Each driver separates the dead from the living in its direction and more than any other variable does."""
    labels = task_labels(folder, "in_hospital_mortality")
    died = labels["boolean_value"].to_numpy()
    drivers = {
        driver["variable"]: driver for driver in PreparedFolder(folder).info.extra["drivers"]["in_hospital_mortality"]
    }
    effect = {}
    for name, column in zip(synthetic.VARIABLES, means(events, labels, 24, 48).T, strict=True):
        known = ~np.isnan(column)
        effect[name] = roc_auc_score(died[known], column[known]) - 0.5
    assert len(drivers) == 4
    for name, driver in drivers.items():
        assert np.sign(effect[name]) == (1 if driver["direction"] == "high" else -1) == np.sign(driver["weight"])
    others = max(abs(value) for name, value in effect.items() if name not in drivers)
    assert min(abs(effect[name]) for name in drivers) > 1.3 * others
    assert others < 0.1


@pytest.mark.parametrize(
    "driver",
    [driver for driver in synthetic.MORTALITY_DRIVERS if driver.start > 0],
    ids=lambda driver: driver.variable,
)
def test_a_late_driver_acts_late(driver, events, folder):
    labels = task_labels(folder, "in_hospital_mortality")
    column = list(synthetic.VARIABLES).index(driver.variable)
    early, late = (means(events, labels, *hours)[:, column] for hours in ((0, 12), (driver.start, driver.end)))
    both = ~np.isnan(early) & ~np.isnan(late)
    died = labels["boolean_value"].to_numpy()[both]
    separations = [abs(roc_auc_score(died, values[both]) - 0.5) for values in (early, late)]
    assert separations[1] > separations[0]


def test_the_card_and_the_command_tell_what_was_made(tmp_path):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = ["synthetic", "--output", str(tmp_path / "out"), "--num-records", "40"]
    printed = command.run(parser.parse_args([*words, "--seed", "3"]))
    for part in ("train", "28", "in_hospital_mortality", "% died", "22 variables", "70/15/15"):
        assert part in printed
    card = (tmp_path / "out" / "README.md").read_text()
    for driver in synthetic.MORTALITY_DRIVERS:
        assert f"| died | {driver.variable} | {driver.direction} | {driver.start} | {driver.end} |" in card
    assert PreparedFolder(tmp_path / "out").info.seed == 3
    with pytest.raises(ValueError, match="--overwrite"):
        command.run(parser.parse_args(words))
    command.run(parser.parse_args([*words, "--overwrite"]))
    assert PreparedFolder(tmp_path / "out").info.seed == 0
