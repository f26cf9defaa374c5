"""Model cards: filled from the run, pinned, accepted by the Hub's validator, and with an example that runs."""

import json
import os
import re
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hymate_training.evaluation.metrics import METRICS, SMALLEST_GROUP, report, subgroup_report
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.publishing import cards
from modeling_hymate import HyMaTEFeatureExtractor
from tests.support.helpers import tiny_config
from tests.support.hub_server import HubServer, card_session

GOLDEN = Path(__file__).parent / "golden" / "model_card.md"
RUN = {
    "kind": "finetune",
    "command": "hymate finetune --data /home/someone/prepared --task mortality --output ~/runs/a --epochs 3",
    "recipe": {"epochs": 3, "learning_rate": 0.001, "model": {"hidden_size": 16}},
    "seed": 7,
    "versions": {"python": "3.11.7", "torch": "2.13.0", "hymate": None},
    "hardware": {"device": "cpu", "processes": 1},
    "parameters": 12345,
    "epochs": 3,
    "best_step": 40,
    "best_score": 1.25,
    "history": [{"epoch": 1, "seconds": 2.0}, {"epoch": 2, "seconds": 4.0}],
    "checkpoint": "pretrained",
    "task": {
        "name": "mortality",
        "description": "Death in the hospital, asked at 48 hours",
        "problem_type": "binary",
        "label_columns": ["boolean_value"],
        "label_names": ["survived", "died"],
    },
    "data": {
        "source": "Stays of a hospital",
        "license": "odc-by",
        "citation": "Somebody et al., A data set, 2012.",
        "description": "Stays in intensive care.",
        "split_description": "By patient, 80/20.",
        "dropped": {"no events": 12},
    },
    "split_fingerprints": {"train": "0123456789abcdef", "validation": "fedcba9876543210"},
    "num_records": {"train": 6000, "validation": 1500},
    "num_examples": {"train": 6000, "validation": 1501},
}
EVALUATION = {
    "problem_type": "binary",
    "task": "mortality",
    "split": "validation",
    "source": "Stays of a hospital",
    "n": 1501,
    "num_records": 1500,
    "positives": 150,
    "metrics": {"auroc": 0.86543, "auprc": 0.5432, "brier": 0.081, "expected_calibration_error": 0.02},
    "confidence_intervals": {
        "auroc": [0.84, 0.89],
        "auprc": [0.49, 0.6],
        "brier": None,
        "expected_calibration_error": [0.01, 0.03],
    },
    "undefined": {},
    "bootstrap": {"resampled": "records", "num_samples": 1000, "seed": 0, "level": 0.95},
    "split_fingerprint": "fedcba9876543210",
    "versions": {},
    "baselines": {
        "gradient-boosted trees": {
            "metrics": {"auroc": 0.85, "auprc": 0.51},
            "confidence_intervals": {"auroc": [0.82, 0.88]},
        }
    },
    "subgroups": {
        "sex": {
            "female": {
                "n": 700,
                "num_records": 700,
                "positives": 60,
                "metrics": {"auroc": 0.87, "auprc": 0.55, "expected_calibration_error": 0.031},
                "confidence_intervals": {"auroc": [0.83, 0.9], "auprc": [0.47, 0.62]},
                "undefined": {},
            },
            "male": {
                "n": 801,
                "num_records": 800,
                "positives": 90,
                "metrics": {"auroc": None, "auprc": 0.53, "expected_calibration_error": 0.03},
                "confidence_intervals": {"auroc": None, "auprc": [0.46, 0.6]},
                "undefined": {"auroc": "labels are all 1"},
            },
        }
    },
    "calibration": {
        "intercept": -0.12,
        "slope": 0.94,
        "confidence_intervals": {"intercept": [-0.3, 0.05], "slope": [0.85, 1.03]},
        "curve": None,
    },
    "net_benefit": {
        "thresholds": [0.1, 0.3],
        "model": [0.0612, 0.0301],
        "treat_all": [0.0, -0.286],
        "treat_none": [0.0, 0.0],
        "confidence_intervals": {"model": [[0.05, 0.07], [0.02, 0.04]], "treat_all": [[-0.01, 0.01], None]},
    },
    "decision_threshold": 0.1,
    "thresholds": [
        {
            "threshold": 0.1,
            "sensitivity": 0.81,
            "specificity": 0.76,
            "ppv": 0.27,
            "npv": 0.97,
            "alarms_per_100_predictions": 29.8,
            "confidence_intervals": {"sensitivity": [0.74, 0.87], "ppv": [0.23, 0.31]},
        },
        {
            "threshold": 0.3,
            "sensitivity": 0.45,
            "specificity": 0.95,
            "ppv": None,
            "npv": 0.94,
            "alarms_per_100_predictions": 9.1,
            "confidence_intervals": {"sensitivity": [0.37, 0.53], "ppv": None},
        },
    ],
    "subgroup_gaps": {
        "sex": {
            "threshold": 0.1,
            "groups": {"female": {"too_few": False}, "male": {"too_few": False}},
            "gaps": {
                "equalized_odds": {"value": 0.09, "interval": [0.02, 0.2], "lowest": "male", "highest": "female"}
            },
        }
    },
    "alarms": {
        "rule": "An alarm keeps others of its record silent for 6 hours.",
        "snooze_hours": 6.0,
        "label_lead_hours": None,
        "patient_days": 5012.3,
        "num_events": 150,
        "by_threshold": [
            {
                "threshold": 0.1,
                "num_alarms": 512,
                "alarms_per_100_patient_days": 10.2,
                "share_of_alarms_true": 0.21,
                "share_of_events_detected": 0.66,
                "median_lead_hours": None,
                "confidence_intervals": {
                    "alarms_per_100_patient_days": [9.4, 11.1],
                    "share_of_alarms_true": [0.18, 0.25],
                    "share_of_events_detected": [0.6, 0.72],
                    "median_lead_hours": None,
                },
            }
        ],
    },
    "coverage": {
        "all": {"all": [{"level": 0.9, "coverage": 0.91, "interval": [0.88, 0.93]}]},
        "label": {
            "survived": [{"level": 0.9, "coverage": 0.9, "interval": [0.87, 0.92]}],
            "died": [{"level": 0.9, "coverage": 0.87, "interval": None}],
        },
    },
    "variable_shares": {"GCS": 0.4, "Heart|rate": 0.35, "Urine": 0.25},
    "plots": ["evaluation_roc.png", "evaluation_reliability.png"],
}


