"""The commands end to end, and what a user's mistake looks like."""

import json

import pytest

from hymate_training.cli.main import main
from tests.support.runs import TASK, TINY


@pytest.mark.parametrize("task", ["length_of_stay", "phenotypes", "discharge_destination"])
def test_every_problem_type_trains_evaluates_and_predicts(synthetic_folder, tmp_path, task):
    output = tmp_path / "run"
    common = ["--data", str(synthetic_folder), "--task", task]
    extra = {
        "phenotypes": ["--pos-weight", "balanced"],
        "length_of_stay": ["--mixed-precision", "bf16", "--gradient-accumulation-steps", "2"],
        "discharge_destination": ["--report-to", "tensorboard", "--max-events", "50"],
    }[task]
    assert main(["finetune", *common, "--output", str(output), "--epochs", "1", *extra, *TINY]) == 0
    assert ("tensorboard" in extra) == any((output / "logs").rglob("*tfevents*"))
    report = tmp_path / "test.json"
    assert main(["evaluate", *common, "--checkpoint", str(output), "--split", "test", "--output", str(report)]) == 0
    assert json.loads(report.read_text())["n"] > 0
    arguments = ["evaluate", *common, "--checkpoint", str(output), "--split", "validation", "--output", str(report)]
    assert main(arguments) == 0
    own = json.loads((output / "evaluation.json").read_text())
    assert json.loads(report.read_text())["metrics"] == pytest.approx(own["metrics"], rel=1e-4)  # with 50 events, too


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["finetune", "--data", "nowhere", "--task", TASK, "--output", "run"], "nowhere"),
        (["finetune", "--data", "{data}", "--task", "recovery", "--output", "run"], "recovery"),
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--recipe", "best"], "best"),
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--model", "hiden_size=8"], "hiden_size"),
        (
            ["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--model", "hidden_size=7"],
            "hidden_size",
        ),
        (
            ["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--model", "num_hidden_layers=3"],
            "num_hidden_layers",
        ),
        (
            ["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--model", "num_variables=5"],
            "num_variables follows from the data",
        ),
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--learning-rate", "0"], "learning_rate"),
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--resume"], "resume"),
        (
            ["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--auxiliary-tasks", "saps_i"],
            '--auxiliary-tasks "" trains without any',
        ),
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "{data}"], "not empty"),
        (
            ["evaluate", "--checkpoint", "{data}", "--data", "{data}", "--task", TASK, "--output", "x.json"],
            "checkpoint",
        ),
        (["predict", "--checkpoint", "{run}", "--events", "gone.csv", "--output", "x.csv"], "gone.csv"),
        (
            ["predict", "--checkpoint", "no/such", "--events", "x.csv", "--output", "y.csv"],
            "no/such is not a folder",
        ),
        (["predict", "--checkpoint", "{run}", "--events", "gone.csv", "--output", "x.txt"], "x.txt"),
    ],
)
def test_mistakes_end_with_one_line_and_leave_nothing(
    synthetic_folder, finetuned, tmp_path, monkeypatch, capsys, arguments, complaint
):
    monkeypatch.chdir(tmp_path)
    arguments = [part.format(data=synthetic_folder, run=finetuned) for part in arguments]
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint in message
    assert "Traceback" not in message
    assert not list(tmp_path.iterdir())
