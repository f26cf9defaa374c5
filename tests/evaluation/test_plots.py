"""Plots: what is drawn, what is written, and what happens on the smallest samples."""

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy import stats
from sklearn.metrics import confusion_matrix

from hymate_training.evaluation.metrics import SMALLEST_GROUP, calibration_bins, compute_metrics
from hymate_training.evaluation.plots import (
    confusion_figure,
    label_roc_figure,
    precision_recall_figure,
    predicted_versus_true_figure,
    reliability_figure,
    roc_figure,
    save_plots,
    wilson_interval,
)
from hymate_training.evaluation.sample import LabeledPredictions

PLOTS = {
    "binary": ["roc", "precision_recall", "reliability"],
    "multiclass": ["confusion"],
    "multilabel": ["roc"],
    "regression": ["predicted_versus_true"],
}


def make(problem_type, n=60):
    rng = np.random.default_rng(0)
    if problem_type == "regression":
        labels = rng.gamma(2, 3, size=n)
        return labels, labels + rng.normal(size=n)
    if problem_type == "multiclass":
        return rng.integers(3, size=n), rng.dirichlet([1, 1, 1], size=n)
    shape = (n, 3) if problem_type == "multilabel" else (n,)
    return (np.arange(np.prod(shape)).reshape(shape) % 4 == 0).astype(int), rng.random(shape)


def texts(figure):
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return " ".join(text.get_text() for legend in legends if legend for text in legend.get_texts())


@pytest.mark.parametrize("problem_type", PLOTS)
@pytest.mark.parametrize("n", [8, 60])
def test_plots_are_written(problem_type, n, tmp_path, recwarn):
    paths = save_plots(LabeledPredictions(problem_type, *make(problem_type, n)), tmp_path / "plots", "validation")
    assert [path.name for path in paths] == [f"validation_{name}.png" for name in PLOTS[problem_type]]
    assert sorted((tmp_path / "plots").iterdir()) == sorted(paths)  # no temporary file is left
    for path in paths:
        image = imread(path)
        assert min(image.shape[:2]) > 500
        assert image[..., :3].std() > 0.01  # not blank
    assert not recwarn.list


def test_a_failed_write_leaves_the_old_plot(tmp_path, monkeypatch):
    path = tmp_path / "a_predicted_versus_true.png"
    path.write_bytes(b"old")

    def fail(self, file, **options):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        save_plots(LabeledPredictions("regression", *make("regression")), tmp_path, "a")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_curves_without_both_classes_are_left_out(tmp_path, caplog):
    paths = save_plots(LabeledPredictions("binary", np.zeros(5), np.linspace(0, 1, 5)), tmp_path, "a")
    assert [path.name for path in paths] == ["a_reliability.png"]
    assert "labels are all 0" in caplog.text
    assert save_plots(LabeledPredictions("multilabel", np.ones((5, 2)), np.full((5, 2), 0.5)), tmp_path, "b") == []
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]"):
        save_plots(LabeledPredictions("binary", [0, 1], [0.5, 2]), tmp_path, "c")
    with pytest.raises(ValueError, match="label_names must be 3 different names"):
        save_plots(LabeledPredictions("multiclass", *make("multiclass"), label_names=["x"]), tmp_path, "d")


def test_binary_curves_show_the_metrics():
    labels, predictions = make("binary")
    metrics = compute_metrics(LabeledPredictions("binary", labels, predictions))
    roc = roc_figure(LabeledPredictions("binary", labels, predictions))
    assert f"AUROC {metrics['auroc']:.3f}" in texts(roc)
    x, y = roc.axes[0].lines[0].get_data()
    assert np.trapezoid(y, x) == pytest.approx(metrics["auroc"])
    curve = precision_recall_figure(LabeledPredictions("binary", labels, predictions))
    recall, precision = curve.axes[0].lines[0].get_data()
    assert -np.sum(np.diff(recall) * precision[:-1]) == pytest.approx(metrics["auprc"])
    assert set(curve.axes[0].lines[1].get_ydata()) == {labels.mean()}  # the prevalence
    for figure in (roc, curve):
        assert "60 rows, 15 positive (25.0%)" in figure.axes[0].get_title()
        assert figure.axes[0].get_xlabel()
        assert figure.axes[0].get_ylabel()


