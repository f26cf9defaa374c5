"""What a user might write instead of `hymate` for MIMIC-IV: features of polars, trees of XGBoost.

python -m benchmarks.pipeline_trees RAW OUTPUT.parquet
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
import xgboost

from hymate_training.files import writing_file

# table -> what stands for time and value
STAY_EVENTS = {
    "chartevents": ("charttime", "valuenum"),
    "inputevents": ("endtime", "amount"),
    "outputevents": ("charttime", "value"),
    "procedureevents": ("endtime", "value"),
}
TREES = {"n_estimators": 200, "max_depth": 4, "learning_rate": 0.1, "tree_method": "hist"}


def read(raw: Path, name: str, columns: list[str]) -> pl.DataFrame:
    """Columns of a table."""
    folder = "hosp" if name in ("admissions", "labevents") else "icu"
    return pl.read_csv(raw / folder / f"{name}.csv.gz", columns=columns, infer_schema_length=None)


def features(raw: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A row per stay: stay_id and its features; and stay_id and whether the patient died in the hospital."""
    stays = read(raw, "icustays", ["stay_id", "subject_id", "hadm_id", "intime", "outtime"])
    stays = stays.with_columns(pl.col("intime", "outtime").str.to_datetime())
    parts = []
    for name, (time, value) in STAY_EVENTS.items():
        rows = read(raw, name, ["stay_id", "itemid", time, value])
        parts.append(_long(rows, time, value).select("stay_id", "itemid", "time", "value"))
    labs = _long(read(raw, "labevents", ["subject_id", "itemid", "charttime", "valuenum"]), "charttime", "valuenum")
    labs = labs.join(stays.select("subject_id", "stay_id", "intime", "outtime"), on="subject_id")
    labs = labs.filter(pl.col("time").is_between("intime", "outtime"))
    parts.append(labs.select("stay_id", "itemid", "time", "value"))
    events = pl.concat(parts).sort("time")
    statistics = events.group_by("stay_id", "itemid").agg(
        count=pl.len(),
        mean=pl.col("value").mean(),
        min=pl.col("value").min(),
        max=pl.col("value").max(),
        last=pl.col("value").last(),
    )
    names = ["count", "mean", "min", "max", "last"]
    wide = statistics.pivot("itemid", index="stay_id", values=names)
    died = stays.join(read(raw, "admissions", ["hadm_id", "hospital_expire_flag"]), on="hadm_id")
    return wide, died.select("stay_id", died="hospital_expire_flag")


def _long(rows: pl.DataFrame, time: str, value: str) -> pl.DataFrame:
    rows = rows.drop_nulls([time, value])
    return rows.with_columns(time=pl.col(time).str.to_datetime(), value=pl.col(value).cast(pl.Float32))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("raw", type=Path, help="Folder of MIMIC-IV.")
    parser.add_argument("output", type=Path, help="Parquet file of predictions.")
    args = parser.parse_args()
    wide, died = features(args.raw)
    table = wide.join(died, on="stay_id", how="left", maintain_order="left")
    matrix = table.drop("stay_id", "died").cast(pl.Float32).to_numpy()
    outcome = table["died"].to_numpy()
    train = np.random.default_rng(0).random(len(outcome)) < 0.7
    model = xgboost.XGBClassifier(**TREES).fit(matrix[train], outcome[train])
    predicted = table.select("stay_id").with_columns(died=pl.Series(model.predict_proba(matrix)[:, 1]))
    with writing_file(args.output) as incoming:
        predicted.write_parquet(incoming)


if __name__ == "__main__":
    main()