@pytest.fixture
def bare(tmp_path) -> Path:
    """A checkpoint without an account of how it came about."""
    folder = tmp_path / "checkpoint"
    records = {
        "time": [0.0, 1.0, 2.0, 3.0],
        "variable": ["GCS", "Heart|rate", "Urine", "GCS"],
        "value": [15.0, 80.0, 100.0, 9.0],
        "Age": 61.0,
        "Sex": "f",
    }
    extractor = HyMaTEFeatureExtractor.fit(
        records, ["GCS", "Heart|rate", "Urine"], numeric_columns=["Age"], categorical_columns={"Sex": ["f", "m"]}
    )
    extractor.save_pretrained(folder)
    config = tiny_config(architectures=["HyMaTEForSequenceClassification"], num_variables=3, num_static_features=5)
    config.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(bare) -> Path:
    (bare / "training_run.json").write_text(json.dumps(RUN))
    (bare / "evaluation.json").write_text(json.dumps(EVALUATION))
    for name in EVALUATION["plots"]:
        (bare / name).write_bytes(b"\x89PNG")
    return bare


@pytest.fixture
def validate(monkeypatch):
    """Sends a card to the validation route of a Hub, as a push does; ValueError where it is refused."""
    with HubServer() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.repocard.get_session", card_session(hub.url))

        def check(card: ModelCard):
            card.validate()
            assert hub.requests.pop() == ("POST", "/api/validate-yaml")

        yield check