def test_reliability_shows_bins_and_every_row():
    labels, predictions = make("binary")
    figure = reliability_figure(LabeledPredictions("binary", labels, predictions))
    bins = calibration_bins(LabeledPredictions("binary", labels, predictions))
    points = figure.axes[0].lines[1]
    assert points.get_xdata() == pytest.approx(bins.predicted)
    assert points.get_ydata() == pytest.approx(bins.observed)
    error = compute_metrics(LabeledPredictions("binary", labels, predictions))["expected_calibration_error"]
    assert f"expected calibration error {error:.3f}" in texts(figure)
    # at a low prevalence the diagram closes in on its bins
    low = reliability_figure(LabeledPredictions("binary", np.arange(1000) % 50 == 0, np.full(1000, 0.02)))
    assert low.axes[0].get_xlim()[1] < 0.2


def test_wilson_interval_agrees_with_scipy():
    for positives, rows in ((0, 5), (5, 5), (3, 17), (200, 1000)):
        expected = stats.binomtest(positives, rows).proportion_ci(method="wilson")
        interval = wilson_interval(np.array([positives / rows]), np.array([rows]))
        assert np.ravel(interval) == pytest.approx([expected.low, expected.high], abs=1e-9)


def test_confusion_matrix_counts_every_row_but_those_of_small_cells():
    labels, predictions = make("multiclass")
    names = ["home", "ward", "died"]
    sample = LabeledPredictions("multiclass", np.tile(labels, 3), np.tile(predictions, (3, 1)), label_names=names)
    figure = confusion_figure(sample)
    shown = [text.get_text().split("\n")[0] for text in figure.axes[0].texts]
    expected = 3 * confusion_matrix(labels, predictions.argmax(axis=1)).ravel()
    assert shown == [f"<{SMALLEST_GROUP}" if 0 < count < SMALLEST_GROUP else str(count) for count in expected]
    assert {text[0] for text in shown} > {"<"}
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == names


def test_each_label_has_its_curve():
    labels, predictions = make("multilabel")
    labels[:, 1] = 0
    figure = label_roc_figure(
        LabeledPredictions("multilabel", labels, predictions, label_names=["sepsis", "shock", "stroke"])
    )
    odd = LabeledPredictions("multilabel", labels, predictions, label_names=["$a$ b$", r"\frac{", "c" * 99])
    label_roc_figure(odd).draw_without_rendering()  # no formulas
    assert "shock, one class only" in texts(figure)
    auroc = compute_metrics(LabeledPredictions("binary", labels[:, 2], predictions[:, 2]))["auroc"]
    assert f"stroke, {auroc:.3f} (15 pos.)" in texts(figure)


def test_regression_draws_counts_not_rows():
    labels, predictions = make("regression")
    figure = predicted_versus_true_figure(LabeledPredictions("regression", labels, predictions))
    counts = figure.axes[0].collections[0].get_array()
    assert counts.min() >= SMALLEST_GROUP
    hidden = f"({len(labels) - counts.sum():.0f} in hexagons of fewer than {SMALLEST_GROUP})"
    assert hidden in figure.axes[1].get_ylabel()


@pytest.mark.filterwarnings("error")
def test_regression_of_few_rows_has_axes_and_shows_none():
    figure = predicted_versus_true_figure(LabeledPredictions("regression", [3.0, 3.0], [3.0, 3.0]))
    figure.draw_without_rendering()
    assert not len(figure.axes[0].collections[0].get_array())


def test_pyplot_is_left_alone(tmp_path):
    figures, settings = pyplot.get_fignums(), dict(pyplot.rcParams)
    save_plots(LabeledPredictions("regression", *make("regression")), tmp_path, "a")
    assert pyplot.get_fignums() == figures
    assert dict(pyplot.rcParams) == settings
