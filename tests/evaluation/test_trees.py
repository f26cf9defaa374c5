"""Trees as a baseline: what they learn, what they are tuned on, and an evaluation beside them."""

import builtins
import json

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from hymate_training.cli.main import main
from hymate_training.data.collators import fit_feature_extractor
from hymate_training.data.examples import TaskDataset, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation import baseline, trees
from hymate_training.evaluation.baseline import XGBOOST_TITLE
from hymate_training.evaluation.evaluation import evaluate
from hymate_training.evaluation.trees import Search, fit_trees
from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from hymate_training.publishing.privacy import check_json
from hymate_training.readers import physionet2019, synthetic
from tests.support.runs import TASK, TINY_MODEL
from tests.support.sepsis_files import make_hospital, write_hospital

pytest.importorskip("xgboost")
QUICK = {"settings": ({"max_depth": 2}, {"max_depth": 4}), "most_trees": 40, "patience": 5, "learning_rate": 0.1}


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch):
    for name in ("ONCE", "HOURLY"):
        monkeypatch.setattr(trees, name, Search(getattr(trees, name).features, **QUICK))


@pytest.fixture(scope="module")
def splits(synthetic_folder) -> dict[str, TaskDataset]:
    folder = PreparedFolder(synthetic_folder)
    return {name: load_task(folder, TASK, name, folder.info.variables) for name in folder.splits}


def test_trees_learn_and_are_tuned_on_the_validation_split(synthetic_folder, splits):
    extractor = fit_feature_extractor(PreparedFolder(synthetic_folder))
    found = fit_trees(splits["train"], splits["validation"], extractor, seed=1)
    probabilities = found.predict(splits["validation"])
    assert roc_auc_score(splits["validation"].labels, probabilities) > 0.6
    again = fit_trees(splits["train"], splits["validation"], extractor, seed=1)
    assert np.array_equal(again.predict(splits["test"]), found.predict(splits["test"]))
    losses = {}
    for settings in QUICK["settings"]:
        alone = Search(trees.ONCE.features, **QUICK | {"settings": (settings,)})
        one = fit_trees(splits["train"], splits["validation"], extractor, seed=1, search=alone)
        losses[settings["max_depth"]] = log_loss(splits["validation"].labels, one.predict(splits["validation"]))
    assert found.settings["max_depth"] == min(losses, key=losses.get)
    assert found.settings["num_features"] == len(trees.ONCE.features.whole) * extractor.num_variables + len(
        extractor.static_feature_names
    )


def test_one_label_alone_is_refused(synthetic_folder, splits):
    extractor = fit_feature_extractor(PreparedFolder(synthetic_folder))
    train = splits["train"]
    alike = TaskDataset(train.events, train.rows, train.prediction_times, np.zeros_like(train.labels))
    with pytest.raises(ValueError, match=r"both labels, but all [\d,]+ examples of the train split have one"):
        fit_trees(alike, splits["validation"], extractor)


def test_evaluate_grows_trees_and_the_card_shows_them(synthetic_folder, finetuned, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for path in finetuned.iterdir():
        if path.is_file():
            (run / path.name).write_bytes(path.read_bytes())
    arguments = ["--checkpoint", str(run), "--data", str(synthetic_folder), "--task", TASK, "--split", "test"]
    output = run / "evaluation_test.json"
    assert main(["evaluate", *arguments, "--baseline", "xgboost", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    theirs = found["baselines"][XGBOOST_TITLE]
    assert theirs["metrics"]["auroc"] != found["metrics"]["auroc"]
    assert theirs["differences"]["auroc"]["b"] == theirs["metrics"]["auroc"]
    assert theirs["settings"]["max_depth"] in (2, 4)
    assert len(found["net_benefit"]["baseline"]) == len(found["net_benefit"]["thresholds"])
    assert XGBOOST_TITLE in capsys.readouterr().out
    card = (run / "README.md").read_text()
    assert f"| metric | HyMaTE | {XGBOOST_TITLE} |" in card
    assert f"HyMaTE minus {XGBOOST_TITLE}, on the same resamples: AUROC " in card
    assert "was tuned by the log-loss of the validation split: `max_depth`" in card
    check_json(output)


def test_trees_are_grown_on_the_data_of_the_checkpoint_alone(synthetic_folder, finetuned, tmp_path):
    other = tmp_path / "other"
    synthetic.prepare(other, num_records=200, seed=9)
    with pytest.raises(ValueError, match=r"trained on other records or labels than the train split of .*other.*--bas"):
        evaluate(finetuned, other, TASK, "test", baseline="xgboost")
    elsewhere = evaluate(finetuned, other, TASK, "test", baseline="xgboost", baseline_data=synthetic_folder).content
    assert elsewhere["baselines"][XGBOOST_TITLE]["n"] == elsewhere["n"]


def test_trees_at_every_hour_have_a_utility_of_their_own(tmp_path):
    raw, prepared, run = tmp_path / "raw", tmp_path / "prepared", tmp_path / "run"
    physionet2019.prepare(write_hospital(raw, "A", make_hospital("A", 300)), prepared, split="random")
    finetune(prepared, "sepsis_onset", run, FinetuneOptions(epochs=1, batch_size=64, model=TINY_MODEL))
    found = evaluate(
        run, prepared, "sepsis_onset", "test", tmp_path / "evaluation_test.json", baseline="xgboost"
    ).content
    theirs = found["baselines"][XGBOOST_TITLE]
    assert theirs["metrics"]["normalized_utility"] is not None
    assert theirs["threshold"]["chosen_on"] == "validation"
    assert theirs["threshold"]["value"] != found["threshold"]["value"]
    features = trees.HOURLY.features
    per_variable = len(features.whole) + len(features.windows) * len(features.windowed)
    assert theirs["settings"]["num_features"] > 34 * per_variable
    check_json(tmp_path / "evaluation_test.json")


def test_without_xgboost_the_error_says_how_to_get_it(synthetic_folder, finetuned, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "xgboost":
            raise ModuleNotFoundError("No module named 'xgboost'", name="xgboost")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(baseline, "load_task", None)  # it is said before anything is read
    with pytest.raises(ValueError, match=r"pip install 'hymate\[trees\]'"):
        evaluate(finetuned, synthetic_folder, TASK, baseline="xgboost")
