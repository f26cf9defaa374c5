"""Prediction on a Ray cluster of this machine: workers share the parts, one is lost, nothing is missing."""

import threading
import time

import polars as pl
import pytest

from hymate_training.cli.main import main
from hymate_training.inference.cluster import predict_on_ray
from hymate_training.inference.prediction import predict
from tests.support.clusters import two_machines
from tests.support.runs import event_frame

pytest.importorskip("ray", reason="the extra [ray] is not installed")


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with two_machines() as started:
        yield started


@pytest.mark.timeout(600)
def test_a_lost_machine_loses_nothing(synthetic_folder, finetuned, tmp_path, cluster):
    events, static = event_frame(synthetic_folder, 60)
    events.write_csv(tmp_path / "events.csv")
    times = events.group_by("record_id", maintain_order=True).agg(prediction_time=pl.col("time").max())
    times.write_csv(tmp_path / "times.csv")
    static.write_parquet(tmp_path / "static.parquet")
    tables = (finetuned, tmp_path / "events.csv", tmp_path / "static.parquet")
    options = {"at": tmp_path / "times.csv", "untrained_hours": True}
    expected = predict(*tables, **options)
    options |= {"address": cluster.address, "events_per_part": 100}
    whole = predict_on_ray(*tables, tmp_path / "whole", **options)
    assert len(whole.machines) == 2  # both did work
    assert whole.frame.drop("died", "survived").equals(expected.frame.drop("died", "survived"))
    nodes = list(cluster.worker_nodes)
    removed = threading.Event()

    def remove_one() -> None:
        while len(list(tmp_path.glob(".*/part-*.parquet"))) < 2:
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)
        removed.set()

    watcher = threading.Thread(target=remove_one, daemon=True)
    watcher.start()
    found = predict_on_ray(*tables, tmp_path / "out", **options)
    assert removed.wait(60)
    parts = sorted((tmp_path / "out").iterdir())
    assert len(parts) > 20
    written = pl.concat(map(pl.read_parquet, parts))
    assert written["record_id"].to_list() == expected.frame["record_id"].to_list()
    assert written["died"].to_list() == pytest.approx(expected.frame["died"].to_list(), abs=1e-6)
    assert found.remarks == expected.remarks


def test_what_the_engine_does_not_take(synthetic_folder, finetuned, tmp_path, capsys):
    events, _ = event_frame(synthetic_folder)
    events.with_columns(value=pl.lit("yes")).write_csv(tmp_path / "events.csv")
    command = ["predict", "--checkpoint", str(finetuned), "--events", str(tmp_path / "events.csv")]
    command += ["--output", str(tmp_path / "out"), "--engine", "ray"]
    assert main(command) == 2
    assert "the engine ray takes Parquet, or CSV with commas, of record_id" in capsys.readouterr().err
    assert main([*command, "--columns", "value=x"]) == 2
    assert "--columns is for --engine local" in capsys.readouterr().err
