"""Several prepared folders as one: their records, what each lacks, how often each is drawn, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hymate_training.data.collators import fit_feature_extractor
from hymate_training.data.examples import ForecastDataset, SampledDataset, load_forecast
from hymate_training.data.pool import FolderPool
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import StaticColumn
from modeling_hymate import HyMaTEFeatureExtractor
from tests.support.prepared import INFO, record_rows, write_folder

CONCEPTS = {"concepts": {"vocabulary": "0123456789abcdef", "map": [], "unmapped": {}, "unmapped_static": []}}
FIRST = replace(INFO, source="first", variables=("heart_rate", "glucose"), tasks=(), extra=CONCEPTS)
SECOND = replace(FIRST, source="second", variables=("lactate", "heart_rate"), static_columns=INFO.static_columns[:1])


def folder(path: Path, info=FIRST, **columns: list) -> Path:
    held = [column.name for column in info.static_columns]
    rows = record_rows("a", "b", **columns)
    rows = rows.drop([name for name in ("age", "sex") if name not in held])
    steps = [("train", rows), ("validation", rows.with_columns(record_id=rows["record_id"] + "v"))]
    return write_folder(path, steps, info=info)


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    second = {"value": [[1.5, 90.0], [2.5, 100.0]], "age": [50.0, 70.0]}
    return [folder(tmp_path / "first"), folder(tmp_path / "second", SECOND, **second)]


def test_records_of_all_with_the_union_of_variables(folders):
    pool = FolderPool(folders)
    assert pool.info.variables == ("heart_rate", "glucose", "lactate")
    assert pool.info.source == "first, second"
    assert [column.name for column in pool.info.static_columns] == ["age", "sex"]
    events = pool.events("train")
    assert events.offsets.tolist() == [0, 2, 4, 6, 8]
    assert pool.origins("train").tolist() == [0, 0, 1, 1]
    for row, (own, at) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        expected, found = pool.folders[own].events("train").take(np.array([at])), events.take(np.array([row]))
        names = [pool.folders[own].info.variables[index] for index in expected.variable_ids]
        assert [pool.info.variables[index] for index in found.variable_ids] == names
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.times, expected.times)
        np.testing.assert_array_equal(found.static["age"], expected.static["age"])
    assert events.static["sex"].tolist() == ["female", "female", None, None]
    assert [(one.variables, one.shared) for one in pool.overlaps] == [(2, 1), (2, 1)]


def test_one_standardization_per_concept_over_all_training_records(folders):
    extractor = fit_feature_extractor(FolderPool(folders))
    heart_rates = [80.0, 80.0, 90.0, 100.0]
    assert extractor.value_means[extractor.variables.index("heart_rate")] == pytest.approx(
        np.mean(heart_rates), abs=0.1
    )
    (age,) = (column for column in extractor.static_columns if column["name"] == "age")
    assert age["mean"] == pytest.approx(np.mean([61.0, 50.0, 70.0]), abs=0.1)
    encoded = extractor.encode(FolderPool(folders).events("train"))["static_values"]
    missing = encoded[:, extractor.static_feature_names.index("sex missing")]
    assert missing.tolist() == [0, 0, 1, 1]


def test_a_single_folder_is_a_pool_as_it_is(synthetic_folder):
    own = PreparedFolder(synthetic_folder)
    pool = FolderPool([own])
    assert pool.info is own.info
    assert pool.events("train") is own.events("train")
    assert pool.fingerprints == [own.fingerprint]
    dataset = load_forecast(pool, "train", own.info.variables, 12.0)
    for epoch in (0, 1):
        sampled = SampledDataset(dataset, temperature=3.0, seed=0)
        sampled.set_epoch(epoch)
        np.testing.assert_array_equal(sampled.rows, dataset.rows)
        np.testing.assert_array_equal(sampled.lengths, dataset.lengths)


def test_folders_that_do_not_fit_are_refused_by_name(folders, tmp_path):
    plain = folder(tmp_path / "plain", replace(FIRST, extra={}))
    with pytest.raises(ValueError, match=r"plain was not prepared with --concepts.*run `hymate prepare` again"):
        FolderPool([*folders, plain])
    other = {"concepts": CONCEPTS["concepts"] | {"vocabulary": "fedcba9876543210"}}
    older = folder(tmp_path / "older", replace(SECOND, extra=other), age=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"older was prepared with another vocabulary of concepts than .*first"):
        FolderPool([folders[0], older])
    with pytest.raises(ValueError, match="first holds what another of the folders holds"):
        FolderPool([*folders, folders[0]])
    apart = folder(tmp_path / "apart", replace(FIRST, variables=("ph", "lipase")))
    with pytest.raises(ValueError, match="apart shares no concept with the other folders"):
        FolderPool([*folders, apart])
    with pytest.raises(ValueError, match="at least one prepared folder"):
        FolderPool([])
    long = FolderPool([folder(tmp_path / "long", time=[[0.0, 5.0]] * 2), folders[1]])
    with pytest.raises(ValueError, match=r"second: no record of split 'train' lasts longer than min_observed_hours=2"):
        load_forecast(long, "train", long.info.variables, 2)


def dataset_of(events, sizes: list[int]) -> ForecastDataset:
    origins = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.arange(len(origins))
    return ForecastDataset(events, rows, np.full(len(rows), 48.0), origins)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, 1e6])
def test_a_temperature_shares_out_an_epoch(synthetic_folder, temperature):
    sizes = [100, 20, 5]
    events = PreparedFolder(synthetic_folder).events("train")
    dataset = dataset_of(events, sizes)
    sampled = SampledDataset(dataset, temperature, seed=3)
    expected = np.array(sizes) ** (1 / temperature)
    np.testing.assert_allclose(sampled.shares, expected / expected.sum(), atol=1 / len(dataset))
    seen = []
    for epoch in range(4):
        sampled.set_epoch(epoch)
        assert len(sampled) == len(dataset)
        times = np.bincount(sampled.drawn, minlength=len(dataset))
        for source, quota in enumerate(sampled.quotas):
            own = times[dataset.origins == source]
            assert own.sum() == quota
            assert own.max() - own.min() <= 1  # none is drawn twice before every other was drawn once
        np.testing.assert_array_equal(sampled.rows, dataset.rows[sampled.drawn])
        np.testing.assert_array_equal(sampled.lengths, dataset.lengths[sampled.drawn])
        seen.append(sampled.drawn.copy())
    again = SampledDataset(dataset, temperature, seed=3)
    again.set_epoch(3)
    np.testing.assert_array_equal(again.drawn, seen[-1])
    assert (temperature == 1.0) == all(np.array_equal(seen[0], other) for other in seen)


def test_a_record_drawn_twice_is_visited_twice(synthetic_folder):
    dataset = dataset_of(PreparedFolder(synthetic_folder).events("train"), [20, 2])
    sampled = SampledDataset(dataset, temperature=1e6, seed=0)
    twice = np.flatnonzero(sampled.rows == 20)
    assert len(twice) > 1
    examples = sampled.__getitems__(twice.tolist())
    assert len(examples.events) == len(twice)
    assert examples.records.tolist() == list(range(len(twice)))
    assert examples.asks_once
    assert [group.tolist() for group in sampled.groups] == [[at] for at in range(len(sampled))]


def test_static_columns_keep_the_order_of_their_first_folder(tmp_path):
    more = replace(SECOND, static_columns=(StaticColumn("sex", "categorical", ("female", "male")),))
    one, other = folder(tmp_path / "one", SECOND), folder(tmp_path / "other", more)
    pool = FolderPool([one, other])
    assert [column.name for column in pool.info.static_columns] == ["age", "sex"]
    np.testing.assert_array_equal(pool.events("train").static["age"], [np.nan, 61.0, np.nan, np.nan])


def test_units_are_those_of_each_source(tmp_path):
    units = {"heart_rate": "bpm", "glucose": "", "of another": "mg"}, {"heart_rate": "1/min", "lactate": "mmol/L"}
    infos = (
        replace(info, extra=CONCEPTS | {"units": found}) for info, found in zip((FIRST, SECOND), units, strict=True)
    )
    paths = [tmp_path / "first", tmp_path / "second"]
    for path, info in zip(paths, infos, strict=True):
        folder(
            path,
            info,
            **({"value": [[1.5, 90.0], [2.5, 100.0]], "age": [50.0, 70.0]} if info.source == "second" else {}),
        )
    extractor = fit_feature_extractor(FolderPool(paths))
    assert extractor.units == {"heart_rate": "bpm", "lactate": "mmol/L"}
    extractor.save_pretrained(tmp_path / "saved")
    assert HyMaTEFeatureExtractor.from_pretrained(tmp_path / "saved").units == extractor.units
    with pytest.raises(ValueError, match="units must name variables or static columns, got 'pulse'"):
        HyMaTEFeatureExtractor([], units={"pulse": "bpm"})
