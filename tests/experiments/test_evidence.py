"""The evidence of docs/evidence.md: folds, paired differences, baselines, and one unit from start to end."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.evidence import baselines, units
from experiments.evidence.folds import NUM_FOLDS, assign_folds, prepare_fold
from experiments.evidence.models import Model
from experiments.evidence.studies import STUDIES
from experiments.evidence.tables import coverage_of, decision_table, difference_tables, paired, write_page
from experiments.evidence.units import Place, open_place, run_unit
from hymate_training.cli.options import read_recipe
from hymate_training.data.collators import fit_feature_extractor
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation import trees
from hymate_training.evaluation.decisions import net_benefit
from hymate_training.evaluation.resampling import Resampler
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.fitting.finetuning import FinetuneOptions
from modeling_hymate import HyMaTEConfig
from tests.support.sepsis_files import make_hospital, write_hospital

STUDY = STUDIES["mortality"]
TASK, MODELS = STUDY.task, STUDY.models


@pytest.fixture(scope="module")
def folds(synthetic_folder, tmp_path_factory) -> list[list[str]]:
    return assign_folds(synthetic_folder, tmp_path_factory.mktemp("folds") / "folds.json", STUDY.splits)


@pytest.fixture(scope="module")
def fold_folder(synthetic_folder, folds, tmp_path_factory):
    output = tmp_path_factory.mktemp("fold") / "prepared"
    return prepare_fold(synthetic_folder, folds, 1, 100, True, output, STUDY.splits)


def test_folds_partition_the_records_and_are_kept(synthetic_folder, folds, tmp_path):
    names = [name for fold in folds for name in fold]
    own = [
        name
        for split in ("train", "validation")
        for name in PreparedFolder(synthetic_folder).records(split)["record_id"]
    ]
    assert sorted(names) == sorted(str(name) for name in own)
    assert len(folds) == NUM_FOLDS
    path = tmp_path / "folds.json"
    assert assign_folds(synthetic_folder, path, STUDY.splits) == folds
    path.write_text(json.dumps({"folds": [["somebody"]]}))
    with pytest.raises(ValueError, match="lists other records"):
        assign_folds(synthetic_folder, path, STUDY.splits)


def test_a_fold_is_the_test_split_and_fewer_labels_are_among_more(synthetic_folder, folds, fold_folder, tmp_path):
    assert PreparedFolder(fold_folder).records("test")["record_id"].to_pylist() == folds[1]
    few = prepare_fold(synthetic_folder, folds, 1, 10, False, tmp_path / "few", STUDY.splits)
    assert PreparedFolder(few).info.static_columns == ()
    assert (
        PreparedFolder(few).records("train")["record_id"] == PreparedFolder(fold_folder).records("train")["record_id"]
    )
    for split in ("validation", "test"):
        assert PreparedFolder(few).task(TASK, split).equals(PreparedFolder(fold_folder).task(TASK, split))
    some, every = (
        set(PreparedFolder(folder).task(TASK, "train")["record_id"].to_pylist()) for folder in (few, fold_folder)
    )
    assert some < every
    assert len(some) == len(every) // 10


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_every_row_has_options_that_exist(study):
    recipe = read_recipe(study.recipe)
    for model in study.models.values():
        if model.baseline is None:
            FinetuneOptions(**recipe["finetune"] | model.finetune)
            HyMaTEConfig(num_variables=3, **recipe["model"] | model.model)
    assert set(study.few_labels) <= set(study.models)


@pytest.mark.parametrize("name", ["xgboost", "logistic_regression", "gru_d"])
def test_baselines_learn(name, fold_folder, monkeypatch):
    monkeypatch.setattr(trees, "ONCE", replace(trees.ONCE, settings=trees.ONCE.settings[:2]))
    monkeypatch.setattr(baselines, "GRU_EPOCHS", 2)
    if name == "xgboost":
        pytest.importorskip("xgboost")
    probabilities = MODELS[name].baseline(fold_folder, TASK, 0)("test")
    dataset = load_task(PreparedFolder(fold_folder), TASK, "test", PreparedFolder(fold_folder).info.variables)
    assert probabilities.shape == dataset.labels.shape
    assert ((probabilities > 0) & (probabilities < 1)).all()
    assert np.array_equal(probabilities, MODELS[name].baseline(fold_folder, TASK, 0)("test"))


def test_the_grid_of_gru_d_counts_hours_since_a_measurement(fold_folder):
    extractor = fit_feature_extractor(PreparedFolder(fold_folder))
    dataset = load_task(PreparedFolder(fold_folder), TASK, "test", extractor.variables)
    values, mask, since = baselines.hourly_grid(dataset, extractor).numpy()
    assert mask.any()
    assert (values[mask == 0] == 0).all()
    assert (since[:, 0] == 0).all()
    expected = np.where(mask[:, :-1] > 0, 1, since[:, :-1] * 24 + 1) / 24
    np.testing.assert_allclose(since[:, 1:], expected, atol=1e-5)


def unit_of(metric: float, shift: float) -> dict:
    samples = (metric + shift + np.linspace(-0.1, 0.1, 101)).tolist()
    metrics = dict.fromkeys(("auroc", "auprc", "log_loss", "brier", "expected_calibration_error"), metric)
    return {"metrics": metrics, "samples": dict.fromkeys(("auroc", "auprc", "log_loss"), samples), "seconds": 1}


def test_differences_are_paired_by_fold_and_resample():
    ours, theirs = ({fold: unit_of(base + fold / 100, 0.0) for fold in range(3)} for base in (0.80, 0.78))
    theirs.pop(2)
    mean, interval, won, of = paired(ours, theirs, "auroc")
    assert mean == pytest.approx(0.02)
    assert interval == pytest.approx([0.02, 0.02])  # the resamples are the same, so their noise cancels
    assert (won, of) == (2, 2)


def test_a_unit_is_run_once_and_fills_the_page(synthetic_folder, folds, tmp_path):
    small = {"hidden_size": 16, "num_attention_heads": 2}
    hymate = Model("HyMaTE", model=small, finetune={"auxiliary_tasks": "length_of_stay"})
    study = replace(STUDY, models={**MODELS, "hymate": hymate})
    place = Place(study, synthetic_folder, folds, tmp_path / "work", tmp_path / "figures" / study.name, quick=True)
    run_unit("hymate", 100, 1, place)
    run_unit("logistic_regression", 100, 1, place)
    before = {path: path.stat().st_mtime_ns for path in place.results.iterdir()}
    assert len(before) == 2
    run_unit("hymate", 100, 1, place)
    assert {path: path.stat().st_mtime_ns for path in place.results.iterdir()} == before
    unit = json.loads(place.result("hymate", 100, 1).read_text())
    assert unit["n"] == len(folds[1])
    assert not set(json.dumps(unit).split('"')) & set(folds[1])  # names no record
    page = tmp_path / "evidence.md"
    names = [f"{one.name}_{table}" for one in STUDIES.values() for table in one.tables]
    page.write_text("\n".join(f"<!-- begin {name} -->\n<!-- end {name} -->" for name in names))
    for _ in range(2):
        write_page(tmp_path / "figures", page)
        assert page.read_text().count("| HyMaTE | 1 |") == 1
        assert "logistic regression on summary statistics | " in page.read_text()
        assert "### Coverage of conformal sets" in page.read_text()


def test_hourly_units_have_the_utility_at_a_threshold_of_the_validation_split(tmp_path, monkeypatch):
    pytest.importorskip("xgboost")
    monkeypatch.setattr(trees, "HOURLY", replace(trees.HOURLY, settings=trees.HOURLY.settings[:1], most_trees=5))
    raw = tmp_path / "raw"
    for letter in "AB":
        write_hospital(raw, letter, make_hospital(letter, 40))
    study = replace(
        STUDIES["hospitals"],
        models={"hymate": Model("HyMaTE", model={"hidden_size": 8, "num_attention_heads": 2})}
        | {"xgboost": STUDIES["hospitals"].models["xgboost"]},
    )
    place = open_place(study, raw, tmp_path / "work", quick=True)
    found = {}
    for name in study.models:
        run_unit(name, 100, 0, place)
        found[name] = json.loads(place.result(name, 100, 0).read_text())
    assert [len(fold) for fold in place.folds] == [40, 40]  # hospital A, hospital B
    assert set(place.folds[0]) == set(PreparedFolder(place.fold(0)).record_ids["test"])
    for unit in found.values():
        assert len(unit["samples"]["normalized_utility"]) == units.NUM_SAMPLES
        assert unit["metrics"]["normalized_utility"] <= 1
    assert found["hymate"]["split_fingerprint"] == found["xgboost"]["split_fingerprint"]
    results = {(name, 100): {0: unit} for name, unit in found.items()}
    assert "normalized utility, difference" in difference_tables(study, results)


def test_net_benefit_of_units_is_that_of_evaluate_and_paired_by_fold():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    results = {}
    for name, noise in (("hymate", 0.2), ("xgboost", 0.4)):
        probabilities = np.clip(labels + rng.normal(0, noise, 300), 0, 1)
        sample = LabeledPredictions("binary", labels, probabilities)
        resampler = Resampler(len(sample), num_samples=50, seed=3)
        points, samples = units.benefits(sample, resampler, STUDY.thresholds)
        expected = net_benefit(sample, STUDY.thresholds, resampler=resampler)
        for who in ("model", "treat_all"):
            names = [units.benefit_name(who, threshold) for threshold in STUDY.thresholds]
            assert [points[one] for one in names] == pytest.approx(expected[who])
            intervals = [resampler.interval(samples[one]) for one in names]
            np.testing.assert_allclose(intervals, expected["confidence_intervals"][who])
        kept = {one: values.tolist() for one, values in samples.items()}
        results[name, 100] = {fold: {"metrics": points, "samples": kept} for fold in range(2)}
    text = decision_table(STUDY, results)
    difference = np.subtract(
        *(results[name, 100][0]["metrics"]["net_benefit_model_0.2"] for name in ("hymate", "xgboost"))
    )
    assert f"{difference:+.4f} [" in text
    assert text.count("| 2 of 2 |") >= 1
    del results["xgboost", 100]
    assert decision_table(STUDY, results) == "Not measured yet."


def test_coverage_counts_the_folds_whose_interval_holds_the_level():
    def covers(share, low, high):
        return {"level": 0.9, "coverage": share, "interval": [low, high], "mean_size": 1.5}

    fold = {"coverage": {"all": {"all": [covers(0.92, 0.88, 0.95)]}, "Gender": {"female": [covers(0.5, 0.4, 0.6)]}}}
    other = {"coverage": {"all": {"all": [covers(0.80, 0.77, 0.84)]}}}
    text = coverage_of("Sets", {0: fold, 1: other, 2: {"coverage": None}})
    assert "| all | 90% | 0.860 | 1.500 | 1 of 2 |" in text
    assert "female" not in text