def test_card_is_as_pinned(folder):
    """After a wanted change: UPDATE_GOLDEN=1 pytest tests/publishing/test_cards.py, then read the difference."""
    written = cards.write_model_card(folder).read_text(encoding="utf-8")
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(written, encoding="utf-8")
    assert written == GOLDEN.read_text(encoding="utf-8")
    assert not list(folder.glob(".*"))


def test_metadata_holds_the_figures(folder, validate):
    card = ModelCard.load(cards.write_model_card(folder))
    validate(card)
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {
        "roc_auc": 0.8654,
        "average_precision": 0.5432,
        "brier_score": 0.081,
        "expected_calibration_error": 0.02,
    }
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"


def test_validator_refuses_what_the_hub_would(folder, validate):
    text = cards.write_model_card(folder).read_text()
    for wrong in (
        text.replace("license: apache-2.0", "license: mine"),
        text.replace("pipeline_tag: tabular-classification", "pipeline_tag: ehr-classification"),
        text.replace("value: 0.8654", "value: .nan"),
    ):
        assert wrong != text
        with pytest.raises(ValueError, match="errors"):
            validate(ModelCard(wrong))


def test_card_without_a_run_says_so(bare, validate):
    card = cards.model_card(bare)
    validate(card)
    assert card.data.eval_results is None
    assert sections(card)["Data"] == sections(card)["Training"] == "Not recorded."
    assert sections(card)["Evaluation"] == "Not evaluated."
    assert "0." not in sections(card)["Evaluation"]


def test_missing_parts_of_an_evaluation_are_said_to_be_missing(folder):
    spare = {
        name: EVALUATION[name] for name in ("problem_type", "n", "num_records", "metrics", "confidence_intervals")
    }
    (folder / "evaluation.json").write_text(json.dumps(spare))
    section = sections(cards.model_card(folder))["Evaluation"]
    assert "Baselines: not evaluated." in section
    assert re.search(r"#### Calibration\n\nNot evaluated\.", section)
    assert re.search(r"#### Subgroups\n\nNot evaluated\.", section)
    assert "Attention" not in section


def test_every_evaluation_of_the_folder_is_shown(folder):
    test = {**EVALUATION, "split": "test", "metrics": {"auroc": 0.7777}, "split_fingerprint": "1111222233334444"}
    (folder / "evaluation_test.json").write_text(json.dumps(test))
    card = cards.model_card(folder)
    section = sections(card)["Evaluation"]
    assert section.count("also chose the weights") == 1  # of the validation split only
    assert "### mortality, test split, Stays of a hospital" in section
    assert "0.778" in section
    assert 0.7777 in [result.metric_value for result in card.data.eval_results]


def test_groups_of_few_records_are_hidden(folder):
    groups = EVALUATION["subgroups"]["sex"]
    groups = {**groups, "male": {**groups["male"], "n": 30, "num_records": SMALLEST_GROUP - 1, "positives": 3}}
    (folder / "evaluation.json").write_text(json.dumps({**EVALUATION, "subgroups": {"sex": groups}}))
    section = sections(cards.model_card(folder))["Evaluation"]
    assert "| male | fewer than 10 records | not shown | not shown | not shown |" in section
    assert "| female | 700 | 0.870" in section
    assert "| positive |" not in section  # the total less the others would give the hidden ones away


def test_command_hides_where_files_lie(folder):
    training = sections(cards.model_card(folder))["Training"]
    assert "hymate finetune --data prepared --task mortality --output a --epochs 3" in training
    assert "someone" not in training


HOSTILE = "x<script>alert(1)</script>\n---\nlicense: mit\n`|` [a](javascript:b) ```"


