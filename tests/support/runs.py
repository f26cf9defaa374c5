"""Small training runs that several tests share."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from configuration_hymate import HyMaTEConfig
from hymate_training.data.collators import fit_feature_extractor
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.fitting.loop import TrainingLoop
from hymate_training.inference.checkpoints import save_checkpoint
from modeling_hymate import HyMaTEForSequenceClassification
from tests.support.helpers import perturbed

TASK = "in_hospital_mortality"
TINY_MODEL = {
    "hidden_size": 8,
    "num_mamba_layers": 1,
    "num_attention_heads": 2,
    "num_pooling_queries": 2,
    "state_size": 4,
}
TINY = ["--model", *(f"{name}={value}" for name, value in TINY_MODEL.items()), "--batch-size", "16"]


def hymate(*arguments: object, launcher: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess:
    """Runs the command in a process of its own."""
    command = [sys.executable, *launcher, "-m", "hymate_training", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, **environment}, check=False
    )


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Has training in this process get a signal to stop in its step of this number, counted over all its runs."""
    step, calls = TrainingLoop._step, []

    def step_then_signal(self, *args):
        calls.append(1)
        if len(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(TrainingLoop, "_step", step_then_signal)


def save_untrained(prepared: Path, folder: Path) -> Path:
    """Writes a classifier of survival that was never trained and fits a prepared folder; its folder."""
    extractor = fit_feature_extractor(PreparedFolder(prepared))
    config = HyMaTEConfig(
        **TINY_MODEL,
        num_variables=extractor.num_variables,
        num_static_features=len(extractor.static_feature_names),
        time_scale=extractor.time_scale,
        id2label={0: "survived", 1: "died"},
        problem_type="single_label_classification",
    )
    torch.manual_seed(0)
    save_checkpoint(perturbed(HyMaTEForSequenceClassification(config)), extractor, folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint."""
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    """Asserts that two checkpoints are equal bit by bit."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def event_frame(folder: Path, records: int = 5) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events and static columns of a few test records of a prepared folder, as a user would have them."""
    data = PreparedFolder(folder)
    frame = pl.DataFrame(pl.from_arrow(data.records("test").slice(0, records)))
    events = frame.select("record_id", "time", "variable", "value").explode("time", "variable", "value")
    events = events.with_columns(variable=pl.Series(data.info.variables).gather(events["variable"]))
    return events, frame.select("record_id", *(column.name for column in data.info.static_columns))
