"""`hymate serve` as a process: asked over the loopback, killed, and started again."""

import signal

import polars as pl
import pytest

from benchmarks.soak import random_records, serving
from hymate_training.cli.main import main
from hymate_training.inference.prediction import predict
from tests.serving.conftest import FOLDER
from tests.serving.test_predictions import tables


def test_answers_kill_and_restart(tmp_path):
    state = tmp_path / "streams.safetensors"
    records = random_records(FOLDER, 4, seed=6)
    expected = predict(FOLDER, *tables(records)).frame
    with serving(FOLDER, state) as service:
        status, answered = service.request("POST", "/predict", {"records": records})
        assert status == 200
        for one in answered["predictions"]:
            row = expected.row(by_predicate=pl.col("record_id") == one["record_id"], named=True)
            assert one["probabilities"] == pytest.approx({name: row[name] for name in one["probabilities"]}, abs=1e-6)
        name = service.request("POST", "/streams", {"static": records[0]["static"]})[1]["id"]
        _, before = service.request("POST", f"/streams/{name}/events", {"events": records[0]["events"]})
        assert service.request("POST", "/predict", {"records": 1})[0] == 422
        service.process.send_signal(signal.SIGTERM)
        _, log = service.process.communicate(timeout=60)
    assert name not in log.decode()
    assert records[0]["record_id"] not in log.decode()
    with serving(FOLDER, state) as service:
        _, after = service.request("GET", f"/streams/{name}")
        assert after["probabilities"] == before["probabilities"]
        assert after["num_events"] == len(records[0]["events"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--checkpoint", "gone"], "gone is not a folder"),
        (["--checkpoint", str(FOLDER), "--host", "0.0.0.0"], "set HYMATE_TOKEN"),
        (["--checkpoint", str(FOLDER), "--max-streams", "0"], "streams must be a positive number"),
        (["--checkpoint", str(FOLDER), "--state", "{tmp}/bad.safetensors"], "bad.safetensors is damaged"),
    ],
)
def test_mistakes_end_with_one_line(arguments, complaint, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HYMATE_TOKEN", raising=False)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    assert main(["serve", *(part.format(tmp=tmp_path) for part in arguments)]) == 2
    message = capsys.readouterr().err.strip()
    assert complaint in message
    assert "\n" not in message
