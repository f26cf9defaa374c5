"""Labels for a MEDS data set from its own events: does a stay in the hospital last longer than a week?

    python examples/meds_labels.py --raw MEDS --output labels/long_stay
    hymate prepare meds --raw MEDS --labels labels/long_stay --output prepared

Asked 24 hours after each admission, of patients who are still there. The answer is when the next discharge comes, dead
or alive; a stay whose discharge is not in the data has none. Codes of diagnoses and billing that the hospital writes
at discharge lie after the question. Needs the package meds, whose schema every shard is checked with.
"""

import argparse
from datetime import timedelta
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
from meds import LabelSchema

ADMISSION, DISCHARGE = "HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE"  # as the MEDS edition of MIMIC-IV has them
ASKED_AFTER = timedelta(hours=24)
LONG = timedelta(days=7)


def label_stays(events: pl.DataFrame) -> pl.DataFrame:
    """subject_id, prediction_time and boolean_value of every stay in `events` (subject_id, time, code)."""

    def times_of(kind: str, name: str) -> pl.DataFrame:
        is_kind = (pl.col("code") == kind) | pl.col("code").str.starts_with(f"{kind}//")
        return events.filter(is_kind).select("subject_id", pl.col("time").alias(name)).unique().sort(name)

    stays = times_of(ADMISSION, "admitted").join_asof(
        times_of(DISCHARGE, "discharged"),
        left_on="admitted",
        right_on="discharged",
        by="subject_id",
        strategy="forward",
        allow_exact_matches=False,
        check_sortedness=False,  # it cannot be checked with `by`; both are sorted above
    )
    # who is moved from ward to ward may be admitted twice before being discharged once: that is one stay
    stays = stays.unique(["subject_id", "discharged"], keep="first", maintain_order=True)
    stays = stays.with_columns(prediction_time=pl.col("admitted") + ASKED_AFTER)
    return (
        stays.filter(pl.col("discharged") > pl.col("prediction_time"))
        .select("subject_id", "prediction_time", boolean_value=pl.col("discharged") > pl.col("admitted") + LONG)
        .sort("subject_id", "prediction_time")
    )


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="The MEDS data set, which holds data/ and metadata/.")
    parser.add_argument(
        "--output", type=Path, required=True, help="Folder of label shards to make, named as the task."
    )
    args = parser.parse_args(arguments)
    shards = sorted((args.raw / "data").rglob("*.parquet"))
    if not shards:
        parser.error(f"{args.raw} is not a MEDS data set: there is no Parquet file in its folder data/")
    for shard in shards:
        labels = label_stays(pl.read_parquet(shard, columns=["subject_id", "time", "code"]))
        table = LabelSchema.align(labels.to_arrow())
        LabelSchema.validate(table)
        path = args.output / shard.relative_to(args.raw / "data")
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        print(f"{path}: {labels.height} stays, {labels['boolean_value'].sum()} longer than a week")


if __name__ == "__main__":
    main()
