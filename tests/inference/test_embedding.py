"""Representations: the heads start from them, and they belong to their records."""

import dataclasses
from pathlib import Path

import polars as pl
import pytest
import torch

from benchmarks.soak import random_records
from hymate_training.cli.main import main
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.embedding import embed
from hymate_training.inference.prediction import predict

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
CLASSIFIER = CHECKPOINTS / "classification"


@pytest.fixture(scope="module")
def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events and static columns of 30 records."""
    records = random_records(CLASSIFIER, 30, seed=7)
    rows = [{"record_id": record["record_id"], **event} for record in records for event in record["events"]]
    return pl.DataFrame(rows), pl.DataFrame([{"record_id": one["record_id"], **one["static"]} for one in records])


def test_the_classifier_starts_from_them(tables):
    opened = load_checkpoint(CLASSIFIER)
    found = embed(CLASSIFIER, *tables, batch_size=7).frame
    expected = predict(opened, *tables).frame
    assert found["record_id"].to_list() == expected["record_id"].to_list()
    with torch.no_grad():
        logits = opened.model.classifier(torch.tensor(found["embedding"].to_numpy()))
        probabilities = opened.model.predictions(logits)
    for index, name in enumerate(opened.label_names):
        assert probabilities[:, index].tolist() == pytest.approx(expected[name].to_list(), abs=1e-6)
    assert found["embedding"].dtype == pl.Array(pl.Float32, opened.model.config.pooler_size)


def test_an_open_checkpoint_and_an_order_of_records_change_nothing(tables):
    events, static = tables
    found = embed(CLASSIFIER, events, static).frame
    backwards = events.reverse()
    other = embed(dataclasses.replace(load_checkpoint(CLASSIFIER)), backwards, static.reverse(), batch_size=3).frame
    both = found.join(other, on="record_id", suffix="_other")
    assert both.height == 30
    difference = both["embedding"].to_numpy() - both["embedding_other"].to_numpy()
    assert abs(difference).max() < 1e-5


def test_encoders_without_a_head_embed_to_a_file(tables, tmp_path, capsys):
    events, static = tables
    unknown = events.head(1).with_columns(variable=pl.lit("Cough"))
    pl.concat([events, unknown]).write_csv(tmp_path / "events.csv")
    static.write_csv(tmp_path / "static.csv")
    output = tmp_path / "embeddings.parquet"
    run = ["embed", "--checkpoint", str(CHECKPOINTS / "pretraining"), "--events", str(tmp_path / "events.csv")]
    run += ["--static", str(tmp_path / "static.csv"), "--output", str(output)]
    assert main(run) == 2
    assert "Cough" in capsys.readouterr().err
    assert main([*run, "--ignore-unknown-variables"]) == 0
    assert "30 records" in (said := capsys.readouterr().out)
    assert "dropped 1 events of unknown variables" in said
    assert main([*run, "--ignore-unknown-variables"]) == 2
    assert "is there already" in capsys.readouterr().err
    written = pl.read_parquet(output)
    expected = embed(CHECKPOINTS / "pretraining", events, static).frame
    columns = ["record_id", "embedding"]
    assert written.sort("record_id").select(columns).equals(expected.sort("record_id").select(columns))
    assert written["remarks"].is_not_null().sum() == 1


def test_at_hours_they_are_those_of_records_cut_there(tables):
    events, static = tables
    found = embed(CLASSIFIER, events, static, every=12).frame
    assert found["prediction_time"].unique().sort().to_list() == [12.0, 24.0, 36.0, 48.0]
    seen = events.filter(pl.col("time") <= 24)
    cut = embed(CLASSIFIER, seen, static, at=pl.DataFrame({"record_id": static["record_id"], "prediction_time": 24.0}))
    both = found.filter(pl.col("prediction_time") == 24).join(cut.frame, on="record_id", suffix="_cut")
    assert both.height > 20
    assert abs(both["embedding"].to_numpy() - both["embedding_cut"].to_numpy()).max() < 1e-5


def test_a_record_without_events_is_represented_and_remarked(tables):
    events, static = tables
    extra = pl.concat([static, pl.DataFrame({"record_id": ["new"], "Age": [40.0]})], how="diagonal")
    found = embed(CLASSIFIER, events, extra).frame.filter(pl.col("record_id") == "new")
    assert found.height == 1
    assert "no events" in found["remarks"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"output": "x.csv"}, r"must end in \.parquet"), ({"batch_size": 0}, "at least 1"), ({"checkpoint": "no"}, "no")],
)
def test_mistakes_are_named(tables, change, message):
    arguments = {"checkpoint": CLASSIFIER, "events": tables[0]} | change
    with pytest.raises(ValueError, match=message):
        embed(**arguments)
