"""The estimator of scikit-learn: it learns, it works with scikit-learn's tools, and bad input is named."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

from hymate_training.fitting.estimator import HyMaTEClassifier
from hymate_training.fitting.finetuning import FinetuneOptions
from hymate_training.inference.checkpoints import load_checkpoint
from tests.support.runs import TINY_MODEL

OPTIONS = FinetuneOptions(epochs=10, batch_size=8, learning_rate=1e-2, variable_dropout=0.0, model=TINY_MODEL)


def make_records(count: int, classes: int, seed: int = 0) -> tuple[list[dict], np.ndarray]:
    """Records whose heart rate tells the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    records = []
    for label in labels:
        length = int(rng.integers(3, 9))
        variables = ["HR", *rng.choice(["HR", "Ward"], length - 1).tolist()]
        records.append(
            {
                "time": np.sort(rng.uniform(0, 24, length)).tolist(),
                "variable": variables,
                "value": [float(80 + 40 * label + rng.normal()) if name == "HR" else None for name in variables],
                "Age": float(rng.uniform(20, 90)),
                "Sex": str(rng.choice(["f", "m"])),
            }
        )
    return records, labels


@pytest.fixture(scope="module")
def fitted() -> HyMaTEClassifier:
    records, labels = make_records(100, 2)
    return HyMaTEClassifier(options=OPTIONS).fit(records, np.array(["home", "ward"])[labels])


def test_it_learns_and_predicts_records_it_has_not_seen(fitted):
    records, labels = make_records(30, 2, seed=1)
    assert fitted.classes_.tolist() == ["home", "ward"]
    probabilities = fitted.predict_proba(records)
    assert probabilities.shape == (30, 2)
    assert probabilities.sum(1) == pytest.approx(np.ones(30), abs=1e-6)
    assert probabilities[labels == 1, 1].mean() > probabilities[labels == 0, 1].mean() + 0.1
    assert fitted.predict(records).tolist() == fitted.classes_[probabilities.argmax(1)].tolist()
    assert fitted.evaluation_["metrics"]["auroc"] > 0.8
    alone = fitted.predict_proba(records[7:8])
    assert alone[0] == pytest.approx(probabilities[7], abs=1e-5)


def test_several_classes_keep_their_columns_and_the_run_is_a_checkpoint(tmp_path):
    records, labels = make_records(120, 3)
    output = tmp_path / "run"
    fitted = HyMaTEClassifier(options=OPTIONS, output=output).fit(records, labels + 10)
    probabilities = fitted.predict_proba(records)
    assert fitted.classes_.tolist() == [10, 11, 12]
    means = np.array([probabilities[labels == label].mean(0) for label in range(3)])
    assert means[0, 0] > means[2, 0]
    assert means[2, 2] > means[0, 2]
    assert load_checkpoint(output).label_names == fitted.checkpoint_.label_names
    assert (output / "README.md").is_file()


def test_the_tools_of_scikit_learn_take_it():
    records, labels = make_records(40, 2)
    estimator = HyMaTEClassifier(options=FinetuneOptions(epochs=1, batch_size=8, model=TINY_MODEL))
    copied = clone(estimator).set_params(validation_fraction=0.25)
    assert copied.get_params()["options"] == estimator.options
    with pytest.raises(NotFittedError):
        copied.predict(records)
    scores = cross_val_score(copied, records, labels, cv=2, scoring="roc_auc")
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [0, 1]}, "one label per record: 2 labels, 6 records"),
        ({"y": [1] * 6}, "at least two classes, got 1"),
        ({"records": [{"time": [1.0], "value": [2.0]}] * 6}, "record 0 lacks 'variable'"),
        ({"records": [{"time": [1.0], "variable": ["HR"], "value": [2.0, 3.0]}] * 6}, "record '0': columns differ"),
        ({"records": [{"time": [1.0], "variable": ["HR"], "value": [2.0], "split": "test"}] * 6}, "'split'"),
        ({"validation_fraction": 1.0}, "validation_fraction must be between 0 and 1"),
    ],
)
def test_bad_input_is_named(change, message):
    records, labels = make_records(6, 2)
    arguments = {"records": records, "y": labels, "validation_fraction": 0.5} | change
    estimator = HyMaTEClassifier(options=OPTIONS, validation_fraction=arguments["validation_fraction"])
    with pytest.raises(ValueError, match=message):
        estimator.fit(arguments["records"], arguments["y"])


def test_unknown_variables_are_named(fitted):
    with pytest.raises(ValueError, match="'Pulse' is not one of"):
        fitted.predict_proba([{"time": [1.0], "variable": ["Pulse"], "value": [80.0]}])
