"""Interrupted runs: whenever a run is stopped, it continues exactly, and what is damaged is refused."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hymate_training.cli.main import main
from hymate_training.fitting import state
from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from hymate_training.fitting.loop import InterruptedRunError, write_checkpoint
from hymate_training.inference.checkpoints import CONFIG_FILE, EXTRACTOR_FILE, WEIGHTS_FILE
from tests.support.kills import CONTEXT, killed_at_write, num_writes
from tests.support.runs import TASK, TINY, TINY_MODEL, assert_same_weights, stop_after, weights

NUM_KILLS = 12
CHECKPOINT_FILES = {CONFIG_FILE, EXTRACTOR_FILE, WEIGHTS_FILE}
OPTIONS = FinetuneOptions(epochs=2, batch_size=16, save_steps=3, ema_decay=0.9, model=TINY_MODEL)


@pytest.fixture(scope="module")
def whole(synthetic_folder, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    return finetune(synthetic_folder, TASK, tmp_path_factory.mktemp("whole") / "run", OPTIONS).output


@pytest.fixture
def stopped(synthetic_folder, tmp_path, monkeypatch) -> Path:
    """The same run, stopped by a signal in the middle of an epoch and not at a saved step."""
    stop_after(monkeypatch, 5)
    with pytest.raises(InterruptedRunError):
        finetune(synthetic_folder, TASK, tmp_path / "run", OPTIONS)
    monkeypatch.undo()
    return tmp_path / "run"


def assert_same_run(one: Path, other: Path) -> None:
    assert_same_weights(one, other)
    assert_same_weights(one / "last", other / "last")
    accounts = [json.loads((run / "training_run.json").read_text()) for run in (one, other)]
    for account in accounts:
        for entry in account["history"]:
            entry.pop("seconds")
    assert accounts[0]["history"] == accounts[1]["history"]
    assert accounts[0]["temperature"] == accounts[1]["temperature"]
    names = [{path.name for path in run.iterdir()} for run in (one, other)]
    assert names[0] == names[1]


@pytest.mark.parametrize("extra", [[], ["--gradient-accumulation-steps", "2", "--ema-decay", "0.9"]])
def test_interrupted_run_resumes_exactly(synthetic_folder, tmp_path, extra, monkeypatch, capsys):
    arguments = ["finetune", "--data", synthetic_folder, "--task", TASK, "--epochs", "2", "--save-steps", "3"]
    arguments = [*map(str, arguments), *extra, *TINY]
    complete, interrupted = tmp_path / "whole", tmp_path / "stopped"
    assert main([*arguments, "--output", str(complete)]) == 0
    stop_after(monkeypatch, 5)
    assert main([*arguments, "--output", str(interrupted)]) == 130
    assert "stopped at step 5; --resume continues" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*arguments, "--output", str(interrupted)]) == 2
    assert "--resume continues the run in it" in capsys.readouterr().err
    assert main([*arguments, "--output", str(interrupted), "--resume", "--batch-size", "7"]) == 2
    assert "batch_size was" in capsys.readouterr().err
    other_task = ["phenotypes" if part == TASK else part for part in arguments]
    assert main([*other_task, "--output", str(interrupted), "--resume"]) == 2
    assert f"task was '{TASK}'" in capsys.readouterr().err
    assert main([*arguments, "--output", str(interrupted), "--resume"]) == 0
    assert_same_run(complete, interrupted)


def test_a_run_that_is_over_says_what_it_found(synthetic_folder, whole):
    before = weights(whole)
    result = finetune(synthetic_folder, TASK, whole, OPTIONS, resume=True)
    assert [entry["epoch"] for entry in result.history] == [1, 2]
    assert result.evaluation.content == json.loads((whole / "evaluation.json").read_text())
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(whole).items())
    with pytest.raises(ValueError, match=f"task was '{TASK}' in the run"):
        finetune(synthetic_folder, "phenotypes", whole, OPTIONS, resume=True)
    with pytest.raises(ValueError, match=r"epochs was 2 in the run that .* holds, and is 3 now"):
        finetune(synthetic_folder, TASK, whole, FinetuneOptions(**{**vars(OPTIONS), "epochs": 3}), resume=True)


@pytest.fixture(scope="module")
def total_writes(synthetic_folder, tmp_path_factory) -> int:
    """How often a whole run writes."""
    return num_writes(synthetic_folder, tmp_path_factory.mktemp("counted") / "run", vars(OPTIONS))


@pytest.mark.skipif(CONTEXT is None, reason="needs fork")
@pytest.mark.parametrize("draw", range(NUM_KILLS))
def test_a_run_killed_at_any_write_continues_exactly(draw, synthetic_folder, whole, total_writes, tmp_path):
    """Twice in a row, at writes drawn from all of a run: states, checkpoints, the account, the card, the end."""
    output = tmp_path / "run"
    generator = random.Random(draw)
    assert total_writes > 100
    last = total_writes if draw % 3 else 12  # every third among the first writes
    was_killed = killed_at_write(synthetic_folder, output, vars(OPTIONS), generator.randint(1, last))
    if was_killed and is_resumable(output):
        killed_at_write(synthetic_folder, output, vars(OPTIONS), generator.randint(1, last), resume=True)
    finetune(synthetic_folder, TASK, output, OPTIONS, resume=is_resumable(output))
    assert_same_run(whole, output)


def is_resumable(output: Path) -> bool:
    """Whether a person would give --resume: something of the run is there."""
    return output.is_dir() and any(output.iterdir())


@pytest.mark.skipif(CONTEXT is None, reason="needs fork")
def test_a_run_killed_before_its_first_state_can_also_start_anew(synthetic_folder, whole, tmp_path):
    output = tmp_path / "run"
    assert killed_at_write(synthetic_folder, output, vars(OPTIONS), 4)
    assert {path.name for path in output.iterdir()} == {"state"}
    finetune(synthetic_folder, TASK, output, OPTIONS)
    assert_same_run(whole, output)


@pytest.mark.parametrize("moves", range(6))
def test_weights_come_with_all_that_they_need(moves, pretrained, tmp_path, monkeypatch):
    """A checkpoint that is interrupted between two of its files either has no weights yet or is whole."""
    replace, moved = os.replace, []

    def interrupted(*paths):
        if len(moved) == moves:
            raise InterruptedRunError
        moved.append(paths)
        replace(*paths)

    def save(_, folder: Path) -> None:
        for name in CHECKPOINT_FILES:
            shutil.copyfile(pretrained / name, folder / name)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(InterruptedRunError):
        write_checkpoint(None, save, tmp_path / "run")
    monkeypatch.undo()
    held = {path.name for path in (tmp_path / "run").glob("*.*") if not path.name.startswith(".")}
    assert WEIGHTS_FILE not in held or held == CHECKPOINT_FILES


def current(output: Path) -> Path:
    return output / "state" / json.loads((output / "state" / "current").read_text())["state"]


def test_a_state_holds_no_pickle_and_one_is_kept(stopped):
    (folder,) = (path for path in (stopped / "state").iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {"random-0.json", "state.json", "tensors.safetensors"}
    assert folder == current(stopped)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("random-0.json", lambda path: path.unlink(), "random-0.json is missing"),
        ("random-0.json", lambda path: path.write_bytes(path.read_bytes()[:100]), "random-0.json is damaged"),
        ("tensors.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1]), "tensors.safetensors is dam"),
        ("state.json", lambda path: path.write_text(path.read_text().replace("0.9", "0.8")), "state.json is damaged"),
        ("../current", lambda path: path.write_text("000001"), "current does not name a saved state"),
        (
            "../current",
            lambda path: path.write_text('{"state": "..", "sha256": ""}'),
            "does not name a saved state",
        ),
    ],
)
def test_a_damaged_state_is_refused(name, change, message, stopped, synthetic_folder):
    change(current(stopped) / name)
    with pytest.raises(ValueError, match=message):
        finetune(synthetic_folder, TASK, stopped, OPTIONS, resume=True)


def test_other_labels_are_noticed(stopped, synthetic_folder, tmp_path):
    import polars as pl  # noqa: PLC0415 - used here only

    data = tmp_path / "data"
    shutil.copytree(synthetic_folder, data)
    path = data / "tasks" / TASK / "train.parquet"
    frame = pl.read_parquet(path)
    flipped = frame.with_columns(boolean_value=pl.col("boolean_value") ^ (pl.int_range(pl.len()) == 3))
    path.write_bytes(b"")
    flipped.write_parquet(path)
    with pytest.raises(ValueError, match="data was"):
        finetune(data, TASK, stopped, OPTIONS, resume=True)


def test_random_generators_continue_where_they_were():
    device = torch.device("cpu")
    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # noqa: NPY002 - the global generator is what is saved
    random.gauss(0, 1), np.random.normal()  # noqa: NPY002 - each keeps a second number for the next call
    kept = json.loads(json.dumps(state._random_state(device)))

    def draw():
        return random.gauss(0, 1), np.random.normal(), float(torch.rand(1))  # noqa: NPY002 - as above

    expected = draw()
    draw()
    state._restore_random_state(kept, device)
    assert draw() == expected
