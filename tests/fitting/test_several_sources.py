"""Pretraining on several sources: restarted, in several processes, and what it says of each source."""

import json
from pathlib import Path

import pytest
import torch

from hymate_training.cli.main import main
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.fitting.loop import InterruptedRunError
from hymate_training.fitting.pretraining import PretrainOptions, pretrain
from hymate_training.publishing.push import plan_push
from tests.fitting.test_resume import stop_after
from tests.support.runs import TINY, TINY_MODEL, assert_same_weights, hymate, weights

OPTIONS = PretrainOptions(epochs=2, batch_size=16, save_steps=3, cuts_per_record=2, model=TINY_MODEL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Two sources of different size, by concepts."""
    made = []
    for seed, records in ((0, 120), (1, 40)):
        made.append(tmp_path_factory.mktemp("source") / f"prepared{seed}")
        numbers = ["--num-records", str(records), "--seed", str(seed)]
        assert main(["prepare", "synthetic", *numbers, "--concepts", "--output", str(made[-1])]) == 0
    return made


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory) -> Path:
    return pretrain(folders, tmp_path_factory.mktemp("whole") / "run", OPTIONS).output


def test_an_interrupted_run_resumes_exactly(folders, whole, tmp_path, monkeypatch):
    stop_after(monkeypatch, 8)
    with pytest.raises(InterruptedRunError):
        pretrain(folders, tmp_path / "run", OPTIONS)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="data was"):
        pretrain(folders[:1], tmp_path / "run", OPTIONS, resume=True)
    with pytest.raises(ValueError, match=r"source_temperature was 2\.0"):
        pretrain(folders, tmp_path / "run", PretrainOptions(**vars(OPTIONS) | {"source_temperature": 1.0}), True)
    resumed = pretrain(folders, tmp_path / "run", OPTIONS, resume=True)
    assert_same_weights(whole, resumed.output)
    assert_same_weights(whole / "last", resumed.output / "last")
    again = pretrain(folders, tmp_path / "run", OPTIONS, resume=True)  # over: it says what it found
    assert again.sources == resumed.sources
    assert again.history == resumed.history


def test_account_and_card_name_every_source(folders, whole):
    account = json.loads((whole / "training_run.json").read_text())
    names = [PreparedFolder(folder).fingerprint for folder in folders]
    assert [source["fingerprint"] for source in account["sources"]] == names
    for split in ("train", "validation"):
        records = [source["num_records"][split] for source in account["sources"]]
        assert sum(records) == account["num_records"][split]
    large, small = (source["num_records"]["train"] for source in account["sources"])
    shares = [source["share_of_epoch"] for source in account["sources"]]
    assert sum(shares) == pytest.approx(1)
    assert shares[1] == pytest.approx(small**0.5 / (small**0.5 + large**0.5), abs=0.01)
    for entry in account["history"]:
        errors = [entry["forecast_error_source1"], entry["forecast_error_source2"]]
        assert min(errors) <= entry["forecast_error"] <= max(errors)
    card = (whole / "README.md").read_text()
    assert "2 sources, each prepared with `--concepts`" in card
    assert card.count("synthetic ICU stays. License:") == 2
    plan = plan_push(whole)  # nothing of it keeps the checkpoint from being pushed
    assert "training_run.json" in plan.uploaded


def test_the_command_reports_what_sources_share(folders, tmp_path, capsys):
    data = [part for folder in folders for part in ("--data", str(folder))]
    assert main(["pretrain", *data, "--output", str(tmp_path / "run"), "--epochs", "1", *TINY]) == 0
    said = capsys.readouterr().out
    variables = len(PreparedFolder(folders[0]).info.variables)
    assert said.count(f"{variables} of its {variables} variables are in another source.") == 2


def test_a_source_without_concepts_is_refused(folders, synthetic_folder, tmp_path, capsys):
    arguments = ["pretrain", "--data", folders[0], "--data", synthetic_folder, "--output", tmp_path / "run"]
    assert main(list(map(str, arguments))) == 2
    assert f"{synthetic_folder} was not prepared with --concepts" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_records_longer_than_max_events_are_counted_for_their_source(folders, tmp_path):
    options = PretrainOptions(epochs=1, batch_size=16, cuts_per_record=3, max_events=40, model=TINY_MODEL)
    (entry,) = pretrain(folders, tmp_path / "run", options).history
    errors = [entry["mean_error_source1"], entry["mean_error_source2"]]
    assert min(errors) < entry["mean_error"] < max(errors)


def test_two_processes_train_as_one_with_twice_the_batch(folders, tmp_path):
    model = TINY_MODEL | {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    options = {"epochs": 1, "batch_size": 8, "variable_dropout": 0.0}
    alone = pretrain(folders, tmp_path / "one", PretrainOptions(**options, gradient_accumulation_steps=2, model=model))
    shared = hymate(
        *["pretrain", *(part for folder in folders for part in ("--data", folder)), "--output", tmp_path / "two"],
        *(part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)),
        *["--model", *(f"{name}={value}" for name, value in model.items())],
        launcher=["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
    )
    assert shared.returncode == 0, shared.stderr[-2000:]
    one, two = weights(alone.output), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)
    account = json.loads((tmp_path / "two" / "training_run.json").read_text())
    assert account["hardware"]["processes"] == 2
    assert account["sources"] == alone.sources
    for name in ("forecast_error_source1", "forecast_error_source2"):
        assert account["history"][0][name] == pytest.approx(alone.history[0][name], rel=0.01)
