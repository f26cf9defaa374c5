"""Pages of patients: the numbers on them, against the plainest route to each."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from markupsafe import Markup

from hymate_training.cli.main import main
from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.explanations import cohort_page
from hymate_training.explanations.attribution import Explainer, explain
from hymate_training.explanations.background import Background
from hymate_training.explanations.cohort import cohort_of_task
from hymate_training.explanations.patient_page import (
    explained_patient,
    outcome_sentence,
    page_names,
    tiles,
    unmeasured,
)
from hymate_training.explanations.pictures import Picture
from hymate_training.explanations.report import build_report
from hymate_training.explanations.static_columns import static_effects, static_shares
from hymate_training.explanations.trajectory import risk_curve
from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.prediction import predict_examples
from tests.explanations.conftest import TASK
from tests.support.runs import TINY_MODEL


@pytest.fixture(scope="module")
def opened(evaluated):
    return load_checkpoint(evaluated)


@pytest.fixture(scope="module")
def cohort(opened, synthetic_folder):
    explainer = Explainer(opened.model, opened.extractor)
    return cohort_of_task(explainer, PreparedFolder(synthetic_folder), TASK)


@pytest.fixture(scope="module")
def explainer(opened, cohort):
    return Explainer(opened.model, opened.extractor).asking(cohort.asked)


def test_a_prediction_is_set_beside_the_validation_records(opened, evaluated, explainer, cohort):
    background = Background.of(opened, "died", TASK)
    assert background.base_rate == pytest.approx(cohort.truths.mean())
    curve = opened.evaluation["calibration"]["curve"]
    at = len(curve["predicted"]) // 2
    middle, low, high = background.intervals(np.array([curve["predicted"][at]]))[0]
    assert middle == pytest.approx(curve["observed"][at])
    assert [low, high] == pytest.approx(curve["intervals"][at])
    outside = [curve["predicted"][0] - 0.01, curve["predicted"][-1] + 0.01]
    assert np.isnan(background.intervals(np.array(outside))).all()  # nothing was seen there

    scores = json.loads((evaluated / "monitoring.json").read_text())["counts"]["score"]["died"]
    predictions = explainer.predictions(explainer.scores(cohort.events))
    for edge in scores["edges"]:
        below = background.rank(edge)[0]
        assert below == pytest.approx(sum(scores["counts"][: scores["edges"].index(edge) + 1]) / sum(scores["counts"]))
    for prediction in predictions[:5]:
        low, high = background.rank(float(prediction))
        assert 0 <= low < high <= 1

    assert Background.of(opened, "died", "another task").base_rate is None
    assert Background.of(opened, "survived", TASK).base_rate is None  # the evaluation is of the other label
    nothing = Background("died")
    assert (nothing.rank(0.5), nothing.usual("x"), nothing.measured_share("x"), nothing.in_words()) == (None,) * 4
    assert np.isnan(nothing.intervals(np.array([0.5]))).all()


def test_the_interval_of_a_number_is_the_conformal_one():
    evaluation = {
        "problem_type": "regression",
        "conformal": {"levels": [0.8, 0.9], "thresholds": {"all": {"all": [1.0, 2.5]}}},
    }
    found = Background("days", ("days",), evaluation).intervals(np.array([4.0, -1.0]))
    assert found.tolist() == [[4.0, 1.5, 6.5], [-1.0, -3.5, 1.5]]


def test_static_effects_are_predictions_with_others_in_their_place(explainer, cohort):
    few = cohort.take(np.arange(4))
    effects = static_effects(explainer, few.events)
    known = {column["name"]: column for column in explainer.extractor.static_columns}

    def score(**columns) -> np.ndarray:
        static = few.events.static | {name: np.full(4, value, dtype=object) for name, value in columns.items()}
        features = explainer.extractor.encode(
            replace(few.events, static=static), prediction_times=[[hour] for hour in few.hours]
        )
        with torch.no_grad():
            return explainer.score(explainer.model(**features).logits)[:, 0].numpy()

    age = effects.filter(column="age")["attribution"].to_numpy()
    np.testing.assert_allclose(age, score() - score(age=known["age"]["mean"]), atol=1e-5)
    sex = effects.filter(column="sex")["attribution"].to_numpy()
    others = np.mean([score(sex=category) for category in known["sex"]["categories"]], axis=0)
    np.testing.assert_allclose(sex, score() - others, atol=1e-5)
    assert np.abs(age).max() > 1e-3

    variables = explain(
        explainer.model, explainer.extractor, few.events, method="occlusion", asked=explainer.asked
    ).variables
    shares = static_shares(effects, variables)
    first = few.record_ids[0]
    sizes = [frame.filter(record_id=first)["attribution"].abs() for frame in (effects, variables)]
    expected = sizes[0] / (sizes[0].sum() + sizes[1].sum())
    np.testing.assert_allclose(shares.filter(record_id=first)["share"], expected)


def test_the_page_says_what_was_not_measured(opened, explainer, cohort):
    patient = explained_patient(explainer, cohort.take(np.array([1])), Background.of(opened, "died", TASK))
    found = unmeasured(patient, opened.extractor.variables)
    seen = set(patient.explanations["occlusion"].events["variable"])
    absent = [name for name in opened.extractor.variables if name not in seen]
    words = [re.sub(r" \(\d+%\)", "", name) for part in found.values() for name in part.split(", ") if name]
    assert sorted(words) == sorted(name.replace("_", " ") for name in absent)
    assert tiles(patient)[0] == (f"{patient.prediction:.1%}", "predicted probability of died")


def test_a_page_of_a_record_does_without_the_cohort(evaluated, synthetic_folder, tmp_path, monkeypatch, capsys):
    """Its suite of tests takes minutes."""
    monkeypatch.setattr(cohort_page, "assess", lambda *_, **__: pytest.fail("the cohort was explained"))
    monkeypatch.setattr(Picture, "html", lambda picture: Markup(""))
    record_id = PreparedFolder(synthetic_folder).record_ids["validation"][3]
    data = ["--data", str(synthetic_folder), "--task", TASK]
    output = tmp_path / "report"
    (tmp_path / "start.csv").write_text(f"record_id,start\n{record_id},2031-03-05T14:20\n")
    arguments = ["--output", str(output), "--record-id", record_id, "--start", str(tmp_path / "start.csv")]
    assert main(["explain", "--checkpoint", str(evaluated), *data, *arguments]) == 0
    captured = capsys.readouterr()
    page = output / "patients" / f"{record_id}.html"
    assert captured.out.splitlines() == [str(page), str(output / "index.html")]
    assert "%|" not in captured.err  # no progress bar, which a file of logs would hold line by line
    text = page.read_text()
    assert "Answered at 2031-03-07 14:20 (hour 48.0)" in text
    assert "Does the patient die in the hospital?" in text
    assert "base rate of died" in text
    assert not (output / "figures").exists()
    assert "performance" not in json.loads((output / "explanation.json").read_text())


def test_a_cohort_says_for_how_many_and_how_well(evaluated, synthetic_folder, tmp_path, monkeypatch):
    for name in ("html", "save"):
        monkeypatch.setattr(Picture, name, lambda picture, *_: Markup(""))
    data = PreparedFolder(synthetic_folder)
    options = {"data": data, "task": TASK, "split": "train", "num_records": 120, "window_hours": 48}
    report = build_report(evaluated, tmp_path / "report", **options)
    text = report.page.read_text()
    found = report.assessment["performance"]
    assert f"{found['metrics']['auroc']:.3f}" in text
    assert f"of them died ({found['positives'] / 120:.1%})" in text
    assert "on the 30 records of its validation split" in text
    assert "Asked: each record at hour 48" in text
    assert text.index('id="variables"') < text.index('id="trust"')  # the predictions first, then their explanations
    assert set(report.assessment["static_shares"]) == {column.name for column in data.info.static_columns}


@pytest.mark.parametrize(
    ("task", "label", "beside"),
    [
        ("time_to_death", None, "of the validation records have a lower prediction"),
        ("length_of_stay", None, "holds the true number for 90% of records"),
        ("phenotypes", "sepsis", "base rate of sepsis"),
        ("discharge_destination", "home", "base rate of home"),
    ],
)
def test_every_kind_of_answer_has_a_page(task, label, beside, synthetic_folder, tmp_path, monkeypatch):
    for name in ("html", "save"):
        monkeypatch.setattr(Picture, name, lambda picture, *_: Markup(""))
    options = FinetuneOptions(epochs=1, batch_size=32, model=TINY_MODEL)
    model = finetune(synthetic_folder, task, tmp_path / "model", options).output
    data = PreparedFolder(synthetic_folder)
    label = label or load_checkpoint(model).label_names[-1]
    options = {"data": data, "task": task, "label": label, "window_hours": 48, "num_records": 12}
    report = build_report(
        model, tmp_path / "report", record_ids=data.record_ids["validation"][:1].to_list(), **options
    )
    (page,) = report.patients.values()
    assert beside in page.read_text()
    assert f"<q>{label}</q>" in report.page.read_text()


@pytest.fixture(scope="module")
def timed(synthetic_folder, tmp_path_factory):
    """A checkpoint that says when something happens."""
    options = FinetuneOptions(epochs=1, batch_size=32, model=TINY_MODEL, horizons="48,96,240")
    return load_checkpoint(
        finetune(synthetic_folder, "time_to_death", tmp_path_factory.mktemp("t") / "m", options).output
    )


def test_a_time_to_an_event_is_shown_beside_what_was_observed(timed, synthetic_folder):
    data, task, label = PreparedFolder(synthetic_folder), "time_to_death", timed.label_names[1]
    background = Background.of(timed, label, task)
    rows = timed.evaluation["horizons"]
    assert list(background.horizons) == list(timed.label_names)
    assert background.base_rate == rows[1]["observed_risk"]
    assert background.observed(label).startswith(f"{rows[1]['observed_risk']:.1%}")
    assert Background.of(timed, label, "another task").observed(label) is None
    cohort = cohort_of_task(Explainer(timed.model, timed.extractor, label), data, task)
    explainer = Explainer(timed.model, timed.extractor, label).asking(cohort.asked)
    dataset = load_task(data, task, "validation", timed.extractor.variables)
    risks = predict_examples(timed.model, dataset, TaskCollator(timed.extractor)).values
    ends = {row["record_id"]: row["event_time"] for row in data.task(task, "validation").to_pylist()}
    for came in (0, 1):
        at = int(np.flatnonzero(cohort.sight[:, 1] == came)[0])
        patient = explained_patient(explainer, cohort.take(np.array([at])), background)
        assert f"{'at' if came else 'until'} hour {ends[patient.record_id]:.1f}" in outcome_sentence(patient)
        shown = patient.curve.drop_nulls("output")
        assert shown["output"].to_list() == list(timed.label_names)
        row = dataset.record_ids.tolist().index(patient.record_id)
        np.testing.assert_allclose(shown["risk"], risks[row], atol=1e-5)
        assert shown["risk"][1] == pytest.approx(patient.prediction, abs=1e-5)
        assert patient.curve["risk"].is_sorted()
        assert patient.curve.row(0) == (0, 0, None)


def test_a_cohort_of_times_says_what_was_observed(timed, synthetic_folder, tmp_path, monkeypatch):
    for name in ("html", "save"):
        monkeypatch.setattr(Picture, name, lambda picture, *_: Markup(""))
    data, label = PreparedFolder(synthetic_folder), timed.label_names[1]
    options = {"data": data, "task": "time_to_death", "split": "train", "num_records": 120, "window_hours": 48}
    text = build_report(timed, tmp_path / "report", label=label, **options).page.read_text()
    background = Background.of(timed, label, "time_to_death")
    assert f"{background.observed(label)}</strong>observed risk of {label} on its validation split" in text
    assert re.search(r"were explained: (\d+) with death observed, (\d+) with no death observed", text)
    assert background.performance()[0].startswith("AUROC ")
    assert background.performance()[0] in text


def test_other_models_have_no_curve(explainer, cohort):
    assert risk_curve(explainer, cohort.take(np.array([0])).events) is None
    assert cohort.sight is None


def test_names_of_pages_leave_the_list_alone():
    assert page_names(["index", "a/b", "a_b", "A_B"]) == ["index_0", "a_b", "a_b_2", "A_B_3"]


def test_the_list_begins_with_the_highest_predictions(evaluated, synthetic_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Picture, "html", lambda picture: Markup(""))
    data = PreparedFolder(synthetic_folder)
    ids = data.record_ids["validation"][:4].to_list()
    report = build_report(evaluated, tmp_path / "report", data=data, task=TASK, record_ids=ids, window_hours=48)
    listed = (report.page.parent / "patients" / "index.html").read_text()
    predictions = [float(text) for text in re.findall(r'<td class="number">([\d.]+)%</td>', listed)]
    assert predictions == sorted(predictions, reverse=True)
    assert set(report.patients) == set(ids)