def test_names_are_escaped_wherever_a_card_says_them(folder, validate):
    """In the header, headings, tables, code and prose."""
    run = json.loads(json.dumps(RUN))
    run["data"] |= {"source": HOSTILE, "citation": HOSTILE, "description": HOSTILE, "dropped": {HOSTILE: 12}}
    run["task"] |= {"description": HOSTILE, "label_names": ["survived", HOSTILE]}
    run |= {"command": f"hymate finetune --data {HOSTILE}", "recipe": {"note": HOSTILE}, "checkpoint": HOSTILE}
    evaluation = json.loads(json.dumps(EVALUATION)) | {"source": HOSTILE, "variable_shares": {HOSTILE: 0.4}}
    evaluation["subgroups"] = {HOSTILE: {HOSTILE: EVALUATION["subgroups"]["sex"]["female"]}}
    gaps = evaluation["subgroup_gaps"].pop("sex")
    gaps["gaps"]["equalized_odds"] |= {"lowest": HOSTILE, "highest": HOSTILE}
    evaluation["subgroup_gaps"] = {HOSTILE: gaps}
    evaluation["baselines"] = {HOSTILE: EVALUATION["baselines"]["gradient-boosted trees"]}
    records = {"time": [0.0], "variable": [HOSTILE], "value": [1.0], "Age": 61.0, HOSTILE: HOSTILE}
    HyMaTEFeatureExtractor.fit(
        records, [HOSTILE], numeric_columns=["Age"], categorical_columns={HOSTILE: [HOSTILE]}
    ).save_pretrained(folder)
    (folder / "training_run.json").write_text(json.dumps(run))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    card = cards.model_card(folder)
    validate(card)
    assert card.data.license == "apache-2.0"
    assert list(sections(card)) == list(sections(ModelCard(GOLDEN.read_text(encoding="utf-8"))))
    rendered = MarkdownIt("commonmark").enable("table").render(card.text)
    assert "<script" not in rendered
    assert 'href="javascript:' not in rendered
    assert rendered.count("<hr") == 0
    for table in re.findall(r"<table>.*?</table>", rendered, re.DOTALL):
        widths = {row.count("<td") + row.count("<th>") for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)}
        assert len(widths) == 1


@pytest.mark.parametrize("problem_type", METRICS)
def test_card_of_every_problem_type(folder, validate, problem_type):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), 90)
    labels, predictions = {
        "binary": (np.arange(90) % 2, probabilities[:, 0]),
        "multiclass": (np.arange(90) % 3, probabilities),
        "multilabel": (rng.integers(0, 2, (90, 3)), probabilities),
        "regression": (rng.normal(size=90), rng.normal(size=90)),
        "time_to_event": (np.stack([1 + np.arange(90), np.arange(90) % 2], axis=1), probabilities.cumsum(axis=1)),
    }[problem_type]
    times = [20, 50, 80] if problem_type == "time_to_event" else None
    sample = LabeledPredictions(problem_type, labels, predictions, times=times)
    evaluation = report(sample, num_samples=50)
    evaluation["subgroups"] = {"half": subgroup_report(sample, np.arange(90) // 45, num_samples=50)}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    run = {**RUN, "task": {**RUN["task"], "problem_type": problem_type}}
    (folder / "training_run.json").write_text(json.dumps(run))
    card = cards.model_card(folder)
    validate(card)
    section = sections(card)["Evaluation"]
    for name, value in evaluation["metrics"].items():
        assert METRICS[problem_type][name] in section
        assert f"{value:.3f}" in section
    assert len(card.data.eval_results) == len(evaluation["metrics"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluation.json", "{", "is not JSON"),
        ("evaluation.json", "[]", "must hold an object"),
        ("evaluation.json", '{"auroc": 1}', "not what `hymate evaluate` writes"),
        ("training_run.json", "nothing", "is not JSON"),
    ],
)
def test_bad_files_are_named(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        cards.write_model_card(folder)
    assert not (folder / "README.md").exists()


def test_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"lacks config\.json"):
        cards.write_model_card(tmp_path)


def sections(card: ModelCard) -> dict[str, str]:
    """The card's text by its headings of the second level."""
    parts = re.split(r"^## (.+)$", card.text, flags=re.MULTILINE)[1:]
    return {title: body.strip() for title, body in zip(parts[::2], parts[1::2], strict=True)}
