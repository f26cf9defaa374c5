"""`hymate predict`: a fine-tuned model on new records."""

import argparse
from pathlib import Path

from hymate_training.cli.arguments import (
    add_batches,
    add_checkpoint,
    add_layout,
    add_overwrite,
    add_tables,
    add_times,
    layout_of,
)
from hymate_training.concepts.mapping import read_map
from hymate_training.inference.cluster import ClusterPredictions, predict_on_ray
from hymate_training.inference.conformal import ALL
from hymate_training.inference.findings import Findings
from hymate_training.inference.meds_labels import predict_labels
from hymate_training.inference.prediction import BATCH_SIZE, RecordPredictions, predict
from hymate_training.inference.prepared import predict_split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_checkpoint(parser)
    add_tables(parser, required=False, several=True)
    _add_split(parser)
    _add_labels(parser)
    add_layout(parser)
    parser.add_argument(
        "--concepts",
        type=Path,
        metavar="MAP.csv",
        help="Map of the variables to concepts (default: that of the model's training data).",
    )
    add_times(parser)
    parser.add_argument(
        "--untrained-hours",
        action="store_true",
        help="Answer also at hours at which the model was not trained, and remark it; an error otherwise.",
    )
    parser.add_argument(
        "--horizons",
        type=float,
        nargs="+",
        metavar="HOURS",
        help="Of a time-to-event model: hours after the prediction within which the risk is asked (default: its own).",
    )
    _add_conformal(parser)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="CSV or Parquet file to write, with one row per record, or per record and time: record_id, "
        "prediction_time where times are asked for, the labels, sets where they are asked for, and in remarks "
        "what the model did not know.",
    )
    add_overwrite(parser)
    add_batches(parser, BATCH_SIZE)
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="Where to predict: in this process, or with ray on the machines of a cluster; --output is then a folder "
        "with a Parquet file per part of the records (default: local).",
    )
    parser.add_argument(
        "--address",
        help="With --engine ray: the cluster, such as auto or ray://HOST:10001 (default: one on this machine).",
    )


def run(args: argparse.Namespace) -> str:
    """Predicts; returns how much, and what is to be said about it."""
    if args.conformal_by is not None and args.conformal is None:
        raise ValueError("--conformal-by needs --conformal, the level")
    if sum(source is not None for source in (args.events, args.data, args.labels)) != 1:
        raise ValueError("give one of --events, --data and --labels")
    if args.engine == "ray" and args.events is None:
        raise ValueError("--engine ray is for --events")
    if args.labels is not None:
        return _predict_labels(args)
    result = _predict_split(args) if args.data is not None else _predict_events(args)
    dropped = [f"dropped {count} {reason}" for reason, count in result.dropped.items()]
    lines = [f"{_counted(args, result.findings)} -> {result.output}", *dropped, *result.remarks]
    if isinstance(result, ClusterPredictions):
        lines.append(f"{sum(result.machines.values())} parts on {len(result.machines)} machines")
    return "\n".join(lines)


def _counted(args: argparse.Namespace, findings: Findings) -> str:
    records = f"{findings.num_records} records"
    at_times = args.every is not None or args.at is not None or findings.num_predictions != findings.num_records
    return f"{records}, {findings.num_predictions} predictions" if at_times else records


def _predict_events(args: argparse.Namespace) -> RecordPredictions:
    for name in ("split", "task"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} is for --data")
    if args.engine == "ray":
        return _predict_on_ray(args)
    return predict(
        args.checkpoint,
        args.events,
        args.static,
        args.output,
        every=args.every,
        at=args.at,
        untrained_hours=args.untrained_hours,
        max_events=args.max_events,
        batch_size=args.batch_size,
        ignore_unknown_variables=args.ignore_unknown_variables,
        start=args.start,
        layout=layout_of(args),
        concepts=None if args.concepts is None else read_map(args.concepts),
        horizons=args.horizons,
        conformal=args.conformal,
        conformal_by=args.conformal_by or ALL,
        overwrite=args.overwrite,
    )


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="In place of --events: prepared folder, of which --split is predicted.",
    )
    parser.add_argument(
        "--task",
        help="With --data: ask the records of this task at its prediction times (default: all at their end).",
    )
    parser.add_argument(
        "--split",
        help="With --data: train, validation or test. With --labels: only subjects of this split, such as held_out.",
    )


def _predict_split(args: argparse.Namespace) -> RecordPredictions:
    if args.split is None:
        raise ValueError("--data needs --split, such as test")
    for name in ("static", "start", "columns", "layout", "time_zone", "concepts", "at"):
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} is for --events; --data reads the prepared folder as it is")
    return predict_split(
        args.checkpoint,
        args.data,
        args.split,
        args.output,
        task=args.task,
        every=args.every,
        untrained_hours=args.untrained_hours,
        max_events=args.max_events,
        batch_size=args.batch_size,
        ignore_unknown_variables=args.ignore_unknown_variables,
        horizons=args.horizons,
        conformal=args.conformal,
        conformal_by=args.conformal_by or ALL,
        overwrite=args.overwrite,
    )


def _predict_on_ray(args: argparse.Namespace) -> ClusterPredictions:
    for name in ("start", "columns", "layout", "time_zone", "concepts", "horizons"):
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} is for --engine local")
    return predict_on_ray(
        args.checkpoint,
        args.events,
        args.static,
        args.output,
        at=args.at,
        address=args.address,
        every=args.every,
        untrained_hours=args.untrained_hours,
        max_events=args.max_events,
        batch_size=args.batch_size,
        ignore_unknown_variables=args.ignore_unknown_variables,
        conformal=args.conformal,
        conformal_by=args.conformal_by or ALL,
        overwrite=args.overwrite,
    )


def _add_conformal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--conformal",
        type=float,
        metavar="LEVEL",
        help="Add conformal sets of labels, or intervals of numbers, that hold the truth for this share of records "
        "like those of the validation split: a level that the checkpoint keeps, such as 0.9.",
    )
    parser.add_argument(
        "--conformal-by",
        metavar="PART",
        help="What the level holds for: 'all' records together, each 'label', or each group of a static column, by "
        "its name (default: all).",
    )


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="DIR",
        help="In place of --events: folder of label shards of a MEDS data set, of which each label is predicted; "
        "--output is then a folder, for predictions.parquet in the schema of meds-evaluation.",
    )
    parser.add_argument("--raw", type=Path, metavar="DIR", help="With --labels: the MEDS data set.")


def _predict_labels(args: argparse.Namespace) -> str:
    if args.raw is None:
        raise ValueError("--labels needs --raw, the MEDS data set")
    for name in (
        *("static", "start", "columns", "layout", "time_zone", "concepts", "every", "at", "untrained_hours"),
        *("max_events", "ignore_unknown_variables", "conformal", "horizons", "task"),
    ):
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} is for --events; --labels reads the data set as it is")
    result = predict_labels(
        args.checkpoint,
        args.raw,
        args.labels,
        args.output,
        split=args.split,
        batch_size=args.batch_size,
        overwrite=args.overwrite,
    )
    lines = [f"{result.frame.height} labels -> {result.output}"]
    if result.unseen:
        lines.append(
            f"{result.unseen} of them come before any event that the model knows: static columns alone answer"
        )
    return "\n".join(lines)
