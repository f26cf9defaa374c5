"""The evidence of docs/evidence.md: folds, paired differences, baselines, and one unit from start to end."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.evidence import baselines, units
from experiments.evidence.folds import NUM_FOLDS, TASK, assign_folds, prepare_fold
from experiments.evidence.models import MODELS, Model
from experiments.evidence.tables import TABLES, coverage_of, paired, read_results, write_page
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


@pytest.fixture(scope="module")
def folds(synthetic_folder, tmp_path_factory) -> list[list[str]]:
    return assign_folds(synthetic_folder, tmp_path_factory.mktemp("folds") / "folds.json")


@pytest.fixture(scope="module")
def fold_folder(synthetic_folder, folds, tmp_path_factory):
    return prepare_fold(synthetic_folder, folds, 1, 100, True, tmp_path_factory.mktemp("fold") / "prepared")


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
    assert assign_folds(synthetic_folder, path) == folds
    path.write_text(json.dumps({"folds": [["somebody"]]}))
    with pytest.raises(ValueError, match="lists other records"):
        assign_folds(synthetic_folder, path)


def test_a_fold_is_the_test_split_and_fewer_labels_are_among_more(synthetic_folder, folds, fold_folder, tmp_path):
    assert PreparedFolder(fold_folder).records("test")["record_id"].to_pylist() == folds[1]
    few = prepare_fold(synthetic_folder, folds, 1, 10, False, tmp_path / "few")
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


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.baseline is None])
def test_every_row_has_options_that_exist(name):
    model = MODELS[name]
    recipe = read_recipe(units.RECIPE)
    FinetuneOptions(**recipe["finetune"] | model.finetune)
    HyMaTEConfig(num_variables=3, **recipe["model"] | model.model)


@pytest.mark.parametrize("name", ["xgboost", "logistic_regression", "gru_d"])
def test_baselines_learn(name, fold_folder, monkeypatch):
    monkeypatch.setattr(trees, "ONCE", replace(trees.ONCE, settings=trees.ONCE.settings[:2]))
    monkeypatch.setattr(baselines, "GRU_EPOCHS", 2)
    if name == "xgboost":
        pytest.importorskip("xgboost")
    probabilities = MODELS[name].baseline(fold_folder, 0)
    dataset = load_task(PreparedFolder(fold_folder), TASK, "test", PreparedFolder(fold_folder).info.variables)
    assert probabilities.shape == dataset.labels.shape
    assert ((probabilities > 0) & (probabilities < 1)).all()
    assert np.array_equal(probabilities, MODELS[name].baseline(fold_folder, 0))


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


def test_a_unit_is_run_once_and_fills_the_page(synthetic_folder, folds, tmp_path, monkeypatch):
    small = {"hidden_size": 16, "num_attention_heads": 2}
    monkeypatch.setitem(MODELS, "hymate", Model("HyMaTE", model=small, finetune={"auxiliary_tasks": "length_of_stay"}))
    arguments = (synthetic_folder, folds, tmp_path / "work", tmp_path / "runs", True)
    units.run_unit("hymate", 100, 1, *arguments)
    units.run_unit("logistic_regression", 100, 1, *arguments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(before) == 2
    units.run_unit("hymate", 100, 1, *arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == before
    unit = json.loads(units.result_path(tmp_path / "runs", "hymate", 100, 1).read_text())
    assert unit["n"] == len(folds[1])
    assert not set(json.dumps(unit).split('"')) & set(folds[1])  # names no record
    page = tmp_path / "evidence.md"
    page.write_text("\n".join(f"<!-- begin {name} -->\n<!-- end {name} -->" for name in TABLES))
    for _ in range(2):
        write_page(read_results(tmp_path / "runs"), page)
        assert page.read_text().count("| HyMaTE | 1 |") == 1
        assert "logistic regression on summary statistics | " in page.read_text()
        assert "### Coverage of conformal sets" in page.read_text()


def test_net_benefit_of_units_is_that_of_evaluate_and_paired_by_fold():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    results = {}
    for name, noise in (("hymate", 0.2), ("xgboost", 0.4)):
        probabilities = np.clip(labels + rng.normal(0, noise, 300), 0, 1)
        sample = LabeledPredictions("binary", labels, probabilities)
        resampler = Resampler(len(sample), num_samples=50, seed=3)
        points, samples = units.benefits(sample, resampler)
        expected = net_benefit(sample, units.THRESHOLDS, resampler=resampler)
        for who in ("model", "treat_all"):
            names = [units.benefit_name(who, threshold) for threshold in units.THRESHOLDS]
            assert [points[one] for one in names] == pytest.approx(expected[who])
            intervals = [resampler.interval(samples[one]) for one in names]
            np.testing.assert_allclose(intervals, expected["confidence_intervals"][who])
        kept = {one: values.tolist() for one, values in samples.items()}
        results[name, 100] = {fold: {"metrics": points, "samples": kept} for fold in range(2)}
    text = TABLES["decision_curves"](results)
    difference = np.subtract(
        *(results[name, 100][0]["metrics"]["net_benefit_model_0.2"] for name in ("hymate", "xgboost"))
    )
    assert f"{difference:+.4f} [" in text
    assert text.count("| 2 of 2 |") >= 1
    del results["xgboost", 100]
    assert TABLES["decision_curves"](results) == "Not measured yet."


def test_coverage_counts_the_folds_whose_interval_holds_the_level():
    def covers(share, low, high):
        return {"level": 0.9, "coverage": share, "interval": [low, high], "mean_size": 1.5}

    fold = {"coverage": {"all": {"all": [covers(0.92, 0.88, 0.95)]}, "Gender": {"female": [covers(0.5, 0.4, 0.6)]}}}
    other = {"coverage": {"all": {"all": [covers(0.80, 0.77, 0.84)]}}}
    text = coverage_of("Sets", {0: fold, 1: other, 2: {"coverage": None}})
    assert "| all | 90% | 0.860 | 1.500 | 1 of 2 |" in text
    assert "female" not in text
