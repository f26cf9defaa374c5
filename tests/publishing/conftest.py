"""A loopback Hub with a client in a process of its own, and checkpoints as training leaves them."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hymate_training.evaluation.decisions import net_benefit, threshold_table
from hymate_training.evaluation.gaps import subgroup_gaps
from hymate_training.evaluation.metrics import report, subgroup_report
from hymate_training.evaluation.plots import save_plots
from hymate_training.evaluation.recalibration import calibration
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.publishing.cards import write_model_card
from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForSequenceClassification
from tests.support.helpers import tiny_config
from tests.support.hub_client import ClientError, attempt, prepare_client
from tests.support.hub_server import TOKEN, HubServer

RECORD = {"time": [0.0, 1.0], "variable": ["HR", "GCS"], "value": [90.0, 14.0], "Age": 60.0, "Sex": "f"}
RUN = {
    "kind": "finetune",
    "command": "hymate finetune --data /home/someone/prepared --task mortality --output runs/a",
    "recipe": {"epochs": 3, "model": {"hidden_size": 16, "half_lives": [2.0, 6.0]}, "report_to": None},
    "seed": 7,
    "history": [{"epoch": 1, "seconds": 2.0, "auroc": 0.8, "score": 1.2}],
    "task": {
        "name": "mortality",
        "description": "Death in the hospital, asked at 48 hours",
        "problem_type": "binary",
        "label_columns": ["boolean_value"],
        "label_names": ["survived", "died"],
    },
    "data": {"source": "Stays of a hospital", "license": "odc-by", "dropped": {"no events": 12}},
    "split_fingerprints": {"validation": "fedcba9876543210"},
    "num_records": {"validation": 90},
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the account of its training, an evaluation of 90 records, plots and a card. Read it only."""
    folder = tmp_path_factory.mktemp("push") / "checkpoint"
    extractor = HyMaTEFeatureExtractor.fit(
        RECORD, ["HR", "GCS"], numeric_columns=["Age"], categorical_columns={"Sex": ["f", "m"]}
    )
    labels = {0: "survived", 1: "died"}
    config = tiny_config(num_variables=2, num_static_features=5, id2label=labels, time_scale=extractor.time_scale)
    HyMaTEForSequenceClassification(config).save_pretrained(folder)
    extractor.save_pretrained(folder)
    labels, probabilities = np.arange(90) % 2, np.random.default_rng(0).random(90)
    sample = LabeledPredictions("binary", labels, probabilities)
    sexes = np.where(np.arange(90) < 3, "unknown", np.where(np.arange(90) % 3, "f", "m"))
    evaluation = report(sample, num_samples=20) | {
        "task": "mortality",
        "split": "validation",
        "source": "Stays of a hospital",
        "subgroups": {"Sex": subgroup_report(sample, sexes, num_samples=20)},
        "variable_shares": {"HR": 0.6, "GCS": 0.4},
        "calibration": calibration(sample),
        "net_benefit": net_benefit(sample, [0.1, 0.5]),
        "decision_threshold": 0.5,
        "thresholds": threshold_table(sample, [0.1, 0.5]),
        "subgroup_gaps": subgroup_gaps(sample, {"Sex": sexes}, 0.5),
    }
    evaluation["plots"] = [path.name for path in save_plots(sample, folder, "evaluation", evaluation)]
    (folder / "training_run.json").write_text(json.dumps(RUN))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    write_model_card(folder)
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def server() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


@pytest.fixture
def hub(server) -> HubServer:
    """The server, empty."""
    server.repos.clear()
    server.blobs.clear()
    server.requests.clear()
    return server


@pytest.fixture(scope="session")
def pool(server, tmp_path_factory) -> Iterator[ProcessPoolExecutor]:
    settings = {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path_factory.mktemp("hf_home")),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HYMATE_SCAN_BACKEND": "chunked",
        "NO_PROXY": "127.0.0.1",
    }
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=prepare_client) as executor:
        with pytest.MonkeyPatch.context() as patch:  # for the process alone, which starts here
            for name, value in settings.items():
                patch.setenv(name, value)
            executor.submit(os.getpid).result(timeout=120)
        yield executor


@pytest.fixture
def client(pool, tmp_path) -> Callable[..., Any]:
    """`client(function, *arguments)` runs one of this file's functions in the client's process.

    The function's first argument is a cache folder of this test's own. What it raises comes back as a ClientError.
    """

    def call(function: Callable, *arguments):
        outcome = pool.submit(attempt, function, tmp_path / "cache", *arguments).result(timeout=120)
        if "error" in outcome:
            raise ClientError(outcome["error"])
        return outcome["result"]

    return call
